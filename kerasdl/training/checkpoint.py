"""Exact resume: everything that the next epoch depends on, in one file that is replaced atomically."""

import csv
import io
import json
import math
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasdl.errors import UserError
from kerasdl.files import atomic_path, write_text
from kerasdl.training.run import CHECKPOINT, LOG, MODEL


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number; the last good epoch is still on disk."""


class Checkpoint(keras.callbacks.Callback):
    """Saves the state of training after each epoch, keeps the best model, writes the log, resumes exactly.

    The state is every variable of the model (weights, moving statistics, seeds of random layers), every variable
    of the optimizer (moments, step, learning rate, averages), the counters of the other callbacks and the
    history. Together with batches that depend on (seed, epoch) alone, 2 epochs + resume + 2 equal 4, bit for bit
    on a CPU. Must stand last in the list of callbacks, so that it sees the others' state of the same epoch.

    A loss that is not finite stops the training; no such state is ever saved.

    Args:
        folder: run folder.
        monitor: name in the epoch's logs that chooses the best model, such as `val_accuracy`; where the logs lack
            it (no validation data) the last epoch's model is kept.
        maximize: whether higher is better.
        resume: whether to continue from the folder's checkpoint.

    Raises:
        UserError: `resume` without a checkpoint, or one of another model.

    Source: own.
    """

    def __init__(self, folder: Path, *, monitor: str, maximize: bool, resume: bool = False) -> None:
        super().__init__()
        self.folder = folder
        self.monitor = monitor
        self.maximize = maximize
        self.history: list[dict[str, float]] = []
        self.optimizer_since = 0
        """Epoch at which training went over to a new optimizer; to be set before `fit` where it has phases."""
        self._others: list[keras.callbacks.Callback] = []
        self._pending: dict[str, Any] | None = self._read() if resume else None
        self._epoch_start = 0.0

    @property
    def initial_epoch(self) -> int:
        """Epochs that are already done."""
        return len(self.history)

    def watch(self, callbacks: list[keras.callbacks.Callback]) -> None:
        """Names the callbacks whose counters belong to the state (early stopping, learning rate on plateau)."""
        self._others = callbacks

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Restores a pending state; by now every other callback has reset itself."""
        if self._pending is not None:
            self._restore(self._pending)
            self._pending = None
        self._epoch_start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Stops at the first loss that is not finite."""
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            epoch = self.initial_epoch + 1
            kept = (
                f"the model and the checkpoint of epoch {epoch - 1} are kept in {self.folder}"
                if epoch > 1
                else "no epoch was finished"
            )
            raise TrainingDiverged(
                f"the loss became {loss} in epoch {epoch}, step {batch + 1}; {kept}; "
                "lower the learning rate or clip the gradients"
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Saves model, state and log, in this order: whatever moment a kill comes, they agree."""
        row = {"epoch": epoch + 1, "seconds": round(time.perf_counter() - self._epoch_start, 3)}
        row |= {name: float(value) for name, value in (logs or {}).items()}
        row.setdefault("learning_rate", float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))
        earlier, self.history = self.history, [*self.history, row]
        if self._is_best(row, earlier):
            self._save_model()
        self._save_state()
        self._write_log()

    def _is_best(self, row: dict[str, float], earlier: list[dict[str, float]]) -> bool:
        if self.monitor not in row:
            return True
        scores = [old[self.monitor] for old in earlier if self.monitor in old]
        if self.maximize:
            return all(row[self.monitor] > score for score in scores)
        return all(row[self.monitor] < score for score in scores)

    def _save_model(self) -> None:
        optimizer = self.model.optimizer
        weights = [variable.numpy() for variable in self.model.trainable_variables] if optimizer.use_ema else []
        if optimizer.use_ema:
            optimizer._overwrite_model_variables_with_average_value(self.model.trainable_variables)
        with atomic_path(self.folder / MODEL) as temporary:
            self.model.save(temporary)
        for variable, weight in zip(self.model.trainable_variables, weights, strict=False):
            variable.assign(weight)

    def _variables(self) -> list[keras.Variable]:
        return [*self.model.variables, *self.model.optimizer.variables]

    def _save_state(self) -> None:
        arrays = {str(i): keras.ops.convert_to_numpy(v) for i, v in enumerate(self._variables())}
        state = {"history": self.history, "callbacks": [_counters(callback) for callback in self._others]}
        with atomic_path(self.folder / CHECKPOINT) as temporary, temporary.open("wb") as stream:
            np.savez(stream, state=np.array(json.dumps(state)), **arrays)

    def _write_log(self) -> None:
        columns = list(dict.fromkeys(name for row in self.history for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        write_text(self.folder / LOG, text.getvalue())

    def _read(self) -> dict[str, Any] | None:
        try:
            with (self.folder / CHECKPOINT).open("rb") as stream, np.load(stream) as file:
                arrays = {name: file[name] for name in file.files}
        except FileNotFoundError:
            return None  # stopped before the first epoch was done: begin anew, with the same seeds
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(
                f"{self.folder / CHECKPOINT} cannot be read ({error}); the run cannot be resumed, train again"
            ) from None
        state = json.loads(str(arrays.pop("state")))
        self.history = state["history"]
        self._write_log()
        return {"arrays": arrays, "callbacks": state["callbacks"]}

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.optimizer.build(self.model.trainable_variables)
        variables, arrays = self._variables(), state["arrays"]
        count = len(arrays)
        if self.initial_epoch == self.optimizer_since:  # the saved optimizer is that of the phase before
            variables = list(self.model.variables)
            count = min(count, len(variables))
        shapes = [tuple(arrays[str(i)].shape) for i in range(count)]
        if shapes != [tuple(variable.shape) for variable in variables]:
            raise UserError(
                f"{self.folder / CHECKPOINT} belongs to another model: its {len(shapes)} arrays do not fit the "
                f"{len(variables)} variables; resume with the code and data that the run began with"
            )
        for i, variable in enumerate(variables):
            variable.assign(arrays[str(i)])
        for counters in filter(None, state["callbacks"]):
            found = [other for other in self._others if all(hasattr(other, name) for name in counters)]
            if len(found) != 1:
                raise UserError(
                    f"{self.folder / CHECKPOINT} has counters {', '.join(counters)} that belong to {len(found)} "
                    "callbacks; resume with the settings and code that the run began with"
                )
            vars(found[0]).update(counters)


def _counters(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """What early stopping and the plateau rule remember; their other numbers are settings, some with a side effect."""
    remembered = {name: getattr(callback, name, None) for name in ("best", "best_epoch", "wait", "cooldown_counter")}
    return {name: float(value) for name, value in remembered.items() if value is not None}
