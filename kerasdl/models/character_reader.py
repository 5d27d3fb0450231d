"""A recurrent network over characters, step by step in the graph: it reads, remembers and goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from kerasdl.data.vocabulary import CharacterVocabulary

READ = 256  # characters read at once: what a long text takes of memory


class CharacterReader:
    """The steps of a network of recurrent layers over one-hot characters, and a dense layer of logits.

    All that it carries is one array, a state float32[batch, state_size]: the logits of the next character, then the
    states of the layers.

    Args:
        layers: recurrent, in their order; they are set to run without a GPU's own kernels, as an export has to.
        head: from the last layer's output to the logits.
        letters: the vocabulary.
    """

    def __init__(
        self, layers: Sequence[keras.layers.RNN], head: keras.layers.Layer, letters: CharacterVocabulary
    ) -> None:
        for layer in layers:
            layer.use_cudnn = False
        self.layers, self.head, self.letters = layers, head, letters
        self._sizes = [letters.size, *(size for layer in layers for size in tf.nest.flatten(layer.cell.state_size))]
        self.state_size = sum(self._sizes)
        self._line_break = int(next(iter(letters.encode_text("\n")), 0))

    def step(self, token: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        """The state after one more token int32[batch]."""
        x, new = tf.one_hot(token, self.letters.size), []
        for layer, before in zip(self.layers, self._carried(state), strict=True):
            x, after = layer.cell(x, before)
            new += after
        return tf.concat([self.head(x), *new], -1)

    def encode(self, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Texts string[batch] as tokens int32[batch, time], at least one wide, with line breaks behind the end; and
        which ones count, bool[batch, time].
        """
        ragged = self.letters.encode(texts)
        lengths = ragged.row_lengths()
        longest = tf.maximum(tf.reduce_max(lengths), 1)
        tokens = ragged.to_tensor(self._line_break, shape=tf.stack([ragged.nrows(), longest]))
        return tokens, tf.sequence_mask(lengths, longest)

    def read(self, tokens: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The state after each text, and the loss of its characters after the first, in nats, float32[batch].

        Args:
            tokens: see `encode`.
            mask: see `encode`.
        """

        def block(t: Any, state: Any, nats: Any) -> Any:
            token, valid = tokens[:, t : t + READ], mask[:, t : t + READ]
            x, new = tf.one_hot(token, self.letters.size), []
            for layer, before in zip(self.layers, self._carried(state), strict=True):
                _, x, after = layer.inner_loop(x, before, valid, training=False)
                new += after
            logits = tf.concat([state[:, None, : self.letters.size], self.head(x)], 1)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(token, logits[:, :-1])
            counted = valid & (t + tf.range(tf.shape(token)[1]) > 0)
            # A text that ended before this block keeps its state.
            state = tf.where(valid[:, :1], tf.concat([logits[:, -1], *new], -1), state)
            return t + READ, state, nats + tf.reduce_sum(tf.where(counted, losses, 0.0), 1)

        begin = (0, self._nothing_read(tokens), tf.zeros_like(tokens[:, 0], tf.float32))
        _, state, nats = tf.while_loop(lambda t, *_: t < tf.shape(tokens)[1], block, begin, parallel_iterations=1)
        return state, nats

    def begins_character(self, tokens: tf.Tensor) -> tf.Tensor:
        """Everywhere, but at a byte that continues a character of UTF-8; bool, the shape of the tokens."""
        return tf.bitwise.bitwise_and(tokens, 0xC0) != 0x80 if self.letters.characters is None else tokens >= 0

    def memory(self, text: tf.Tensor) -> tf.Tensor:
        """What every cell remembers after each known character, -1 to 1, float32[batch, characters, cells]."""
        tokens, mask = self.encode(text)
        times = tf.shape(tokens)[1]

        def body(t: Any, state: Any, values: Any) -> Any:
            state = self.step(tokens[:, t], state)
            remembered = tf.concat([parts[-1] for parts in self._carried(state)], -1)
            return t + 1, state, values.write(t, tf.tanh(remembered))

        start = (0, self._nothing_read(tokens), tf.TensorArray(tf.float32, times))
        values = tf.while_loop(lambda t, *_: t < times, body, start, parallel_iterations=1)[2]
        following = tf.pad(tokens[:, 1:], [[0, 0], [0, 1]])
        memory = tf.ragged.boolean_mask(
            tf.transpose(values.stack(), [1, 0, 2]), mask & self.begins_character(following)
        )
        return memory.to_tensor()

    def _nothing_read(self, texts: tf.Tensor) -> tf.Tensor:
        return tf.zeros([tf.shape(texts)[0], self.state_size])

    def _carried(self, state: tf.Tensor) -> list[list[tf.Tensor]]:
        """What each layer carries."""
        parts = iter(tf.split(state, self._sizes, -1)[1:])
        return [[next(parts) for _ in tf.nest.flatten(layer.cell.state_size)] for layer in self.layers]
