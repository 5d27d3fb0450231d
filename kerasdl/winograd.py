"""3x3 convolutions by minimal filtering: in float32 on a CPU, forward and backward, in about half the time.

A tile of 4x4 outputs depends on 6x6 inputs. Between fixed linear maps of tile and kernel it takes 36 multiplications in
place of 144, and these are 36 matrix products over all tiles and channels:

    output = A' [(G kernel G') * (B' input B)] A

The gradients are those of this formula. The maps are compiled by XLA, one compilation for each shape; the batch goes
through in chunks that stay in the cache. Results differ from the direct sum by about 1e-5 of the largest output.

Source: Winograd 1980, "Arithmetic Complexity of Computations"; Lavin and Gray 2015, arXiv:1509.09308, section 4.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from kerasdl.activation import compiles_on_cpu

INPUT = np.array(  # B', of F(4x4, 3x3)
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    float,
)
KERNEL = np.array(  # G
    [[1 / 4, 0, 0], [-1 / 6] * 3, [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
)
OUTPUT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float)  # A'
MIN_CHANNELS = 64
CHUNK_BYTES = 2**22  # of an input: its 36 products with it fit in a few MiB of cache


def pays(x: Any, kernel: Any) -> bool:
    """Whether `convolution` is quicker than TensorFlow's: with fewer channels the maps outweigh the products."""
    return (
        tuple(kernel.shape[:2]) == (3, 3)
        and min(kernel.shape[2:]) >= MIN_CHANNELS
        and keras.backend.standardize_dtype(x.dtype) == "float32"
        and compiles_on_cpu()
    )


def convolution(x: Any, kernel: Any) -> Any:
    """The convolution with padding "same" and stride 1.

    Args:
        x: float32[batch, height, width, channels].
        kernel: float32[3, 3, channels, filters].

    Returns:
        float32[batch, height, width, filters].
    """
    import tensorflow as tf

    maps = _maps()

    @tf.custom_gradient
    def convolve(x: Any, kernel: Any) -> Any:
        weights = maps["kernel"](kernel)

        def forward(x: Any) -> list[Any]:
            products = [tf.matmul(part, weight) for part, weight in zip(maps["input"](x), weights, strict=True)]
            return [_interleaved(maps["output"](products, tf.shape(x)), x)]

        def gradient(upstream: Any) -> tuple[Any, Any]:
            def backward(x: Any, upstream: Any, *sums: Any) -> list[Any]:
                parts, slopes = maps["input"](x), maps["upstream"](upstream)
                sums = [
                    total + tf.matmul(part, slope, transpose_a=True)
                    for total, part, slope in zip(sums, parts, slopes, strict=True)
                ]
                back = [
                    tf.matmul(slope, weight, transpose_b=True) for slope, weight in zip(slopes, weights, strict=True)
                ]
                return [_interleaved(maps["input_back"](back, tf.shape(x)), x), *sums]

            zeros = [tf.zeros_like(weight) for weight in weights]
            slope, *slopes = _chunked(backward, [x, upstream], zeros)
            return tf.ensure_shape(slope, x.shape), maps["kernel_back"](slopes)

        return tf.ensure_shape(_chunked(forward, [x], [])[0], [*x.shape[:3], kernel.shape[3]]), gradient

    return convolve(tf.convert_to_tensor(x), tf.convert_to_tensor(kernel))


