"""A search: an oracle proposes, workers train, validation data decide, a journal remembers."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from apps._contract import Objective, jsonable
from kerasdl.errors import UserError
from kerasdl.files import write_json, write_text
from kerasdl.training import run
from tuning import _journal, _oracles, _pruning, _worker
from tuning._journal import Journal, Trial
from tuning._space import Space
from tuning._worker import Event

TABLE, BEST, TRIALS = "trials.csv", "best.json", "trials"
HOPELESS = 5
"""Trials that fail before one succeeds, after which a search ends: something else is wrong."""
IN_A_ROW = 30
"""Trials that fail one after the other, after which a search ends that had some that did not."""
_RESULT = ("status", "score", "best_epoch", "kind", "reason", "seconds", "same_as", "costs")
_COSTS = (
    "parameters",
    "latency_ms",
    "export_mib",
    "build_seconds",
    "fit_seconds",
    "saving_seconds",
    "memory_mib",
    "deviation",
)
_ATTEMPTS = 2
"""Times that a trial is begun, or gone on with, whose worker dies."""


class Engine(Protocol):
    """Where trials are trained: `_local.Local`, processes of this machine."""

    def facts(self, config: Path, *, batch_size_given: bool) -> dict[str, Any]:
        """What `_trial.Trials.facts` says of the data of a configuration's file."""

    @property
    def free(self) -> int:
        """Workers without a trial."""

    def start(self, number: int, folder: Path, *, evaluate: bool = False) -> None:
        """Gives a trial to a worker that is free, to measure on the test split, too, if wanted."""

    def wait(self, seconds: float) -> list[Event]:
        """The news, as soon as there are some; none after a time without."""

    def answer(self, number: int, go_on: bool) -> None:
        """Says to a trial whose epoch has ended whether it goes on."""

    def close(self) -> None:
        """Ends all workers."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """Where a search ends; None does not end it.

    Attributes:
        trials: number of configurations; hyperband counts by its own rule.
        seconds: time that the search runs, that before an interruption included.
        epochs: of all trials.
    """

    trials: int
    seconds: float | None = None
    epochs: int | None = None


class Watcher(Protocol):
    """Shows how a search goes on."""

    def changed(self, search: Search) -> None:
        """Something has happened, or a second has gone by."""

    def ended(self, search: Search, trial: Trial) -> None:
        """A trial has ended."""


class Search:
    """Runs a search, or goes on with one, in a folder.

    Args:
        folder: receives the journal, the table, the best configuration and a folder a trial.
        settings: what makes it this search and no other; those of the journal must be the same.
        space: what is searched.
        objective: what is optimised.
        algorithm: how the next configuration is proposed.
        seed: of the proposals.
        budget: where it ends.
        rule: by which trials are ended early.
        engine: where they are trained.
        watcher: shows it.

    Raises:
        UserError: the folder holds another search, or its journal is damaged; or hyperband has no epochs to share out.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        space: Space,
        objective: Objective,
        *,
        algorithm: _oracles.Algorithm,
        seed: int,
        budget: Budget,
        rule: _pruning.Rule,
        engine: Engine,
        watcher: Watcher,
    ) -> None:
        if algorithm == "hyperband" and "epochs" in space.start():
            raise UserError("hyperband itself decides on the epochs of a trial; leave epochs out of what is searched")
        if algorithm == "hyperband" and space.config.epochs < _oracles.FACTOR:
            raise UserError(
                f"--epochs is {space.config.epochs}; hyperband begins with fewer and needs {_oracles.FACTOR}"
            )
        self.folder, self.space, self.objective, self.budget = folder, space, objective, budget
        self.rule, self.engine, self.watcher = rule, engine, watcher
        self.journal = Journal(folder)
        self.trials: list[Trial] = []
        self.running: dict[int, Trial] = {}
        self.waiting: list[Trial] = []
        self.used: set[str] | None = None
        """Fields of the configuration that any trial has looked at; None before one has ended."""
        self.journal.check(settings)
        if self.journal.settings is None:
            self.journal.add(search=settings)
        self._before = self.journal.spent_seconds
        self._began = time.monotonic()
        recorded = sum("trial" in line for line in self.journal.lines)
        self.oracle = _oracles.make(
            algorithm, space, objective, trials=budget.trials, epochs=space.config.epochs, seed=seed
        )
        if self.oracle.max_trials is not None:
            self.oracle.max_trials = max(budget.trials, recorded)
        for line in self.journal.lines[1:]:
            try:
                self._replay(line)
            except UserError:
                raise
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise UserError(
                    f"{self.journal.path}, or a log beside it, is damaged ({type(error).__name__}: {error}); "
                    "restore it, or give another --folder"
                ) from None
        self.waiting = [trial for trial in self.trials if not trial.ended]

    # --- What stands in the journal -----------------------------------------------------------------------------------

    def _replay(self, line: Mapping[str, Any]) -> None:
        if "trial" in line:
            if not self._propose(line["values"]):
                raise ValueError(f"trial {line['trial']} stands where there can be none")
            trial = self.trials[-1]
            if trial.values != line["values"] or trial.number != line["trial"]:
                raise UserError(
                    f"{self.journal.path} was written by other versions of Keras Tuner or of this program, which "
                    "proposed other trials; give another --folder"
                )
            trial.rows = _rows(self._folder(trial))
        elif "ended" in line:
            trial = self.trials[line["ended"]]
            names = {field.name for field in dataclasses.fields(Trial)} - {"number", "values", "rows"}
            for name in names & {*line}:
                setattr(trial, name, line[name])
            self._tell_oracle(trial)

    def _folder(self, trial: Trial) -> Path:
        return self.folder / TRIALS / f"{trial.number:04d}"

    @property
    def seconds(self) -> float:
        """Time that the search has run, that before an interruption included."""
        return self._before + time.monotonic() - self._began

    @property
    def epochs(self) -> int:
        """Epochs that were trained."""
        return sum(len(trial.rows) for trial in self.trials if trial.same_as is None)

    @property
    def best(self) -> Trial | None:
        """The best trial so far."""
        ranked = _journal.ranking(self.trials, self.objective)
        return ranked[0] if ranked and ranked[0].score is not None else None

    @property
    def unused(self) -> list[str]:
        """What is searched although no trial has looked at it."""
        if self.used is None:
            return []
        fields = {field.name for field in dataclasses.fields(self.space.config)}
        return [parameter.name for parameter in self.space.parameters if parameter.name in fields - self.used]

    # --- The search ---------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Searches to the end.

        Returns:
            Why it ended, in words.

        Raises:
            UserError: every trial fails.
            OSError: the disk is full.
        """
        try:
            while True:
                reason = self._over()
                if reason is None and self.engine.free and (trial := self._next()):
                    self._start(trial)
                    continue
                if reason is None and not self.running:
                    reason = self._exhausted()
                if reason is not None:
                    self._write()
                    return reason
                for event in self.engine.wait(1.0):
                    self._hear(event)
                self.watcher.changed(self)
        finally:
            self.engine.close()

    def _over(self) -> str | None:
        ended = [trial for trial in self.trials if trial.ended]
        if len(ended) >= HOPELESS and all(trial.status == "failed" for trial in ended):
            reasons = {trial.reason for trial in ended}
            which = "all for the same reason" if len(reasons) == 1 else "the last one"
            words = f"each of the first {len(ended)} trials failed, {which}: {ended[-1].reason}"
            self.journal.add(failed=words, spent=self.seconds)  # the same command begins a new search
            raise UserError(words)
        last = ended[-IN_A_ROW:]
        if len(last) == IN_A_ROW and all(trial.status == "failed" for trial in last):
            return f"the last {IN_A_ROW} trials failed, the last one: {last[-1].reason}"
        if self.budget.seconds is not None and self.seconds >= self.budget.seconds:
            return f"the time of --budget is over, {_minutes(self.seconds)}"
        if self.budget.epochs is not None and self.epochs >= self.budget.epochs:
            return f"{self.epochs} epochs are trained, --total-epochs"
        return None

    def _exhausted(self) -> str:
        size = self.space.size
        if size is not None and len({json.dumps(trial.values, sort_keys=True) for trial in self.trials}) >= size:
            return f"all {size:,} points of the space are tried"
        if self.oracle.max_trials is None:
            return "all rounds are done"
        return f"{len(self.trials)} trials are done"

    def _next(self) -> Trial | None:
        if self.waiting:
            return self.waiting.pop(0)
        while self._propose(None):
            trial = self.trials[-1]
            self.journal.add(trial=trial.number, values=trial.values, epochs=trial.epochs, spent=self.seconds)
            same = next((one for one in self.trials[:-1] if one.ended and self._equal(one, trial)), None)
            if same is None:
                return trial
            costs = {name: getattr(same, name) for name in ("status", "score", "best_epoch", "kind", "reason", "costs")}
            self._end(trial, {**costs, "same_as": same.number, "seconds": 0.0})
        return None

    def _equal(self, one: Trial, other: Trial) -> bool:
        return one.epochs == other.epochs and searched(one.values) == searched(other.values)

    def _propose(self, recorded: Mapping[str, Any] | None) -> bool:
        """Asks the oracle for the next trial; false: there is none, or none yet."""
        number = len(self.trials)
        proposed = self.oracle.propose(recorded)
        if proposed is None:
            return False
        epochs = proposed.get(_oracles.EPOCHS, proposed.get("epochs", self.space.config.epochs))
        self.trials.append(Trial(number, dict(proposed), epochs))
        return True

    def _start(self, trial: Trial) -> None:
        folder = self._folder(trial)
        if not (folder / run.CONFIG).exists():
            try:
                config = shortened(self.space.config_of(searched(trial.values)), trial.epochs)
            except UserError as error:
                self._end(trial, {"status": "failed", "kind": "refused", "reason": str(error)})
                return
            write_json(folder / run.CONFIG, jsonable(config))
        trial.rows = _rows(folder)
        if trial.rows and (reason := self._hopeless(trial)):  # it was killed before this was written down
            scores = [row.get(self.objective.metric, math.nan) for row in trial.rows]
            score = (max if self.objective.direction == "max" else min)(filter(math.isfinite, scores), default=None)
            if score is not None:
                found = {"score": score, "best_epoch": 1 + scores.index(score), "reason": reason}
                self._end(trial, {"status": "pruned", **found})
                return
        self.running[trial.number] = trial
        self.engine.start(trial.number, folder)

    def _hopeless(self, trial: Trial) -> str | None:
        return _pruning.hopeless(self.rule, trial, self.trials, self.objective)

    def _hear(self, event: Event) -> None:
        trial = self.running[event.number]
        if event.kind == "epoch":
            trial.rows.append(dict(event.content))
            trial.reason = self._hopeless(trial) or ""
            self.engine.answer(trial.number, not trial.reason)
            return
        del self.running[event.number]
        if event.kind == "ended":
            self._end(trial, _worker.result(event))
            return
        trial.attempts += 1
        if trial.attempts < _ATTEMPTS:
            self.waiting.insert(0, trial)  # it goes on from its last epoch
        else:
            self._end(trial, {"status": "failed", **event.content})

    def _end(self, trial: Trial, found: Mapping[str, Any]) -> None:
        for name, value in found.items():
            if name in _RESULT:
                setattr(trial, name, value)
            elif name in _COSTS:
                trial.costs[name] = value
        if "used" in found:
            self.used = (self.used or set()) | {*found["used"]}
        trial.ended_at = self.seconds
        line = {name: value for name in (*_RESULT, "ended_at") if (value := getattr(trial, name)) not in (None, "", {})}
        self.journal.add(ended=trial.number, **line, spent=self.seconds)
        self._tell_oracle(trial)
        self._keep(trial)
        self._write()
        self.watcher.ended(self, trial)

    def _tell_oracle(self, trial: Trial) -> None:
        self.oracle.end(trial.number, self.objective.metric, trial.score if trial.status != "failed" else None)

    def _keep(self, trial: Trial) -> None:
        """Removes weights, but those of the best trial, which is a run like any other."""
        best = self.best
        for other in [trial] if best is not trial else [one for one in self.trials if one.ended and one is not trial]:
            for part in (self._folder(other), *self._folder(other).glob(_worker.fold_folder("*"))):
                for name in (run.CHECKPOINT, run.MODEL):
                    (part / name).unlink(missing_ok=True)

    def _write(self) -> None:
        ranked = _journal.ranking([trial for trial in self.trials if trial.ended], self.objective)
        write_text(self.folder / TABLE, table(ranked, self.objective))
        if (best := self.best) is not None:
            config = shortened(self.space.config_of(searched(best.values)), best.epochs)
            write_json(self.folder / BEST, jsonable(config))


def searched(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what Hyperband notes for itself."""
    return {name: value for name, value in values.items() if not name.startswith("tuner/")}


