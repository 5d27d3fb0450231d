import numpy as np
import pytest

from kerasdl.data import tfds
from kerasdl.errors import UserError


def test_missing_data_names_the_folder_and_two_ways_out(tmp_path, monkeypatch):
    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("tensorflow_datasets.builder", offline)
    with pytest.raises(UserError) as error:
        tfds.images("cifar10", "train", tmp_path)
    message = str(error.value)
    assert "\n" not in message
    for part in (str(tmp_path), "no network", "--data-dir", "KERASDL_DATA_DIR"):
        assert part in message


def test_without_a_network_the_download_is_not_tried_for_minutes(tmp_path, monkeypatch):
    def unknown(host, port):
        raise OSError(f"{host} is not known")

    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", unknown)
    monkeypatch.setattr(
        "tensorflow_datasets.core.DatasetBuilder.download_and_prepare", lambda *_, **__: pytest.fail("tried")
    )
    with pytest.raises(UserError, match=r"cifar10 is not in .*could not be downloaded \(\S+ is not known\)"):
        tfds.images("cifar10", "train", tmp_path)


def test_the_newest_version_counts():
    assert tfds._version("3.0.10") > tfds._version("3.0.2")


@pytest.mark.real
def test_cifar10_is_what_its_paper_says(data_dir):
    images, labels = tfds.images("cifar10", "test", data_dir)
    assert images.shape == (10_000, 32, 32, 3)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [1000] * 10
    assert tfds.class_names("cifar10", data_dir)[3] == "cat"
    assert 120 < images.mean() < 123


@pytest.fixture
def stored(tmp_path):
    """A TFDS folder with a small set of texts, made on the spot."""
    import tensorflow_datasets as source

    written = [("Süß 字 🙂", 1), ("", 0), ("two\nlines", -1)]
    source.dataset_builders.store_as_tfds_dataset(
        name="notes",
        version="1.0.0",
        features=source.features.FeaturesDict(
            {"text": source.features.Text(), "label": source.features.ClassLabel(names=["bad", "good"])}
        ),
        split_datasets={"train": [(key, {"text": text, "label": label}) for key, (text, label) in enumerate(written)]},
        data_dir=tmp_path,
        disable_shuffling=True,
    )
    return tmp_path


def test_texts_and_text_are_what_was_stored(stored):
    texts, labels = tfds.texts("notes", "train", stored)
    assert texts == ["Süß 字 🙂", "", "two\nlines"]
    assert (labels.tolist(), labels.dtype) == ([1, 0, -1], np.int32)
    assert tfds.texts("notes", "train[1:]", stored)[0] == ["", "two\nlines"]
    assert tfds.text("notes", "train", stored) == "Süß 字 🙂\n\ntwo\nlines"


@pytest.fixture
def pictures(tmp_path):
    """A TFDS folder with four pictures in two splits, and what they hold."""
    import tensorflow_datasets as source
    from PIL import Image

    splits = {
        "train": [("b.jpg", ["A dog.", "Süß 🙂\n"]), ("a.jpg", [])],
        "rest": [("d.jpg", ["One."]), ("c.jpg", ["Two."])],
    }
    for index, name in enumerate("abcd"):
        Image.new("RGB", (8 + index, 6), (50 * index, 0, 0)).save(tmp_path / f"{name}.jpg", quality=50 + index)
    source.dataset_builders.store_as_tfds_dataset(
        name="photos",
        version="1.0.0",
        features=source.features.FeaturesDict(
            {
                "image": source.features.Image(encoding_format="jpeg"),
                "image/filename": source.features.Text(),
                "captions": source.features.Sequence({"id": np.int64, "text": source.features.Text()}),
            }
        ),
        split_datasets={
            split: [
                (
                    name,
                    {
                        "image": tmp_path / name,
                        "image/filename": name,
                        "captions": [{"id": 1, "text": text} for text in texts],
                    },
                )
                for name, texts in examples
            ]
            for split, examples in splits.items()
        },
        data_dir=tmp_path,
        disable_shuffling=True,
    )
    stored = [(name, (tmp_path / name).read_bytes(), texts) for name, texts in splits["train"] + splits["rest"]]
    return tmp_path, stored


