"""Search space of the text generator."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from apps.chargen import Config

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
        learning_rate=hp.Float("learning_rate", config.learning_rate / 4, config.learning_rate * 4, sampling="log"),
        dropout=hp.Choice("dropout", [0.0, 0.2, 0.4, 0.5, 0.6]),
        units=hp.Choice("units", sorted({config.units // 2 or 1, config.units, config.units * 2})),
        depth=hp.Int("depth", 1, 3),
        window=hp.Choice("window", sorted({config.window // 2 or 1, config.window, config.window * 2})),
    )
