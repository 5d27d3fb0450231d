"""Words as vectors, and what keeps a network from relying on single ones."""

from typing import Any

import keras
from keras import ops

from kerasdl.blocks.symbolic import require_symbolic


@keras.saving.register_keras_serializable(package="kerasdl")
class PaddingMask(keras.layers.Layer):
    """Where the words are: a layer without weights, so that the mask has a name.

    Source: own.
    """

    def call(self, tokens: Any) -> Any:
        """Maps int32[batch, words] to bool[batch, words]."""
        return ops.not_equal(tokens, 0)


def padding_mask(tokens: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
    """The mask of padded texts; the blocks for sequences take it as their argument `mask`.

    It is a tensor like any other: Keras' own masks, which travel unseen with a tensor, get lost at the first
    operation that does not know them.

    Args:
        tokens: int32[batch, words], 0 is padding.
        name: name of the layer.

    Returns:
        bool[batch, words], true at words.

    Raises:
        ValueError: tokens are not symbolic.
    Source: own.
    """
    require_symbolic(tokens, "padding_mask")
    return PaddingMask(name=name)(tokens)


@keras.saving.register_keras_serializable(package="kerasdl")
class WordDropout(keras.layers.Layer):
    """In training, turns words into the unknown one, each by itself; padding stays.

    The unknown word learns a vector this way, though it may never occur in a training text.

    Args:
        rate: probability of each word.
        unknown: id of the unknown word.
        seed: of the draws; taken from Keras' global seed if None.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        ValueError: the rate is no probability.
    Source: Iyyer et al. 2015, "Deep Unordered Composition Rivals Syntactic Methods for Text Classification", section
        3.1 (there the word leaves the mean); Dai and Le 2015, arXiv:1511.01432; the unknown word in its place is own.
    """

    def __init__(self, rate: float, unknown: int = 1, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate <= 1:
            raise ValueError(f"word dropout has the rate {rate}, expected a probability: give one between 0 and 1")
        self.rate = rate
        self.unknown = unknown
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, tokens: Any, training: bool | None = None) -> Any:
        """Maps int32[batch, words] to int32[batch, words]."""
        if not training:
            return tokens
        dropped = keras.random.uniform(ops.shape(tokens), seed=self.seed_generator) < self.rate
        return ops.where(ops.logical_and(dropped, tokens != 0), ops.cast(self.unknown, tokens.dtype), tokens)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "rate": self.rate, "unknown": self.unknown, "seed": self.seed}


def embedding(
    tokens: keras.KerasTensor,
    vocabulary_size: int,
    units: int,
    *,
    word_dropout: float = 0.0,
    dropout: float = 0.0,
    name: str,
) -> keras.KerasTensor:
    """A trained vector for each word.

    Args:
        tokens: int32[batch, words], 0 is padding and 1 the unknown word.
        vocabulary_size: number of ids, these two included.
        units: size of a vector.
        word_dropout: probability in training that a word becomes the unknown one, see `WordDropout`.
        dropout: probability in training that a component is zero, in all words of a text alike.
        name: name of the embedding, prefix of `_word_dropout` and `_dropout`.

    Returns:
        float32[batch, words, units]; padding has a vector too, so that what follows needs the mask.

    Raises:
        ValueError: tokens are not symbolic, or a rate is no probability.
    Source: Bengio et al. 2003, "A Neural Probabilistic Language Model", section 2; dropout: Tompson et al. 2014,
        arXiv:1411.4280, section 3.2.
    """
    require_symbolic(tokens, "embedding")
    if word_dropout:
        tokens = WordDropout(word_dropout, name=f"{name}_word_dropout")(tokens)
    x = keras.layers.Embedding(vocabulary_size, units, name=name)(tokens)
    return keras.layers.SpatialDropout1D(dropout, name=f"{name}_dropout")(x) if dropout else x
