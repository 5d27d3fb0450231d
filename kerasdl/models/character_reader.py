"""A recurrent network over characters, step by step in the graph: it reads, remembers and goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from kerasdl.data.vocabulary import CharacterVocabulary
from kerasdl.decoding import sampling

READ = 256  # characters read at once: what a long text takes of memory


class CharacterReader:
    """The steps of a network of recurrent layers over one-hot characters, and a dense layer `logits`.

    All that it carries is one array, a state float32[batch, state_size]: the logits of the next character, then the
    states of the layers.

    Args:
        model: its recurrent layers, from the input on, are set to run without a GPU's own kernels, as an export has to.
        letters: the vocabulary.
    """

    def __init__(self, model: keras.Model, letters: CharacterVocabulary) -> None:
        self.layers: list[Any] = [layer for layer in model.layers if isinstance(layer, keras.layers.RNN)]
        self.head, self.letters = model.get_layer("logits"), letters
        for layer in self.layers:
            layer.use_cudnn = False
        carried = (size for layer in self.layers for size in tf.nest.flatten(layer.cell.state_size))
        self._sizes = [letters.size, *carried]
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


def stream(signatures: Mapping[str, Any], prompt: str, length: int, **settings: Any) -> Iterator[str]:
    """A text as it is made, in pieces that end where a character does.

    Args:
        signatures: `begin` takes prompt and gives state; `advance` takes state, start, length and the settings, and
            gives text and the next state.
        prompt: what the text goes on from.
        length: tokens to make, characters or bytes.
        **settings: what else `advance` takes, such as temperature and seed.
    """
    state, done, ahead = signatures["begin"](prompt=[prompt])["state"], 0, sampling.BLOCK
    given = {name: [value] for name, value in settings.items()}
    while done < length:
        ahead = min(ahead, length - done)
        answer = signatures["advance"](state=state, start=[done], length=[ahead], **given)
        piece = answer["text"].numpy()[0].decode()
        if piece.endswith("\N{REPLACEMENT CHARACTER}") and done + ahead < length:
            ahead += sampling.BLOCK  # bytes may end inside of a character: make the piece anew, longer
            continue
        yield piece
        state, done, ahead = answer["state"], done + ahead, sampling.BLOCK
