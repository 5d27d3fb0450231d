"""Image captioner: says in a sentence what a picture shows, and where it looked for each word.

**Source**: attention, gating and penalty: Xu et al. 2015, arXiv:1502.03044 (Show, Attend and Tell); without attention:
Vinyals et al. 2014, arXiv:1411.4555 (Show and Tell); length penalty of the beam search: Wu et al. 2016,
arXiv:1609.08144; encoder: Sandler et al. 2018, arXiv:1801.04381 (MobileNetV2).

**Expect**: `train` then `evaluate` reach the scores in README.md's results table; `train --tiny` takes a minute and
describes more than nine of ten drawn scenes without a mistake, where a guess is right once in two thousand.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from apps import _pictures
from apps._contract import Card, Objective, Splits
from apps._settings import RECIPE, AtLeast, Between, Quoting, Training, at_least, between
from kerasdl import export
from kerasdl.blocks import caption_decoder, convolution
from kerasdl.data import captioned_pictures, divided, picture_files, pipeline, synthetic, vocabulary
from kerasdl.decoding import beam_search
from kerasdl.errors import UserError
from kerasdl.figures import plots
from kerasdl.files import as_json
from kerasdl.metrics import caption_scores
from kerasdl.models import caption_search, captioner, pretrained
from kerasdl.training import fit, precision, schedule


@dataclass(frozen=True, kw_only=True)
class Config(Training, epochs=8, weight_decay=0.01, warmup_epochs=0.2, clip_norm=5.0):
    """Image captioner."""

    data: Path | None = None
    """Captions: a CSV or TSV (columns image, caption), COCO's JSON, or a folder with one a split; else --dataset."""
    images: Path | None = None
    """Folder of the pictures of --data; else the folder `images` beside the captions."""
    quoting: Quoting = "auto"
    """Quotes in .csv, .tsv: none (as text), double (around fields), backslash (inside as \\"), auto (by the file)."""
    dataset: Literal["flickr8k", "coco_captions"] = "flickr8k"
    """flickr8k: a folder of that name; coco_captions: from TFDS, whose pictures are written to --cache once."""
    data_dir: Path | None = None
    """Folder that holds flickr8k/ (images/, train.csv, ...) or TFDS' coco_captions/; else KERASDL_DATA_DIR."""
    validation_ratio: Between[float, 0, 0.8] = 0.08  # a tenth is for the test
    """Share of the pictures, if there is no split for it, held out to choose epochs and settings; 0: none."""
    encoder: str = "MobileNetV2"
    """Name in keras.applications, whose weights are frozen; or `cnn`, a small network trained from scratch."""
    encoder_weights: str = "imagenet"
    """Weights of the encoder without its top: `imagenet` (Keras downloads them), a .weights.h5 file, or `none`."""
    image_size: AtLeast[int, 8] = 224
    """Side of the square to which pictures are scaled, in pixels."""
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
    min_count: AtLeast[int, 1] = 3
    """Words that the training captions hold less often are unknown; they are never said."""
    max_words: AtLeast[int, 1] = 20
    """Longest caption, in words; training captions are cut there."""
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
    beam_width: int = 8
    """Hypotheses of the beam search in `evaluate` and in the export's first signature."""
    length_penalty: AtLeast[float, 0] = 0.7
    """Length penalty of the beam search: 0 prefers short captions, 1 weighs them by the mean of their words."""

    @staticmethod
    def recipe(encoder: str) -> dict[str, Any]:
        """Whether a part of the encoder can be tuned."""
        return {"tune_epochs": 0 if encoder == "cnn" else 2}

    @property
    def last_epoch(self) -> int:
        """Number of the epoch with which the training ends."""
        return _phases(self)[-1][1]

    @property
    def laid_out(self) -> str | None:
        """The phase that follows upon --epochs, or the schedule."""
        later = {"--tune-epochs": self.tune_epochs, "--reinforce-epochs": self.reinforce_epochs}
        return next((f"{flag} {epochs}" for flag, epochs in later.items() if epochs), super().laid_out)

    def __post_init__(self) -> None:
        """Checks every value."""
        super().__post_init__()
        between(1, 50, beam_width=self.beam_width)  # beam_search.MAX_WIDTH
        if self.encoder == "cnn" and self.tune_epochs:
            raise UserError("--tune-epochs trains the top of a frozen encoder; --encoder cnn is trained anyway: give 0")


OBJECTIVE = Objective(metric="val_cider", direction="max")

DECODER = "decoder"  # prefix of its layers' names


@dataclass(frozen=True)
class Examples:
    """Pictures, as files or as uint8[pictures, size, size, 3], and the captions of each, cut into words."""

    pictures: Sequence[Path] | np.ndarray
    captions: Sequence[Sequence[Sequence[str]]]


