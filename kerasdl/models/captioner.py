"""A captioner: a frozen encoder whose features are computed once, a decoder that is trained, and their losses."""

from __future__ import annotations

import itertools
import textwrap
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasdl.blocks.caption_decoder import END
from kerasdl.data import captioned_pictures, feature_cache, pipeline, vocabulary
from kerasdl.decoding import caption_writer
from kerasdl.figures import plots
from kerasdl.metrics import caption_scores
from kerasdl.models.caption_examples import Examples

_PARTS = ("encoder", "top", "decoder")


@keras.saving.register_keras_serializable(package="kerasdl")
class Captioner(keras.Model):
    """A frozen encoder, whose features are computed before the training, and the decoder that is trained on them.

    The encoder may be cut in two. The decoder then learns with the features of both parts; when `top` is made
    trainable it learns with what comes out of the first part, as `cut` in place of `picture`. A picture is best given
    with all its captions, so that the top sees it once.

    The loss is the mean over all words of a batch of their negative log-likelihood, in nats; padding and the unknown
    word are not counted. In training, but not in validation, targets are smoothed and the doubly stochastic penalty is
    added: the sum over the parts of a picture of (1 - sum of a caption's attention weights)^2, so that a caption
    looks at all parts.

    Args:
        encoder: pictures -> features, or what `top` takes; None if the decoder takes pictures.
        decoder: {picture: features, tokens: int32[batch, time]} -> {logits: float[batch, time, tokens]} and, if it
            attends, {weights: float32[batch, time, items]}. Its name is the prefix of its layers' names.
        top: the last layers of the encoder, frozen at first; None if it is whole.
        label_smoothing: share of each target that is spread over all words.
        doubly_stochastic: factor of the penalty, lambda.
        **kwargs: those of `keras.Model`.
    Source: Xu et al. 2015, arXiv:1502.03044, section 4.2.1, equation 14; label smoothing: Szegedy et al. 2015,
        arXiv:1512.00567, section 7.
    """

    def __init__(
        self,
        encoder: keras.Model | None,
        decoder: keras.Model,
        *,
        top: keras.Model | None = None,
        label_smoothing: float = 0.0,
        doubly_stochastic: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.encoder, self.top, self.decoder = encoder, top, decoder
        for frozen in (encoder, top):
            if frozen is not None:
                frozen.trainable = False
        self.label_smoothing = label_smoothing
        self.doubly_stochastic = doubly_stochastic
        self.seed_generator = keras.random.SeedGenerator()
        self._reinforcement: Any = None
        self.built = True

    def encode(self, image: Any) -> Any:
        """Pictures uint8[batch, height, width, 3] -> what the decoder takes, in half precision as in a cache."""
        if self.encoder is None:
            return image
        features = ops.cast(self.encoder(ops.cast(image, "float32"), training=False), "float16")
        return features if self.top is None else ops.cast(self.finish(features), "float16")

    def finish(self, cut: Any) -> Any:
        """What the first part of a cut encoder gives -> what the decoder takes."""
        assert self.top is not None
        # training=False: the moving statistics stay as pre-trained, also while the weights are tuned.
        return self.top(cut, training=False)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The decoder; with `cut` for `picture` behind the encoder's top.

        Tokens are int32[pictures, time], or int32[pictures, captions, time], whose outputs are those of pictures *
        captions rows.
        """
        picture = self.finish(inputs["cut"]) if "cut" in inputs else inputs["picture"]
        tokens = inputs["tokens"]
        if len(tokens.shape) == 3:
            picture = ops.repeat(picture, ops.shape(tokens)[1], axis=0)
            tokens = ops.reshape(tokens, (-1, ops.shape(tokens)[2]))
        return self.decoder({"picture": picture, "tokens": tokens}, training=training)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Nats a word; y: the words int32[batch, time] or int32[pictures, captions, time], filled up with padding."""
        y = ops.reshape(y, (-1, ops.shape(y)[-1]))
        logits = ops.cast(y_pred["logits"], "float32")
        counted = ops.cast(y > vocabulary.UNKNOWN, "float32")
        losses = ops.sparse_categorical_crossentropy(y, logits, from_logits=True)
        if training and self.label_smoothing:
            # Cross-entropy with the uniform distribution exceeds that with the right word by this difference.
            right = ops.take_along_axis(logits, y[..., None], -1)[..., 0]
            losses += self.label_smoothing * (right - ops.mean(logits, -1))
        total = ops.sum(losses * counted)
        if training and self.doubly_stochastic and "weights" in y_pred:
            steps = ops.cast(y != vocabulary.PADDING, "float32")
            looked = ops.sum(y_pred["weights"] * steps[..., None], 1)
            total += self.doubly_stochastic * ops.sum(ops.square(1 - looked))
        return total / ops.maximum(ops.sum(counted), 1)

    def reinforce(self, reward: Callable[[Any, Any], Any], *, samples: int, max_length: int) -> None:
        """From now on `fit` learns from captions that the model draws itself; to be called before `compile`.

        `fit` then takes batches of {picture} or {cut} and of the pictures' numbers int32[batch]. A caption counts by
        how far its reward is above the mean of the picture's other captions.

        Args:
            reward: (numbers int32[n], captions int32[n, length]) -> float32[n], in numpy. A caption is closed by
                END and filled up with padding.
            samples: captions drawn of each picture, 2 or more.
            max_length: tokens of a caption, END included.

        Raises:
            ValueError: fewer than two samples.
        Source: Rennie et al. 2016, arXiv:1612.00563, section 3; the mean of the others as the baseline: Luo 2020,
            arXiv:2003.09971, section 2.
        """
        if samples < 2:
            raise ValueError(f"samples is {samples}, expected 2 or more: a caption is compared with the others")
        self._reinforcement = (reward, samples, max_length)

    def train_step(self, data: Any) -> Any:
        """One step of `fit`."""
        if self._reinforcement is None:
            return super().train_step(data)

        reward, samples, max_length = self._reinforcement
        inputs, numbers = data
        features = self.finish(inputs["cut"]) if "cut" in inputs else inputs["picture"]
        picture, numbers = (tf.repeat(part, samples, axis=0) for part in (features, numbers))
        parts = self.decoder.get_layer(f"{self.decoder.name}_mean").input
        seen = keras.Model(self.decoder.input["picture"], parts)(picture, training=False)
        tokens = caption_writer.draw(*caption_writer.writer(self.decoder, seen), self.seed_generator.next(), max_length)
        rewards = tf.numpy_function(reward, [numbers, tokens], tf.float32)
        rewards = tf.reshape(rewards, [-1, samples])
        others = (tf.reduce_sum(rewards, 1, keepdims=True) - rewards) / (samples - 1)
        advantage = tf.reshape(rewards - others, [-1, 1])
        before = tf.pad(tokens[:, :-1], [[0, 0], [1, 0]])
        with tf.GradientTape() as tape:
            logits = self.decoder({"picture": picture, "tokens": before}, training=True)["logits"]
            losses = ops.sparse_categorical_crossentropy(tokens, ops.cast(logits, "float32"), from_logits=True)
            counted = tf.cast(tokens != vocabulary.PADDING, tf.float32)
            loss = tf.reduce_sum(advantage * losses * counted) / tf.reduce_sum(counted)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return {"loss": loss, "reward": tf.reduce_mean(rewards)}

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            **{part: None if (model := getattr(self, part)) is None else serialize(model) for part in _PARTS},
            "label_smoothing": self.label_smoothing,
            "doubly_stochastic": self.doubly_stochastic,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Captioner:
        """From `get_config`."""
        models = {
            part: keras.saving.deserialize_keras_object(config.pop(part), custom_objects=custom_objects)
            for part in _PARTS
        }
        return cls(**models, **config)


@dataclass(frozen=True)
class FeatureBank:
    """Pictures and their captions as numbers, in memory, and the batches of them.

    Attributes:
        key: `picture` if `pictures` holds what the decoder takes, `cut` if what the encoder's top takes.
        pictures: features float16, or pixels uint8, [pictures, ...].
        captions: of each picture, int32[words] with END.

    Source: own.
    """

    key: Literal["picture", "cut"]
    pictures: np.ndarray
    captions: list[list[np.ndarray]]

    def by_caption(self, batch_size: int, **common: Any) -> tuple[tf.data.Dataset, int]:
        """Captions about equally long, each with its picture; and the steps of an epoch."""
        rows = np.repeat(np.arange(len(self.captions), dtype=np.int32), [len(several) for several in self.captions])
        batches = pipeline.bucketed_batches(list(itertools.chain(*self.captions)), [rows], batch_size, **common)
        example = self._example()
        return batches.map(lambda tokens, row: example(row, tokens)), pipeline.num_steps(len(rows), batch_size)

    def by_picture(self, batch_size: int, **common: Any) -> tuple[tf.data.Dataset, int]:
        """Pictures with all their captions, about `batch_size` captions a step."""
        count = len(self.captions)
        pictures = max(1, round(batch_size * count / sum(map(len, self.captions))))
        example, captions = self._example(), self._ragged()
        batches = pipeline.training_batches(
            [np.arange(count)],
            pictures,
            **common,
            transform=lambda row, **_: example(row, tf.gather(captions, row).to_tensor()),
        )
        return batches, pipeline.num_steps(count, pictures)

    def alone(self, batch_size: int, **common: Any) -> tuple[tf.data.Dataset, int]:
        """Pictures with their numbers."""
        pictures = tf.constant(self.pictures)
        numbers = np.arange(len(pictures), dtype=np.int32)
        batches = pipeline.training_batches(
            [numbers], batch_size, **common, transform=lambda row, **_: ({self.key: tf.gather(pictures, row)}, row)
        )
        return batches, pipeline.num_steps(len(numbers), batch_size)

    def whole(self, batch_size: int) -> tf.data.Dataset:
        """Every picture once, with all its captions."""
        example, captions = self._example(), self._ragged()
        return pipeline.evaluation_batches([np.arange(len(self.captions))], batch_size).map(
            lambda row: example(row, tf.gather(captions, row).to_tensor())
        )

    def _example(self) -> Callable[[tf.Tensor, tf.Tensor], tuple[dict[str, tf.Tensor], tf.Tensor]]:
        pictures = tf.constant(self.pictures)

        def example(row: tf.Tensor, tokens: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            """The word before each step goes in, the word itself is to come out."""
            before = tf.concat([tf.zeros_like(tokens[..., :1]), tokens[..., :-1]], -1)
            return {self.key: tf.gather(pictures, row), "tokens": before}, tokens

        return example

    def _ragged(self) -> tf.RaggedTensor:
        flat = list(itertools.chain(*self.captions))
        lengths = [[len(several) for several in self.captions], [len(one) for one in flat]]
        return tf.RaggedTensor.from_nested_row_lengths(np.concatenate(flat), lengths)


def feature_bank(
    settings: Any, model: Captioner, examples: Examples, words: Sequence[str], *, mirrored: bool, cut: bool
) -> FeatureBank:
    """Pictures with their captions as numbers, and all of them mirrored with left and right exchanged in the captions.

    Args:
        settings: the configuration, with `max_words` and the fields that `features` reads.
        model: whose encoder the features are of.
        examples: pictures and captions.
        words: the vocabulary, from the id END on.
        mirrored: add the mirror images.
        cut: features for the encoder's top.
    """
    id_of = {word: END + i for i, word in enumerate(words)}
    exchanged = {"left": "right", "right": "left"}

    def encoded(caption: Sequence[str], mirrors: bool) -> np.ndarray:
        known = [exchanged.get(word, word) if mirrors else word for word in caption[: settings.max_words]]
        return np.array([*(id_of.get(word, vocabulary.UNKNOWN) for word in known), END], np.int32)

    shown, said = [], []
    for mirrors in (False, True)[: 1 + mirrored]:
        found, kept = features(settings, model, examples.pictures, cut=cut, mirrored=mirrors)
        shown.append(found)
        said += [[encoded(caption, mirrors) for caption in examples.captions[i]] for i in kept]
    return FeatureBank("cut" if cut else "picture", np.concatenate(shown) if mirrored else shown[0], said)


class CiderOfValidation(keras.callbacks.Callback):
    """Adds val_cider to the log: the CIDEr-D of the captions that the beam search finds.

    It is a few percent above the CIDEr-D of texts, since to it all unknown words of the references are one.

    Args:
        bank: of the validation data.
        settings: the configuration, with `beam_width`, `length_penalty` and `max_words`.
    """

    def __init__(self, bank: FeatureBank, settings: Any) -> None:
        super().__init__()
        self.bank = bank
        self.scorer = caption_scores.CiderD([[one[:-1].tolist() for one in several] for several in bank.captions])

        @tf.function(autograph=False)
        def written(batch: tf.Tensor) -> tf.Tensor:
            model = self.model
            seen = parts(model.decoder)(model.finish(batch) if bank.key == "cut" else batch)
            rows = tf.shape(batch)[0]
            width, penalty = tf.fill([rows], settings.beam_width), tf.fill([rows], float(settings.length_penalty))
            return caption_writer.search(model.decoder, seen, width, penalty, settings.max_words + 1)[0][:, 0]

        self.written = written

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Measures."""
        assert logs is not None
        pictures = self.bank.pictures
        found = [self.written(tf.constant(pictures[part])) for part in pipeline.slices(len(pictures), 100)]
        captions = (row[row != END].tolist() for row in np.concatenate(found))
        logs["val_cider"] = float(np.mean([self.scorer.score(i, caption) for i, caption in enumerate(captions)]))


def parts(decoder: keras.Model) -> keras.Model:
    """Pictures or features -> parts of the pictures float[batch, parts, features], as a decoder attends to them."""
    return keras.Model(decoder.input["picture"], decoder.get_layer("features").output)


def features(
    settings: Any, model: Captioner, pictures: Sequence[Path] | np.ndarray, *, cut: bool, mirrored: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What a captioner's decoder, or the top of its encoder, takes of pictures; those of files are kept in the cache.

    Args:
        settings: the configuration, with `image_size`, `encoder`, `tune_from` and `cache`.
        model: the `Captioner`.
        pictures: files, or uint8[pictures, size, size, 3].
        cut: features for the encoder's top.
        mirrored: of the pictures' mirror images.

    Returns:
        Features float16, or pixels if the model has no encoder, and int64 indices of the pictures that they belong to:
        those that cannot be decoded are left out.

    Raises:
        UserError: no picture can be decoded.
    """
    if model.encoder is None:
        found, kept = pixels(pictures, settings.image_size)
        return found[:, :, ::-1] if mirrored else found, kept
    network = keras.Sequential([model.encoder] if cut or model.top is None else [model.encoder, model.top])
    view = slice(None, None, -1 if mirrored else 1)
    if isinstance(pictures, np.ndarray):
        parts = [network.predict_on_batch(pictures[part][:, :, view]) for part in pipeline.slices(len(pictures), 32)]
        return np.concatenate(parts).astype(np.float16), np.arange(len(pictures))
    checksum = zlib.crc32(b"".join(weight.tobytes() for weight in network.get_weights()))
    end = settings.tune_from if cut else "its end"
    kept_features = feature_cache.features(
        pictures,
        lambda images: network.predict_on_batch(images[:, :, view]),
        size=settings.image_size,
        encoder=f"{settings.encoder}, weights {checksum:08x}, up to {end}" + ", mirrored" * mirrored,
        folder=settings.cache,
        progress=True,
    )
    return kept_features.array[kept_features.rows], kept_features.kept


def pixels(pictures: Sequence[Path] | np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8[pictures, size, size, 3], and indices of those that can be decoded.

    Args:
        pictures: files, or such an array.
        size: side to which files are scaled, in pixels.

    Raises:
        UserError: no picture can be decoded.
    """
    if isinstance(pictures, np.ndarray):
        return pictures, np.arange(len(pictures))
    return captioned_pictures.load(pictures, size=size)[:2]


def figures(images: np.ndarray, said: Sequence[str], references: Sequence[Sequence[str]], folder: Path) -> None:
    """Draws 16 pictures with what is said of them, any ones and those whose captions have the lowest CIDEr-D.

    Args:
        images: uint8[pictures, size, size, 3].
        said: a caption of each.
        references: those of people, of each.
        folder: receives captions.png and worst_captions.png.
    """
    scorer = caption_scores.CiderD([[caption.split() for caption in several] for several in references])
    scores = [scorer.score(i, caption.split()) for i, caption in enumerate(said)]
    orders = {"captions": np.random.default_rng(0).permutation(len(said)), "worst_captions": np.argsort(scores)}
    for name, order in orders.items():
        titles = [textwrap.fill(said[i], 20) for i in order[:16]]
        plots.image_grid(images[order[:16]], folder / f"{name}.png", titles=titles)
