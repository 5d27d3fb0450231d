import csv
import math

import keras
import numpy as np
import pytest

from kerasdl.data.pipeline import training_batches
from kerasdl.errors import UserError
from kerasdl.training import checkpoint
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


def fit(
    folder,
    *,
    resume=False,
    stop=None,
    monitor="val_mae",
    maximize=False,
    plateau=None,
    patience=None,
    others=(),
    **optimizer,
):
    model = build(**optimizer)
    saver = Checkpoint(folder, monitor=monitor, maximize=maximize, resume=resume)
    saver.plateau, saver.patience = plateau, patience
    start = saver.initial_epoch
    model.fit(
        training_batches((X, Y), 10, initial_epoch=start, seed=5),
        epochs=5,
        initial_epoch=start,
        steps_per_epoch=6,
        shuffle=False,
        validation_data=(X, Y),
        callbacks=[*others, *([Stop(stop)] if stop is not None else []), saver],
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
    options = {"maximize": True, "plateau": 2, **optimizer}  # the error falls: the first epoch stays the best
    expected, saver = fit(whole, **options)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, stop=stop, **options)
    actual, resumed = fit(broken, resume=True, **options)
    for name, array in state(whole).items():
        np.testing.assert_array_equal(array, state(broken)[name])
    for a, b in zip(expected.get_weights(), actual.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (whole / "model.keras").stat().st_size > 0
    drop = [{k: v for k, v in row.items() if k != "seconds"} for row in saver.history]
    assert drop == [{k: v for k, v in row.items() if k != "seconds"} for row in resumed.history]
    np.testing.assert_allclose([row["learning_rate"] for row in drop], [0.01] * 3 + [0.001] * 2, rtol=1e-6)


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


def test_a_further_best_epoch_is_saved_without_making_a_layer(tmp_path, monkeypatch):
    fit(tmp_path)
    model, made, before = build(), [], keras.layers.Layer.__init__
    monkeypatch.setattr(keras.layers.Layer, "__init__", lambda self, *_, **__: made.append(self) or before(self))
    model.save(tmp_path / "by_keras.keras")
    checkpoint._save(model, tmp_path / "ours.keras")
    assert not made
    keras.utils.clear_session()
    checkpoint._save(model, tmp_path / "first.keras")
    assert made, "Keras itself no longer makes any: _save can go"
    monkeypatch.undo()
    kept = [
        keras.saving.load_model(tmp_path / f"{name}.keras", compile=False).get_weights()
        for name in ("by_keras", "ours", "first")
    ]
    for weights in kept[1:]:
        for one, other in zip(kept[0], weights, strict=True):
            np.testing.assert_array_equal(one, other)


def test_keeps_the_best_epoch(tmp_path):
    model, saver = fit(tmp_path)
    best = min(saver.history, key=lambda row: row["val_mae"])
    kept = keras.models.load_model(tmp_path / "model.keras")
    assert kept.evaluate(X, Y, verbose=0, return_dict=True)["mae"] == pytest.approx(best["val_mae"], rel=1e-5)


class Seen(keras.callbacks.Callback):
    """The weights that a callback of an application sees at the end of an epoch."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(self.model.get_weights())


@pytest.mark.parametrize("end", ["all epochs", "patience", "interrupted"])
def test_the_kept_model_has_the_averages_that_the_best_epoch_was_measured_on(tmp_path, end):
    """The training itself goes on with the weights."""
    seen = Seen()
    options = {"use_ema": True, "ema_momentum": 0.9, "maximize": end == "patience", "others": [seen]}
    if end == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, stop=3, **options)
        saver = Checkpoint(tmp_path, monitor="val_mae", maximize=False, resume=True)
    else:
        model, saver = fit(tmp_path, patience=2 if end == "patience" else None, **options)
        for one, other in zip(model.get_weights(), seen.weights[-1], strict=True):
            np.testing.assert_array_equal(one, other)
    assert saver.initial_epoch == len(seen.weights) == {"all epochs": 5, "patience": 3, "interrupted": 3}[end]
    best = saver.history[saver.best_epoch - 1]
    kept = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(kept.get_weights(), seen.weights[saver.best_epoch - 1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert kept.evaluate(X, Y, verbose=0, return_dict=True)["mae"] == pytest.approx(best["val_mae"], rel=1e-5)
    raw = state(tmp_path)
    assert any(np.abs(raw[str(i)] - v.numpy()).max() > 1e-4 for i, v in enumerate(kept.variables))


def test_a_second_fit_begins_as_a_resumed_one_does(tmp_path):
    """Keras ends a fit with the averages; a phase that follows begins with the weights, killed in between or not."""

    def phases(folder, resume=False):
        model = build(use_ema=True, ema_momentum=0.9)
        saver = Checkpoint(folder, monitor="val_mae", maximize=False, resume=resume)
        for begin in (0, 2) if not resume else (2,):
            model.compile(keras.optimizers.SGD(0.01, use_ema=True, ema_momentum=0.9), "mse", metrics=["mae"])
            saver.optimizer_since = begin
            batches = training_batches((X, Y), 10, initial_epoch=begin, seed=5)
            model.fit(
                batches, initial_epoch=begin, epochs=begin + 2, steps_per_epoch=6, shuffle=False, verbose=0,
                validation_data=(X, Y), callbacks=[saver, *([KillSecond()] if folder.name == "killed" else [])],
            )  # fmt: skip
        return model

    class KillSecond(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    whole = phases(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        phases(tmp_path / "killed")
    (tmp_path / "killed").rename(tmp_path / "resumed")
    resumed = phases(tmp_path / "resumed", resume=True)
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def best_of(tmp_path, scores, losses, **options):
    """The best epoch of a training whose validation gives these numbers, and how often each was saved."""
    saver = Checkpoint(tmp_path, monitor="val_score", maximize=True)
    saver.set_model(build())
    saver.model.optimizer.build(saver.model.trainable_variables)
    saver.model.stop_training = False
    vars(saver).update(options)
    kept = []
    for epoch, (score, loss) in enumerate(zip(scores, losses, strict=True)):
        (tmp_path / "model.keras").unlink(missing_ok=True)
        logs = {"val_score": score, "val_loss": loss} if score is not None else {"val_loss": loss}
        saver.on_epoch_end(epoch, {name: value for name, value in logs.items() if value is not None})
        kept += [epoch + 1] if (tmp_path / "model.keras").exists() else []
        if saver.model.stop_training:
            break
    assert kept[-1] == saver.best_epoch
    return kept, saver


@pytest.mark.parametrize(
    ("scores", "losses", "kept"),
    [
        ([0.1, 0.3, 0.2], [1, 2, 3], [1, 2]),  # the score decides
        ([0.0, 0.0, 0.0], [3, 1, 2], [1, 2]),  # constant: the loss does
        ([0.0, 0.5, 0.5, 0.5], [3, 2, 1, 1], [1, 2, 3]),  # of equal ones, too; the first of twins
        ([math.nan, 0.1, math.nan], [1, 2, 0.5], [1, 2]),  # no number never wins
        ([math.nan, math.inf, -math.inf], [3, 2, 2.5], [1, 2]),  # never a number: the loss
        ([None, None], [1, 2], [1]),  # not measured
        ([0.2, 0.1], [None, None], [1]),
        ([None, None], [None, None], [1, 2]),  # no validation: the last
    ],
)
def test_the_best_epoch(tmp_path, scores, losses, kept):
    assert best_of(tmp_path, scores, losses)[0] == kept


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        (
            [0.0, 0.0, 0.0],
            "val_score is 0 in each of 2 epochs: where it does not tell epochs apart, the lower val_loss",
        ),
        ([math.nan, math.nan], "val_score is nan in epoch 1: "),
        ([0.1, 0.2, 0.2], None),
    ],
)
def test_a_score_that_tells_nothing_is_said_once(tmp_path, scores, told, capsys):
    _, saver = best_of(tmp_path, scores, [3.0, 2.0, 1.0][: len(scores)])
    printed = capsys.readouterr().err.splitlines()
    assert [line[: len(told or "")] for line in printed] == ([told] if told else [])
    assert all(math.isfinite(value) for row in saver.history for value in row.values())


def test_patience_and_plateau_follow_the_loss_where_the_score_is_constant(tmp_path):
    losses = [3.0, 2.0, 2.5, 2.6, 1.0, 1.1, 1.2, 1.3]
    _, saver = best_of(tmp_path, [0.0] * 8, losses, patience=3, plateau=2)
    assert (saver.initial_epoch, saver.best_epoch, saver.stopped) == (8, 5, True)
    rates = [row["learning_rate"] for row in saver.history]
    np.testing.assert_allclose(rates, [1e-2] * 4 + [1e-3] * 3 + [1e-4], rtol=1e-5)


def test_nan_stops_and_keeps_the_last_good_epoch(tmp_path):
    targets = Y.copy()
    model = build()
    saver = Checkpoint(tmp_path, monitor="loss", maximize=False)
    model.fit(X, targets, epochs=2, verbose=0, callbacks=[saver])
    before = state(tmp_path)
    targets[7] = math.nan
    with pytest.raises(
        TrainingDiverged, match=r"epoch 3, step \d.*checkpoint of epoch 2 and the model of epoch 2 are kept"
    ) as error:
        model.fit(X, targets, initial_epoch=2, epochs=4, verbose=0, callbacks=[saver])
    assert "\n" not in str(error.value)
    for name, array in before.items():
        np.testing.assert_array_equal(array, state(tmp_path)[name])
        assert np.isfinite(array).all()


class Break(keras.callbacks.Callback):
    """After the last step of the second epoch a weight is no number any more; the loss was looked at before."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 12:
            variables = [*self.model.variables, *self.model.optimizer.variables]
            variable = next(variable for variable in variables if self.weight in variable.path)
            variable.assign(np.full(variable.shape, math.inf))


@pytest.mark.parametrize("weight", ["bias", "velocity"])
def test_weights_that_are_no_numbers_after_the_last_step_are_not_saved(tmp_path, weight):
    with pytest.raises(TrainingDiverged, match=r"in epoch 2; the checkpoint of epoch 1 .* are kept"):
        fit(tmp_path, monitor="loss", others=[Break(weight)])
    assert all(np.isfinite(array).all() for array in state(tmp_path).values())
    kept = keras.models.load_model(tmp_path / "model.keras")
    assert all(np.isfinite(array).all() for array in kept.get_weights())
    _, resumed = fit(tmp_path, monitor="loss", resume=True)
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3, 4, 5]


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