# --- Data ------------------------------------------------------------------------------------------------------------


def load_data(config: Config) -> Splits:
    """Reads --dataset, or the captions of --data; without a test split, the validation split is the test."""
    if config.data is None and config.dataset == "coco_captions":
        path = config.cache / config.dataset
        found = captioned_pictures.from_tfds(config.data_dir, path, progress=True)
    else:
        path = config.data or captioned_pictures.flickr8k(config.data_dir)
        found = captioned_pictures.read(path, images=config.images, quoting=config.quoting)
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    held_out = 0 if "validation" in found else config.validation_ratio
    if config.data is None:
        cut = captioned_pictures.hold_out(found["train"], ratio=held_out, seed=divided.SEED)
    else:
        test_ratio = 0 if "test" in found else 0.1
        cut = captioned_pictures.split(
            found["train"], validation_ratio=held_out, test_ratio=test_ratio, seed=divided.SEED
        )
        if len(found) > 1:
            picture_files.report_shared({name: part.paths for name, part in (cut | found).items()})
    parts = {**cut, **found, "train": cut["train"]}
    examples = {name: _examples(parts[name]) for name in ("train", "validation", "test")}
    counts = {name: len(part.captions) for name, part in examples.items()}
    divided.check_sizes(path, "pictures", **counts, least_validation=1 if held_out else 0)
    return splits_of(config, **examples, description=f"{path.name}, {counts['test']:,} pictures held out")


def _examples(found: captioned_pictures.Captioned) -> Examples:
    """Without captions of punctuation alone, and without pictures that have no other."""
    words = iter(caption_scores.tokenize_all([caption for several in found.captions for caption in several]))
    captions = [[cut for _ in several if (cut := next(words))] for several in found.captions]
    kept = [i for i, several in enumerate(captions) if several]
    return Examples([found.paths[i] for i in kept], [captions[i] for i in kept])


def splits_of(
    config: Config, train: Examples, validation: Examples, test: Examples, description: str, **info: Any
) -> Splits:
    """Captions cut into words, and the vocabulary of the training captions."""
    written = [" ".join(caption) for several in train.captions for caption in several]
    words = vocabulary.build_vocabulary(written, 100_000, min_count=config.min_count)
    if not words:
        raise UserError(f"no word stands {config.min_count} times in the training captions; lower --min-count")
    facts: dict[str, Any] = {
        "words": ["<end>", *words],  # its id is caption_decoder.END
        "image_size": config.image_size,
        "max_words": config.max_words,
        "beam": [config.beam_width, config.length_penalty],
    }
    if config.data is None and not info:
        # The pictures of public data sets are many, and stay as they are: their captions tell enough.
        facts["fingerprint"] = divided.fingerprint([list(part.captions) for part in (train, validation)])
    return Splits(
        train=train,
        validation=validation if validation.captions else None,
        test=lambda: test,
        info=info | facts,
        description=description,
    )


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
        x = _small_network(picture) if encoder is None else picture
        x = convolution.coordinates(x, name="place")
        x = keras.layers.Reshape((-1, x.shape[-1]), name="parts")(x)
        x = keras.layers.Dense(config.feature_dim, "relu", name="features")(x)
        x = keras.layers.Dropout(config.dropout, name="features_dropout")(x)
        options: dict[str, Any] = {
            "units": config.units,
            "embedding_dim": config.embedding_dim,
            "dropout": config.dropout,
            "name": DECODER,
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


def _small_network(picture: keras.KerasTensor) -> keras.KerasTensor:
    x = keras.layers.Rescaling(1 / 64, -2, name="rescale")(picture)
    for index, filters in enumerate((16, 32, 64)):
        x = convolution.convolution(x, filters, strides=1 if index == 0 else 2, name=f"cnn_{index}a")
        x = convolution.convolution(x, filters, name=f"cnn_{index}b")
    return x


def _compile(config: Config, model: keras.Model, steps: int, peak: float) -> None:
    kind = "constant" if config.schedule == "plateau" else config.schedule
    warmup = 0 if config.schedule == "plateau" else round(steps * config.warmup_epochs / config.epochs)
    rate = schedule.schedule(kind, peak, total_steps=steps, warmup_steps=warmup)
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, global_clipnorm=config.clip_norm),
        jit_compile=False,  # the lengths of the captions differ from batch to batch
    )


# --- Training --------------------------------------------------------------------------------------------------------


