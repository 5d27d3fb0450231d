"""How much each word of a text matters to the answer of a classifier."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from kerasdl.blocks import attention


def word_weights(model: keras.Model) -> tuple[Callable[[tf.Tensor], tf.Tensor], str]:
    """The words that mattered.

    Args:
        model: tokens int32[batch, words] -> logits float32[batch, classes], with the layers `embedding` and `pool`,
            and, if it has n-grams, `ngrams` and `blend`.

    Returns:
        A function of tokens that gives float32[batch, words], and what it gives, for the model card: the attention to
        each word if `pool` is an `AttentionPooling`; else how much the word speaks for the likeliest class: the
        gradient of that logit above the mean by the word's vector, times the vector; and what its n-grams add.

    Source: gradient times input: Shrikumar et al. 2016, arXiv:1605.01713.
    """
    layers = {layer.name: layer for layer in model.layers}
    if isinstance(layers["pool"], attention.AttentionPooling):
        attention_of = keras.Model(model.input, layers["pool"].output[1])
        return lambda tokens: attention_of(tokens, training=False), "its attention to each"
    inner = keras.Model([model.input, layers["embedding"].output], model.output)

    def gradient_times_input(tokens: tf.Tensor) -> tf.Tensor:
        x = layers["embedding"](tokens)
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = inner([tokens, x], training=False)
            margin = tf.reduce_max(logits, -1) - tf.reduce_mean(logits, -1)
        weight = tf.reduce_sum(tape.gradient(margin, x) * x, -1)
        if "ngrams" in layers:
            by_word = layers["blend"].share * layers["ngrams"].by_word(tokens)
            predicted = tf.gather(by_word, tf.argmax(logits, -1), axis=2, batch_dims=1)
            weight += predicted - tf.reduce_mean(by_word, -1)
        return weight

    return gradient_times_input, "how much each speaks for the label, or against it (below 0)"
