"""A model that is trained on batches of several sizes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras


@keras.saving.register_keras_serializable(package="kerasdl")
class SeveralSizes(keras.Model):
    """A model that takes batches of pictures of several sizes in turn; with one size it is Keras' own.

    A dataset of several sizes knows none of them, and convolutions are quicker for a size that they know when they are
    traced: so each has a graph of its own. Inputs and targets are float[batch, height, width, channels].
    """

    sizes: Sequence[Sequence[int]] = ()
    """Heights and widths, in pixels."""

    def train_step(self, data: Any) -> dict[str, Any]:
        """A step on inputs and targets of one of the sizes."""
        if len(self.sizes) < 2:
            return super().train_step(data)
        import tensorflow as tf

        def step(size: Sequence[int]) -> dict[str, Any]:
            return super(SeveralSizes, self).train_step(
                tuple(tf.ensure_shape(part, [None, *size, None]) for part in data)
            )

        same = tf.reduce_all(tf.equal([list(size) for size in self.sizes], tf.shape(data[0])[1:3]), -1)
        branches = [functools.partial(step, size) for size in self.sizes]
        return tf.switch_case(tf.argmax(same, output_type=tf.int32), branches)
