"""One trial: training as `python -m apps APPLICATION train` does it, in a folder that is a run like any other."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import math
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from apps import _data, _run
from apps._contract import Splits, jsonable
from kerasdl import command_line, export
from kerasdl.errors import UserError
from kerasdl.files import is_full, write_json, write_text
from kerasdl.training import checkpoint, memory, run
from tuning._worker import Task, fold_folder

Report = Callable[[dict[str, float]], bool]
"""Takes the log's row of an epoch that ended; false ends the trial."""
TRACEBACK = "traceback.txt"
_SECONDS = "build_seconds", "fit_seconds", "earlier_seconds"  # the last: of epochs before the worker was killed


class LimitExceeded(Exception):
    """A model is larger or slower than the search allows."""


@dataclass(frozen=True)
class Limits:
    """What a model may cost; None allows everything.

    Attributes:
        parameters: weights.
        export_mib: size of the export, in MiB.
        latency_ms: of the export's first signature with one example, in milliseconds, the median of 20 calls.
    """

    parameters: int | None = None
    export_mib: float | None = None
    latency_ms: float | None = None

    def measure(self, module: Any, model: keras.Model, data: Splits) -> dict[str, float]:
        """What a model costs, so far as there are limits, and its number of parameters.

        Raises:
            LimitExceeded: it is more than is allowed.
        """
        found: dict[str, float] = {"parameters": model.count_params()}
        self._hold("parameters", found)
        if self.latency_ms is not None or self.export_mib is not None:
            endpoints = module.endpoints(model, data)
            if self.latency_ms is not None:
                found["latency_ms"] = round(_latency_ms(endpoints), 3)
                self._hold("latency_ms", found)
            if self.export_mib is not None:
                found["export_mib"] = round(_export_mib(model, endpoints), 3)
                self._hold("export_mib", found)
        return found

    def _hold(self, name: str, found: Mapping[str, float]) -> None:
        allowed = getattr(self, name)
        if allowed is not None and found[name] > allowed:
            raise LimitExceeded(f"{name} {found[name]:,} is more than {allowed:,}")


def _latency_ms(endpoints: Mapping[str, export.Endpoint]) -> float:
    signature, endpoint = next(iter(export.in_memory(endpoints).values())), next(iter(endpoints.values()))
    seconds = []
    for _ in range(25):
        began = time.perf_counter()
        tf.nest.map_structure(lambda output: output.numpy(), signature(**endpoint.example))
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds[5:])


