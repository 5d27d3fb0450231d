import typing

import block_checks
import keras
import numpy as np
import oracles_text as oracles
import pytest
import tensorflow as tf

from kerasdl.blocks.attention import (
    AdditiveAttention,
    MultiplicativeAttention,
    Pooling,
    PoolingKind,
    attention_pooling,
    pooling,
)

KINDS = typing.get_args(PoolingKind)
LENGTHS = np.array([5, 2, 1, 0])


def padded(length=5, garbage=0.0, seed=1):
    """Sequences of LENGTHS and the mask, followed by garbage: float32[4, length, 3], bool[4, length]."""
    x = np.random.default_rng(seed).normal(size=(4, 5, 3))
    x = np.concatenate([x, np.zeros((4, length - 5, 3))], axis=1)
    mask = np.arange(length) < LENGTHS[:, None]
    return np.where(mask[..., None], x, garbage).astype("float32"), mask


def sequences(seed=1):
    return [x[:n] for x, n in zip(np.float64(padded(seed=seed)[0]), LENGTHS, strict=True)]


def sequence_model(block, masked=True, **options):
    x, mask = keras.Input((None, 3)), keras.Input((None,), dtype="bool")
    inputs = [x, mask] if masked else x
    model = keras.Model(inputs, block(x, mask=mask if masked else None, name="block", **options))
    block_checks.random_weights(model)
    return model


def results_and_gradients(function, variables, x, *others):
    """Results up to step 5, and the gradients, of x and the variables, of a random combination of them."""
    x, *others = (tf.constant(tensor) for tensor in (x, *others))
    with tf.GradientTape() as tape:
        tape.watch(x)
        results = tf.nest.flatten(function(x, *others))
        results = [result[:, :5] for result in results]
        loss = sum(
            tf.reduce_sum(result * tf.random.stateless_normal(result.shape, (i, 3))) for i, result in enumerate(results)
        )
    slope, *slopes = tape.gradient(loss, [x, *variables])
    return [*results, slope, *slopes]


def assert_padding_leaves(function, variables):
    """Longer padding with something in it changes no result and no gradient, and receives none."""
    short, long = (
        results_and_gradients(function, variables, *padded(length, garbage)) for length, garbage in ((5, 0.0), (9, 7.0))
    )
    place = len(short) - 1 - len(variables)
    assert not np.any(long[place].numpy()[~padded(9)[1]])
    long[place] = long[place][:, :5]
    for a, b in zip(short, long, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    return short


def variables_of(model):
    return [weight.value for weight in model.trainable_weights]


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_equals_oracle_whatever_the_padding(kind):
    model = sequence_model(pooling, kind=kind)
    expected = [oracles.pooling(sequence, kind) for sequence in sequences()]
    assert not np.any(expected[-1])
    for length, garbage in ((5, 0.0), (8, 100.0), (8, np.nan)):
        np.testing.assert_allclose(model(padded(length, garbage)), expected, rtol=1e-5, atol=1e-6)
    assert_padding_leaves(lambda x, mask: model([x, mask]), [])
    assert model([x[:0] for x in padded()]).shape == (0, 3)
    assert model.layers[-1].name == "block"


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_without_mask_takes_every_step(kind):
    x = padded(garbage=-9.0)[0]
    model = sequence_model(pooling, masked=False, kind=kind)
    np.testing.assert_allclose(model(x), [oracles.pooling(s, kind) for s in np.float64(x)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "expected"), [("first", 2.0), ("last", 5.0), ("mean", 3.5), ("max", 5.0)])
def test_pooling_takes_a_mask_with_holes(kind, expected):
    x = np.array([[[9.0], [2.0], [9.0], [5.0], [9.0]]], "float32")
    mask = np.array([[False, True, False, True, False]])
    assert Pooling(kind)(x, mask=mask).numpy().item() == expected


def test_the_last_step_of_two_directions_is_where_each_has_read_everything():
    x, mask = keras.Input((None, 3)), keras.Input((None,), dtype="bool")
    steps = keras.layers.Bidirectional(keras.layers.GRU(2, return_sequences=True, name="gru"), name="both")(
        x, mask=mask
    )
    model = keras.Model([x, mask], pooling(steps, "last", mask=mask, bidirectional=True, name="block"))
    ends = keras.layers.Bidirectional(keras.layers.GRU(2, name="gru"))
    for length, garbage in ((5, 0.0), (8, 100.0)):
        x, mask = padded(length, garbage)
        ends.build(x.shape)
        ends.set_weights(model.get_weights())
        expected = np.concatenate([ends(x[i : i + 1, :n]) for i, n in enumerate(LENGTHS) if n])
        np.testing.assert_allclose(model([x, mask])[:3], expected, rtol=1e-5, atol=1e-6)
        assert not np.any(model([x, mask])[3])


def test_the_last_step_of_two_directions_is_refused_where_it_is_the_wrong_end():
    steps = keras.layers.Bidirectional(keras.layers.GRU(2, return_sequences=True), name="both")(keras.Input((None, 3)))
    with pytest.raises(ValueError, match="'block' would take the backward direction of 'both' after one step"):
        pooling(steps, "last", name="block")


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_in_half_precision(kind):
    """A sum of 1000 ones in bfloat16 stops at 256."""
    y = Pooling(kind, dtype="mixed_bfloat16")(np.ones((1, 1000, 2), "float32"))
    assert y.dtype == "bfloat16"
    np.testing.assert_array_equal(tf.cast(y, tf.float32), np.ones((1, 2)))


def test_attention_pooling_equals_oracle_whatever_the_padding():
    model = sequence_model(attention_pooling, units=4)
    w = block_checks.weights_of(model)
    weights = w["block/kernel"], w["block/bias"], w["block/context"][:, 0]
    expected = [oracles.attention_pooling(sequence, *weights) for sequence in sequences()]
    for length in (5, 8):
        pooled, shares = model(padded(length, garbage=100.0))
        assert shares.dtype == tf.float32
        np.testing.assert_allclose(pooled, [row[0] for row in expected], rtol=1e-4, atol=1e-5)
        for share, (_, oracle) in zip(shares.numpy(), expected, strict=True):
            np.testing.assert_allclose(share, np.pad(oracle, (0, length - len(oracle))), rtol=1e-4, atol=1e-6)
    assert_padding_leaves(lambda x, mask: model([x, mask]), variables_of(model))


def test_attention_pooling_without_mask_trains_every_weight():
    model = sequence_model(attention_pooling, masked=False, units=4)
    pooled, weights = model(padded()[0])
    np.testing.assert_allclose(np.sum(weights, axis=1), np.ones(4), rtol=1e-5)
    expected = [w @ x for w, x in zip(weights.numpy(), padded()[0], strict=True)]
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)
    assert block_checks.num_trainable(model) == 3 * 4 + 4 + 4
    pooled_only = keras.Model(model.input, model.output[0])
    assert block_checks.dead_weights(pooled_only, padded()[0]) == []
    assert [tensor.shape for tensor in model(padded()[0][:0])] == [(0, 3), (0, 5)]


