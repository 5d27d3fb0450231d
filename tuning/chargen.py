"""Search space of the text generator."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from apps.chargen import Config
from tuning._space import around, near

if TYPE_CHECKING:
    import keras_tuner


def space(hp: keras_tuner.HyperParameters, config: Config) -> Config:
    """Size of the network, its dropout, and how far the gradient goes back, around the given configuration.

    Args:
        hp: where values are drawn from.
        config: every field that is not searched.
    """
    return dataclasses.replace(
        config,
        learning_rate=near(hp, config, "learning_rate", 4),
        dropout=hp.Choice("dropout", **around([0.0, 0.2, 0.4, 0.5, 0.6], config.dropout)),
        units=hp.Choice("units", **around([config.units // 2 or 1, config.units * 2], config.units)),
        depth=hp.Choice("depth", **around([1, 2, 3], config.depth)),
        window=hp.Choice("window", **around([config.window // 2 or 1, config.window * 2], config.window)),
    )
