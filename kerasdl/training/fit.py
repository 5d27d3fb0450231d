"""One call of Keras' `fit` for every application: from where a run's checkpoint stands, with early stopping."""

from collections.abc import Sequence
from typing import Any, Protocol

import keras

from kerasdl.training import progress
from kerasdl.training.checkpoint import Checkpoint


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
    """Fits a model, so that it stops and resumes exactly.

    Args:
        model: compiled.
        batches: shuffled already, from the checkpoint's `initial_epoch` on.
        callbacks: those of the run; the last is its `Checkpoint`, whose metric early stopping watches.
        settings: the configuration. Early stopping, and the schedule plateau, follow the checkpoint's metric.
        steps: of an epoch.
        validation: batches that are measured after each epoch; None: there are none.
        epochs: number of the last epoch, where it is not that of the settings.
        others: callbacks of the application. Those that compute a metric come first: early stopping follows them.

    Returns:
        Keras' history.

    Raises:
        TypeError: the last callback is no `Checkpoint`.

    Source: early stopping: Prechelt 1998, "Early Stopping - But When?".
    """
    saver = callbacks[-1]
    if not isinstance(saver, Checkpoint):
        raise TypeError(f"fit got {type(saver).__name__} as the last callback, expected the run's Checkpoint")
    others = [*others]
    mode = "max" if saver.maximize else "min"
    if getattr(settings, "schedule", None) == "plateau" and validation is not None:
        others.append(keras.callbacks.ReduceLROnPlateau(saver.monitor, factor=0.1, patience=5, mode=mode))
    if settings.patience and validation is not None:
        others.append(keras.callbacks.EarlyStopping(saver.monitor, patience=settings.patience, mode=mode))
    saver.watch(others)
    return model.fit(
        batches,
        epochs=epochs or settings.epochs,
        initial_epoch=saver.initial_epoch,
        steps_per_epoch=steps,
        shuffle=False,
        validation_data=validation,
        callbacks=[*others, *callbacks],
        verbose=progress.verbosity(),
    )
