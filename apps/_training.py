"""Training on examples that fit into memory, in an order of their own in each epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from kerasdl.data import pipeline
from kerasdl.training import fit


def fit_arrays(
    config: Any,
    model: keras.Model,
    arrays: Sequence[Any],
    callbacks: Sequence[Any],
    transform: Callable[..., Any],
    **options: Any,
) -> keras.callbacks.History:
    """Fits a model to batches of arrays.

    Args:
        config: of the application.
        model: compiled.
        arrays: the training examples, equally long, see `pipeline.training_batches`.
        callbacks: those of the run.
        transform: makes what `fit` takes of a batch, see `pipeline.training_batches`.
        **options: more of those of `kerasdl.training.fit.fit`.
    """
    batches = pipeline.training_batches(
        arrays,
        config.batch_size,
        initial_epoch=callbacks[-1].initial_epoch,
        seed=config.seed,
        transform=transform,
    )
    steps = pipeline.num_steps(len(arrays[0]), config.batch_size)
    return fit.fit(model, batches, callbacks, config, steps=steps, **options)
