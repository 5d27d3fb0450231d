"""GELU in one pass over memory, forward and backward.

Equals `keras.ops.gelu(approximate=True)`: tests/kerasdl/blocks/test_activation.py. A step of the fast network takes 9 %
less CPU time (two cores, AVX-512 bf16).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kerasdl import processor


@keras.saving.register_keras_serializable(package="kerasdl")
class FusedGelu(keras.layers.Layer):
    """Gaussian error linear unit in its tanh form, in one pass over memory while it trains on a CPU.

    TensorFlow runs the formula as about ten elementwise operations forward and twenty backward, each of which
    reads and writes the whole tensor. Compiled by XLA, the forward and the backward formula are one loop
    each. Forward and backward, bfloat16[256, 31, 31, 24], two CPU cores: 14 ms; uncompiled 39 ms (tanh form),
    82 ms (erf form), relu 6 ms; a step of `image_classifier.fast_network` takes 9 % less CPU time. The tanh form
    differs from the erf form by at most 5e-4. Each new input shape costs one compilation (tens of ms).

    Inference, a GPU and other backends take Keras' own operation: an export then needs no XLA.

    Args:
        **kwargs: those of `keras.layers.Layer`.
    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2; the compiled pass is own.
    """

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Maps float[...] to float[...] of the same shape and dtype."""
        # In float64 the compiled formula, which computes in float32, would lose precision.
        if training and keras.backend.standardize_dtype(x.dtype) != "float64" and processor.compiles_on_cpu():
            return _compiled_gelu()(x)
        return ops.gelu(x, approximate=True)


@functools.cache
def _compiled_gelu() -> Callable[[Any], Any]:
    """The tanh form as x sigmoid(a x + b x^3), since 1 + tanh(u) = 2 sigmoid(2u)."""
    import tensorflow as tf

    a = 2 * math.sqrt(2 / math.pi)
    b = 0.044715 * a

    @tf.function(jit_compile=True, autograph=False, reduce_retracing=True)
    def value(x: Any) -> Any:
        wide = tf.cast(x, tf.float32)
        return tf.cast(wide * tf.sigmoid(wide * (a + b * wide * wide)), x.dtype)

    @tf.function(jit_compile=True, autograph=False, reduce_retracing=True)
    def gradient(x: Any, upstream: Any) -> Any:
        wide = tf.cast(x, tf.float32)
        gate = tf.sigmoid(wide * (a + b * wide * wide))
        gradient = gate + wide * gate * (1 - gate) * (a + 3 * b * wide * wide)
        return tf.cast(tf.cast(upstream, tf.float32) * gradient, x.dtype)

    @tf.custom_gradient
    def gelu(x: Any) -> Any:
        return value(x), lambda upstream: gradient(x, upstream)

    return gelu
