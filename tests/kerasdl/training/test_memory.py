"""What a model that was trained leaves behind, and what it must not lose."""

import gc

import keras
import numpy as np
import tensorflow as tf

from kerasdl.blocks.activation import activation
from kerasdl.training import memory

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


@tf.custom_gradient
def cubed(x):
    return x**3, lambda upstream: upstream * 3 * x**2


def graphs():
    gc.collect()
    return sum(isinstance(one, tf.Graph) for one in gc.get_objects())


def train():
    inputs = keras.Input((4,))
    model = keras.Model(
        inputs, keras.layers.Dense(1)(keras.layers.Lambda(cubed)(activation(inputs, "gelu", name="gelu")))
    )
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(X, X[:, :1], epochs=1, verbose=0)


def test_a_trained_model_leaves_no_graph_behind():
    train()
    memory.release()
    before = graphs()
    train()
    kept = graphs()
    memory.release()
    assert graphs() == before
    assert kept > before, "TensorFlow itself lets go of them: memory.release can go"


def test_a_graph_that_is_held_keeps_its_gradients():
    held = tf.function(cubed).get_concrete_function(tf.TensorSpec([], tf.float32))
    memory.release()
    memory.release()
    with held.graph.as_default():
        assert tf.gradients(held.outputs, held.inputs)[0] is not None  # looked up in TensorFlow's registry
    x = tf.constant(2.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = held(x)
    assert float(tape.gradient(y, x)) == 12.0
