"""Search space of the DCGAN."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from apps.dcgan import Config
from tuning._space import around

if TYPE_CHECKING:
    import keras_tuner


def space(hp: keras_tuner.HyperParameters, config: Config) -> Config:
    """The game, and what keeps it in balance.

    Args:
        hp: where values are drawn from.
        config: every field that is not searched.
    """
    rates = {
        name: hp.Float(name, getattr(config, name) / 4, getattr(config, name) * 4, sampling="log")
        for name in ("generator_learning_rate", "discriminator_learning_rate")
    }
    return dataclasses.replace(
        config,
        **rates,
        beta_1=hp.Choice("beta_1", **around([0.0, 0.5], config.beta_1)),
        loss=hp.Choice("loss", **around(["minimax", "non-saturating", "hinge"], config.loss)),
        label_smoothing=0.0,  # hinge has none
        normalization=hp.Choice("normalization", **around(["batch", "spectral"], config.normalization)),
        minibatch_deviation=hp.Boolean("minibatch_deviation", default=config.minibatch_deviation),
    )
