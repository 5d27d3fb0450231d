"""What every reader of a data set gives: its parts, and what the test part is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

SEED = 2009  # of every division, so that runs of all seeds and searches compare

T = TypeVar("T")


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
