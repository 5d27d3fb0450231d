"""Image captioner: says in a sentence what a picture shows, and where it looked for each word.

**Source**: attention, gating and penalty: Xu et al. 2015, arXiv:1502.03044 (Show, Attend and Tell); without attention:
Vinyals et al. 2014, arXiv:1411.4555 (Show and Tell); length penalty of the beam search: Wu et al. 2016,
arXiv:1609.08144; encoder: Sandler et al. 2018, arXiv:1801.04381 (MobileNetV2).

**Expect**: `train` then `evaluate` reach the scores in README.md's results table; `train --tiny` takes a minute and
describes more than nine of ten drawn scenes without a mistake, where a guess is right once in two thousand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from apps import _pictures
from apps._contract import Card, Objective, Splits
from apps._settings import RECIPE, AtLeast, Between, CaptionData, Training, at_least, between
from kerasdl import export
from kerasdl.blocks import caption_decoder, convolution
from kerasdl.data import captioned_pictures, divided, pipeline, synthetic
from kerasdl.decoding import beam_search
from kerasdl.errors import UserError
from kerasdl.fast import fused_adam
from kerasdl.files import as_json
from kerasdl.metrics import caption_scores
from kerasdl.models import caption_examples, caption_search, captioner, pretrained
from kerasdl.training import fit, precision, schedule


@dataclass(frozen=True, kw_only=True)
class Config(CaptionData, Training, epochs=8, weight_decay=0.01, warmup_epochs=0.2, clip_norm=5.0):
    """Image captioner."""

    encoder: str = "MobileNetV2"
    """Name in keras.applications, whose weights are frozen; or `cnn`, a small network trained from scratch."""
    encoder_weights: str = "imagenet"
    """Weights of the encoder without its top: `imagenet` (Keras downloads them), a .weights.h5 file, or `none`."""
    cache: Path = Path("runs/features")
    """Folder in which the frozen encoder's features are kept; they are computed once."""
    attention: Literal["additive", "none"] = "additive"
    """additive: looks at another part of the picture for each word; none: sees the whole once."""
    units: AtLeast[int, 1] = 512
    """Size of the LSTM."""
    attention_units: AtLeast[int, 1] = 256
    """Size of the hidden layer that compares the LSTM's state with the parts of the picture."""
    feature_dim: AtLeast[int, 1] = 256
    """Features of each part of the picture that the decoder sees."""
    embedding_dim: AtLeast[int, 1] = 256
    """Size of a word's vector."""
    dropout: Between[float, 0, 0.9] = 0.5
    """Share of features dropped."""
    label_smoothing: Between[float, 0, 0.9] = 0.1
    """Probability mass spread over all words in the targets."""
    doubly_stochastic: AtLeast[float, 0] = 0.1
    """Factor of the penalty for parts of a picture at which a caption does not look."""
    flip: bool = True
    """Show every picture mirrored, too, with left and right exchanged in its captions; an epoch is both."""
    tune_epochs: AtLeast[int, 0] = RECIPE
    """Further epochs in which the top of the encoder is trained, too: 2, but none of cnn, which is trained anyway."""
    tune_from: str = "block_12_add"
    """Layer of the encoder behind which the top begins; here the last four blocks of MobileNetV2."""
    tune_rate: AtLeast[float, 1e-12] = 1e-4
    """Peak learning rate of --tune-epochs."""
    reinforce_epochs: AtLeast[int, 0] = 0
    """Then passes over the pictures: the model draws captions and learns from their CIDEr-D scores."""
    reinforce_rate: AtLeast[float, 1e-12] = 5e-5
    """Peak learning rate of --reinforce-epochs."""
    beam_width: Between[int, 1, 50] = 8  # beam_search.MAX_WIDTH
    """Hypotheses of the beam search in `evaluate` and in the export's first signature."""
    length_penalty: AtLeast[float, 0] = 0.7
    """Length penalty of the beam search: 0 prefers short captions, 1 weighs them by the mean of their words."""

    FURTHER = "tune_epochs", "reinforce_epochs"
    UNDIVIDED = "one device computes the features of all pictures, and holds the encoder"

    @staticmethod
    def recipe(encoder: str) -> dict[str, Any]:
        """Whether a part of the encoder can be tuned."""
        return {"tune_epochs": 0 if encoder == "cnn" else 2}

    def __post_init__(self) -> None:
        """Checks every value."""
        super().__post_init__()
        if self.encoder == "cnn" and self.tune_epochs:
            raise UserError("--tune-epochs trains the top of a frozen encoder; --encoder cnn is trained anyway: give 0")


