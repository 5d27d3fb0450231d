"""Search space of the image captioner."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from apps.captioner import Config
from tuning._space import around, near

if TYPE_CHECKING:
    import keras_tuner


def space(hp: keras_tuner.HyperParameters, config: Config) -> Config:
    """Optimiser, regularisation and the decoder's size.

    Args:
        hp: where values are drawn from.
        config: every field that is not searched.
    """
    config = dataclasses.replace(
        config,
        learning_rate=near(hp, config, "learning_rate", 4),
        dropout=hp.Choice("dropout", **around([0.3, 0.4, 0.5, 0.6], config.dropout)),
        label_smoothing=hp.Choice("label_smoothing", **around([0.0, 0.1, 0.2], config.label_smoothing)),
        units=hp.Choice("units", **around([config.units // 2 or 1, config.units * 2], config.units)),
    )
    if config.attention == "none":
        return config
    return dataclasses.replace(
        config,
        doubly_stochastic=hp.Choice("doubly_stochastic", **around([0.0, 0.3, 1.0], config.doubly_stochastic)),
        attention_units=hp.Choice("attention_units", **around([128, 256, 512], config.attention_units)),
    )
