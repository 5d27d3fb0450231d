"""Text classifier: film reviews (IMDB) with an LSTM on two CPU cores, or your own table of texts and labels.

**Source**: LSTM in both directions: Graves and Schmidhuber 2005; n-grams: Wang and Manning 2012, "Baselines and
Bigrams"; the mean of these and a network: Mesnil et al. 2014, arXiv:1412.5335; pre-training as a language model: Dai
and Le 2015, arXiv:1511.01432; learning a teacher's answers: Xie et al. 2019, arXiv:1911.04252; convolution: Kim 2014,
arXiv:1408.5882.

**Expect**: `train` then `evaluate` reach the accuracy of labelled reviews alone in README.md; `train --tiny` takes half
a minute and ends above 90 % on made-up reviews, where single words tell nothing and pairs of words 70 %.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from apps._contract import AtLeast, Between, Card, Objective, Settings, Splits
from kerasdl import export
from kerasdl.blocks import attention, embedding, ngrams, recurrence, sentence_convolution
from kerasdl.data import pipeline, synthetic, table, text_file, tfds, vocabulary
from kerasdl.errors import UserError
from kerasdl.figures import colored_text, plots
from kerasdl.files import atomic_path
from kerasdl.metrics import classification
from kerasdl.models import language_model
from kerasdl.training import fit, optimizers, precision, progress

IMDB = "imdb_reviews/plain_text"
TEACHER = "teacher.npy"
"""In a run's folder: the teacher's answers to the unlabelled texts."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings of the text classifier."""

    data: Path | None = None
    """Own texts: a .csv, .tsv or .jsonl file in UTF-8, any number of classes; else the IMDB reviews."""
    unlabeled: Path | None = None
    """More own texts, without labels: a file in UTF-8 with one a line, or a table that has --text-column."""
    data_dir: Path | None = None
    """TFDS folder that holds imdb_reviews; else KERASDL_DATA_DIR, else TFDS' own default and download."""
    text_column: str = "text"
    """Column of --data that holds the texts."""
    label_column: str = "label"
    """Column of --data that holds the labels."""
    validation_ratio: Between[float, 0, 0.8] = 0.1  # a tenth is for the test
    """Share of the training texts held out to choose epochs and settings; 0 trains on everything."""
    architecture: Literal["lstm", "gru", "rnn", "cnn"] = "lstm"
    """Recurrent cell, or cnn: convolutions over 3, 4 and 5 words."""
    bidirectional: bool = True
    """Read the text from both ends (not cnn)."""
    depth: AtLeast[int, 1] = 1
    """Recurrent layers."""
    units: AtLeast[int, 1] = 128
    """Width of a layer, for each direction; of cnn the filters of each width."""
    embedding_dim: AtLeast[int, 1] = 64
    """Size of a word's vector; of an export's 8 MiB, 30,000 words take 3.7 at 64."""
    pooling: Literal["last", "mean", "max", "attention"] = "max"
    """How the steps of a text become one vector; cnn takes the largest of each filter."""
    vocabulary_size: AtLeast[int, 1] = 30_000
    """The most frequent words of the training texts, and of --unlabeled, are known."""
    max_words: AtLeast[int, 1] = 600
    """Longest text, in words; the middle of a longer one is left out, in training and in use."""
    ngrams: bool = True
    """Add a linear classifier of the text's words and pairs of words, learned before the network and apart from it."""
    ngram_buckets: AtLeast[int, 1] = 750_000
    """Weights that the pairs of words share, of 2 bytes each in an export, for each class when there are over two."""
    ngram_share: Between[float, 0, 1] = 0.5
    """Weight of the n-grams in the answer; the network has the rest."""
    ngram_strength: AtLeast[float, 1e-12] = 0.3
    """Strength of the data against the L2 penalty when the n-grams are learned (C of a support vector machine)."""
    dropout: Between[float, 0, 0.9] = 0.5
    """Share of features dropped before the last layer and between recurrent layers."""
    word_dropout: Between[float, 0, 0.9] = 0.2
    """Probability in training that a word becomes the unknown one."""
    recurrent_dropout: Between[float, 0, 0.9] = 0.0
    """Share of recurrent features dropped, the same at each word of a text."""
    label_smoothing: Between[float, 0, 0.9] = 0.1
    """Probability mass spread over all classes in the targets."""
    epochs: AtLeast[int, 1] = 4
    """Passes over the training texts."""
    batch_size: AtLeast[int, 1] = 64
    """Texts a step, about equally long."""
    learning_rate: AtLeast[float, 1e-12] = 2e-3
    """Peak learning rate of AdamW."""
    weight_decay: AtLeast[float, 0] = 0.01
    """Decoupled weight decay: this times the learning rate is the fraction taken from each weight in a step."""
    schedule: Literal["constant", "linear", "cosine", "one-cycle"] = "cosine"
    """Course of the learning rate."""
    warmup_epochs: AtLeast[float, 0] = 0.5
    """Epochs in which the learning rate rises."""
    clip_norm: AtLeast[float | None, 1e-12] = 1.0
    """Largest global norm of the gradient; None does not clip."""
    patience: AtLeast[int | None, 1] = None
    """Stop after this many epochs without a better validation accuracy; None never does."""
    pretrain_epochs: AtLeast[int, 0] = 0
    """Passes over unlabelled and training texts in which, first of all, the recurrent layers learn to predict words."""
    teacher: Path | None = None
    """Exported text classifier of the same classes: the network learns its answers to the unlabelled texts, too."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision of training; auto: bfloat16 where the machine has instructions for it. All else is float32."""
    seed: int = 0
    """Seed of weights, order and dropout; the validation split does not depend on it."""

    def __post_init__(self) -> None:
        """Checks every value."""
        super().__post_init__()
        if self.pretrain_epochs and (self.architecture == "cnn" or (self.bidirectional and self.depth > 1)):
            raise UserError(
                "--pretrain-epochs trains recurrent layers, each direction by itself; expected --architecture lstm, "
                "gru or rnn, and with several layers --no-bidirectional"
            )
        if self.unlabeled is not None and self.data is None:
            raise UserError("--unlabeled stands beside --data; IMDB has unlabelled reviews of its own; leave it out")
        if self.unlabeled is not None and not self.pretrain_epochs and self.teacher is None:
            raise UserError("--unlabeled is read for --pretrain-epochs or --teacher; give one of them, or leave it out")
        if self.teacher is not None and self.data is not None and self.unlabeled is None:
            raise UserError("--teacher answers texts without labels; add some by --unlabeled FILE")


