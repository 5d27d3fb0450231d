"""A person's own pictures: a folder with one sub-folder a class, of any size and in any usual format.

    photos/cat/1.jpg  photos/dog/holiday/2.png                                    split at random by `split`
    photos/train/cat/1.jpg  photos/validation/cat/2.jpg  photos/test/cat/3.jpg    already split

`scan` lists the files, `split` divides them, `load` decodes them. `find` lists pictures without classes, `patches`
cuts squares out of them.
"""

import functools
import hashlib
import os
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import tensorflow as tf

from kerasdl import startup
from kerasdl.data import folders, picture_decoding, stratified
from kerasdl.data.divided import HeldOut
from kerasdl.data.picture_decoding import FORMATS
from kerasdl.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp"})
"""Endings of file names, in upper or lower case, that `scan` and `find` take for pictures."""

T = TypeVar("T")
R = TypeVar("R")

Example = tuple[Path, int]
"""A picture's file and the index of its class."""

SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
"""Names of the parts of already divided data, in lower case, and the part that each means."""


@dataclass(frozen=True)
class ImageFolder:
    """What lies in a folder of pictures."""

    class_names: tuple[str, ...]
    """The names of the training classes' folders, sorted; a label is an index into them."""
    splits: dict[str, list[Example]]
    """`train`, and where the folder has them `validation` and `test`; in the order of the file names."""


def scan(path: str | Path) -> ImageFolder:
    """Lists the pictures of a folder and checks its classes, without opening any picture.

    The pictures of a class may lie in further sub-folders, and behind links. What systems leave behind is passed
    over, see `folders.is_left_over`. Files that are no pictures by the ending of their name, and pictures beside the
    class folders, are left out and counted in a line on standard error, since a format that is not read, such as the
    HEIC of a phone, would be missed otherwise.

    Args:
        path: the folder. It is already split if its sub-folders are named train (training) and validation
            (valid, val) or test (testing), in upper or lower case.

    Returns:
        The classes and files; only `train` if the folder is not split.

    Raises:
        UserError: if the folder is missing; has no class, only one, an empty one, or no picture; holds classes
            beside splits, or a split twice; lacks train; or train lacks a class of validation or test.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(
            f"There is no folder {root}; expected one with a sub-folder of pictures for each class; check the path."
        )
    inside = _sub_folders(root)
    parts = [folder for folder in inside if folder.name.lower() in SPLITS]
    if not parts:
        class_names, examples = _scan_classes(root)
        return ImageFolder(class_names, {"train": examples})
    if len(parts) < len(inside):
        other = next(folder.name for folder in inside if folder not in parts)
        raise UserError(
            f"{root} holds both '{parts[0].name}' and '{other}'; expected either classes or the splits train,"
            " validation, test; move the classes into the splits, or rename the class that is called like one."
        )
    roots = {SPLITS[part.name.lower()]: part for part in parts}
    if len(roots) < len(parts) or "train" not in roots:
        raise UserError(
            f"{root} holds the splits {', '.join(part.name for part in parts)}; expected train, and at most"
            " one folder each for validation and test; rename or merge the folders."
        )
    class_names, examples = _scan_classes(roots["train"])
    splits = {"train": examples}
    for name in ("validation", "test"):
        if name in roots:
            splits[name] = _scan_classes(roots[name], class_names)[1]
    return ImageFolder(class_names, splits)


def find(paths: Sequence[Path]) -> list[Path]:
    """Lists the pictures that a command line names, without opening any.

    Args:
        paths: files, which are taken whatever their names, there or not; and folders, of which, with their
            sub-folders and what is linked, those files are taken that are pictures by the ending of their name. What
            systems leave behind is passed over, see `folders.is_left_over`; the others are counted in a line on
            standard error.

    Returns:
        The files in the order of `paths`, those of a folder in the order of their names.

    Raises:
        UserError: if there is none.
    """
    files: list[Path] = []
    others: list[Path] = []
    for path in paths:
        if path.is_dir():
            pictures, rest = _pictures_in(path)
            files += sorted(pictures)
            others += rest
        else:
            files.append(path)
    if not files:
        raise UserError(
            f"There are no pictures in {', '.join(map(str, paths)) or 'nothing'}; expected files named as pictures,"
            " such as 'a.jpg'; give other folders, or the files themselves"
            f"{f' ({len(others)} other files are there: {first_few(others)})' if others else ''}."
        )
    _report_others(others)
    return files


def split(
    examples: Sequence[Example], *, held_out: HeldOut = 0.1, test_ratio: float = 0.1, seed: int
) -> dict[str, list[Example]]:
    """Divides examples into train, validation and test by the content of the files, see `stratified.divide`.

    So a picture stays in its part when others are added or removed, when it is renamed and when the folder is moved,
    and equal files come into one part.

    Args:
        examples: as `scan` lists them.
        held_out: for validation. If it is a share above 0, each class gives at least one example if it can: the first
            is for train, the second for validation, the third for test.
        test_ratio: share for test, in the same way.
        seed: another seed gives another split.

    Returns:
        `train`, `validation` and `test`, each in the order of the file names.

    Raises:
        ValueError: if a ratio is negative, or nothing is left for train.
    """
    examples = sorted(examples)
    paths, labels = [path for path, _ in examples], [label for _, label in examples]
    contents = digests(paths) if held_out or test_ratio else [str(path) for path in paths]
    parts = stratified.divide(contents, labels, held_out=held_out, test_ratio=test_ratio, seed=seed)
    return {name: [examples[index] for index in part] for name, part in parts.items()}


def digests(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of the content of each file; of a file that cannot be read the path, of which decoding will tell."""

    def digest(path: Path) -> str:
        try:
            with path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            return str(path)

    return _in_threads(digest, paths)


