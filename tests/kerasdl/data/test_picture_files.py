import numpy as np
import pytest
from PIL import Image

from kerasdl.data import picture_files
from kerasdl.errors import UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def save(path, color=RED, size=(12, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)
    return path


def make_folder(root, counts, suffix=".png"):
    for name, count in counts.items():
        for index in range(count):
            save(root / name / f"{index:03}{suffix}")
    return root


def load_one(path, size=8, **options):
    images, labels, skipped = picture_files.load([(path, 0)], size=size, **options)
    assert (images.shape, images.dtype) == ((1, size, size, 3), np.uint8)
    assert (labels.tolist(), labels.dtype) == ([0], np.int32)
    assert skipped == []
    return images[0]


def assert_color(pixels, color, tolerance=0):
    assert np.abs(pixels.astype(int) - color).max() <= tolerance


# --- scan ---


def test_scan_lists_classes_and_pictures_in_order_of_names(tmp_path, capsys):
    make_folder(tmp_path, {"dog": 2, "cat": 1})
    save(tmp_path / "cat" / "holiday" / "B.JPEG")
    save(tmp_path / "cat" / ".hidden.png")
    save(tmp_path / ".git" / "x.png")
    save(tmp_path / "__MACOSX" / "cat" / "000.png")
    (tmp_path / "read me.txt").write_text("")
    found = picture_files.scan(tmp_path)
    assert found.class_names == ("cat", "dog")
    names = [(path.relative_to(tmp_path).as_posix(), label) for path, label in found.splits["train"]]
    assert names == [("cat/000.png", 0), ("cat/holiday/B.JPEG", 0), ("dog/000.png", 1), ("dog/001.png", 1)]
    assert list(found.splits) == ["train"]
    assert capsys.readouterr().err == ""


def test_two_class_folders_that_look_alike_are_named(tmp_path):
    make_folder(tmp_path, {"caf\u00e9": 2, "cafe\u0301": 2, "tea": 1})
    with pytest.raises(UserError, match="two class folders that are shown as 'caf\u00e9'"):
        picture_files.scan(tmp_path)


@pytest.mark.parametrize(
    "names", [("train", "validation", "test"), ("Training", "val", "Testing"), ("train", "valid", "TEST")]
)
def test_scan_takes_splits_with_the_classes_of_train(tmp_path, names):
    make_folder(tmp_path / names[0], {"ant": 1, "cat": 2, "dog": 3})
    make_folder(tmp_path / names[1], {"dog": 1})
    make_folder(tmp_path / names[2], {"cat": 1, "dog": 2})
    found = picture_files.scan(tmp_path)
    assert found.class_names == ("ant", "cat", "dog")
    labels = {name: [label for _, label in examples] for name, examples in found.splits.items()}
    assert labels == {"train": [0, 1, 1, 2, 2, 2], "validation": [2], "test": [1, 2, 2]}


def test_scan_mentions_files_of_other_formats(tmp_path, capsys):
    make_folder(tmp_path, {"cat": 1, "dog": 1})
    for index in range(5):
        (tmp_path / "dog" / f"{index}.heic").write_bytes(b"?")
    picture_files.scan(tmp_path)
    error = capsys.readouterr().err
    assert error.startswith("Left out 5 files that are no JPEG, PNG")
    assert "0.heic" in error
    assert "and 2 more" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "no sub-folder, and 0 pictures lie in it directly"),
        ({".": 3}, "no sub-folder, and 3 pictures lie in it directly"),
        ({"cat": 0, "dog": 0}, "holds no picture; expected files in JPEG"),
        ({"cat": 2, "dog": 0, "eel": 0}, "class folder 'dog' in .* holds no picture"),
        ({"cat": 2}, "only the class 'cat'; expected at least two"),
        ({"train/cat": 1, "train/dog": 1, "horse": 1}, "both 'train' and 'horse'"),
        ({"validation/cat": 1, "test/cat": 1}, "holds the splits test, validation; expected train"),
        ({"train/cat": 1, "val/cat": 1, "valid/cat": 1}, "at most one folder each"),
        ({"train/cat": 1, "train/dog": 1, "test/eel": 1}, "has the class 'eel', which train does not have"),
        ({"train/cat": 1, "train/dog": 1, "test/cat": 0}, "test holds no picture"),
    ],
)
def test_scan_names_what_is_wrong_with_a_folder(tmp_path, counts, message):
    for name in counts:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    make_folder(tmp_path, counts)
    with pytest.raises(UserError, match=message) as caught:
        picture_files.scan(tmp_path)
    assert "\n" not in str(caught.value)


