"""The proposing side of a search: Keras Tuner's oracles, and what of them a search could not live with, made right.

All of them try the starting configuration first, draw each trial from the seed and its number alone, so that near
seeds have nothing in common, never propose again what was tried, and keep no files: the search's journal is what a
search goes on from.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import keras_tuner
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from apps._contract import Objective
from tuning._space import Space

Algorithm = Literal["random", "bayesian", "grid", "hyperband"]

EPOCHS = "tuner/epochs"
"""Name under which Hyperband says how long a trial is."""
FACTOR = 3
"""Of Hyperband: as many times fewer trials go on, for as many times as many epochs."""
_LISTED = 100_000
"""Points of a finite space that are listed to find those not yet tried."""


class _Mended(keras_tuner.Oracle):
    """What all of the oracles below have in common.

    Args:
        space: what is searched.
        seed: of all that is drawn; 0 is one like any other (Keras Tuner takes it for none).
        **options: those of the oracle.
    """

    def __init__(self, space: Space, seed: int, **options: Any) -> None:
        declared = keras_tuner.HyperParameters()
        declared.merge(space.parameters)
        declared.values = {}
        # Keras Tuner takes the seed plus one for the next value: near seeds would share most of their trials.
        super().__init__(seed=random.Random(seed).randrange(1, 2**32), hyperparameters=declared, **options)
        self.search_space = space
        self.verbose = 0
        self._recorded: dict[str, Any] | None = None

    def propose(self, recorded: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The values of the next trial; None: there is none, or none before a running one has ended.

        Args:
            recorded: what was proposed at this place, where a search goes on from its journal.
        """
        self._recorded = None if recorded is None else dict(recorded)
        trial = self.create_trial(f"trial {len(self.trials)}")
        return dict(trial.hyperparameters.values) if trial.status == "RUNNING" else None

    def end(self, number: int, metric: str, score: float | None) -> None:
        """Takes the score of a trial; None: it failed."""
        trial = self.trials[self.start_order[number]]
        if score is not None:
            self.update_trial(trial.trial_id, {metric: score})
        trial.status = "FAILED" if score is None else "COMPLETED"
        self.end_trial(trial)

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """What Keras Tuner asks for."""
        if self._recorded is not None:
            return {"status": "RUNNING", "values": self._recorded}
        return self._proposal(trial_id)

    def _proposal(self, trial_id: str) -> dict[str, Any]:
        return super().populate_space(trial_id)

    def save(self) -> None:
        """Nothing."""

    def _save_trial(self, trial: Any) -> None:
        """Nothing."""

    def _check_consecutive_failures(self) -> None:
        """Nothing: the search knows when to give up, and says why."""

    def _drawn(self) -> random.Random:
        """Random numbers of the trial that is proposed next."""
        return random.Random(f"{self.seed} {len(self.trials)}")

    def _random_values(self) -> dict[str, Any] | None:
        """Values that were not tried, those of the starting configuration first; None: all were."""
        numbers = self._drawn()
        if not self.trials:
            return self.search_space.start()
        for _ in range(100):
            values = self.search_space.draw(numbers)
            if not self._duplicate(values):
                return values
        size = self.search_space.size
        if size is None or size > _LISTED:
            return self.search_space.draw(numbers)
        untried = [values for values in self.search_space.points() if not self._duplicate(values)]
        return numbers.choice(untried) if untried else None


class Random(_Mended, keras_tuner.oracles.RandomSearchOracle):
    """Random values. Source: Bergstra and Bengio 2012, "Random Search for Hyper-Parameter Optimization"."""


class Grid(_Mended):
    """All points of a grid in a random order, in which any number of trials covers the whole of it.

    Keras Tuner's own order varies the last parameters first and reaches the first ones after thousands of trials. A
    range without steps has ten values.
    """

    def _proposal(self, trial_id: str) -> dict[str, Any]:
        if not self.trials:
            return {"status": "RUNNING", "values": self.search_space.start()}
        numbers = random.Random(self.seed)
        size = self.search_space.grid_size
        seen: set[int] = set()
        while len(seen) < size:
            index = numbers.randrange(size)
            if index in seen:
                continue
            seen.add(index)
            values = self.search_space.grid_point(index)
            if not self._duplicate(values):
                return {"status": "RUNNING", "values": values}
        return {"status": "STOPPED", "values": None}


