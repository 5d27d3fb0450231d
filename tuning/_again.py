"""Whether the best configuration is better than the starting one: both trained anew from several seeds."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from apps._contract import jsonable
from kerasdl.errors import UserError
from kerasdl.files import write_json
from kerasdl.training import run
from tuning import _worker
from tuning._search import Search, searched, shortened

AGAIN = "retrain"
LEVEL = 0.95


def retrain(search: Search, seeds: int, say: Callable[[str], None]) -> list[str]:
    """Trains the starting and the best configuration from new seeds, measures them, and compares.

    The seeds are others than the search's, in which the best one may have been lucky. What is finished is remembered
    in the search's journal. The test split is opened here, once for each model, and nothing is chosen by it.

    Args:
        search: it has ended.
        seeds: for each of the two, two or more.
        say: receives a line for each that has ended.

    Returns:
        The comparison, in lines.

    Raises:
        UserError: a training fails.
        OSError: the disk is full.
    """
    best = search.best
    assert best is not None
    configs = {
        "start": search.space.config,
        "best": shortened(search.space.config_of(searched(best.values)), best.epochs),
    }
    if configs["best"] == configs["start"]:  # hyperband tries it again for as long
        return ["the starting configuration is the best: there is nothing to compare it with"]
    names = [(kind, seed) for seed in range(1, seeds + 1) for kind in configs]
    found = {
        (line["again"], line["seed"]): line["metrics"]
        for line in search.journal.lines
        if "again" in line and line["of"] == best.number
    }
    waiting = [name for name in names if name not in found]
    running: dict[int, tuple[str, int]] = {}
    try:
        while waiting or running:
            while waiting and search.engine.free:
                kind, seed = waiting.pop(0)
                folder = search.folder / AGAIN / f"{kind}-{best.number}-{seed}"
                config = dataclasses.replace(configs[kind], seed=(search.space.config.seed + seed) % 2**32)
                if not (folder / run.CONFIG).exists():
                    write_json(folder / run.CONFIG, jsonable(config))
                number = names.index((kind, seed))
                running[number] = kind, seed
                search.engine.start(number, folder, evaluate=True)
            for event in search.engine.wait(1.0):
                if event.kind == "epoch":
                    search.engine.answer(event.number, True)
                    continue
                kind, seed = running.pop(event.number)
                content = _worker.result(event)
                if content.get("status") != "finished":
                    raise UserError(f"training {kind} anew with seed {seed} failed: {content['reason']}")
                metric = search.objective.metric
                metrics = {metric: content["score"], **content["metrics"]}
                search.journal.add(again=kind, seed=seed, of=best.number, metrics=metrics)
                found[kind, seed] = metrics
                say(f"{kind}, seed {seed}: {metric} {metrics[metric]:.4f}")
    finally:
        search.engine.close()
    return compared(
        *([found[kind, seed] for seed in range(1, seeds + 1)] for kind in configs), metric=search.objective.metric
    )


def compared(start: Sequence[Mapping[str, float]], best: Sequence[Mapping[str, float]], *, metric: str) -> list[str]:
    """Means, and the difference with its interval, of each metric, in lines.

    Args:
        start: metrics of the starting configuration, a mapping a seed.
        best: those of the best one.
        metric: the objective, of the validation data; all others are of the test data.

    Source: Welch 1947, "The generalization of Student's problem when several different population variances are
    involved".
    """
    width = max(len(name) for name in start[0])
    lines = [f"{'':<{width}}  {'start':>12}  {'best':>12}  difference, {LEVEL:.0%} interval"]
    for name in start[0]:
        pairs = [[row.get(name) for row in rows] for rows in (start, best)]
        if not all(isinstance(value, (int, float)) for values in pairs for value in values):
            continue
        before, after = (np.array(values, float) for values in pairs)
        difference = after.mean() - before.mean()
        where = "validation" if name == metric else "test"
        lines.append(
            f"{name:<{width}}  {before.mean():>12.4f}  {after.mean():>12.4f}  {difference:+.4f}, "
            f"{_interval(before, after)} ({where})"
        )
    return lines


def _interval(before: np.ndarray, after: np.ndarray) -> str:
    if np.ptp(before) == 0 and np.ptp(after) == 0:
        return "all seeds alike"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that one of the two has no variance, which is no mistake
        interval = stats.ttest_ind(after, before, equal_var=False).confidence_interval(LEVEL)
    words = f"{interval.low:+.4f} to {interval.high:+.4f}"
    return f"{words}: {'real' if interval.low * interval.high > 0 else 'could be chance'}"