def test_scan_of_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"There is no folder .*nowhere;"):
        picture_files.scan(tmp_path / "nowhere")


# --- find ---


def test_find_takes_named_files_whatever_their_names_and_of_folders_those_named_as_pictures(tmp_path):
    make_folder(tmp_path / "photos", {"b": 1, "a": 2})
    save(tmp_path / "photos" / "a.JPG")
    (tmp_path / "photos" / "read me.txt").touch()
    (tmp_path / "photos" / "folder.png").mkdir()
    named = [tmp_path / "scan.tiff", tmp_path / "photos" / "read me.txt", tmp_path / "missing.png"]
    inside = ["a/000.png", "a/001.png", "a.JPG", "b/000.png"]
    found = picture_files.find([named[0], tmp_path / "photos", *named[1:]])
    assert found == [named[0], *(tmp_path / "photos" / name for name in inside), *named[1:]]


def test_find_names_where_there_is_no_picture(tmp_path):
    (tmp_path / "notes.txt").touch()
    for paths, named in (([tmp_path, tmp_path / "."], f"{tmp_path}, {tmp_path}"), ([], "nothing")):
        with pytest.raises(UserError) as caught:
            picture_files.find(paths)
        message = str(caught.value)
        assert message.startswith(f"There are no pictures in {named}; expected files named as pictures")
        assert "\n" not in message


LEFT_OVER = (".ipynb_checkpoints/0.jpg", "__MACOSX/._0.jpg", "._0.jpg", "Thumbs.db")


@pytest.mark.parametrize("read", ["scan", "find"])
def test_left_overs_are_passed_over_and_other_pictures_named(tmp_path, read, capsys):
    make_folder(tmp_path, {"cat": 6, "dog": 6})
    for name in LEFT_OVER:
        for place in (tmp_path, tmp_path / "cat"):
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_bytes(b"?")
    for name in ("cat/scan.tif", "dog/photo.HEIC"):
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / "dog" / "loop").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path)
    if read == "find":
        found = [(path, 0) for path in picture_files.find([tmp_path])]
    else:
        folder = picture_files.scan(tmp_path)
        assert folder.class_names == ("cat", "dog")
        found = folder.splits["train"]
    images, _, _ = picture_files.load(found, size=4, strict=True)
    error = capsys.readouterr().err
    if read == "find":
        assert len(images) == 12
    assert error.startswith("Left out 2 files that are no JPEG")
    assert "scan.tif" in error
    assert "photo.HEIC" in error
    assert error.count("\n") == 1


def test_a_class_can_be_a_link_and_pictures_beside_the_classes_are_named(tmp_path, capsys):
    make_folder(tmp_path / "elsewhere", {"cats": 3})
    make_folder(tmp_path / "photos", {"dog": 2})
    save(tmp_path / "photos" / "lost.jpg")
    (tmp_path / "photos" / "cat").symlink_to(tmp_path / "elsewhere" / "cats")
    found = picture_files.scan(tmp_path / "photos")
    assert found.class_names == ("cat", "dog")
    assert [label for _, label in found.splits["train"]] == [0, 0, 0, 1, 1]
    assert "Left out 1 pictures that lie beside the class folders" in capsys.readouterr().err


def test_a_folder_of_other_formats_alone_names_them(tmp_path):
    (tmp_path / "scan.tif").touch()
    with pytest.raises(UserError, match=r"no pictures in .*\(1 other files are there: .*scan.tif\)"):
        picture_files.find([tmp_path])


# --- split ---


def listed(root, counts):
    """Files of different contents, which are no pictures."""
    examples = []
    for label, (name, count) in enumerate(sorted(counts.items())):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (root / name / f"{index}.jpg").write_text(f"{name} {index}")
            examples.append((root / name / f"{index}.jpg", label))
    return examples


def test_split_loses_nothing_and_keeps_the_order_of_names(tmp_path):
    examples = listed(tmp_path, {"cat": 60, "dog": 20})
    parts = picture_files.split(examples[::-1], held_out=0.2, test_ratio=0.1, seed=0)
    assert list(parts) == ["train", "validation", "test"]
    assert sorted(example for part in parts.values() for example in part) == sorted(examples)
    assert all(part == sorted(part) for part in parts.values())
    assert all({label for _, label in part} == {0, 1} for part in parts.values())
    assert picture_files.split(examples, held_out=0.2, test_ratio=0.1, seed=0) == parts
    assert picture_files.split(examples, held_out=0.2, test_ratio=0.1, seed=1) != parts