OBJECTIVE = Objective(metric="val_cider", direction="max")

# --- Data ------------------------------------------------------------------------------------------------------------


def load_data(config: Config) -> Splits:
    """Reads --dataset, or the captions of --data; without a test split, the validation split is the test."""
    if config.data is None and config.dataset == "coco_captions":
        path = config.cache / config.dataset
        given = captioned_pictures.from_tfds(config.data_dir, path, progress=True)
    else:
        path = config.data or captioned_pictures.flickr8k(config.data_dir)
        given = captioned_pictures.read(path, images=config.images, quoting=config.quoting)
    found = caption_examples.divide(given, path, held_out=config.held_out, own=config.data is not None)
    # The pictures of public data sets are many, and stay as they are: their captions tell enough.
    captions = [list(part.captions) for part in (found.train, found.validation)]
    known = {} if config.data else {"fingerprint": divided.fingerprint(captions)}
    return Splits.of(found, known | caption_examples.facts(found, config))


# --- Model -----------------------------------------------------------------------------------------------------------


def build_model(config: Config, data: Splits) -> keras.Model:
    """Features (or pictures) and words int32[batch, time] -> logits float32[batch, time, words], compiled."""
    size = len(data.info["words"]) + caption_decoder.END
    encoder, top, shape = None, None, (config.image_size, config.image_size, 3)
    if config.encoder != "cnn":
        weights = None if config.encoder_weights == "none" else config.encoder_weights
        cut = config.tune_from if config.tune_epochs else None
        encoder, top = pretrained.encoder(config.encoder, weights, config.image_size, cut=cut)
        shape = (encoder if top is None else top).output.shape[1:]
    with precision.precision(config.precision):
        kind = "uint8" if encoder is None else keras.config.dtype_policy().compute_dtype
        picture = keras.Input(shape, dtype=kind, name="picture")
        tokens = keras.Input((None,), dtype="int32", name="tokens")
        x = picture
        if encoder is None:
            x = keras.layers.Rescaling(1 / 64, -2, name="rescale")(x)
            for index, filters in enumerate((16, 32, 64)):
                x = convolution.convolution(x, filters, strides=1 if index == 0 else 2, name=f"cnn_{index}a")
                x = convolution.convolution(x, filters, name=f"cnn_{index}b")
        x = convolution.coordinates(x, name="place")
        x = keras.layers.Reshape((-1, x.shape[-1]), name="parts")(x)
        x = keras.layers.Dense(config.feature_dim, "relu", name="features")(x)
        x = keras.layers.Dropout(config.dropout, name="features_dropout")(x)
        options: dict[str, Any] = {
            "units": config.units,
            "embedding_dim": config.embedding_dim,
            "dropout": config.dropout,
            "name": "decoder",  # as the model of them, by whose name its layers are found
        }
        outputs = {}
        if config.attention == "none":
            outputs["logits"] = caption_decoder.show_and_tell(x, tokens, size, **options)
        else:
            outputs["logits"], outputs["weights"] = caption_decoder.show_attend_and_tell(
                x, tokens, size, attention_units=config.attention_units, **options
            )
        decoder = keras.Model({"picture": picture, "tokens": tokens}, outputs, name="decoder")
    model = captioner.Captioner(
        encoder,
        decoder,
        top=top,
        label_smoothing=config.label_smoothing,
        doubly_stochastic=config.doubly_stochastic,
        name="captioner",
    )
    steps = pipeline.num_steps(num_examples(config, data), config.batch_size)
    _compile(config, model, steps * config.epochs, config.learning_rate)
    return model


def num_examples(config: Config, data: Splits) -> int:
    """Captions of an epoch, of which a step takes a batch."""
    return (1 + config.flip) * sum(map(len, data.train.captions))


def _compile(config: Config, model: keras.Model, steps: int, peak: float) -> None:
    kind = "constant" if config.schedule == "plateau" else config.schedule
    warmup = 0 if config.schedule == "plateau" else round(steps * config.warmup_epochs / config.epochs)
    rate = schedule.schedule(kind, peak, total_steps=steps, warmup_steps=warmup)
    model.compile(
        fused_adam.FusedAdam(rate, weight_decay=config.weight_decay or None, global_clipnorm=config.clip_norm),
        jit_compile=False,  # the lengths of the captions differ from batch to batch
    )


