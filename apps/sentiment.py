"""Text classifier: film reviews (IMDB) with an LSTM on two CPU cores, or your own table of texts and labels.

**Source**: LSTM in both directions: Graves and Schmidhuber 2005; n-grams: Wang and Manning 2012, "Baselines and
Bigrams"; the mean of these and a network: Mesnil et al. 2014, arXiv:1412.5335; pre-training as a language model: Dai
and Le 2015, arXiv:1511.01432; learning a teacher's answers: Xie et al. 2019, arXiv:1911.04252; convolution: Kim 2014,
arXiv:1408.5882.

**Expect**: `train` then `evaluate` reach the accuracy of labelled reviews alone in benchmarks/README.md; `train --tiny`
takes half a minute and ends above 90 % on made-up reviews, where single words tell nothing and pairs of words 70 %.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from apps._contract import Card, Objective, Splits
from apps._settings import AtLeast, Between, Quoting, UnlabeledTexts
from kerasdl import export
from kerasdl.blocks import activation, attention, embedding, ngrams, recurrence, sentence_convolution
from kerasdl.data import divided, pipeline, synthetic, table, text_data, vocabulary
from kerasdl.errors import UserError
from kerasdl.figures import colored_text, plots
from kerasdl.files import as_csv, as_json, check_output
from kerasdl.metrics import classification
from kerasdl.models import language_model, teacher, word_weights
from kerasdl.training import fit, optimizers, precision


@dataclass(frozen=True, kw_only=True)
class Config(UnlabeledTexts, epochs=4, learning_rate=2e-3, weight_decay=0.01, warmup_epochs=0.5, clip_norm=1.0):
    """Text classifier."""

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
    hidden: Literal["none", "highway", "maxout"] = "none"
    """A layer from the text's vector to another, as wide: highway, whose gate lets a part of it through, or maxout."""
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

    def __post_init__(self) -> None:
        """Checks every value."""
        super().__post_init__()
        if self.pretrain_epochs and (self.architecture == "cnn" or (self.bidirectional and self.depth > 1)):
            raise UserError(
                "--pretrain-epochs trains recurrent layers, each direction by itself; expected --architecture lstm, "
                "gru or rnn, and with several layers --no-bidirectional"
            )


OBJECTIVE = Objective(metric="val_accuracy", direction="max")

# --- Data ------------------------------------------------------------------------------------------------------------


def load_data(config: Config) -> Splits:
    """Reads the IMDB reviews, or the table of --data; no text without a label stands in the test part."""
    if config.data is None:
        name, held_out = "imdb_reviews/plain_text", config.held_out
        found = text_data.from_tfds(name, config.data_dir, held_out=held_out, unlabeled="unsupervised")
        return splits_of(config, found, "IMDB (TFDS), test split, 25,000 reviews")
    found = config.table()
    return splits_of(config, found, found.description)


def splits_of(config: Config, found: divided.Divided[text_data.Texts], description: str, **info: Any) -> Splits:
    """Texts, and the vocabulary of the training texts and of own ones without labels."""
    more = [] if config.data is None else found.train.unlabeled()
    words = vocabulary.build_vocabulary([*found.train.texts, *more], config.vocabulary_size)
    if not words:
        raise UserError("no training text holds a word; expected texts to learn from; name them by --text-column")
    info |= {"unlabeled": divided.fingerprint(more)} if more else {}
    info |= {"class_names": found.class_names, "max_words": config.max_words, "words": words}
    return Splits.of(found, info, description)


def vocabulary_of(data: Splits) -> vocabulary.WordVocabulary:
    """Texts to numbers."""
    return vocabulary.WordVocabulary(data.info["words"], data.info["max_words"])


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
            if config.pooling == "attention":
                x, _ = attention.attention_pooling(x, units=config.units, mask=mask, name="pool")
            else:
                x = attention.pooling(x, config.pooling, mask=mask, bidirectional=config.bidirectional, name="pool")
        if config.hidden == "highway":
            x = recurrence.highway(x, name="hidden")
        elif config.hidden == "maxout":
            x = activation.maxout(x, x.shape[-1], name="hidden")
        x = keras.layers.Dropout(config.dropout, name="dropout")(x)
        logits = keras.layers.Dense(classes, dtype="float32", name="logits")(x)
        if config.ngrams:
            wide = ngrams.NgramLogits(num_words, classes, buckets=config.ngram_buckets, name="ngrams")(tokens)
            logits = ngrams.Blend(config.ngram_share, dtype="float32", name="blend")(logits, wide)
        model = keras.Model(tokens, logits, name="sentiment")
    _compile(config, model, len(data.train))
    return model