def train(config: Config, model: keras.Model, data: Splits, callbacks: list[Any]) -> keras.callbacks.History:
    """Fits the decoder on the encoder's features, then with the encoder's top, then to captions of its own."""
    saver = callbacks[-1]
    history = keras.callbacks.History()
    for begin, end, kind in _phases(config):
        start = saver.initial_epoch
        if begin == end or start >= end or saver.stopped:
            continue
        # Once the top has changed, the features behind it are no longer those of the cache.
        cut = begin > 0 and config.tune_epochs > 0
        bank = bank_of(config, model, data.train, data, cut=cut, mirrored=config.flip)
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
            model.reinforce(scorer.rewards, samples=5, max_length=config.max_words + 1, name=DECODER)
            batches, steps = bank.alone(config.batch_size, **common)
        if begin:
            peak = config.reinforce_rate if kind == "reinforce" else config.tune_rate
            _compile(config, model, steps * (end - begin), peak)
        others: list[keras.callbacks.Callback] = []
        validation = None
        if data.validation is not None:
            held = bank_of(config, model, data.validation, data, cut=cut, mirrored=False)
            validation = held.whole(25)
            others.append(captioner.CiderOfValidation(held, config, DECODER))
        saver.optimizer_since = begin
        history = fit.fit(
            model, batches, callbacks, config, steps=steps, validation=validation, epochs=end, others=others
        )
    return history


def _phases(config: Config) -> list[tuple[int, int, Literal["fit", "tune", "reinforce"]]]:
    """(first epoch, end, what is done)."""
    first = config.epochs
    second = first + config.tune_epochs
    return [(0, first, "fit"), (first, second, "tune"), (second, second + config.reinforce_epochs, "reinforce")]


def bank_of(
    config: Config, model: keras.Model, examples: Examples, data: Splits, *, cut: bool, mirrored: bool
) -> captioner.FeatureBank:
    """Pictures as the decoder takes them, or with `cut` as the encoder's top does, and their captions as numbers."""
    return captioner.feature_bank(
        model,
        examples.pictures,
        examples.captions,
        data.info["words"],
        max_words=config.max_words,
        mirrored=mirrored,
        cut=cut,
        size=config.image_size,
        encoder=f"{config.encoder}{{weights}}, up to {config.tune_from if cut else 'its end'}",
        cache=config.cache,
    )


# --- Evaluation ------------------------------------------------------------------------------------------------------


def evaluate(
    config: Config, signatures: Mapping[str, Any], data: Splits, figures: Path | None = None
) -> dict[str, float]:
    """Scores of the captions that the beam search finds for the test pictures, and how much of their own they say."""
    test = data.test()
    images, kept = captioner.pixels(test.pictures, data.info["image_size"])
    references = [[" ".join(words) for words in test.captions[i]] for i in kept]
    said = describe(signatures, images)
    metrics = caption_scores.caption_scores(said, references)
    known = [" ".join(words) for several in data.train.captions for words in several]
    metrics |= caption_scores.diversity(said, known)
    metrics["distinct_captions"] = float(len(set(said)))
    metrics["exact_match_ratio"] = float(
        np.mean([one in several for one, several in zip(said, references, strict=True)])
    )
    if figures is not None:
        captioner.figures(images, said, references, figures)
    return metrics


def verdict(metrics: Mapping[str, float]) -> str | None:
    """Why the model is of no use, if it is not."""
    if metrics["mean_words"] == 0:
        return "it says nothing: every caption is empty; train for longer, or with more captions"
    different = metrics.get("distinct_captions", float("inf"))
    pictures = different / metrics["distinct_captions_ratio"]
    if different <= max(1, pictures / 100) and pictures >= 10:
        return f"it says the same of every picture, or nearly: {different:.0f} captions for {pictures:.0f} pictures"
    if metrics["bleu1"] == 0:
        return "its captions share no word with those that people wrote"
    return None


def describe(signatures: Mapping[str, Any], images: np.ndarray) -> list[str]:
    """The best caption of each picture uint8[pictures, size, size, 3]."""
    parts = pipeline.slices(len(images), 32, "Describing")
    found = [signatures["pixels"](image=tf.constant(images[part]))["caption"] for part in parts]
    return [caption.decode() for caption in np.concatenate(found)]


# --- Export ----------------------------------------------------------------------------------------------------------


CARD = Card(
    summary="Says in a sentence what a picture shows; trained by `python -m apps captioner train`.",
    limits=(
        "It says what is usual in its training captions, also where the picture shows something else; colours, counts "
        "and actions are often wrong.",
        "Flickr8k shows people and dogs out of doors; of other pictures it knows little.",
        "Its captions repeat the habits of those who wrote the training captions, such as guesses at age and sex; "
        "nothing should be decided about a person by them.",
        "Flickr8k is for research use.",
    ),
    sources=(
        "Hodosh et al. 2013, Framing Image Description as a Ranking Task, JAIR 47 (Flickr8k).",
        "Xu et al. 2015, Show, Attend and Tell, arXiv:1502.03044.",
        "Sandler et al. 2018, MobileNetV2, arXiv:1801.04381.",
    ),
)


