"""Ending hopeless trials before their last epoch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from apps._contract import Objective
from tuning._journal import Trial

Rule = Literal["none", "median", "halving"]

_FACTOR = 3
"""Of successive halving: as many times fewer trials reach the next rung, which is as many times as many epochs off."""
_OTHERS = 4
"""Trials that the median rule wants to have seen at an epoch."""


def hopeless(rule: Rule, trial: Trial, trials: Sequence[Trial], objective: Objective) -> str | None:
    """Why a trial whose last epoch is in its rows should end there; None: it should go on.

    Trials of as many epochs are compared alone, since a schedule that is longer is behind at the same epoch;
    with cross-validation the first fold decides.

    Args:
        rule: `median` ends a trial whose best score so far is below the median of the others' at the same epoch, after
            a fifth of its epochs; `halving` lets at epochs 1, 3, 9, ... the best third of those that came so far go on.
        trial: it.
        trials: all of the search.
        objective: of the search.

    Source: Golovin et al. 2017, "Google Vizier", section 3.2.2; Li et al. 2018, arXiv:1810.05934, algorithm 2.
    """
    epoch = len(trial.curve)
    if rule == "none" or epoch >= trial.epochs or epoch < len(trial.rows):
        return None
    others = [
        score
        for other in trials
        if other is not trial and other.epochs == trial.epochs and other.same_as is None and len(other.curve) >= epoch
        for score in [_best(other, epoch, objective)]
        if math.isfinite(score)
    ]
    own = _best(trial, epoch, objective)
    better = f"{objective.metric} {_shown(own, objective)} at epoch {epoch}"
    if rule == "median":
        if len(others) < _OTHERS or epoch < max(1, math.ceil(trial.epochs / 5)):
            return None
        middle = statistics.median(others)
        return f"{better}, the median of the others is {_shown(middle, objective)}" if own < middle else None
    if epoch != _FACTOR ** round(math.log(epoch, _FACTOR)) or len(others) + 1 < _FACTOR:
        return None
    ahead = sum(score > own for score in others)
    if ahead < max(1, (len(others) + 1) // _FACTOR):
        return None
    return f"{better}, where {ahead} of {len(others)} others were better"


def _best(trial: Trial, epoch: int, objective: Objective) -> float:
    """The best score up to an epoch; the higher, the better."""
    sign = 1 if objective.direction == "max" else -1
    scores = [sign * row[objective.metric] for row in trial.curve[:epoch] if objective.metric in row]
    return max((score for score in scores if math.isfinite(score)), default=-math.inf)


def _shown(score: float, objective: Objective) -> str:
    return f"{score if objective.direction == 'max' else -score:.4g}"
