"""Texts divided into train, validation and test."""

import numpy as np
import pytest

from kerasdl.data import text_data, tfds
from kerasdl.errors import UserError


@pytest.fixture
def table(tmp_path):
    rows = [f"text {i},{'ab'[i % 2]}" for i in range(60)]
    path = tmp_path / "own.csv"
    path.write_text("\n".join(["text,label", *rows]))
    return path


def read(table, **options):
    return text_data.from_table(table, text_column="text", label_column="label", **options)


def test_a_table_is_divided_and_each_class_stands_in_every_part(table):
    found = read(table, held_out=0.2)
    parts = [found.train, found.validation, found.test()]
    assert sorted(text for part in parts for text in part.texts) == sorted(f"text {i}" for i in range(60))
    assert found.class_names == ["a", "b"]
    for part in parts:
        assert [int(text.split()[1]) % 2 for text in part.texts] == part.labels.tolist()
        assert set(part.labels) == {0, 1}
    assert found.train.unlabeled() == []
    assert len(read(table, held_out=0).validation) == 0


def test_a_text_stays_in_its_part_and_equal_texts_together(table):
    before = read(table, held_out=0.2)
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *(f"more {i},{'ab'[i % 2]}" for i in range(20)), *rows, *rows]))
    after = read(table, held_out=0.2)
    for old, new in ((before.train, after.train), (before.validation, after.validation), (before.test(), after.test())):
        assert sorted(2 * old.texts) == sorted(text for text in new.texts if text.startswith("text"))


def test_too_few_texts_for_the_parts_are_refused_with_their_counts(tmp_path):
    path = tmp_path / "few.csv"
    path.write_text("\n".join(["text,label", *(f"text {i},{i // 2}" for i in range(12))]))
    with pytest.raises(
        UserError, match="too few texts: 6 to train on, 6 to validate and 0 to test; expected 1, 1 and 1"
    ):
        read(path, held_out=0.1)


def test_texts_without_labels_that_are_tested_on_are_left_out(table, tmp_path):
    more = tmp_path / "more.txt"
    more.write_text("\n".join([*(f"text {i}" for i in range(60)), "another"]))
    found = read(table, held_out=0.2, unlabeled=more)
    expected = [f"text {i}" for i in range(60) if f"text {i}" not in found.test().texts]
    assert found.train.unlabeled() == [*expected, "another"]


def test_the_split_of_tfds_does_not_depend_on_chance_and_opens_no_test(monkeypatch):
    parts = {
        "train": ([f"t{i}" for i in range(20)], np.arange(20, dtype=np.int32) % 2),
        "test": (["seen"], np.array([0], np.int32)),
        "more": (["seen", "new"], np.array([-1, -1], np.int32)),
    }
    opened = []
    monkeypatch.setattr(tfds, "texts", lambda name, split, data_dir: opened.append(split) or parts[split])
    monkeypatch.setattr(tfds, "class_names", lambda name, data_dir: ["no", "yes"])
    found = text_data.from_tfds("any/config", None, held_out=0.25, unlabeled="more")
    assert opened == ["train"]
    assert (len(found.train), len(found.validation)) == (15, 5)
    assert found.description == "any (TFDS), test split"
    again = text_data.from_tfds("any/config", None, held_out=0.25)
    assert again.train.texts == found.train.texts
    assert found.train.unlabeled() == ["new"]
    assert again.train.unlabeled() == []


def test_excerpts_are_sentences_of_texts_of_several():
    texts = ["One. Two? Three!<br /><br />Four", "A single one.", "", "好。坏。", "a\nb"]
    excerpts, sources = text_data.excerpts(texts, 3, seed=0)
    assert [list(sources).count(position) for position in range(5)] == [3, 0, 0, 2, 2]
    sentences = [["One.", "Two?", "Three!", "Four"], [], [], ["好。", "坏。"], ["a", "b"]]
    for excerpt, source in zip(excerpts, sources, strict=True):
        parts = sentences[source]
        runs = {" ".join(parts[begin:end]) for end in range(len(parts) + 1) for begin in range(end)}
        assert excerpt in runs - {" ".join(parts)}
    assert len({excerpt.split()[0] for excerpt, source in zip(excerpts, sources, strict=True) if source == 0}) == 3
    again, other = (text_data.excerpts(texts * 5, 2, seed=seed)[0] for seed in (0, 1))
    assert again == text_data.excerpts(texts * 5, 2, seed=0)[0] != other
    assert text_data.excerpts([], 3, seed=0)[1].shape == (0,)
