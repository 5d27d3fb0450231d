import keras
import numpy as np
import oracles_ngrams as oracle
import pytest
import tensorflow as tf

from kerasdl.ngrams import NgramLogits

VOCABULARY, BUCKETS = 50, 64
TEXTS = [[3, 4, 3, 4, 3], [1], [], [49, 49, 49], [7, 8, 9, 10, 11, 12, 2]]
LABELS = [0, 1, 2, 2, 1]


def padded(texts, width):
    return np.array([text + [0] * (width - len(text)) for text in texts], np.int32)


def layer(classes, **options):
    """With random weights, built."""
    made = NgramLogits(VOCABULARY, classes, buckets=BUCKETS, **options)
    made(padded(TEXTS, 7))
    made.ratios.assign(np.random.default_rng(0).normal(size=made.ratios.shape))
    return made


def expected(made, texts):
    """The sum of the rows of each text's set."""
    table = made.ratios.numpy().astype(np.float64)
    sums = np.array([sum((table[f] for f in oracle.features(t, VOCABULARY, BUCKETS)), 0 * table[0]) for t in texts])
    sums *= made.scale
    return np.concatenate([-sums / 2, sums / 2], 1) if made.classes == 2 else sums


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("width", [7, 8, 30])
def test_equals_oracle_whatever_the_padding(classes, width):
    made = layer(classes, scale=0.3)
    answer = made(padded(TEXTS, width))
    assert answer.dtype == "float32"
    np.testing.assert_allclose(answer, expected(made, TEXTS), atol=1e-5)
    assert np.all(answer.numpy()[2] == 0), "a text of no words says nothing"


def test_a_text_of_one_column_and_no_text():
    made = layer(2)
    np.testing.assert_allclose(made(np.array([[5]], np.int32)), expected(made, [[5]]), atol=1e-6)
    assert made(np.zeros((0, 4), np.int32)).shape == (0, 2)


def test_random_texts_of_large_ids_equal_oracle():
    """Ids near the end of int32: no product overflows."""
    rng = np.random.default_rng(1)
    made = NgramLogits(2**31 - 1 - 1000, 2, buckets=1000)
    texts = rng.integers(2**31 - 9000, 2**31 - 2000, (50, 20))
    found = made.features(texts).numpy()
    for row, text in zip(found, texts.tolist(), strict=True):
        assert set(row[row < made.size].tolist()) == oracle.features(text, 2**31 - 1 - 1000, 1000)


def test_each_feature_stands_once():
    found = layer(2).features(padded(TEXTS, 7)).numpy()
    for row, text in zip(found, TEXTS, strict=True):
        kept = row[row < VOCABULARY + BUCKETS].tolist()
        assert len(kept) == len(set(kept))
        assert set(kept) == oracle.features(text, VOCABULARY, BUCKETS)
    assert found.shape == (5, 13)


def test_a_pair_has_an_order():
    made = NgramLogits(1000, 2, buckets=2**18)
    here, there = made.features(np.array([[3, 900], [900, 3]])).numpy()
    assert here[:2].tolist() == there[:2].tolist() == [3, 900]
    assert here[2] != there[2]


def test_pairs_spread_over_the_buckets_as_if_drawn():
    """All pairs of 500 frequent words in 2^18 buckets: a share 1 - exp(-pairs / buckets) is hit."""
    made = NgramLogits(1000, 2, buckets=2**18)
    first, second = np.meshgrid(np.arange(2, 502), np.arange(2, 502))
    rows = made._rows(np.stack([first.ravel(), second.ravel()], 1))[1].numpy()
    assert rows.min() >= 1000
    assert rows.max() < made.size
    hit = len(np.unique(rows)) / 2**18
    assert hit == pytest.approx(1 - np.exp(-(500**2) / 2**18), rel=0.01)


@pytest.mark.parametrize("classes", [2, 3])
def test_adapt_equals_oracle(classes):
    labels = [label % classes for label in LABELS]
    made = NgramLogits(VOCABULARY, classes, buckets=BUCKETS)
    made.adapt([(padded(TEXTS[:2], 7), labels[:2]), (padded(TEXTS[2:], 9), np.array(labels[2:]))], smoothing=0.5)
    sets = [oracle.features(text, VOCABULARY, BUCKETS) for text in TEXTS]
    positives = [1] if classes == 2 else range(classes)
    for column, positive in enumerate(positives):
        ratio = oracle.log_count_ratio(sets, labels, positive, VOCABULARY + BUCKETS, 0.5)
        np.testing.assert_allclose(made.ratios.numpy()[:, column], ratio, atol=1e-5)


