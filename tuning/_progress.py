"""How a search goes on: a table that is drawn anew in a terminal, a line a trial elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tuning._journal import Trial
from tuning._search import Search


class Progress:
    """Shows a search on standard output while a block runs."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._begun: dict[int, float] = {}
        self._told = False

    def __enter__(self) -> Progress:
        if sys.stdout.isatty():
            self._live = Live(console=Console(), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def changed(self, search: Search) -> None:
        """Draws the table."""
        if self._live is not None:
            self._live.update(self._drawn(search), refresh=True)

    def ended(self, search: Search, trial: Trial) -> None:
        """Prints a line for the trial, and once one about what is searched in vain."""
        lines = [ended_line(search, trial)]
        if search.unused and not self._told:
            self._told = True
            lines.append(f"so far {', '.join(search.unused)} changed nothing: no trial has looked at it")
        for line in lines:
            if self._live is not None:
                self._live.console.print(Text(line))
            else:
                print(line, flush=True)

    def _drawn(self, search: Search) -> Group:
        metric = search.objective.metric
        ended = [trial for trial in search.trials if trial.ended]
        words = [f"{len(ended)} trials done", f"{search.epochs} epochs", _time(search.seconds)]
        if (best := search.best) is not None:
            words.append(f"best {metric} {best.score:.4g} (trial {best.number})")
        if (left := seconds_left(search)) is not None:
            words.append(f"about {_time(left)} left")
        running = Table(box=None, pad_edge=False)
        for heading in ("trial", "epoch", metric, "time", "values"):
            running.add_column(heading, no_wrap=True)
        for number, trial in search.running.items():
            begun = self._begun.setdefault(number, time.monotonic())
            score = trial.rows[-1].get(metric) if trial.rows else None
            values = ", ".join(f"{name} {_short(value)}" for name, value in trial.values.items() if "/" not in name)
            running.add_row(
                str(number),
                _epoch(trial),
                "" if score is None else f"{score:.4g}",
                _time(time.monotonic() - begun),
                values,
            )
        return Group(Text(", ".join(words)), running)


def ended_line(search: Search, trial: Trial) -> str:
    """What became of a trial, and which is the best so far."""
    metric = search.objective.metric
    if trial.status == "failed":
        return f"trial {trial.number} failed ({trial.kind}): {trial.reason}"
    what = f"trial {trial.number}: {metric} {scored(trial)} in epoch {trial.best_epoch} of {trial.length}"
    if trial.same_as is not None:
        return f"{what}, the same as trial {trial.same_as}"
    what += f", {_time(trial.seconds)}"
    if trial.status == "pruned":
        what += f", ended after epoch {len(trial.curve)}: {trial.reason}"
    best = search.best
    if best is None:
        return what
    return f"{what}; the best so far" if best is trial else f"{what}; best {best.score:.4f} (trial {best.number})"


def scored(trial: Trial) -> str:
    """A trial's score, with cross-validation the mean of its folds and their standard deviation."""
    spread = f" ± {trial.costs['deviation']:.4f}" if "deviation" in trial.costs else ""
    return f"{trial.score:.4f}{spread}"


def _epoch(trial: Trial) -> str:
    fold = trial.rows[-1].get("fold") if trial.rows else None
    done = sum(row.get("fold") == fold for row in trial.rows)
    words = f"{done}/{max(done, trial.epochs)}"
    return words if fold is None else f"{words}, fold {fold:.0f}"


def seconds_left(search: Search) -> float | None:
    """A guess from the trials that have ended; None before the first."""
    ended = [trial.seconds for trial in search.trials if trial.ended and trial.same_as is None and trial.seconds]
    guesses = []
    if ended and search.oracle.max_trials is not None:
        left = search.oracle.max_trials - len(search.trials) + len(search.running)
        guesses.append(left * sum(ended) / len(ended) / max(1, len(search.running)))
    if search.budget.seconds is not None:
        guesses.append(search.budget.seconds - search.seconds)
    return max(0.0, min(guesses)) if guesses else None


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
