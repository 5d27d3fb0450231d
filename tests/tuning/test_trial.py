"""What a trial keeps of its epochs: the same as a training, in fewer files."""

import zipfile

import h5py
import keras
import numpy as np
import pytest

from kerasdl.training import checkpoint
from tuning._trial import TrialCheckpoint

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


class Scripted(keras.callbacks.Callback):
    """Scores as they are given."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = self.scores[epoch]


def build(use_ema):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()])
    optimizer = keras.optimizers.Adam(0.1, use_ema=use_ema, ema_momentum=0.5)
    model.compile(optimizer, "mse", run_eagerly=True, jit_compile=False)
    return model


def fit(saver, scores, model):
    model.fit(
        X,
        X[:, :2],
        epochs=len(scores),
        initial_epoch=saver.initial_epoch,
        shuffle=False,
        verbose=0,
        callbacks=[Scripted(scores), saver],
    )


def trial(folder, scores, *, use_ema, killed_after=0, pruned_after=0, resume=False):
    def report(row):
        if row["epoch"] == killed_after:
            raise KeyboardInterrupt
        return row["epoch"] != pruned_after

    saver = TrialCheckpoint(folder, report, len(scores), monitor="score", maximize=True, resume=resume)
    fit(saver, scores, build(use_ema))
    saver.write_best()


def weights(folder):
    """Arrays of the model's file by their names, without those of the optimizer."""
    found = {}

    def take(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
            found[name] = item[()]

    with zipfile.ZipFile(folder / "model.keras") as archive, archive.open("model.weights.h5") as stream:
        h5py.File(stream).visititems(take)
    assert len(found) == 6
    return found


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(
    ("scores", "use_ema", "kills"),
    [
        ((1, 2, 3, 4), False, (0, 2)),
        ((1, 3, 2, 4), False, (0, 2, 3)),
        ((3, 2, 1), False, (1,)),
        ((1, 2, 4, 3), False, (3,)),
        ((1, 2, 3), True, (2,)),
    ],
)
def test_a_trial_keeps_the_model_that_a_training_keeps(scores, use_ema, kills, tmp_path, monkeypatch):
    saver = checkpoint.Checkpoint(tmp_path / "training", monitor="score", maximize=True)
    fit(saver, scores, build(use_ema))
    expected = weights(tmp_path / "training")
    saved = []
    monkeypatch.setattr(checkpoint, "_save", lambda model, path: saved.append(path) or model.save(path))
    for killed_after in kills:
        folder = tmp_path / str(killed_after)
        if killed_after:
            with pytest.raises(KeyboardInterrupt):
                trial(folder, scores, use_ema=use_ema, killed_after=killed_after)
        saved.clear()
        trial(folder, scores, use_ema=use_ema, resume=killed_after > 0)
        check_equal(weights(folder), expected)
        if scores == (1, 2, 3, 4):
            assert len(saved) == 1


def test_a_trial_that_is_ended_early_has_its_best_model(tmp_path):
    saver = checkpoint.Checkpoint(tmp_path / "training", monitor="score", maximize=True)
    fit(saver, (1, 2), build(use_ema=False))
    trial(tmp_path / "trial", (1, 2, 3), use_ema=False, pruned_after=2)
    check_equal(weights(tmp_path / "trial"), weights(tmp_path / "training"))


def test_the_model_of_an_earlier_epoch_does_not_stay_beside_a_better_one(tmp_path):
    scores = (2, 1, 3, 4)
    with pytest.raises(KeyboardInterrupt):
        trial(tmp_path, scores, use_ema=False, killed_after=2)
    assert (tmp_path / "model.keras").exists()
    with pytest.raises(KeyboardInterrupt):
        trial(tmp_path, scores, use_ema=False, killed_after=3, resume=True)
    assert not (tmp_path / "model.keras").exists()