OBJECTIVE = Objective(metric="val_accuracy", direction="max")

CARD = Card(
    summary="Names the class of a text, such as the sentiment of a film review; trained by `python -m apps sentiment "
    "train`.",
    limits=(
        "It knows only the classes it was trained on and always names one of them, whatever the text says.",
        "It was trained on one language and one kind of text; words that these lack mean nothing to it.",
        "Of a text longer than max_words (see the configuration) it reads the beginning and the end.",
        "IMDB holds strong opinions (1 to 4 and 7 to 10 of 10 stars); lukewarm reviews and irony are harder.",
    ),
    sources=(
        "Maas et al. 2011, Learning Word Vectors for Sentiment Analysis (IMDB).",
        "Hochreiter and Schmidhuber 1997, Long Short-Term Memory, Neural Computation 9(8).",
        "Wang and Manning 2012, Baselines and Bigrams: Simple, Good Sentiment and Topic Classification.",
        "Xie et al. 2019, Self-training with Noisy Student, arXiv:1911.04252 (if the configuration has a teacher).",
    ),
)


@dataclass(frozen=True)
class Examples:
    """Texts and their labels int32[examples]; and texts without labels, to learn from as well, read when asked for."""

    texts: list[str]
    labels: np.ndarray
    unlabeled: Callable[[], list[str]] = list


# --- Data ------------------------------------------------------------------------------------------------------------


