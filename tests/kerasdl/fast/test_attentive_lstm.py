import keras
import numpy as np
import oracles_recurrence as oracles
import pytest
import tensorflow as tf

from kerasdl.fast.attentive_lstm import AttentiveLSTM

BATCH, TIME, FEATURES, ITEMS, CHANNELS, UNITS, HIDDEN = 5, 6, 3, 4, 7, 8, 5
RNG = np.random.default_rng(0)
X, PARTS, H, C = (
    RNG.normal(size=size).astype("float32")
    for size in ((BATCH, TIME, FEATURES), (BATCH, ITEMS, CHANNELS), (BATCH, UNITS), (BATCH, UNITS))
)


def random_layer(dtype="float32"):
    layer = AttentiveLSTM(UNITS, HIDDEN, dtype=dtype)
    layer.build(X.shape, PARTS.shape, H.shape, C.shape)
    rng = np.random.default_rng(1)
    layer.set_weights([rng.normal(size=weight.shape) * 0.5 for weight in layer.get_weights()])
    return layer


@pytest.mark.parametrize("training", [False, True])
def test_equals_its_equations(training):
    layer = random_layer()
    weights = [weight.astype("float64") for weight in layer.get_weights()]
    expected = [oracles.attentive_lstm(*row, weights) for row in zip(X, PARTS, H, C, strict=True)]
    for actual, part in zip(layer(X, PARTS, H, C, training=training), zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(actual, np.stack(part), atol=1e-6)


def values_and_gradients(layer, rows, training):
    inputs = [tf.constant(value[:rows]) for value in (X, PARTS, H, C)]
    rng = np.random.default_rng(2)
    factors = [rng.normal(size=(rows, TIME, size)).astype("float32") for size in (UNITS, CHANNELS, ITEMS)]

    @tf.function(autograph=False)
    def run():
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(*inputs, training=training)
            terms = [tf.cast(y, tf.float32) * factor for y, factor in zip(outputs, factors, strict=True)]
            loss = tf.add_n([tf.reduce_sum(term) for term in terms])
        return [*outputs, *tape.gradient(loss, [*inputs, *(v.value for v in layer.trainable_variables)])]

    return [np.asarray(value, np.float32) for value in run()]


@pytest.mark.parametrize("rows", [5, 1])
def test_the_quick_loop_equals_the_plain_one_in_values_and_gradients(rows):
    layer = random_layer()
    quick, plain = (values_and_gradients(layer, rows, training) for training in (True, False))
    assert len(quick) == 3 + 4 + 10
    for actual, expected in zip(quick, plain, strict=True):
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(actual, expected, atol=2e-6 * max(1, np.abs(expected).max()))


def test_half_precision_stays_near():
    exact = values_and_gradients(random_layer(), BATCH, True)
    rough = values_and_gradients(random_layer("mixed_bfloat16"), BATCH, True)
    for actual, expected in zip(rough, exact, strict=True):
        assert 0 < np.abs(actual - expected).max() < 0.04 * np.abs(expected).max()


def test_a_step_equals_the_loop():
    layer = random_layer()
    outputs, contexts, weights = layer(X, PARTS, H, C)
    h, c, projected = tf.constant(H), tf.constant(C), layer.project(PARTS)
    for t in range(TIME):
        h, c, context, share = layer.step(X[:, t], h, c, PARTS, projected)
        for actual, expected in ((h, outputs), (context, contexts), (share, weights)):
            np.testing.assert_allclose(actual, expected[:, t], atol=1e-6)


def test_comes_back_from_its_configuration():
    layer = AttentiveLSTM.from_config(random_layer().get_config())
    assert (layer.units, layer.attention_units) == (UNITS, HIDDEN)
    inputs = [keras.Input(value.shape[1:]) for value in (X, PARTS, H, C)]
    shapes = [output.shape for output in layer(*inputs)]
    assert shapes == [(None, TIME, UNITS), (None, TIME, CHANNELS), (None, TIME, ITEMS)]
