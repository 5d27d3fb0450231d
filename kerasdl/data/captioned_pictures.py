"""A person's own pictures with captions, any number a picture: a CSV or TSV file, or COCO's JSON.

    image,caption                              {"images": [{"id": 7, "file_name": "a.jpg"}],
    a.jpg,A dog runs.                           "annotations": [{"image_id": 7, "caption": "A dog runs."},
    a.jpg,"A dog, in the snow."                                 {"image_id": 7, "caption": "A dog, in the snow."}]}

`read` reads one file or several splits, `split` divides pictures, `load` decodes them. `from_tfds` makes such files
of COCO, which TFDS keeps in records.
"""

import csv
import difflib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kerasdl.data import folders, picture_files, table, text_file
from kerasdl.data.divided import HeldOut, held_and_kept
from kerasdl.errors import UserError
from kerasdl.files import claim
from kerasdl.training.progress import bar

_SUFFIXES = (".csv", ".tsv", ".json")

_COCO = "coco_captions/2014"
_COCO_SPLITS = {"train": "train+restval", "validation": "val", "test": "test"}

_Row = tuple[str, str, str | None]
"""Where in the file it stands, a picture's name and one of its captions; None only mentions the picture."""


@dataclass(frozen=True)
class Captioned:
    """Pictures and what is said of them."""

    paths: tuple[Path, ...]
    """The pictures' files, each once."""
    captions: tuple[tuple[str, ...], ...]
    """The captions of each picture, at least one, none blank, without blanks at the ends."""


def read(path: Path, *, images: Path | None = None, quoting: str = "auto") -> dict[str, Captioned]:
    """Reads the captions of pictures, and checks that the pictures are there without opening them.

    The ending of the name decides the format: .csv and .tsv (a header with the columns image and caption, a row for
    each caption), .json (as COCO's captions). UTF-8. Blank captions are left out, and pictures without a caption;
    both are counted in a line on standard error.

    Args:
        path: a captions file; or a folder with one, or with one for each split, named as `picture_files.SPLITS` names
            them (train.csv, val.csv) or as COCO does (captions_train2017.json).
        images: the folder of the pictures; None for the folder `images` beside the captions file, or if there is
            none, the file's own. A picture is looked for there, then in a sub-folder named as the captions file
            (train for train.csv, train2017 for captions_train2017.json).
        quoting: what double quotes mean in .csv and .tsv, see `table.read`.

    Returns:
        `train`, and where the folder has them `validation` and `test`; pictures in the order of the file.

    Raises:
        UserError: if a file or folder is missing, of another format, not UTF-8 or empty; lacks a column; has a row
            that does not fit; names a picture that is not there or lies outside of the folder; if no caption is left;
            the folder lacks train, or has a split twice; or two splits share a picture.
    """
    if images is not None and not images.is_dir():
        raise UserError(f"There is no folder {images}; expected one with the captioned pictures; check the path.")
    files = _files_of_splits(path) if path.is_dir() else {"train": path}
    splits = {name: _read_file(file, images, quoting) for name, file in files.items()}
    seen: dict[Path, str] = {}
    for name, captioned in splits.items():
        shared = [picture for picture in captioned.paths if picture in seen]
        if shared:
            raise UserError(
                f"{len(shared)} pictures of {files[name]} stand in {files[seen[shared[0]]]}, too:"
                f" {picture_files.first_few(shared)}; expected each picture in one split, since what was trained on"
                " cannot be a test; delete them from one of the files."
            )
        seen |= dict.fromkeys(captioned.paths, name)
    return splits


def pictures(path: Path) -> list[Path]:
    """The files that a captions file names, or the pictures of a folder and its sub-folders.

    Args:
        path: a file as `read` takes it, or a folder.

    Raises:
        UserError: as `read` and `picture_files.find` have it.
    """
    return list(read(path)["train"].paths) if path.suffix.lower() in _SUFFIXES else picture_files.find([path])