def _compile(config: Config, model: keras.Model, num_texts: int) -> None:
    with model.distribute_strategy.scope():
        model.compile(
            optimizer=optimizers.make("adamw", config, pipeline.num_steps(num_texts, config.batch_size)),
            loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=config.label_smoothing),
            metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
            jit_compile=False,  # the lengths of the texts differ from batch to batch
        )


# --- Training --------------------------------------------------------------------------------------------------------


def train(config: Config, model: keras.Model, data: Splits, callbacks: list[Any]) -> keras.callbacks.History:
    """Fits the model; before the first epoch come the n-grams and the language model."""
    saver, words, texts, labels = callbacks[-1], vocabulary_of(data), list(data.train.texts), data.train.labels
    sequences = words.sequences(texts)
    one_hot = np.eye(len(data.info["class_names"]), dtype=np.float32)
    targets = one_hot[labels]
    if saver.initial_epoch == 0:  # later the checkpoint holds what these lead to
        if config.ngrams:
            print(f"learning the n-grams of {len(sequences):,} texts", flush=True)
            batches = pipeline.padded_batches(sequences, [labels], 250)
            model.get_layer("ngrams").fit(batches, strength=config.ngram_strength)
        if config.pretrain_epochs:
            language_model.pretrain(model, sequences + words.sequences(data.train.unlabeled()), config)
    if config.teacher is not None:
        unlabeled, path = data.train.unlabeled(), config.teacher
        answers = teacher.soft_labels(
            lambda: (export.version_folder(path), export.signatures(path, "classify", "class_name", "explain")),
            unlabeled,
            data.info["class_names"],
            validation_ratio=config.validation_ratio,
            kept=saver.folder / teacher.FILE,
        )
        targets = np.concatenate([targets, answers])
        sequences += words.sequences(unlabeled)
        texts += unlabeled
    if config.excerpts:
        excerpts, sources = text_data.excerpts(texts, config.excerpts, seed=config.seed)
        targets = np.concatenate([targets, targets[sources]])
        sequences += words.sequences(excerpts)
    if len(sequences) > len(data.train):
        _compile(config, model, len(sequences))
    validation = None
    if data.validation is not None:
        order = np.argsort([len(text) for text in data.validation.texts], kind="stable")
        arrays = np.array(data.validation.texts, object)[order], one_hot[data.validation.labels[order]]
        validation = pipeline.evaluation_batches(arrays, 250, devices=config.devices)
        validation = validation.map(lambda text, target: (words(text), target)).cache()
    steps, first = pipeline.num_steps(len(sequences), config.batch_size), saver.initial_epoch
    batches = pipeline.bucketed_batches(sequences, [targets], config.batch_size, initial_epoch=first, seed=config.seed)
    return fit.fit(model, batches, callbacks, config, steps=steps, validation=validation)


# --- Evaluation ------------------------------------------------------------------------------------------------------


