"""A model that is trained on batches of several sizes."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="kerasdl")
class SeveralSizes(keras.Model):
    """A model that takes batches of pictures of several sizes in turn; with one size it is Keras' own.

    A dataset of several sizes knows none of them, and convolutions are quicker for a size that they know when they are
    traced: so each has a graph of its own, which is chosen outside of graphs, where the batch is there. Branches within
    one graph would keep TensorFlow from optimizing the loops in them (findings/tensorflow_cond_of_loops.sh).
    """

    several = False
    """Whether there is more than one size; to be set before `fit`."""
    train_function: Any

    def make_train_function(self, force: bool = False) -> None:
        """The function that takes the next batch of an iterator and makes a step."""
        if not self.several:
            super().make_train_function(force)
        elif self.train_function is None or force:
            import tensorflow as tf

            step = tf.function(self.train_step)
            self.train_function = lambda iterator: step(next(iterator))
