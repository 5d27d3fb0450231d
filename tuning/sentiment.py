"""Search space of the text classifier."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from apps.sentiment import Config
from tuning._space import around, logarithmic

if TYPE_CHECKING:
    import keras_tuner


def space(hp: keras_tuner.HyperParameters, config: Config) -> Config:
    """Optimiser, regularisation, and how the words of a text become one vector.

    Args:
        hp: where values are drawn from.
        config: every field that is not searched.
    """
    config = dataclasses.replace(
        config,
        learning_rate=logarithmic(
            hp, "learning_rate", config.learning_rate / 4, 4 * config.learning_rate, config.learning_rate
        ),
        weight_decay=logarithmic(hp, "weight_decay", 1e-4, 1.0, config.weight_decay),
        dropout=hp.Choice("dropout", **around([0.2, 0.35, 0.5, 0.65], config.dropout)),
        word_dropout=hp.Choice("word_dropout", **around([0.0, 0.1, 0.2, 0.3], config.word_dropout)),
        label_smoothing=hp.Choice("label_smoothing", **around([0.0, 0.05, 0.1], config.label_smoothing)),
    )
    if config.architecture != "cnn":
        pooling = hp.Choice("pooling", **around(["mean", "max", "attention"], config.pooling))
        config = dataclasses.replace(config, pooling=pooling)
    if not config.ngrams:
        return config
    return dataclasses.replace(
        config,
        ngram_share=hp.Choice("ngram_share", **around([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], config.ngram_share)),
        ngram_strength=logarithmic(hp, "ngram_strength", 0.03, 3.0, config.ngram_strength),
    )