def _export_mib(model: keras.Model, endpoints: Mapping[str, export.Endpoint]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        export.write(Path(folder) / "1", model, endpoints, lambda written: None)
        return export.size_bytes(Path(folder) / "1") / 2**20


class TrialCheckpoint(checkpoint.Checkpoint):
    """Reports each epoch once it is saved, and ends the training if it is told to.

    The best model is written when a worse epoch follows, or none: most trials get better with each epoch, and a file
    for each takes longer than all else around a small trial. Until then the checkpoint has its weights.

    Args:
        folder: of the trial.
        report: receives the epochs.
        last_epoch: of the training.
        **options: those of `Checkpoint`.
    """

    def __init__(self, folder: Path, report: Report, last_epoch: int, **options: Any) -> None:
        super().__init__(folder, **options)
        self.report, self.last_epoch = report, last_epoch
        self.pruned = False
        self.seconds = 0.0
        """Time for what a training without a search would not do: saving, and reporting."""
        self._best: list[np.ndarray] = []

    @property
    def stopped(self) -> bool:
        """Whether the search, or patience, has ended the training."""
        return self.pruned or super().stopped

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Saves, then reports."""
        began = time.perf_counter()
        super().on_epoch_end(epoch, logs)
        if self._best:
            (self.folder / run.MODEL).unlink(missing_ok=True)  # of an epoch that is no longer the best
        if not self.report(self.history[-1]):
            self.pruned = self.model.stop_training = True
        self.seconds += time.perf_counter() - began

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Restores; what the checkpoint alone has is still to be written."""
        super().on_train_begin(logs)
        if self.history and self.best_epoch == self.initial_epoch and not self._is_written_at_once:
            self._best = [np.array(variable) for variable in self.model.variables]

    @property
    def _is_written_at_once(self) -> bool:
        # The checkpoint has the weights that were averaged, and not their averages.
        return self.initial_epoch >= self.last_epoch or self.model.optimizer.use_ema

    def _keep_best(self, is_best: bool) -> None:
        if not is_best:
            self.write_best()
        elif self._is_written_at_once:
            self._best = []
            super()._keep_best(is_best)
        else:
            self._best = [np.array(variable) for variable in self.model.variables]

    def write_best(self) -> None:
        """Writes the model of the best epoch, unless it is."""
        if not self._best:
            return
        began = time.perf_counter()
        now = [np.array(variable) for variable in self.model.variables]
        self._assign(self._best)
        self._write_model()
        self._assign(now)
        self._best = []
        self.seconds += time.perf_counter() - began

    def _assign(self, values: list[np.ndarray]) -> None:
        for variable, value in zip(self.model.variables, values, strict=True):
            variable.assign(value)


class Trials:
    """Trains one trial after the other in this process; what was read of the data is kept.

    Args:
        application: its name.
        tiny: whether the data are the application's synthetic ones.
        limits: what a model may cost.
        folds: of n-fold cross-validation, each trained on and validated by in turn; 0 for none.
    """

    def __init__(self, application: str, *, tiny: bool, limits: Limits, folds: int = 0) -> None:
        self.application, self.tiny, self.limits, self.folds = application, tiny, limits, folds
        self.module: Any = importlib.import_module(f"apps.{application}")
        self._data: Splits | None = None
        self._data_fields: dict[str, Any] = {}

    @classmethod
    def of(cls, task: Task) -> Trials:
        """Those of a search."""
        return cls(task.application, tiny=task.tiny, limits=Limits(**task.limits), folds=task.folds)

    def data(self, config: Any) -> Splits:
        """The data of a configuration; read again where a field differs that was looked at in reading."""
        if self._data is None or any(getattr(config, name) != value for name, value in self._data_fields.items()):
            self._data = None  # never two at once in memory
            watched, fields = _watched(config)
            self._data = _data.tiny_data(self.module, watched) if self.tiny else self.module.load_data(watched)
            self._data_fields = dict(fields)
        return self._data

    def facts(self, config: Any, *, batch_size_given: bool) -> dict[str, Any]:
        """What a search must know of the data before it begins.

        Args:
            config: the starting configuration.
            batch_size_given: whether its batch size is somebody's choice; a default is lowered for small data.

        Raises:
            UserError: the data cannot be read, or has no validation part.
        """
        data = self.data(self._fold(config, 1) if self.folds else config)
        if data.validation is None:
            raise UserError("a search needs validation data; give --validation-ratio above 0")
        if not batch_size_given:
            config = _data.fitting_batch_size(self.module, config, data)
        fingerprint = str(data.info.get("fingerprint", ""))
        return {"batch_size": config.batch_size, "fingerprint": fingerprint, "description": data.description}

    def _fold(self, config: Any, number: int) -> Any:
        return dataclasses.replace(config, fold=f"{number}/{self.folds}")

    def run(self, folder: Path, report: Report, *, evaluate: bool = False) -> dict[str, Any]:
        """Trains the configuration in a folder's config.json, from its last finished epoch on if it has one.

        Args:
            folder: of the trial.
            report: receives each epoch.
            evaluate: whether the model is trained once, without folds, and measured on the test split: `metrics`.

        Returns:
            status `finished`, `pruned` or `failed`; the score, its epoch, what the model costs, and the fields that
            were looked at, `used`; or the kind of failure and the reason. A traceback is written into the folder.

        Raises:
            OSError: the disk is full; the folder holds the last finished epoch.
        """
        began = time.perf_counter()
        try:
            found = self._run_folds(folder, report) if self.folds and not evaluate else self._run(folder, report)
            if evaluate and found["status"] == "finished":
                found["metrics"] = self._evaluate(folder)
        except Exception as error:
            if is_full(error):
                raise  # no fault of the trial
            write_text(folder / TRACEBACK, traceback.format_exc())
            reason = " ".join(str(error).split()) or type(error).__name__
            found = {"status": "failed", "kind": _kind(error), "reason": reason[:500]}
        memory.release()
        seconds = found.pop("earlier_seconds", 0.0) + time.perf_counter() - began
        return {**found, "seconds": round(seconds, 2)}

    def _run_folds(self, folder: Path, report: Report) -> dict[str, Any]:
        """The mean of the scores of all folds, and their standard deviation; of one that ended early, no other."""
        config = command_line.read_config(folder / run.CONFIG, self.module.Config)
        found: list[dict[str, Any]] = []
        for number in range(1, self.folds + 1):
            part = folder / fold_folder(number)
            if not (part / run.CONFIG).exists():
                write_json(part / run.CONFIG, jsonable(self._fold(config, number)))
            found.append(self._run(part, _of_fold(report, number)))
            memory.release()
            if found[-1]["status"] != "finished":
                return found[-1] | {"earlier_seconds": sum(one.get("earlier_seconds", 0.0) for one in found)}
        scores = [one["score"] for one in found]
        seconds = {name: sum(one[name] for one in found) for name in (*_SECONDS, "saving_seconds")}
        return {
            **found[0],
            **seconds,
            "score": statistics.mean(scores),
            "deviation": statistics.stdev(scores),
            "best_epoch": round(statistics.mean(one["best_epoch"] for one in found)),
        }

    def _run(self, folder: Path, report: Report) -> dict[str, Any]:
        config, used = _watched(command_line.read_config(folder / run.CONFIG, self.module.Config))
        data = self.data(config)
        began = time.perf_counter()
        keras.utils.set_random_seed(config.seed)
        model = self.module.build_model(config, data)
        costs = self.limits.measure(self.module, model, data)
        if not (folder / run.RUN).exists():
            run.describe(folder, self.application, config.precision, dict(data.info))
        objective = self.module.OBJECTIVE
        saver = TrialCheckpoint(
            folder,
            report,
            config.last_epoch,
            monitor=objective.metric,
            maximize=objective.direction == "max",
            resume=(folder / run.CHECKPOINT).exists(),
        )
        saver.patience = config.patience
        built, earlier = time.perf_counter(), sum(row["seconds"] for row in saver.history)
        if saver.initial_epoch < config.last_epoch and not saver.stopped:
            self.module.train(config, model, data, [saver])
            saver.write_best()
        seconds = built - began, earlier + time.perf_counter() - built, earlier
        facts: dict[str, Any] = {name: round(value, 3) for name, value in zip(_SECONDS, seconds, strict=True)}
        facts |= {**costs, "saving_seconds": round(saver.seconds, 3), "used": sorted({*used, *self._data_fields})}
        score = saver.history[saver.best_epoch - 1].get(objective.metric)
        if score is None or not math.isfinite(score):
            reason = f"{objective.metric} was no finite number in any epoch"
            return {"status": "failed", "kind": "no score", "reason": reason, **facts}
        status = "pruned" if saver.pruned else "finished"
        return {"status": status, "score": score, "best_epoch": saver.best_epoch, **facts}

    def _evaluate(self, folder: Path) -> dict[str, float]:
        config = command_line.read_config(folder / run.CONFIG, self.module.Config)
        return _run.evaluate(self.module, [(config, self.data(config))], [folder])


def _of_fold(report: Report, number: int) -> Report:
    return lambda row: report({**row, "fold": number})


def _kind(error: Exception) -> str:
    kinds: dict[str, tuple[type[Exception], ...]] = {
        "diverged": (checkpoint.TrainingDiverged,),
        "refused": (UserError,),
        "limit": (LimitExceeded,),
        "memory": (MemoryError, tf.errors.ResourceExhaustedError),
    }
    return next((kind for kind, types in kinds.items() if isinstance(error, types)), type(error).__name__)


def _watched(config: Any) -> tuple[Any, dict[str, Any]]:
    """An equal configuration, and the fields of it that are looked at, which fill up as that happens."""
    fields: dict[str, Any] = {}
    values = vars(config)

    class Watched(type(config)):  # type: ignore[misc]  # the application's own class
        def __getattribute__(self, name: str) -> Any:
            if name in values:
                fields[name] = values[name]
            return super().__getattribute__(name)

    watched = copy.copy(config)
    object.__setattr__(watched, "__class__", Watched)
    return watched, fields
