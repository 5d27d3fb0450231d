"""Search space of the image classifier."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from apps.cifar10 import Config
from tuning._space import around, near

if TYPE_CHECKING:
    import keras_tuner


def space(hp: keras_tuner.HyperParameters, config: Config) -> Config:
    """Optimiser and augmentation around the recipe of the chosen architecture.

    Args:
        hp: where values are drawn from.
        config: every field that is not searched.
    """
    config = dataclasses.replace(
        config,
        learning_rate=near(hp, config, "learning_rate", 4),
        weight_decay=near(hp, config, "weight_decay", 10),
        label_smoothing=hp.Choice("label_smoothing", **around([0.0, 0.1, 0.2], config.label_smoothing)),
    )
    if not config.augment:
        return config
    return dataclasses.replace(
        config,
        padding=hp.Choice("padding", **around([0, 2, 4], config.padding)),
        cutout_size=hp.Choice("cutout_size", **around([0, 8, 12], config.cutout_size)),
    )
