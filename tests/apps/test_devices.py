"""Training on several devices at once: as on one, up to rounding, in a process whose processor is divided in two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from apps import captioner, chargen, cifar10, denoiser, sentiment
from apps.__main__ import main
from kerasdl.errors import UserError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    environment = os.environ | {"KERASDL_CPU_DEVICES": "2", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    subprocess.run([sys.executable, str(ROOT / "tests/on_devices.py"), str(folder)], env=environment, check=True)
    return folder


def state(folder):
    with np.load(folder / "checkpoint.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(str(arrays.pop("state")))["history"]


@pytest.mark.parametrize("name", ["cifar10", "denoiser", "sentiment"])
def test_weights_after_three_epochs_are_those_of_one_device(runs, name):
    """With validation that cannot be divided evenly, batch normalization, and a gradient that is clipped."""
    (arrays, log), (expected, expected_log) = (state(runs / name / devices) for devices in "21")
    for row, expected_row in zip(log, expected_log, strict=True):
        assert row.keys() == expected_row.keys()
        for key in expected_row.keys() - {"seconds"}:
            assert row[key] == pytest.approx(expected_row[key], rel=1e-3), key
    assert arrays.keys() == expected.keys()
    for key, array in expected.items():
        difference = np.linalg.norm(arrays[key] - array.astype(float))
        assert difference <= 1e-3 * np.linalg.norm(array) + 1e-6, (key, array.shape)


@pytest.mark.parametrize("name", ["vae", "dcgan"])
def test_what_is_drawn_differs_among_devices_and_all_else_is_alike(runs, name):
    (arrays, log), (expected, expected_log) = (state(runs / name / devices) for devices in "21")
    assert arrays.keys() == expected.keys()
    assert log[0]["loss"] != expected_log[0]["loss"]
    for row, expected_row in zip(log, expected_log, strict=True):
        assert row["loss"] == pytest.approx(expected_row["loss"], rel=0.2)


def test_each_device_draws_its_own_numbers_in_each_step(runs):
    masks = np.load(runs / "drawn.npy")[:, :, 0] != 0
    assert masks.shape == (2, 2, 50)
    assert len(np.unique(masks.reshape(4, 50), axis=0)) == 4
    assert 0.3 < masks.mean() < 0.7


def test_a_run_on_two_devices_goes_on_exactly(runs):
    (arrays, log), (expected, expected_log) = (state(runs / "denoiser" / part) for part in ("resumed", "2"))
    assert [row["val_loss"] for row in log] == [row["val_loss"] for row in expected_log]
    for key, array in expected.items():
        np.testing.assert_array_equal(arrays[key], array)


@pytest.mark.parametrize(
    ("module", "changes", "message"),
    [
        (chargen, {}, "expected 1: each row of a batch goes on"),
        (captioner, {"batch_size": 32}, "expected 1: one device computes the features"),
        (denoiser, {"photographs": Path("captions.csv")}, "on one device; leave --devices out"),
        (sentiment, {"pretrain_epochs": 1, "batch_size": 32}, "--pretrain-epochs trains on one device"),
        (cifar10, {"batch_size": 25}, "--batch-size is 25; expected a multiple of --devices 2"),
        (cifar10, {"devices": 9}, "--devices is 9; expected 1 to 8"),
    ],
)
def test_what_cannot_be_divided_is_refused(module, changes, message):
    with pytest.raises(UserError, match=message):
        module.Config(**{"devices": 2, **changes})


def test_cards_that_are_not_there_are_one_line(tmp_path, capsys):
    assert main(["cifar10", "train", "--tiny", "--devices", "2", "--runs", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()[-1:]
    assert "--devices is 2; this machine has 0 graphics cards" in line
    assert list(tmp_path.iterdir()) == []
