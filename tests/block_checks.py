"""What the tests of several blocks need: random weights, gradients, parameter counts without memory."""

import contextlib
import math

import keras
import numpy as np
import tensorflow as tf


def random_weights(model, seed=0):
    """Sets every weight at random, moving statistics too, at a scale that keeps activations near one."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = rng.normal(size=weight.shape)
        if weight.name == "kernel":
            value /= math.sqrt(max(1, math.prod(weight.shape[:-1])))
        elif weight.name in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, weight.shape)
        weight.assign(value)


def weights_of(model):
    """{"layer/weight": float64 array}."""
    return {
        f"{layer.name}/{weight.name}": np.asarray(weight, np.float64)
        for layer in model.layers
        for weight in layer.weights
    }


def dead_weights(model, *inputs, training=True):
    """Names of trainable weights whose gradient is missing, not finite, or zero everywhere."""
    with tf.GradientTape() as tape:
        output = tf.cast(model(*inputs, training=training), tf.float32)
        # A plain sum would cancel behind a normalization, whose outputs sum to a constant.
        loss = tf.reduce_sum(output * tf.random.stateless_normal(tf.shape(output), seed=(1, 2)))
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    gradients = [g if g is None else tf.convert_to_tensor(g) for g in gradients]  # an embedding's come by rows
    return [
        weight.path
        for weight, gradient in zip(model.trainable_weights, gradients, strict=True)
        if gradient is None or not np.isfinite(gradient).all() or not np.any(gradient)
    ]


def shape_for_empty_batch(model, *size):
    """Shape of the result for a batch of no images.

    Computed by XLA: outside it, TensorFlow 2.21's oneDNN convolution gives an empty result the shape of its input
    (see findings/tensorflow_empty_batch.sh).
    """
    return tuple(tf.function(model, jit_compile=True, autograph=False)(tf.zeros((0, *size))).shape)


@contextlib.contextmanager
def unallocated():
    """Inside, layers know the shapes of their weights but take no memory for them."""
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        keras.backend.clear_session()  # else Keras would make these weights at the next opportunity


def num_trainable(model):
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)
