"""Search space of the text classifier."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from apps.sentiment import Config
from tuning._space import around, near

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
        learning_rate=near(hp, config, "learning_rate", 4),
        weight_decay=near(hp, config, "weight_decay", 10),
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
        ngram_strength=near(hp, config, "ngram_strength", 10),
    )
