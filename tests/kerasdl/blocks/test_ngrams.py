import keras
import numpy as np
import oracles_ngrams as oracle
import pytest

from kerasdl.blocks.ngrams import Blend, NgramLogits

VOCABULARY, BUCKETS = 50, 64
TEXTS = [[3, 4, 3, 4, 3], [1], [], [49, 49, 49], [7, 8, 9, 10, 11, 12, 2]]
LABELS = [0, 1, 2, 2, 1]


def padded(texts, width):
    return np.array([text + [0] * (width - len(text)) for text in texts], np.int32)


def layer(classes, **options):
    """With random weights, built."""
    made = NgramLogits(VOCABULARY, classes, buckets=BUCKETS, **options)
    made(padded(TEXTS, 7))
    rng = np.random.default_rng(0)
    made.kernel.assign(rng.normal(size=made.kernel.shape))
    made.bias.assign(rng.normal(size=made.bias.shape))
    return made


def expected(made, texts):
    """The sum of the rows of each text's set, and the bias."""
    table = made.kernel.numpy().astype(np.float64)
    sums = np.array([sum((table[f] for f in oracle.features(t, VOCABULARY, BUCKETS)), 0 * table[0]) for t in texts])
    sums += made.bias.numpy()
    return np.concatenate([-sums / 2, sums / 2], 1) if made.classes == 2 else sums


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("width", [7, 8, 30])
def test_equals_oracle_whatever_the_padding(classes, width):
    made = layer(classes)
    answer = made(padded(TEXTS, width))
    assert answer.dtype == "float32"
    np.testing.assert_allclose(answer, expected(made, TEXTS), atol=1e-5)
    bias = made.bias.numpy()
    nothing = np.concatenate([-bias / 2, bias / 2]) if classes == 2 else bias
    np.testing.assert_allclose(answer.numpy()[2], nothing, err_msg="a text of no words has the bias alone")


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
    found = made.features(np.stack([first.ravel(), second.ravel()], 1)).numpy()
    rows = found[(found >= 1000) & (found < made.size)]
    assert len(rows) == 500**2
    hit = len(np.unique(rows)) / 2**18
    assert hit == pytest.approx(1 - np.exp(-(500**2) / 2**18), rel=0.01)


@pytest.mark.parametrize("classes", [2, 3])
def test_fit_is_at_the_minimum_of_the_oracle(classes):
    """The slope of the penalised loss is 0 at the learned weights, each divided by its log-count ratio."""
    labels = [label % classes for label in LABELS]
    made = NgramLogits(VOCABULARY, classes, buckets=BUCKETS)
    batches = [(padded(TEXTS[:2], 7), labels[:2]), (padded(TEXTS[2:], 9), np.array(labels[2:]))]
    made.fit(batches, smoothing=0.5, strength=0.7)
    sets = [oracle.features(text, VOCABULARY, BUCKETS) for text in TEXTS]
    present = np.array([[float(f in found) for f in range(made.size)] for found in sets])
    for column, positive in enumerate([1] if classes == 2 else range(classes)):
        ratio = np.array(oracle.log_count_ratio(sets, labels, positive, made.size, 0.5))
        kernel, bias = made.kernel.numpy()[:, column].astype(np.float64), made.bias.numpy()[column]
        weights = np.divide(kernel, ratio, out=np.zeros(made.size), where=ratio != 0)
        right = np.array(labels) == positive
        error = 1 / (1 + np.exp(-(present @ kernel + bias))) - right
        slope = weights + 0.7 * (present * ratio).T @ error
        assert np.abs(weights).max() > 0.05
        assert np.abs(slope[ratio != 0]).max() < 1e-3
        assert abs(error.sum()) < 1e-2


def test_fit_alone_classifies_and_gradients_leave_it_alone():
    """Every text has one 5 and one 6 side by side; which one is first tells the class."""
    rng = np.random.default_rng(0)
    texts = rng.integers(7, 30, (300, 12)).astype(np.int32)
    labels = np.arange(300) % 2
    texts[:, 4:6] = np.where(labels[:, None] == 1, [5, 6], [6, 5])
    made = NgramLogits(30, 2, buckets=1024)
    made.fit([(texts[:200], labels[:200])])
    assert not made.trainable_variables
    assert np.mean(made(texts[200:]).numpy().argmax(1) == labels[200:]) > 0.95
    made.kernel.assign(np.where(np.arange(made.size)[:, None] < 30, made.kernel, 0))
    assert np.mean(made(texts[200:]).numpy().argmax(1) == labels[200:]) < 0.65, "single words tell nothing"


def test_blend():
    logits, other = np.array([[1.0, 2.0]], np.float32), np.array([[3.0, -2.0]], np.float32)
    blend = Blend(0.25)
    assert blend(logits, other, training=True).numpy().tolist() == [[1, 2]]
    assert blend(logits, other).numpy().tolist() == [[1.5, 1]]
    with pytest.raises(ValueError, match=r"share=1.5, expected 0 to 1"):
        Blend(1.5)


def test_what_a_word_weighs_sums_to_the_logits_without_repetition():
    made = layer(3)
    tokens = padded([TEXTS[4], [1], []], 9)
    shares = made.by_word(tokens).numpy()
    np.testing.assert_allclose(shares.sum(1) + made.bias.numpy(), made(tokens), atol=1e-6)
    assert np.all(shares[0, 7:] == 0)
    table, single = made.kernel.numpy(), sorted(oracle.features([7, 8], VOCABULARY, BUCKETS))[-1]
    np.testing.assert_allclose(shares[0, 0], table[7] + table[single] / 2, atol=1e-6)


def test_saved_within_a_model_and_float32_under_half_precision(tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        tokens = keras.Input((None,), dtype="int32")
        model = keras.Model(tokens, NgramLogits(VOCABULARY, 3, buckets=BUCKETS)(tokens))
    finally:
        keras.config.set_dtype_policy(before)
    model.layers[-1].fit([(padded(TEXTS, 7), LABELS)])
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
