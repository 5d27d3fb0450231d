"""Searches that are killed again and again, beside one left alone: nothing may be lost, doubled or changed.

    python -m benchmarks.search_kills --kills 20

Trains trials of the variational autoencoder on drawn shapes, two at a time, in a temporary folder. At random moments
the search itself, or one of its processes, is ended by SIGKILL; a search that was ended is begun again by the same
command, and one that is done by a new one, until all kills are made. A quarter of an hour on two CPU cores.
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

COMMAND = ["vae", "--tiny", "--epochs", "6", "--trials", "12", "--workers", "2"]
COMMAND += ["--prune", "none", "--precision", "float32"]


def begun(folder: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "tuning", *COMMAND, "--folder", str(folder)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def searched(folder: Path, killed: Counter[str], kills: int, draw: random.Random) -> None:
    """Searches to the end, and kills until there were so many kills."""
    process = begun(folder)
    while killed.total() < kills:
        time.sleep(draw.uniform(0.5, 15))
        if process.poll() is not None:
            break
        workers = psutil.Process(process.pid).children(recursive=True)
        if workers and draw.random() < 0.5:
            draw.choice(workers).kill()
            killed["worker"] += 1
            continue
        process.kill()
        process.wait()
        killed["search"] += 1
        _, alive = psutil.wait_procs(workers, timeout=20)
        if alive:
            raise SystemExit(f"{len(alive)} processes outlived their search by 20 s")
        process = begun(folder)
    while process.wait() != 0:
        process = begun(folder)


def outcome(folder: Path) -> list[dict[str, str]]:
    """The table of trials by number, without what a clock or the memory decides."""
    with (folder / "trials.csv").open(newline="") as stream:
        rows = [
            {name: value for name, value in row.items() if "seconds" not in name and name != "memory_mib"}
            for row in csv.DictReader(stream)
        ]
    return sorted(rows, key=lambda row: int(row["trial"]))


def ended_twice(folder: Path) -> int:
    """Trials whose end stands in the journal more than once."""
    lines = map(json.loads, (folder / JOURNAL).read_text().splitlines())
    return sum(count > 1 for count in Counter(line["ended"] for line in lines if "ended" in line).values())


def main() -> None:
    """Prints what was killed and whether the searches are alike; ends with status 1 if they are not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments (the processor's load moves them, too)")
    arguments = parser.parse_args()
    draw, killed = random.Random(arguments.seed), Counter[str]()
    lost = wrong = doubled = number = 0
    with tempfile.TemporaryDirectory() as place:
        alone = Path(place) / "alone"
        start = time.perf_counter()
        searched(alone, killed, 0, draw)
        expected = outcome(alone)
        print(f"left alone: {len(expected)} trials in {time.perf_counter() - start:.0f} s", flush=True)
        while killed.total() < arguments.kills:
            number += 1
            folder = Path(place) / str(number)
            searched(folder, killed, arguments.kills, draw)
            found = outcome(folder)
            given_up = [row["trial"] for row in found if row.get("kind") == "killed"]  # a worker died with it twice
            lost += len(given_up)
            pairs = zip(found, expected, strict=len(found) == len(expected))
            differ = [row["trial"] for row, other in pairs if row["trial"] not in given_up and row != other]
            wrong += len(differ) + abs(len(found) - len(expected))
            doubled += ended_twice(folder)
            print(f"search {number}: killed so far {dict(killed)}; given up {given_up}; differ {differ}", flush=True)
    print(f"{killed['search']} kills of the search, {killed['worker']} of one of its processes, in {number} searches:")
    print(f"{wrong} trials lost or changed, {doubled} ended twice, {lost} given up since their worker died twice")
    if wrong or doubled:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