def test_split_goes_by_content_wherever_a_file_lies_and_whatever_comes_or_goes(tmp_path):
    """P10: one more folder with one picture moved 15 of 20 test pictures into the training."""
    examples = [(path, 0) for path, _ in listed(tmp_path / "A", {"holiday": 200})]
    before = picture_files.split(examples, seed=0)
    (tmp_path / "A" / "xmas").mkdir()
    (tmp_path / "A" / "xmas" / "tree.jpg").write_text("tree")
    after = picture_files.split([*examples, (tmp_path / "A" / "xmas" / "tree.jpg", 0)], seed=0)
    fewer = picture_files.split(examples[::3], seed=0)
    for name, part in before.items():
        assert {*part} == {*after[name]} & {*examples}
        assert {*fewer[name]} == {*part} & {*examples[::3]}
    for path, _ in examples:
        path.rename(path.with_name(f"renamed {path.name}"))
    (tmp_path / "A").rename(tmp_path / "B")
    renamed = [(tmp_path / "B" / "holiday" / f"renamed {path.name}", 0) for path, _ in examples]
    moved = picture_files.split(renamed, seed=0)
    for name, part in before.items():
        assert sorted(f"renamed {path.name}" for path, _ in part) == [path.name for path, _ in moved[name]]


def test_split_keeps_equal_files_together(tmp_path):
    examples = listed(tmp_path / "a", {"cat": 50}) + listed(tmp_path / "b", {"cat": 50})
    parts = picture_files.split(examples, seed=0)
    for part in parts.values():
        names = [path.name for path, _ in part]
        assert all(names.count(name) == 2 for name in names)


def test_split_with_ratio_zero_gives_none_and_reads_nothing(tmp_path):
    assert [len(part) for part in picture_files.split(listed(tmp_path, {"cat": 9}), test_ratio=0.0, seed=0).values()][
        2
    ] == 0
    missing = [(tmp_path / "nowhere.jpg", 0)]
    whole = {"train": missing, "validation": [], "test": []}
    assert picture_files.split(missing, held_out=0, test_ratio=0, seed=0) == whole
    assert picture_files.split(missing, seed=0) == whole  # which decoding will tell of
    assert picture_files.split([], seed=0) == {"train": [], "validation": [], "test": []}


@pytest.mark.parametrize("ratios", [(-0.1, 0.1), (0.5, 0.5)])
def test_split_refuses_ratios_that_leave_no_training(tmp_path, ratios):
    with pytest.raises(ValueError, match="sum below 1"):
        picture_files.split(listed(tmp_path, {"cat": 3}), held_out=ratios[0], test_ratio=ratios[1], seed=0)


def test_equal_files_of_parts_that_were_divided_already_are_named(tmp_path, capsys):
    parts = {name: [path for path, _ in listed(tmp_path / name, {name: 5})] for name in ("train", "test")}
    picture_files.report_shared(parts)
    assert capsys.readouterr().err == ""
    for path in parts["test"][:2]:
        path.write_bytes(parts["train"][3].read_bytes())
    parts["test"][4].write_bytes(parts["train"][0].read_bytes())
    picture_files.report_shared(parts)
    error = capsys.readouterr().err
    assert error.startswith("3 of 5 pictures of test stand in train, too: ")
    assert f"{parts['test'][4]} is {parts['train'][0]}" in error
    assert error.count("\n") == 1


# --- load: colours ---


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.jpg", {"quality": 95}, 3),
        ("a.png", {}, 0),
        ("a.bmp", {}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.gif", {}, 0),
    ],
)
@pytest.mark.parametrize("size", [(12, 8), (3, 50), (1, 1), (301, 200)])
def test_red_stays_red_in_every_format_and_size(tmp_path, name, options, tolerance, size):
    assert_color(load_one(save(tmp_path / name, size=size, **options)), RED, tolerance)


