import block_checks
import keras
import numpy as np
import oracles_recurrence as oracles
import pytest
import tensorflow as tf

from kerasdl.blocks import recurrence

LAYERS = {
    "rnn": (recurrence.QuickSimpleRNN, keras.layers.SimpleRNN, 1),
    "lstm": (recurrence.QuickLSTM, keras.layers.LSTM, 2),
    "gru": (recurrence.QuickGRU, keras.layers.GRU, 1),
}
ORACLES = {"rnn": oracles.rnn, "lstm": oracles.lstm, "gru": oracles.gru, "peephole_lstm": oracles.lstm}
KINDS = list(ORACLES)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 6, 3)).astype("float32")
MASK = np.array([[1] * 6, [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 1, 1], [0] * 6], bool)


def randomize(layer, seed=1):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=weight.shape) * 0.7 for weight in layer.get_weights()]
    layer.set_weights(weights)
    return weights


def assert_near(actual, expected):
    """To within the rounding of float32 sums as large as the largest value."""
    np.testing.assert_allclose(actual, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


def split_weights(kind, weights):
    """The oracle's three weights and options."""
    if kind == "peephole_lstm":
        return weights[:3], {"peephole": weights[3]}
    return weights, {}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_equal_their_equations(kind, masked, training):
    layer = recurrence.recurrent_layer(kind, 4, return_sequences=True)
    layer.build(X.shape)
    weights, options = split_weights(kind, randomize(layer))
    mask = MASK if masked else None
    expected = oracles.run(ORACLES[kind], X, 4, weights, mask, num_states="lstm" in kind, **options)
    actual = layer(X, mask=None if mask is None else tf.constant(mask), training=training)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def results(layer, states, mask, upstream, training, compiled):
    """Outputs, last states, and all gradients of a weighted sum of them."""

    def run(x, *states):
        with tf.GradientTape() as tape:
            tape.watch([x, *states])
            outputs = layer(x, initial_state=list(states) or None, mask=mask, training=training)
            loss = tf.add_n([tf.reduce_sum(y * u) for y, u in zip(outputs, upstream, strict=True)])
        return outputs, tape.gradient(loss, [x, *states, *(v.value for v in layer.trainable_variables)])

    run = tf.function(run, autograph=False) if compiled else run
    return tf.nest.flatten(run(tf.constant(X), *states))


@pytest.mark.parametrize(
    ("masked", "backwards", "started", "training", "compiled"),
    [
        (False, False, False, True, True),
        (True, False, True, True, True),
        (True, True, True, True, True),
        (True, True, False, False, True),
        (False, True, True, True, False),
    ],
)
@pytest.mark.parametrize("kind", LAYERS)
def test_quick_layers_equal_keras_values_and_gradients(kind, masked, backwards, started, training, compiled):
    quick, plain, num_states = LAYERS[kind]
    options = {"return_sequences": True, "return_state": True, "go_backwards": backwards}
    layers = [make(4, **options) for make in (plain, quick)]
    for layer in layers:
        layer.build(X.shape)
    layers[1].set_weights(randomize(layers[0]))
    states = [tf.constant(RNG.normal(size=(5, 4)), tf.float32) for _ in range(num_states)] if started else []
    upstream = [RNG.normal(size=(5, 6, 4)), *(RNG.normal(size=(5, 4)) for _ in range(num_states))]
    mask = tf.constant(MASK) if masked else None
    expected, actual = (results(layer, states, mask, upstream, training, compiled) for layer in layers)
    assert len(expected) == len(actual)
    for one, other in zip(expected, actual, strict=True):
        assert_near(other, one)


@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_dropout_is_one_mask_a_sequence(kind, monkeypatch):
    layer = recurrence.recurrent_layer(kind, 4, return_sequences=True, recurrent_dropout=0.5)
    layer.build(X.shape)
    weights, options = split_weights(kind, randomize(layer))
    keep = np.array([2.0, 0, 2, 0])
    monkeypatch.setattr(layer.cell, "get_recurrent_dropout_mask", lambda h: tf.constant(np.tile(keep, (5, 1)), h.dtype))
    expected = oracles.run(ORACLES[kind], X, 4, weights, num_states="lstm" in kind, keep=keep, **options)
    np.testing.assert_allclose(layer(X, training=True), expected, atol=1e-5)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(X, training=True) ** 2)
    slope = tape.gradient(loss, layer.cell.recurrent_kernel.value).numpy()
    assert (slope[1::2] == 0).all()
    assert np.abs(slope[::2]).min() > 0
    monkeypatch.undo()
    drawn = [layer(X, training=True) for _ in range(2)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3
    np.testing.assert_array_equal(layer(X), layer(X))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind):
    layer = recurrence.recurrent_layer(kind, 4, return_sequences=True, return_state=True)
    layer.build(X.shape)
    randomize(layer)

    def run(padding):
        x = tf.concat([tf.constant(X), tf.fill([5, padding, 3], 1e3)], 1)
        mask = tf.concat([tf.ones([5, 6], tf.bool), tf.zeros([5, padding], tf.bool)], 1)
        with tf.GradientTape() as tape:
            outputs, *states = layer(x, mask=mask, training=True)
            loss = tf.reduce_sum(outputs[:, :6] ** 2) + tf.add_n([tf.reduce_sum(state) for state in states])
        return [outputs[:, :6], *states, *tape.gradient(loss, [v.value for v in layer.trainable_variables])]

    for short, long in zip(run(0), run(5), strict=True):
        np.testing.assert_allclose(long, short, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
def test_half_precision_is_near_the_full_one(kind):
    quick, _, _ = LAYERS[kind]
    answers = []
    for dtype in ("float32", "mixed_bfloat16"):
        layer = quick(4, return_sequences=True, dtype=dtype)
        layer.build(X.shape)
        randomize(layer)
        with tf.GradientTape() as tape:
            y = layer(X, training=True)
            loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2)
        gradients = tape.gradient(loss, [v.value for v in layer.trainable_variables])
        answers.append([tf.cast(y, tf.float32), *gradients])
    assert y.dtype == tf.bfloat16
    for full, half in zip(*answers, strict=True):
        np.testing.assert_allclose(half, full, atol=0.03 * np.abs(full).max())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_config_go_through_a_file(kind, tmp_path):
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, recurrence.recurrent_layer(kind, 4)(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.layers[-1]) is type(model.layers[-1])
    np.testing.assert_array_equal(again(X), model(X))