def load_data(config: Config) -> Splits:
    """Reads the IMDB reviews, or the table of --data; no text without a label stands in the test part."""
    if config.data is not None:
        texts, classes = table.read(config.data, text_column=config.text_column, label_column=config.label_column)
        names = sorted(set(classes))
        whole = Examples(texts, np.array([names.index(name) for name in classes], np.int32))
        positions = table.split(classes, validation_ratio=config.validation_ratio, test_ratio=0.1, seed=2009)
        tested, validation = (_chosen(whole, positions[part]) for part in ("test", "validation"))
        added = [] if config.unlabeled is None else table.read_texts(config.unlabeled, text_column=config.text_column)
        train = _chosen(whole, positions["train"], lambda: _new(added, tested))
        description = f"texts of {config.data.name}, test part, {len(tested.texts)} texts"
        return _splits(config, train, validation, lambda: tested, names, description, more=added)
    whole = Examples(*tfds.texts(IMDB, "train", config.data_dir))
    # A split by position that is the same for every seed, so that runs and searches compare.
    order = np.random.default_rng(2009).permutation(len(whole.labels))
    held, kept = np.split(order, [round(config.validation_ratio * len(order))])

    def test() -> Examples:
        return Examples(*tfds.texts(IMDB, "test", config.data_dir))

    def unlabeled() -> list[str]:
        return _new(tfds.texts(IMDB, "unsupervised", config.data_dir)[0], test())

    return _splits(
        config,
        _chosen(whole, kept, unlabeled),
        _chosen(whole, held),
        test,
        tfds.class_names(IMDB, config.data_dir),
        "IMDB (TFDS), test split, 25,000 reviews",
    )


def _chosen(examples: Examples, positions: np.ndarray, unlabeled: Callable[[], list[str]] = list) -> Examples:
    return Examples([examples.texts[i] for i in positions], examples.labels[positions], unlabeled)


def _new(texts: list[str], test: Examples) -> list[str]:
    """Without those to be tested on: 266 of IMDB's unlabelled reviews are."""
    tested = set(test.texts)
    return [text for text in texts if text not in tested]


def _splits(
    config: Config,
    train: Examples,
    validation: Examples,
    test: Callable[[], Examples],
    class_names: list[str],
    description: str,
    *,
    more: Sequence[str] = (),
    **info: Any,
) -> Splits:
    words = vocabulary.build_vocabulary([*train.texts, *more], config.vocabulary_size)
    if not words:
        raise UserError("no training text holds a word; expected texts to learn from; name them by --text-column")
    return Splits(
        train=train,
        validation=validation if validation.texts else None,
        test=test,
        info={**info, "class_names": class_names, "max_words": config.max_words, "words": words},
        description=description,
    )


def vocabulary_of(data: Splits) -> vocabulary.WordVocabulary:
    """Texts to numbers."""
    return vocabulary.WordVocabulary(data.info["words"], data.info["max_words"])


def encoded(words: vocabulary.WordVocabulary, texts: Sequence[str]) -> list[np.ndarray]:
    """Each text as int32[words]."""
    found: list[np.ndarray] = []
    for part in pipeline.slices(len(texts), 5000):  # a word takes much memory while it is a string
        ids = words.ids(texts[part])
        found += np.split(ids.values.numpy(), ids.row_splits.numpy()[1:-1])
    return found


# --- Model -----------------------------------------------------------------------------------------------------------


def build_model(config: Config, data: Splits) -> keras.Model:
    """Words int32[batch, words], 0 is padding -> logits float32[batch, classes], compiled."""
    classes, num_words = len(data.info["class_names"]), vocabulary_of(data).size
    with precision.precision(config.precision):
        tokens = keras.Input((None,), dtype="int32", name="tokens")
        mask = embedding.padding_mask(tokens, name="mask")
        x = embedding.embedding(
            tokens, num_words, config.embedding_dim, word_dropout=config.word_dropout, name="embedding"
        )
        if config.architecture == "cnn":
            x = sentence_convolution.sentence_convolution(x, config.units, mask=mask, name="pool")
        else:
            x = recurrence.recurrent_stack(
                x,
                config.architecture,
                config.units,
                config.depth,
                bidirectional=config.bidirectional,
                dropout=config.dropout,
                recurrent_dropout=config.recurrent_dropout,
                mask=mask,
                name="recurrent",
            )
            x = _pooled(config, x, mask)
        x = keras.layers.Dropout(config.dropout, name="dropout")(x)
        logits = keras.layers.Dense(classes, dtype="float32", name="logits")(x)
        if config.ngrams:
            wide = ngrams.NgramLogits(num_words, classes, buckets=config.ngram_buckets, name="ngrams")(tokens)
            logits = ngrams.Blend(config.ngram_share, dtype="float32", name="blend")(logits, wide)
        model = keras.Model(tokens, logits, name="sentiment")
    _compile(config, model, len(data.train.texts))
    return model