def predictions(signatures: Mapping[str, Any], examples: text_data.Texts) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float32[examples, classes] and labels int32[examples]: what a temperature is fitted to."""
    return teacher.probabilities(signatures, examples.texts), examples.labels


def evaluate(
    config: Config,
    signatures: Mapping[str, Any],
    data: Splits,
    figures: Path | None = None,
    *,
    temperature: float | None = None,
) -> dict[str, float]:
    """Accuracy and calibration on the whole test split, by length of the text, and without texts seen in training."""
    test = data.test()
    if not len(test):
        raise UserError("there is no test text: expected a class of at least 3 rows, one of them to test; add rows")
    predicted = teacher.probabilities(signatures, test.texts)
    metrics = classification.classification_report(predicted, test.labels)
    metrics |= classification.without_skill(predicted, test.labels)
    metrics |= classification.before_calibration(predicted, test.labels, temperature)
    right = predicted.argmax(1) == test.labels
    seen = {*data.train.texts, *(data.validation.texts if data.validation is not None else ())}
    new = np.array([text not in seen for text in test.texts])
    if new.any() and not new.all():
        metrics["accuracy_without_train_duplicates"] = float(right[new].mean())
    tokenize = vocabulary.WordVocabulary.tokenize
    parts = [tokenize(test.texts[part]).row_lengths() for part in pipeline.slices(len(test), 5000)]
    metrics |= classification.accuracy_by_length(right, np.concatenate(parts))
    if figures is not None:
        matrix = classification.confusion_matrix(predicted, test.labels)
        plots.confusion_matrix(matrix, data.info["class_names"], figures / "confusion_matrix.png")
        plots.calibration(predicted, test.labels, figures / "calibration.png")
    return metrics


def verdict(metrics: Mapping[str, float]) -> str | None:
    """Why the model is of no use, if it is not."""
    return classification.verdict(metrics)


# --- Export ----------------------------------------------------------------------------------------------------------

CARD = Card.read("sentiment")


def endpoints(model: keras.Model, data: Splits, temperature: float | None = None) -> Mapping[str, export.Endpoint]:
    """Text in, label and probabilities out; the words that mattered; and the names of the classes."""
    names, words = data.info["class_names"], vocabulary_of(data)
    weights, meaning = word_weights.word_weights(model)

    def classify(text: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = model(words(text), training=False)  # of the network and the n-grams: both get the temperature
        label = tf.gather(tf.constant(names), tf.argmax(logits, -1))
        return {"label": label, "probabilities": tf.nn.softmax(logits / (temperature or 1))}

    def explain(text: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens = words(text)
        shown = words.kept_words(text).to_tensor("", shape=tf.shape(tokens, tf.int64))
        return {"words": shown, "weight": tf.where(tokens != 0, weights(tokens), 0.0)}

    example = {"text": ["A clever, moving film."]}
    return {
        "classify": export.by_rows(classify, "texts as they are, in UTF-8, of any length", words, **example),
        "explain": export.by_example(explain, f"the words as the model reads them, and {meaning}", words, **example),
        "class_name": export.class_name(names),
    }


# --- Verb ------------------------------------------------------------------------------------------------------------


def classify(
    model: Path,
    text: list[str],
    *,
    file: Path | None = None,
    text_column: str = "text",
    quoting: Quoting = "auto",
    format: Literal["text", "json", "csv"] = "text",
    explain: bool = False,
    html: Path | None = None,
) -> None:
    """Name the class of texts, with an exported model; without text and --file it reads standard input.

    Args:
        model: exported model, such as saved_models/sentiment.
        text: texts, each in quotes.
        file: UTF-8 file with one text a line; or a .csv, .tsv or .jsonl table, read as training reads it.
        text_column: column of a table that holds the texts.
        quoting: quotes in .csv and .tsv, as in training.
        format: text for people; json: one object a line; csv: text, label, probability. For a table each answer has
            the line on which its row begins, too.
        explain: print the words of each text, on red as far as they mattered for its class, on blue if against it.
        html: file for these coloured words, a new one.
    """
    check_output(html, flag="--html")
    colored = explain or html is not None
    if colored and format != "text":
        raise UserError(f"--explain and --html show coloured text; leave out --format {format}")
    texts = table.given(text, file, text_column=text_column, quoting=quoting)
    signatures = export.signatures(model, "classify", "class_name", "explain")
    if format == "csv":
        numbered = any(place is not None for place, _ in texts)
        print(as_csv(["text", "label", "probability", *(["line"] if numbered else [])]))
    pieces: list[tuple[str, float]] = []
    for part in pipeline.slices(len(texts), 64):
        batch = tf.constant([line for _, line in texts[part]])
        predicted = signatures["classify"](text=batch)["probabilities"].numpy()
        names = export.class_names(signatures, predicted.shape[1])
        explained = colored_text.weighed(**signatures["explain"](text=batch)) if colored else [[]] * len(predicted)
        for (place, line), row, weighed in zip(texts[part], predicted, explained, strict=True):
            label, probability = names[row.argmax()], float(row.max())
            at = {} if place is None else {"line": place}
            head = f"{'' if place is None else f'line {place}: '}{label} {probability:.1%}: "
            if format == "json":
                shown = dict(zip(names, row.tolist(), strict=True))
                print(as_json({"text": line, "label": label, "probabilities": shown, **at}))
            elif format == "csv":
                print(as_csv([line, label, f"{probability:.6f}", *at.values()]))
            elif colored:
                pieces += [(head, 0.0), *weighed, ("\n", 0.0)]
            else:
                print(head + line.replace("\n", " "))  # one line a text
    if colored:
        words, values = zip(*pieces, strict=True)
        colored_text.colored(words, values, title="red mattered for the class, blue spoke against it", html=html)


VERBS: tuple[Callable[..., None], ...] = (classify,)


def tiny(config: Config | None = None) -> tuple[Config, Splits]:
    """Made-up reviews whose verdict stands behind a negation: an LSTM learns them, counting words does not."""
    texts, labels = synthetic.reviews(3000, seed=0)
    whole = text_data.Texts(texts, labels)
    train, validation, test = (whole.of(part) for part in np.split(np.arange(3000), [2000, 2500]))
    config = config or Config(
        bidirectional=False, units=32, embedding_dim=32, ngrams=False, excerpts=0, dropout=0.0, epochs=5, batch_size=25,
        learning_rate=1e-2,
    )  # fmt: skip
    found = divided.Divided(train, validation, lambda: test, ["negative", "positive"], "made-up reviews, 500 texts")
    return config, splits_of(config, found, found.description, tiny=True)
