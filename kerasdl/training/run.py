"""Run folders: `runs/<application>/<time>/` holds everything that one training produced.

config.json      every field as resolved; `train --config` takes it
run.json         application, command, commit, library versions, what the data said of itself
log.csv          one row an epoch
checkpoint.npz   what the run resumes from
model.keras      the weights of the best epoch on the validation data
metrics.json     what `evaluate` measured on the test data
figures/         what it drew
"""

import json
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from kerasdl.errors import UserError
from kerasdl.files import write_json

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
    stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    for attempt in range(1, 1000):
        folder = root / application / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        break
    write_json(folder / CONFIG, config)
    write_json(folder / RUN, {"application": application, **provenance(), "data": data})
    return folder


def provenance() -> dict[str, Any]:
    """The time, command, commit and library versions that a result came from."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
        commit = commit.strip() + ("+changes" if changed.stdout else "")
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "time": datetime.now().isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", *_module_and_arguments()]),
        "commit": commit,
        "versions": {name: metadata.version(name) for name in ("keras", "tensorflow", "numpy")},
    }


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
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is not a run folder: it has no {Path(error.filename).name}; give a folder that training printed"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{folder} is damaged ({error}); restore {CONFIG} and {RUN} or train again") from None
    if run["application"] != application:
        raise UserError(
            f"{folder} is a run of {run['application']}, not of {application}; give it to {run['application']}"
        )
    return config, run
