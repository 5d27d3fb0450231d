from types import SimpleNamespace

import keras
import numpy as np
import pytest

from kerasdl.data.pipeline import training_batches
from kerasdl.training import optimizers
from kerasdl.training.checkpoint import Checkpoint
from kerasdl.training.fit import fit

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(60, 4)).astype(np.float32), RANDOM.normal(size=(60, 1)).astype(np.float32)


class Worse(keras.callbacks.Callback):
    """Adds a validation score that is best in the first epoch, in place of one that a model would have."""

    def on_epoch_end(self, epoch, logs=None):
        logs["val_score"] = -float(epoch)


def run(folder, *, epochs, resume=False, validation=(X, Y), patience=3, others=None, schedule="constant"):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    saver = Checkpoint(folder, monitor="val_score", maximize=True, resume=resume)
    batches = training_batches((X, Y), 10, initial_epoch=saver.initial_epoch, seed=5)
    settings = SimpleNamespace(epochs=epochs, patience=patience, schedule=schedule)
    others = [Worse()] if others is None else others
    fit(model, batches, [saver], settings, steps=6, validation=validation, others=others)
    return saver.history, model.get_weights()


def test_early_stopping_sees_what_a_callback_of_the_application_measures(tmp_path):
    history, _ = run(tmp_path, epochs=9)
    assert len(history) == 1 + 3


@pytest.mark.parametrize("options", [{"patience": None}, {"validation": None}])
def test_without_patience_or_validation_nothing_stops_early(tmp_path, options):
    assert len(run(tmp_path, epochs=6, **options)[0]) == 6


def test_the_steps_of_an_epoch_are_said_before_it_begins(tmp_path, capsys):
    run(tmp_path, epochs=1)
    assert capsys.readouterr().out.startswith("6 steps an epoch\n")


def test_what_patience_has_stopped_stays_stopped(tmp_path):
    """However often it is resumed; with more patience it goes on as if it had had that from the beginning."""
    whole, weights = run(tmp_path / "whole", epochs=9, patience=5)
    run(tmp_path / "cut", epochs=2)
    for _ in range(3):
        cut, stopped = run(tmp_path / "cut", epochs=9, resume=True)
        assert len(cut) == 1 + 3
    later, again = run(tmp_path / "cut", epochs=9, resume=True, patience=5)
    assert len(later) == len(whole) == 1 + 5
    assert any((one != other).any() for one, other in zip(stopped, again, strict=True))
    for one, other in zip(weights, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_finished_training_is_only_restored(tmp_path):
    _, weights = run(tmp_path, epochs=2)
    history, again = run(tmp_path, epochs=2, resume=True)
    assert len(history) == 2
    for one, other in zip(weights, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_last_callback_is_the_checkpoint(tmp_path):
    saver = Checkpoint(tmp_path, monitor="val_score", maximize=True)
    with pytest.raises(TypeError, match="fit got Worse as the last callback"):
        fit(keras.Sequential(), None, [saver, Worse()], SimpleNamespace(epochs=1, patience=None), steps=1)


def test_the_plateau_lowers_the_learning_rate_by_the_metric_of_the_checkpoint(tmp_path):
    rates = []

    class Rate(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            rates.append(float(self.model.optimizer.learning_rate))

    run(tmp_path, epochs=8, patience=None, others=[Worse(), Rate()], schedule="plateau")
    np.testing.assert_allclose(rates, [0.01] * 6 + [0.001] * 2, rtol=1e-6)


def test_the_plateau_has_a_rate_that_can_be_lowered_also_where_others_warm_up():
    settings = SimpleNamespace(
        epochs=3, learning_rate=0.01, schedule="plateau", warmup_epochs=0.5, weight_decay=0.0, clip_norm=None
    )
    optimizer = optimizers.make("adamw", settings, 10)
    optimizer.learning_rate = 0.001
    assert float(optimizer.learning_rate) == pytest.approx(0.001)


def test_the_plateau_does_nothing_without_validation(tmp_path):
    assert len(run(tmp_path, epochs=2, validation=None, schedule="plateau")[0]) == 2
