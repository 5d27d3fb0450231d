import json
import resource
import shutil
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from kerasdl.data import captioned_pictures, feature_cache
from kerasdl.errors import UserError


def pictures(folder, count, first=0):
    folder.mkdir(exist_ok=True)
    for index in range(first, first + count):
        Image.new("RGB", (9, 5), (index, 2 * index, 255 - index)).save(folder / f"{index:03}.png")
    return sorted(folder.glob("*.png"))


class Encoder:
    """Keeps what it was given; a picture's features are its mean colour and three times as much, [2, 3]."""

    def __init__(self, stop_after=None):
        self.batches = []
        self.stop_after = stop_after

    def __call__(self, images):
        assert (images.dtype, images.shape[1:]) == (np.uint8, (4, 4, 3))
        if len(self.batches) == self.stop_after:
            raise KeyboardInterrupt
        self.batches.append(images)
        mean = images.mean(axis=(1, 2), dtype=np.float32)
        return np.stack([mean, 3 * mean], axis=1)

    @property
    def encoded(self):
        """How many pictures it was given; no picture of a test is black, as those are that fill a batch up."""
        return sum(int(batch.any(axis=(1, 2, 3)).sum()) for batch in self.batches)


def compute(paths, folder, encode=None, *, batch_size=4, encoder="mean", progress=False, **options):
    return feature_cache.features(
        paths,
        encode or Encoder(),
        **({"size": 4} | options),
        encoder=encoder,
        folder=folder,
        batch_size=batch_size,
        progress=progress,
    )


def expected(paths):
    color = np.array([np.asarray(Image.open(path))[0, 0] for path in paths], np.float16)
    return np.stack([color, 3 * color], axis=1)


def assert_right(found, paths):
    assert found.kept.tolist() == list(range(len(paths)))
    np.testing.assert_array_equal(found.array[found.rows], expected(paths))


def file(folder, suffix):
    (path,) = folder.glob(f"*.{suffix}")
    return path


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr(feature_cache, "SAVE_EVERY", 8)


# --- what is given ---


def test_each_picture_has_its_row_in_a_read_only_map_of_half_precision(tmp_path, capsys):
    paths = pictures(tmp_path / "a", 11)[::-1]
    encode = Encoder()
    found = compute(paths, tmp_path / "new" / "cache", encode)
    assert_right(found, paths)
    assert isinstance(found.array, np.memmap)
    assert (found.array.dtype, found.array.shape) == (np.float16, (11, 2, 3))
    assert (found.rows.dtype, found.kept.dtype) == (np.int64, np.int64)
    with pytest.raises(ValueError, match="read-only"):
        found.array[0] = 0
    assert [len(batch) for batch in encode.batches] == [4, 4, 4]
    assert encode.encoded == 11
    assert capsys.readouterr().err == ""


def test_the_encoder_sees_what_the_loader_of_captioned_pictures_gives(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    encode = Encoder()
    compute([tmp_path / "a.png"], tmp_path / "cache", encode)
    images, _, _ = captioned_pictures.load([tmp_path / "a.png"], size=4)
    np.testing.assert_array_equal(encode.batches[0][:1], images)


def test_what_is_cached_is_not_computed_again_and_new_pictures_are_added(tmp_path):
    paths = pictures(tmp_path / "a", 6)
    compute(paths, tmp_path / "cache")
    again = Encoder()
    assert_right(compute(paths[::-1], tmp_path / "cache", again), paths[::-1])
    assert again.batches == []
    paths = pictures(tmp_path / "a", 3, first=6)
    assert_right(compute(paths, tmp_path / "cache", again), paths)
    assert again.encoded == 3


def test_a_renamed_picture_is_known_a_changed_one_is_not_and_equal_ones_share_a_row(tmp_path):
    paths = pictures(tmp_path / "a", 5)
    compute(paths, tmp_path / "cache")
    paths[0] = paths[0].rename(tmp_path / "renamed.png")
    shutil.copy(paths[2], paths[1])
    Image.new("RGB", (9, 5), (200, 100, 50)).save(paths[4])
    encode = Encoder()
    found = compute(paths, tmp_path / "cache", encode)
    assert_right(found, paths)
    assert encode.encoded == 1
    assert found.rows[1] == found.rows[2]
    assert len(set(found.rows.tolist())) == 4


def test_another_encoder_or_size_has_another_cache_and_stands_in_its_index(tmp_path):
    paths = pictures(tmp_path / "a", 3)
    compute(paths, tmp_path / "cache", encoder="VGG16, ImageNet")
    other = compute(paths, tmp_path / "cache", lambda images: np.ones((4, 7)), encoder="VGG19")
    assert (other.array.shape, other.array.min()) == ((3, 7), 1)
    larger = compute(paths, tmp_path / "cache", lambda images: np.full(4, images.shape[1]), encoder="VGG19", size=6)
    assert larger.array.tolist() == [6, 6, 6]
    compute(paths, tmp_path / "cache", lambda images: 1 / 0, encoder="VGG16, ImageNet")
    indices = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("*.json")]
    assert sorted((index["encoder"], index["size"]) for index in indices) == [
        ("VGG16, ImageNet", 4),
        ("VGG19", 4),
        ("VGG19", 6),
    ]


