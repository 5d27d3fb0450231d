"""Noise for denoisers to take away: a whole batch at once, by a seed, in the graph or eagerly."""

from __future__ import annotations

from typing import Any, Literal, get_args

import tensorflow as tf

NoiseKind = Literal["gaussian", "salt_and_pepper", "masking"]


def add_noise(images: Any, seed: Any, *, kind: NoiseKind, strength: Any) -> tf.Tensor:
    """Adds noise to pictures, neither clipped nor rounded.

    Args:
        images: uint8 or float[batch, height, width, channels] in 0..255.
        seed: int32[2]; the same seed gives the same noise.
        kind: "gaussian" adds independent normal noise to every value; "salt_and_pepper" makes whole pixels black or
            white, both equally likely; "masking" makes whole pixels black.
        strength: the standard deviation of Gaussian noise on the scale 0..255, else the probability that a pixel is
            hit, 0 to 1. float[batch] gives each picture its own.

    Returns:
        float32[batch, height, width, channels].

    Raises:
        ValueError: if the kind is unknown.

    Source: Vincent et al. 2010, "Stacked denoising autoencoders", JMLR 11, section 3.3; there salt-and-pepper and
    masking hit a fixed number of values, here each pixel with its probability.
    """
    if kind not in get_args(NoiseKind):
        raise ValueError(f"the noise is {kind!r}, expected one of: {', '.join(get_args(NoiseKind))}")
    images = tf.cast(images, tf.float32)
    level = tf.reshape(tf.cast(strength, tf.float32), [-1, 1, 1, 1])
    shape = tf.shape(images)
    if kind == "gaussian":
        return images + level * tf.random.stateless_normal(shape, seed)
    drawn = tf.random.stateless_uniform([*tf.unstack(shape[:3]), 1], seed)
    hit = tf.where(drawn < level / 2, 0.0, 255.0) if kind == "salt_and_pepper" else 0.0
    return tf.where(drawn < level, hit, images)