# --- Training --------------------------------------------------------------------------------------------------------


def train(config: Config, model: keras.Model, data: Splits, callbacks: list[Any]) -> keras.callbacks.History:
    """Fits the decoder on the encoder's features, then with the encoder's top, then to captions of its own."""
    saver, words = callbacks[-1], data.info["words"]
    history = keras.callbacks.History()
    for begin, end, kind in _phases(config):
        start = saver.initial_epoch
        if begin == end or start >= end or saver.stopped:
            continue
        # Once the top has changed, the features behind it are no longer those of the cache.
        cut = begin > 0 and config.tune_epochs > 0
        bank = captioner.feature_bank(config, model, data.train, words, cut=cut, mirrored=config.flip)
        common: dict[str, Any] = {"initial_epoch": start, "seed": config.seed}
        if kind == "fit":
            batches, steps = bank.by_caption(config.batch_size, **common)
        elif kind == "tune":
            model.top.trainable = True
            batches, steps = bank.by_picture(config.batch_size, **common)
        else:
            if cut:
                model.top.trainable = False
            scorer = caption_scores.CiderD([[one.tolist() for one in several] for several in bank.captions])
            model.reinforce(scorer.rewards, samples=5, max_length=config.max_words + 1)
            batches, steps = bank.alone(config.batch_size, **common)
        if begin:
            peak = config.reinforce_rate if kind == "reinforce" else config.tune_rate
            _compile(config, model, steps * (end - begin), peak)
        others: list[keras.callbacks.Callback] = []
        validation = None
        if data.validation is not None:
            held = captioner.feature_bank(config, model, data.validation, words, cut=cut, mirrored=False)
            validation = held.whole(25)
            others.append(captioner.CiderOfValidation(held, config))
        saver.optimizer_since = begin
        history = fit.fit(
            model, batches, callbacks, config, steps=steps, validation=validation, epochs=end, others=others
        )
    return history


def _phases(config: Config) -> list[tuple[int, int, Literal["fit", "tune", "reinforce"]]]:
    """(first epoch, end, what is done)."""
    first, second = config.epochs, config.epochs + config.tune_epochs
    return [(0, first, "fit"), (first, second, "tune"), (second, second + config.reinforce_epochs, "reinforce")]


# --- Evaluation ------------------------------------------------------------------------------------------------------


def evaluate(
    config: Config, signatures: Mapping[str, Any], data: Splits, figures: Path | None = None
) -> dict[str, float]:
    """Scores of the captions that the beam search finds for the test pictures, and how much of their own they say."""
    test = data.test()
    images, kept = captioner.pixels(test.pictures, data.info["image_size"])
    sentences = test.sentences()
    references = [sentences[i] for i in kept]
    said = caption_search.describe(signatures, images)
    metrics = caption_scores.caption_scores(said, references)
    metrics |= caption_scores.diversity(said, [one for several in data.train.sentences() for one in several])
    exact = [one in several for one, several in zip(said, references, strict=True)]
    metrics |= {"distinct_captions": float(len(set(said))), "exact_match_ratio": float(np.mean(exact))}
    if figures is not None:
        captioner.figures(images, said, references, figures)
    return metrics


def verdict(metrics: Mapping[str, float]) -> str | None:
    """Why the model is of no use, if it is not."""
    return caption_scores.verdict(metrics)


# --- Export ----------------------------------------------------------------------------------------------------------

CARD = Card.read("captioner")