class Bayesian(_Mended, keras_tuner.oracles.BayesianOptimizationOracle):
    """A Gaussian process of the scores, and where its lower confidence bound is best.

    Keras Tuner proposes points of a finite space again and again; here the best of those that were not tried is taken.
    It also guesses the scores of running trials from a process that has seen none; here it has seen all that ended.

    Source: Srinivas et al. 2009, arXiv:0912.3995.
    """

    def _proposal(self, trial_id: str) -> dict[str, Any]:
        self._random_state = np.random.RandomState(self._drawn().randrange(2**32))
        with warnings.catch_warnings():
            # The length scales of parameters that do not matter run to their bounds, as they should.
            warnings.simplefilter("ignore", ConvergenceWarning)
            answer = super()._proposal(trial_id)
            values = answer["values"]
            if values is not None and self._duplicate(values):
                values = self._best_untried()
        return {"status": "STOPPED" if values is None else "RUNNING", "values": values}

    def _best_untried(self) -> dict[str, Any] | None:
        numbers = self._drawn()
        drawn = [self.search_space.draw(numbers) for _ in range(1000)]
        found = [values for values in drawn if not self._duplicate(values)]
        if not found:
            return self._random_values()
        mean, deviation = self.gpr.predict(np.array([self._vector(values) for values in found]), return_std=True)
        return found[int(np.argmin(mean - self.beta * deviation))]

    def _vector(self, values: Mapping[str, Any]) -> list[float]:
        return [hp.value_to_prob(values.get(hp.name, hp.default)) for hp in self._nonfixed_space()]

    def _vectorize_trials(self) -> tuple[np.ndarray, np.ndarray]:
        """Points and scores to minimize of what ended, and pessimistic guesses of what runs."""
        sign = -1 if self.objective.direction == "max" else 1
        ended = [trial for trial in self.trials.values() if trial.status == "COMPLETED"]
        points = np.array([self._vector(trial.hyperparameters.values) for trial in ended])
        scores = np.array([sign * trial.score for trial in ended])
        if not self.ongoing_trials:
            return points, scores
        self.gpr.fit(points, scores)
        running = np.array([self._vector(trial.hyperparameters.values) for trial in self.ongoing_trials.values()])
        mean, deviation = self.gpr.predict(running, return_std=True)
        return np.concatenate([points, running]), np.concatenate([scores, mean + deviation])


class Hyperband(_Mended, keras_tuner.oracles.HyperbandOracle):
    """Successive halving from many short trials to few long ones, in brackets.

    Keras Tuner's rounds shrink by each trial that fails, and a space with fewer points than the first round has trials
    ends the search there. Here another configuration takes the place of one that fails, and the rounds are not wider
    than the space.

    Source: Li et al. 2016, arXiv:1603.06560.
    """

    _brackets: list[dict[str, Any]]

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """What Keras Tuner asks for; drawn again where it was recorded, since its brackets fill up thereby."""
        return self._proposal(trial_id)

    def end_trial(self, trial: Any) -> None:
        """Takes a trial that failed, and the shorter ones that led to it, out of the bracket, which fills up again."""
        super().end_trial(trial)
        if trial.status == "COMPLETED":
            return
        lost = {trial.trial_id}
        for bracket in self._brackets:
            for entries in reversed(bracket["rounds"]):
                lost |= {entry["past_id"] for entry in entries if entry["id"] in lost}
                entries[:] = [entry for entry in entries if entry["id"] not in lost]

    def _remove_completed_brackets(self) -> None:
        """Keeps brackets whose last trials still run: they may fail."""
        running = {trial.trial_id for trial in self.ongoing_trials.values()}
        before = self._brackets
        super()._remove_completed_brackets()
        self._brackets = [
            bracket
            for bracket in before
            if bracket in self._brackets or any(entry["id"] in running for entry in bracket["rounds"][-1])
        ]

    def _get_size(self, bracket_num: int, round_num: int) -> int:
        size = super()._get_size(bracket_num, round_num)
        points = self.search_space.size
        if points is None:
            return size
        return max(1, min(size, points // self.factor**round_num))

    def _compute_values_hash(self, values: Mapping[str, Any]) -> str:
        """Configurations may come again in another bracket, where they are trained for longer."""
        return super()._compute_values_hash({**values, "bracket": self._current_bracket})


def make(
    algorithm: Algorithm, space: Space, objective: Objective, *, trials: int, epochs: int, seed: int
) -> keras_tuner.Oracle:
    """The proposing side of a search.

    Args:
        algorithm: random, bayesian (Gaussian process), grid, or hyperband.
        space: what is searched.
        objective: what is optimised.
        trials: configurations at most; hyperband counts by its own rule.
        epochs: those of the longest trial of hyperband.
        seed: of all that is drawn.
    """
    common: dict[str, Any] = {"objective": keras_tuner.Objective(objective.metric, objective.direction)}
    if algorithm == "hyperband":
        return Hyperband(space, seed, max_epochs=epochs, factor=FACTOR, **common)
    common["max_trials"] = trials
    if algorithm == "bayesian":
        return Bayesian(space, seed, num_initial_points=num_random(trials), **common)
    return {"random": Random, "grid": Grid}[algorithm](space, seed, **common)


def num_random(trials: int) -> int:
    """Random trials before the Gaussian process has its say: a third, at least two."""
    return max(2, trials // 3)