def endpoints(model: keras.Model, data: Splits) -> Mapping[str, export.Endpoint]:
    """Encoded pictures or pixels in, captions out; the n best; and the attention for a caption that is given."""
    size = data.info["image_size"]
    width, penalty = data.info["beam"]
    captions = caption_search.CaptionSearch(model, data.info["words"], data.info["max_words"], DECODER)

    def best(image: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.shape(image)[0]
        found = captions.search(image, tf.fill([rows], width), tf.fill([rows], tf.constant(penalty, tf.float32)))
        return {"caption": found["captions"][:, 0], "log_probability": found["log_probabilities"][:, 0]}

    def decoded(image_bytes: tf.Tensor) -> tf.Tensor:
        return export.decode_images(image_bytes, size, squash=True)

    def search(image_bytes: tf.Tensor, beam_width: tf.Tensor, length_penalty: tf.Tensor) -> dict[str, tf.Tensor]:
        return captions.search(decoded(image_bytes), beam_width, length_penalty)

    def attention(image_bytes: tf.Tensor, caption: tf.Tensor) -> dict[str, tf.Tensor]:
        return captions.attention(decoded(image_bytes), caption)

    example, _ = captioner.pixels(data.train.pictures[:1], size)
    bytes_in, encoded = export.encoded(example)
    settings = {"beam_width": tf.TensorSpec([None], tf.int32), "length_penalty": tf.TensorSpec([None], tf.float32)}
    usual = {"beam_width": np.array([5]), "length_penalty": np.array([penalty], np.float32)}
    first = np.array([" ".join(data.train.captions[0][0])], object)
    kinds = export.ENCODED
    return {
        **export.of_pictures("caption", best, example, f"beam search of width {width}", squash=True),
        "search": export.Endpoint(
            search,
            bytes_in | settings,
            encoded | usual,
            f"{kinds}; beam_width captions of each, the best first, and the natural logarithms of their probabilities; "
            "where a picture asked for fewer than another, empty ones with the lowest number of float32",
        ),
        "attention": export.Endpoint(
            attention,
            bytes_in | {"caption": tf.TensorSpec([None], tf.string)},
            encoded | {"caption": first},
            f"{kinds}, a caption for each: the probability of its words (the last is the end), and where it looks",
            captions.resources,
        ),
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
        found = [
            (one.decode(), float(log_probability))
            for one, log_probability in itertools.islice(
                zip(answer["captions"].numpy()[0], answer["log_probabilities"].numpy()[0], strict=True), top
            )
        ]
        if format == "json":
            rows = [{"caption": one, "log_probability": log_probability} for one, log_probability in found]
            print(as_json({"path": str(path), "captions": rows}))
        else:
            print(f"{path}:" + "".join(f"\n  {one} (p = {np.exp(value):.2g})" for one, value in found))
        if explain is not None:
            drawn = _explain(signatures, content, found[0][0], figure)
            print(f"  {drawn}", file=sys.stdout if format == "text" else sys.stderr)


def _explain(signatures: Mapping[str, Any], content: bytes, said: str, figure: Path) -> Path:
    answer = signatures["attention"](image_bytes=tf.constant([content]), caption=tf.constant([said]))
    if "weights" not in answer:
        raise UserError("this model looks at the whole picture at once; --explain needs one with --attention additive")
    words = [word.decode() or "(end)" for word in answer["words"].numpy()[0]]
    image = export.decode_images(tf.constant([content]), 224, squash=True)[0].numpy()
    return plots.attention_maps(image, answer["weights"].numpy()[0], words, figure)


VERBS: tuple[Callable[..., None], ...] = (caption,)


def tiny(config: Config | None = None) -> tuple[Config, Splits]:
    """Drawn scenes of two shapes, with colour, size and place; captions follow from the picture alone."""
    images, said = synthetic.scenes(4000, size=32, seed=0)
    captions = [[one.split()] for one in said]
    train, validation, test = (
        Examples(images[part], captions[part.start : part.stop])
        for part in (slice(0, 3200), slice(3200, 3600), slice(3600, 4000))
    )
    config = config or Config(
        encoder="cnn", image_size=32, units=256, attention_units=128, feature_dim=128, embedding_dim=64, dropout=0.0,
        label_smoothing=0.0, doubly_stochastic=0.0, flip=False, min_count=1, epochs=12,
        batch_size=32, learning_rate=3e-3, beam_width=1,
    )  # fmt: skip
    return config, splits_of(config, train, validation, test, "drawn scenes, test split, 400 pictures", tiny=True)
