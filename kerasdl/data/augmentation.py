"""Random image augmentation for tf.data: each function takes a whole batch and a seed, and keeps no state.

Images are uint8 or float32[batch, height, width, channels] in 0..255; only the number of channels must be
known when the function is traced. They come back in the dtype they came in (uint8 is rounded); `mixup` alone
returns float32. The same seed gives the same result. Every function derives its own stream from the seed, so
one seed a batch serves a chain of them:

    images = pad_and_crop(random_flip(images, seed), seed)

Written for two CPU cores, where the obvious TensorFlow ops are slow: on uint8[512, 32, 32, 3] a crop with
`tf.pad` takes five times as long as the gather below.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import tensorflow as tf

# Folded into the caller's seed. Changing a number changes the draws of recorded runs.
_FLIP, _CROP, _AFFINE, _COLOR, _ERASING, _MIXUP, _CORRUPTION = range(7)

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow and torchvision


def random_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors each image left to right with probability 1/2.

    Args:
        images: uint8 or float32[batch, height, width, channels].
        seed: int32[2].

    Returns:
        The dtype and shape of `images`.

    Raises:
        ValueError: if `images` has another dtype or rank.

    Source: Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks",
    section 4.1.
    """
    images = _checked(images)
    drawn = tf.random.stateless_uniform([tf.shape(images)[0]], tf.random.fold_in(seed, _FLIP))
    return _flip_where(images, drawn < 0.5)


