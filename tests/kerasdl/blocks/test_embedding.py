import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasdl.blocks.embedding import WordDropout, embedding, padding_mask

TOKENS = np.array([[3, 1, 2, 0], [2, 0, 0, 0], [0, 0, 0, 0]], np.int32)


def token_model(block, **options):
    tokens = keras.Input((None,), dtype="int32")
    return keras.Model(tokens, block(tokens, **options, name="block"))


def test_padding_is_masked():
    model = token_model(padding_mask)
    mask = model(TOKENS)
    assert mask.dtype == bool
    assert mask.numpy().tolist() == [[True, True, True, False], [True, False, False, False], [False] * 4]
    assert model(TOKENS[:0]).shape == (0, 4)
    assert model.layers[-1].name == "block"


def many_words():
    """An eighth padding, an eighth the unknown word 1."""
    return np.tile(np.arange(8, dtype="int32"), (400, 10))


def test_word_dropout_drops_words_at_its_rate_and_no_padding():
    tokens = many_words()
    dropped = WordDropout(0.3, unknown=9, seed=1)(tokens, training=True).numpy()
    assert dropped.dtype == tokens.dtype
    changed = dropped != tokens
    assert set(dropped[changed]) == {9}
    assert not changed[tokens == 0].any()
    words = changed[tokens != 0]
    assert abs(words.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / words.size)
    rows = changed.sum(1)  # of 70 words each; one draw for a whole text would spread far wider
    assert abs(rows.var() / (70 * 0.3 * 0.7) - 1) < 0.4


@pytest.mark.parametrize(("rate", "expected"), [(0.0, [3, 1, 2, 0]), (1.0, [1, 1, 1, 0])])
def test_word_dropout_at_its_ends(rate, expected):
    assert WordDropout(rate)(TOKENS, training=True).numpy()[0].tolist() == expected


def test_word_dropout_rests_in_inference_and_follows_its_seed():
    tokens = many_words()
    layer, twin, other = (WordDropout(0.5, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(layer(tokens, training=False), tokens)
    first = layer(tokens, training=True).numpy()
    np.testing.assert_array_equal(twin(tokens, training=True), first)
    for another in (layer, other):
        assert (another(tokens, training=True).numpy() != first).mean() > 0.2


def test_word_dropout_config_is_complete():
    layer = WordDropout(0.2, unknown=5, seed=7, name="drop")
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert twin.get_config() == layer.get_config()
    np.testing.assert_array_equal(twin(many_words(), training=True), layer(many_words(), training=True))


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_word_dropout_needs_a_probability(rate):
    with pytest.raises(ValueError, match=f"word dropout has the rate {rate}, expected a probability"):
        WordDropout(rate)


def test_embedding_looks_vectors_up():
    model = token_model(embedding, vocabulary_size=6, units=4)
    (table,) = model.get_weights()
    assert table.shape == (6, 4)
    np.testing.assert_array_equal(model(TOKENS, training=True), table[TOKENS])
    assert model(TOKENS[:0]).shape == (0, 4, 4)
    assert [layer.name for layer in model.layers[1:]] == ["block"]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(TOKENS, training=True))
    (slope,) = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    counts = np.bincount(TOKENS.ravel(), minlength=6)
    np.testing.assert_array_equal(tf.convert_to_tensor(slope), np.tile(counts[:, None], (1, 4)))


def test_embedding_drops_words_and_then_components_of_a_whole_text(tmp_path):
    model = token_model(embedding, vocabulary_size=8, units=50, word_dropout=0.5, dropout=0.2)
    assert [layer.name for layer in model.layers[1:]] == ["block_word_dropout", "block", "block_dropout"]
    table = model.get_layer("block").embeddings.numpy()
    tokens = many_words()
    y = model(tokens, training=True).numpy()
    kept = np.any(y != 0, axis=1)
    assert abs(kept.mean() - 0.8) < 4 * np.sqrt(0.8 * 0.2 / kept.size)
    as_word = np.isclose(y, np.where(kept[:, None], table[tokens] / 0.8, 0), atol=1e-6).all(-1)
    as_unknown = np.isclose(y, np.where(kept[:, None], table[1] / 0.8, 0), atol=1e-6).all(-1)
    assert (as_word | as_unknown).all()
    assert as_word[tokens == 0].all()
    assert abs(as_unknown[tokens > 1].mean() - 0.5) < 0.02
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(tokens), table[tokens])


@pytest.mark.parametrize(("block", "sizes"), [(padding_mask, ()), (embedding, (6, 4))])
def test_blocks_of_tokens_follow_the_rules_of_blocks(block, sizes):
    with pytest.raises(ValueError, match=rf"{block.__name__} was called on a ndarray.*keras\.Input"):
        block(TOKENS, *sizes, name="block")
    text = inspect.getdoc(block)
    positions = [text.index(f"\n{part}") for part in ("Args:", "Returns:", "Raises:", "Source:")]
    assert positions == sorted(positions)
    assert "tokens: int32[batch, words]" in text
