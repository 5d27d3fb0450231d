"""A search job: Keras Tuner proposes, the application trains, validation data decide."""

from __future__ import annotations

import csv
import dataclasses
import gc
import io
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import keras
import keras_tuner

from apps._contract import Application, Objective, Splits, jsonable
from kerasdl.errors import UserError
from kerasdl.files import write_json, write_text
from kerasdl.training import checkpoint, run

Algorithm = Literal["random", "bayesian", "grid", "hyperband"]
Space = Callable[[keras_tuner.HyperParameters, Any], Any]


class Search(keras_tuner.engine.base_tuner.BaseTuner):
    """Runs trials of one application one after the other in this process.

    Args:
        module: the application.
        space: from `tuning/<application>.py`.
        config: every field that is not searched.
        data: train and validation are used; test is never opened.
        oracle: proposes hyperparameters and keeps scores.
        folder: receives the oracle's state and a folder a trial.
    """

    def __init__(
        self,
        module: Application,
        space: Space,
        config: Any,
        data: Splits,
        oracle: keras_tuner.Oracle,
        folder: Path,
    ) -> None:
        self.module, self.space, self.config, self.data, self.folder = module, space, config, data, folder
        self.rows: list[dict[str, Any]] = []
        super().__init__(oracle, hypermodel=None, directory=str(folder), project_name="oracle")

    def _populate_initial_space(self) -> None:
        """Declares the space without building a model, which Keras Tuner would do here."""
        hp = self.oracle.get_space()
        self.space(hp, self.config)
        self.oracle.update_space(hp)

    def run_trial(self, trial: Any, *_: Any, **__: Any) -> dict[str, float]:
        """Trains one configuration; its score is the best epoch on the validation data."""
        hp = trial.hyperparameters
        began = time.perf_counter()
        folder = self.folder / "trials" / trial.trial_id
        folder.mkdir(parents=True, exist_ok=True)
        objective = self.module.OBJECTIVE
        row: dict[str, Any] = {"trial": trial.trial_id, objective.metric: None}
        self.rows.append(row)
        keras.utils.clear_session(free_memory=False)
        gc.collect()
        try:
            config = self.space(hp, self.config)
            if "tuner/epochs" in hp.values:  # hyperband decides how long
                config = dataclasses.replace(config, epochs=hp.values["tuner/epochs"])
            write_json(folder / run.CONFIG, jsonable(config))
            row |= {name: value for name, value in hp.values.items() if not name.startswith("tuner/")}
            keras.utils.set_random_seed(config.seed)
            model = self.module.build_model(config, self.data)
            saver = checkpoint.Checkpoint(folder, monitor=objective.metric, maximize=objective.direction == "max")
            self.module.train(config, model, self.data, [saver])
        except (checkpoint.TrainingDiverged, UserError) as error:
            row["failure"] = str(error)
            raise keras_tuner.errors.FailedTrialError(str(error)) from None
        finally:
            row["seconds"] = round(time.perf_counter() - began, 1)
        for name in (run.CHECKPOINT, run.MODEL):
            (folder / name).unlink(missing_ok=True)
        best = saver.history[saver.best_epoch - 1].get(objective.metric)
        if best is None:
            row["failure"] = f"{objective.metric} was no finite number in any epoch"
            raise keras_tuner.errors.FailedTrialError(row["failure"])
        row[objective.metric] = best
        print(f"trial {trial.trial_id}: {objective.metric} {best:.4f} in {row['seconds']} s", flush=True)
        return {objective.metric: best}

    def save_model(self, trial_id: str, model: Any, step: int = 0) -> None:
        """Nothing: best.json is what a search hands back."""

    def on_trial_end(self, trial: Any) -> None:
        """Writes the table and the best configuration after every trial, so that a stop loses nothing."""
        super().on_trial_end(trial)
        ranked = ranking(self.rows, self.module.OBJECTIVE)
        write_text(self.folder / "trials.csv", _table(ranked))
        if ranked and ranked[0][self.module.OBJECTIVE.metric] is not None:
            best = self.folder / "trials" / ranked[0]["trial"] / run.CONFIG
            write_text(self.folder / "best.json", best.read_text(encoding="utf-8"))


def ranking(rows: list[dict[str, Any]], objective: Objective) -> list[dict[str, Any]]:
    """Best first, failed trials last."""
    sign = -1 if objective.direction == "max" else 1
    return sorted(rows, key=lambda row: (row[objective.metric] is None, sign * (row[objective.metric] or 0)))


def _table(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def oracle(algorithm: Algorithm, objective: Objective, *, trials: int, epochs: int, seed: int) -> keras_tuner.Oracle:
    """The proposing side of Keras Tuner.

    Args:
        algorithm: random, bayesian (Gaussian process), grid, or hyperband (Li et al. 2016, arXiv:1603.06560).
        objective: what is optimised.
        trials: how many configurations; hyperband counts by its own rule and ignores it.
        epochs: longest training of a hyperband trial.
        seed: 0 is a seed like any other (Keras Tuner itself takes 0 for "random").
    """
    # Keras Tuner replaces a false seed, and it draws from the global generator in places.
    random.seed(seed)
    common: dict[str, Any] = {
        "objective": keras_tuner.Objective(objective.metric, objective.direction),
        "seed": seed + 1,
        "max_consecutive_failed_trials": max(3, trials),
    }
    oracles = keras_tuner.oracles
    if algorithm == "hyperband":
        return oracles.HyperbandOracle(max_epochs=epochs, **common)
    kinds = {"random": oracles.RandomSearchOracle, "bayesian": oracles.BayesianOptimizationOracle}
    return {**kinds, "grid": oracles.GridSearchOracle}[algorithm](max_trials=trials, **common)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints the ranking, columns aligned."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "failure"))
    cells = [columns] + [[_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "failed"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
