"""Search space of the text classifier."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from apps.sentiment import Config
from tuning._space import around

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
        learning_rate=hp.Float("learning_rate", config.learning_rate / 4, config.learning_rate * 4, sampling="log"),
        weight_decay=hp.Float("weight_decay", 1e-4, 1.0, sampling="log"),
        dropout=hp.Choice("dropout", **around([0.2, 0.35, 0.5, 0.65], config.dropout)),
        word_dropout=hp.Choice("word_dropout", **around([0.0, 0.1, 0.2, 0.3], config.word_dropout)),
        label_smoothing=hp.Choice("label_smoothing", **around([0.0, 0.05, 0.1], config.label_smoothing)),
        pooling=hp.Choice("pooling", **around(["mean", "max", "attention"], config.pooling)),
    )
    if not config.ngrams:
        return config
    return dataclasses.replace(
        config,
        ngram_share=hp.Float("ngram_share", 0.2, 0.8, step=0.1),
        ngram_strength=hp.Float("ngram_strength", 0.03, 3.0, sampling="log"),
    )
