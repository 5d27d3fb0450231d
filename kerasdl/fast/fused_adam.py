"""Adam in one pass over a weight.

Equals `keras.optimizers.Adam`, with and without weight decay: tests/kerasdl/training/test_optimizers.py. A step of the
VAE's dense networks takes about a tenth less (two cores, AVX-512 bf16).
"""

from typing import Any

import keras
from keras import ops


class SummedGradients(keras.optimizers.Optimizer):
    """Sums the gradients of a word that a batch holds more than once, before they are squared.

    An embedding has a sparse gradient, with a part for each place of a word. Keras 3.15 squares the parts one by one,
    so that Adam's second moment of a word that a batch holds n times is the sum of n squares, not the square of the
    sum: the word's step is up to sqrt(n) times as large as Adam's. The norm that `global_clipnorm` looks at is that of
    the parts, too. Shown by findings/keras_adam_repeated_words.sh.
    """

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """One step; gradients that are to be clipped are dense from here on, as they are after Keras has clipped."""
        if self.global_clipnorm and keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            grads = [tf.convert_to_tensor(one) if isinstance(one, tf.IndexedSlices) else one for one in grads]
        super().apply(grads, trainable_variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one variable."""
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            if isinstance(gradient, tf.IndexedSlices):
                words, places = tf.unique(gradient.indices)
                sums = tf.math.unsorted_segment_sum(gradient.values, places, tf.size(words))
                gradient = tf.IndexedSlices(sums, words, gradient.dense_shape)
        super().update_step(gradient, variable, learning_rate)


@keras.saving.register_keras_serializable(package="kerasdl")
class FusedAdam(SummedGradients, keras.optimizers.Adam):
    """Keras' Adam, also with decoupled weight decay, whose step is one pass over a weight on the TensorFlow backend.

    Keras' own is a dozen operations for each weight, and reads and writes memory as often: with this one a step of the
    VAE's dense networks takes about a tenth less. State, configuration and result, up to rounding, are those of
    `keras.optimizers.Adam`.
    Gradients of embeddings, which are sparse, and `amsgrad` go Keras' way, see `SummedGradients`.

    Source: Kingma and Ba 2014, arXiv:1412.6980, algorithm 1, in the form of the end of section 2.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one variable."""
        if keras.backend.backend() != "tensorflow" or self.amsgrad:
            super().update_step(gradient, variable, learning_rate)
            return
        import tensorflow as tf

        if isinstance(gradient, tf.IndexedSlices):
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