@pytest.mark.parametrize("kind", LAYERS)
def test_training_is_compiled_and_an_export_is_not(kind):
    layer = LAYERS[kind][0](4)
    layer.build(X.shape)
    found = {}
    for training in (True, False):
        call = tf.function(lambda x, t=training: layer(x, training=t), autograph=False)
        graph = call.get_concrete_function(tf.TensorSpec([None, None, 3])).graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        compiled = [*(node.attr for node in nodes), *(function.attr for function in graph.library.function)]
        found[training] = any("_XlaMustCompile" in attributes for attributes in compiled)
    assert found == {True: True, False: False}


def test_what_the_quick_loop_does_not_cover_is_left_to_keras():
    quick, plain, _ = LAYERS["lstm"]
    options = {"recurrent_activation": "hard_sigmoid", "activation": "relu"}
    layers = [make(4, **options) for make in (plain, quick)]
    for layer in layers:
        layer.build(X.shape)
        randomize(layer)
    np.testing.assert_allclose(layers[1](X), layers[0](X), atol=1e-6)


@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(batch):
    layer = recurrence.QuickLSTM(4, return_sequences=True)
    call = tf.function(layer, autograph=False)
    np.testing.assert_allclose(call(X[:batch]), layer(X)[:batch], atol=1e-6)
    assert call(X[:batch]).shape == (batch, 6, 4)


def test_state_is_carried_from_batch_to_batch():
    inputs = keras.Input(batch_shape=(5, None, 3))
    model = keras.Model(inputs, recurrence.QuickLSTM(4, return_sequences=True, stateful=True, name="layer")(inputs))
    halves = np.concatenate([model(X[:, :3]), model(X[:, 3:])], 1)
    model.get_layer("layer").reset_state()
    np.testing.assert_allclose(halves, model(X), atol=1e-6)
    assert np.abs(halves - model(X)).max() > 1e-3


# --- Stacks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_stack_equals_its_layers(kind, bidirectional):
    inputs, mask = keras.Input((None, 3)), keras.Input((None,), dtype="bool")
    outputs = recurrence.recurrent_stack(
        inputs, kind, 4, 2, bidirectional=bidirectional, residual=True, mask=mask, name="stack"
    )
    model = keras.Model([inputs, mask], outputs)
    assert outputs.shape == (None, None, 8 if bidirectional else 4)
    assert block_checks.dead_weights(model, [X, MASK]) == []
    expected = X
    for index in range(2):
        layer = model.get_layer(f"stack_layer{index}")
        halves = [layer.forward_layer, layer.backward_layer] if bidirectional else [layer]
        found = []
        for half, backwards in zip(halves, (False, True), strict=False):
            weights, options = split_weights(kind, [np.asarray(w, np.float64) for w in half.get_weights()])
            found.append(
                oracles.run(
                    ORACLES[kind], expected, 4, weights, MASK, num_states="lstm" in kind, backwards=backwards, **options
                )
            )
        y = np.concatenate(found, -1)
        expected = expected + y if expected.shape == y.shape else y
    valid = MASK[:, :, None]  # what stands at padding is nobody's business
    np.testing.assert_allclose(model([X, MASK]) * valid, expected * valid, atol=1e-5)


def test_stack_drops_between_layers_in_training_only():
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, recurrence.recurrent_stack(inputs, "lstm", 4, 2, dropout=0.5, name="stack"))
    assert np.abs(model(X, training=True) - model(X, training=True)).max() > 1e-3
    np.testing.assert_array_equal(model(X), model(X))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lstm", 4, 0), "depth=0, expected 1 or more"),
        (("lstn", 4, 1), "unknown cell 'lstn', expected one of: rnn, lstm, gru, peephole_lstm"),
    ],
)
def test_stack_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        recurrence.recurrent_stack(keras.Input((None, 3)), *arguments, name="stack")


def test_highway_equals_oracle():
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, recurrence.highway(inputs, name="road"))
    gate = model.get_layer("road_gate")
    np.testing.assert_array_equal(gate.bias, [-2, -2, -2])
    block_checks.random_weights(model)
    change, gate = (model.get_layer(name).get_weights() for name in ("road_change", "road_gate"))
    np.testing.assert_allclose(model(X), oracles.highway(X, change, gate), atol=1e-5)
    assert block_checks.dead_weights(model, X) == []


def test_blocks_refuse_arrays():
    for block in (
        lambda: recurrence.recurrent_stack(X, "lstm", 4, 1, name="a"),
        lambda: recurrence.highway(X, name="b"),
    ):
        with pytest.raises(ValueError, match="symbolic"):
            block()
