"""Convolutions by minimal filtering: in float32 on a CPU, forward and backward, in about two thirds of the time.

Along each side, a tile of 4 outputs of a 3x3 kernel depends on 6 inputs. Between fixed linear maps of inputs, kernel
and outputs it takes 6 * 6 = 36 multiplications in place of 144, and these are 36 matrix products over all tiles and
channels:

    output = A' [(G kernel G') * (B' input B)] A

A 4x4 kernel of stride 2 is four 2x2 kernels, one for the pixels of each parity: 5 * 5 = 25 in place of 64. The
gradients are those of the formula. The batch goes through in chunks that stay in the cache. The maps are compiled by
XLA, 1 to 2 seconds for each shape of a layer (AMD EPYC family 25 model 17, two cores), so that little work is left to
TensorFlow. Results differ from the direct sum by about 1e-5 of the largest output.

Source: Winograd 1980, "Arithmetic Complexity of Computations"; Lavin and Gray 2015, arXiv:1509.09308, section 4.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kerasdl import processor

TILE = 4  # outputs along a side
MIN_CHANNELS = 48
CHUNK_BYTES = 2**22  # of an input: its products fit in a few times as much cache
MIN_MULTIPLICATIONS = 5e8  # of a step, by the direct sum


@dataclass(frozen=True)
class _Filtering:
    """One kind of kernel: the matrices B', G and A' of one side, and the stride."""

    input: np.ndarray
    kernel: np.ndarray
    output: np.ndarray
    stride: int


KINDS = {
    (3, 1): _Filtering(
        input=np.array(
            [
                [4, 0, -5, 0, 1, 0],
                [0, -4, -4, 1, 1, 0],
                [0, 4, -4, -1, 1, 0],
                [0, -2, -1, 2, 1, 0],
                [0, 2, -1, -2, 1, 0],
                [0, 4, 0, -5, 0, 1],
            ]
        ),
        kernel=np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
        output=np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
        stride=1,
    ),
    (4, 2): _Filtering(
        input=np.array([[2, -1, -2, 1, 0], [0, -2, -1, 1, 0], [0, 2, -3, 1, 0], [0, -1, 0, 1, 0], [0, 2, -1, -2, 1]]),
        kernel=np.array([[3, 0], [-3, -3], [-1, 1], [1, 2], [0, 6]]) / 6,
        output=np.array([[1, 1, 1, 1, 0], [0, 1, -1, 2, 0], [0, 1, 1, 4, 0], [0, 1, -1, 8, 1]]),
        stride=2,
    ),
}


def pays(image: Any, kernel: Any, stride: int) -> bool:
    """Whether this is quicker than TensorFlow: with few channels the maps outweigh the products.

    Args:
        image: float[batch, height, width, channels].
        kernel: float[side, side, channels, filters], or of a transposed convolution.
        stride: of the convolution; one of 2 must divide height and width.
    """
    height, width, *channels = kernel.shape
    return (
        height == width
        and (height, stride) in KINDS
        and min(channels) >= MIN_CHANNELS
        and keras.backend.standardize_dtype(image.dtype) == "float32"
        and processor.compiles_on_cpu()
    )


def convolution(image: Any, kernel: Any, stride: int = 1) -> Any:
    """The convolution with padding "same".

    Args:
        image: float32[batch, height, width, channels].
        kernel: float32[3, 3, channels, filters], or float32[4, 4, channels, filters] with a stride of 2.
        stride: 1, or 2, which must divide height and width.

    Returns:
        float32[batch, height / stride, width / stride, filters].
    """
    import tensorflow as tf

    maps = _maps(kernel.shape[0], stride)

    @tf.custom_gradient
    def convolve(x: Any, kernel: Any) -> Any:
        def value() -> Any:
            weights = maps["kernel"](kernel)

            def forward(x: Any) -> list[Any]:
                parts = maps["output"](_products(maps["input"](x), weights), _tiles(x, stride))
                return [_joined(parts, tf.shape(x)[1:3] // stride)]

            return _chunked(forward, [x])[0]

        def gradient(upstream: Any) -> tuple[Any, Any]:
            def gradients() -> tuple[Any, Any]:
                weights = maps["kernel"](kernel)

                def backward(x: Any, upstream: Any, *sums: Any) -> list[Any]:
                    gradients = maps["upstream"](upstream)
                    back = maps["input_back"](_products(gradients, weights, transpose_b=True), _tiles(x, stride))
                    added = _added(sums, _products(maps["input"](x), gradients, transpose_a=True))
                    return [_joined(back, tf.shape(x)[1:3]), *added]

                gradient, *sums = _chunked(backward, [x, upstream], weights)
                return gradient, maps["kernel_back"](sums)

            gradient, kernel_gradient = tf.cond(much, gradients, lambda: _direct_gradient(x, upstream, kernel, stride))
            return tf.ensure_shape(gradient, x.shape), tf.ensure_shape(kernel_gradient, kernel.shape)

        much = _is_much(tf.concat([tf.shape(x)[:1], tf.shape(x)[1:3] // stride], 0), kernel)
        y = tf.cond(much, value, lambda: tf.nn.conv2d(x, kernel, stride, "SAME"))
        sides = [None if side is None else side // stride for side in x.shape[1:3]]
        return tf.ensure_shape(y, [x.shape[0], *sides, kernel.shape[3]]), gradient

    return convolve(tf.convert_to_tensor(image), tf.convert_to_tensor(kernel))


def transposed_convolution(image: Any, kernel: Any, stride: int) -> Any:
    """The transposed convolution with padding "same".

    Args:
        image: float32[batch, height, width, channels].
        kernel: float32[4, 4, filters, channels].
        stride: 2.

    Returns:
        float32[batch, stride * height, stride * width, filters].
    """
    import tensorflow as tf

    maps = _maps(kernel.shape[0], stride)

    @tf.custom_gradient
    def convolve(x: Any, kernel: Any) -> Any:
        large = tf.concat([tf.shape(x)[:1], stride * tf.shape(x)[1:3], kernel.shape[2:3]], 0)

        def value() -> Any:
            weights = maps["kernel"](kernel)

            def forward(x: Any) -> list[Any]:
                back = _products(maps["upstream"](x), weights, transpose_b=True)
                return [_joined(maps["input_back"](back, _tiles(x, 1)), stride * tf.shape(x)[1:3])]

            return _chunked(forward, [x])[0]

        def gradient(upstream: Any) -> tuple[Any, Any]:
            def gradients() -> tuple[Any, Any]:
                weights = maps["kernel"](kernel)

                def backward(x: Any, upstream: Any, *sums: Any) -> list[Any]:
                    gradients = maps["input"](upstream)
                    gradient = _joined(maps["output"](_products(gradients, weights), _tiles(x, 1)), tf.shape(x)[1:3])
                    return [gradient, *_added(sums, _products(gradients, maps["upstream"](x), transpose_a=True))]

                gradient, *sums = _chunked(backward, [x, upstream], weights)
                return gradient, maps["kernel_back"](sums)

            def direct() -> tuple[Any, Any]:
                return tf.nn.conv2d(upstream, kernel, stride, "SAME"), _direct_gradient(upstream, x, kernel, stride)[1]

            gradient, kernel_gradient = tf.cond(much, gradients, direct)
            return tf.ensure_shape(gradient, x.shape), tf.ensure_shape(kernel_gradient, kernel.shape)

        much = _is_much(tf.shape(x)[:3], kernel)
        y = tf.cond(much, value, lambda: tf.nn.conv2d_transpose(x, kernel, large, stride))
        sides = [None if side is None else side * stride for side in x.shape[1:3]]
        return tf.ensure_shape(y, [x.shape[0], *sides, kernel.shape[2]]), gradient

    return convolve(tf.convert_to_tensor(image), tf.convert_to_tensor(kernel))


def _is_much(places: Any, kernel: Any) -> Any:
    """Whether the multiplications of a step are worth a compilation: places of the kernel times its size."""
    import tensorflow as tf

    return tf.reduce_prod(tf.cast(places, tf.float32)) * float(np.prod(kernel.shape)) >= MIN_MULTIPLICATIONS


def _direct_gradient(x: Any, upstream: Any, kernel: Any, stride: int) -> tuple[Any, Any]:
    """TensorFlow's, of the input and the kernel of a convolution."""
    import tensorflow as tf

    given = {"out_backprop": upstream, "strides": [1, stride, stride, 1], "padding": "SAME"}
    return (
        tf.raw_ops.Conv2DBackpropInput(input_sizes=tf.shape(x), filter=kernel, **given),
        tf.raw_ops.Conv2DBackpropFilter(input=x, filter_sizes=kernel.shape, **given),
    )


