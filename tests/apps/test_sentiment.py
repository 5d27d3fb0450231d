"""The text classifier: it learns, it fails when it must, and it takes a person's own texts."""

import csv
import dataclasses
import functools
import io
import json
import subprocess
import sys
from pathlib import Path

import fitting
import keras
import numpy as np
import pytest
import tensorflow as tf

from apps import _run, sentiment
from apps.__main__ import main
from apps._contract import Splits
from kerasdl import export
from kerasdl.data import divided, text_data, tfds
from kerasdl.errors import UserError
from kerasdl.metrics import classification
from kerasdl.models import language_model, teacher

ROOT = Path(__file__).parent.parent.parent
SMALL = sentiment.Config(
    bidirectional=False, units=8, embedding_dim=8, ngram_buckets=500, batch_size=20, epochs=1, learning_rate=1e-2
)
TOPICS = {
    "sport": ["the match", "a goal", "our coach", "the striker"],
    "weather": ["some rain", "a storm", "the snow", "strong wind"],
    "food": ["the soup", "fresh bread", "a cake", "ripe cheese"],
}


def topics(count, seed=0):
    """Rows (text, label) of three classes, told apart by a word among others."""
    rng = np.random.default_rng(seed)
    labels = [list(TOPICS)[i % 3] for i in range(count)]
    begins, ends = ["today we had", "I remember", "they spoke of"], ["once more .", "at last !", "and then home ."]
    return [(f"{rng.choice(begins)} {rng.choice(TOPICS[label])} {rng.choice(ends)}", label) for label in labels]


def splits(config=SMALL, count=120, **changes):
    """`topics` as the application's data."""
    texts, names = zip(*topics(count), strict=True)
    whole = text_data.Texts(list(texts), np.array([sorted(TOPICS).index(name) for name in names], np.int32))
    parts = np.split(np.arange(count), [round(0.7 * count), round(0.85 * count)])
    train, validation, test = (whole.of(part) for part in parts)
    found = divided.Divided(train, validation, lambda: test, sorted(TOPICS), "topics")
    made = sentiment.splits_of(config, found, "topics")
    return dataclasses.replace(made, **changes)


fitted = functools.partial(fitting.fitted, sentiment)


def as_float32(model, config, data):
    """The same weights, computed in float32."""
    exact = sentiment.build_model(dataclasses.replace(config, precision="float32"), data)
    exact.set_weights(model.get_weights())
    return exact


def accuracy(config, data, folder):
    model = as_float32(fitted(config, data, folder), config, data)
    return _run.measure(sentiment, config, model, data)["accuracy"]


# --- Learning ------------------------------------------------------------------------------------