LAYERS = {
    "additive": lambda **options: AdditiveAttention(6, **options),
    "general": lambda **options: MultiplicativeAttention("general", **options),
    "dot": lambda **options: MultiplicativeAttention("dot", **options),
}
ORACLES = {
    "additive": lambda query, keys, w: oracles.additive_attention(
        query, keys, w["query_kernel"], w["keys_kernel"], w["score_kernel"][:, 0]
    ),
    "general": lambda query, keys, w: oracles.multiplicative_attention(query, keys, w["kernel"]),
    "dot": lambda query, keys, w: oracles.multiplicative_attention(query, keys),
}


def queries(kind):
    return np.random.default_rng(2).normal(size=(4, 3 if kind == "dot" else 2)).astype("float32")


def built(kind, **options):
    layer = LAYERS[kind](name="attention", **options)
    layer.build(queries(kind).shape, (4, None, 3))
    block_checks.random_weights(layer)
    return layer


@pytest.mark.parametrize("kind", LAYERS)
def test_attention_equals_oracle_whatever_the_padding(kind):
    layer = built(kind)
    weights = {weight.name: np.float64(weight) for weight in layer.weights}
    rows = zip(np.float64(queries(kind)), sequences(), strict=True)
    expected = [ORACLES[kind](query, keys, weights) for query, keys in rows]
    for length in (5, 8):
        keys, mask = padded(length, garbage=1e12)  # a score far above any that counts
        context, shares = layer(queries(kind), keys, mask=mask)
        assert shares.dtype == tf.float32
        np.testing.assert_allclose(context, [row[0] for row in expected], rtol=1e-4, atol=1e-5)
        for share, (_, oracle) in zip(shares.numpy(), expected, strict=True):
            np.testing.assert_allclose(share, np.pad(oracle, (0, length - len(oracle))), rtol=1e-4, atol=1e-6)
    assert_padding_leaves(lambda keys, mask: layer(queries(kind), keys, mask=mask), variables_of(layer))