def _products(left: Sequence[Any], right: Sequence[Any], **transposed: bool) -> list[Any]:
    import tensorflow as tf

    return [tf.matmul(one, other, **transposed) for one, other in zip(left, right, strict=True)]


def _added(left: Sequence[Any], right: Sequence[Any]) -> list[Any]:
    return [one + other for one, other in zip(left, right, strict=True)]


def _tiles(x: Any, stride: int) -> Any:
    """int32[3]: pictures, tiles down, tiles to the right, for an input of the convolution."""
    import tensorflow as tf

    shape = tf.shape(x)
    return tf.concat([shape[:1], (shape[1:3] + TILE * stride - 1) // (TILE * stride)], 0)


def _chunked(step: Callable[..., list[Any]], arrays: Sequence[Any], weights: Sequence[Any] = ()) -> list[Any]:
    """Runs `step(*chunks of arrays, *sums) -> [chunk of the result, *sums]` over the batch; one sum for each weight."""
    import tensorflow as tf

    batch = tf.shape(arrays[0])[0]
    picture = 4 * tf.reduce_max([tf.reduce_prod(tf.shape(array)[1:]) for array in arrays])
    most = tf.maximum(1, CHUNK_BYTES // tf.maximum(1, picture))
    count = (batch + most - 1) // most
    size = tf.maximum(1, (batch + count - 1) // tf.maximum(1, count))

    def body(i: Any, results: Any, *sums: Any) -> Any:
        chunks = []
        for array in arrays:
            part = array[i * size : (i + 1) * size]
            # All chunks of one size: each other one would be compiled for.
            part = tf.pad(part, [[0, size - tf.shape(part)[0]], [0, 0], [0, 0], [0, 0]])
            chunks.append(tf.ensure_shape(part, [None, *array.shape[1:]]))
        result, *added = step(*chunks, *sums)
        return i + 1, results.write(i, result), *added

    results = tf.TensorArray(arrays[0].dtype, count, infer_shape=False)
    begin = (0, results, *(tf.zeros_like(weight) for weight in weights))
    _, results, *sums = tf.while_loop(lambda i, *_: i < count, body, begin, parallel_iterations=1)
    return [results.concat()[:batch], *sums]


def _joined(rows: Sequence[Any], sides: Any) -> Any:
    """N tensors [n, pictures, down, right, channels], of each row in a tile -> [pictures, *sides, channels]."""
    import tensorflow as tf

    n, channels = len(rows), rows[0].shape[-1]
    pictures, down, right = tf.unstack(tf.shape(rows[0])[1:4])
    rows = [tf.concat(tf.unstack(row, n), -1) for row in rows]
    rows = [tf.reshape(row, [pictures * down, n * right * channels]) for row in rows]
    whole = tf.reshape(tf.concat(rows, -1), [pictures, n * down, n * right, channels])
    return whole[:, : sides[0], : sides[1]]


@functools.cache
def _maps(side: int, stride: int) -> dict[str, Callable[..., Any]]:
    """The linear maps, each compiled. The n * n values of a tile are n tensors [n, tiles, channels], one for each
    column: with fewer and larger tensors XLA compiles for a quarter of the time.
    """
    import tensorflow as tf

    filtering = KINDS[side, stride]
    n, step = len(filtering.input), TILE * stride

    def combined(parts: Sequence[Any], matrix: np.ndarray) -> list[Any]:
        """The sums of parts that the rows of a matrix say."""
        sums = []
        for row in matrix:
            terms = [part * float(factor) for factor, part in zip(row, parts, strict=True) if factor]
            sums.append(functools.reduce(tf.add, terms))
        return sums

    def along_both(columns: Sequence[Any], matrix: np.ndarray) -> list[Any]:
        """N tensors [n, ...], of each column -> m tensors [m, ...], of each row, for a matrix of m rows."""
        columns = tf.stack(combined(columns, matrix))
        return combined(tf.unstack(columns, axis=1), matrix)

    def flat(parts: Sequence[Any]) -> list[Any]:
        return [tf.reshape(part, [n, -1, part.shape[-1]]) for part in parts]

    def in_tiles(part: Any, tiles: Any) -> Any:
        return tf.reshape(part, tf.concat([[n], tiles, part.shape[-1:]], 0))

    def to_tiles(x: Any) -> list[Any]:
        """The n * n inputs of each tile, those of all parities side by side, the first outside of the picture."""
        _, down, right = tf.unstack(_tiles(x, stride))
        height, width = tf.unstack(tf.shape(x)[1:3])
        x = tf.pad(x, [[0, 0], [1, step * down + 1 - height], [1, step * right + 1 - width], [0, 0]])
        places = [stride * i for i in range(n)]
        found = []
        for p in range(stride):
            rows = [x[:, p + a : p + a + step * (down - 1) + 1 : step] for a in places]
            rows = tf.stack(combined(rows, filtering.input))
            for q in range(stride):
                columns = [rows[:, :, :, q + a : q + a + step * (right - 1) + 1 : step] for a in places]
                found.append(combined(columns, filtering.input))
        return flat([tf.concat(parts, -1) for parts in zip(*found, strict=True)])

    def output(parts: Sequence[Any], tiles: Any) -> list[Any]:
        return along_both([in_tiles(part, tiles) for part in parts], filtering.output)

    def upstream(y: Any) -> list[Any]:
        _, down, right = tf.unstack(_tiles(y, 1))
        height, width = tf.unstack(tf.shape(y)[1:3])
        y = tf.pad(y, [[0, 0], [0, TILE * down - height], [0, TILE * right - width], [0, 0]])
        rows = tf.stack(combined([y[:, i::TILE] for i in range(TILE)], filtering.output.T))
        return flat(combined([rows[:, :, :, i::TILE] for i in range(TILE)], filtering.output.T))

    def overlapped(parts: Sequence[Any], axis: int, parity: int) -> list[Any]:
        """Values of the inputs of one parity -> sums at their places in a tile; the outermost are the neighbours'."""
        sums: dict[int, Any] = {}
        for i, part in enumerate(parts):
            place = stride * i + parity - 1
            border, index = [[0, 0]] * 5, [slice(None)] * 5
            if place < 0:
                border[axis], index[axis] = [0, 1], slice(1, None)
            elif place >= step:
                border[axis], index[axis] = [1, 0], slice(None, -1)
            if not 0 <= place < step:
                part = tf.pad(part[tuple(index)], border)
            place %= step
            sums[place] = part + sums[place] if place in sums else part
        return [sums[place] for place in sorted(sums)]

    def input_back(parts: Sequence[Any], tiles: Any) -> list[Any]:
        channels = parts[0].shape[-1] // stride**2
        found: dict[tuple[int, int], list[Any]] = {}
        for p in range(stride):
            for q in range(stride):
                first = channels * (stride * p + q)
                own = [in_tiles(part[..., first : first + channels], tiles) for part in parts]
                columns = tf.stack(overlapped(combined(own, filtering.input.T), 3, q))
                found[p, q] = overlapped(combined(tf.unstack(columns, n, axis=1), filtering.input.T), 2, p)
        return _interleaved(found, stride, first=1)

    def kernel(value: Any) -> list[Any]:
        k = side // stride
        found = []
        for p in range(stride):
            rows = tf.stack(combined([value[stride * i + p] for i in range(k)], filtering.kernel))
            for q in range(stride):
                found.append(combined([rows[:, stride * i + q] for i in range(k)], filtering.kernel))
        return [tf.concat(parts, 1) for parts in zip(*found, strict=True)]

    def kernel_back(parts: Sequence[Any]) -> Any:
        channels = parts[0].shape[1] // stride**2
        found = {}
        for p in range(stride):
            for q in range(stride):
                first = channels * (stride * p + q)
                found[p, q] = along_both([part[:, first : first + channels] for part in parts], filtering.kernel.T)
        return tf.stack(_interleaved(found, stride, first=0))

    maps = {
        "input": to_tiles,
        "output": output,
        "upstream": upstream,
        "input_back": input_back,
        "kernel": kernel,
        "kernel_back": kernel_back,
    }
    return {name: tf.function(function, jit_compile=True, autograph=False) for name, function in maps.items()}


def _interleaved(parts: dict[tuple[int, int], list[Any]], stride: int, *, first: int) -> list[Any]:
    """For each parity of rows and columns k tensors [k, ...], of each row -> stride * k tensors [stride * k, ...].

    Args:
        parts: by parity.
        stride: number of the parities.
        first: parity of the first row and column of the result.
    """
    import tensorflow as tf

    order = [(first + i) % stride for i in range(stride)]
    rows = []
    for i in range(len(parts[0, 0])):
        for p in order:
            row = tf.stack([parts[p, q][i] for q in order], 1)
            rows.append(tf.reshape(row, tf.concat([[stride * row.shape[0]], tf.shape(row)[2:]], 0)))
    return rows
