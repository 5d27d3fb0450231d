"""n-fold cross-validation of trials: each fold validates once, the score is the mean, a kill costs an epoch."""

import csv
import json
import os
import statistics
import sys

import numpy as np
import pytest

from apps import sentiment
from apps._contract import Objective, jsonable
from kerasdl.files import write_json
from tuning import _pruning
from tuning.__main__ import main
from tuning._journal import Trial
from tuning._trial import Limits, Trials

SMALL = {"architecture": "cnn", "units": 8, "embedding_dim": 8, "batch_size": 20, "precision": "float32"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """120 texts of two classes, which their words tell apart."""
    words = {"no": ["dull", "slow", "flat"], "yes": ["fine", "warm", "bright"]}
    draw = np.random.default_rng(0)
    rows = []
    for number in range(120):
        label = ("no", "yes")[number % 2]
        rows.append([" ".join(["film", str(number), *draw.choice(words[label], 2)]), label])
    path = tmp_path_factory.mktemp("own") / "texts.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["text", "label"], *rows])
    return path


def config(table, **fields):
    return jsonable(
        sentiment.Config(data=table, **{**SMALL, "ngrams": False, "epochs": 3, "learning_rate": 0.02, **fields})
    )


class Killed(BaseException):
    """As SIGKILL does, nothing that a trial does afterwards."""


def test_a_trial_that_is_killed_in_its_second_fold_goes_on_bit_for_bit(table, tmp_path):
    heard = []
    trials = Trials("sentiment", tiny=False, limits=Limits(), folds=3)
    for name in ("whole", "killed"):
        write_json(tmp_path / name / "config.json", config(table))
    found = trials.run(tmp_path / "whole", lambda row: heard.append(row) or True)
    assert [(row["fold"], row["epoch"]) for row in heard] == [
        (fold, epoch) for fold in (1, 2, 3) for epoch in (1, 2, 3)
    ]
    best = [max(row["val_accuracy"] for row in heard if row["fold"] == fold) for fold in (1, 2, 3)]
    assert (found["status"], found["score"]) == ("finished", pytest.approx(statistics.mean(best)))
    assert found["deviation"] == pytest.approx(statistics.stdev(best))
    fingerprints = {
        json.loads((tmp_path / f"whole/fold-{fold}/run.json").read_text())["data"]["fingerprint"] for fold in (1, 2, 3)
    }
    assert len(fingerprints) == 3

    again = []

    def until_the_second_fold(row):
        if (row["fold"], row["epoch"]) == (2, 2):
            raise Killed
        return True

    with pytest.raises(Killed):
        trials.run(tmp_path / "killed", until_the_second_fold)
    other = Trials("sentiment", tiny=False, limits=Limits(), folds=3)
    resumed = other.run(tmp_path / "killed", lambda row: again.append(row) or True)
    assert [(row["fold"], row["epoch"]) for row in again] == [(2, 3), (3, 1), (3, 2), (3, 3)]
    assert (resumed["score"], resumed["deviation"]) == (found["score"], found["deviation"])
    for fold in (1, 2, 3):
        one, two = (np.load(tmp_path / name / f"fold-{fold}/checkpoint.npz") for name in ("whole", "killed"))
        for name in set(one.files) - {"state"}:
            np.testing.assert_array_equal(one[name], two[name])


def test_a_trial_that_ends_in_its_first_fold_trains_no_other(table, tmp_path):
    trials = Trials("sentiment", tiny=False, limits=Limits(), folds=3)
    write_json(tmp_path / "config.json", config(table))
    found = trials.run(tmp_path, lambda row: False)
    assert found["status"] == "pruned"
    assert "deviation" not in found
    assert not (tmp_path / "fold-2").exists()


def test_the_first_fold_alone_decides_on_a_trials_end():
    def trial(number, *folds):
        rows = [
            {"fold": fold, "epoch": epoch, "val_accuracy": score}
            for fold, scores in enumerate(folds, 1)
            for epoch, score in enumerate(scores, 1)
        ]
        return Trial(number, {}, 10, rows=rows)

    objective = Objective("val_accuracy", "max")
    others = [trial(number, [0.5] * 10, [0.9] * 10) for number in range(5)]
    assert _pruning.hopeless("median", trial(9, [0.4] * 4), others, objective) is not None
    assert _pruning.hopeless("median", trial(9, [0.6] * 4), others, objective) is None
    assert _pruning.hopeless("median", trial(9, [0.4] * 4, [0.4]), others, objective) is None  # patience ended it


def test_a_search_with_folds_ranks_by_the_mean_and_goes_on_with_the_same_command(table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    fields = {"data": table, "epochs": 2, **SMALL}
    words = [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [
        "sentiment",
        *words,
        "--no-ngrams",
        "--folds",
        "2",
        "--learning-rate",
        "1e-6",
        "--set",
        "learning_rate=1e-6,0.03",
        "--folder",
        "found",
    ]
    assert main([*command, "--trials", "1"]) == 0
    assert main([*command, "--trials", "2", "--algorithm", "grid"]) == 2
    assert "algorithm was random, is grid" in capsys.readouterr().err
    assert main([*command, "--trials", "2"]) == 0
    printed = capsys.readouterr().out
    assert "going on after 1 trials" in printed
    assert " ± " in printed.split("best: ")[1]
    with (tmp_path / "found/trials.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    best = rows[0]
    for row in rows:
        logs = [tmp_path / f"found/trials/{int(row['trial']):04d}/fold-{fold}/log.csv" for fold in (1, 2)]
        scores = [
            max(float(line["val_accuracy"]) for line in csv.DictReader(log.read_text().splitlines())) for log in logs
        ]
        assert float(row["val_accuracy"]) == pytest.approx(statistics.mean(scores))
        assert float(row["deviation"]) == pytest.approx(statistics.stdev(scores))
        kept = [(log.parent / "model.keras").exists() for log in logs]
        assert kept == [row is best] * 2
    assert float(best["learning_rate"]) == 0.03
    assert json.loads((tmp_path / "found/best.json").read_text())["fold"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folds", "1"], "--folds is 1; expected 2 or more"),
        (["--folds", "3", "--fold", "1/3"], "--fold 1/3 is one of --folds 3"),
        (["--folds", "3", "--tiny"], "--tiny has a validation part of its own; leave --folds out"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert main(["vae", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
