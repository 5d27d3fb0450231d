import typing

import block_checks
import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf

from kerasdl.blocks.activation import ActivationKind, activation, maxout
from kerasdl.fast.fused_gelu import FusedGelu

KINDS = typing.get_args(ActivationKind)


def test_every_kind_has_an_oracle():
    assert set(KINDS) == set(oracles.ACTIVATIONS)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_activation_equals_oracle(kind, training):
    inputs = keras.Input((None,))
    model = keras.Model(inputs, activation(inputs, kind, name="act"))
    x = np.linspace(-12, 12, 202, dtype="float32").reshape(2, 101)
    y = model(x, training=training)
    np.testing.assert_allclose(y, oracles.ACTIVATIONS[kind](np.float64(x)), rtol=1e-5, atol=1e-6)
    assert model(x[:0]).shape == (0, 101)
    assert kind == "linear" or model.layers[-1].name == "act"


def test_unknown_kind_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown activation 'rellu' in 'act', expected one of: relu, leaky_relu"):
        activation(keras.Input((3,)), "rellu", name="act")


def test_tanh_form_is_close_to_the_exact_gelu():
    x = np.linspace(-6, 6, 1001)
    assert np.abs(oracles.gelu_tanh(x) - oracles.gelu_erf(x)).max() < 5e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_compiled_gelu_has_the_slope_of_the_formula(dtype):
    layer = FusedGelu(dtype=dtype)
    x = tf.cast(tf.linspace(-4.0, 4.0, 81), dtype)
    exact = np.asarray(tf.cast(x, tf.float64))
    step = 1e-5
    slope = (oracles.gelu_tanh(exact + step) - oracles.gelu_tanh(exact - step)) / (2 * step)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    gradient = tape.gradient(y, x)
    assert y.dtype == gradient.dtype == x.dtype
    # Half a unit in the last place, relative, and the rounding of the finite difference.
    tolerance = {"float32": 1e-6, "bfloat16": 2.0**-8, "float16": 2.0**-11, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(tf.cast(y, tf.float64), oracles.gelu_tanh(exact), rtol=tolerance, atol=1e-6)
    np.testing.assert_allclose(tf.cast(gradient, tf.float64), slope, rtol=tolerance, atol=1e-6)


def test_gelu_is_compiled_in_training_only():
    """An export must not need XLA; training on a CPU must have it."""
    layer = FusedGelu()
    calls = {
        training: tf.function(lambda x, t=training: layer(x, training=t), autograph=False).get_concrete_function(
            tf.TensorSpec([None, 3])
        )
        for training in (True, False)
    }
    compiled = {
        training: any("_XlaMustCompile" in node.attr for node in call.graph.as_graph_def().node)
        for training, call in calls.items()
    }
    assert compiled == {True: not tf.config.list_physical_devices("GPU"), False: False}


def test_gelu_trains_and_reloads_in_a_compiled_model(tmp_path):
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, activation(keras.layers.Conv2D(2, 1)(inputs), "gelu", name="act"))
    model.compile("sgd", "mse", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(6, 4, 4, 3)).astype("float32")
    before = model.predict(x, verbose=0)
    model.fit(x, np.ones((6, 4, 4, 2)), batch_size=4, verbose=0)  # 4, then 2: two shapes to compile for
    after = model.predict(x, verbose=0)
    assert np.abs(after - 1).mean() < np.abs(before - 1).mean()
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras").predict(x, verbose=0), after)


@pytest.mark.parametrize("shape", [(5,), (None, 7, 5)])
def test_maxout_equals_oracle(shape):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, maxout(inputs, 4, pieces=3, name="out"))
    block_checks.random_weights(model)
    w = block_checks.weights_of(model)
    x = np.random.default_rng(1).normal(size=[2, *(n or 6 for n in shape)]).astype("float32")
    expected = oracles.maxout(
        x, [w[f"out_piece{i}/kernel"] for i in range(3)], [w[f"out_piece{i}/bias"] for i in range(3)]
    )
    np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-6)
    assert model(x[:0]).shape == (0, *expected.shape[1:])
    assert block_checks.num_trainable(model) == 3 * (5 * 4 + 4)
    assert block_checks.dead_weights(model, np.repeat(x, 8, axis=0)) == []


def test_maxout_needs_two_pieces():
    with pytest.raises(ValueError, match="'out' has pieces=1, expected 2 or more"):
        maxout(keras.Input((3,)), 4, pieces=1, name="out")
