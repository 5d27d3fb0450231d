import zlib

import numpy as np
import pytest
from PIL import Image

from kerasdl.data import image_data
from kerasdl.data.divided import Fold
from kerasdl.errors import UserError


def folder(root, names, count=20):
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (9, 9), (100 * number, index, 0)).save(root / name / f"{index}.png")
    return root


def read(path, classes, **options):
    options = {"held_out": 0.1} | options
    return image_data.from_folder(path, image_data.squares(8), classes=classes, **options)


def colors(examples):
    return {tuple(image[0, 0]) for image in examples.images}


@pytest.mark.parametrize("classes", ["required", "optional", "none"])
def test_every_picture_stands_in_one_part(tmp_path, classes):
    found = read(folder(tmp_path / "own", ["a", "b"]), classes)
    parts = [found.train, found.validation, found.test()]
    assert sum(map(len, parts)) == 40
    assert all(map(len, parts))
    assert len(set.union(*map(colors, parts))) == 40
    assert found.description == f"pictures of own, test part, {len(parts[2])} pictures"
    labels = np.concatenate([part.labels for part in parts])
    if classes == "none":
        assert found.class_names is None
        assert not labels.any()
    else:
        assert found.class_names == ["a", "b"]
        reds = np.concatenate([part.images[:, 0, 0, 0] for part in parts])
        np.testing.assert_array_equal(reds, 100 * labels)


def test_what_is_divided_already_stays_so_and_equal_pictures_are_named(tmp_path, capsys):
    for part, count in (("train", 5), ("val", 2), ("test", 3)):
        folder(tmp_path / part, ["a", "b"], count)
    found = read(tmp_path, "required", held_out=0.5)
    assert [len(part) for part in (found.train, found.validation, found.test())] == [10, 4, 6]
    validation, test = capsys.readouterr().err.splitlines()
    assert validation.startswith("4 of 4 pictures of validation stand in train, too: ")
    assert test.startswith("6 of 6 pictures of test stand in train, too: ")


def test_a_fold_divides_the_validation_part_too(tmp_path):
    for number, (part, count) in enumerate((("train", 6), ("val", 4), ("test", 3))):
        folder(tmp_path / part, [f"a{number}"], count)
        (tmp_path / part / f"a{number}").rename(tmp_path / part / "a")
    for part in ("train", "val", "test"):
        folder(tmp_path / part, ["b"], 2)
    folds = [read(tmp_path, "required", held_out=Fold(number, 2)) for number in (1, 2)]
    assert [len(fold.train) + len(fold.validation) for fold in folds] == [14, 14]
    assert [len(fold.test()) for fold in folds] == [5, 5]
    assert sum(len(fold.validation) for fold in folds) == 14


@pytest.mark.parametrize("classes", ["required", "none"])
def test_too_few_pictures_are_refused_with_their_counts(tmp_path, classes):
    """P17: two pictures of each of six classes; or two in all."""
    names = "abcdef" if classes == "required" else "a"
    expected = "6 to train on, 6 to validate and 0 to test" if classes == "required" else "1 to train on, 1 to validate"
    with pytest.raises(UserError, match=f"too few pictures: {expected}"):
        read(folder(tmp_path, names, 2), classes)


@pytest.mark.parametrize("broken", ["train", "validation", "test"])
def test_a_part_of_which_nothing_can_be_used_is_refused(tmp_path, broken):
    folder(tmp_path, ["a", "b"], 30)

    def load(examples, split):
        return image_data.Images(np.zeros((len(examples) * (split != broken), 8, 8, 3), np.uint8))

    with pytest.raises(UserError, match=rf"none of the \d+ {broken} pictures of .* can be used"):
        image_data.from_folder(tmp_path, load, held_out=0.2, classes="none").test()


