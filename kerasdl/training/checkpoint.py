"""Exact resume: everything that the next epoch depends on, in one file that is replaced atomically."""

import csv
import io
import json
import math
import sys
import time
from pathlib import Path

import keras
import numpy as np
from keras.src.backend.common import global_state

from kerasdl.errors import UserError
from kerasdl.files import atomic_path, write_text
from kerasdl.training import optimizers
from kerasdl.training.run import CHECKPOINT, LOG, MODEL

_KEPT, _LOOKED_FOR = "saving_attr_skipset_", "saving_attr_skiplist_"


class TrainingDiverged(RuntimeError):
    """A loss or a weight is no longer a finite number; the last good epoch is still on disk."""


class Checkpoint(keras.callbacks.Callback):
    """Saves the state of training after each epoch, keeps the best model, writes the log, resumes exactly.

    The state is every variable of the model (weights, moving statistics, seeds of random layers), every variable
    of the optimizer (moments, step, learning rate, averages) and the history. Together with batches that depend on
    (seed, epoch) alone, 2 epochs + resume + 2 equal 4, bit for bit on a CPU. A fit that follows another one, as those
    of a training in phases do, begins with the saved state, too, since Keras changes weights at the end of a fit. Must
    stand last in the list of callbacks, so that it sees what the others measure.

    The best epoch is the one with the best score; among equal ones, such as those of a validation part too small to
    tell them apart, the one with the lowest `val_loss`, and among those the first. A score that is missing or no finite
    number is below every other. Patience and plateau count the epochs since the best one, which follow from the
    history: nothing else is to be remembered.

    An optimizer with averages (`use_ema`): validation measures them, and so does what the other callbacks measure
    after it; the best model holds them.

    A loss or a weight that is no finite number stops the training; no such state or model is ever saved.

    Args:
        folder: run folder.
        monitor: name of the score in the epoch's logs, such as `val_accuracy`; where the logs hold neither it nor
            `val_loss` (no validation data) the last epoch is the best.
        maximize: whether higher is better.
        resume: whether to continue from the folder's checkpoint.

    Raises:
        UserError: `resume` without a checkpoint, or one of another model.

    Source: own; early stopping: Prechelt 1998, "Early Stopping - But When?".
    """

    def __init__(self, folder: Path, *, monitor: str, maximize: bool, resume: bool = False) -> None:
        super().__init__()
        self.folder = folder
        self.monitor = monitor
        self.maximize = maximize
        self.history: list[dict[str, float]] = []
        self.optimizer_since = 0
        """Epoch at which training went over to a new optimizer; to be set before `fit` where it has phases."""
        self.patience: int | None = None
        """Epochs after the best one after which the training ends; None never does."""
        self.plateau: int | None = None
        """Epochs after the best one, and again as many, after which the learning rate falls to a tenth; None: never."""
        self._pending: dict[str, np.ndarray] | None = self._read() if resume else None
        self._raw: list[np.ndarray] = []
        self._told = False
        self._checked = False
        self._epoch_start = 0.0

    @property
    def initial_epoch(self) -> int:
        """Epochs that are already done."""
        return len(self.history)

    @property
    def best_epoch(self) -> int:
        """Number of the best epoch, whose model is kept; 0 before the first."""
        last = self.initial_epoch
        if not any({self.monitor, "val_loss"} & {*row} for row in self.history):
            return last
        return 1 + max(range(last), key=lambda i: (self._rank(self.history[i]), -i), default=-1)

    @property
    def stopped(self) -> bool:
        """Whether patience has ended the training."""
        return bool(self.patience) and self.initial_epoch - self.best_epoch >= (self.patience or 0)

    def _rank(self, row: dict[str, float]) -> tuple[float, float]:
        """The higher, the better."""
        score, loss = row.get(self.monitor, math.nan), row.get("val_loss", math.nan)
        return (
            (score if self.maximize else -score) if math.isfinite(score) else -math.inf,
            -loss if math.isfinite(loss) else -math.inf,
        )

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Restores the saved state, if there is one."""
        self._raw = []
        if self.history:
            self._restore(self._pending or self._read() or {})
            self._pending = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Starts the clock."""
        self._epoch_start = time.perf_counter()
        self._checked = False

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Stops at the first loss that is not finite."""
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise self._diverged(f"the loss became {loss}", f", step {batch + 1}")

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        """From here to the end of the epoch the model has the averages of its weights."""
        self._check_weights()
        self._checked = True  # validation changes no weight
        self._take_averages()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Saves model, state and log, in this order: whatever moment a kill comes, they agree."""
        measured = {name: float(value) for name, value in (logs or {}).items()}
        for name in ("loss", "val_loss"):
            if not math.isfinite(measured.get(name, 0)):
                raise self._diverged(f"{name} became {measured[name]}")
        if not self._checked:
            self._check_weights()
        row = {"epoch": epoch + 1, "seconds": round(time.perf_counter() - self._epoch_start, 3)}
        row |= {name: value for name, value in measured.items() if math.isfinite(value)}
        row.setdefault("learning_rate", float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))
        self.history = [*self.history, row]
        self._tell(measured)
        self._take_averages()
        waited = self.initial_epoch - self.best_epoch
        self._keep_best(not waited)
        for variable, weight in zip(self.model.trainable_variables, self._raw, strict=False):
            variable.assign(weight)
        self._raw = []
        if self.plateau and waited and waited % self.plateau == 0:
            self.model.optimizer.learning_rate = 0.1 * row["learning_rate"]
        self._save_state()
        self._write_log()
        if self.stopped:
            self.model.stop_training = True

    def _keep_best(self, is_best: bool) -> None:
        """Sees to the model's file at the end of an epoch; the model has the averages of its weights, if there are."""
        if is_best:
            self._write_model()

    def _write_model(self) -> None:
        with atomic_path(self.folder / MODEL) as temporary:
            _save(self.model, temporary)

    def _check_weights(self) -> None:
        for variable in self._variables():
            if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
                raise self._diverged(f"{variable.path} became no finite number")

    def _diverged(self, what: str, where: str = "") -> TrainingDiverged:
        epoch = self.initial_epoch
        kept = "no epoch was finished"
        if epoch:
            kept = f"the checkpoint of epoch {epoch} and the model of epoch {self.best_epoch} are kept in {self.folder}"
        return TrainingDiverged(
            f"{what} in epoch {epoch + 1}{where}; {kept}; lower the learning rate or clip the gradients"
        )

    def _tell(self, measured: dict[str, float]) -> None:
        """Says once that the score does not tell epochs apart."""
        if self._told or self.monitor == "val_loss" or "val_loss" not in measured:
            return
        values = [row.get(self.monitor) for row in self.history]
        if values[-1] is None:
            what = f"{measured.get(self.monitor, 'missing')} in epoch {len(values)}"
        elif len(values) > 1 and len({*values}) == 1:
            what = f"{values[0]:g} in each of {len(values)} epochs"
        else:
            return
        self._told = True
        print(
            f"{self.monitor} is {what}: where it does not tell epochs apart, the lower val_loss is the better",
            file=sys.stderr,
        )

    def _take_averages(self) -> None:
        """Puts the averages that the optimizer keeps, if it does, in the place of the weights, which `_raw` keeps."""
        if self.model.optimizer.use_ema and not self._raw:
            self._raw = [np.array(variable) for variable in self.model.trainable_variables]
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)

    def _variables(self) -> list[keras.Variable]:
        return [*self.model.variables, *self.model.optimizer.variables]

    def _save_state(self) -> None:
        arrays = {str(i): keras.ops.convert_to_numpy(v) for i, v in enumerate(self._variables())}
        with atomic_path(self.folder / CHECKPOINT) as temporary, temporary.open("wb") as stream:
            np.savez(stream, state=np.array(json.dumps({"history": self.history})), **arrays)

    def _write_log(self) -> None:
        columns = list(dict.fromkeys(name for row in self.history for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        write_text(self.folder / LOG, text.getvalue())

    def _read(self) -> dict[str, np.ndarray] | None:
        try:
            with (self.folder / CHECKPOINT).open("rb") as stream, np.load(stream) as file:
                arrays = {name: file[name] for name in file.files}
            self.history = json.loads(str(arrays.pop("state")))["history"]
        except FileNotFoundError:
            return None  # stopped before the first epoch was done: begin anew, with the same seeds
        except Exception as error:  # NumPy raises whatever a cut archive, or another kind of file, leads to
            reason = " ".join(str(error).split()).partition(". ")[0] or type(error).__name__
            raise UserError(
                f"{self.folder / CHECKPOINT} cannot be read ({reason}); the run cannot be resumed, train again"
            ) from None
        self._write_log()
        return arrays

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        optimizers.build(self.model)
        variables = self._variables()
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


def _save(model: keras.Model, path: Path) -> None:
    """`model.save` in 0.6 of the time (the VAE).

    Which attributes of a layer hold no weights Keras finds out by making such a layer. It keeps the answer under one
    name and looks for it under another, and so makes one for each layer (findings/keras_save_lookups.sh).
    """
    kept = vars(global_state.GLOBAL_STATE_TRACKER)
    model.save(path)
    for name in [name for name in kept if name.startswith(_KEPT)]:
        kept[name.replace(_KEPT, _LOOKED_FOR)] = kept[name]
