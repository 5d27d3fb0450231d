"""Training on examples that fit into memory, in an order of their own in each epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras

from kerasdl.data import pipeline
from kerasdl.training import fit, several_sizes


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


def fit_in_turn(
    config: Any,
    model: several_sizes.SeveralSizes,
    arrays: Sequence[Any],
    callbacks: Sequence[Any],
    transform: Callable[..., Any],
    **options: Any,
) -> keras.callbacks.History:
    """Fits a model to batches of pictures of several sizes, in turn.

    Args:
        config: of the application.
        model: compiled.
        arrays: uint8[pictures, height, width, channels], one of each size. An epoch passes over the first one once, in
            batches of the configured size, and takes as many of each other one, with about as many pixels.
        callbacks: those of the run.
        transform: see `fit_arrays`.
        **options: more of those of `kerasdl.training.fit.fit`.
    """
    steps = pipeline.num_steps(len(arrays[0]), config.batch_size)
    areas = [math.prod(images.shape[1:3]) for images in arrays]
    batches = [
        pipeline.training_batches(
            [images],
            max(1, round(config.batch_size * areas[0] / area)),
            initial_epoch=callbacks[-1].initial_epoch,
            seed=config.seed + number,
            transform=transform,
            steps=steps,
        )
        for number, (images, area) in enumerate(zip(arrays, areas, strict=True))
    ]
    model.several = len(arrays) > 1
    return fit.fit(model, pipeline.in_turn(batches), callbacks, config, steps=steps * len(arrays), **options)
