import numpy as np
import pytest
import sklearn.metrics

from kerasdl.metrics import classification

# Four examples of two classes; the third is wrong.
HAND_PROBABILITIES = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]], np.float32)
HAND_LABELS = np.array([0, 1, 1, 1])


def random_case(examples=200, classes=7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(classes), examples).astype(np.float32), rng.integers(0, classes, examples)


def test_report_of_two_classes_by_hand():
    report = classification.classification_report(HAND_PROBABILITIES, HAND_LABELS)
    # Wilson, k = 3, n = 4, z = 1.96: (k + z²/2 ± z sqrt(k (n - k) / n + z²/4)) / (n + z²).
    assert report == pytest.approx(
        {
            "accuracy": 0.75,
            "accuracy_low": 0.300642,
            "accuracy_high": 0.954413,
            "nll_nats": -np.log(0.9 * 0.6 * 0.3 * 0.8) / 4,
            "brier_score": 2 * (0.01 + 0.16 + 0.49 + 0.04) / 4,
            # Each example is alone in its bin: |1 - .9|, |1 - .6|, |0 - .7|, |1 - .8|.
            "calibration_error": (0.1 + 0.4 + 0.7 + 0.2) / 4,
        },
        abs=1e-6,
    )


def test_matrix_has_true_rows_and_predicted_columns():
    matrix = classification.confusion_matrix(HAND_PROBABILITIES, HAND_LABELS)
    assert matrix.tolist() == [[1, 0], [1, 2]]
    assert classification.per_class_accuracy(HAND_PROBABILITIES, HAND_LABELS) == pytest.approx([1, 2 / 3])


def test_class_without_examples_has_a_row_of_zeros_and_no_accuracy():
    probabilities = np.eye(3)[[0, 1, 1]]
    labels = np.array([0, 1, 0])
    assert classification.confusion_matrix(probabilities, labels)[2].tolist() == [0, 0, 0]
    assert classification.per_class_accuracy(probabilities, labels) == pytest.approx([0.5, 1, np.nan], nan_ok=True)


def test_report_agrees_with_scikit_learn():
    probabilities, labels = random_case()
    report = classification.classification_report(probabilities, labels)
    classes = np.arange(7)
    brier = sklearn.metrics.brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False)
    assert report["nll_nats"] == pytest.approx(sklearn.metrics.log_loss(labels, probabilities), rel=1e-5)
    assert report["brier_score"] == pytest.approx(brier, rel=1e-5)


def test_top5_counts_the_true_class_among_the_five_most_probable():
    # Class c has the (c+1)-th highest probability, so the labels 0..4 count and 5, 6 do not.
    row = np.array([0.3, 0.25, 0.15, 0.1, 0.09, 0.06, 0.05])
    report = classification.classification_report(np.tile(row, (7, 1)), np.arange(7))
    assert report["top5_accuracy"] == pytest.approx(5 / 7)
    assert "top5_accuracy" not in classification.classification_report(HAND_PROBABILITIES, HAND_LABELS)


def test_perfectly_calibrated_predictions_have_no_calibration_error():
    # Of the examples with confidence c, the share c is right, exactly.
    probabilities, labels = [], []
    for percent in (55, 65, 75, 85, 95):
        probabilities += [[percent / 100, 1 - percent / 100]] * 100
        labels += [0] * percent + [1] * (100 - percent)
    assert classification.calibration_error(np.array(probabilities), np.array(labels)) < 1e-12


@pytest.mark.parametrize(("confidence", "accuracy"), [(1.0, 0.6), (0.9, 0.7), (0.55, 1.0)])
def test_calibration_error_is_the_gap_of_one_bin(confidence, accuracy):
    probabilities = np.tile([confidence, 1 - confidence], (100, 1))
    labels = np.arange(100) >= round(accuracy * 100)
    error = classification.calibration_error(probabilities, labels.astype(int))
    assert error == pytest.approx(abs(confidence - accuracy))


def test_calibration_error_weighs_bins_by_their_count():
    # 30 examples at confidence 1, all wrong (gap 1), 10 at 0.6, six of them right (gap 0).
    probabilities = np.array([[1.0, 0.0]] * 30 + [[0.6, 0.4]] * 10)
    labels = np.array([1] * 30 + [0] * 6 + [1] * 4)
    bins = classification.calibration_bins(probabilities, labels)
    assert bins.count[[8, 14]].tolist() == [10, 30]  # 0.6 = 9 / 15 is the upper, closed edge of bin 8
    assert bins.accuracy[[8, 14]] == pytest.approx([0.6, 0])
    assert np.isnan(bins.confidence).sum() == 13
    assert classification.calibration_error(probabilities, labels) == pytest.approx(0.75)


def test_wilson_interval_covers_the_true_accuracy_also_near_one():
    rng = np.random.default_rng(0)
    covered = 0
    for right in rng.binomial(50, 0.97, size=1000):
        probabilities = np.tile([0.9, 0.1], (50, 1))
        report = classification.classification_report(probabilities, (np.arange(50) >= right).astype(int))
        covered += report["accuracy_low"] <= 0.97 <= report["accuracy_high"]
    # The normal approximation covers 78 % here: it gives a faultless sample the interval [1, 1].
    assert 0.91 <= covered / 1000 <= 0.99


