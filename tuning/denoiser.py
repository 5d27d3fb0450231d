"""Search space of the denoiser."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from apps.denoiser import Config
from tuning._space import around, near

if TYPE_CHECKING:
    import keras_tuner


def space(hp: keras_tuner.HyperParameters, config: Config) -> Config:
    """Optimiser and the network's size.

    Args:
        hp: where values are drawn from.
        config: every field that is not searched.
    """
    return dataclasses.replace(
        config,
        learning_rate=near(hp, config, "learning_rate", 4),
        batch_size=hp.Choice("batch_size", **around([16, 32, 64, 128], config.batch_size)),
        width=hp.Choice("width", **around([16, 32, 48, 64], config.width)),
        depth=hp.Choice("depth", **around([2, 3, 4], config.depth)),
    )