def test_values_beyond_half_precision_are_clipped(tmp_path):
    values = [1e6, -1e6, np.inf, 65519.0, 1.5]
    found = compute(pictures(tmp_path / "a", 1), tmp_path / "cache", lambda images: np.array([values] * 4, np.float32))
    assert found.array[0].tolist() == [65504, -65504, 65504, 65504, 1.5]


def test_a_number_a_picture(tmp_path):
    paths = pictures(tmp_path / "a", 6)
    for _ in range(2):
        found = compute(paths, tmp_path / "cache", lambda images: images[:, 0, 0, 0].astype(float))
        assert found.array[found.rows].tolist() == [0, 1, 2, 3, 4, 5]


def test_no_picture(tmp_path):
    for cached in (0, 3):
        compute(pictures(tmp_path / "a", cached), tmp_path / "cache")
        found = compute([], tmp_path / "cache", lambda images: 1 / 0)
        assert (len(found.array), found.rows.tolist(), found.kept.tolist()) == (cached, [], [])


# --- broken pictures ---


def test_broken_pictures_are_left_out_and_named_and_the_others_know_their_places(tmp_path, capsys):
    paths = pictures(tmp_path / "a", 9)
    for index in (1, 4, 5, 6, 7):  # the whole second batch, among others
        paths[index].write_bytes(f"no picture {index // 6}".encode())
    paths[8] = tmp_path / "missing.png"
    encode = Encoder()
    found = compute(paths, tmp_path / "cache", encode)
    assert found.kept.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(found.array[found.rows], expected([paths[0], paths[2], paths[3]]))
    assert [len(batch) for batch in encode.batches] == [4]
    error = capsys.readouterr().err
    assert error.startswith(f"Left out 6 of 9 pictures, which cannot be decoded: {paths[1]} (no JPEG")
    assert error.endswith("and 3 more.\n")
    assert error.count("\n") == 1
    with pytest.raises(UserError, match="6 of 9 pictures cannot be decoded"):
        compute(paths, tmp_path / "cache", strict=True)
    with pytest.raises(UserError, match=r"1 of 1 pictures cannot be decoded: .*missing\.png \(.*No such file"):
        compute(paths[8:], tmp_path / "cache")


# --- interruption and damage ---


def test_an_interrupted_call_goes_on_where_it_stopped(tmp_path, small_steps):
    paths = pictures(tmp_path / "a", 20)
    with pytest.raises(KeyboardInterrupt):
        compute(paths, tmp_path / "cache", Encoder(stop_after=3))
    # Written after the index, and cut off: what a kill in the midst of writing leaves.
    with file(tmp_path / "cache", "float16").open("ab") as stream:
        stream.write(b"\xff" * 17)
    encode = Encoder()
    found = compute(paths, tmp_path / "cache", encode)
    assert_right(found, paths)
    assert encode.encoded == 20 - 8


@pytest.mark.parametrize("bytes_left", [0, 1, 12 * 5 + 3])
def test_a_truncated_data_file_loses_its_end_only(tmp_path, capsys, bytes_left):
    paths = pictures(tmp_path / "a", 9)
    compute(paths, tmp_path / "cache")
    data = file(tmp_path / "cache", "float16")
    data.write_bytes(data.read_bytes()[:bytes_left])
    encode = Encoder()
    assert_right(compute(paths, tmp_path / "cache", encode), paths)
    lost = 9 - bytes_left // 12
    assert encode.encoded == lost
    assert capsys.readouterr().err == f"{lost} rows of {data} are damaged; computing them anew.\n"
    data.unlink()
    assert_right(compute(paths, tmp_path / "cache"), paths)


