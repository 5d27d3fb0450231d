"""Search space of the variational autoencoder."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from apps.vae import Config
from tuning._space import around, near

if TYPE_CHECKING:
    import keras_tuner


def space(hp: keras_tuner.HyperParameters, config: Config) -> Config:
    """Optimiser and the networks' sizes.

    Args:
        hp: where values are drawn from.
        config: every field that is not searched.
    """
    config = dataclasses.replace(
        config,
        learning_rate=near(hp, config, "learning_rate", 4),
        batch_size=hp.Choice("batch_size", **around([64, 128, 256, 512, 1024], config.batch_size)),
        latents=hp.Choice("latents", **around([10, 20, 40, 80], config.latents)),
        units=hp.Choice("units", **around([100, 200, 300, 500], config.units)),
    )
    if "convolutional" not in (config.encoder, config.decoder):
        return config
    return dataclasses.replace(config, filters=hp.Choice("filters", **around([16, 32, 64], config.filters)))