def test_tiny_is_learned_and_shuffled_labels_are_not(tmp_path):
    """Counting words stays at chance on these reviews, counting pairs at 70 %: tests/kerasdl/data/test_reviews.py."""
    config, data = sentiment.tiny()
    assert not config.ngrams
    assert accuracy(config, data, tmp_path / "right") >= 0.9
    rng = np.random.default_rng(0)
    broken = dataclasses.replace(data.train, labels=rng.permutation(data.train.labels))
    broken = dataclasses.replace(data, train=broken)
    assert accuracy(dataclasses.replace(config, epochs=2), broken, tmp_path / "broken") < 0.6


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "lstm", "bidirectional": True, "pooling": "last", "recurrent_dropout": 0.2},
        {
            "architecture": "gru",
            "depth": 2,
            "pooling": "mean",
            "hidden": "maxout",
            "clip_norm": None,
            "label_smoothing": 0.1,
        },
        {
            "architecture": "rnn",
            "bidirectional": True,
            "pooling": "attention",
            "ngrams": False,
            "schedule": "one-cycle",
        },
        {"architecture": "cnn", "hidden": "highway", "precision": "float32", "word_dropout": 0.0},
    ],
    ids=lambda changes: "-".join([changes["architecture"], changes.get("pooling", "")]),
)
def test_every_architecture_trains_and_no_prediction_depends_on_padding(changes, tmp_path):
    config = dataclasses.replace(SMALL, **changes)
    data = splits(config)
    keras.utils.set_random_seed(0)
    before = sentiment.build_model(config, data).get_weights()
    model = fitted(config, data, tmp_path)
    assert all((old != new).any() for old, new in zip(before, model.get_weights(), strict=True) if old.size)
    function = sentiment.endpoints(as_float32(model, config, data), data)["classify"].function
    served = {"classify": tf.function(function, autograph=False, reduce_retracing=True)}
    texts = ["rain", "", "the soup " * 40, "I remember a storm at last !", "unheard-of"]
    together = teacher.probabilities(served, texts)
    alone = np.concatenate([teacher.probabilities(served, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together.sum(1), 1, rtol=1e-5)
    assert np.abs(together[0] - together[2]).max() > 1e-4, "all texts get the same answer"


def test_the_last_step_of_both_directions_has_read_the_whole_text():
    config = dataclasses.replace(SMALL, bidirectional=True, pooling="last", ngrams=False, precision="float32")
    data = splits(config)
    model = sentiment.build_model(config, data)
    pooled = keras.Model(model.input, model.get_layer("pool").output)
    first, same_end, same_begin = pooled(np.array([[2, 3, 4, 5, 0], [6, 3, 4, 5, 0], [2, 3, 4, 7, 0]])).numpy()
    for half in (slice(0, 8), slice(8, 16)):  # forward and backward
        assert np.abs(first[half] - same_end[half]).max() > 1e-6
        assert np.abs(first[half] - same_begin[half]).max() > 1e-6


@pytest.fixture(scope="module")
def naive(tmp_path_factory):
    """Data, and a model with n-grams that was trained without learning anything."""
    config = dataclasses.replace(SMALL, learning_rate=1e-9)
    data = splits(config)
    return data, as_float32(fitted(config, data, tmp_path_factory.mktemp("naive")), config, data)


def test_ngrams_alone_tell_the_topics(naive):
    data, model = naive
    kernel = model.get_layer("ngrams").kernel
    learned = kernel.numpy()
    assert _run.measure(sentiment, SMALL, model, data)["accuracy"] > 0.85
    kernel.assign(-learned)
    assert _run.measure(sentiment, SMALL, model, data)["accuracy"] < 0.33
    kernel.assign(learned)


def test_the_network_learns_as_if_there_were_no_ngrams(tmp_path):
    with_ngrams, without = (
        fitted(config, splits(config), tmp_path / str(config.ngrams))
        for config in (dataclasses.replace(SMALL, ngrams=ngrams, precision="float32") for ngrams in (True, False))
    )
    for name in ("embedding", "recurrent_layer0", "logits"):
        for one, other in zip(
            with_ngrams.get_layer(name).get_weights(), without.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-5)
    tokens = np.array([[2, 3, 4]])
    assert np.abs(with_ngrams.predict_on_batch(tokens) - without.predict_on_batch(tokens)).max() > 1e-3


# --- Pre-training --------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_language_model_predicts_words_that_follow_from_others(bidirectional):
    """After "made" comes "by", before "mine" comes "of": in made-up reviews a third of the words is certain."""
    data = sentiment.tiny()[1]
    config = dataclasses.replace(
        SMALL, units=32, embedding_dim=32, bidirectional=bidirectional, dropout=0.0, pretrain_epochs=3, ngrams=False
    )
    keras.utils.set_random_seed(0)
    model = sentiment.build_model(config, data)
    before = {layer.name: layer.get_weights() for layer in model.layers}
    sequences = sentiment.vocabulary_of(data).sequences(data.train.texts)
    guesser = language_model.pretrain(model, sequences[:1500], config)
    for name, weights in before.items():
        changed = [(old != new).any() for old, new in zip(weights, model.get_layer(name).get_weights(), strict=True)]
        assert all(changed) if name in ("embedding", "recurrent_layer0") else not any(changed), name
    tokens = keras.utils.pad_sequences(sequences[1500:1700], padding="post")
    guesses = guesser.predict_on_batch(tokens)
    logits = guesses @ model.get_layer("embedding").get_weights()[0].T
    halves = [(logits[:, : tokens.shape[1] - 1], tokens[:, 1:])]
    if bidirectional:
        halves.append((logits[:, tokens.shape[1] - 1 :], tokens[:, :-1]))
    assert sum(part.shape[1] for part, _ in halves) == logits.shape[1]
    for part, right in halves:
        counted = tokens[:, 1:] != 0
        most_frequent = np.mean(right[counted] == np.bincount(right[counted]).argmax())
        score = np.mean(part.argmax(-1)[counted] == right[counted])
        assert score > 0.5 > 2 * most_frequent


def test_pretraining_leaves_out_what_stands_in_the_test_split(monkeypatch):
    parts = {
        "train": (["a good film", "a bad film", "dull", "fine"] * 5, np.arange(20, dtype=np.int32) % 2),
        "test": (["seen before", "new"], np.array([0, 1], np.int32)),
        "unsupervised": (["seen before", "no label here"], np.array([-1, -1], np.int32)),
    }
    opened = []
    monkeypatch.setattr(tfds, "texts", lambda name, split, data_dir: opened.append(split) or parts[split])
    monkeypatch.setattr(tfds, "class_names", lambda name, data_dir: ["neg", "pos"])
    data = sentiment.load_data(sentiment.Config())
    assert opened == ["train"], "test is for evaluate alone"
    assert (len(data.train.texts), len(data.validation.texts)) == (18, 2)
    assert data.train.unlabeled() == ["no label here"]
    assert set(data.info["words"]) == {"a", "good", "film", "bad", "dull", "fine"}
    assert data.test().texts == ["seen before", "new"]
    again = sentiment.load_data(sentiment.Config(seed=1))
    assert again.train.texts == data.train.texts, "the split depends on the seed"


# --- A teacher -----------------------------------------------------------------------------------


def test_a_student_learns_what_its_teacher_knows(own, tmp_path):
    """Its own labels are shuffled and tell nothing; texts without labels, and the teacher's answers, do."""
    config = dataclasses.replace(SMALL, ngrams=False, epochs=4)
    texts, names = zip(*topics(600, seed=1), strict=True)
    data = splits(config)
    labels = np.random.default_rng(0).permutation(data.train.labels)
    broken = dataclasses.replace(data, train=text_data.Texts(data.train.texts, labels, lambda: list(texts)))
    assert accuracy(config, broken, tmp_path / "alone") < 0.7
    taught = dataclasses.replace(config, teacher=own[1])
    assert accuracy(taught, broken, tmp_path / "taught") > 0.9
    answers = np.load(tmp_path / "taught" / teacher.FILE)
    assert answers.shape == (600, 3)
    assert np.mean(answers.argmax(1) == [sorted(TOPICS).index(name) for name in names]) > 0.9
    np.testing.assert_allclose(answers.sum(1), 1, rtol=1e-5)
    assert 0.1 < answers.max(1).min() < 0.999, "soft answers"


def test_own_texts_without_labels(tmp_path):
    rows = topics(60)
    with (tmp_path / "few.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    more = [f"{text} indeed" for text, _ in rows] + [text for text, _ in rows]
    (tmp_path / "more.txt").write_text("\n".join(more), encoding="utf-8")
    config = dataclasses.replace(
        SMALL, data=tmp_path / "few.csv", unlabeled=tmp_path / "more.txt", teacher=Path("saved_models/any")
    )
    data = sentiment.load_data(config)
    tested = set(data.test().texts)
    assert tested
    assert data.train.unlabeled() == [text for text in more if text not in tested]
    assert "indeed" in data.info["words"], "a word that stands without a label can be learned, too"
    with pytest.raises(UserError, match="There is no file"):
        sentiment.load_data(dataclasses.replace(config, unlabeled=tmp_path / "missing.txt"))


def test_a_teacher_of_other_classes_is_refused(own, tmp_path):
    config = dataclasses.replace(SMALL, teacher=own[1])
    data = splits(config)
    data = dataclasses.replace(data, info={**data.info, "class_names": ["food", "sport", "storm"]})
    with pytest.raises(UserError, match="knows the classes food, sport, weather; expected those of the data, food, sp"):
        fitted(config, data, tmp_path)
    with pytest.raises(UserError, match="has no signature explain but"):
        fitted(dataclasses.replace(config, teacher=ROOT / "saved_models/cifar10"), data, tmp_path)


def test_a_teacher_that_knows_the_validation_texts_is_noticed(own, tmp_path, capsys):
    assert json.loads((own[1] / "1/config.json").read_text())["validation_ratio"] == 0.1
    for ratio, warned in ((0.1, False), (0.2, True)):
        teacher.soft_labels(
            lambda: (own[1] / "1", export.signatures(own[1])),
            ["the soup"],
            sorted(TOPICS),
            validation_ratio=ratio,
            kept=tmp_path / f"{ratio}.npy",
        )
        said = capsys.readouterr().err
        assert ("learned from texts that this run validates by" in said) == warned


# --- Resume --------------------------------------------------------------------------------------


def test_resume_is_exact(own, tmp_path):
    """With everything that draws numbers or comes before the first epoch: dropout, n-grams, pre-training, a teacher."""
    config = dataclasses.replace(
        SMALL, epochs=2, word_dropout=0.2, recurrent_dropout=0.2, pretrain_epochs=1, patience=3, teacher=own[1],
        excerpts=2,
    )  # fmt: skip
    data = splits(config)
    twice = [f"{text} {text}" for text in data.train.texts]
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, texts=twice))
    more = [text for text, _ in topics(60, seed=2)]
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, unlabeled=lambda: more))
    whole = fitted(config, data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(config, data, tmp_path / "parts", fitting.StopsBefore(1))
    config = dataclasses.replace(config, teacher=tmp_path / "gone")
    fewer = dataclasses.replace(data, train=dataclasses.replace(data.train, unlabeled=lambda: more[1:]))
    with pytest.raises(UserError, match="has answers to 60 texts, expected 59"):
        fitted(config, fewer, tmp_path / "parts", resume=True)
    resumed = fitted(config, data, tmp_path / "parts", resume=True)
    for variable, expected in zip(resumed.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(variable, expected, err_msg=variable.path)
    rows = [(tmp_path / part / "log.csv").read_text().splitlines() for part in ("whole", "parts")]
    assert len(rows[0]) == len(rows[1]) == 3
    texts = 3 * len(twice) + 60  # the others are of one sentence
    assert int(whole.optimizer.iterations) == 2 * (texts // config.batch_size)


# --- Evaluation ----------------------------------------------------------------------------------


def test_evaluate_by_length_and_without_duplicates():
    """A signature that says class 1 for every text with "yes" in it, wrong on the longest and on a seen one."""

    def classify(text):
        says_yes = np.array([b"yes" in written for written in text.numpy()], np.float32)
        return {"probabilities": tf.constant(np.stack([0.9 - 0.8 * says_yes, 0.1 + 0.8 * says_yes], 1))}

    lengths = np.repeat([1, 2, 5, 30], 5)
    texts = [" ".join(["yes" if i % 2 else "no", *["word"] * (n - 1)]) for i, n in enumerate(lengths)]
    labels = np.arange(20, dtype=np.int32) % 2
    labels[lengths == 30] = 1 - labels[lengths == 30]
    train = text_data.Texts(["yes word word word word", "something else"], np.array([1, 0]))
    test = text_data.Texts(texts, labels)
    info = {"class_names": ["no", "yes"]}
    data = Splits(train=train, validation=None, test=lambda: test, info=info, description="")
    metrics = sentiment.evaluate(SMALL, {"classify": classify}, data)
    assert metrics["accuracy"] == 0.75
    assert metrics["nll_nats"] == pytest.approx(-(0.75 * np.log(0.9) + 0.25 * np.log(0.1)))
    by_length = {name: value for name, value in metrics.items() if name.startswith("accuracy_words")}
    assert by_length == {
        "accuracy_words_1_to_1": 1.0,
        "accuracy_words_2_to_2": 1.0,
        "accuracy_words_3_to_5": 1.0,
        "accuracy_words_6_to_30": 0.0,
    }
    new = sum(text not in train.texts for text in texts)
    assert new < 20
    assert metrics["accuracy_without_train_duplicates"] == pytest.approx((new - 5) / new)
    fresh = dataclasses.replace(data, train=text_data.Texts(["other"], np.array([0])))
    assert "accuracy_without_train_duplicates" not in sentiment.evaluate(SMALL, {"classify": classify}, fresh)


# --- What mattered -------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"bidirectional": True, "pooling": "max"}, {"architecture": "cnn"}])
def test_a_word_weighs_what_a_longer_vector_would_add(changes):
    """Weight = slope of the margin when the word's vector grows, by finite differences."""
    config = dataclasses.replace(SMALL, **changes, ngrams=False, precision="float32")
    data = splits(config)
    keras.utils.set_random_seed(0)
    model = sentiment.build_model(config, data)
    table = model.get_layer("embedding").embeddings
    table.assign(table * 10)
    text = tf.constant(["the striker spoke of fresh bread"])
    signatures = sentiment.endpoints(model, data)
    answer = signatures["explain"].function(text=text)
    tokens = sentiment.vocabulary_of(data)(text).numpy()[0]

    def margin(weights):
        table.assign(weights)
        logits = model.predict_on_batch(tokens[None])[0]
        return logits[predicted] - logits.mean()

    start = table.numpy()
    predicted = model.predict_on_batch(tokens[None])[0].argmax()
    for place, token in enumerate(tokens):
        sides = []
        for factor in (1.01, 0.99):
            changed = start.copy()
            changed[token] *= factor
            sides.append(margin(changed))
        slope = (sides[0] - sides[1]) / 0.02
        assert answer["weight"].numpy()[0, place] == pytest.approx(slope, rel=0.05, abs=2e-4)
    assert answer["words"].numpy()[0].tolist() == b"the striker spoke of fresh bread".split()


def test_ngrams_explain(naive):
    data, model = naive
    answer = sentiment.endpoints(model, data)["explain"].function(text=tf.constant(["they spoke of cheese today", ""]))
    assert answer["words"].numpy()[0][answer["weight"].numpy()[0].argmax()] == b"cheese"
    assert np.all(answer["weight"].numpy()[1] == 0)


def test_attention_explains():
    data = splits()
    config = dataclasses.replace(SMALL, pooling="attention")
    attends = sentiment.build_model(dataclasses.replace(config, precision="float32"), data)
    answer = sentiment.endpoints(attends, data)["explain"].function(text=tf.constant(["they spoke of cheese", "a", ""]))
    np.testing.assert_allclose(answer["weight"].numpy().sum(1), [1, 1, 0], atol=1e-6)
    assert answer["words"].numpy()[1].tolist() == [b"a", b"", b"", b""]


# --- A person's own texts ------------------------------------------------------------------------

ODD = [
    "",
    "\U0001f389\U0001f525",
    "映画はとても面白かった",
    "фильм",
    "xyzzy qwrtz",
    "a\0b",
    "bread " * 100_000,
    " \n\t",
]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Trained, measured and exported from a CSV of three classes by the command line: run folder, export folder."""
    folder = tmp_path_factory.mktemp("own")
    with (folder / "topics.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["note", "kind"])
        writer.writerows(topics(150))
    flags = ["--data", str(folder / "topics.csv"), "--text-column", "note", "--label-column", "kind", "--units", "8"]
    flags += ["--embedding-dim", "8", "--no-bidirectional", "--batch-size", "20", "--epochs", "2", "--max-words", "30"]
    runs = ["--runs", str(folder / "runs")]
    assert main(["sentiment", "train", *flags, "--ngram-buckets", "500", "--learning-rate", "1e-2", *runs]) == 0
    (run,) = (folder / "runs/sentiment").iterdir()
    assert main(["sentiment", "evaluate", str(run)]) == 0
    assert main(["sentiment", "export", str(run), "--saved-models", str(folder / "exports")]) == 0
    return run, folder / "exports/sentiment"


def test_own_texts_are_learned(own):
    run, exported = own
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.9, "chance is 0.33"
    assert {"nll_nats", "calibration_error", "accuracy_low"} <= set(metrics)
    assert "accuracy_without_train_duplicates" not in metrics, "equal texts stand in one part"
    assert {"confusion_matrix.png", "calibration.png", "learning_curves.png"} <= {
        path.name for path in (run / "figures").iterdir()
    }
    stored = json.loads((exported / "1/metrics.json").read_text())
    assert stored["accuracy"] == pytest.approx(metrics["accuracy"], abs=0.07)


def test_any_text_gets_an_answer(own):
    signatures = export.signatures(own[1])
    texts = [text.encode() for text in ODD] + [b"\xff\xfe broken \xc3", b"they had bread"]
    together = signatures["classify"](text=tf.constant(texts))
    shares = together["probabilities"].numpy()
    assert shares.shape == (len(texts), 3)
    assert np.isfinite(shares).all()
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    assert together["label"].numpy()[-1] == b"food"
    for text, row in zip(texts, shares, strict=True):
        alone = signatures["classify"](text=tf.constant([text]))["probabilities"].numpy()[0]
        np.testing.assert_allclose(alone, row, atol=1e-5)
    answer = signatures["explain"](text=tf.constant(texts))
    words, weight = answer["words"].numpy(), answer["weight"].numpy()
    assert words.shape == weight.shape == (len(texts), 30)
    assert np.isfinite(weight).all()
    assert np.all(weight[words == b""] == 0)
    assert [sum(word != b"" for word in row) for row in words[:4]] == [0, 2, 11, 1]
    assert np.all(words[6] == b"bread")


def test_classify_from_arguments_file_and_standard_input(own, tmp_path, capsys, monkeypatch):
    command = ["sentiment", "classify", str(own[1])]
    texts = ["I remember a storm", "", "fresh bread, at last"]
    capsys.readouterr()
    assert main([*command, *texts]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[::2]] == ["weather", "food"]
    assert len(lines) == 3
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    assert main([*command, "--file", str(tmp_path / "texts.txt"), "--format", "json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["text"] for answer in answers] == texts
    assert answers[0]["label"] == "weather"
    assert set(answers[0]["probabilities"]) == set(TOPICS)
    assert sum(answers[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    given = io.TextIOWrapper(io.BytesIO("\n".join(texts).encode()))
    monkeypatch.setattr(sys, "stdin", given)
    assert main([*command, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["text"] for row in rows] == texts
    assert rows[2]["label"] == "food"
    assert float(rows[2]["probability"]) == pytest.approx(max(answers[2]["probabilities"].values()), abs=1e-4)


@pytest.mark.parametrize("name", ["notes.csv", "notes.tsv", "notes.jsonl"])
def test_classify_reads_a_table_as_training_does(own, tmp_path, capsys, name):
    notes = {2: 'a "storm", at last', 4: "fresh\nbread, soup", 6: ""}
    if name.endswith("jsonl"):
        notes = dict(zip((1, 2, 3), notes.values(), strict=True))
        lines = [json.dumps({"id": 7, "note": note}) for note in notes.values()]
    else:
        separator = "," if name.endswith("csv") else "\t"
        cells = ['"{}"'.format(note.replace('"', '""')) for note in notes.values()]
        lines = [f"id{separator}note", f"7{separator}{cells[0]}", "", *(f"7{separator}{cell}" for cell in cells[1:])]
    (tmp_path / name).write_text("\r\n".join(lines), encoding="utf-8", newline="")
    command = ["sentiment", "classify", str(own[1]), "--file", str(tmp_path / name), "--text-column", "note"]
    capsys.readouterr()
    assert main([*command, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {int(row["line"]): row["text"] for row in rows} == notes
    assert [row["label"] for row in rows[:2]] == ["weather", "food"]
    assert main([*command, "--format", "json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {answer["line"]: answer["text"] for answer in answers} == notes
    assert main(command) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in shown] == [f"line {place}" for place in notes]
    assert shown[1].endswith("fresh bread, soup")
    assert main([*command[:-2], "--format", "csv"]) == 2
    assert "has no column 'text'; expected one of id, note" in capsys.readouterr().err


def test_classify_colours_the_words_that_mattered(own, tmp_path, capsys):
    page = tmp_path / "why.html"
    assert main(["sentiment", "classify", str(own[1]), "we had bread", "", "--html", str(page)]) == 0
    assert "food" in capsys.readouterr().out
    written = page.read_text(encoding="utf-8")
    assert written.count("bread") == 1
    before = written[: written.index("bread")].rsplit("background-color: ", 1)[1]
    assert before[:7] == "#ff0000", "the word that speaks most for its class is the reddest"


def test_the_command_line_is_read_before_tensorflow_is_imported():
    script = (
        "import sys\n"
        "from apps.__main__ import main\n"
        "assert main(['sentiment', 'train', '--units', 'many']) == 2\n"
        "print([name for name in ('keras.src', 'tensorflow.python', 'numpy._core') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[]", run.stderr


# --- Mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"texts,label\ngood,a\nbad,b\n", "has no column 'text'; expected one of texts, label"),
        ("a.csv", b"text,label\ngood,a\nbad,\n", "line 3: the row has no label"),
        ("a.csv", b"text,label\ngood,a\nfine,a\nbad,b\n", "'b' stands in one row only (line 4)"),
        ("a.tsv", b"text\tlabel\ngood\ta\nb\xffd\tb\n", "line 3 has 0xff at byte 2"),
        ("a.jsonl", b"", "is empty"),
        ("a.csv", b"text,label\n,a\n,a\n,b\n,b\n", "no training text holds a word"),
    ],
)
def test_a_wrong_table_is_one_line(name, content, message, tmp_path, capsys):
    path = tmp_path / name
    path.write_bytes(content)
    assert main(["sentiment", "train", "--data", str(path), "--runs", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"units": 0}, "--units is 0; expected 1 or more"),
        ({"max_words": 0}, "--max-words is 0"),
        ({"dropout": 1.0}, "--dropout is 1.0; expected 0 to 0.9"),
        ({"validation_ratio": 0.95}, "--validation-ratio is 0.95; expected 0 to 0.8"),
        ({"patience": 2, "validation_ratio": 0.0}, "--patience needs validation data"),
        ({"pretrain_epochs": 1, "architecture": "cnn"}, "--pretrain-epochs trains recurrent layers"),
        ({"pretrain_epochs": 1, "depth": 2}, "--no-bidirectional"),
        ({"unlabeled": Path("more.txt")}, "--unlabeled stands beside --data"),
        ({"unlabeled": Path("more.txt"), "data": Path("few.csv")}, "--unlabeled is read for"),
        ({"teacher": Path("saved_models/any"), "data": Path("few.csv")}, "add some by --unlabeled FILE"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(UserError, match=message):
        sentiment.Config(**fields)


def test_classify_names_the_mistake(own, tmp_path, capsys, monkeypatch):
    command = ["sentiment", "classify", str(own[1])]
    (tmp_path / "empty.txt").write_text("")
    for flags, given, message in (
        (["a text", "--file", "texts.txt"], b"", "texts and --file; give one of them"),
        (["a text", "--explain", "--format", "json"], b"", "leave out --format json"),
        (["--file", str(tmp_path / "empty.txt")], b"", "is empty"),
        ([], b"", "no text given"),
        ([], b"fine\nb\xffd\n", "line 2 has 0xff"),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        assert main([*command, *flags]) == 2
        assert message in capsys.readouterr().err


def test_a_test_part_without_texts_is_refused_before_the_training(tmp_path):
    path = tmp_path / "four.csv"
    path.write_text("text,label\ngood,a\nfine,a\nbad,b\npoor,b\n")
    with pytest.raises(UserError, match="2 to train on, 2 to validate and 0 to test"):
        sentiment.load_data(sentiment.Config(data=Path(path)))


def test_pretraining_needs_two_words():
    config = dataclasses.replace(SMALL, pretrain_epochs=1)
    with pytest.raises(UserError, match="no text has two words"):
        language_model.pretrain(
            sentiment.build_model(config, splits()), [np.array([3]), np.array([], np.int32)], config
        )


def test_a_search_draws_configurations_that_are_valid():
    import keras_tuner

    from tuning.sentiment import space

    hp = keras_tuner.HyperParameters()
    found = space(hp, sentiment.Config())
    assert found == sentiment.Config()  # a search begins with what it was given
    assert {"learning_rate", "dropout", "word_dropout", "pooling", "ngram_strength"} <= set(hp.values)
    hp = keras_tuner.HyperParameters()
    space(hp, sentiment.Config(ngrams=False))
    assert not {name for name in hp.values if name.startswith("ngram")}


def test_a_run_of_other_texts_is_not_resumed(own, capsys):
    run, _ = own
    path = Path(json.loads((run / "config.json").read_text())["data"])
    kept = path.read_text(encoding="utf-8")
    try:
        path.write_text(kept.replace("soup", "stew"), encoding="utf-8")
        assert main(["sentiment", "train", "--resume", str(run)]) == 2
        assert "words changed" in capsys.readouterr().err
    finally:
        path.write_text(kept, encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_damaged_answers_of_a_teacher_are_asked_for_anew(content, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"validation_ratio": 0.1}')
    answers = {
        "classify": lambda text: {"probabilities": tf.constant([[0.25, 0.75]] * len(text))},
        "class_name": lambda index: {"label": tf.constant(["bad", "good"])},
    }
    kept = tmp_path / "teacher.npy"

    def ask(count=2):
        texts = ["one", "two"][:count]
        return teacher.soft_labels(
            lambda: (tmp_path, answers), texts, ["bad", "good"], validation_ratio=0.1, kept=kept
        ).tolist()

    assert ask() == ask() == [[0.25, 0.75]] * 2
    assert capsys.readouterr().err == ""
    kept.write_bytes(content)
    assert ask() == [[0.25, 0.75]] * 2
    assert capsys.readouterr().err == f"{kept} is damaged; the teacher is asked anew\n"
    kept.unlink()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json has no validation_ratio"):
        ask()


@pytest.mark.real
def test_the_trained_export_has_the_accuracy_on_its_card(data_dir, card):
    folder = ROOT / "saved_models/sentiment/1"
    test = sentiment.load_data(sentiment.Config(data_dir=data_dir)).test()
    test = test.of(np.random.default_rng(0).permutation(len(test))[card.rows(len(test), 1000)])
    measured = classification.classification_report(*sentiment.predictions(export.signatures(folder), test))
    card.compare(folder, measured, accuracy=(2e-4, 3e-3), calibration_error=(1e-3, 4e-3))
