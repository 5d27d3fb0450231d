"""Adam in one pass over a weight, and a learning rate that is computed once a step.

Equals `keras.optimizers.Adam`, with and without weight decay: tests/kerasdl/training/test_optimizers.py. A step of the
VAE's dense networks takes about a tenth less (two cores, AVX-512 bf16).
"""

from typing import Any

import keras
from keras import ops


class RateOnce(keras.optimizers.Optimizer):
    """An optimizer that computes the learning rate once a step, to be named before the Keras optimizer it changes.

    Keras 3.15 computes a schedule anew for the weight decay of each variable: some twenty operations for each, which a
    training traces, optimizes and runs.
    """

    _rate: Any = None

    @property
    def learning_rate(self) -> Any:
        """The rate of the step that is being made, else the current one."""
        return super().learning_rate if self._rate is None else self._rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        keras.optimizers.Optimizer.learning_rate.fset(self, learning_rate)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """One step."""
        self._rate = self.learning_rate
        try:
            super().apply(grads, trainable_variables)
        finally:
            self._rate = None


@keras.saving.register_keras_serializable(package="kerasdl")
class FusedAdam(RateOnce, keras.optimizers.Adam):
    """Keras' Adam, also with decoupled weight decay, whose step is one pass over a weight on the TensorFlow backend.

    Keras' own is a dozen operations for each weight, and reads and writes memory as often: with this one a step of the
    VAE's dense networks takes about a tenth less. State, configuration and result, up to rounding, are those of
    `keras.optimizers.Adam`.

    `amsgrad` goes Keras' way, and so do embeddings, whose gradients are sparse, with a part for each place of a word.
    But the parts of one word are summed first. Keras 3.15 squares them one by one, so that the second moment of a word
    that a batch holds n times is the sum of n squares, not the square of the sum, and the word's step up to sqrt(n)
    times as large as Adam's; and `global_clipnorm` takes the norm of the parts. Shown by
    findings/keras_adam_repeated_words.sh.

    Source: Kingma and Ba 2014, arXiv:1412.6980, algorithm 1, in the form of the end of section 2.
    """

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """One step; gradients that are to be clipped are dense from here on, as they are after Keras has clipped."""
        if self.global_clipnorm and keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            grads = [tf.convert_to_tensor(one) if isinstance(one, tf.IndexedSlices) else one for one in grads]
        super().apply(grads, trainable_variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one variable."""
        if keras.backend.backend() != "tensorflow":
            super().update_step(gradient, variable, learning_rate)
            return
        import tensorflow as tf

        sparse = isinstance(gradient, tf.IndexedSlices)
        if sparse:
            words, places = tf.unique(gradient.indices)
            sums = tf.math.unsorted_segment_sum(gradient.values, places, tf.size(words))
            gradient = tf.IndexedSlices(sums, words, gradient.dense_shape)
        if sparse or self.amsgrad:
            super().update_step(gradient, variable, learning_rate)
            return
        index = self._get_variable_index(variable)
        weight = variable.value if isinstance(variable, keras.Variable) else variable
        step = ops.cast(self.iterations + 1, weight.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=weight.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=ops.cast(learning_rate, weight.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=ops.cast(gradient, weight.dtype),
        )
