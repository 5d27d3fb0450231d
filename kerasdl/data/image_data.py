"""Pictures in memory, divided into train, validation and test: those of TFDS, or of a folder."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from kerasdl.data import picture_files, tfds
from kerasdl.data.divided import SEED, Divided, check_sizes
from kerasdl.errors import UserError

Load: TypeAlias = Callable[[Sequence[picture_files.Example], str], "Images"]
"""Reads files with their labels; the second argument is train, validation or test."""


class NoClasses(UserError):
    """A folder has no sub-folders that could be classes."""


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

    def checksum(self) -> str:
        """CRC-32 of the pixels, to tell a data set from another."""
        return f"{zlib.crc32(np.ascontiguousarray(self.images).data):08x}"


def hold_out(examples: Images, ratio: float) -> tuple[Images, Images]:
    """Divides examples by their position: train and validation.

    Args:
        examples: in an order that does not change.
        ratio: share for validation, 0 for none.
    """
    order = np.random.default_rng(SEED).permutation(len(examples))
    held, kept = np.split(order, [round(ratio * len(order))])
    return examples.of(kept), examples.of(held)


def from_tfds(name: str, data_dir: Path | None, *, validation_ratio: float) -> Divided[Images]:
    """Reads a data set of TFDS with a split for training and one of 10,000 pictures for the test.

    Args:
        name: of the data set: `cifar10` or `mnist`.
        data_dir: see `kerasdl.data.tfds.builder`.
        validation_ratio: share of the training split that is held out.

    Returns:
        The pictures.

    Raises:
        UserError: the data set is not there.
    """
    train, validation = hold_out(Images(*tfds.images(name, "train", data_dir)), validation_ratio)
    return Divided(
        train,
        validation,
        lambda: Images(*tfds.images(name, "test", data_dir)),
        tfds.class_names(name, data_dir),
        f"{name} (TFDS), test split, 10,000 pictures",
    )


def from_folder(
    path: Path,
    load: Load,
    *,
    validation_ratio: float,
    classes: Literal["required", "optional", "none"],
    least_test: int = 1,
) -> Divided[Images]:
    """Reads the pictures of a folder; where they are not divided already, about a tenth is for the test.

    Args:
        path: the folder.
        load: reads the pictures, such as `squares(32)`.
        validation_ratio: share for validation, 0 for none.
        classes: required: sub-folders are the classes, see `picture_files.scan`; optional: without them a line says so;
            none: sub-folders mean nothing.
        least_test: test pictures that are needed.

    Returns:
        The pictures.

    Raises:
        NoClasses: classes are required, and the folder is not there or has none.
        UserError: the folder lacks pictures, or has too few for the parts; later, that no test picture can be read.
    """
    names: list[str] | None = None
    if classes != "none":
        try:
            found = picture_files.scan(path)
            names, given = list(found.class_names), found.splits
        except UserError as error:
            if classes == "required":
                raise NoClasses(str(error)) from None
            if not path.is_dir():
                raise
            print(f"The pictures are taken without classes. {error}", file=sys.stderr)
    if names is None:
        given = {"train": [(file, 0) for file in picture_files.find([path])]}
    held_out = 0 if "validation" in given else validation_ratio
    parts = picture_files.split(
        given["train"], validation_ratio=held_out, test_ratio=0 if "test" in given else 0.1, seed=SEED
    )
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
        return found

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
