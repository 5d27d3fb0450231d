"""What an application module offers. The type checker holds every module in this folder to `Application`."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import keras

    from kerasdl.data.divided import Divided
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
        info: what the model must know (class names, vocabulary). JSON values. The fingerprint of train and validation
            is added, if there is none: a run goes on with equal ones only.
        description: what these examples are, for the model card, such as `CIFAR-10 (TFDS)`.
    """

    train: Any
    validation: Any
    test: Callable[[], Any]
    info: Mapping[str, Any]
    description: str

    def __post_init__(self) -> None:
        """Adds the fingerprint."""
        if "fingerprint" not in self.info:
            from kerasdl.data.divided import fingerprint  # here, since it imports NumPy

            object.__setattr__(self, "info", {**self.info, "fingerprint": fingerprint(self.train, self.validation)})

    @classmethod
    def of(cls, found: Divided[Any], info: Mapping[str, Any], description: str | None = None) -> Splits:
        """What a reader of `kerasdl.data` found; an empty validation part becomes None."""
        validation = found.validation if len(found.validation) else None
        return cls(found.train, validation, found.test, info, description or found.description)


@dataclass(frozen=True)
class Card:
    """The parts of a model card that only the application knows."""

    summary: str
    limits: tuple[str, ...]
    sources: tuple[str, ...]

    @classmethod
    def read(cls, application: str) -> Card:
        """The card in `apps/_cards/APPLICATION.toml`."""
        with (Path(__file__).parent / "_cards" / f"{application}.toml").open("rb") as stream:
            found = tomllib.load(stream)
        return cls(found["summary"], tuple(found["limits"]), tuple(found["sources"]))


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

    def evaluate(
        self, config: Any, signatures: Mapping[str, Any], data: Splits, figures: Path | None = None
    ) -> dict[str, float]:
        """Measures on the test split by the protocol that papers use; draws into `figures` if given.

        The signatures are those of a loaded export, or of a model in memory: `export.in_memory(endpoints(...))`.
        """

    def endpoints(self, model: keras.Model, data: Splits) -> Mapping[str, Endpoint]:
        """The signatures of the export; preprocessing inside the graph."""

    def verdict(self, metrics: Mapping[str, Any]) -> str | None:
        """Why a model with these metrics is of no use, in a few words; None if they do not say so."""

    def tiny(self, config: Any = None) -> tuple[Any, Splits]:
        """A configuration, unless it is given, and learnable synthetic data for it: no files, no network, seconds."""


class Classifier(Application, Protocol):
    """An application whose probabilities are calibrated on held-out examples when a run is measured or exported."""

    def predictions(self, signatures: Mapping[str, Any], examples: Any) -> tuple[Any, Any]:
        """Probabilities float32[examples, classes] and labels int[examples] of a part of the data."""

    def evaluate(
        self,
        config: Any,
        signatures: Mapping[str, Any],
        data: Splits,
        figures: Path | None = None,
        *,
        temperature: float | None = None,
    ) -> dict[str, float]:
        """Measures signatures with this temperature, also as they were without."""

    def endpoints(self, model: keras.Model, data: Splits, temperature: float | None = None) -> Mapping[str, Endpoint]:
        """Divides the logits by the temperature."""


def jsonable(config: Any) -> dict[str, Any]:
    """A configuration as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))