def alternating_flip(images: tf.Tensor, index: tf.Tensor, epoch: tf.Tensor | int, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors each image in every other epoch, so that two epochs in a row always show both of its sides.

    Whether an example starts mirrored is a fixed pseudo-random bit of (seed, index).

    Args:
        images: uint8 or float32[batch, height, width, channels].
        index: int64[batch], the position of each example in the data set, the same in every epoch.
        epoch: int64[], counted from 0.
        seed: int32[2], the same in every epoch.

    Returns:
        The dtype and shape of `images`.

    Raises:
        ValueError: if `images` has another dtype or rank.

    Source: Jordan 2024, arXiv:2404.00498, section "Alternating flip".
    """
    images = _checked(images)
    text = tf.strings.join([tf.strings.reduce_join(tf.strings.as_string(seed), separator=","), ":"])
    first = tf.strings.to_hash_bucket_fast(tf.strings.join([text, tf.strings.as_string(index)]), 2)
    return _flip_where(images, (first + tf.cast(epoch, tf.int64)) % 2 == 1)


def pad_and_crop(
    images: tf.Tensor,
    seed: tf.Tensor,
    *,
    padding: int = 4,
    mode: Literal["REFLECT", "CONSTANT"] = "REFLECT",
) -> tf.Tensor:
    """Pads each image on all sides and crops it back to its size at a random place.

    The shift is uniform over the (2 * padding + 1)^2 possible ones. Source pixels are gathered directly,
    without making the padded images.

    Args:
        images: uint8 or float32[batch, height, width, channels].
        seed: int32[2].
        padding: pixels on each side.
        mode: what is beyond the border, as in `tf.pad`: the mirrored image without its edge pixel, or zeros.

    Returns:
        The dtype and shape of `images`.

    Raises:
        ValueError: if `images` has another dtype or rank, or `mode` is unknown.
        tf.errors.InvalidArgumentError: if mode is "REFLECT" and an image side is not longer than `padding`.

    Source: He et al. 2015, arXiv:1512.03385, section 4.2 (there with zeros).
    """
    if mode not in ("REFLECT", "CONSTANT"):
        raise ValueError(f'pad_and_crop has no mode {mode!r}; use "REFLECT" or "CONSTANT".')
    images = _checked(images)
    batch, height, width, channels = tf.unstack(tf.shape(images))
    shift = tf.random.stateless_uniform([2, batch, 1], tf.random.fold_in(seed, _CROP), -padding, padding + 1, tf.int32)
    row, column = shift[0] + tf.range(height), shift[1] + tf.range(width)
    pixels = tf.reshape(images, [-1, channels])
    if mode == "REFLECT":
        tf.debugging.assert_less(
            padding,
            tf.minimum(height, width),
            message="pad_and_crop reflects fewer pixels than an image side has; use a smaller padding.",
        )
        row, column = _reflected(row, height), _reflected(column, width)
    source = (tf.range(batch)[:, None, None] * height + row[:, :, None]) * width + column[:, None, :]
    if mode == "CONSTANT":
        inside = _between(row, 0, height)[:, :, None] & _between(column, 0, width)[:, None, :]
        source = tf.where(inside, source, tf.shape(pixels)[0])
        pixels = tf.concat([pixels, tf.zeros([1, channels], pixels.dtype)], axis=0)
    return _shaped(tf.gather(pixels, source), images.shape)


def random_affine(images: tf.Tensor, seed: tf.Tensor, *, rotation_degrees: float, scale_ratio: float) -> tf.Tensor:
    """Rotates and zooms each image about its centre, bilinearly, with the border mirrored outwards.

    Args:
        images: uint8 or float32[batch, height, width, channels].
        seed: int32[2].
        rotation_degrees: angles are uniform in [-rotation_degrees, rotation_degrees].
        scale_ratio: at least 1; zoom factors are log-uniform in [1 / scale_ratio, scale_ratio].

    Returns:
        The dtype and shape of `images`.

    Raises:
        ValueError: if `images` has another dtype or rank, or `scale_ratio` is below 1.

    Source: Simard et al. 2003, "Best practices for convolutional neural networks", section 2.
    """
    if scale_ratio < 1:
        raise ValueError(f"random_affine got scale_ratio={scale_ratio}; it is at least 1, and 1 does not zoom.")
    images = _checked(images)
    batch, height, width, _ = tf.unstack(tf.shape(images))
    drawn = tf.random.stateless_uniform([2, batch], tf.random.fold_in(seed, _AFFINE), -1.0, 1.0)
    angle = drawn[0] * math.radians(rotation_degrees)
    zoom = tf.exp(drawn[1] * math.log(scale_ratio))
    # The op wants, for each output pixel, where it comes from: the inverse map, in (x, y).
    cos, sin = tf.cos(angle) / zoom, tf.sin(angle) / zoom
    center_x, center_y = tf.cast(width - 1, tf.float32) / 2, tf.cast(height - 1, tf.float32) / 2
    offset_x = center_x - cos * center_x + sin * center_y
    offset_y = center_y - sin * center_x - cos * center_y
    zeros = tf.zeros([batch])
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=tf.stack([cos, -sin, offset_x, sin, cos, offset_y, zeros, zeros], axis=1),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )
    return _shaped(_as_dtype(moved, images.dtype), images.shape)


def color_jitter(
    images: tf.Tensor, seed: tf.Tensor, *, brightness: float, contrast: float, saturation: float
) -> tf.Tensor:
    """Changes brightness, contrast and saturation of each image by its own random factors.

    In this order: the image is multiplied by one factor, blended with its mean grey by the second, each pixel
    with its own grey by the third, and clipped to 0..255 at the end. Grey is luma for three channels, else
    the mean of the channels, so that saturation leaves a one-channel image as it is.

    Args:
        images: uint8 or float32[batch, height, width, channels].
        seed: int32[2].
        brightness: in 0..1; factors are uniform in [1 - brightness, 1 + brightness], 0 leaves it alone.
        contrast: likewise.
        saturation: likewise.

    Returns:
        The dtype and shape of `images`.

    Raises:
        ValueError: if `images` has another dtype or rank, or a strength is outside 0..1.

    Source: Howard 2013, arXiv:1312.5402, on colour manipulations (there in random order).
    """
    strengths = [float(brightness), float(contrast), float(saturation)]
    if not all(0 <= strength <= 1 for strength in strengths):
        raise ValueError(f"color_jitter got brightness, contrast, saturation = {strengths}; each lies in 0..1.")
    images = _checked(images)
    batch, height, width, _ = tf.unstack(tf.shape(images))
    channels = images.shape[-1]
    drawn = tf.random.stateless_uniform([3, batch, 1, 1], tf.random.fold_in(seed, _COLOR), -1.0, 1.0)
    bright, contrasted, saturated = tf.unstack(1 + tf.reshape(strengths, [3, 1, 1, 1]) * drawn)
    gray = tf.constant(_LUMA if channels == 3 else [1 / channels] * channels)[:, None]
    pixels = tf.reshape(tf.cast(images, tf.float32), [batch, height * width, channels])
    # All three are linear in the pixel, so one small matrix and one offset an image: twice as fast.
    gain = bright * contrasted
    matrix = gain * (saturated * tf.eye(channels) + (1 - saturated) * gray)
    mean_gray = tf.reduce_mean(pixels, axis=1, keepdims=True) @ gray
    jittered = pixels @ matrix + bright * (1 - contrasted) * mean_gray
    jittered = tf.reshape(tf.clip_by_value(jittered, 0.0, 255.0), tf.shape(images))
    return _shaped(_as_dtype(jittered, images.dtype), images.shape)


def random_erasing(
    images: tf.Tensor, seed: tf.Tensor, *, size: int, fill: float | Sequence[float] = 128.0
) -> tf.Tensor:
    """Overwrites a random square of each image.

    The square's centre is uniform over the image, so the square may reach over the border, which the paper
    found important: some images keep most of their content.

    Args:
        images: uint8 or float32[batch, height, width, channels].
        seed: int32[2].
        size: side of the square in pixels.
        fill: the square's value in 0..255, one for all channels or one for each; the paper's is the mean of
            the data set.

    Returns:
        The dtype and shape of `images`.

    Raises:
        ValueError: if `images` has another dtype or rank.

    Source: DeVries and Taylor 2017 ("cutout"), arXiv:1708.04552, section 3.2.
    """
    images = _checked(images)
    batch, height, width, channels = tf.unstack(tf.shape(images))
    seed_row, seed_column = tf.unstack(tf.random.split(tf.random.fold_in(seed, _ERASING)))
    center_row = tf.random.stateless_uniform([batch, 1], seed_row, 0, height, tf.int32)
    center_column = tf.random.stateless_uniform([batch, 1], seed_column, 0, width, tf.int32)
    in_rows = _between(tf.range(height) - center_row + size // 2, 0, size)
    in_columns = _between(tf.range(width) - center_column + size // 2, 0, size)
    erased = tf.where(in_rows[:, :, None] & in_columns[:, None, :])
    value = tf.broadcast_to(tf.cast(fill, images.dtype), [tf.shape(erased)[0], channels])
    return _shaped(tf.tensor_scatter_nd_update(images, erased, value), images.shape)


def mixup(
    images: tf.Tensor, labels_one_hot: tf.Tensor, seed: tf.Tensor, *, alpha: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Blends each example with the one before it in the batch, labels alike: expects a shuffled batch.

    The share is drawn for each example, where the paper's code draws one for the batch: the expected loss is
    the same, and no whole step hangs on one draw.

    Args:
        images: uint8 or float32[batch, height, width, channels].
        labels_one_hot: float32[batch, classes].
        seed: int32[2].
        alpha: above 0; an example keeps the share lambda ~ Beta(alpha, alpha). 0.2 mixes little, 1 uniformly.

    Returns:
        float32[batch, height, width, channels] and float32[batch, classes].

    Raises:
        ValueError: if `images` has another dtype or rank, or `alpha` is not above 0.

    Source: Zhang et al. 2017, arXiv:1710.09412, section 2.
    """
    if alpha <= 0:
        raise ValueError(f"mixup got alpha={alpha}; it is above 0: leave mixup out where nothing is to be mixed.")
    images, labels = tf.cast(_checked(images), tf.float32), tf.cast(labels_one_hot, tf.float32)
    shape, seed = [2, tf.shape(images)[0]], tf.random.fold_in(seed, _MIXUP)
    # float64, since both draws of a small alpha underflow at times in float32, and their share becomes 1/2.
    gamma = tf.random.stateless_gamma(shape, seed, tf.constant(alpha, tf.float64), dtype=tf.float64)
    share = tf.cast(gamma[0] / (gamma[0] + gamma[1]), tf.float32)
    share_image, share_label = share[:, None, None, None], share[:, None]
    return (
        share_image * images + (1 - share_image) * tf.roll(images, 1, axis=0),
        share_label * labels + (1 - share_label) * tf.roll(labels, 1, axis=0),
    )


def corrupt(images: tf.Tensor, seed: tf.Tensor, *, share: float) -> tf.Tensor:
    """Adds noise to a third of a share of the images, blurs a third, and compresses a third as JPEG.

    The images at the front of the batch are taken: expects a shuffled batch. Gaussian noise has a standard deviation
    of 0 to 15, the Gaussian blur one of 0.3 to 1.2 pixels with the border mirrored, JPEG a quality of 20 to 70, each
    drawn uniformly for each image.

    Args:
        images: uint8[batch, height, width, 3].
        seed: int32[2].
        share: in 0..1, of the batch.

    Returns:
        The dtype and shape of `images`.

    Raises:
        ValueError: if `images` has another dtype or shape, or `share` is outside 0..1.

    Source: kinds: Hendrycks and Dietterich 2019, arXiv:1903.12261, section 3; strengths: own.
    """
    images = _checked(images)
    if images.dtype != tf.uint8 or images.shape[-1] != 3:
        raise ValueError(f"corrupt got {images.dtype.name}{images.shape}; expected uint8[batch, height, width, 3].")
    if not 0 <= share <= 1:
        raise ValueError(f"corrupt got share={share}; it lies in 0..1.")
    batch = tf.shape(images)[0]
    count = tf.cast(tf.round(tf.cast(batch, tf.float32) * share / 3), tf.int32)
    count = tf.minimum(count, batch // 3)
    seeds = tf.unstack(tf.random.split(tf.random.fold_in(seed, _CORRUPTION), 4))

    def drawn(index: int, low: float, high: float) -> tf.Tensor:
        return tf.random.stateless_uniform([count], seeds[index], low, high)[:, None, None, None]

    noisy, blurred, compressed, rest = tf.split(images, [count, count, count, batch - 3 * count])
    noise = drawn(0, 0, 15) * tf.random.stateless_normal(tf.shape(noisy), seeds[3])
    noisy = tf.clip_by_value(tf.cast(noisy, tf.float32) + noise, 0, 255)
    blurred = tf.cast(blurred, tf.float32)
    for axes in ([1, 2], [2, 1]):  # blurs axis 1 and swaps both, twice
        kernel = _blur_kernel(tf.shape(images)[axes[0]], drawn(1, 0.3, 1.2)[:, 0])
        blurred = tf.einsum("bij,bjkc->bkic", kernel, blurred)
    files = tf.map_fn(
        lambda pair: tf.image.adjust_jpeg_quality(pair[0], pair[1]),
        (compressed, tf.cast(drawn(2, 20, 71)[:, 0, 0, 0], tf.int32)),
        fn_output_signature=tf.uint8,
    )
    compressed = tf.reshape(files, tf.shape(compressed))  # of no picture the map has one dimension
    changed = [_as_dtype(part, tf.uint8) for part in (noisy, blurred)]
    return _shaped(tf.concat([*changed, compressed, rest], 0), images.shape)


def resize(images: tf.Tensor, size: int | tuple[int, int]) -> tf.Tensor:
    """Resizes images bilinearly, with a wider kernel where they shrink, so that they do not alias.

    Equal to `tf.image.resize(..., antialias=True)`, as one small matrix product an axis: seven times as fast
    from 32 to 24 pixels, a quarter slower from 224 to 160.

    Args:
        images: uint8 or float32[batch, height, width, channels].
        size: new height and width in pixels, or one number for both.

    Returns:
        The dtype of `images`, [batch, new_height, new_width, channels].

    Raises:
        ValueError: if `images` has another dtype or rank.

    Source: triangle filter, as in Pillow's `Image.resize` with BILINEAR.
    """
    images = _checked(images)
    new_sizes = (size, size) if isinstance(size, int) else size
    if tuple(images.shape[1:3]) == new_sizes:
        return images
    resized = tf.cast(images, tf.float32)
    for new_size in new_sizes:  # resizes axis 1 and swaps axes 1 and 2, twice
        batch, side, other, channels = tf.unstack(tf.shape(resized))
        rows = tf.reshape(resized, [batch, side, other * channels])
        resized = tf.reshape(_triangle_kernel(side, new_size) @ rows, [batch, new_size, other, channels])
        resized = tf.transpose(resized, [0, 2, 1, 3])
    new_shape = [images.shape[0], *new_sizes, images.shape[3]]
    return _shaped(_as_dtype(resized, images.dtype), new_shape)


def chain(settings: Any, *, num_classes: int, size: int) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """All augmentations that an image classifier's configuration asks for, in their order.

    Args:
        settings: the configuration, with the fields `augment`, `flip`, `padding`, `rotation_degrees`, `scale_ratio`,
            `color_jitter`, `corrupted`, `cutout_size`, `mixup_alpha`, `progressive`, `epochs` and `seed`.
        num_classes: of the labels.
        size: side of the pictures, in pixels.

    Returns:
        A transform of `kerasdl.data.pipeline.training_batches`: pictures uint8[batch, size, size, 3] and labels
        int[batch] -> pictures float32 in 0..255, in the first epochs smaller if they are progressive, and one-hot
        targets float32[batch, num_classes].
    """
    sizes = progressive_sizes(settings.epochs, size)
    stages = sorted(set(sizes))
    stage_of_epoch = tf.constant([stages.index(side) for side in sizes])

    def shrunk(images: tf.Tensor, side: int, seed: tf.Tensor) -> tf.Tensor:
        if settings.progressive == "resize":
            return resize(images, side)
        margin = (size - side) // 2
        shift = margin + (settings.padding if settings.augment else 0)
        return pad_and_crop(images, seed, padding=shift)[:, margin : margin + side, margin : margin + side]

    def transform(
        images: tf.Tensor, labels: tf.Tensor, *, index: tf.Tensor, epoch: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        seeds = [tf.random.fold_in(seed, i) for i in range(7)]
        targets = tf.one_hot(labels, num_classes)
        if settings.augment:
            if settings.flip == "alternating":
                images = alternating_flip(images, index, epoch, [settings.seed, 1])
            elif settings.flip == "random":
                images = random_flip(images, seeds[0])
            if settings.padding and settings.progressive != "crop":
                images = pad_and_crop(images, seeds[1], padding=settings.padding)
            if settings.rotation_degrees or settings.scale_ratio:
                images = random_affine(
                    images, seeds[2], rotation_degrees=settings.rotation_degrees, scale_ratio=1 + settings.scale_ratio
                )
            if settings.corrupted:
                images = corrupt(images, seeds[6], share=settings.corrupted)
            if settings.color_jitter:
                most = settings.color_jitter
                images = color_jitter(images, seeds[3], brightness=most, contrast=most, saturation=most)
            if settings.cutout_size:
                images = random_erasing(images, seeds[4], size=settings.cutout_size)
            if settings.mixup_alpha:
                images, targets = mixup(images, targets, seeds[5], alpha=settings.mixup_alpha)
        if settings.progressive != "none":
            stage = tf.gather(stage_of_epoch, epoch)
            images = tf.switch_case(stage, [functools.partial(shrunk, images, side, seeds[1]) for side in stages])
        return tf.cast(images, tf.float32), targets

    return transform


def progressive_sizes(epochs: int, size: int) -> list[int]:
    """Picture side of each epoch: 3/4 in the first half, 7/8 in the third quarter, then whole.

    Args:
        epochs: of the training.
        size: of the whole pictures, in pixels.

    Source: progressive resizing, Howard 2018 (DAWNBench); sizes: own.
    """
    ratios = [0.75 if e < epochs / 2 else 0.875 if e < 3 * epochs / 4 else 1 for e in range(epochs)]
    return [round(ratio * size) for ratio in ratios]


def _checked(images: tf.Tensor) -> tf.Tensor:
    images = tf.convert_to_tensor(images)
    if images.dtype not in (tf.uint8, tf.float32) or images.shape.rank != 4 or images.shape[-1] is None:
        raise ValueError(
            f"Got images {images.dtype.name}{images.shape}; augmentation works on uint8 or "
            "float32[batch, height, width, channels] with known channels: cast and batch them first."
        )
    return images


def _shaped(images: tf.Tensor, shape: tf.TensorShape | list[int | None]) -> tf.Tensor:
    images.set_shape(shape)  # gathers and reshapes by tensors lose what was known of the shape
    return images


def _as_dtype(images: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(images + 0.5, dtype) if dtype == tf.uint8 else images


def _flip_where(images: tf.Tensor, is_flipped: tf.Tensor) -> tf.Tensor:
    width = tf.shape(images)[2]
    column = tf.range(width)
    source = tf.where(is_flipped[:, None], width - 1 - column, column)
    return _shaped(tf.gather(images, source, axis=2, batch_dims=1), images.shape)


def _between(value: tf.Tensor, low: int, high: tf.Tensor | int) -> tf.Tensor:
    return (value >= low) & (value < high)


def _reflected(position: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    position = tf.abs(position)
    return tf.minimum(position, 2 * (size - 1) - position)


def _blur_kernel(size: tf.Tensor, deviation: tf.Tensor) -> tf.Tensor:
    """float32[batch, size, size]: the share of each old pixel in each new one; deviation float32[batch, 1, 1]."""
    old, new = tf.range(size)[None, :], tf.range(size)[:, None]
    total = 0.0
    for mirrored in (old, -1 - old, 2 * size - 1 - old):
        distance = tf.cast(new - mirrored, tf.float32)
        total += tf.exp(-tf.square(distance / deviation) / 2)
    return total / tf.reduce_sum(total, axis=-1, keepdims=True)


def _triangle_kernel(size: tf.Tensor, new_size: int) -> tf.Tensor:
    """float32[new_size, size]: the share of each old pixel in each new one."""
    size = tf.cast(size, tf.float32)
    scale = size / new_size
    new_center = (tf.range(new_size, dtype=tf.float32) + 0.5) * scale
    old_center = tf.range(size) + 0.5
    weight = tf.nn.relu(1 - tf.abs(new_center[:, None] - old_center) / tf.maximum(scale, 1.0))
    return weight / tf.reduce_sum(weight, axis=1, keepdims=True)
