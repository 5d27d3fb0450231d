"""Sentences about pictures: the two classic decoders."""

from __future__ import annotations

from typing import Any

import keras

from kerasdl.blocks import recurrence
from kerasdl.blocks.symbolic import require_symbolic
from kerasdl.data import vocabulary
from kerasdl.fast import attentive_lstm

START, END = vocabulary.PADDING, vocabulary.UNKNOWN + 1
"""What stands before the first word (the id of padding, which is no word), and what is written after the last."""


def show_attend_and_tell(
    x: keras.KerasTensor,
    tokens: keras.KerasTensor,
    num_tokens: int,
    *,
    units: int,
    attention_units: int,
    embedding_dim: int,
    dropout: float = 0.0,
    name: str,
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Decoder that looks at another part of the picture before each word.

    The first state is computed from the mean of the parts. The next word follows from the previous one, the LSTM's
    output and what was looked at (deep output). As in the authors' code a tanh closes the deep output, and dropout
    stands before and behind it; here the last layer shares its weights with the word vectors (Press and Wolf 2016,
    arXiv:1608.05859), which small data sets need.

    Args:
        x: parts of the picture float32[batch, items, channels].
        tokens: the word before each step int32[batch, time], START at first.
        num_tokens: size of the vocabulary.
        units: size of the LSTM.
        attention_units: size of the hidden layer of the attention.
        embedding_dim: size of a word's vector.
        dropout: share of features dropped of words, of the parts, and around the deep output.
        name: prefix of the layer names.

    Returns:
        logits float32[batch, time, num_tokens], in mixed precision of the compute dtype, and the attention weights
        float32[batch, time, items].

    Raises:
        ValueError: x is not symbolic.
    Source: Xu et al. 2015, arXiv:1502.03044, section 3.1.2, equations 1 to 7.
    """
    require_symbolic(x, "show_attend_and_tell")
    dense, drop = keras.layers.Dense, keras.layers.Dropout
    vectors = _word_vectors(num_tokens, embedding_dim, f"{name}_words")
    words = drop(dropout, name=f"{name}_words_dropout")(vectors(tokens))
    mean = keras.layers.GlobalAveragePooling1D(name=f"{name}_mean")(x)
    first = [dense(units, "tanh", name=f"{name}_first_{part}")(mean) for part in ("h", "c")]
    lstm = attentive_lstm.AttentiveLSTM(units, attention_units, name=f"{name}_lstm")
    outputs, contexts, weights = lstm(words, x, *first)
    outputs = drop(dropout, name=f"{name}_outputs_dropout")(outputs)
    deep = [
        words,
        dense(embedding_dim, name=f"{name}_deep_outputs")(outputs),
        dense(embedding_dim, use_bias=False, name=f"{name}_deep_contexts")(contexts),
    ]
    deep = keras.layers.Activation("tanh", name=f"{name}_deep")(keras.layers.Add(name=f"{name}_deep_sum")(deep))
    return vectors(drop(dropout, name=f"{name}_deep_dropout")(deep), reverse=True), weights


def show_and_tell(
    x: keras.KerasTensor,
    tokens: keras.KerasTensor,
    num_tokens: int,
    *,
    units: int,
    embedding_dim: int,
    dropout: float = 0.0,
    name: str,
) -> keras.KerasTensor:
    """Decoder that sees the whole picture once, in place of a word before the first.

    The last layer shares its weights with the word vectors, by a projection of the LSTM's output to their size.

    Args:
        x: parts of the picture float32[batch, items, channels]; their mean is shown.
        tokens: the word before each step int32[batch, time], START at first.
        num_tokens: size of the vocabulary.
        units: size of the LSTM.
        embedding_dim: size of a word's vector.
        dropout: share of features dropped of words and of the LSTM's output.
        name: prefix of the layer names.

    Returns:
        logits float32[batch, time, num_tokens], in mixed precision of the compute dtype.

    Raises:
        ValueError: x is not symbolic.
    Source: Vinyals et al. 2014, arXiv:1411.4555, section 3.1, equations 10 to 12.
    """
    require_symbolic(x, "show_and_tell")
    dense, drop = keras.layers.Dense, keras.layers.Dropout
    vectors = _word_vectors(num_tokens, embedding_dim, f"{name}_words")
    words = drop(dropout, name=f"{name}_words_dropout")(vectors(tokens))
    mean = keras.layers.GlobalAveragePooling1D(name=f"{name}_mean")(x)
    shown = dense(embedding_dim, name=f"{name}_shown")(mean)
    steps = keras.layers.Concatenate(axis=1, name=f"{name}_steps")([shown[:, None], words])
    outputs = recurrence.QuickLSTM(units, return_sequences=True, name=f"{name}_lstm")(steps)[:, 1:]
    outputs = drop(dropout, name=f"{name}_outputs_dropout")(outputs)
    return vectors(dense(embedding_dim, name=f"{name}_deep_outputs")(outputs), reverse=True)


def _word_vectors(num_tokens: int, size: int, name: str) -> Any:
    # Keras' initial vectors are made to be read; as the last layer's weights they are too short to learn quickly.
    initial = keras.initializers.RandomNormal(stddev=size**-0.5)
    return keras.layers.ReversibleEmbedding(num_tokens, size, embeddings_initializer=initial, name=name)
