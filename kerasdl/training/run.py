"""Run folders: `runs/<application>/<time>/` holds everything that one training produced.

config.json      every field as resolved; `train --config` takes it
run.json         application, command, commit, library versions, machine, precision, what the data said of itself
log.csv          one row an epoch
checkpoint.npz   what the run resumes from
model.keras      the weights of the best epoch on the validation data
metrics.json     what `evaluate` measured on the test data
figures/         what it drew
"""

import contextlib
import functools
import itertools
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from kerasdl import processor
from kerasdl.errors import UserError
from kerasdl.files import read_json, write_json

RUNNING = ".running"
"""Whose lock the process has that trains in the folder."""
CONFIG, RUN, LOG, CHECKPOINT, MODEL, METRICS, FIGURES = (
    "config.json",
    "run.json",
    "log.csv",
    "checkpoint.npz",
    "model.keras",
    "metrics.json",
    "figures",
)


def create(root: Path, application: str, config: dict[str, Any], data: dict[str, Any]) -> Path:
    """Makes a new run folder named after the time and writes config.json and run.json.

    Args:
        root: the folder of all runs.
        application: name of the application.
        config: the resolved configuration, JSON values only.
        data: what the model must know of its data (class names, vocabulary), JSON values only.

    Returns:
        The new folder.
    """
    folder = new_folder(root / application)
    write_json(folder / CONFIG, config)
    describe(folder, application, config.get("precision"), data)
    return folder


def describe(folder: Path, application: str, precision: str | None, data: dict[str, Any]) -> None:
    """Writes run.json.

    Args:
        folder: of the run.
        application: name of the application.
        precision: that of the training.
        data: what the model must know of its data (class names, vocabulary), JSON values only.
    """
    machine = {"machine": processor.machine(), "precision": precision}
    write_json(folder / RUN, {"application": application, **provenance(), **machine, "data": data})


def new_folder(parent: Path) -> Path:
    """Makes a folder named after the time; of two at the same second the later one gets a number."""
    stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    parent.mkdir(parents=True, exist_ok=True)
    for name in itertools.chain([stamp], (f"{stamp}-{number}" for number in itertools.count(2))):
        with contextlib.suppress(FileExistsError):
            (parent / name).mkdir()
            return parent / name
    raise AssertionError  # the numbers never end


def elsewhere(recorded: dict[str, Any]) -> str:
    """What bits depend on and is not as it was, such as `threads 2 (here 1)`; empty: nothing.

    Args:
        recorded: the contents of run.json; what it does not say (it is older) counts as equal.
    """
    before = recorded.get("machine", {}) | recorded.get("versions", {})
    now = processor.machine() | provenance()["versions"]
    return ", ".join(f"{name} {old} (here {now[name]})" for name, old in before.items() if old != now.get(name, old))


def provenance() -> dict[str, Any]:
    """The time, command, commit and library versions that a result came from."""
    return {
        "time": datetime.now().isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", *_module_and_arguments()]),
        "commit": _commit(),
        "versions": {name: metadata.version(name) for name in ("keras", "tensorflow", "numpy")},
    }


@functools.cache
def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.strip() + ("+changes" if changed.stdout else "")


def _module_and_arguments() -> list[str]:
    main = sys.modules["__main__"].__spec__
    name = main.name.removesuffix(".__main__") if main else Path(sys.argv[0]).name
    return [name, *sys.argv[1:]]


def read(folder: Path, application: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a run folder.

    Args:
        folder: a folder that `create` made.
        application: the application that asks; a run of another one is refused.

    Returns:
        The contents of config.json and of run.json.

    Raises:
        UserError: no run folder, damaged, or of another application.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a run folder but a file; give a folder that training printed")
    try:
        run, config = read_json(folder / RUN), read_json(folder / CONFIG)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is not a run folder: it has no {Path(error.filename).name}; give a folder that training printed"
        ) from None
    kinds = {"application": str, "time": str, "command": str, "commit": str, "versions": dict, "data": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(run.get(name), kind)]
    if wrong:
        raise UserError(
            f"{folder / RUN} has no {', '.join(wrong)}, or not as training wrote it; restore it, or train anew"
        )
    if run["application"] != application:
        raise UserError(
            f"{folder} is a run of {run['application']}, not of {application}; give it to {run['application']}"
        )
    return config, run