@pytest.mark.parametrize(
    ("mode", "color", "name", "expected", "tolerance"),
    [
        ("L", 77, "a.png", (77, 77, 77), 0),
        ("L", 77, "a.jpg", (77, 77, 77), 1),
        ("1", 1, "a.png", WHITE, 0),
        ("CMYK", (0, 255, 255, 0), "a.jpg", RED, 3),
        ("CMYK", (255, 255, 0, 0), "a.jpg", BLUE, 3),
        ("RGBA", (0, 0, 0, 0), "a.png", WHITE, 0),  # transparent black
        ("RGBA", (255, 0, 0, 255), "a.webp", RED, 3),
        ("RGBA", (0, 0, 0, 51), "a.png", (204, 204, 204), 0),  # a fifth of black on white
        ("LA", (0, 0), "a.png", WHITE, 0),
        ("I;16", 65535, "a.png", WHITE, 0),
        ("I;16", 0x4D12, "a.png", (0x4D, 0x4D, 0x4D), 0),
    ],
)
def test_other_modes_become_rgb(tmp_path, mode, color, name, expected, tolerance):
    assert_color(load_one(save(tmp_path / name, color, mode=mode)), expected, tolerance)


def test_content_decides_over_the_ending_of_the_name(tmp_path):
    assert_color(load_one(save(tmp_path / "a.png", BLUE, format="JPEG")), BLUE, 3)


# --- load: geometry ---


@pytest.mark.parametrize("upright", [False, True])
def test_the_middle_is_cut_out_and_nothing_squashed(tmp_path, upright):
    # Green with a red square in the middle and blue ends, which the cut must lose whole.
    image = Image.new("RGB", (96, 32), BLUE)
    image.paste(GREEN, (32, 0, 64, 32))
    image.paste(RED, (40, 8, 56, 24))
    if upright:
        image = image.transpose(Image.Transpose.ROTATE_90)
    image.save(tmp_path / "a.png")
    pixels = load_one(tmp_path / "a.png", size=32)
    expected = np.full((32, 32, 3), GREEN)
    expected[8:24, 8:24] = RED
    np.testing.assert_array_equal(pixels, expected)


def test_shrinking_is_antialiased(tmp_path):
    checkers = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checkers).save(tmp_path / "a.png")
    assert_color(load_one(tmp_path / "a.png"), (127.5, 127.5, 127.5), 3)


def test_resizing_is_what_an_export_can_repeat_in_tensorflow(tmp_path):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    for size in ((61, 40), (40, 61), (9, 9)):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        side = min(size)
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        square = pixels[top : top + side, left : left + side].astype(np.float32)
        expected = tf.image.resize(square, (16, 16), "bilinear", antialias=True).numpy()
        assert np.abs(load_one(tmp_path / "a.png", size=16) - expected).max() <= 1.5


# --- load: order, damage ---


def test_pictures_keep_the_order_of_the_examples(tmp_path):
    examples = [(save(tmp_path / f"{index}.png", (index, 0, 0)), index % 3) for index in range(40)][::-1]
    images, labels, _ = picture_files.load(examples, size=2)
    assert images[:, 0, 0, 0].tolist() == list(range(40))[::-1]
    assert labels.tolist() == [index % 3 for index in range(40)][::-1]


