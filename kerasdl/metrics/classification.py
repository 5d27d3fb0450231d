"""Scores of a classifier, computed in numpy from its probabilities and the true labels.

Every function takes the same pair: probabilities float[examples, classes], rows summing to 1, and labels
int[examples] in 0..classes-1. A prediction is the most probable class; of equals the first.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binomtest, entropy
from sklearn import metrics

CALIBRATION_BINS = 15
"""Equal-width confidence bins of the calibration error, as in Guo et al. 2017, section 5."""

# A float32 softmax underflows to 0 for a class it rules out; without a floor a single such example makes the
# mean infinite. The floor is the smallest normal float32, so one example costs at most 87.3 nats.
_SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class CalibrationBins:
    """What each confidence bin holds; bins without examples have accuracy and confidence NaN."""

    accuracy: np.ndarray
    """float64[bins], share of right predictions."""
    confidence: np.ndarray
    """float64[bins], mean probability of the predicted class."""
    count: np.ndarray
    """int64[bins], examples."""


def classification_report(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores a classifier by the numbers that papers state.

    Args:
        probabilities: float[examples, classes], rows summing to 1.
        labels: int[examples], the true classes.

    Returns:
        `accuracy` (ratio) with its 95 % interval `accuracy_low` and `accuracy_high`; `top5_accuracy` (ratio)
        if there are more than 5 classes; `nll_nats`, the mean negative log-likelihood of the true class;
        `brier_score`, the mean squared distance to the one-hot label, summed over classes, 0 to 2;
        `calibration_error` (ratio), see `calibration_error`.

    Raises:
        ValueError: if the arrays are empty, do not fit each other, or hold no probabilities.

    Source: interval: Wilson 1927, "Probable inference, the law of succession, and statistical inference",
    which unlike the normal approximation keeps its coverage near 0 and 1; score: Brier 1950, "Verification
    of forecasts expressed in terms of probability", equation 2.
    """
    probabilities, labels = _check(probabilities, labels)
    examples, classes = probabilities.shape
    right = int(np.sum(probabilities.argmax(axis=1) == labels))
    low, high = binomtest(right, examples).proportion_ci(confidence_level=0.95, method="wilson")
    report = {"accuracy": right / examples, "accuracy_low": float(low), "accuracy_high": float(high)}
    if classes > 5:
        top5 = metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=np.arange(classes))
        report["top5_accuracy"] = float(top5)
    of_true_class = probabilities[np.arange(examples), labels]
    report["nll_nats"] = float(-np.mean(np.log(np.maximum(of_true_class, _SMALLEST_PROBABILITY))))
    report["brier_score"] = float(np.mean(np.sum((probabilities - np.eye(classes)[labels]) ** 2, axis=1)))
    report["calibration_error"] = calibration_error(probabilities, labels)
    return report


def without_skill(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What a classifier without skill reaches, for `verdict`.

    Args:
        probabilities: float[examples, classes], rows summing to 1.
        labels: int[examples], the true classes.

    Returns:
        `majority_accuracy` (ratio), that of naming the most frequent class of these labels each time;
        `majority_nll_nats`, the negative log-likelihood of always giving the frequencies of the classes;
        `named_classes`, how many classes are named at least once.
    """
    frequencies = np.bincount(labels) / len(labels)
    return {
        "majority_accuracy": float(frequencies.max()),
        "majority_nll_nats": float(entropy(frequencies)),
        "named_classes": len(np.unique(probabilities.argmax(axis=1))),
    }


def verdict(report: Mapping[str, float]) -> str | None:
    """Why a classifier is of no use, by `classification_report` and `without_skill`; None if they do not say so.

    Where one class is rare, a useful classifier may name the other each time, and be right less often than who names it
    always: its probabilities say more than the frequencies of the classes then, so that both have to fail.
    """
    majority = report.get("majority_accuracy", 0.0)
    if majority == 1 or report.get("nll_nats", math.inf) < report.get("majority_nll_nats", math.inf):
        return None  # one class alone is tested, or there is skill
    if report.get("named_classes") == 1:
        return "it names the same class for every test example"
    standard_error = (report["accuracy_high"] - report["accuracy_low"]) / (2 * 1.96)
    if report["accuracy"] - majority <= standard_error:
        return (
            f"its accuracy, {report['accuracy']:.1%}, is not clearly above the {majority:.1%} of always naming the "
            "most frequent class"
        )
    return None


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Finds the temperature that makes probabilities of held-out examples say how often they are right.

    It minimises the negative log-likelihood of `with_temperature`. A standard normal prior of its logarithm keeps it
    from 0 where every example is right; beside some hundred examples it weighs nothing.

    Args:
        probabilities: float[examples, classes], rows summing to 1, of examples that were not trained on.
        labels: int[examples], the true classes.

    Returns:
        The temperature, 0.05 to 20: above 1 for a classifier that is too sure, below 1 for one that is not enough.

    Raises:
        ValueError: if the arrays are empty, do not fit each other, or hold no probabilities.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2; the prior is own.
    """
    probabilities, labels = _check(probabilities, labels)

    def cost(log_temperature: float) -> float:
        of_true_class = _tempered(probabilities, np.exp(log_temperature))[np.arange(len(labels)), labels]
        return float(log_temperature**2 / 2 - of_true_class.sum())

    found = minimize_scalar(cost, bounds=(-3, 3), method="bounded").x
    return float(np.exp(found)) if cost(found) < cost(0) else 1.0


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities that logits give which are divided by a temperature; their order stays.

    Args:
        probabilities: float[examples, classes], rows summing to 1, of temperature 1.
        temperature: above 0; 1 / t takes t back.

    Returns:
        float64[examples, classes].

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    return np.exp(_tempered(np.asarray(probabilities, np.float64), temperature))


def _tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    # The logits but for a constant of each row, which the softmax takes away.
    return log_softmax(np.log(np.maximum(probabilities, _SMALLEST_PROBABILITY)) / temperature, axis=1)


def before_calibration(probabilities: np.ndarray, labels: np.ndarray, temperature: float | None) -> dict[str, float]:
    """What a calibrated classifier would score without its temperature.

    Args:
        probabilities: float[examples, classes], with the temperature.
        labels: int[examples], the true classes.
        temperature: of the classifier; None if it has none.

    Returns:
        `temperature`, `uncalibrated_nll_nats` and `uncalibrated_calibration_error`; nothing without a temperature.
    """
    if temperature is None:
        return {}
    report = classification_report(with_temperature(probabilities, 1 / temperature), labels)
    scores = {f"uncalibrated_{name}": report[name] for name in ("nll_nats", "calibration_error")}
    return {"temperature": temperature, **scores}


def accuracy_by_length(right: np.ndarray, lengths: np.ndarray, *, unit: str = "words") -> dict[str, float]:
    """Accuracy of the shortest quarter of texts, and of the following ones.

    Args:
        right: bool[examples].
        lengths: int[examples].
        unit: of the lengths.

    Returns:
        `accuracy_<unit>_<first>_to_<last>`; fewer than four where many are equally long.
    """
    ends = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75, 1], method="lower"))
    quarter = np.searchsorted(ends, lengths)
    begins = [lengths.min(), *(ends[:-1] + 1)]
    return {
        f"accuracy_{unit}_{begin}_to_{end}": float(right[quarter == i].mean())
        for i, (begin, end) in enumerate(zip(begins, ends, strict=True))
    }