def _chunked(step: Callable[..., list[Any]], arrays: Sequence[Any], sums: Sequence[Any]) -> list[Any]:
    """Runs `step(*chunks of arrays, *sums) -> [chunk of the result, *sums]` over the batch."""
    import tensorflow as tf

    x = arrays[0]
    shape = tf.shape(x)
    picture = 4 * tf.reduce_prod(shape[1:])
    count = tf.maximum(1, shape[0] * picture // CHUNK_BYTES)
    size = (shape[0] + count - 1) // count
    count = (shape[0] + size - 1) // tf.maximum(size, 1)

    def body(i: Any, results: Any, *sums: Any) -> Any:
        chunks = []
        for array in arrays:
            part = array[i * size : (i + 1) * size]
            # All chunks of one size: each other one would be compiled for.
            part = tf.pad(part, [[0, size - tf.shape(part)[0]], [0, 0], [0, 0], [0, 0]])
            chunks.append(tf.ensure_shape(part, [None, *array.shape[1:]]))
        result, *sums = step(*chunks, *sums)
        return i + 1, results.write(i, result), *sums

    results = tf.TensorArray(x.dtype, count, infer_shape=False)
    _, results, *sums = tf.while_loop(lambda i, *_: i < count, body, (0, results, *sums), parallel_iterations=1)
    return [results.concat()[: shape[0]], *sums]


def _interleaved(parts: Sequence[Any], x: Any) -> Any:
    """16 tensors [tiles, channels], of each place in a tile -> [batch, height, width, channels]."""
    import tensorflow as tf

    batch, height, width = tf.unstack(tf.shape(x)[:3])
    down, right, channels = _tiles(height), _tiles(width), parts[0].shape[-1]
    rows = [
        tf.reshape(tf.concat(parts[4 * row : 4 * row + 4], -1), [batch * down, 4 * right * channels])
        for row in range(4)
    ]
    return tf.reshape(tf.concat(rows, -1), [batch, 4 * down, 4 * right, channels])[:, :height, :width]


def _tiles(length: Any) -> Any:
    return (length + 3) // 4


@functools.cache
def _maps() -> dict[str, Callable[..., list[Any]]]:
    """The linear maps, each compiled; tiles go by as 36 or 16 tensors [tiles, channels]."""
    import tensorflow as tf

    def combined(parts: Sequence[Any], matrix: np.ndarray) -> list[Any]:
        """The sums over parts that the rows of a matrix say."""
        sums = []
        for row in matrix:
            terms = [part if factor == 1 else part * factor for factor, part in zip(row, parts, strict=True) if factor]
            sums.append(functools.reduce(tf.add, terms))
        return sums

    def twice(parts: Sequence[Any], matrix: np.ndarray) -> list[Any]:
        """Along both sides of square tiles: n * n tensors -> m * m, for a matrix of m rows and n columns."""
        n = matrix.shape[1]
        rows = [combined(parts[n * i : n * i + n], matrix) for i in range(n)]
        columns = [combined(list(column), matrix) for column in zip(*rows, strict=True)]
        return [value for row in zip(*columns, strict=True) for value in row]

    def cut(x: Any, before: int, size: int) -> list[Any]:
        """Tiles of size x size, 4 apart, the first `before` pixels outside the picture."""
        height, width = tf.unstack(tf.shape(x)[1:3])
        down, right = _tiles(height), _tiles(width)
        x = tf.pad(x, [[0, 0], [before, 4 * down + before - height], [before, 4 * right + before - width], [0, 0]])
        return [x[:, i : i + 4 * down - 3 : 4, j : j + 4 * right - 3 : 4] for i in range(size) for j in range(size)]

    def flat(parts: Sequence[Any]) -> list[Any]:
        return [tf.reshape(part, [-1, part.shape[-1]]) for part in parts]

    def square(parts: Sequence[Any], shape: Any) -> list[Any]:
        down, right = _tiles(shape[1]), _tiles(shape[2])
        return [tf.reshape(part, [shape[0], down, right, part.shape[-1]]) for part in parts]

    def input_back(parts: Sequence[Any], shape: Any) -> list[Any]:
        """Of the 6x6 inputs of a tile, one row or column each belongs to its neighbours."""

        def overlapped(parts: list[Any], axis: int) -> list[Any]:
            def moved(part: Any, by: int) -> Any:
                border = [[0, 0]] * 4
                border[axis] = [1, 0] if by == 1 else [0, 1]
                index = [slice(None)] * 4
                index[axis] = slice(None, -1) if by == 1 else slice(1, None)
                return tf.pad(part[tuple(index)], border)

            last, first = moved(parts[5], 1), moved(parts[0], -1)
            return [parts[1] + last, parts[2], parts[3], parts[4] + first]

        parts = square(parts, shape)
        rows = [overlapped(combined(parts[6 * i : 6 * i + 6], INPUT.T), 2) for i in range(6)]
        columns = [overlapped(combined(list(column), INPUT.T), 1) for column in zip(*rows, strict=True)]
        return flat([value for row in zip(*columns, strict=True) for value in row])

    def kernel(value: Any) -> list[Any]:
        return twice([value[i, j] for i in range(3) for j in range(3)], KERNEL)

    def kernel_back(parts: Sequence[Any]) -> Any:
        rows = twice(parts, KERNEL.T)
        return tf.reshape(tf.stack(rows), [3, 3, *parts[0].shape])

    maps = {
        "input": lambda x: flat(twice(cut(x, 1, 6), INPUT)),
        "output": lambda parts, shape: twice(parts, OUTPUT),
        "upstream": lambda x: flat(twice(cut(x, 0, 4), OUTPUT.T)),
        "input_back": input_back,
        "kernel": kernel,
        "kernel_back": kernel_back,
    }
    return {name: tf.function(function, jit_compile=True, autograph=False) for name, function in maps.items()}
