import csv
import math

import keras
import numpy as np
import pytest

from kerasdl.data.pipeline import training_batches
from kerasdl.errors import UserError
from kerasdl.training.checkpoint import Checkpoint, TrainingDiverged

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(60, 4)).astype(np.float32), RANDOM.normal(size=(60, 1)).astype(np.float32)


class Stop(keras.callbacks.Callback):
    """Interrupts in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch, self.now = epoch, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.epoch and batch == 2:
            raise KeyboardInterrupt


def build(**optimizer):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01, **optimizer), "mse", metrics=["mae"])
    return model


def fit(folder, *, resume=False, stop=None, monitor="val_mae", **optimizer):
    model = build(**optimizer)
    saver = Checkpoint(folder, monitor=monitor, maximize=False, resume=resume)
    plateau = keras.callbacks.ReduceLROnPlateau("val_mae", patience=1, factor=0.5, min_delta=1.0)
    saver.watch([plateau])
    start = saver.initial_epoch
    model.fit(
        training_batches((X, Y), 10, initial_epoch=start, seed=5),
        epochs=5,
        initial_epoch=start,
        steps_per_epoch=6,
        shuffle=False,
        validation_data=(X, Y),
        callbacks=[plateau, *([Stop(stop)] if stop is not None else []), saver],
        verbose=0,
    )
    return model, saver


def state(folder):
    with np.load(folder / "checkpoint.npz") as file:
        return {name: file[name] for name in file.files if name != "state"}


@pytest.mark.parametrize("optimizer", [{}, {"use_ema": True, "ema_momentum": 0.9}], ids=["plain", "ema"])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, stop, optimizer):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected, saver = fit(whole, **optimizer)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, stop=stop, **optimizer)
    actual, resumed = fit(broken, resume=True, **optimizer)
    for name, array in state(whole).items():
        np.testing.assert_array_equal(array, state(broken)[name])
    for a, b in zip(expected.get_weights(), actual.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (whole / "model.keras").stat().st_size > 0
    drop = [{k: v for k, v in row.items() if k != "seconds"} for row in saver.history]
    assert drop == [{k: v for k, v in row.items() if k != "seconds"} for row in resumed.history]
    assert drop[-1]["learning_rate"] < 0.01, "the plateau never came: its counters were not tested"


def test_another_seed_of_the_data_gives_other_weights(tmp_path):
    """The equality above would notice a difference."""
    a, _ = fit(tmp_path)
    model = build()
    model.fit(training_batches((X, Y), 10, seed=6), epochs=5, steps_per_epoch=6, shuffle=False, verbose=0)
    assert any((x != y).any() for x, y in zip(a.get_weights(), model.get_weights(), strict=True))


def test_log_has_one_row_an_epoch(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stop=2)
    fit(tmp_path, resume=True)
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert {"loss", "mae", "val_loss", "val_mae", "learning_rate", "seconds"} <= set(rows[0])


def test_keeps_the_best_epoch(tmp_path):
    model, saver = fit(tmp_path)
    best = min(saver.history, key=lambda row: row["val_mae"])
    kept = keras.models.load_model(tmp_path / "model.keras")
    assert kept.evaluate(X, Y, verbose=0, return_dict=True)["mae"] == pytest.approx(best["val_mae"], rel=1e-5)


def test_ema_model_on_disk_is_the_average(tmp_path):
    model, saver = fit(tmp_path, use_ema=True, ema_momentum=0.9, monitor="none")
    kept = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(kept.trainable_variables, model.trainable_variables, strict=True):  # fit ends with the average
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6)
    raw = state(tmp_path)
    assert any(np.abs(raw[str(i)] - v.numpy()).max() > 1e-4 for i, v in enumerate(kept.variables))


def test_nan_stops_and_keeps_the_last_good_epoch(tmp_path):
    targets = Y.copy()
    model = build()
    saver = Checkpoint(tmp_path, monitor="loss", maximize=False)
    model.fit(X, targets, epochs=2, verbose=0, callbacks=[saver])
    before = state(tmp_path)
    targets[7] = math.nan
    with pytest.raises(TrainingDiverged, match=r"epoch 3, step \d.*epoch 2 are kept") as error:
        model.fit(X, targets, initial_epoch=2, epochs=4, verbose=0, callbacks=[saver])
    assert "\n" not in str(error.value)
    for name, array in before.items():
        np.testing.assert_array_equal(array, state(tmp_path)[name])
        assert np.isfinite(array).all()


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    fit(tmp_path)
    before = state(tmp_path)

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    model = build()
    with pytest.raises(OSError, match="No space left"):
        model.fit(X, Y, epochs=1, verbose=0, callbacks=[Checkpoint(tmp_path, monitor="loss", maximize=False)])
    for name, array in before.items():
        np.testing.assert_array_equal(array, state(tmp_path)[name])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_refuses_a_damaged_checkpoint_and_one_of_another_model(tmp_path):
    fit(tmp_path)
    path = tmp_path / "checkpoint.npz"
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    saver = Checkpoint(tmp_path, monitor="loss", maximize=False, resume=True)
    with pytest.raises(UserError, match="another model"):
        model.fit(X, Y, initial_epoch=0, epochs=1, verbose=0, callbacks=[saver])
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read"):
        Checkpoint(tmp_path, monitor="loss", maximize=False, resume=True)
