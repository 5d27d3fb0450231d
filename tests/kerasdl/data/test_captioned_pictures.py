import errno
import json
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kerasdl.data import captioned_pictures, tfds
from kerasdl.data.captioned_pictures import Captioned
from kerasdl.errors import UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def touch(folder, *names):
    """Makes files in the place of pictures, which `read` does not open."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(*names):
    return "image,caption\n" + "".join(f"{name},A {name[0]}.\n" for name in names)


def coco(images, annotations):
    return json.dumps(
        {
            "info": {},
            "images": [{"id": key, "file_name": name, "width": 8} for key, name in images],
            "annotations": [{"id": i, "image_id": key, "caption": text} for i, (key, text) in enumerate(annotations)],
        }
    )


def message_of(path, **options):
    with pytest.raises(UserError) as caught:
        captioned_pictures.read(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.count(";") >= 2  # what happened; what was expected; how to fix it
    return message


# --- read: formats ---


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("A.TSV", "\t")])
def test_a_table_gives_pictures_in_the_order_of_the_file_and_all_their_captions(tmp_path, capsys, name, separator):
    touch(tmp_path, "b.jpg", "a.jpg")
    rows = [
        ["image", " caption", "score"],
        ["b.jpg", '"A dog, and\ta ""cat""."', "1"],
        ["a.jpg", " A man.  ", "2"],
        ["./b.jpg", '"Two\nlines."', "3"],
        ["b.jpg", "Süß 字 🙂", "4"],
    ]
    path = write(tmp_path / name, "\ufeff" + "\r\n".join(separator.join(row) for row in rows))
    assert captioned_pictures.read(path) == {
        "train": Captioned(
            (tmp_path / "b.jpg", tmp_path / "a.jpg"),
            (('A dog, and\ta "cat".', "Two\nlines.", "Süß 字 🙂"), ("A man.",)),
        )
    }
    assert capsys.readouterr().err == (
        ""
        if name == "a.csv"
        else f"{path} is read with --quoting double, as line 2 shows; give another if that is wrong.\n"
    )


def test_a_caption_in_a_tsv_keeps_its_quotes(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    captions = ('"A dog runs.', '"A" is written on a wall.', 'A sign says "stop"')
    rows = [f"{name}.jpg\t{caption}" for name, caption in zip("abc", captions, strict=True)]
    path = write(tmp_path / "a.tsv", "\n".join(["image\tcaption", *rows, ""]))
    assert captioned_pictures.read(path)["train"].captions == tuple((caption,) for caption in captions)
    swallowing = write(tmp_path / "a.csv", 'image,caption\na.jpg,"A dog.\nb.jpg,A cat.\nc.jpg,A man."\n')
    assert "line 2: a field that begins with a double quote holds lines" in message_of(swallowing)
    read = captioned_pictures.read(swallowing, quoting="none")["train"].captions
    assert read == (('"A dog.',), ("A cat.",), ('A man."',))


def test_captions_of_coco(tmp_path, capsys):
    touch(tmp_path, "b.jpg", "a.jpg")
    content = coco([(7, "b.jpg"), ("x", "a.jpg")], [("x", "A man."), (7, "A dog.\n"), (7, "Cut \ud83d")])
    path = write(tmp_path / "a.json", content)
    assert captioned_pictures.read(path)["train"] == Captioned(
        (tmp_path / "b.jpg", tmp_path / "a.jpg"), (("A dog.", "Cut ?"), ("A man.",))
    )
    assert capsys.readouterr().err == ""


def test_blank_captions_and_pictures_without_any_are_left_out_and_counted(tmp_path, capsys):
    touch(tmp_path, "a.jpg", "b.jpg")
    path = write(tmp_path / "a.csv", 'image,caption\na.jpg,A dog.\n\nb.jpg,""\na.jpg, \nc.jpg,\nb.jpg,A cat.\n')
    expected = Captioned((tmp_path / "a.jpg", tmp_path / "b.jpg"), (("A dog.",), ("A cat.",)))
    assert captioned_pictures.read(path)["train"] == expected
    blank, without = capsys.readouterr().err.splitlines()
    assert blank == f"Left out 3 blank captions of {path}, the first at line 4."
    assert without == f"Left out 1 pictures of {path} that have no caption: c.jpg."
    names = [(1, "a.jpg"), (2, "b.jpg"), *((i, f"{i}.jpg") for i in range(3, 8))]
    path = write(tmp_path / "a.json", coco(names, [(1, "A dog."), (2, "A cat."), (3, " ")]))
    assert captioned_pictures.read(path)["train"] == expected
    blank, without = capsys.readouterr().err.splitlines()
    assert blank == f"Left out 1 blank captions of {path}, the first at annotations[2]."
    assert without == f"Left out 5 pictures of {path} that have no caption: 3.jpg, 4.jpg, 5.jpg and 2 more."


# --- read: folders ---


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "validation.tsv", "test.csv"),
        ("train.csv", "val.csv", "Testing.CSV"),
        ("captions_train2017.json", "captions_val2017.json", "test.csv"),
    ],
)
def test_a_folder_of_splits(tmp_path, capsys, names):
    for index, name in enumerate(names):
        touch(tmp_path, f"{index}.jpg")
        content = coco([(1, f"{index}.jpg")], [(1, "A dog.")])
        if not name.endswith("json"):
            content = table(f"{index}.jpg").replace(",", "\t" if name.endswith("tsv") else ",")
        write(tmp_path / name, content)
    touch(tmp_path, "read me.txt", ".train.csv", "test.jpg")
    splits = captioned_pictures.read(tmp_path)
    assert [(name, part.paths) for name, part in splits.items()] == [
        ("train", (tmp_path / "0.jpg",)),
        ("validation", (tmp_path / "1.jpg",)),
        ("test", (tmp_path / "2.jpg",)),
    ]
    assert capsys.readouterr().err == ""
    write(tmp_path / "vaildation.csv", "?")
    assert captioned_pictures.read(tmp_path) == splits
    assert capsys.readouterr().err == "Left out 1 files that are named as no split: vaildation.csv.\n"


def test_a_folder_with_one_captions_file_whatever_its_name(tmp_path):
    touch(tmp_path, "a.jpg", "read me.txt")
    write(tmp_path / "results.csv", table("a.jpg"))
    assert list(captioned_pictures.read(tmp_path)) == ["train"]


def test_pictures_lie_beside_or_in_images_or_where_it_is_said(tmp_path):
    path = write(tmp_path / "here" / "captions_train2017.json", coco([(1, "deep/a.jpg")], [(1, "A dog.")]))
    touch(tmp_path / "here", "deep/a.jpg")
    touch(tmp_path / "there", "deep/a.jpg")
    assert captioned_pictures.read(path)["train"].paths == (tmp_path / "here/deep/a.jpg",)
    assert captioned_pictures.read(path, images=tmp_path / "there")["train"].paths == (tmp_path / "there/deep/a.jpg",)
    touch(tmp_path / "here", "images/deep/a.jpg")
    assert captioned_pictures.read(path)["train"].paths == (tmp_path / "here/images/deep/a.jpg",)
    touch(tmp_path / "coco", "train2017/deep/a.jpg")
    assert captioned_pictures.read(path, images=tmp_path / "coco")["train"].paths == (
        tmp_path / "coco/train2017/deep/a.jpg",
    )


# --- read: mistakes ---


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "holds the files of no captions; expected train.csv"),
        ({"a.csv": "", "b.csv": ""}, "holds the files a.csv, b.csv; expected train.csv"),
        ({"val.csv": "", "test.csv": ""}, "holds the files test.csv, val.csv; expected train.csv"),
        ({"train.csv": "", "val.csv": "", "valid.json": ""}, "holds val.csv and valid.json, both validation;"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(tmp_path, files, expected):
    for name, content in files.items():
        write(tmp_path / name, content)
    message = message_of(tmp_path)
    assert expected in message
    assert str(tmp_path) in message


IMAGES = '{"images": [{"id": 1, "file_name": "a.jpg"}]'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.xlsx", "?", "is of no known format; expected a name that ends in .csv, .tsv or .json"),
        ("a.csv", "images,caption\na.jpg,x\n", "no column 'image' but images, caption;"),
        ("a.csv", "images,caption\na.jpg,x\n", "rename the column (did you mean 'images'?)."),
        ("a.csv", "image,comment\na.jpg,x\n", "no column 'caption' but image, comment;"),
        ("a.csv", "image;caption\na.jpg;x\n", "no column 'image' but image;caption; expected image and caption"),
        ("a.tsv", "image,caption\na.jpg,x\n", "separated by a tab;"),
        ("a.csv", "image,caption\na.jpg,A dog, and a cat.\n", "line 2: the row has 3 fields; expected 2"),
        ("a.csv", b"image,caption\na.jpg,caf\xe9\n", "line 2 has 0xe9 at byte 10 of the line"),
        ("a.csv", "", "is empty"),
        ("a.csv", "image,caption\n", "holds no caption; expected one or more for each picture"),
        ("a.csv", "image,caption\na.jpg, \n", "holds no caption"),
        ("a.csv", "image,caption\na.jpg,x\n ,y\n", "line 3: the picture is named ' '; expected a file within"),
        ("a.csv", "image,caption\n/etc/a.jpg,x\n", "line 2: the picture is named '/etc/a.jpg'; expected a file"),
        ("a.csv", "image,caption\n../a.jpg,x\n", "line 2: the picture is named '../a.jpg'; expected a file within"),
        ("a.csv", "image,caption\nb/../../a.jpg,x\n", "line 2: the picture is named 'b/../../a.jpg'"),
        ("a.csv", 'image,caption\n"b\n.jpg",x\n', "1 of 1 pictures of"),
        ("a.json", '{"images": [],\n  annotations', "line 2: this is no JSON (Expecting property name"),
        ("a.json", "[]", "has no list 'images'; expected captions as COCO's"),
        ("a.json", '{"images": {}}', "has no list 'images'"),
        ("a.json", IMAGES + "}", "has no list 'annotations'"),
        ("a.json", '{"images": ["a.jpg"]}', "images[0]: 'id' is missing or not a number or a string"),
        ("a.json", '{"images": [{"id": 1}]}', "images[0]: 'file_name' is missing or not a string"),
        ("a.json", coco([(1, "a.jpg"), (1, "b.jpg")], []), "images[1]: the id 1 is that of a.jpg, too"),
        ("a.json", coco([(1, "../a.jpg")], []), "images[0]: the picture is named '../a.jpg'"),
        ("a.json", coco([(1, "a.jpg")], [(1, "x"), (2, "y")]), "annotations[1]: the image_id is 2, which is the id of"),
        ("a.json", coco([(1, "a.jpg")], [(1, ["x"])]), "annotations[0]: 'caption' is missing or not a string"),
        ("a.json", IMAGES + ', "annotations": [{"caption": "x"}]}', "annotations[0]: 'image_id' is missing"),
        ("a.json", coco([(1, "a.jpg")], []), "holds no caption"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, name, content, expected):
    touch(tmp_path, "images/a.jpg", "images/b.jpg", "a.jpg")
    path = write(tmp_path / name, content)
    message = message_of(path)
    assert expected in message
    assert str(path) in message


def test_what_is_not_there_is_named(tmp_path):
    assert "There is no file or folder" in message_of(tmp_path / "nowhere")
    path = write(tmp_path / "a.csv", table("a.jpg"))
    assert "There is no folder" in message_of(path, images=path)


def test_missing_pictures_are_counted_and_the_first_named(tmp_path):
    names = [f"{letter}.jpg" for letter in "abcdef"]
    path = write(tmp_path / "a.csv", table(*names))
    (tmp_path / "f.jpg").mkdir()  # no file
    touch(tmp_path, "b.jpg")
    message = message_of(path)
    assert f"5 of 6 pictures of {path} are not in {tmp_path}: 'a.jpg', 'c.jpg', 'd.jpg' and 2 more;" in message
    touch(tmp_path, "images/a.jpg")
    assert f"5 of 6 pictures of {path} are not in {tmp_path / 'images'}: 'b.jpg', " in message_of(path)


def test_a_picture_in_two_splits_is_refused(tmp_path):
    touch(tmp_path, *(f"{letter}.jpg" for letter in "abcd"))
    write(tmp_path / "train.csv", table("a.jpg", "b.jpg", "c.jpg"))
    write(tmp_path / "val.csv", table("d.jpg"))
    write(tmp_path / "test.csv", table("c.jpg", "./a.jpg"))
    message = message_of(tmp_path)
    assert (
        f"2 pictures of {tmp_path / 'test.csv'} stand in {tmp_path / 'train.csv'}, too: {tmp_path / 'c.jpg'}" in message
    )
    write(tmp_path / "test.csv", table("d.jpg"))
    assert f"1 pictures of {tmp_path / 'test.csv'} stand in {tmp_path / 'val.csv'}, too" in message_of(tmp_path)


@pytest.mark.real
def test_flickr8k(data_dir):
    splits = captioned_pictures.read(data_dir / "flickr8k")
    assert {name: len(part.paths) for name, part in splits.items()} == {"train": 6000, "validation": 1000}
    assert {len(texts) for part in splits.values() for texts in part.captions} == {5}
    assert splits["train"].captions[0][1] == "Black dog chasing brown dog through snow"
    images, kept, skipped = captioned_pictures.load(splits["validation"].paths[:8], size=32, strict=True)
    assert (images.shape, kept.tolist(), skipped) == ((8, 32, 32, 3), list(range(8)), [])
    assert images.std() > 30


# --- from_tfds ---

COCO = {
    "train": {"COCO_train2014_02.jpg": ["A dog, and\na cat. ", 'A "dog".'], "COCO_train2014_01.jpg": ["Süß 字 🙂"]},
    "val": {"COCO_val2014_03.jpg": ["A man."]},
    "test": {"COCO_val2014_04.jpg": ["A bus."]},
    "restval": {"COCO_val2014_05.jpg": ["A cow."]},
}


@pytest.fixture(scope="module")
def data_dir_of_coco(tmp_path_factory):
    """A TFDS folder with a small set of the form of coco_captions; and beside it each picture."""
    import tensorflow_datasets as source

    root = tmp_path_factory.mktemp("tfds")

    def example(name, texts):
        pixels = np.random.default_rng(int(name[-5])).integers(0, 256, (24, 16, 3), np.uint8)
        Image.fromarray(pixels).save(root / name, quality=30)
        captions = [{"id": index, "text": text} for index, text in enumerate(texts)]
        return {"image": root / name, "image/filename": name, "image/id": 7, "captions": captions}

    source.dataset_builders.store_as_tfds_dataset(
        name="coco_captions",
        config="2014",
        version="1.1.0",
        features=source.features.FeaturesDict(
            {
                "image": source.features.Image(encoding_format="jpeg"),
                "image/filename": source.features.Text(),
                "image/id": np.int64,
                "captions": source.features.Sequence({"id": np.int64, "text": source.features.Text()}),
            }
        ),
        split_datasets={
            split: [(name, example(name, texts)) for name, texts in pictures.items()]
            for split, pictures in COCO.items()
        },
        data_dir=root,
        disable_shuffling=True,
    )
    return root


def assert_coco(splits, root, data_dir):
    of_tfds = {"train": COCO["train"] | COCO["restval"], "validation": COCO["val"], "test": COCO["test"]}
    assert splits == {
        name: Captioned(
            tuple(root / name / picture for picture in pictures),
            tuple(tuple(text.strip() for text in texts) for texts in pictures.values()),
        )
        for name, pictures in of_tfds.items()
    }
    for captioned in splits.values():
        for path in captioned.paths:
            assert path.read_bytes() == (data_dir / path.name).read_bytes()


def refused(data_dir, path):
    with pytest.raises(UserError) as caught:
        captioned_pictures.from_tfds(data_dir, path, progress=False)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_coco_is_written_once_as_files_that_read_takes(data_dir_of_coco, tmp_path, capsys):
    path = tmp_path / "deep" / "coco"
    splits = captioned_pictures.from_tfds(data_dir_of_coco, path, progress=False)
    assert_coco(splits, path, data_dir_of_coco)
    assert captioned_pictures.read(path) == splits
    assert captioned_pictures.from_tfds(tmp_path / "nowhere", path, progress=True) == splits
    assert [found.name for found in path.parent.iterdir() if found.name[0] != "."] == ["coco"]
    assert capsys.readouterr().err == ""


def interrupt_at(monkeypatch, name, error):
    """Makes writing the picture end in the middle."""
    write_bytes = Path.write_bytes

    def interrupted(path, content):
        if path.name != name:
            return write_bytes(path, content)
        write_bytes(path, content[: len(content) // 2])
        raise error

    monkeypatch.setattr(Path, "write_bytes", interrupted)


def test_an_interrupted_call_leaves_nothing_that_looks_whole_and_goes_on_where_it_stopped(
    data_dir_of_coco, tmp_path, monkeypatch
):
    path, partial = tmp_path / "coco", tmp_path / "coco.partial"
    with monkeypatch.context() as patch:
        interrupt_at(patch, "COCO_val2014_03.jpg", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            captioned_pictures.from_tfds(data_dir_of_coco, path, progress=False)
    assert not path.exists()
    half = (partial / "validation" / "COCO_val2014_03.jpg").stat().st_size
    assert 0 < half < (data_dir_of_coco / "COCO_val2014_03.jpg").stat().st_size
    # As after a crash of the machine: the length is right, the content was still on its way.
    emptied = partial / "train" / "COCO_val2014_05.jpg"
    emptied.write_bytes(bytes(emptied.stat().st_size))
    written = []
    write_bytes = Path.write_bytes
    monkeypatch.setattr(
        Path, "write_bytes", lambda file, content: written.append(file.name) or write_bytes(file, content)
    )
    assert_coco(captioned_pictures.from_tfds(data_dir_of_coco, path, progress=False), path, data_dir_of_coco)
    assert written == [f"COCO_val2014_0{number}.jpg" for number in (5, 3, 4)]
    assert not partial.exists()


def test_a_full_disk_is_named_and_costs_nothing_that_was_written(data_dir_of_coco, tmp_path, monkeypatch):
    path = tmp_path / "coco"
    with monkeypatch.context() as patch:
        interrupt_at(patch, "COCO_val2014_05.jpg", OSError(errno.ENOSPC, "No space left on device"))
        message = refused(data_dir_of_coco, path)
    assert f"{path} ([Errno 28] No space left on device); expected room and permission there; make room" in message
    assert not path.exists()
    # From now on it is known before anything is written: there is a byte too little for the rest.
    size = tfds.builder("coco_captions/2014", data_dir_of_coco).info.dataset_size
    free = size - sum(file.stat().st_size for file in (tmp_path / "coco.partial").rglob("*.jpg"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda where: usage._replace(free=free - 1))
    assert f"{path} (it needs 0.0 GiB, and 0.0 GiB are free); expected room" in refused(data_dir_of_coco, path)
    monkeypatch.setattr(shutil, "disk_usage", lambda where: usage._replace(free=free))
    assert_coco(captioned_pictures.from_tfds(data_dir_of_coco, path, progress=False), path, data_dir_of_coco)


def test_coco_that_is_missing_is_named_with_two_ways_out(tmp_path, monkeypatch):
    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("tensorflow_datasets.builder", offline)
    message = refused(tmp_path / "data", tmp_path / "coco")
    for part in ("coco_captions/2014 is not in", str(tmp_path / "data"), "no network", "--data-dir"):
        assert part in message
    assert not (tmp_path / "coco").exists()


def test_a_folder_of_something_else_is_not_touched_and_an_empty_one_is_taken(data_dir_of_coco, tmp_path):
    path = tmp_path / "coco"
    write(path / "train.csv", table("a.jpg"))
    assert f"{path} is there and holds something else than coco_captions" in refused(data_dir_of_coco, path)
    assert [file.name for file in path.iterdir()] == ["train.csv"]
    (path / "train.csv").unlink()
    (tmp_path / "link").symlink_to(path)
    assert_coco(
        captioned_pictures.from_tfds(data_dir_of_coco, tmp_path / "link", progress=False),
        tmp_path / "link",
        data_dir_of_coco,
    )
    assert len(list(path.iterdir())) == 6
    blocked = write(tmp_path / "file", "")
    assert "holds something else" in refused(data_dir_of_coco, blocked)
    assert "cannot be written to" in refused(data_dir_of_coco, blocked / "coco")


def test_of_several_processes_one_writes_and_the_others_wait(data_dir_of_coco, tmp_path, monkeypatch, capsys):
    path, found, written = tmp_path / "coco", [], []
    write_bytes = Path.write_bytes

    def call():
        found.append(captioned_pictures.from_tfds(data_dir_of_coco, path, progress=False))

    other = threading.Thread(target=call)

    def slow(file, content):
        if not written:
            other.start()
            other.join(0.5)  # without a lock it would be done by then
        written.append(file.name)
        return write_bytes(file, content)

    monkeypatch.setattr(Path, "write_bytes", slow)
    call()
    other.join()
    for splits in found:
        assert_coco(splits, path, data_dir_of_coco)
    assert (len(found), len(written)) == (2, 5)
    assert capsys.readouterr().err == f"Waiting for another process that writes {path}.\n"


def test_progress_of_writing_is_a_bar_on_a_terminal_and_elsewhere_two_lines(
    data_dir_of_coco, tmp_path, monkeypatch, capsys
):
    captioned_pictures.from_tfds(data_dir_of_coco, tmp_path / "coco", progress=True)
    begin, end = capsys.readouterr().err.splitlines()
    assert begin == f"Writing the 5 pictures of coco_captions/2014 to {tmp_path / 'coco'}."
    assert re.fullmatch(r"Wrote them in \d+ s\.", end)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    captioned_pictures.from_tfds(data_dir_of_coco, tmp_path / "other", progress=True)
    error = capsys.readouterr().err
    assert "100%" in error
    assert "Writing" not in error


# --- split ---


def captioned(root, count):
    root.mkdir(exist_ok=True)
    paths = tuple(root / f"{index}.jpg" for index in range(count))
    for path in paths:
        path.write_text(path.name)
    return Captioned(paths, tuple((path.stem,) * (1 + index % 3) for index, path in enumerate(paths)))


def test_split_is_by_content_of_the_picture_and_loses_no_caption(tmp_path):
    options = {"held_out": 0.2, "test_ratio": 0.2}
    whole = captioned(tmp_path / "here", 40)
    parts = captioned_pictures.split(whole, seed=3, **options)
    divided = [pair for part in parts.values() for pair in zip(part.paths, part.captions, strict=True)]
    assert sorted(divided) == sorted(zip(whole.paths, whole.captions, strict=True))
    assert all(part.paths for part in parts.values())
    backwards = Captioned(whole.paths[::-1], whole.captions[::-1])
    assert captioned_pictures.split(backwards, seed=3, **options) == parts
    assert captioned_pictures.split(whole, seed=4, **options) != parts
    moved = captioned_pictures.split(captioned(tmp_path / "there", 50), seed=3, **options)
    for name, part in parts.items():
        assert {path.name for path in part.paths} <= {path.name for path in moved[name].paths}
    with pytest.raises(ValueError, match="sum below 1"):
        captioned_pictures.split(whole, held_out=0.5, test_ratio=0.5, seed=0)


def test_a_public_data_set_is_held_out_by_names(tmp_path):
    whole = captioned(tmp_path, 50)
    parts = captioned_pictures.hold_out(whole, 0.2, seed=3)
    assert {name: len(part.paths) for name, part in parts.items()} == {"train": 40, "validation": 10}
    for path in whole.paths:
        path.write_text("other")
    assert captioned_pictures.hold_out(whole, 0.2, seed=3) == parts
    pairs = [pair for part in parts.values() for pair in zip(part.paths, part.captions, strict=True)]
    assert sorted(pairs) == sorted(zip(whole.paths, whole.captions, strict=True))
    assert captioned_pictures.hold_out(whole, 0, seed=3)["validation"].paths == ()


# --- load ---


def save(path, color=RED, size=(12, 8), mode="RGB", **options):
    Image.new(mode, size, color).save(path, **options)
    return path


def load_one(path, size=8):
    images, kept, skipped = captioned_pictures.load([path], size=size)
    assert (images.shape, images.dtype) == ((1, size, size, 3), np.uint8)
    assert (kept.tolist(), kept.dtype, skipped) == ([0], np.int64, [])
    return images[0].astype(int)


@pytest.mark.parametrize(
    ("mode", "color", "name", "expected", "tolerance"),
    [
        ("RGB", RED, "a.jpg", RED, 3),
        ("L", 77, "a.png", (77, 77, 77), 0),
        ("RGBA", (0, 0, 0, 0), "a.png", WHITE, 0),  # transparent black
        ("RGBA", (0, 0, 0, 51), "a.png", (204, 204, 204), 0),  # a fifth of black on white
        ("CMYK", (0, 255, 255, 0), "a.jpg", RED, 3),
        ("I;16", 0x4D12, "a.png", (0x4D, 0x4D, 0x4D), 0),
    ],
)
@pytest.mark.parametrize("size", [(12, 8), (1, 1), (10_000, 3)])
def test_pictures_of_all_modes_and_sizes(tmp_path, mode, color, name, expected, tolerance, size):
    pixels = load_one(save(tmp_path / name, color, size, mode))
    assert np.abs(pixels - expected).max() <= tolerance


@pytest.mark.parametrize("upright", [False, True])
def test_the_whole_picture_is_squashed_and_nothing_cut_off(tmp_path, upright):
    image = Image.new("RGB", (96, 32), GREEN)
    image.paste(BLUE, (0, 0, 24, 32))
    image.paste(RED, (72, 0, 96, 32))
    expected = np.full((8, 8, 3), GREEN)
    expected[:, :2], expected[:, 6:] = BLUE, RED
    if upright:
        image, expected = image.transpose(Image.Transpose.TRANSPOSE), expected.swapaxes(0, 1)
    image.save(tmp_path / "a.png")
    # The edges lie between two pixels; only these two are blended.
    pixels = load_one(tmp_path / "a.png")
    inner = [0, 3, 4, 7]
    np.testing.assert_array_equal(pixels[inner][:, inner], expected[inner][:, inner])


@pytest.mark.parametrize("size", [(61, 40), (40, 61), (9, 5), (1, 1), (1, 30), (10_000, 2)])
def test_resizing_is_that_of_tensorflow(tmp_path, size):
    import tensorflow as tf

    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = tf.image.resize(pixels, (16, 16), "bilinear", antialias=True).numpy()
    assert np.abs(load_one(tmp_path / "a.png", size=16) - expected).max() <= 1.01


def test_a_large_jpeg_is_resized_from_all_of_its_pixels(tmp_path):
    import tensorflow as tf

    pixels = np.random.default_rng(0).integers(0, 256, (200, 320, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    decoded = np.asarray(Image.open(tmp_path / "a.jpg"))
    expected = tf.image.resize(decoded, (16, 16), "bilinear", antialias=True).numpy()
    assert np.abs(load_one(tmp_path / "a.jpg", size=16) - expected).max() <= 1.01


def test_a_broken_picture_is_left_out_and_named(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    broken = tmp_path / "broken.jpg"
    Image.fromarray(noise).save(broken)
    broken.write_bytes(broken.read_bytes()[:1000])
    paths = [save(tmp_path / "a.png", GREEN), broken, save(tmp_path / "b.png", BLUE)]
    images, kept, skipped = captioned_pictures.load(paths, size=4)
    assert images[:, 0, 0].tolist() == [list(GREEN), list(BLUE)]
    assert kept.tolist() == [0, 2]
    assert [path for path, _ in skipped] == [broken]
    assert skipped[0][1] == "a damaged JPEG"
    error = capsys.readouterr().err
    assert error.startswith(f"Left out 1 of 3 pictures, which cannot be decoded: {broken} (")
    assert error.count("\n") == 1
    with pytest.raises(UserError, match=r"1 of 3 pictures cannot be decoded: .*broken\.jpg \(.*; replace or delete"):
        captioned_pictures.load(paths, size=4, strict=True)
    with pytest.raises(UserError, match="1 of 1 pictures cannot be decoded"):
        captioned_pictures.load([broken], size=4)


def test_nothing_gives_empty_arrays_and_no_size_is_refused():
    images, kept, skipped = captioned_pictures.load([], size=4)
    assert (images.shape, kept.shape, skipped) == ((0, 4, 4, 3), (0,), [])
    with pytest.raises(ValueError, match="at least 1 pixel"):
        captioned_pictures.load([], size=0)
