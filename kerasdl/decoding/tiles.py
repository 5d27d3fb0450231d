"""Large pictures through a network in parts, in the graph: memory for one tile, whatever the picture."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from kerasdl.data import picture_decoding


def in_tiles(network: Callable[[tf.Tensor], tf.Tensor], image: tf.Tensor, *, size: int = 512, border: int) -> tf.Tensor:
    """Applies a network that keeps height and width to a picture, tile by tile, each seen with what lies around it.

    The result is that of the whole picture, to within rounding, if the network looks no farther than `border` pixels
    and if `size` and `border` are multiples of its stride.

    Args:
        network: float32[1, h, w, channels] -> float32[1, h, w, channels], any h and w.
        image: float32[height, width, channels], at least one pixel.
        size: side of a tile in pixels.
        border: pixels around a tile that are seen, too, where the picture has them.

    Returns:
        float32[height, width, channels].

    Source: own.
    """
    channels = image.shape[-1]
    height, width = tf.unstack(tf.shape(image)[:2])

    def along(length: tf.Tensor, part: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]) -> tf.Tensor:
        """Concatenates on the first axis what `part(begin, first, end)` gives of each stretch of a side."""
        count = (length + size - 1) // size
        pieces = tf.TensorArray(tf.float32, count, infer_shape=False, element_shape=[None, None, channels])

        def body(index: tf.Tensor, pieces: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            first = index * size
            seen = tf.maximum(first - border, 0), tf.minimum(first + size + border, length)
            restored = part(*seen, first - seen[0])
            return index + 1, pieces.write(index, restored)

        _, pieces = tf.while_loop(lambda index, _: index < count, body, (0, pieces), parallel_iterations=1)
        return pieces.concat()

    def row(top: tf.Tensor, bottom: tf.Tensor, above: tf.Tensor) -> tf.Tensor:
        def tile(left: tf.Tensor, right: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
            restored = network(image[None, top:bottom, left:right])[0]
            return tf.transpose(restored[above : above + size, before : before + size], [1, 0, 2])

        return tf.transpose(along(width, tile), [1, 0, 2])

    return tf.ensure_shape(along(height, row), [None, None, channels])


def files(
    network: Callable[[tf.Tensor], tf.Tensor], image_bytes: tf.Tensor, *, channels: int, border: int
) -> tf.Tensor:
    """Applies a network that keeps height and width to the pictures of files.

    Args:
        network: see `in_tiles`.
        image_bytes: string[batch], files as `kerasdl.data.picture_decoding.decode` reads them.
        channels: of the network: 1 takes colour pictures in grey.
        border: see `in_tiles`.

    Returns:
        string[batch]: PNG of the same sizes, 8 bits a channel. A picture in grey stays grey, with the mean of the
        network's channels, since it has the same noise in all three.

    Source: own.
    """

    def one(encoded: tf.Tensor) -> tf.Tensor:
        image = picture_decoding.decode(encoded)
        colorless = tf.reduce_all(image == image[..., :1])
        image = image if channels == 3 else picture_decoding.grey(image)
        found = in_tiles(network, tf.cast(image, tf.float32), border=border)
        found = tf.cond(colorless, lambda: tf.reduce_mean(found, -1, keepdims=True), lambda: found)
        return tf.io.encode_png(tf.saturate_cast(tf.round(found), tf.uint8))

    return tf.map_fn(one, image_bytes, fn_output_signature=tf.string)