def test_a_folder_without_classes_is_refused_or_said(tmp_path, capsys):
    folder(tmp_path / "flat", [""])
    with pytest.raises(UserError, match=r"^It needs classes. .*expected a sub-folder for each class"):
        read(tmp_path / "flat", "required", why="It needs classes.")
    found = read(tmp_path / "flat", "optional")
    assert "The pictures are taken without classes." in capsys.readouterr().err
    assert found.class_names is None
    assert [found.train.labels, found.validation.labels, found.test().labels] == [None] * 3
    assert len(found.train) + len(found.validation) + len(found.test()) == 20


@pytest.mark.parametrize("classes", ["required", "optional", "none"])
def test_a_missing_folder_is_named(tmp_path, classes):
    with pytest.raises(UserError, match="missing"):
        read(tmp_path / "missing", classes)


def test_the_files_of_a_split_are_read_when_it_is_asked_for(tmp_path):
    asked = []

    def load(examples, split):
        asked.append(split)
        return image_data.Images(np.zeros((len(examples), 8, 8, 3), np.uint8))

    path = folder(tmp_path, ["a", "b"])
    found = image_data.from_folder(path, load, held_out=0, classes="required")
    assert asked == ["train", "validation"]
    assert len(found.validation) == 0
    found.test()
    assert asked[2:] == ["test"]


def test_a_generator_knows_what_it_learns_from():
    images, labels = np.arange(5 * 48, dtype=np.uint8).reshape(5, 4, 4, 3), np.arange(5)
    found = image_data.cut(images, labels, (3, 4), list("abcde"), "numbers")
    assert [part.labels.tolist() for part in (found.train, found.validation, found.test())] == [[0, 1, 2], [3], [4]]
    np.testing.assert_array_equal(found.test().images, images[4:])
    facts = image_data.facts(found, "numbers")
    checksum = f"{zlib.crc32(images[:3].tobytes()):08x}"
    assert facts.pop("training_pictures") == f"3 pictures of numbers, CRC-32 {checksum}"
    assert facts == {"image_size": 4, "channels": 3, "class_names": list("abcde")}
    assert len(found.train.arrays(labelled=True)) == 2
    (alone,) = found.train.arrays(labelled=False)
    np.testing.assert_array_equal(alone, images[:3])


@pytest.mark.parametrize(("size", "border"), [(None, 0), (4, 0), (8, 2)])
def test_smaller_pictures_get_a_black_border(monkeypatch, size, border):
    drawn = np.full((10, 4, 4, 1), 9, np.uint8)
    monkeypatch.setattr(image_data.tfds, "images", lambda name, split, folder: (drawn, np.arange(10)))
    monkeypatch.setattr(image_data.tfds, "class_names", lambda name, folder: list("0123456789"))
    found = image_data.from_tfds("mnist", None, held_out=0.2, size=size)
    for part in (found.train, found.validation, found.test()):
        assert part.images.shape[1:] == (4 + 2 * border, 4 + 2 * border, 1)
        assert part.images.sum(dtype=int) == len(part) * 9 * 16
        assert (part.images[:, border : border + 4, border : border + 4] == 9).all()


def test_some_examples_are_the_same_each_time():
    whole = image_data.Images(np.arange(20).reshape(20, 1, 1, 1), np.arange(20))
    some = whole.some(5)
    assert len(some) == len(set(some.labels.tolist())) == 5
    np.testing.assert_array_equal(some.images.ravel(), some.labels)
    np.testing.assert_array_equal(whole.some(5).labels, some.labels)
    assert len(whole.some(100)) == 20


def test_channels_are_normalized_by_their_mean_and_deviation():
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), np.uint8)
    images[..., 1] = 7
    found = image_data.Images(images).normalization()
    expected = images.mean((0, 1, 2)), images.std((0, 1, 2))
    np.testing.assert_allclose(found["mean"], expected[0], atol=5.1e-3)
    np.testing.assert_allclose(np.delete(found["deviation"], 1), np.delete(expected[1], 1), atol=5.1e-3)
    assert found["deviation"][1] == max(found["deviation"]), "a constant channel is not blown up"