def shortened(config: Any, epochs: int) -> Any:
    """A configuration for fewer epochs, with what is laid out in epochs scaled alike.

    Args:
        config: of an application.
        epochs: those of the trial.
    """
    if epochs == config.epochs:
        return config
    ratio = epochs / config.epochs
    scaled: dict[str, Any] = {name: round(getattr(config, name) * ratio) for name in config.FURTHER}
    if getattr(config, "warmup_epochs", 0):
        scaled["warmup_epochs"] = config.warmup_epochs * ratio
    return dataclasses.replace(config, epochs=epochs, **scaled)


def _rows(folder: Path) -> list[dict[str, float]]:
    """The epochs in a trial's log, or in those of its folds, whose checkpoints go on from there."""
    found: list[dict[str, float]] = []
    if (folder / run.LOG).exists():
        with (folder / run.LOG).open(encoding="utf-8", newline="") as stream:
            found += [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]
    number = 1
    while (part := folder / _worker.fold_folder(number)).exists():
        found += [{**row, "fold": number} for row in _rows(part)]
        number += 1
    return found


def table(ranked: list[Trial], objective: Objective) -> str:
    """The trials as CSV, best first."""
    rows = []
    for trial in ranked:
        same = {} if trial.same_as is None else {"same_as": trial.same_as}
        rows.append(
            {
                "trial": trial.number,
                objective.metric: trial.score,
                "status": trial.status,
                **searched(trial.values),
                "epochs": trial.values.get("epochs", len(trial.curve) or trial.epochs),
                "best_epoch": trial.best_epoch or None,
                "seconds": trial.seconds,
                **trial.costs,
                "kind": trial.kind,
                "reason": trial.reason,
                **same,
            }
        )
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    last = [name for name in ("kind", "reason", "same_as") if name in names]
    writer = csv.DictWriter(text, [*(name for name in names if name not in last), *last], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