def test_adapt_alone_classifies():
    """Naive Bayes: every text has one 5 and one 6 side by side; which one is first tells the class."""
    rng = np.random.default_rng(0)
    texts = rng.integers(7, 30, (300, 12)).astype(np.int32)
    labels = np.arange(300) % 2
    texts[:, 4:6] = np.where(labels[:, None] == 1, [5, 6], [6, 5])
    made = NgramLogits(30, 2, buckets=1024)
    made.adapt([(texts[:200], labels[:200])])
    assert np.mean(made(texts[200:]).numpy().argmax(1) == labels[200:]) > 0.95
    made.ratios.assign(np.where(np.arange(made.size)[:, None] < 30, made.ratios, 0))
    assert np.mean(made(texts[200:]).numpy().argmax(1) == labels[200:]) < 0.65, "single words tell nothing"


def test_what_a_word_weighs_sums_to_the_logits_without_repetition():
    made = layer(3)
    tokens = padded([TEXTS[4], [1], []], 9)
    shares = made.by_word(tokens).numpy()
    np.testing.assert_allclose(shares.sum(1), made(tokens), atol=1e-6)
    assert np.all(shares[0, 7:] == 0)
    table, single = made.ratios.numpy() * made.scale, sorted(oracle.features([7, 8], VOCABULARY, BUCKETS))[-1]
    np.testing.assert_allclose(shares[0, 0], table[7] + table[single] / 2, atol=1e-6)


def test_dropout_drops_its_share_in_training_only():
    made = layer(2, scale=1.0, dropout=0.25, seed=3)
    made.ratios.assign(np.ones_like(made.ratios))
    texts = np.tile(np.arange(2, 42, dtype=np.int32), (500, 1))
    count = len(oracle.features(list(range(2, 42)), VOCABULARY, BUCKETS))
    assert np.all(made(texts).numpy()[:, 1] == count / 2)
    kept = made(texts, training=True).numpy()[:, 1] * 2 * 0.75
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-3)
    assert abs(kept.mean() / count - 0.75) < 0.01
    assert kept.std() == pytest.approx(np.sqrt(count * 0.25 * 0.75), rel=0.15)


def test_gradient_is_the_number_of_texts_that_hold_a_feature():
    made = layer(2, scale=0.5)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(made(padded(TEXTS, 7))[:, 1])
    gradient = tf.convert_to_tensor(tape.gradient(total, made.ratios.value)).numpy()[:, 0]
    sets = [oracle.features(text, VOCABULARY, BUCKETS) for text in TEXTS]
    counts = [sum(f in s for s in sets) * 0.25 for f in range(VOCABULARY + BUCKETS)]
    np.testing.assert_allclose(gradient, counts, atol=1e-6)


def test_saved_within_a_model_and_float32_under_half_precision(tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        tokens = keras.Input((None,), dtype="int32")
        model = keras.Model(tokens, NgramLogits(VOCABULARY, 3, buckets=BUCKETS, dropout=0.5, seed=1)(tokens))
    finally:
        keras.config.set_dtype_policy(before)
    model.layers[-1].adapt([(padded(TEXTS, 7), LABELS)])
    model.save(tmp_path / "model.keras")
    twin = keras.models.load_model(tmp_path / "model.keras")
    assert model.output.dtype == twin.output.dtype == "float32"
    assert twin.layers[-1].get_config() == model.layers[-1].get_config()
    np.testing.assert_array_equal(twin(padded(TEXTS, 8)), model(padded(TEXTS, 8)))
    assert np.any(model(padded(TEXTS, 8)) != 0)


@pytest.mark.parametrize("arguments", [{"classes": 1}, {"classes": 2, "buckets": 0}])
def test_mistakes(arguments):
    with pytest.raises(ValueError, match="expected at least 2 classes and 1 bucket"):
        NgramLogits(10, **arguments)
