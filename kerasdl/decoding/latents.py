"""Latents for a generator, in the graph: drawn by a seed, so that an export gives the same pictures everywhere."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

MAX_COUNT = 10_000
"""Most latents at once: seeds times the largest count."""


def draw(count: Any, seed: Any, latent_dim: int, truncation: Any = 0.0) -> tf.Tensor:
    """Standard normal latents, some for each seed.

    The latents of a seed follow from it alone; a larger count begins with those of a smaller one.

    Args:
        count: int32[batch], 1 or more: latents of each seed; the largest for all seeds makes at most `MAX_COUNT`.
        seed: int32[batch].
        latent_dim: numbers a latent.
        truncation: float32[batch] or a number: numbers farther than so many standard deviations from zero are drawn
            again, which gives more usual pictures that differ less; 0 draws from all.

    Returns:
        float32[sum(count), latent_dim], those of a seed one behind the other.

    Raises:
        InvalidArgumentError: in the graph: a count or a truncation out of range.

    Source: truncation: Brock et al. 2018, arXiv:1809.11096, section 3.1; drawing again is done by the inverse of the
    distribution function.
    """
    count, seed = _checked(count), tf.convert_to_tensor(seed, tf.int32)
    longest = tf.reduce_max(count)
    limit = tf.cast(truncation, tf.float32)
    check = tf.debugging.assert_non_negative(limit, "truncation is below 0, expected 0 for none, or more")
    with tf.control_dependencies([check] if check is not None else []):
        limit = tf.identity(limit)
    # Float32 has no uniform numbers so near to 0 or 1 that their normal ones would lie farther out than 6.
    farthest = tf.where(limit > 0, limit, 6.0)

    def row(one: tf.Tensor) -> tf.Tensor:
        return tf.random.stateless_uniform([longest * latent_dim], [one, 0], alg="philox")

    uniform = tf.map_fn(row, seed, fn_output_signature=tf.TensorSpec([None], tf.float32))
    share = tf.reshape(tf.broadcast_to(tf.math.erfc(farthest / 2**0.5) / 2, tf.shape(seed)), [-1, 1])
    normal = tf.math.ndtri(tf.clip_by_value(share + (1 - 2 * share) * uniform, 1e-9, 1 - 6e-8))
    used = tf.sequence_mask(count, longest)
    return tf.boolean_mask(tf.reshape(normal, [-1, longest, latent_dim]), used)


def _checked(count: Any) -> tf.Tensor:
    """Counts on which nothing can be computed before they are known to be in range."""
    count = tf.convert_to_tensor(count, tf.int32)
    limits = f"count is out of range, expected 1 to {MAX_COUNT:,}"
    most = MAX_COUNT // tf.maximum(tf.size(count), 1)
    checks = [
        tf.debugging.assert_greater_equal(count, 1, limits),
        tf.debugging.assert_less_equal(count, MAX_COUNT, limits),
        tf.debugging.assert_less_equal(
            count, most, f"count is out of range, expected {MAX_COUNT:,} for all seeds at most"
        ),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        return tf.identity(count)


def classes(asked: Any, count: Any, seed: Any, num_classes: int) -> tf.Tensor:
    """The classes of latents that `draw` gives for the same count and seed.

    Args:
        asked: int32[batch], the class of all latents of a seed; -1 draws one for each, all equally likely.
        count: see `draw`.
        seed: see `draw`.
        num_classes: how many there are.

    Returns:
        int32[sum(count)].
    """
    count = _checked(count)
    # From a stream of its own, so that a truncation of the latents leaves the classes alone.
    share = tf.math.erfc(-draw(count, tf.bitwise.invert(seed), 1)[:, 0] / 2**0.5) / 2
    drawn = tf.minimum(tf.cast(share * num_classes, tf.int32), num_classes - 1)
    asked = tf.repeat(asked, count)
    return tf.where(asked == -1, drawn, asked)


def interpolate(start: Any, end: Any, steps: int) -> tf.Tensor:
    """Latents on the great circle from one to another, their lengths changing evenly.

    On the straight line between two normal latents lie shorter ones than a generator ever sees.

    Args:
        start: float32[batch, latent_dim].
        end: float32[batch, latent_dim].
        steps: latents of each pair, both ends counted; 2 or more.

    Returns:
        float32[batch, steps, latent_dim].

    Source: White 2016, arXiv:1609.04468, section 2.1.
    """
    start, end = (tf.convert_to_tensor(latent, tf.float32)[:, None] for latent in (start, end))
    part = tf.linspace(0.0, 1.0, steps)[None, :, None]
    lengths = [tf.maximum(tf.norm(latent, axis=-1, keepdims=True), 1e-12) for latent in (start, end)]
    directions = [latent / length for latent, length in zip((start, end), lengths, strict=True)]
    cosine = tf.reduce_sum(directions[0] * directions[1], -1, keepdims=True)
    angle = tf.acos(tf.clip_by_value(cosine, -1 + 1e-6, 1 - 1e-6))
    weights = tf.sin((1 - part) * angle) / tf.sin(angle), tf.sin(part * angle) / tf.sin(angle)
    direction = weights[0] * directions[0] + weights[1] * directions[1]
    return direction * ((1 - part) * lengths[0] + part * lengths[1])
