"""Contests of speed: each contender in a process of its own, in turns for several rounds.

The median of the rounds counts, since absolute times drift on shared machines; every round stands in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import _results

Works = Mapping[str, Mapping[str, Callable[[], float]]]


def main(module: str, description: str | None, works: Works, *, unit: str, protocol: str) -> None:
    """Measures what the command line names; writes benchmarks/results/<module>_<work>.json after each round.

    Args:
        module: name of the benchmark, a module of this package.
        description: for --help.
        works: of each work the contenders, functions that return a speed.
        unit: of the speeds, such as `images`, per second.
        protocol: what one number is, but for the rounds.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of every contender (default 3)")
    parser.add_argument("--works", nargs="+", choices=works, default=list(works), help="what to measure (default all)")
    parser.add_argument("--only", nargs=2, metavar=("WORK", "CONTENDER"), help="measure one here, print it")
    arguments = parser.parse_args()
    if arguments.only:
        work, contender = arguments.only
        speed = works[work][contender]()
        print(json.dumps([speed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))
        return
    for work in arguments.works:
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in works[work]}
        for turn in range(1, arguments.rounds + 1):
            for name, values in found.items():
                values.append(_measured(module, work, name))
                print(f"{work}, round {turn}: {name} {values[-1][0]:,.1f}", flush=True)
            speeds = {name: [speed for speed, _ in values] for name, values in found.items()}
            row = {
                "work": work,
                "per_second": {name: round(statistics.median(values), 1) for name, values in speeds.items()},
                "peak_memory_gib": {name: round(max(m for _, m in values), 2) for name, values in found.items()},
                "all": {name: [round(speed, 1) for speed in values] for name, values in speeds.items()},
            }
            how = f"{protocol}; median of {turn} interleaved rounds, each contender a process of its own"
            _results.write(f"{module}_{work}", how, [row], unit=unit)


def clock() -> Any:
    """A callback in the place of an application's checkpoint that writes nothing and times the epochs: `seconds`."""
    from kerasdl.training.checkpoint import Checkpoint

    class Clock(Checkpoint):
        def __init__(self) -> None:
            super().__init__(Path("unused"), monitor="loss", maximize=False)
            self.seconds: list[float] = []

        def on_test_begin(self, logs: Any = None) -> None:
            self._end_of_training()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if len(self.seconds) == epoch:  # there was no validation
                self._end_of_training()

        def _end_of_training(self) -> None:
            self.seconds.append(time.perf_counter() - self._epoch_start)

    return Clock()


def _measured(module: str, work: str, contender: str) -> tuple[float, float]:
    """Speed, and the peak memory in GiB."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--only", work, contender]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    if run.returncode:
        raise SystemExit(run.stderr[-2000:])
    speed, memory = json.loads(run.stdout.splitlines()[-1])
    return speed, memory
