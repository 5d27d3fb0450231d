"""Which trials are ended early."""

import pytest

from apps._contract import Objective
from tuning._journal import Trial
from tuning._pruning import hopeless

RISING, FALLING = Objective("val_accuracy", "max"), Objective("val_loss", "min")


def trial(number, scores, metric="val_accuracy", epochs=10):
    return Trial(number, {}, epochs, rows=[{"epoch": i, metric: score} for i, score in enumerate(scores, 1)])


def test_the_median_rule_ends_what_is_below_the_median_of_the_others_at_its_epoch():
    others = [trial(number, [0.1 * number] * 10) for number in range(1, 6)]
    reason = hopeless("median", trial(9, [0.2, 0.25]), others, RISING)
    assert reason == "val_accuracy 0.25 at epoch 2, the median of the others is 0.3"
    assert hopeless("median", trial(9, [0.2, 0.35]), others, RISING) is None
    assert hopeless("median", trial(9, [0.35, 0.1]), others, RISING) is None  # its best so far counts
    assert hopeless("median", trial(9, [0.0]), others, RISING) is None  # before a fifth of its epochs
    assert hopeless("median", trial(9, [0.0] * 10), others, RISING) is None  # it is over
    assert hopeless("median", trial(9, [0.0] * 3), others[:3], RISING) is None  # too few to tell
    assert hopeless("median", trial(9, [0.0] * 3, epochs=20), others, RISING) is None  # another schedule
    assert hopeless("none", trial(9, [0.0] * 3), others, RISING) is None


def test_a_loss_is_the_better_the_lower():
    others = [trial(number, [number] * 10, "val_loss") for number in range(1, 6)]
    assert "val_loss 4 at epoch 3" in (hopeless("median", trial(9, [5, 4, 4.5], "val_loss"), others, FALLING) or "")
    assert hopeless("median", trial(9, [5, 2], "val_loss"), others, FALLING) is None


def test_scores_that_are_missing_or_no_numbers_are_the_worst():
    others = [trial(number, [0.1 * number] * 10) for number in range(1, 6)]
    assert hopeless("median", trial(9, [float("nan")] * 3), others, RISING) is not None
    assert hopeless("median", Trial(9, {}, 10, rows=[{"epoch": 1.0}, {"epoch": 2.0}]), others, RISING) is not None


@pytest.mark.parametrize(("epoch", "ends"), [(1, True), (2, False), (3, True), (4, False), (9, True)])
def test_successive_halving_lets_the_best_third_pass_its_rungs(epoch, ends):
    others = [trial(number, [0.1 * number] * 12, epochs=12) for number in range(1, 9)]
    assert (hopeless("halving", trial(9, [0.55] * epoch, epochs=12), others, RISING) is not None) == ends
    assert hopeless("halving", trial(9, [0.65] * epoch, epochs=12), others, RISING) is None


def test_what_is_as_good_as_the_others_goes_on():
    others = [trial(number, [0.5] * 10) for number in range(6)]
    for rule in ("median", "halving"):
        assert hopeless(rule, trial(9, [0.5] * 3), others, RISING) is None
