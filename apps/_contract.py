"""What an application module offers. The type checker holds every module in this folder to `Application`."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, get_type_hints

from kerasdl.errors import UserError

if TYPE_CHECKING:
    import keras

    from kerasdl.export import Endpoint


@dataclass(frozen=True)
class Objective:
    """What a search optimises and what chooses the best epoch; always measured on validation data.

    Attributes:
        metric: name in the training log, such as `val_accuracy`.
        direction: whether high or low is good.
    """

    metric: str
    direction: Literal["max", "min"]


@dataclass(frozen=True)
class Splits:
    """Examples for training, selection and the final measurement.

    Attributes:
        train: what the weights are fitted to.
        validation: what epochs and hyperparameters are chosen by; None when everything is trained on.
        test: opens the test split. Only `evaluate` calls it.
        info: what the model must know (class names, vocabulary); JSON values.
        description: what these examples are, for the model card, such as `CIFAR-10 (TFDS)`.
    """

    train: Any
    validation: Any
    test: Callable[[], Any]
    info: Mapping[str, Any]
    description: str


@dataclass(frozen=True)
class Card:
    """The parts of a model card that only the application knows."""

    summary: str
    limits: tuple[str, ...]
    sources: tuple[str, ...]


class Application(Protocol):
    """A module in `apps/`."""

    Config: type[Any]
    OBJECTIVE: Objective
    CARD: Card
    VERBS: tuple[Callable[..., None], ...]

    def load_data(self, config: Any) -> Splits:
        """Reads the data that the configuration names."""

    def build_model(self, config: Any, data: Splits) -> keras.Model:
        """Builds and compiles the model."""

    def train(self, config: Any, model: keras.Model, data: Splits, callbacks: list[Any]) -> keras.callbacks.History:
        """Fits the model; the last callback is the `Checkpoint` that knows the first epoch."""

    def evaluate(self, config: Any, model: keras.Model, data: Splits, figures: Path | None = None) -> dict[str, float]:
        """Measures on the test split by the protocol that papers use; draws into `figures` if given."""

    def endpoints(self, model: keras.Model, data: Splits) -> Mapping[str, Endpoint]:
        """The signatures of the export; preprocessing inside the graph."""

    def served(self, signatures: Mapping[str, Any]) -> keras.Model:
        """A loaded export as a model that `evaluate` takes."""

    def tiny(self) -> tuple[Any, Splits]:
        """A configuration and learnable synthetic data: no files, no network, seconds."""


def jsonable(config: Any) -> dict[str, Any]:
    """A configuration as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


class _AtLeast:
    """Bound of a field of `Settings`: `AtLeast[int, 1]` is an int of 1 or more."""

    def __init__(self, low: float) -> None:
        self.low = low

    def __class_getitem__(cls, items: tuple[Any, float]) -> Any:
        """The annotated type."""
        return Annotated[items[0], cls(items[1])]

    def check(self, name: str, value: float | None) -> None:
        """Checks the value of a field; None passes.

        Raises:
            UserError: it is too small.
        """
        if value is not None and not value >= self.low:
            raise UserError(f"{_flag(name)} is {value}; expected {self.low} or more")


class _Between:
    """Bounds of a field of `Settings`: `Between[float, 0, 1]` is a float in [0, 1]."""

    def __init__(self, low: float, high: float) -> None:
        self.low = low
        self.high = high

    def __class_getitem__(cls, items: tuple[Any, float, float]) -> Any:
        """The annotated type."""
        return Annotated[items[0], cls(*items[1:])]

    def check(self, name: str, value: float | None) -> None:
        """Checks the value of a field; None passes.

        Raises:
            UserError: it is not within.
        """
        if value is not None and not self.low <= value <= self.high:
            raise UserError(f"{_flag(name)} is {value}; expected {self.low} to {self.high}")


if TYPE_CHECKING:
    from typing import Annotated as AtLeast
    from typing import Annotated as Between
else:
    AtLeast, Between = _AtLeast, _Between


def at_least(low: float, **values: float | None) -> None:
    """Checks values whose bound depends on others, or that are no fields.

    Raises:
        UserError: one is below `low`; None passes.
    """
    for name, value in values.items():
        _AtLeast(low).check(name, value)


def between(low: float, high: float, **values: float | None) -> None:
    """Checks values whose bounds depend on others, or that are no fields.

    Raises:
        UserError: one does not lie in [low, high]; None passes.
    """
    for name, value in values.items():
        _Between(low, high).check(name, value)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A configuration whose fields say their bounds; a class of its own extends it."""

    def __post_init__(self) -> None:
        """Checks every bound.

        Raises:
            UserError: a value is not within its bounds, or early stopping has nothing to go by.
        """
        own: Any = type(self)
        for name, hint in _hints(own).items():
            for bound in getattr(hint, "__metadata__", ()):
                if isinstance(bound, _AtLeast | _Between):
                    bound.check(name, getattr(self, name))
        if getattr(self, "patience", None) and getattr(self, "validation_ratio", None) == 0:
            raise UserError("--patience needs validation data; give --validation-ratio above 0")


@functools.cache
def _hints(settings: Any) -> dict[str, Any]:
    return get_type_hints(settings, include_extras=True)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