def test_captioned_gives_the_stored_bytes_and_all_captions_in_order(pictures):
    data_dir, stored = pictures
    assert list(tfds.captioned("photos", "train+rest", data_dir)) == stored
    assert list(tfds.captioned("photos", "rest", data_dir)) == stored[2:]


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_records_are_the_users_to_replace(pictures, damage):
    data_dir, stored = pictures
    (records,) = data_dir.glob("photos/1.0.0/*train.tfrecord*")
    if damage == "cut":
        records.write_bytes(records.read_bytes()[:-9])
    else:
        records.unlink()
    with pytest.raises(UserError) as error:
        list(tfds.captioned("photos", "train", data_dir))
    message = str(error.value)
    assert "\n" not in message
    for part in ("photos", str(data_dir / "photos" / "1.0.0"), "are damaged", "copy them anew"):
        assert part in message
    assert list(tfds.captioned("photos", "rest", data_dir)) == stored[2:]


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "information"])
def test_a_damaged_data_set_is_one_line_with_its_folder(stored, damage):
    folder = stored / "notes" / "1.0.0"
    (records,) = folder.glob("*.tfrecord*")
    if damage == "missing":
        records.unlink()
    elif damage == "information":
        (folder / "dataset_info.json").write_text("{")
    else:
        records.write_bytes(records.read_bytes()[:-9] if damage == "cut" else b"")
    for read in (tfds.texts, tfds.text):
        with pytest.raises(UserError) as error:
            read("notes", "train", stored)
        message = str(error.value)
        assert "\n" not in message
        assert "{{" not in message
        for part in ("records of notes", str(folder), "are damaged", "copy them anew"):
            assert part in message


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_pictures_of_a_data_set_are_one_line(tmp_path, damage):
    import tensorflow_datasets as source

    black = np.zeros((8, 8, 3), np.uint8)
    source.dataset_builders.store_as_tfds_dataset(
        name="squares",
        version="1.0.0",
        features=source.features.FeaturesDict(
            {"image": source.features.Image(shape=(8, 8, 3)), "label": source.features.ClassLabel(names=["a", "b"])}
        ),
        split_datasets={"train": [(key, {"image": black, "label": key % 2}) for key in range(3)]},
        data_dir=tmp_path,
        disable_shuffling=True,
    )
    assert tfds.images("squares", "train", tmp_path)[0].shape == (3, 8, 8, 3)
    (records,) = tmp_path.glob("squares/1.0.0/*.tfrecord*")
    records.unlink() if damage == "missing" else records.write_bytes(records.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"records of squares in .*1\.0\.0 are damaged .*; copy them anew"):
        tfds.images("squares", "train", tmp_path)


@pytest.mark.real
def test_imdb_is_what_its_paper_says(data_dir):
    texts, labels = tfds.texts("imdb_reviews/plain_text", "test", data_dir)
    assert len(texts) == 25_000
    assert labels.dtype == np.int32
    assert np.bincount(labels).tolist() == [12_500] * 2
    assert tfds.class_names("imdb_reviews/plain_text", data_dir) == ["neg", "pos"]
    worst = np.bincount(labels[["worst" in text for text in texts]])
    assert worst[0] > 5 * worst[1]  # texts and labels belong together


@pytest.mark.real
def test_imdb_without_labels_has_minus_one(data_dir):
    texts, labels = tfds.texts("imdb_reviews/plain_text", "unsupervised[:100]", data_dir)
    assert len(texts) == 100
    assert labels.tolist() == [-1] * 100


@pytest.mark.real
def test_tiny_shakespeare_is_1_115_394_characters_of_65_kinds(data_dir):
    parts = [tfds.text("tiny_shakespeare", split, data_dir) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [1_003_854, 55_770, 55_770]
    assert len(set("".join(parts))) == 65
    assert parts[0].startswith("First Citizen:\nBefore we proceed")