def test_ruled_out_true_class_keeps_the_likelihood_finite():
    report = classification.classification_report(np.array([[1.0, 0.0]], np.float32), np.array([1]))
    assert report["nll_nats"] == pytest.approx(87.336, abs=0.01)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "at least one example"),
        (np.full((2, 2), 0.5), np.zeros(3, int), "one row for each label"),
        (np.full((2, 2), 0.5), np.zeros(2), "expected integers"),
        (np.full((2, 2), 0.5), np.array([0, 2]), r"lie in 0\.\.2; expected 0\.\.1"),
        (np.array([[2.0, -1.0]]), np.array([0]), "apply softmax"),
        (np.array([[3.0, 1.0]]), np.array([0]), "apply softmax"),
        (np.array([[np.nan, 1.0]]), np.array([0]), "NaN"),
    ],
)
def test_wrong_input_is_refused(probabilities, labels, message):
    for function in (
        classification.classification_report,
        classification.confusion_matrix,
        classification.per_class_accuracy,
        classification.calibration_error,
    ):
        with pytest.raises(ValueError, match=message):
            function(probabilities, labels)


def test_accuracy_by_length_covers_every_example_once():
    lengths = np.array([1, 1, 2, 3, 9, 9, 9, 40])
    right = np.array([1, 0, 1, 1, 0, 0, 1, 0], bool)
    assert classification.accuracy_by_length(right, lengths) == {
        "accuracy_words_1_to_1": 0.5,
        "accuracy_words_2_to_3": 1.0,
        "accuracy_words_4_to_9": 1 / 3,
        "accuracy_words_10_to_40": 0.0,
    }


def drawn(temperature, examples=4000, classes=5):
    """Probabilities of logits that were divided by `temperature`, and labels drawn from those of temperature 1."""
    rng = np.random.default_rng(0)
    true = classification.with_temperature(rng.dirichlet(np.ones(classes), examples), 1.0)
    labels = (true.cumsum(1) < rng.random((examples, 1))).sum(1)
    return classification.with_temperature(true, temperature), labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_temperature_takes_back_what_made_a_classifier_too_sure_or_not_sure_enough(temperature):
    probabilities, labels = drawn(1 / temperature)
    found = classification.fit_temperature(probabilities, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    better = classification.with_temperature(probabilities, found)
    before, after = (classification.classification_report(p, labels) for p in (probabilities, better))
    assert after["nll_nats"] <= before["nll_nats"]
    assert after["accuracy"] == before["accuracy"]
    assert after["calibration_error"] < 0.03
    np.testing.assert_array_equal(better.argsort(1), probabilities.argsort(1))
    np.testing.assert_allclose(classification.with_temperature(better, 1 / found), probabilities, atol=1e-6)
    reported = classification.before_calibration(better, labels, found)
    assert reported["uncalibrated_nll_nats"] == pytest.approx(before["nll_nats"], abs=1e-6)
    assert reported["uncalibrated_calibration_error"] == pytest.approx(before["calibration_error"], abs=1e-3)
    assert classification.before_calibration(better, labels, None) == {}


@pytest.mark.parametrize("right", [True, False])
def test_a_few_examples_or_all_of_them_right_do_not_make_a_classifier_certain(right):
    for examples, least in ((1, 0.7), (5, 0.5), (500, 0.2)):
        probabilities = np.tile([[0.9, 0.1]], (examples, 1))
        found = classification.fit_temperature(probabilities, np.full(examples, 0 if right else 1))
        assert (least < found <= 1) if right else (1 <= found <= 20.1)
    hard = np.tile([[1.0, 0.0]], (10, 1))
    assert np.isfinite(classification.fit_temperature(hard, np.zeros(10, int)))
    assert np.isfinite(classification.fit_temperature(hard, np.ones(10, int)))


def report(probabilities, labels):
    whole = classification.classification_report(probabilities, labels)
    return whole | classification.without_skill(probabilities, labels)


def test_a_classifier_that_is_of_no_use_is_told_and_no_other():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    good = 0.7 * np.eye(4)[labels] + 0.3 * rng.dirichlet(np.ones(4), 400)
    assert classification.verdict(report(good, labels)) is None
    assert "the same class" in classification.verdict(report(np.tile([[0.4, 0.3, 0.2, 0.1]], (400, 1)), labels))
    assert "most frequent class" in classification.verdict(report(rng.dirichlet(np.ones(4), 400), labels))
    # Nine of ten examples are of one class, and a tenth of the answers is wrong by chance.
    rare = (rng.random(400) < 0.1).astype(int)
    guess = np.eye(2)[(rng.random(400) < 0.1).astype(int)]
    assert "most frequent class" in classification.verdict(report(guess, rare))
    # It never names the rare class, yet its probabilities order the examples without a mistake.
    sure = np.where(rare == 1, 0.3, 0.05)
    assert classification.verdict(report(np.stack([1 - sure, sure], 1), rare)) is None
    few = np.array([0, 1, 0, 1, 2])
    assert classification.verdict(report(np.eye(3)[few], few)) is None
    alone = np.zeros(5, int)
    assert classification.verdict(report(np.eye(3)[alone], alone)) is None  # the test part has one class