def from_tfds(data_dir: Path | None, path: Path, *, progress: bool) -> dict[str, Captioned]:
    """Reads COCO's captions from TFDS, whose pictures are first written to files, once.

    Pictures are read more than once and in any order, which TFDS' records do not allow. They are written with the
    bytes that TFDS has, not encoded anew, into a folder as `read` takes it, of 19 GiB:

        train.csv       train/*.jpg         TFDS' train and restval, 113,287 pictures
        validation.csv  validation/*.jpg    TFDS' val, 5,000 pictures
        test.csv        test/*.jpg          TFDS' test, 5,000 pictures

    This is the Karpathy split, by which papers compare captioners: 10,000 pictures of COCO's validation part are
    divided into validation and test, and its rest, restval, is trained on, too.

    The folder appears when it is whole: until then it is called `<path>.partial`. An interrupted call goes on where it
    stopped, after a comparison of what is there; of several processes one writes and the others wait. Later calls do
    not need TFDS' records.

    Args:
        data_dir: TFDS data folder with `coco_captions/2014`, see `kerasdl.data.tfds.builder`; what is missing is
            downloaded by TFDS (38 GiB).
        path: the folder; it is created.
        progress: show a bar on a terminal, elsewhere lines, see `kerasdl.training.progress.bar`.

    Returns:
        `train`, `validation` and `test`, pictures in the order of TFDS' files.

    Raises:
        UserError: if the data set is neither found nor downloadable, or damaged; the folder cannot be written, for
            example for want of room, or is there and something else; or as `read` has it.

    Source: Karpathy and Fei-Fei 2015, arXiv:1412.2306, section 4; the split as TFDS' `coco_captions` has it.
    """
    if not _is_written(path):
        _write(data_dir, path.resolve(), progress)
    return read(path)


def flickr8k(data_dir: Path | None) -> Path:
    """The folder of Flickr8k, which nobody may pass on, so that a person has to have it.

    Args:
        data_dir: folder that holds flickr8k/; else KERASDL_DATA_DIR.

    Raises:
        UserError: it is not there.
    """
    path = Path(data_dir or os.environ.get("KERASDL_DATA_DIR") or ".") / "flickr8k"
    if not (path / "train.csv").is_file():
        raise UserError(
            f"there is no {path / 'train.csv'}; Flickr8k cannot be downloaded automatically: give --data-dir or "
            "KERASDL_DATA_DIR, a folder with flickr8k/images, flickr8k/train.csv and flickr8k/validation.csv "
            "(columns image, caption), or your own captions by --data"
        )
    return path


def split(captioned: Captioned, *, held_out: HeldOut, test_ratio: float, seed: int) -> dict[str, Captioned]:
    """Divides pictures, each with all its captions, by the content of their files: see `picture_files.split`.

    Args:
        captioned: as `read` returns it.
        held_out: for validation, as it is there for a single class.
        test_ratio: share for test, in the same way.
        seed: another seed gives another split.

    Returns:
        `train`, `validation` and `test`, each in the order of the file names.

    Raises:
        ValueError: if a ratio is negative, or nothing is left for train.
    """
    parts = picture_files.split(
        [(path, 0) for path in captioned.paths], held_out=held_out, test_ratio=test_ratio, seed=seed
    )
    return {name: _of(captioned, [path for path, _ in part]) for name, part in parts.items()}


def hold_out(captioned: Captioned, held_out: HeldOut, *, seed: int) -> dict[str, Captioned]:
    """Divides the pictures of a public data set, which stays as it is, into train and validation.

    Args:
        captioned: as `read` returns it.
        held_out: for validation; a share takes those whose names have the lowest hashes.
        seed: another seed gives another split.

    Returns:
        `train` and `validation`, each in the order of the file names.

    Source: own.
    """
    order = sorted(captioned.paths, key=lambda path: hashlib.sha256(f"{seed}/{path.name}".encode()).digest())
    held, kept = ([order[i] for i in positions] for positions in held_and_kept(len(order), held_out))
    return {"train": _of(captioned, sorted(kept)), "validation": _of(captioned, sorted(held))}


def _of(captioned: Captioned, paths: Sequence[Path]) -> Captioned:
    captions = dict(zip(captioned.paths, captioned.captions, strict=True))
    return Captioned(tuple(paths), tuple(captions[path] for path in paths))


def load(
    paths: Sequence[Path], *, size: int, strict: bool = False
) -> tuple[np.ndarray, np.ndarray, list[tuple[Path, str]]]:
    """Decodes whole pictures to squares, as `kerasdl.data.picture_files.decode` does with "squash".

    Both sides are scaled and nothing is cut off, since a caption may speak of what lies at the margin. A picture that
    cannot be decoded is left out, and the first few are named in a line on standard error.

    Args:
        paths: the pictures' files.
        size: side of the squares in pixels.
        strict: raise at pictures that cannot be decoded, rather than leave them out.

    Returns:
        images: uint8[kept, size, size, 3], in the order of the paths.
        kept: int64[kept], the positions of the images in `paths`.
        skipped: the pictures left out, each with the reason.

    Raises:
        UserError: if every picture is broken, or under `strict` any.
        ValueError: if size is below 1.
    """
    images, kept, skipped = picture_files.decode(paths, size=size, fit="squash")
    picture_files.report_skipped(skipped, len(paths), strict=strict or not len(kept))
    return images, kept, skipped