def report_shared(parts: Mapping[str, Sequence[Path]]) -> None:
    """Names the first few files that stand in several parts with equal content in a line on standard error, if any.

    Args:
        parts: files of each part that was divided already, train first.
    """
    known: dict[str, tuple[str, Path]] = {}
    for name, paths in parts.items():
        found = list(zip(digests(paths), paths, strict=True))
        shared = [f"{path} is {known[content][1]}" for content, path in found if content in known]
        if shared:
            others = ", ".join(sorted({known[content][0] for content, _ in found if content in known}))
            print(
                f"{len(shared)} of {len(paths)} pictures of {name} stand in {others}, too: {first_few(shared)}; a score"
                " counts what was learned by heart: delete them from one of the two.",
                file=sys.stderr,
            )
        known = {content: (name, path) for content, path in found} | known


def load(
    examples: Sequence[Example], *, size: int, strict: bool = False
) -> tuple[np.ndarray, np.ndarray, list[tuple[Path, str]]]:
    """Decodes the middle squares of pictures, as `decode` does.

    A picture that cannot be decoded is left out, and the first few are named in a line on standard error.

    Args:
        examples: files and labels, as `scan` lists them.
        size: side of the squares in pixels.
        strict: raise at pictures that cannot be decoded, rather than leave them out.

    Returns:
        images: uint8[n, size, size, 3], in the order of the examples.
        labels: int32[n].
        skipped: the pictures left out, each with the reason.

    Raises:
        UserError: if every picture of a class is broken, or under `strict` any.
        ValueError: if size is below 1.
    """
    images, kept, skipped = decode([path for path, _ in examples], size=size)
    labels = np.array([label for _, label in examples], np.int32)[kept]
    left = set(labels.tolist())
    lost = [path for path, label in examples if label not in left]
    if lost and not strict:
        raise UserError(
            f"Every picture of a class is broken: {_named(skipped)}; expected a whole one in each class; replace"
            f" those in {os.path.commonpath([path.parent for path in lost])}."
        )
    report_skipped(skipped, len(examples), strict=strict)
    return images, labels, skipped


def decode(
    paths: Sequence[Path], *, size: int, fit: Literal["crop", "squash"] = "crop"
) -> tuple[np.ndarray, np.ndarray, list[tuple[Path, str]]]:
    """Decodes pictures to squares of one size, and leaves out those that cannot be decoded.

    They are decoded as in every export, see `kerasdl.data.picture_decoding`.

    Args:
        paths: files.
        size: side of the squares in pixels.
        fit: "crop" cuts out the largest square in the middle: nothing is squashed, and the ends of the longer side
            are lost. "squash" scales both sides, each on its own: nothing is lost.

    Returns:
        images: uint8[kept, size, size, 3], in the order of the paths.
        kept: int64[kept], the positions of the images in `paths`.
        skipped: the pictures left out, each with the reason.

    Raises:
        ValueError: if size is below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; expected at least 1 pixel; choose a larger one.")
    images = np.empty((len(paths), size, size, 3), np.uint8)

    def fill(index: int) -> str | None:
        try:
            images[index] = read(tf.constant(paths[index].read_bytes()), tf.constant(size))
        except (OSError, tf.errors.OpError) as error:
            return picture_decoding.reason(error)
        return None

    read = _squares(fit == "squash")
    reasons = _in_threads(fill, range(len(paths)))
    kept = np.array([index for index, reason in enumerate(reasons) if reason is None], np.int64)
    skipped = [(path, reason) for path, reason in zip(paths, reasons, strict=True) if reason is not None]
    return images[kept] if skipped else images, kept, skipped


def patches(paths: Sequence[Path], *, size: int, count: int, seed: int) -> tuple[np.ndarray, list[tuple[Path, str]]]:
    """Cuts squares out of pictures at random places, without scaling; those that are too small are left out.

    The places in a picture follow from seed and file name, whatever other pictures there are.

    Args:
        paths: files.
        size: side of the squares in pixels.
        count: squares of each picture; one picture's may overlap.
        seed: another seed gives other places.

    Returns:
        patches: uint8[kept * count, size, size, 3], in the order of the paths.
        skipped: the pictures left out, each with the reason.

    Raises:
        ValueError: if size or count is below 1.

    Source: own.
    """
    if size < 1 or count < 1:
        raise ValueError(f"size is {size} and count {count}; expected at least 1 each; choose larger ones.")

    def cut(path: Path) -> np.ndarray | str:
        try:
            pixels = picture_decoding.decode(tf.constant(path.read_bytes())).numpy()
        except (OSError, tf.errors.OpError) as error:
            return picture_decoding.reason(error)
        height, width = pixels.shape[:2]
        if min(height, width) < size:
            return f"{width}x{height} pixels, smaller than a patch of {size}"
        rng = np.random.default_rng([seed, *path.name.encode()])
        tops, lefts = (rng.integers(0, side - size + 1, count) for side in (height, width))
        return np.stack([pixels[top : top + size, left : left + size] for top, left in zip(tops, lefts, strict=True)])

    found = _in_threads(cut, paths)
    skipped = [(path, one) for path, one in zip(paths, found, strict=True) if isinstance(one, str)]
    whole = [one for one in found if not isinstance(one, str)]
    return np.concatenate(whole) if whole else np.empty((0, size, size, 3), np.uint8), skipped


@functools.cache
def _squares(squash: bool) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """From a file's content and a size to a square."""
    square = tf.function(functools.partial(picture_decoding.square, squash=squash), autograph=False)
    return square.get_concrete_function(tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32))