@pytest.mark.parametrize("kind", LAYERS)
def test_attention_without_mask_trains_every_weight(kind):
    layer = built(kind)
    query, keys = queries(kind), padded()[0]
    masked = layer(query, keys, mask=np.ones((4, 5), bool))
    for plain, full in zip(layer(query, keys), masked, strict=True):
        np.testing.assert_allclose(plain, full, rtol=1e-5, atol=1e-6)
    slopes = results_and_gradients(lambda keys: layer(query, keys)[0], variables_of(layer), keys)[2:]
    assert all(np.any(slope) for slope in slopes)
    assert len(slopes) == {"additive": 3, "general": 1, "dot": 0}[kind]
    assert [tensor.shape for tensor in layer(query[:0], keys[:0])] == [(0, 3), (0, 5)]


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("kind", LAYERS)
def test_attention_in_half_precision_is_finite_and_close(kind, precision):
    half, single = built(kind, dtype=precision), built(kind)
    keys, mask = padded(garbage=100.0)
    context, weights = half(queries(kind), keys, mask=mask)
    expected = single(queries(kind), keys, mask=mask)
    assert context.dtype == half.compute_dtype
    assert weights.dtype == tf.float32
    np.testing.assert_allclose(weights, expected[1], atol=0.05)
    np.testing.assert_allclose(tf.cast(context, tf.float32), expected[0], atol=0.1)
    assert not np.any(weights[-1])
    assert not np.any(tf.cast(context, tf.float32)[-1])
    # Softmax in half precision would sum to one only to within 2^-8.
    np.testing.assert_allclose(np.sum(weights, axis=1)[:-1], np.ones(3), rtol=1e-6)


def test_projected_keys_give_the_same():
    layer = built("additive")
    keys, mask = padded()
    projected = layer.project(keys)
    assert projected.shape == (4, 5, 6)
    once = layer(queries("additive"), keys, mask=mask, projected=projected)
    for a, b in zip(once, layer(queries("additive"), keys, mask=mask), strict=True):
        np.testing.assert_array_equal(a, b)
    shifted = layer(queries("additive"), keys, mask=mask, projected=-projected)
    assert np.abs(shifted[1] - once[1]).max() > 0.01


@keras.saving.register_keras_serializable(package="tests")
class Decoder(keras.layers.Layer):
    """Three steps, each of which asks with the context of the step before."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = AdditiveAttention(6)

    def build(self, keys_shape):
        self.attention.build((keys_shape[0], keys_shape[-1]), keys_shape)

    def call(self, keys, mask):
        projected = self.attention.project(keys)
        context = keys[:, 0]
        for _ in range(3):
            context, _ = self.attention(context, keys, mask=mask, projected=projected)
        return context

    def compute_output_shape(self, keys_shape):
        return keys_shape[0], keys_shape[-1]


def decoder_model(precision):
    keys, mask = keras.Input((None, 3), dtype="float32"), keras.Input((None,), dtype="bool")
    return keras.Model([keys, mask], Decoder(dtype=precision)(keys, mask))


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_attention_within_a_decoder_trains_and_reloads(precision, tmp_path):
    model = decoder_model(precision)
    block_checks.random_weights(model)
    assert len(model.weights) == 3
    assert block_checks.dead_weights(model, padded()) == []
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_keys_are_not_projected_without_weights():
    with pytest.raises(ValueError, match=r"'early' is to project keys before it has weights.*build\(query_shape"):
        AdditiveAttention(4, name="early").project(padded()[0])


@pytest.mark.parametrize("kind", [*LAYERS, *KINDS, "attention_pooling"])
def test_saved_model_reloads(kind, tmp_path):
    x, mask, query = keras.Input((None, 3)), keras.Input((None,), dtype="bool"), keras.Input((3,))
    if kind in LAYERS:
        output = LAYERS[kind](name="block")(query, x, mask=mask)
    elif kind in KINDS:
        output = pooling(x, kind, mask=mask, name="block")
    else:
        output = attention_pooling(x, units=4, mask=mask, name="block")
    model = keras.Model([x, mask, query], output)
    assert all(tensor.shape[0] is None and len(tensor.shape) == 2 for tensor in model.outputs)
    block_checks.random_weights(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("block").get_config() == model.get_layer("block").get_config()
    inputs = [*padded(), queries("dot")]
    for a, b in zip(tf.nest.flatten(loaded(inputs)), tf.nest.flatten(model(inputs)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Pooling("min", name="block"),
            "unknown pooling 'min' in 'block', expected one of: first, last, mean, max",
        ),
        (
            lambda: MultiplicativeAttention("concat", name="block"),
            "unknown attention 'concat' in 'block', expected one of: dot, general",
        ),
        (
            lambda: MultiplicativeAttention("dot", name="block")(np.ones((1, 2)), np.ones((1, 4, 3))),
            'a query of size 2 with keys of size 3, expected the same size: project one of them.*kind="general"',
        ),
    ],
)
def test_mistakes_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