def _compile(config: Config, model: keras.Model, num_texts: int) -> None:
    model.compile(
        optimizer=_optimizer(config, num_texts, config.epochs),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=config.label_smoothing),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        jit_compile=False,  # the lengths of the texts differ from batch to batch
    )


def _pooled(config: Config, x: keras.KerasTensor, mask: keras.KerasTensor) -> keras.KerasTensor:
    if config.pooling == "attention":
        return attention.attention_pooling(x, units=config.units, mask=mask, name="pool")[0]
    return attention.pooling(x, config.pooling, mask=mask, bidirectional=config.bidirectional, name="pool")


def _optimizer(config: Config, num_texts: int, epochs: int) -> keras.optimizers.Optimizer:
    return optimizers.make("adamw", config, pipeline.num_steps(num_texts, config.batch_size), epochs=epochs)


# --- Training --------------------------------------------------------------------------------------------------------


def train(config: Config, model: keras.Model, data: Splits, callbacks: list[Any]) -> keras.callbacks.History:
    """Fits the model; before the first epoch come the n-grams and the language model."""
    saver = callbacks[-1]
    words = vocabulary_of(data)
    sequences, labels = encoded(words, data.train.texts), data.train.labels
    one_hot = np.eye(len(data.info["class_names"]), dtype=np.float32)
    targets = one_hot[labels]
    if saver.initial_epoch == 0:  # later the checkpoint holds what these lead to
        if config.ngrams:
            model.get_layer("ngrams").fit(_labeled_batches(sequences, labels), strength=config.ngram_strength)
        if config.pretrain_epochs:
            pretrain(config, model, sequences + encoded(words, data.train.unlabeled()))
    if config.teacher is not None:
        unlabeled = data.train.unlabeled()
        targets = np.concatenate([targets, _taught(config, unlabeled, data, saver.folder / TEACHER)])
        sequences += encoded(words, unlabeled)
        _compile(config, model, len(sequences))
    validation = None
    if data.validation is not None:
        order = np.argsort([len(text) for text in data.validation.texts], kind="stable")
        arrays = np.array(data.validation.texts, object)[order], one_hot[data.validation.labels[order]]
        validation = pipeline.evaluation_batches(arrays, 250).map(lambda text, target: (words(text), target)).cache()
    return fit.fit(
        model,
        pipeline.bucketed_batches(
            sequences, [targets], config.batch_size, initial_epoch=saver.initial_epoch, seed=config.seed
        ),
        callbacks,
        epochs=config.epochs,
        steps=pipeline.num_steps(len(sequences), config.batch_size),
        validation=validation,
        patience=config.patience,
    )