def _is_written(path: Path) -> bool:
    return all((path / f"{name}.csv").is_file() for name in _COCO_SPLITS)


def _write(data_dir: Path | None, path: Path, progress: bool) -> None:
    from kerasdl.data import tfds  # here, since only this function needs TensorFlow

    partial = path.with_name(f"{path.name}.partial")
    try:
        # The lock lies beside, since the folder is renamed.
        with claim(path.with_name(f".{path.name}.lock"), wait=f"Waiting for another process that writes {path}."):
            if _is_written(path):  # by the process that had the lock
                return
            if path.is_file() or (path.is_dir() and any(path.iterdir())):
                raise UserError(
                    f"{path} is there and holds something else than {_COCO}; expected a new folder, or an empty one;"
                    " choose another, or delete it."
                )
            info = tfds.builder(_COCO, data_dir).info
            _check_room(partial, info.dataset_size)
            count = info.splits.total_num_examples
            lines = f"Writing the {count:,} pictures of {_COCO} to {path}.", "Wrote them"
            with bar(count, "Pictures", *lines, shown=progress) as advance:
                for name, source in _COCO_SPLITS.items():
                    _write_split(partial, name, tfds.captioned(_COCO, source, data_dir), advance)
            # Once for all, since 123,287 waits for the disk would take longer than the writing.
            os.sync()
            partial.replace(path)
    except OSError as error:
        raise UserError(
            f"{_COCO} cannot be written to {path} ({error}); expected room and permission there; make room and"
            " run it again, which goes on where it stopped, or choose another folder."
        ) from None


def _check_room(partial: Path, size: int) -> None:
    needed = size - sum(file.stat().st_size for file in partial.glob("*/*"))
    free = shutil.disk_usage(partial.parent).free
    if needed > free:
        raise OSError(f"it needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free")


def _write_split(
    root: Path, name: str, examples: Iterator[tuple[str, bytes, list[str]]], advance: Callable[[int], None]
) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    with (root / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["image", "caption"])
        for image, content, captions in examples:
            file = root / name / image
            # Of an earlier call; its last picture may be half, and a crash of the machine may have emptied others.
            if not file.is_file() or file.read_bytes() != content:
                file.write_bytes(content)
            rows.writerows((image, caption) for caption in captions)
            advance(1)


def _files_of_splits(path: Path) -> dict[str, Path]:
    listed = (file for file in sorted(path.iterdir()) if not folders.is_left_over(file.name) and file.is_file())
    files = [file for file in listed if file.suffix.lower() in _SUFFIXES]
    if len(files) == 1:
        return {"train": files[0]}
    found: dict[str, Path] = {}
    others = []
    for file in files:
        name = picture_files.SPLITS.get(re.sub(r"^captions_|\d{4}$", "", file.stem.lower()))
        if name in found:
            raise UserError(
                f"{path} holds {found[name].name} and {file.name}, both {name}; expected one captions file for each"
                " split; merge or rename them."
            )
        if name:
            found[name] = file
        else:
            others.append(file.name)
    if "train" not in found:
        raise UserError(
            f"{path} holds the files {picture_files.first_few([file.name for file in files]) or 'of no captions'};"
            " expected train.csv (or .tsv, or COCO's .json), and where there are such validation.csv and test.csv;"
            " rename them, or give a captions file."
        )
    if others:
        print(
            f"Left out {len(others)} files that are named as no split: {picture_files.first_few(others)}.",
            file=sys.stderr,
        )
    return {name: found[name] for name in ("train", "validation", "test") if name in found}