def _in_threads(call: Callable[[T], R], items: Sequence[T]) -> list[R]:
    # The libraries behind TensorFlow's decoders write about damaged files on their own.
    with startup.silenced(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(call, items))


def report_skipped(skipped: Sequence[tuple[Path, str]], count: int, *, strict: bool) -> None:
    """Names the first few pictures that were left out in a line on standard error, if there are any.

    Args:
        skipped: as `decode` returns them.
        count: the number of all pictures.
        strict: raise instead.

    Raises:
        UserError: under `strict`, if a picture was left out.
    """
    if not skipped:
        return
    share = f"{len(skipped)} of {count} pictures"
    if strict:
        raise UserError(
            f"{share} cannot be decoded: {_named(skipped)}; expected all to be whole; replace or delete these."
        )
    print(f"Left out {share}, which cannot be decoded: {_named(skipped)}.", file=sys.stderr)


def first_few(items: Sequence[object]) -> str:
    """Names the first three of a list, and counts the others: what fits into a line."""
    return ", ".join(map(str, items[:3])) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _sub_folders(path: Path) -> list[Path]:
    found = (entry for entry in path.iterdir() if entry.is_dir() and not folders.is_left_over(entry.name))
    # Without links to the folder itself, or to one that holds it.
    return sorted(folder for folder in found if not path.resolve().is_relative_to(folder.resolve()))


def _scan_classes(root: Path, train_names: tuple[str, ...] | None = None) -> tuple[tuple[str, ...], list[Example]]:
    inside = _sub_folders(root)
    beside = [path for path in sorted(root.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]
    beside = [path for path in beside if not folders.is_left_over(path.name)]
    if not inside:
        raise UserError(
            f"{root} has no sub-folder, and {len(beside)} pictures lie in it directly; expected a sub-folder for"
            " each class; move the pictures of each class into one."
        )
    class_names = train_names or tuple(folder.name for folder in inside)
    shown = [unicodedata.normalize("NFC", name) for name in class_names]
    if alike := next((name for name in shown if shown.count(name) > 1), None):
        raise UserError(
            f"{root} has two class folders that are shown as '{alike}', with letter and accent as one character and as"
            " two; put their pictures into one."
        )
    examples: list[Example] = []
    others: list[Path] = []
    empty: list[str] = []
    for folder in inside:
        if folder.name not in class_names:
            raise UserError(
                f"{root} has the class '{folder.name}', which train does not have; expected some of"
                f" {', '.join(class_names)}; rename the folder, or add the class to train."
            )
        pictures, rest = _pictures_in(folder)
        others += rest
        examples += [(path, class_names.index(folder.name)) for path in pictures]
        if not pictures:
            empty.append(folder.name)
    formats = ", ".join(FORMATS)
    if not examples:
        raise UserError(f"{root} holds no picture; expected files in {formats}; add or convert some.")
    if empty:
        raise UserError(
            f"The class folder '{empty[0]}' in {root} holds no picture; expected at least one in {formats};"
            " add some, or delete the folder."
        )
    if len(class_names) == 1:
        raise UserError(
            f"{root} has only the class '{class_names[0]}'; expected at least two; add a folder with pictures"
            " of another."
        )
    if beside:
        print(
            f"Left out {len(beside)} pictures that lie beside the class folders: {first_few(beside)}.", file=sys.stderr
        )
    _report_others(others)
    return class_names, examples


def _pictures_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files that are pictures by the ending of their name, and what else is there."""
    files, others = folders.files(folder)
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES]
    return pictures, others + [path for path in files if path.suffix.lower() not in SUFFIXES]


def _report_others(others: Sequence[Path]) -> None:
    if others:
        print(f"Left out {len(others)} files that are no {', '.join(FORMATS)}: {first_few(others)}.", file=sys.stderr)


def _named(skipped: Sequence[tuple[Path, str]]) -> str:
    return first_few([f"{path} ({reason})" for path, reason in skipped])
