"""Search space of the DCGAN."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from apps.dcgan import Config
from tuning._space import around, near

if TYPE_CHECKING:
    import keras_tuner


def space(hp: keras_tuner.HyperParameters, config: Config) -> Config:
    """The game, and what keeps it in balance.

    Args:
        hp: where values are drawn from.
        config: every field that is not searched.
    """
    rates: dict[str, Any] = {
        name: near(hp, config, name, 4) for name in ("generator_learning_rate", "discriminator_learning_rate")
    }
    loss = hp.Choice("loss", **around(["minimax", "non-saturating", "hinge"], config.loss))
    return dataclasses.replace(
        config,
        **rates,
        beta_1=hp.Choice("beta_1", **around([0.0, 0.5], config.beta_1)),
        loss=loss,
        label_smoothing=0.0 if loss == "hinge" else config.label_smoothing,
        normalization=hp.Choice("normalization", **around(["batch", "spectral"], config.normalization)),
        minibatch_deviation=hp.Boolean("minibatch_deviation", default=config.minibatch_deviation),
    )