def endpoints(model: keras.Model, data: Splits) -> Mapping[str, export.Endpoint]:
    """Encoded pictures or pixels in, captions out; the n best; and the attention for a caption that is given."""
    size, kinds, (width, penalty) = data.info["image_size"], export.ENCODED, data.info["beam"]
    captions = caption_search.CaptionSearch(model, export.shared(model.encode), data.info)

    def files(function: Callable[..., dict[str, tf.Tensor]]) -> Callable[..., dict[str, tf.Tensor]]:
        return lambda image_bytes, **asked: function(export.decode_images(image_bytes, size, squash=True), **asked)

    example, _ = captioner.pixels(data.train.pictures[:1], size)
    encoded, first = export.encoded(example)[1], " ".join(data.train.captions[0][0])
    searched = (
        f"{kinds}; beam_width captions of each, the best first, and the natural logarithms of their "
        "probabilities; where a picture asked for fewer than another, empty ones with the lowest number of float32"
    )
    asked = f"{kinds}, a caption for each: the probability of its words (the last is the end), and where it looks"
    word = "the likeliest next word and the state behind it, for streaming; as `search` with a beam of width 1"
    return {
        **export.of_pictures("caption", captions.best, example, f"beam search of width {width}", squash=True),
        "search": export.by_example(
            files(captions.search), searched, **encoded, beam_width=[5], length_penalty=[float(penalty)]
        ),
        "attention": export.by_example(
            files(captions.attention), asked, *captions.resources, **encoded, caption=[first]
        ),
        "begin": export.by_rows(files(captions.begin), f"{kinds}; the state goes to `advance`", **encoded),
        "advance": export.by_rows(captions.advance, word, state=captions.begin(tf.constant(example))["state"].numpy()),
    }


def eight_bit(model: keras.Model) -> list[keras.Variable]:
    """The decoder's kernels and word vectors: more than a quarter of the export's size."""
    return model.decoder.trainable_variables if model.encoder is not None else []


# --- Verb ------------------------------------------------------------------------------------------------------------


def caption(
    model: Path,
    pictures: list[Path],
    *,
    beam_width: int = 8,
    length_penalty: float = 0.7,
    top: int = 1,
    format: Literal["text", "json"] = "text",
    explain: Path | None = None,
) -> None:
    """Say what pictures show, with an exported model.

    Args:
        model: exported model, such as saved_models/captioner.
        pictures: picture files (JPEG, PNG, GIF, BMP or WebP) and folders of them.
        beam_width: hypotheses of the beam search, up to 50; 1 takes the likeliest word each time.
        length_penalty: 0 prefers short captions, 1 weighs them by the mean of their words.
        top: captions to print for a picture, at most beam_width.
        format: text for people, with the probability of each caption; json: one object a line.
        explain: folder for one figure a picture that shows where the model looked for each word; equal names get
            numbers, and nothing is overwritten.
    """
    between(1, beam_search.MAX_WIDTH, beam_width=beam_width)
    between(1, beam_width, top=top)
    at_least(0, length_penalty=length_penalty)
    signatures = export.signatures(model, "search", "attention")

    def searched(content: bytes) -> Any:
        return signatures["search"](
            image_bytes=tf.constant([content]),
            beam_width=tf.constant([beam_width]),
            length_penalty=tf.constant([length_penalty], tf.float32),
        )

    for path, content, answer, figure in _pictures.answers(pictures, searched, explain, flag="--explain"):
        pairs = zip(answer["captions"].numpy()[0], answer["log_probabilities"].numpy()[0], strict=True)
        found = [(one.decode(), float(log_probability)) for one, log_probability in pairs][:top]
        if format == "json":
            rows = [{"caption": one, "log_probability": log_probability} for one, log_probability in found]
            print(as_json({"path": str(path), "captions": rows}))
        else:
            print(f"{path}:" + "".join(f"\n  {one} (p = {np.exp(value):.2g})" for one, value in found))
        if explain is not None:
            drawn = caption_search.draw_attention(signatures, content, found[0][0], figure)
            print(f"  {drawn}", file=sys.stdout if format == "text" else sys.stderr)


VERBS: tuple[Callable[..., None], ...] = (caption,)


def tiny(config: Config | None = None) -> tuple[Config, Splits]:
    """Drawn scenes of two shapes, with colour, size and place; captions follow from the picture alone."""
    images, said = synthetic.scenes(4000, size=32, seed=0)
    captions = [[one.split()] for one in said]
    found = caption_examples.cut(images, captions, (3200, 3600), "drawn scenes, test split, 400 pictures")
    config = config or Config(
        encoder="cnn", image_size=32, units=256, attention_units=128, feature_dim=128, embedding_dim=64, dropout=0.0,
        label_smoothing=0.0, doubly_stochastic=0.0, flip=False, min_count=1, epochs=12,
        batch_size=32, learning_rate=3e-3, beam_width=1,
    )  # fmt: skip
    return config, Splits.of(found, {"tiny": True, **caption_examples.facts(found, config)})
