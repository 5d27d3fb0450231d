"""Searches: deterministic, on validation data only, and their result is a configuration that trains."""

import csv
import dataclasses
import importlib
import json
import math

import keras_tuner
import pytest
from PIL import Image

from apps import cifar10
from apps.__main__ import main as apps_main
from kerasdl.data import image_data
from kerasdl.errors import UserError
from tuning import _search
from tuning.__main__ import main, spaces
from tuning.cifar10 import space

CONFIG = cifar10.Config(architecture="lenet", epochs=2, batch_size=100, precision="float32", learning_rate=0.02)


def small():
    data = cifar10.tiny()[1]
    part = image_data.Images(data.train.images[:300], data.train.labels[:300])

    def closed():
        raise AssertionError("a search opened the test split")

    return dataclasses.replace(data, train=part, test=closed)


def search(folder, algorithm="random", trials=3, seed=0, config=CONFIG, space=space):
    oracle = _search.oracle(algorithm, cifar10.OBJECTIVE, trials=trials, epochs=config.epochs, seed=seed)
    job = _search.Search(cifar10, space, config, small(), oracle, folder)
    job.search(verbose=0)
    return job


def proposals(job):
    keys = ("learning_rate", "weight_decay", "label_smoothing", "padding", "cutout_size")
    return [tuple(row[key] for key in keys) for row in job.rows]


def test_search_ranks_by_validation_and_hands_back_a_configuration_that_trains(tmp_path):
    job = search(tmp_path / "search")
    with (tmp_path / "search" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["val_accuracy"]) for row in rows]
    assert len(rows) == 3
    assert scores == sorted(scores, reverse=True)
    assert len(set(proposals(job))) == 3
    best = json.loads((tmp_path / "search" / "best.json").read_text())
    assert best["learning_rate"] == pytest.approx(float(rows[0]["learning_rate"]))
    assert not [name for name in best if name.startswith("tuner")]
    flags = ["--config", str(tmp_path / "search" / "best.json"), "--epochs", "1", "--runs", str(tmp_path / "runs")]
    assert apps_main(["cifar10", "train", "--tiny", *flags]) == 0


def test_seed_0_is_a_seed_and_decides_the_proposals(tmp_path):
    first, again, other = (search(tmp_path / str(i), seed=seed, trials=2) for i, seed in enumerate([0, 0, 5]))
    assert proposals(first) == proposals(again)
    assert proposals(first) != proposals(other)


@pytest.mark.parametrize("algorithm", ["bayesian", "hyperband", "grid"])
def test_algorithms_run(algorithm, tmp_path):
    job = search(tmp_path, algorithm, trials=2)
    assert len(job.rows) >= 2
    assert all(row["val_accuracy"] is not None for row in job.rows)
    assert (tmp_path / "best.json").exists()


def test_a_diverging_trial_fails_alone_and_its_reason_is_kept(tmp_path):
    def wild(hp, config):
        rate = hp.Choice("learning_rate", [1e30, 0.01])
        return dataclasses.replace(config, learning_rate=rate, optimizer="sgd")

    job = search(tmp_path, "grid", trials=2, space=wild)
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["learning_rate"] for row in rows] == ["0.01", "1e+30"]
    assert "the loss became" in rows[1]["failure"]
    assert math.isfinite(float(rows[0]["val_accuracy"]))
    assert json.loads((tmp_path / "best.json").read_text())["learning_rate"] == 0.01
    assert len(job.rows) == 2


def test_the_space_is_declared_without_building_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "build_model", lambda *_: pytest.fail("built a model"))
    oracle = _search.oracle("random", cifar10.OBJECTIVE, trials=1, epochs=1, seed=0)
    _search.Search(cifar10, space, CONFIG, small(), oracle, tmp_path)
    assert {hp.name for hp in oracle.get_space().space} >= {"learning_rate", "padding"}


def test_command_line(tmp_path, capsys):
    assert "cifar10" in spaces()
    flags = ["--architecture", "lenet", "--epochs", "1", "--trials", "2", "--folder", str(tmp_path / "s")]
    assert main(["cifar10", "--tiny", *flags]) == 0
    printed = capsys.readouterr().out
    assert "val_accuracy" in printed
    assert f"train --config {tmp_path / 's' / 'best.json'}" in printed
    assert main(["cifar10", "--tiny", *flags]) == 2
    assert "give another --folder" in capsys.readouterr().err
    assert main(["cifar10", "--trials", "0", "--tiny"]) == 2
    assert main(["cifar9"]) == 2


@pytest.mark.parametrize(
    ("application", "given"),
    [
        ("captioner", {"dropout": 0.35, "label_smoothing": 0.3, "units": 1, "doubly_stochastic": 2.0}),
        ("chargen", {"dropout": 0.33, "units": 1, "depth": 5, "window": 77}),
        ("cifar10", {"label_smoothing": 0.05, "padding": 3, "cutout_size": 5}),
        ("dcgan", {"beta_1": 0.9, "loss": "hinge", "normalization": "spectral", "minibatch_deviation": True}),
        ("denoiser", {"batch_size": 100, "width": 24, "depth": 5}),
        ("sentiment", {"dropout": 0.0, "word_dropout": 0.5, "pooling": "last", "label_smoothing": 0.2}),
        ("vae", {"batch_size": 100, "latents": 2, "units": 64, "filters": 8}),
    ],
)
def test_a_search_goes_around_whatever_was_given(application, given):
    config = importlib.import_module(f"apps.{application}").Config(**given)
    around = importlib.import_module(f"tuning.{application}").space
    hp = keras_tuner.HyperParameters()
    first = around(hp, config)
    assert {name: getattr(first, name) for name in given} == given
    choices = [parameter for parameter in hp.space if type(parameter).__name__ == "Choice"]
    assert all(len(choice.values) > 1 for choice in choices)


def test_a_default_batch_size_fits_small_data_and_a_given_one_stays(tmp_path, monkeypatch, capsys):
    for index in range(100):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index}.png")

    def search(module, space, config, *_):
        raise UserError(f"batches of {config.batch_size}")

    monkeypatch.setattr(_search, "Search", search)
    words = ["vae", "--data", str(tmp_path), "--image-size", "8", "--folder", str(tmp_path / "found")]
    assert main(words) == 2
    assert capsys.readouterr().err in ("error: batches of 8\n", "error: batches of 9\n")
    assert main([*words, "--batch_size=64"]) == 2
    assert "error: batches of 64\n" in capsys.readouterr().err