def broken_pictures(root):
    """One file for each kind of damage; gives the file and a part of the expected reason."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    root.mkdir()
    cases = {}
    for suffix in (".jpg", ".png", ".bmp", ".gif", ".webp"):
        path = root / f"truncated{suffix}"
        noise.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        cases[path] = ""
    (root / "empty.jpg").write_bytes(b"")
    (root / "text.jpg").write_text("<html>404 not found</html>")
    noise.save(root / "tiff.png", format="TIFF")
    for name in ("empty.jpg", "text.jpg", "tiff.png"):
        cases[root / name] = "no JPEG, PNG, GIF, BMP or WebP inside"
    cases[root / "missing.jpg"] = "No such file"
    return cases


def test_broken_pictures_are_left_out_with_their_reason(tmp_path, capsys):
    cases = broken_pictures(tmp_path / "cat")
    good = [save(tmp_path / "cat" / f"good{index}.png", color) for index, color in enumerate((GREEN, BLUE))]
    examples = [(good[0], 0), *((path, 0) for path in cases), (good[1], 1)]
    images, labels, skipped = picture_files.load(examples, size=4)
    assert_color(images, np.array([GREEN, BLUE])[:, None, None])
    assert labels.tolist() == [0, 1]
    assert [path for path, _ in skipped] == list(cases)
    for path, reason in skipped:
        assert reason
        assert cases[path] in reason
    error = capsys.readouterr().err
    assert error.startswith(f"Left out {len(cases)} of {len(examples)} pictures, which cannot be decoded: ")
    assert str(skipped[0][0]) in error
    assert f"and {len(cases) - 3} more" in error
    assert error.count("\n") == 1


def test_whole_pictures_are_loaded_silently(tmp_path, capsys):
    load_one(save(tmp_path / "a.png"), strict=True)
    assert capsys.readouterr().err == ""


def test_strict_raises_at_a_broken_picture(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"?")
    with pytest.raises(UserError, match=r"1 of 2 pictures cannot be decoded: .*bad\.jpg \(no JPEG"):
        picture_files.load([(save(tmp_path / "a.png"), 0), (tmp_path / "bad.jpg", 0)], size=4, strict=True)


def test_a_class_of_broken_pictures_is_the_users_mistake(tmp_path):
    (tmp_path / "dog").mkdir()
    examples = [(save(tmp_path / "cat" / "a.png"), 0)]
    for name in ("b.jpg", "c.jpg"):
        (tmp_path / "dog" / name).write_bytes(b"?")
        examples.append((tmp_path / "dog" / name, 1))
    with pytest.raises(UserError, match=r"Every picture of a class is broken: .*replace those in .*dog\.$"):
        picture_files.load(examples, size=4)


def test_a_picture_that_would_fill_the_memory_counts_as_broken(tmp_path):
    large = save(tmp_path / "large.png", size=(3000, 1000), mode="1", color=1)
    bomb = save(tmp_path / "bomb.png", size=(60000, 3000), mode="1", color=1)
    images, _, skipped = picture_files.load([(large, 0), (bomb, 0)], size=4)
    assert_color(images, WHITE)
    assert skipped == [(bomb, "more than 178 million pixels")]


def test_libraries_behind_the_decoders_write_nothing(tmp_path, capfd):
    (tmp_path / "a.jpg").write_bytes(save(tmp_path / "whole.jpg").read_bytes()[:200])
    assert picture_files.decode([tmp_path / "a.jpg"], size=4)[2] == [(tmp_path / "a.jpg", "a damaged JPEG")]
    assert capfd.readouterr().err == ""


def test_no_example_gives_empty_arrays():
    images, labels, skipped = picture_files.load([], size=4)
    assert (images.shape, labels.shape, skipped) == ((0, 4, 4, 3), (0,), [])


def test_size_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1 pixel"):
        picture_files.load([], size=0)


def test_from_folder_to_arrays(tmp_path):
    for index in range(10):
        save(tmp_path / "red" / f"{index}.png", (255, index, 0))
        save(tmp_path / "blue" / f"{index}.png", (index, 0, 255))
    found = picture_files.scan(tmp_path)
    parts = picture_files.split(found.splits["train"], seed=0)
    for part in parts.values():
        images, labels, _ = picture_files.load(part, size=4)
        assert {*labels.tolist()} == {0, 1}
        for image, label in zip(images, labels, strict=True):
            assert_color(image, {"red": RED, "blue": BLUE}[found.class_names[label]], 10)


def test_patches_are_cut_out_of_pictures_without_scaling(tmp_path):
    pixels = np.arange(20 * 30 * 3, dtype=np.uint16).reshape(20, 30, 3).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[:7, :40]).save(tmp_path / "small.png")
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "grey.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    names = ["a.png", "small.png", "grey.png", "broken.jpg"]
    found, skipped = picture_files.patches([tmp_path / name for name in names], size=8, count=5, seed=1)
    assert found.shape == (10, 8, 8, 3)
    assert [path.name for path, _ in skipped] == ["small.png", "broken.jpg"]
    assert skipped[0][1] == "30x7 pixels, smaller than a patch of 8"
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (8, 8), (0, 1)).transpose(0, 1, 3, 4, 2)
    places = {tuple(np.argwhere((windows == patch).all((2, 3, 4)))[0]) for patch in found[:5]}
    assert len(places) > 1
    assert (found[5:] == found[5:, :, :, :1]).all()
    # Of one picture they do not depend on the others, but on the seed.
    np.testing.assert_array_equal(picture_files.patches([tmp_path / "a.png"], size=8, count=5, seed=1)[0], found[:5])
    assert (picture_files.patches([tmp_path / "a.png"], size=8, count=5, seed=2)[0] != found[:5]).any()
    assert picture_files.patches([tmp_path / "small.png"], size=8, count=5, seed=1)[0].shape == (0, 8, 8, 3)
    with pytest.raises(ValueError, match="size is 0 and count 5"):
        picture_files.patches([], size=0, count=5, seed=1)
