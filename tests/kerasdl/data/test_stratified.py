import itertools

import pytest

from kerasdl.data import stratified


def test_every_class_is_cut_in_the_same_ratio():
    parts = stratified.divide([list(range(20)), list(range(100, 110))], validation_ratio=0.2, test_ratio=0.1)
    assert parts == {
        "validation": [*range(2, 6), 101, 102],
        "test": [0, 1, 100],
        "train": [*range(6, 20), *range(103, 110)],
    }


@pytest.mark.parametrize(("count", "sizes"), [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (4, (2, 1, 1))])
def test_a_small_class_serves_train_then_validation_then_test(count, sizes):
    parts = stratified.divide([list(range(count))], validation_ratio=0.01, test_ratio=0.01)
    assert tuple(len(parts[name]) for name in ("train", "validation", "test")) == sizes


def test_the_test_part_does_not_depend_on_the_share_for_validation():
    classes = [list(range(20)), list(range(100, 110))]
    divided = [stratified.divide(classes, validation_ratio=ratio, test_ratio=0.1) for ratio in (0, 0.1, 0.3, 0.8)]
    assert all(parts["test"] == divided[0]["test"] for parts in divided)
    assert len(divided[0]["test"]) == 3
    for fewer, more in itertools.pairwise(divided):
        assert {*fewer["validation"]} < {*more["validation"]}


def test_a_ratio_of_zero_takes_nothing():
    assert stratified.divide([[1, 2, 3]], validation_ratio=0, test_ratio=0) == {
        "train": [1, 2, 3],
        "validation": [],
        "test": [],
    }


@pytest.mark.parametrize("ratios", [(0.5, 0.5), (-0.1, 0.2)])
def test_impossible_ratios_are_refused(ratios):
    with pytest.raises(ValueError, match=r"sum below 1; choose smaller"):
        stratified.divide([[1]], validation_ratio=ratios[0], test_ratio=ratios[1])
