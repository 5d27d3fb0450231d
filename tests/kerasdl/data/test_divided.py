"""What tells examples from others, and parts that are too small."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from kerasdl.data import divided
from kerasdl.errors import UserError


@dataclasses.dataclass(frozen=True)
class Texts:
    texts: list
    more: object = list


def test_equal_content_has_one_fingerprint_wherever_it_lies(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").write_bytes(b"picture")
    one, other = (
        divided.fingerprint(
            np.arange(6).reshape(2, 3), Texts(["x", "yz"], make), [tmp_path / name / f"{name}.jpg"], None
        )
        for name, make in (("a", list), ("b", dict))
    )
    assert one == other
    assert len(one) == 16


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8)),
        (np.zeros(2, np.uint8), np.zeros(2, np.int8)),
        (np.array([1, 2]), np.array([2, 1])),
        (np.arange(8).reshape(2, 4)[:, ::2], np.arange(8).reshape(2, 4)[:, 1::2]),
        (np.array(["a", "b"], object), np.array(["a", "c"], object)),
        (["ab", "c"], ["a", "bc"]),
        ([["a"], []], [[], ["a"]]),
        (["a"], ["a", ""]),
        (Texts(["a"]), Texts(["b"])),
        ("1", 1),
        (None, 0),
    ],
)
def test_other_content_or_another_order_has_another(one, other):
    assert divided.fingerprint(one) != divided.fingerprint(other)
    assert divided.fingerprint(one) == divided.fingerprint(one)


def test_a_file_that_is_gone_and_broken_text_have_fingerprints(tmp_path):
    assert divided.fingerprint(tmp_path / "a") != divided.fingerprint(tmp_path / "b")
    divided.fingerprint("half of an emoji: \ud83d")
    with pytest.raises(TypeError, match="object has no fingerprint"):
        divided.fingerprint([object()])


def test_parts_that_are_too_small_are_refused_with_their_counts():
    place = Path("photos")
    divided.check_sizes(place, "pictures", train=1, validation=0, test=1)
    with pytest.raises(UserError, match="photos has too few pictures: 6 to train on, 6 to validate and 0 to test"):
        divided.check_sizes(place, "pictures", train=6, validation=6, test=0)
    with pytest.raises(UserError, match="expected 1, 1 and 4"):
        divided.check_sizes(place, "pictures", train=6, validation=1, test=3, least_validation=1, least_test=4)
    with pytest.raises(UserError, match="too few"):
        divided.check_sizes(place, "pictures", train=6, validation=0, test=3, least_validation=1)


@pytest.mark.parametrize(("text", "number", "count"), [("1/2", 1, 2), ("5/5", 5, 5), ("02/10", 2, 10)])
def test_a_fold_is_read_from_its_number_and_their_count(text, number, count):
    assert divided.Fold.read(text) == divided.Fold(number, count)
    assert str(divided.Fold(number, count)) == f"{number}/{count}"


@pytest.mark.parametrize("text", ["", "2", "0/5", "6/5", "1/1", "-1/5", "1/2/3", "a/b", "1.0/5", "²/5", "٢/5"])
def test_what_is_no_fold_is_refused(text):
    with pytest.raises(ValueError, match="such as"):
        divided.Fold.read(text)


def test_folds_hold_each_example_out_once_and_a_share_the_first_ones():
    pairs = [divided.held_and_kept(11, divided.Fold(number, 4)) for number in range(1, 5)]
    assert sorted(np.concatenate([held for held, _ in pairs])) == list(range(11))
    assert sorted(len(held) for held, _ in pairs) == [2, 3, 3, 3]
    assert all(sorted([*held, *kept]) == list(range(11)) for held, kept in pairs)
    held, kept = divided.held_and_kept(10, 0.3)
    assert (held.tolist(), kept.tolist()) == ([0, 1, 2], [3, 4, 5, 6, 7, 8, 9])
    assert len(divided.held_and_kept(10, 0.0)[0]) == 0


def test_more_folds_than_examples_are_refused():
    fold = divided.Fold(1, 5)
    with pytest.raises(UserError, match="fold 1/5: there are 4 examples to divide, fewer than 5 parts"):
        divided.held_and_kept(4, fold)
    with pytest.raises(UserError, match="there are 4 examples"):
        divided.without("abcd", fold)


def test_folds_of_a_running_text_are_its_pieces():
    parts = [divided.without("abcdefgh", divided.Fold(number, 3)) for number in (1, 2, 3)]
    assert parts == [["cdefgh", "ab"], ["abfgh", "cde"], ["abcde", "fgh"]]
