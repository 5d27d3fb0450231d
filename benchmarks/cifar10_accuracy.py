"""Accuracy on the CIFAR-10 test split, mean of several seeds, with the training time on this machine.

    python -m benchmarks.cifar10_accuracy fast-13 --seeds 3

Settings were chosen on the held-out 10 % of the training split; the runs here train on all 50,000 pictures
(`--validation-ratio 0`), so that nothing can be chosen on the test split. Runs that exist are not repeated: a stopped
benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import _results

RECIPES = {
    "fast-13": ["--epochs", "13"],
    "fast-21": ["--epochs", "21", "--padding", "4", "--cutout-size", "8"],
    "resnet20": ["--architecture", "resnet20", "--epochs", "30"],
}


def train(name: str, seed: int, runs: Path) -> Path:
    """Trains and evaluates one seed, unless that was done before.

    Returns:
        The run folder.
    """
    root = runs / f"{name}-seed{seed}"
    done = [path.parent for path in root.glob("cifar10/*/metrics.json")]
    if done:
        return done[0]
    flags = [*RECIPES[name], "--validation-ratio", "0", "--seed", str(seed), "--runs", str(root)]
    subprocess.run([sys.executable, "-m", "apps", "cifar10", "train", *flags], check=True)
    folder = max((root / "cifar10").iterdir())
    subprocess.run([sys.executable, "-m", "apps", "cifar10", "evaluate", str(folder)], check=True)
    return folder


def main() -> None:
    """Trains, evaluates and writes benchmarks/results/cifar10_accuracy_<recipe>.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default 3)")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="folder of the runs")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        folder = train(arguments.recipe, seed, arguments.runs)
        metrics = json.loads((folder / "metrics.json").read_text())
        with (folder / "log.csv").open() as file:
            seconds = sum(float(row["seconds"]) for row in csv.DictReader(file))
        rows.append(
            {
                "seed": seed,
                "accuracy": metrics["accuracy"],
                "flip_average_accuracy": metrics["flip_average_accuracy"],
                "training_minutes": round(seconds / 60, 2),
            }
        )
        print(rows[-1], flush=True)
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "seed"}
    _results.write(
        f"cifar10_accuracy_{arguments.recipe}",
        "CIFAR-10 test split, 10,000 pictures, float32 evaluation of the last epoch; trained on all 50,000 training "
        f"pictures with {' '.join(RECIPES[arguments.recipe])}; flip average reported apart",
        rows,
        mean={key: round(statistics.mean(values), 4) for key, values in columns.items()},
        deviation={
            key: round(statistics.stdev(values), 4) if len(rows) > 1 else None for key, values in columns.items()
        },
    )


if __name__ == "__main__":
    main()
