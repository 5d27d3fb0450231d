"""A captioner in the graph, as an export has it: captions of pictures, and where it looks for each word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kerasdl.blocks.caption_decoder import END, START
from kerasdl.data import picture_decoding, pipeline, vocabulary
from kerasdl.decoding import caption_writer, rows
from kerasdl.errors import UserError
from kerasdl.figures import plots
from kerasdl.models import captioner

_BLOCK = 32  # pictures that are encoded at once: an encoder takes ten megabytes for each


class CaptionSearch:
    """Pictures uint8[batch, height, width, 3] in, captions as text out.

    Args:
        model: the captioner.
        encode: its `encode`.
        facts: of `caption_examples.facts`: the vocabulary from the id END on, words of a caption at most, and the width
            and length penalty of the beam of `best`.
    """

    def __init__(
        self, model: captioner.Captioner, encode: Callable[[tf.Tensor], tf.Tensor], facts: Mapping[str, Any]
    ) -> None:
        self._model, self._encode, words = model, encode, facts["words"]
        self._max_words, self._beam = facts["max_words"], facts["beam"]
        self._parts = captioner.parts(model.decoder)
        self._seen = self._parts.outputs[0].shape
        units = model.decoder.get_layer(f"{model.decoder.name}_lstm").units
        # Of a state: the word before, the number of words, the memory of the LSTM, and the parts of the picture.
        self._sizes = [1, 1, units, units, self._seen[1] * self._seen[2]]
        self._words = tf.constant(["", "", "", *words[1:]])  # padding, the unknown word and the end are not shown
        self._known = vocabulary.WordVocabulary(words)
        self.resources = (self._known.table,)

    def search(self, image: tf.Tensor, beam_width: tf.Tensor, length_penalty: tf.Tensor) -> dict[str, tf.Tensor]:
        """Captions string[batch, width], the best first, and the natural logarithms of their probabilities.

        A row that asked for fewer than another has empty captions at the end, with the lowest number of float32.

        Args:
            image: the pictures.
            beam_width: int32[batch].
            length_penalty: float32[batch].
        """
        ids, log_probability, _ = caption_writer.search(
            self._model.decoder, self._parts(self._encoded(image)), beam_width, length_penalty, self._max_words + 1
        )
        written = tf.strings.strip(tf.strings.reduce_join(tf.gather(self._words, ids), -1, separator=" "))
        # A place without a caption has minus infinity, which JSON has not.
        return {"captions": written, "log_probabilities": tf.maximum(log_probability, tf.float32.min)}

    def best(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """The best caption string[batch] of each picture, and the natural logarithm of its probability."""
        count, (width, penalty) = tf.shape(image)[0], self._beam
        found = self.search(image, tf.fill([count], width), tf.fill([count], tf.constant(penalty, tf.float32)))
        return {"caption": found["captions"][:, 0], "log_probability": found["log_probabilities"][:, 0]}

    def attention(self, image: tf.Tensor, caption: tf.Tensor) -> dict[str, tf.Tensor]:
        """What the model thinks of captions.

        Args:
            image: the pictures.
            caption: string[batch], one for each; the end is added.

        Returns:
            words string[batch, words] and their log_probabilities; of a model that attends weights float32[batch,
            words, side, side], too.
        """
        ids = self._known.table.lookup(self._known.tokenize(caption))[:, : self._max_words]
        ended = tf.concat([ids, tf.fill([ids.nrows(), 1], END)], 1).to_tensor(vocabulary.PADDING)
        before = tf.pad(ended[:, :-1], [[0, 0], [1, 0]])
        found = self._model.decoder({"picture": self._encoded(image), "tokens": before}, training=False)
        possible = tf.range(tf.shape(self._words)[0]) >= END
        log_probabilities = tf.nn.log_softmax(tf.where(possible, found["logits"], -1e9))
        answer = {
            "words": tf.gather(self._words, ended),
            "log_probabilities": tf.gather(log_probabilities, ended, batch_dims=2),
        }
        if "weights" in found:
            side = round(found["weights"].shape[-1] ** 0.5)
            answer["weights"] = tf.reshape(found["weights"], [*tf.unstack(tf.shape(before)), side, side])
        return answer

    def begin(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """The state float32[batch, size] before the first word of a caption."""
        seen = self._parts(self._encoded(image))
        count = tf.shape(seen)[0]
        _, state, _ = caption_writer.writer(self._model.decoder, seen)
        first = [tf.fill([count, 1], float(START)), tf.zeros([count, 1])]
        parts = tf.reshape(seen, [count, self._sizes[-1]])
        return {"state": tf.ensure_shape(tf.concat([*first, *state, parts], 1), [None, sum(self._sizes)])}

    def advance(self, state: tf.Tensor) -> dict[str, tf.Tensor]:
        """The likeliest next word of each caption; together they are what `search` finds with a beam of width 1.

        Args:
            state: of `begin`, or of the word before.

        Returns:
            text string[batch], each word but the first behind a blank, empty at the end; and the state behind it.

        Raises:
            InvalidArgumentError: in the graph: NaN or infinity.
        """
        state = tf.debugging.check_numerics(state, "state holds NaN or infinity, expected that of `begin`")
        # As `export.finite`: products of the largest numbers would be infinite.
        token, words, *memory, parts = tf.split(tf.clip_by_value(state, -1e6, 1e6), self._sizes, 1)
        step, _, given = caption_writer.writer(self._model.decoder, tf.reshape(parts, [-1, *self._seen[1:]]))
        before = tf.cast(tf.clip_by_value(token[:, 0], 0, self._words.shape[0] - 1), tf.int32)
        log_probabilities, memory = step(before, tuple(memory), given)
        ended = (before == END) | (words[:, 0] >= self._max_words)
        word = tf.where(ended, END, tf.argmax(log_probabilities, -1, tf.int32))
        text = tf.where((word == END) | (words[:, 0] < 1), "", " ") + tf.gather(self._words, word)
        token = tf.cast(word, tf.float32)[:, None]
        return {"text": text, "state": tf.concat([token, words + 1, *memory, parts], 1)}

    def _encoded(self, image: tf.Tensor) -> tf.Tensor:
        encoded = self._model.decoder.input["picture"]
        spec = tf.TensorSpec(encoded.shape, tf.uint8 if self._model.encoder is None else tf.float16)
        return rows.by_blocks(self._encode, image, spec=spec, block=_BLOCK)


def describe(signatures: Mapping[str, Any], images: np.ndarray) -> list[str]:
    """The best caption of each picture uint8[pictures, size, size, 3], by the signature `pixels` of a captioner."""
    parts = pipeline.slices(len(images), 32, "Describing")
    found = [signatures["pixels"](image=tf.constant(images[part]))["caption"] for part in parts]
    return [caption.decode() for caption in np.concatenate(found)]


def draw_attention(signatures: Mapping[str, Any], content: bytes, caption: str, path: Path) -> Path:
    """Draws where a captioner looks for each word, by its signature `attention`.

    Args:
        signatures: of the captioner.
        content: a picture's file.
        caption: one of this picture.
        path: the PNG to write.

    Raises:
        UserError: it has no attention.
    """
    answer = signatures["attention"](image_bytes=tf.constant([content]), caption=tf.constant([caption]))
    if "weights" not in answer:
        raise UserError("this model looks at the whole picture at once; --explain needs one with --attention additive")
    words = [word.decode() or "(end)" for word in answer["words"].numpy()[0]]
    image = picture_decoding.square(tf.constant(content), 224, squash=True).numpy()
    return plots.attention_maps(image, answer["weights"].numpy()[0], words, path)