def _read_file(path: Path, images: Path | None, quoting: str) -> Captioned:
    if not path.is_file():
        raise UserError(f"There is no file or folder {path}; expected captions of pictures; check the path.")
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(
            f"{path} is of no known format; expected a name that ends in .csv, .tsv or .json; convert or rename it."
        )
    content = text_file.read(path)
    rows = _coco_rows(path, content) if path.suffix.lower() == ".json" else _table_rows(path, content, quoting)
    captions: dict[str, list[str]] = {}
    blank = []
    for place, name, caption in rows:
        of_picture = captions.setdefault(_inside(path, place, name), [])
        if caption is not None and caption.strip():
            # JSON can hold half of a character, such as a cut emoji's, which UTF-8 cannot.
            of_picture.append(caption.strip().encode(errors="replace").decode())
        elif caption is not None:
            blank.append(place)
    without = [name for name, of_picture in captions.items() if not of_picture]
    if len(without) == len(captions):
        raise UserError(f"{path} holds no caption; expected one or more for each picture; write some.")
    if blank:
        print(f"Left out {len(blank)} blank captions of {path}, the first at {blank[0]}.", file=sys.stderr)
    if without:
        named = picture_files.first_few(without)
        print(f"Left out {len(without)} pictures of {path} that have no caption: {named}.", file=sys.stderr)
    captions = {name: of_picture for name, of_picture in captions.items() if of_picture}
    return Captioned(_find(path, images, list(captions)), tuple(map(tuple, captions.values())))


def _table_rows(path: Path, content: str, quoting: str) -> Iterator[_Row]:
    separator, called = ("\t", "a tab") if path.suffix.lower() == ".tsv" else (",", "a comma")
    rows = table.separated_rows(path, content, separator, quoting)
    columns = list(rows[0][1]) if rows else ["image", "caption"]
    for column in ("image", "caption"):
        if column not in columns:
            close = difflib.get_close_matches(column, columns, 1)
            meant = f" (did you mean '{close[0]}'?)" if close else ""
            raise UserError(
                f"{path} has no column '{column}' but {', '.join(columns)}; expected image and caption, separated by"
                f" {called}; rename the column{meant}."
            )
    for line, row in rows:
        yield f"line {line}", row["image"], row["caption"]


def _coco_rows(path: Path, content: str) -> Iterator[_Row]:
    try:
        data = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: this is no JSON ({error.msg} at character {error.colno}); expected captions"
            " as COCO's; correct the file, or convert it to CSV."
        ) from None
    names: dict[int | str, str] = {}
    for place, image in _coco_entries(path, data, "images", {"id": int | str, "file_name": str}):
        if image["id"] in names:
            raise UserError(
                f"{path}, {place}: the id {image['id']} is that of {names[image['id']]}, too; expected one for each"
                " picture; number them anew."
            )
        names[image["id"]] = image["file_name"]
        yield place, image["file_name"], None
    for place, entry in _coco_entries(path, data, "annotations", {"image_id": int | str, "caption": str}):
        if entry["image_id"] not in names:
            raise UserError(
                f"{path}, {place}: the image_id is {entry['image_id']}, which is the id of none of the images; expected"
                " one of those; correct it, or delete the caption."
            )
        yield place, names[entry["image_id"]], entry["caption"]


def _coco_entries(path: Path, data: Any, key: str, kinds: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    entries = data.get(key) if isinstance(data, dict) else None
    if not isinstance(entries, list):
        raise UserError(
            f"{path} has no list '{key}'; expected captions as COCO's, an object with the lists images and annotations;"
            " convert it to that, or to CSV."
        )
    for index, entry in enumerate(entries):
        for field, kind in kinds.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(field), kind):
                written = "a string" if kind is str else "a number or a string"
                raise UserError(
                    f"{path}, {key}[{index}]: '{field}' is missing or not {written}; expected entries with"
                    f" {' and '.join(kinds)}, as COCO's captions; correct this one."
                )
        yield f"{key}[{index}]", entry


def _inside(path: Path, place: str, name: str) -> str:
    normal = os.path.normpath(name.strip())
    if not name.strip() or os.path.isabs(normal) or normal.split(os.sep)[0] == os.pardir:
        raise UserError(
            f"{path}, {place}: the picture is named {name!r}; expected a file within the folder of pictures, such as"
            " 'a.jpg'; correct the name, or move the picture."
        )
    return normal


def _find(path: Path, images: Path | None, names: list[str]) -> tuple[Path, ...]:
    beside = path.parent / "images"
    root = images or (beside if beside.is_dir() else path.parent)
    sub_folder = root / path.stem.removeprefix("captions_")
    found = [next(filter(os.path.isfile, (root / name, sub_folder / name)), None) for name in names]
    missing = [repr(name) for name, file in zip(names, found, strict=True) if file is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} pictures of {path} are not in {root}: {picture_files.first_few(missing)};"
            " expected every captioned picture there; add them, delete their captions, or give the folder of pictures."
        )
    return tuple(file for file in found if file)
