"""What every reader of a data set gives: its parts, and what the test part is."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from kerasdl.errors import UserError

SEED = 2009  # of every division, so that runs of all seeds and searches compare

T = TypeVar("T")


@dataclass(frozen=True)
class Fold:
    """One of several equally large parts of the training examples: it validates, and the others are trained on.

    Attributes:
        number: from 1 to `count`.
        count: of parts, 2 or more.

    Source: n-fold cross-validation: Kohavi 1995, "A Study of Cross-Validation and Bootstrap for Accuracy Estimation
    and Model Selection", section 2.
    """

    number: int
    count: int

    @classmethod
    def read(cls, text: str) -> Fold:
        """The fold that a text such as `2/5` names.

        Raises:
            ValueError: it names none.
        """
        parts = re.fullmatch("([0-9]+)/([0-9]+)", text)
        if parts is None:
            raise ValueError("expected a part and how many there are, such as 2/5")
        found = cls(*map(int, parts.groups()))
        if not (found.count >= 2 and 1 <= found.number <= found.count):
            raise ValueError("expected one of two parts or more, such as 1/2")
        return found

    def check(self, examples: int) -> None:
        """Refuses more parts than there are examples to divide.

        Raises:
            UserError: there are.
        """
        if self.count > examples:
            raise UserError(f"fold {self}: there are {examples:,} examples to divide, fewer than {self.count:,} parts")

    def bounds(self, examples: int) -> tuple[int, int]:
        """Where the part begins and ends among examples in a row.

        Raises:
            UserError: there are fewer examples than parts.
        """
        self.check(examples)
        return examples * (self.number - 1) // self.count, examples * self.number // self.count

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


HeldOut: TypeAlias = float | Fold
"""What is held out of the training examples to validate by: a share of them, 0 for none; or a fold."""


def held_and_kept(count: int, held_out: HeldOut) -> tuple[np.ndarray, np.ndarray]:
    """Positions of what is held out of examples in random order, and of the others, both ascending.

    Args:
        count: of the examples.
        held_out: a share takes the first ones.

    Raises:
        UserError: there are fewer examples than folds.
    """
    begin, end = held_out.bounds(count) if isinstance(held_out, Fold) else (0, round(held_out * count))
    positions = np.arange(count)
    return positions[begin:end], np.concatenate([positions[:begin], positions[end:]])


@dataclass(frozen=True)
class Divided(Generic[T]):
    """Examples for training, selection and the final measurement.

    Attributes:
        train: what the weights are fitted to.
        validation: what epochs and hyperparameters are chosen by; may be empty.
        test: reads the test split.
        class_names: of the labels; None without classes.
        description: what the test split is.
    """

    train: T
    validation: T
    test: Callable[[], T]
    class_names: list[str] | None
    description: str


def without(text: str, fold: Fold) -> list[str]:
    """A running text without a fold, which is one piece of it, and that piece.

    Raises:
        UserError: it has fewer characters than there are folds.
    """
    begin, end = fold.bounds(len(text))
    return [text[:begin] + text[end:], text[begin:end]]


def fingerprint(*examples: Any) -> str:
    """Tells examples from others, by their content and order.

    Args:
        examples: arrays, texts, files (their content counts, not their names), numbers, and sequences and dataclasses
            of these; functions are passed over.

    Returns:
        16 hexadecimal digits of SHA-256.

    Raises:
        TypeError: something else.
    """
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Path):
            try:
                value = value.read_bytes()
            except OSError:
                value = str(value)
        if isinstance(value, np.ndarray) and value.dtype != object:
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        elif isinstance(value, str | bytes):
            encoded = value.encode(errors="surrogatepass") if isinstance(value, str) else value
            digest.update(f"{len(encoded)} bytes".encode())
            digest.update(encoded)
        elif isinstance(value, list | tuple | np.ndarray):
            digest.update(f"{len(value)} parts".encode())
            for part in value:
                add(part)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            add([getattr(value, field.name) for field in dataclasses.fields(value)])
        elif isinstance(value, int | float | np.generic | None):
            digest.update(repr(value.item() if isinstance(value, np.generic) else value).encode())
        elif not callable(value):
            raise TypeError(f"{type(value).__name__} has no fingerprint; expected arrays, texts, files or numbers")

    add(examples)
    return digest.hexdigest()[:16]


def check_sizes(
    path: Path, kind: str, *, train: int, validation: int, test: int, least_validation: int = 0, least_test: int = 1
) -> None:
    """Refuses parts that leave nothing to learn from or to measure by, before anything is trained.

    Args:
        path: where the examples are.
        kind: what they are, such as pictures.
        train: their number, as those of the other parts.
        validation: of the part for choices.
        test: of the part for the final measurement.
        least_validation: number that validation needs.
        least_test: number that the test needs.

    Raises:
        UserError: a part has too few.
    """
    if train < 1 or validation < least_validation or test < least_test:
        raise UserError(
            f"{path} has too few {kind}: {train} to train on, {validation} to validate and {test} to test; expected"
            f" 1, {least_validation} and {least_test}, or more; add some, at least 3 different ones of a"
            " class"
        )
