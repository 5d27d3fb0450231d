import itertools

import pytest

from kerasdl.data import stratified
from kerasdl.data.divided import Fold
from kerasdl.errors import UserError


def divide(contents, labels=None, *, validation=0.1, test=0.1, seed=0):
    labels = [0] * len(contents) if labels is None else labels
    found = stratified.divide(contents, labels, held_out=validation, test_ratio=test, seed=seed)
    assert list(found) == ["train", "validation", "test"]
    assert all(part == sorted(part) for part in found.values())
    assert sorted(itertools.chain(*found.values())) == list(range(len(contents)))
    return {name: [contents[index] for index in part] for name, part in found.items()}


def words(count, begin=0):
    return [f"word {index}" for index in range(begin, begin + count)]


def test_the_parts_are_about_as_large_as_asked_for():
    parts = divide(words(10_000), validation=0.2, test=0.1)
    assert [len(part) for part in parts.values()] == pytest.approx([7000, 2000, 1000], rel=0.05)


def test_what_is_added_or_removed_moves_nothing():
    whole = divide(words(500))
    more = divide([*words(300, 500), *words(500)])
    fewer = divide(words(200))
    for name in whole:
        assert {*fewer[name]} == {*whole[name]} & {*words(200)}
        assert {*whole[name]} == {*more[name]} & {*words(500)}


def test_order_and_labels_move_nothing_but_seeds_do():
    contents = words(200)
    parts = divide(contents)
    assert {name: sorted(part) for name, part in divide(contents[::-1]).items()} == {
        name: sorted(part) for name, part in parts.items()
    }
    assert divide(contents, [index % 2 for index in range(200)]) == parts
    assert divide(contents, seed=1) != parts
    drawn = {content for seed in range(60) for content in divide(contents, seed=seed)["test"]}
    assert len(drawn) >= 195


def test_equal_contents_stand_in_one_part_whatever_their_labels():
    contents = words(100) * 3
    parts = divide(contents, [index // 100 for index in range(300)])
    assert sum(len({*part}) for part in parts.values()) == 100
    assert all(part.count(content) == 3 for part in parts.values() for content in part)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("count", "validation", "least"),
    [
        (1, 0.1, (1, 0, 0)),
        (2, 0.1, (1, 1, 0)),
        (3, 0.1, (1, 1, 1)),
        (5, 0.1, (1, 1, 1)),
        (20, 0.8, (1, 1, 1)),
        (1, 0.0, (1, 0, 0)),
        (2, 0.0, (1, 0, 1)),
        (3, 0.0, (1, 0, 1)),
    ],
)
def test_each_class_serves_train_then_validation_then_test(count, validation, least, seed):
    contents = [*words(count), *words(50, 1000)]
    parts = divide(contents, [0] * count + [1] * 50, validation=validation, seed=seed)
    sizes = [sum(content in words(count) for content in part) for part in parts.values()]
    assert all(size >= smallest for size, smallest in zip(sizes, least, strict=True))
    assert sum(sizes) == count
    if count <= 3:
        assert sum(sizes[1:]) == sum(least[1:])
    if validation == 0:
        assert sizes[1] == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_test_part_does_not_depend_on_the_share_for_validation(seed):
    contents = words(23)
    divided = [divide(contents, [0] * 20 + [1] * 3, validation=ratio, seed=seed) for ratio in (0, 0.01, 0.1, 0.3, 0.8)]
    assert all(parts["test"] == divided[0]["test"] for parts in divided)
    for fewer, more in itertools.pairwise(divided):
        assert {*fewer["validation"]} <= {*more["validation"]}


def test_a_ratio_of_zero_takes_nothing_and_nothing_is_divided():
    assert divide(words(3), validation=0, test=0) == {"train": words(3), "validation": [], "test": []}
    assert divide([]) == {"train": [], "validation": [], "test": []}


@pytest.mark.parametrize("ratios", [(0.5, 0.5), (-0.1, 0.2)])
def test_impossible_ratios_are_refused(ratios):
    with pytest.raises(ValueError, match=r"sum below 1; choose smaller"):
        divide(["a"], validation=ratios[0], test=ratios[1])


@pytest.mark.parametrize("test", [0.0, 0.2])
def test_folds_share_out_all_but_the_test_and_each_class_equally(test):
    contents, labels = words(150), [0] * 60 + [1] * 50 + [2] * 40
    whole = divide(contents, labels, validation=0, test=test)
    folds = [divide(contents, labels, validation=Fold(number, 5), test=test) for number in range(1, 6)]
    assert all(fold["test"] == whole["test"] for fold in folds)
    held = [content for fold in folds for content in fold["validation"]]
    assert sorted(held) == sorted(whole["train"])
    assert all({*fold["train"]} == {*whole["train"]} - {*fold["validation"]} for fold in folds)
    label_of = dict(zip(contents, labels, strict=True))
    for label in range(3):
        counts = [sum(label_of[content] == label for content in fold["validation"]) for fold in folds]
        assert max(counts) - min(counts) <= 1


def test_more_folds_than_contents_are_refused():
    with pytest.raises(UserError, match="fold 1/9: there are 8 examples to divide"):
        divide(words(8) * 2, validation=Fold(1, 9), test=0)


def test_equal_contents_stand_in_one_fold():
    contents = words(30) * 3
    for number in (1, 2, 3):
        parts = divide(contents, validation=Fold(number, 3))
        assert not {*parts["train"]} & {*parts["validation"]}
