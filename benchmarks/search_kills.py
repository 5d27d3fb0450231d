"""A search that is killed again and again, beside the same search left alone: nothing may be lost, doubled or changed.

    python -m benchmarks.search_kills --kills 20

Trains trials of the variational autoencoder on drawn shapes, two at a time, in a temporary folder. At random moments
the search itself, or one of its workers, is ended by SIGKILL; a search that was ended is begun again by the same
command. About a quarter of an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from tuning._journal import JOURNAL

COMMAND = [
    "vae",
    "--tiny",
    "--epochs",
    "6",
    "--trials",
    "12",
    "--workers",
    "2",
    "--prune",
    "none",
    "--precision",
    "float32",
]


def begun(folder: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "tuning", *COMMAND, "--folder", str(folder)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def outcome(folder: Path) -> list[dict[str, str]]:
    """The table of trials by number, without what a clock or the memory decides."""
    with (folder / "trials.csv").open(newline="") as stream:
        rows = [
            {name: value for name, value in row.items() if "seconds" not in name and name != "memory_mib"}
            for row in csv.DictReader(stream)
        ]
    return sorted(rows, key=lambda row: int(row["trial"]))


def main() -> None:
    """Prints what was killed and whether the two searches are alike; ends with status 1 if they are not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments (the processor's load moves them, too)")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    killed: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        whole, folder = Path(place) / "whole", Path(place) / "killed"
        start = time.perf_counter()
        if begun(whole).wait() != 0:
            raise SystemExit("the search that was left alone failed")
        print(f"left alone: {time.perf_counter() - start:.0f} s", flush=True)
        process = begun(folder)
        while killed.total() < arguments.kills:
            time.sleep(draw.uniform(0.5, 15))
            if process.poll() is not None:
                break
            workers = [child for child in psutil.Process(process.pid).children(recursive=True) if child.is_running()]
            if draw.random() < 0.5 and workers:
                draw.choice(workers).kill()
                killed["worker"] += 1
                continue
            process.kill()
            process.wait()
            killed["search"] += 1
            _, alive = psutil.wait_procs(workers, timeout=20)
            if alive:
                raise SystemExit(f"{len(alive)} workers outlived their search by 20 s")
            process = begun(folder)
        process.wait()
        while process.returncode != 0:
            process = begun(folder)
            process.wait()
        lines = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
        ends = Counter(line["ended"] for line in lines if "ended" in line)
        found, expected = outcome(folder), outcome(whole)
        lost = [row for row in found if row["kind"] == "killed"] if "kind" in found[0] else []
        alike = sum(one == other for one, other in zip(found, expected, strict=False))
    print(f"killed: {killed['search']} times the search, {killed['worker']} times a process of its workers")
    print(f"trials: {len(found)} of {len(expected)}, {alike} alike; ended twice: {sum(n > 1 for n in ends.values())}; ")
    print(f"given up since their worker died twice: {len(lost)}")
    if len(found) != len(expected) or max(ends.values()) > 1 or alike + len(lost) != len(expected):
        raise SystemExit("the two searches differ")


if __name__ == "__main__":
    main()
