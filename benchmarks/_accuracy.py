"""Trains and evaluates an application's recipes with several seeds, through its command line."""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _results


def main(
    application: str,
    description: str | None,
    recipes: Mapping[str, Sequence[str]],
    metrics: Sequence[str],
    protocol: str,
) -> None:
    """Runs what the command line names; writes benchmarks/results/<application>_accuracy_<recipe>.json.

    Runs that exist are not repeated: a stopped benchmark goes on where it was.

    Args:
        application: name for `python -m apps`.
        description: for --help.
        recipes: the flags of `train` of each recipe.
        metrics: of `evaluate`, to be kept.
        protocol: what the metrics are.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=recipes)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default 3)")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="folder of the runs")
    arguments = parser.parse_args()
    name, flags = arguments.recipe, recipes[arguments.recipe]
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        folder = _trained(application, [*flags, "--seed", str(seed)], arguments.runs / f"{name}-seed{seed}")
        found = json.loads((folder / "metrics.json").read_text())
        with (folder / "log.csv").open() as file:
            minutes = sum(float(row["seconds"]) for row in csv.DictReader(file)) / 60
        rows.append({"seed": seed, **{key: found[key] for key in metrics}, "training_minutes": round(minutes, 2)})
        print(rows[-1], flush=True)
        columns = {key: [row[key] for row in rows] for key in rows[0] if key != "seed"}
        _results.write(
            f"{application}_accuracy_{name}",
            f"{protocol}; trained with {' '.join(flags) or 'the defaults'}; minutes: the epochs alone",
            rows,
            mean={key: round(statistics.mean(values), 4) for key, values in columns.items()},
            deviation={
                key: round(statistics.stdev(values), 4) if len(rows) > 1 else None for key, values in columns.items()
            },
        )


def _trained(application: str, flags: Sequence[str], root: Path) -> Path:
    """The run folder of one seed."""
    done = [path.parent for path in root.glob(f"{application}/*/metrics.json")]
    if done:
        return done[0]
    subprocess.run([sys.executable, "-m", "apps", application, "train", *flags, "--runs", str(root)], check=True)
    folder = max((root / application).iterdir())
    subprocess.run([sys.executable, "-m", "apps", application, "evaluate", str(folder)], check=True)
    return folder
