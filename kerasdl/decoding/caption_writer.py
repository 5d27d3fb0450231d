"""Captions word by word: a decoder as a step of a loop, and captions drawn from its probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kerasdl.blocks.caption_decoder import END, START
from kerasdl.data import vocabulary
from kerasdl.decoding import beam_search
from kerasdl.fast import attentive_lstm


def draw(step: Callable[..., Any], state: Any, given: Any, seed: Any, max_length: int) -> Any:
    """Draws a caption for each row from the model's own probabilities.

    Args:
        step: of `writer`, as `state` and `given`.
        state: the first state of each row.
        given: what stays the same.
        seed: int32[2].
        max_length: tokens of a caption, END included.

    Returns:
        int32[batch, length of the longest], filled up with padding behind END.

    Source: own.
    """
    import tensorflow as tf

    rows = tf.shape(tf.nest.flatten(state)[0])[0]

    def body(t: Any, token: Any, going: Any, state: Any, tokens: Any) -> Any:
        log_probabilities, state = step(token, state, given)
        noise = tf.random.stateless_uniform(tf.shape(log_probabilities), tf.random.fold_in(seed, t), 1e-9, 1.0)
        # The largest of logits with Gumbel noise is a draw from their softmax.
        token = tf.where(
            going, tf.argmax(log_probabilities - tf.math.log(-tf.math.log(noise)), -1, tf.int32), vocabulary.PADDING
        )
        return t + 1, token, going & (token != END), state, tokens.write(t, token)

    begin = (
        0,
        tf.fill([rows], START),
        tf.fill([rows], True),
        state,
        tf.TensorArray(tf.int32, max_length, element_shape=[None]),
    )
    length, *_, tokens = tf.while_loop(
        lambda t, token, going, *_: (t < max_length) & tf.reduce_any(going), body, begin, parallel_iterations=1
    )
    return tf.transpose(tokens.gather(tf.range(length)))


def search(decoder: keras.Model, x: Any, width: Any, length_penalty: Any, max_length: int) -> Any:
    """The likeliest captions, see `kerasdl.decoding.beam_search.beam_search`.

    Args:
        decoder: see `writer`.
        x: see `writer`.
        width: hypotheses, int32[batch].
        length_penalty: float32[batch].
        max_length: tokens of a caption, END included.

    Returns:
        What `beam_search` returns.
    """
    return beam_search.beam_search(
        *writer(decoder, x),
        start=START,
        end=END,
        width=width,
        length_penalty=length_penalty,
        max_length=max_length,
    )


def writer(decoder: keras.Model, x: Any) -> tuple[Callable[..., Any], Any, Any]:
    """A decoder word by word, for `kerasdl.decoding.beam_search.beam_search`.

    Padding and the unknown word are never written.

    Args:
        decoder: a model with the layers of `show_attend_and_tell` or `show_and_tell`, whose names begin with its own.
        x: parts of the pictures float32[batch, items, channels], a tensor.

    Returns:
        step, state and given.

    Source: own.
    """

    def layer(part: str) -> Any:
        return decoder.get_layer(f"{decoder.name}_{part}")

    vectors, lstm = layer("words"), layer("lstm")
    mean = layer("mean")(x)

    def log_probabilities(deep: Any) -> Any:
        logits = vectors(deep, reverse=True)
        possible = ops.arange(logits.shape[-1]) >= END
        return ops.log_softmax(ops.where(possible, ops.cast(logits, "float32"), -1e9))

    if isinstance(lstm, attentive_lstm.AttentiveLSTM):
        state = tuple(ops.cast(layer(f"first_{part}")(mean), "float32") for part in ("h", "c"))

        def attending(token: Any, state: Any, given: Any) -> Any:
            word = vectors(token)
            h, c, context, _ = lstm.step(word, *state, *given)
            deep = word + layer("deep_outputs")(h) + layer("deep_contexts")(context)
            return log_probabilities(ops.tanh(deep)), (h, c)

        return attending, state, (x, lstm.project(x))

    nothing = ops.zeros((ops.shape(x)[0], lstm.units), mean.dtype)
    _, state = lstm.cell(layer("shown")(mean), [nothing, nothing])

    def telling(token: Any, state: Any, given: Any) -> Any:
        h, state = lstm.cell(vectors(token), list(state))
        return log_probabilities(layer("deep_outputs")(h)), tuple(state)

    return telling, tuple(state), ()
