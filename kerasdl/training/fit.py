"""One call of Keras' `fit` for every application: from where a run's checkpoint stands, with early stopping."""

from collections.abc import Sequence
from typing import Any

import keras

from kerasdl.training import progress
from kerasdl.training.checkpoint import Checkpoint


def fit(
    model: keras.Model,
    batches: Any,
    callbacks: Sequence[keras.callbacks.Callback],
    *,
    epochs: int,
    steps: int,
    validation: Any = None,
    patience: int | None = None,
    others: Sequence[keras.callbacks.Callback] = (),
) -> keras.callbacks.History:
    """Fits a model, so that it stops and resumes exactly.

    Args:
        model: compiled.
        batches: shuffled already, from the checkpoint's `initial_epoch` on.
        callbacks: those of the run; the last is its `Checkpoint`, whose metric early stopping watches.
        epochs: number of the last epoch.
        steps: of an epoch.
        validation: batches that are measured after each epoch; None: there are none.
        patience: stop after this many epochs without a better metric; None never does, nor without validation.
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
    if patience and validation is not None:
        mode = "max" if saver.maximize else "min"
        others.append(keras.callbacks.EarlyStopping(saver.monitor, patience=patience, mode=mode))
    saver.watch(others)
    return model.fit(
        batches,
        epochs=epochs,
        initial_epoch=saver.initial_epoch,
        steps_per_epoch=steps,
        shuffle=False,
        validation_data=validation,
        callbacks=[*others, *callbacks],
        verbose=progress.verbosity(),
    )
