"""One call of Keras' `fit` for every application: from where a run's checkpoint stands to its last epoch."""

from collections.abc import Sequence
from typing import Any, Protocol

import keras

from kerasdl.training import devices, optimizers, progress
from kerasdl.training.checkpoint import Checkpoint

PLATEAU = 5
"""Epochs without gain after which the schedule plateau lowers the learning rate."""


class Settings(Protocol):
    """What `fit` reads of a configuration, beside a `schedule` that is plateau."""

    @property
    def epochs(self) -> int:
        """Number of the last epoch."""

    @property
    def patience(self) -> int | None:
        """Epochs without a better metric after which the training ends; None never does."""


def fit(
    model: keras.Model,
    batches: Any,
    callbacks: Sequence[keras.callbacks.Callback],
    settings: Settings,
    *,
    steps: int,
    validation: Any = None,
    epochs: int | None = None,
    others: Sequence[keras.callbacks.Callback] = (),
) -> keras.callbacks.History:
    """Fits a model, so that it stops and resumes exactly; a training that is over, or has stopped, is only restored.

    Args:
        model: compiled.
        batches: shuffled already, from the checkpoint's `initial_epoch` on.
        callbacks: those of the run; the last is its `Checkpoint`.
        settings: the configuration. Early stopping, and the schedule plateau, follow the checkpoint's best epoch.
        steps: of an epoch.
        validation: batches that are measured after each epoch; None: there are none.
        epochs: number of the last epoch, where it is not that of the settings.
        others: callbacks of the application; they may add metrics to the logs.

    Returns:
        Keras' history.

    Raises:
        TypeError: the last callback is no `Checkpoint`.

    Source: own.
    """
    saver = callbacks[-1]
    if not isinstance(saver, Checkpoint):
        raise TypeError(f"fit got {type(saver).__name__} as the last callback, expected the run's Checkpoint")
    if validation is not None:
        saver.patience = settings.patience
        saver.plateau = PLATEAU if getattr(settings, "schedule", None) == "plateau" else None
    last = saver.initial_epoch if saver.stopped else epochs or settings.epochs
    optimizers.build(model)
    devices.prepare(model)
    print(f"{steps:,} step{'s' * (steps > 1)} an epoch", flush=True)
    return model.fit(
        batches,
        epochs=last,
        initial_epoch=saver.initial_epoch,
        steps_per_epoch=steps,
        shuffle=False,
        validation_data=validation,
        callbacks=[*others, *callbacks],
        verbose=progress.verbosity(),
    )