def test_damaged_rows_are_computed_anew(tmp_path, capsys):
    paths = pictures(tmp_path / "a", 9)
    rows = compute(paths, tmp_path / "cache").rows
    data = file(tmp_path / "cache", "float16")
    content = bytearray(data.read_bytes())
    content[12 * rows[2] + 5] ^= 1
    content[12 * rows[8]] ^= 128
    data.write_bytes(content)
    encode = Encoder()
    assert_right(compute(paths, tmp_path / "cache", encode), paths)
    assert encode.encoded == 2
    assert capsys.readouterr().err == f"2 rows of {data} are damaged; computing them anew.\n"
    assert_right(compute(paths, tmp_path / "cache", lambda images: 1 / 0), paths)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace("[2, 3]", "[2, 4]"),
        lambda text: text.replace("[0, ", "[1, "),
        lambda text: "\x00" * len(text),
    ],
)
def test_a_damaged_index_is_computed_anew(tmp_path, capsys, damage):
    paths = pictures(tmp_path / "a", 5)
    in_use = compute(paths, tmp_path / "cache")
    index = file(tmp_path / "cache", "json")
    text = index.read_text()
    index.write_text(damage(text))
    assert index.read_text() != text
    encode = Encoder()
    assert_right(compute(paths[::-1], tmp_path / "cache", encode), paths[::-1])
    assert_right(in_use, paths)
    assert encode.encoded == 5
    assert capsys.readouterr().err == f"The index {index} is damaged; computing its features anew.\n"
    assert_right(compute(paths, tmp_path / "cache", lambda images: 1 / 0), paths)


@contextmanager
def largest_file(num_bytes):
    """Writing more fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("part", ["data", "index"])
def test_a_full_disk_is_the_users_to_mend_and_what_was_there_is_used(tmp_path, small_steps, part):
    paths = pictures(tmp_path / "a", 24)

    def encode(images):  # its rows take more than the index, or less
        return np.repeat(images[:, 0, 0, :1].astype(np.float32), 600 if part == "data" else 1, axis=1)

    compute(paths[:8], tmp_path / "cache", encode)
    index = file(tmp_path / "cache", "json")
    before = index.read_text()
    with largest_file(600 * 2 * 12 if part == "data" else len(before) + 9), pytest.raises(UserError) as caught:
        compute(paths, tmp_path / "cache", encode)
    assert "cannot be written (File too large); expected room" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert index.read_text() == before
    assert len(list((tmp_path / "cache").iterdir())) == 2
    again = Encoder()
    found = compute(paths, tmp_path / "cache", lambda images: (again(images), encode(images))[1])
    assert found.array[found.rows, 0].tolist() == list(range(24))
    assert again.encoded == 16


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)"):
        compute(pictures(tmp_path / "a", 1), tmp_path / "file" / "cache")


def test_a_second_call_with_the_same_cache_waits_for_the_first(tmp_path, capsys, small_steps):
    paths = pictures(tmp_path / "a", 20)
    first, second, backwards, found = Encoder(), Encoder(), paths[::-1], []
    other = threading.Thread(target=lambda: found.append(compute(backwards, tmp_path / "cache", second)))

    def encode(images):
        if not first.batches:
            other.start()
            other.join(0.5)  # without a lock it would be done by then, and its rows be overwritten
        return first(images)

    assert_right(compute(paths, tmp_path / "cache", encode), paths)
    other.join()
    assert_right(found[0], backwards)
    assert (first.encoded, second.encoded) == (20, 0)
    assert capsys.readouterr().err.startswith("Waiting for another process that fills the cache ")


# --- programming mistakes, progress ---


@pytest.mark.parametrize("returned", [np.ones((3, 5)), np.ones(()), np.ones((4, 0))])
def test_an_encoder_that_returns_another_number_of_rows_is_refused(tmp_path, returned):
    with pytest.raises(ValueError, match="of 4 pictures; expected a row for each; return"):
        compute(pictures(tmp_path / "a", 2), tmp_path / "cache", lambda images: returned)


def test_an_encoder_that_changes_under_its_name_is_refused(tmp_path):
    paths = pictures(tmp_path / "a", 3)
    compute(paths[:2], tmp_path / "cache")
    with pytest.raises(ValueError, match=r"shape \[7\], and the cache holds \[2, 3\]; .* name the encoder anew"):
        compute(paths, tmp_path / "cache", lambda images: np.ones((4, 7)))


@pytest.mark.parametrize(("options", "message"), [({"size": 0}, "size is 0"), ({"batch_size": 0}, "batch_size is 0")])
def test_sizes_below_one_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        compute(pictures(tmp_path / "a", 1), tmp_path / "cache", **options)


def test_off_a_terminal_progress_is_a_line_at_begin_and_end(tmp_path, capsys):
    paths = pictures(tmp_path / "a", 9)
    compute(paths[:5], tmp_path / "cache")
    compute(paths, tmp_path / "cache", progress=True)
    begin, end = capsys.readouterr().err.splitlines()
    index = file(tmp_path / "cache", "json")
    assert begin == f"Computing the features of 4 pictures for the cache {index}."
    assert end == "Computed them in 0 s."
    compute(paths, tmp_path / "cache", progress=True)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_progress_is_a_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    compute(pictures(tmp_path / "a", 9), tmp_path / "cache", progress=True)
    error = capsys.readouterr().err
    assert "100%" in error
    assert "Computing" not in error
