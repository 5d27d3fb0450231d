"""The process that trains trials, one after the other. Imports nothing heavy before it has its share of the machine."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import psutil

OUTPUT = "output.txt"
"""File of a trial's folder that receives what its training prints."""
FULL = "full disk"
"""Kind of what ends a search, and no trial: there is no room for what one writes."""


def fold_folder(number: int | str) -> str:
    """Name of the folder of a fold's run in that of its trial."""
    return f"fold-{number}"


@dataclass(frozen=True)
class Task:
    """What all trials of a search have in common; it travels to the workers.

    Attributes:
        application: its name.
        tiny: whether the data are the application's synthetic ones.
        limits: those of `_trial.Limits`, by name.
        folds: of n-fold cross-validation; 0 for none.
    """

    application: str
    tiny: bool
    limits: Mapping[str, Any]
    folds: int = 0


@dataclass(frozen=True)
class Event:
    """News of a trial.

    Attributes:
        number: of the trial.
        kind: an epoch ended, which waits to be told whether to go on; the trial ended; or its worker died.
        content: the log's row; what `_trial.Trials.run` returns; or the `kind` and `reason` of a death.
    """

    number: int
    kind: Literal["epoch", "ended", "died"]
    content: Mapping[str, Any] = field(default_factory=dict)


def result(event: Event) -> Mapping[str, Any]:
    """The content of a trial's or worker's end.

    Raises:
        OSError: the disk is full, which is no fault of the trial: it goes on when there is room.
    """
    if event.content.get("kind") == FULL:
        raise OSError(errno.ENOSPC, event.content["reason"])
    return event.content


def serve(connection: Connection, task: Task, cores: Sequence[int], environment: Mapping[str, str]) -> None:
    """Answers requests until the connection closes, or the process at its other end is gone.

    A request is `("facts", config file, whether its batch size was given)` or `("run", folder, whether it is
    measured on the test split)`.

    Args:
        connection: to the search.
        task: what is trained.
        cores: those of this worker; none leaves all to it.
        environment: variables, such as the graphics card's.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the search decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)

    from apps._lazy import start_keras

    start_keras()
    from tuning._trial import Trials

    trials = Trials.of(task)

    def report(row: Mapping[str, float]) -> bool:
        connection.send(("epoch", row))
        return bool(connection.recv())

    while True:
        try:
            request, path, *rest = connection.recv()
        except EOFError:
            return
        if request == "facts":
            connection.send(facts_or_refusal(trials, Path(path), batch_size_given=rest[0]))
            continue
        found = run_trial(trials, Path(path), report, evaluate=rest[0])
        connection.send(("ended", {**found, "memory_mib": psutil.Process().memory_info().rss >> 20}))


def run_trial(trials: Any, folder: Path, report: Any, *, evaluate: bool) -> dict[str, Any]:
    """What `_trial.Trials.run` returns, with what it prints in a file; of a full disk the kind `FULL` and the words."""
    from kerasdl.files import is_full

    try:
        with (folder / OUTPUT).open("a", encoding="utf-8") as output, redirected(output.fileno()):
            return trials.run(folder, report, evaluate=evaluate)
    except Exception as error:
        if not is_full(error):
            raise
        return {"status": "failed", "kind": FULL, "reason": os.strerror(errno.ENOSPC)}


def facts_or_refusal(trials: Any, path: Path, *, batch_size_given: bool) -> tuple[str, Any]:
    """The answer to a request for facts: `facts` and what they are, or `refused` and why there are none.

    Args:
        trials: those of the worker.
        path: file of the starting configuration.
        batch_size_given: whether its batch size is somebody's choice.
    """
    from kerasdl import command_line
    from kerasdl.errors import UserError

    try:
        config = command_line.read_config(path, trials.module.Config)
        return "facts", trials.facts(config, batch_size_given=batch_size_given)
    except UserError as error:
        return "refused", str(error)
    except Exception as error:
        return "refused", f"the data cannot be read: {' '.join(str(error).split())} ({type(error).__name__})"


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class redirected:
    """Within it, what this process prints, TensorFlow's own messages included, goes to another file."""

    def __init__(self, target: int) -> None:
        self.target = target

    def __enter__(self) -> None:
        _flush()
        self.before = [os.dup(stream) for stream in (1, 2)]
        for stream in (1, 2):
            os.dup2(self.target, stream)

    def __exit__(self, *_: object) -> None:
        _flush()
        for stream, copy in zip((1, 2), self.before, strict=True):
            os.dup2(copy, stream)
            os.close(copy)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
