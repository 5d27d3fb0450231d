"""Pictures in memory, divided into train, validation and test: those of TFDS, or of a folder."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from kerasdl.data import channels, picture_files, tfds
from kerasdl.data.divided import SEED, Divided, Fold, HeldOut, check_sizes, held_and_kept
from kerasdl.errors import UserError

Load: TypeAlias = Callable[[Sequence[picture_files.Example], str], "Images"]
"""Reads files with their labels; the second argument is train, validation or test."""


@dataclass(frozen=True)
class Images:
    """Pictures uint8[examples, height, width, channels] and labels int32[examples], None without classes."""

    images: np.ndarray
    labels: Any = None

    def __len__(self) -> int:
        return len(self.images)

    def of(self, indices: np.ndarray) -> Images:
        """Some of the examples."""
        return Images(self.images[indices], None if self.labels is None else self.labels[indices])

    def some(self, count: int) -> Images:
        """So many of the examples at most, the same each time."""
        return self.of(np.random.default_rng(SEED).permutation(len(self))[:count])

    def arrays(self, *, labelled: bool) -> list[np.ndarray]:
        """The pictures, and with `labelled` their labels."""
        return [self.images, self.labels] if labelled else [self.images]

    def normalization(self) -> dict[str, list[float]]:
        """`mean` and `deviation` of each channel, 0..255, by which a network's input is normalized."""
        sample = self.images[:: max(1, len(self) // 5000)].astype(np.float64)
        mean, deviation = sample.mean((0, 1, 2)), channels.usable_deviation(sample.std((0, 1, 2)))
        found = {"mean": mean, "deviation": deviation}
        return {name: [round(float(value), 2) for value in values] for name, values in found.items()}


def facts(found: Divided[Images], source: str) -> dict[str, Any]:
    """What a generator must know of square pictures: `image_size`, `channels`, `class_names`, `training_pictures`.

    The last says how many there are of which source, with the CRC-32 of their pixels.
    """
    images = found.train.images
    return {
        "image_size": images.shape[1],
        "channels": images.shape[-1],
        "class_names": found.class_names,
        "training_pictures": f"{len(images):,} pictures of {source}, "
        f"CRC-32 {zlib.crc32(np.ascontiguousarray(images).data):08x}",
    }


def hold_out(examples: Images, held_out: HeldOut) -> tuple[Images, Images]:
    """Divides examples by their position: train and validation.

    Args:
        examples: in an order that does not change.
        held_out: for validation.
    """
    order = np.random.default_rng(SEED).permutation(len(examples))
    held, kept = held_and_kept(len(examples), held_out)
    return examples.of(order[kept]), examples.of(order[held])


def cut(
    images: np.ndarray, labels: np.ndarray, at: tuple[int, int], class_names: list[str] | None, description: str
) -> Divided[Images]:
    """Divides pictures and labels, see `Images`, in their order: `at` is where validation begins, and the test."""
    train, validation, test = map(Images, np.split(images, at), np.split(labels, at))
    return Divided(train, validation, lambda: test, class_names, description)


def from_tfds(name: str, data_dir: Path | None, *, held_out: HeldOut, size: int | None = None) -> Divided[Images]:
    """Reads a data set of TFDS with a split for training and one of 10,000 pictures for the test.

    Args:
        name: of the data set: `cifar10` or `mnist`.
        data_dir: see `kerasdl.data.tfds.builder`.
        held_out: of the training split, for validation.
        size: side up to which smaller pictures get a black border; None adds none.

    Returns:
        The pictures.

    Raises:
        UserError: the data set is not there.
    """

    def read(split: str) -> Images:
        images, labels = tfds.images(name, split, data_dir)
        border = (size - images.shape[1]) // 2 if size else 0
        return Images(
            np.pad(images, [(0, 0), (border, border), (border, border), (0, 0)]) if border else images, labels
        )

    train, validation = hold_out(read("train"), held_out)
    return Divided(
        train,
        validation,
        lambda: read("test"),
        tfds.class_names(name, data_dir),
        f"{name} (TFDS), test split, 10,000 pictures",
    )


def from_folder(
    path: Path,
    load: Load,
    *,
    held_out: HeldOut,
    classes: Literal["required", "optional", "none"],
    least_test: int = 1,
    why: str = "",
) -> Divided[Images]:
    """Reads the pictures of a folder; where they are not divided already, about a tenth is for the test.

    Args:
        path: the folder.
        load: reads the pictures, such as `squares(32)`.
        held_out: for validation, if no part of the folder is; a fold divides that part, too.
        classes: required: sub-folders are the classes, see `picture_files.scan`; optional: without them a line says so,
            and there are no labels; none: sub-folders mean nothing.
        least_test: test pictures that are needed.
        why: classes are required, a sentence for the error.

    Returns:
        The pictures.

    Raises:
        UserError: the folder is not there, or lacks classes that are required, or pictures, or has too few for the
            parts; later, that no test picture can be read.
    """
    names: list[str] | None = None
    if classes != "none":
        try:
            found = picture_files.scan(path)
            names, given = list(found.class_names), dict(found.splits)
        except UserError as error:
            if classes == "required":
                raise UserError(f"{why} {error}".lstrip()) from None
            if not path.is_dir():
                raise
            print(f"The pictures are taken without classes. {error}", file=sys.stderr)
    if names is None:
        given = {"train": [(file, 0) for file in picture_files.find([path])]}
    if isinstance(held_out, Fold):
        given["train"] = [*given["train"], *given.pop("validation", [])]
    elif "validation" in given:
        held_out = 0
    parts = picture_files.split(given["train"], held_out=held_out, test_ratio=0 if "test" in given else 0.1, seed=SEED)
    parts |= {name: given[name] for name in ("validation", "test") if name in given}
    if len(given) > 1:
        picture_files.report_shared({name: [path for path, _ in part] for name, part in parts.items()})
    counts = {name: len(part) for name, part in parts.items()}
    check_sizes(path, "pictures", **counts, least_validation=1 if held_out else 0, least_test=least_test)
    description = f"pictures of {path.name}, test part, {len(parts['test'])} pictures"

    def read(part: str) -> Images:
        found = load(parts[part], part)
        if counts[part] and not len(found):
            raise UserError(f"none of the {counts[part]} {part} pictures of {path} can be used; add others")
        return Images(found.images) if classes == "optional" and names is None else found

    return Divided(read("train"), read("validation"), lambda: read("test"), names, description)


def squares(size: int, *, strict: bool = False) -> Load:
    """A `load` for `from_folder`: the middle squares of the pictures, see `picture_files.load`.

    Args:
        size: side of the results, in pixels.
        strict: stop at the first broken picture instead of leaving it out.
    """

    def load(examples: Sequence[picture_files.Example], split: str) -> Images:
        images, labels, _ = picture_files.load(examples, size=size, strict=strict)
        return Images(images, labels)

    return load


def patches(size: int, count: int, *, strict: bool = False) -> Load:
    """A `load` for `from_folder`: squares at random places of the pictures, see `picture_files.patches`.

    Args:
        size: side of the squares, in pixels.
        count: squares of a picture.
        strict: stop if a picture is broken or too small instead of leaving it out, as without one to train on.
    """

    def load(examples: Sequence[picture_files.Example], split: str) -> Images:
        paths = [path for path, _ in examples]
        images, skipped = picture_files.patches(paths, size=size, count=count, seed=SEED)
        none = split == "train" and not len(images)
        picture_files.report_skipped(skipped, len(paths), strict=strict or none)
        return Images(images)

    return load