def _taught(config: Config, texts: list[str], data: Splits, kept: Path) -> np.ndarray:
    """The teacher's float32[texts, classes], kept in a file of the run: a resumed one goes on with the same.

    Source: a student that learns soft labels from noised inputs: Xie et al. 2019, arXiv:1911.04252, section 2.
    """
    if not kept.is_file():
        assert config.teacher is not None
        teacher = export.version_folder(config.teacher)
        signatures = export.signatures(teacher, "classify", "class_name", "explain")
        count = signatures["classify"](text=tf.constant([""]))["probabilities"].shape[1]
        names = [name.decode() for name in signatures["class_name"](index=tf.range(count))["label"].numpy()]
        if names != data.info["class_names"]:
            raise UserError(
                f"--teacher {teacher} knows the classes {', '.join(names)}; expected those of the data, "
                f"{', '.join(data.info['class_names'])}; give one that was trained on this data"
            )
        held_out = json.loads((teacher / "config.json").read_text(encoding="utf-8"))["validation_ratio"]
        if held_out < config.validation_ratio:
            print(
                f"{teacher} learned from texts that this run validates by, so val_accuracy comes out too high; give "
                f"both the same --validation-ratio (the teacher had {held_out})",
                file=sys.stderr,
            )
        print(f"{teacher} answers {len(texts):,} unlabelled texts", flush=True)
        with atomic_path(kept) as temporary:
            np.save(temporary, probabilities(signatures, texts, data))
    answers: np.ndarray = np.load(kept)
    if len(answers) != len(texts):
        raise UserError(
            f"{kept} has answers to {len(answers):,} texts, expected {len(texts):,}: the unlabelled texts have changed "
            "since the run began; restore them, or train anew"
        )
    return answers


def _labeled_batches(sequences: list[np.ndarray], labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for part in pipeline.sorted_slices([len(sequence) for sequence in sequences], 250):
        longest = max(1, *(len(sequences[i]) for i in part))
        rows = [sequences[i] for i in part]
        yield keras.utils.pad_sequences(rows, longest, dtype="int32", padding="post"), labels[part]


def pretrain(config: Config, model: keras.Model, sequences: list[np.ndarray]) -> keras.Model:
    """Trains the embedding and the recurrent layers of a classifier as a language model.

    The gradient goes back through a whole text, as in the classifier: no state is carried from text to text, since
    the classifier begins each without one.

    Args:
        config: its pretrain_epochs, and the optimizer's settings.
        model: from `build_model`; its layers are changed.
        sequences: the texts, int32[words] each.

    Returns:
        The language model, see `kerasdl.models.language_model.neighbour_model`.

    Raises:
        UserError: no text has two words.
    Source: Dai and Le 2015, arXiv:1511.01432, section 2, there with a full softmax.
    """
    sequences = [sequence for sequence in sequences if len(sequence) > 1]
    if not sequences:
        raise UserError("no text has two words, so that there is none to predict; leave --pretrain-epochs out")
    print(f"pre-training on {len(sequences):,} texts, {sum(map(len, sequences)):,} words", flush=True)
    words = model.get_layer("embedding")
    layers = [model.get_layer(f"recurrent_layer{index}") for index in range(config.depth)]
    with precision.precision(config.precision):
        guesser = language_model.neighbour_model(words, layers, dropout=config.dropout, name="language_model")
    guesser.compile(
        _optimizer(config, len(sequences), config.pretrain_epochs),
        language_model.sampled_softmax(words.embeddings),
        jit_compile=False,
    )
    batches = pipeline.bucketed_batches(sequences, [], config.batch_size, seed=config.seed)
    guesser.fit(
        batches.map(lambda tokens: (tokens, language_model.neighbours(tokens, 1 + config.bidirectional))),
        epochs=config.pretrain_epochs,
        steps_per_epoch=pipeline.num_steps(len(sequences), config.batch_size),
        shuffle=False,
        verbose=progress.verbosity(),
    )
    return guesser


# --- Evaluation ------------------------------------------------------------------------------------------------------


def evaluate(config: Config, model: Any, data: Splits, figures: Path | None = None) -> dict[str, float]:
    """Accuracy and calibration on the whole test split, by length of the text, and without texts seen in training."""
    test = data.test()
    if not test.texts:
        raise UserError("there is no test text: expected a class of at least 3 rows, one of them to test; add rows")
    predicted = probabilities(model, test.texts, data)
    metrics = classification.classification_report(predicted, test.labels)
    right = predicted.argmax(1) == test.labels
    seen = {*data.train.texts, *(data.validation.texts if data.validation is not None else ())}
    new = np.array([text not in seen for text in test.texts])
    if new.any() and not new.all():
        metrics["accuracy_without_train_duplicates"] = float(right[new].mean())
    metrics |= _accuracy_by_length(right, test.texts)
    if figures is not None:
        names = data.info["class_names"]
        matrix = classification.confusion_matrix(predicted, test.labels)
        plots.confusion_matrix(matrix, names, figures / "confusion_matrix.png")
        plots.calibration(predicted, test.labels, figures / "calibration.png")
    return metrics


def probabilities(model: Any, texts: Sequence[str], data: Splits) -> np.ndarray:
    """float32[texts, classes], of a model or of an export's signatures."""
    if isinstance(model, Mapping):
        classify = model["classify"]
    else:
        classify = tf.function(endpoints(model, data)["classify"].function, autograph=False, reduce_retracing=True)
    found = np.empty([len(texts), len(data.info["class_names"])], np.float32)
    for part in pipeline.sorted_slices([len(text) for text in texts], 250):
        found[part] = classify(text=tf.constant([texts[i] for i in part]))["probabilities"].numpy()
    return found


def _accuracy_by_length(right: np.ndarray, texts: Sequence[str]) -> dict[str, float]:
    """By quarters of the texts, shortest first."""
    parts = [vocabulary.WordVocabulary.tokenize(texts[part]) for part in pipeline.slices(len(texts), 5000)]
    lengths = np.concatenate([part.row_lengths().numpy() for part in parts])
    ends = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75, 1], method="lower"))
    quarter = np.searchsorted(ends, lengths)
    begins = [lengths.min(), *(ends[:-1] + 1)]
    return {
        f"accuracy_words_{begin}_to_{end}": float(right[quarter == i].mean())
        for i, (begin, end) in enumerate(zip(begins, ends, strict=True))
    }