def confusion_matrix(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts how often each class was taken for each.

    Args:
        probabilities: float[examples, classes], rows summing to 1.
        labels: int[examples], the true classes.

    Returns:
        int64[classes, classes]: row = true class, column = predicted class.

    Raises:
        ValueError: if the arrays are empty, do not fit each other, or hold no probabilities.

    Source: scikit-learn, `sklearn.metrics.confusion_matrix`.
    """
    probabilities, labels = _check(probabilities, labels)
    classes = np.arange(probabilities.shape[1])
    return metrics.confusion_matrix(labels, probabilities.argmax(axis=1), labels=classes)


def per_class_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Computes the share of each class' examples that were recognised (recall).

    Args:
        probabilities: float[examples, classes], rows summing to 1.
        labels: int[examples], the true classes.

    Returns:
        float64[classes]; NaN for a class without examples.

    Raises:
        ValueError: if the arrays are empty, do not fit each other, or hold no probabilities.

    Source: scikit-learn, `sklearn.metrics.recall_score`.
    """
    probabilities, labels = _check(probabilities, labels)
    classes = np.arange(probabilities.shape[1])
    predictions = probabilities.argmax(axis=1)
    return metrics.recall_score(labels, predictions, labels=classes, average=None, zero_division=np.nan)


def calibration_bins(probabilities: np.ndarray, labels: np.ndarray) -> CalibrationBins:
    """Groups predictions by confidence, the probability of the predicted class.

    Args:
        probabilities: float[examples, classes], rows summing to 1.
        labels: int[examples], the true classes.

    Returns:
        Accuracy, confidence and count of the bins ((m - 1) / M, m / M], m = 1..M, M = 15.

    Raises:
        ValueError: if the arrays are empty, do not fit each other, or hold no probabilities.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 2.
    """
    probabilities, labels = _check(probabilities, labels)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    inner_edges = np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS
    bins = np.digitize(confidence, inner_edges, right=True)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    divisor = np.where(count == 0, np.nan, count)
    return CalibrationBins(
        accuracy=np.bincount(bins, weights=right, minlength=CALIBRATION_BINS) / divisor,
        confidence=np.bincount(bins, weights=confidence, minlength=CALIBRATION_BINS) / divisor,
        count=count,
    )


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Computes the expected calibration error: how far confidence is from accuracy.

        ECE = sum over bins m of |B_m| / n * |acc(B_m) - conf(B_m)|

    with the 15 equal-width bins of `calibration_bins`. 0 is perfect; the value is a ratio, 0.03 means that
    confidence and accuracy differ by 3 points on average.

    Args:
        probabilities: float[examples, classes], rows summing to 1.
        labels: int[examples], the true classes.

    Returns:
        The error, between 0 and 1.

    Raises:
        ValueError: if the arrays are empty, do not fit each other, or hold no probabilities.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    bins = calibration_bins(probabilities, labels)
    gaps = np.abs(bins.accuracy - bins.confidence)
    return float(np.nansum(bins.count * gaps) / bins.count.sum())


def _check(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not labels.size:
        raise ValueError(
            f"Probabilities have shape {probabilities.shape} and labels {labels.shape}; expected"
            " [examples, classes] and [examples], at least one example; pass one row for each label."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"Labels are {labels.dtype}; expected integers; pass class indices.")
    classes = probabilities.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"Labels lie in {labels.min()}..{labels.max()}; expected 0..{classes - 1}, one for each of the"
            f" {classes} columns; pass the labels that the model was trained on."
        )
    # 0.01 forgives a softmax in half precision, and still tells logits from probabilities. A NaN fails both.
    if not (np.all(probabilities >= 0) and np.all(np.abs(probabilities.sum(axis=1) - 1) < 0.01)):
        raise ValueError(
            "A row of the probabilities is negative, NaN or does not sum to 1; expected probabilities;"
            " apply softmax to logits first."
        )
    return probabilities, labels