# --- Export ----------------------------------------------------------------------------------------------------------


def endpoints(model: keras.Model, data: Splits) -> Mapping[str, export.Endpoint]:
    """Text in, label and probabilities out; the words that mattered; and the names of the classes."""
    names = tf.constant(data.info["class_names"])
    words = vocabulary_of(data)
    layers = {layer.name: layer for layer in model.layers}
    attends = isinstance(layers["pool"], attention.AttentionPooling)
    if attends:
        inner = keras.Model(model.input, layers["pool"].output[1])
    else:
        inner = keras.Model([model.input, layers["embedding"].output], model.output)

    def classify(text: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = tf.nn.softmax(model(words(text), training=False))
        return {"label": tf.gather(names, tf.argmax(probabilities, -1)), "probabilities": probabilities}

    def explain(text: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens = words(text)
        shown = words.kept_words(text).to_tensor("", shape=tf.shape(tokens, tf.int64))
        weight = inner(tokens, training=False) if attends else gradient_times_input(tokens)
        return {"words": shown, "weight": tf.where(tokens != 0, weight, 0.0)}

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

    def class_name(index: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"label": tf.gather(names, index)}

    strings = {"text": tf.TensorSpec([None], tf.string)}
    example = {"text": np.array(["A clever, moving film."], object)}
    return {
        "classify": export.Endpoint(
            classify, strings, example, "texts as they are, in UTF-8, of any length", resources=(words,)
        ),
        "explain": export.Endpoint(
            explain,
            strings,
            example,
            "the words as the model reads them, and "
            + ("its attention to each" if attends else "how much each speaks for the label, or against it (below 0)"),
            resources=(words,),
        ),
        "class_name": export.Endpoint(
            class_name,
            {"index": tf.TensorSpec([None], tf.int32)},
            {"index": np.array([0])},
            f"name of a column of the probabilities, 0 to {len(data.info['class_names']) - 1}",
        ),
    }


def served(signatures: Mapping[str, Any]) -> Mapping[str, Any]:
    """The export as `evaluate` takes it."""
    return signatures


# --- Verb ------------------------------------------------------------------------------------------------------------


def classify(
    model: Path,
    text: list[str],
    *,
    file: Path | None = None,
    format: Literal["text", "json", "csv"] = "text",
    explain: bool = False,
    html: Path | None = None,
) -> None:
    """Name the class of texts, with an exported model; without text and --file it reads standard input.

    Args:
        model: exported model, such as saved_models/sentiment.
        text: texts, each in quotes.
        file: UTF-8 file with one text a line.
        format: text for people; json: one object a line; csv: text, label, probability.
        explain: print the words of each text, on red as far as they mattered for its class, on blue if against it.
        html: file for these coloured words.
    """
    colored = explain or html is not None
    if colored and format != "text":
        raise UserError(f"--explain and --html show coloured text; leave out --format {format}")
    lines = _given(text, file)
    signatures = export.signatures(model, "classify", "class_name", "explain")
    rows = csv.writer(sys.stdout, lineterminator="\n")
    if format == "csv":
        rows.writerow(["text", "label", "probability"])
    pieces: list[tuple[str, float]] = []
    for part in pipeline.slices(len(lines), 64):
        batch = tf.constant(lines[part])
        predicted = signatures["classify"](text=batch)["probabilities"].numpy()
        order = tf.range(predicted.shape[1])
        names = [name.decode() for name in signatures["class_name"](index=order)["label"].numpy()]
        explained = _explained(signatures, batch) if colored else [[]] * len(predicted)
        for line, row, weighed in zip(lines[part], predicted, explained, strict=True):
            label, probability = names[row.argmax()], float(row.max())
            if format == "json":
                shown = dict(zip(names, row.tolist(), strict=True))
                print(json.dumps({"text": line, "label": label, "probabilities": shown}))
            elif format == "csv":
                rows.writerow([line, label, f"{probability:.6f}"])
            elif colored:
                pieces += [(f"{label} {probability:.1%}: ", 0.0), *weighed, ("\n", 0.0)]
            else:
                print(f"{label} {probability:.1%}: {line}")
    if colored:
        words, values = zip(*pieces, strict=True)
        colored_text.colored(words, values, title="red mattered for the class, blue spoke against it", html=html)


def _given(text: list[str], file: Path | None) -> list[str]:
    """The texts of the command line."""
    if text and file is not None:
        raise UserError("classify got texts and --file; give one of them")
    if text:
        return [line.encode(errors="replace").decode() for line in text]  # a terminal may send any bytes
    if file is not None:
        whole = text_file.read(file)
    else:
        if sys.stdin.isatty():
            print("texts, one a line; Ctrl-D ends", file=sys.stderr)
        given = sys.stdin.buffer.read()
        try:
            whole = given.decode("utf-8")
        except UnicodeDecodeError as error:
            line = given.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"standard input is no UTF-8 text: line {line} has 0x{given[error.start]:02x}; expected one text a line"
            ) from None
        if not whole:
            raise UserError("no text given; expected texts as arguments, --file, or standard input with one a line")
    return whole.removesuffix("\n").split("\n")


def _explained(signatures: Mapping[str, Any], batch: tf.Tensor) -> list[list[tuple[str, float]]]:
    """The words of each text, with their weights relative to the largest."""
    answer = signatures["explain"](text=batch)
    weights = answer["weight"].numpy()
    weights /= np.maximum(np.abs(weights).max(1, keepdims=True), 1e-12)
    found = zip(answer["words"].numpy(), weights.tolist(), strict=True)
    return [[(w.decode() + " ", v) for w, v in zip(row, values, strict=True) if w] for row, values in found]


VERBS: tuple[Callable[..., None], ...] = (classify,)


def tiny() -> tuple[Config, Splits]:
    """Made-up reviews whose verdict stands behind a negation: an LSTM learns them, counting words does not."""
    texts, labels = synthetic.reviews(3000, seed=0)
    whole = Examples(texts, labels)
    train, validation, test = (_chosen(whole, part) for part in np.split(np.arange(3000), [2000, 2500]))
    config = Config(bidirectional=False, units=32, embedding_dim=32, ngrams=False, dropout=0.0, epochs=5, batch_size=25,
                    learning_rate=1e-2)  # fmt: skip
    names = ["negative", "positive"]
    return config, _splits(config, train, validation, lambda: test, names, "made-up reviews, 500 texts", tiny=True)
