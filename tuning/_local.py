"""Workers on this machine: processes that share out its cores and graphics cards."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Mapping
from multiprocessing import connection
from pathlib import Path
from typing import Any

import psutil

from kerasdl.errors import UserError
from tuning import _worker
from tuning._worker import Event, Task

_GROWTH = 1.5
"""A worker whose memory has grown to this multiple of what its first trial left, and by _SLACK_MIB, is replaced."""
_SLACK_MIB = 512


class _Process:
    """A worker and the trial that it trains, if it does."""

    def __init__(self, task: Task, cores: list[int], environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_worker.serve, args=(other, task, cores, environment))
        self.process.start()
        other.close()
        self.number: int | None = None
        self.first_mib: int | None = None
        self.waits = False

    def send(self, content: Any) -> None:
        """Sends something; that the worker is dead is what the next look for news says."""
        with contextlib.suppress(OSError):
            self.connection.send(content)

    def memory_mib(self) -> int:
        try:
            return psutil.Process(self.process.pid).memory_info().rss >> 20
        except psutil.Error:
            return 0

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class Local:
    """Trains trials in worker processes.

    A crash, or the kernel that ends a process for its memory, costs one trial. A worker stays for the next trial,
    with TensorFlow imported and the data read, until its memory has grown.

    Args:
        task: what is trained.
        workers: processes; each has an equal share of the cores, and one of the graphics cards, if there are any.
        memory_mib: what a worker may take; None allows everything.
        graphics_cards: number of them.
    """

    def __init__(self, task: Task, workers: int, *, memory_mib: int | None = None, graphics_cards: int = 0) -> None:
        self.task, self.memory_mib = task, memory_mib
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if workers > max(len(cores), graphics_cards, 1) and cores:
            raise UserError(f"--workers is {workers}; this machine has {len(cores)} cores to share out")
        self.shares = [
            (cores[index::workers], _environment(index, workers, graphics_cards, len(cores)))
            for index in range(workers)
        ]
        self.processes: list[_Process | None] = [None] * workers

    def _process(self, index: int) -> _Process:
        found = self.processes[index]
        if found is not None and not found.process.is_alive():  # it was ended while it had nothing to do
            found.kill()
            found = None
        if found is None:
            found = self.processes[index] = _Process(self.task, *self.shares[index])
        return found

    def facts(self, config: Path, *, batch_size_given: bool) -> dict[str, Any]:
        """What `_trial.Trials.facts` says.

        Args:
            config: file of the starting configuration.
            batch_size_given: whether its batch size is somebody's choice.

        Raises:
            UserError: the data cannot be read; or the worker died.
        """
        process = self._process(0)
        process.send(("facts", str(config), batch_size_given))
        try:
            kind, answer = process.connection.recv()
        except (EOFError, OSError):
            raise UserError(f"the worker that read the data was ended {_how(process)}") from None
        if kind == "refused":
            raise UserError(answer)
        return answer

    @property
    def free(self) -> int:
        """Workers without a trial."""
        return sum(process is None or process.number is None for process in self.processes)

    def start(self, number: int, folder: Path, *, evaluate: bool = False) -> None:
        """Gives a trial to a worker that is free, to measure on the test split, too, if wanted."""
        index = next(i for i, process in enumerate(self.processes) if process is None or process.number is None)
        process = self._process(index)
        process.number = number
        process.send(("run", str(folder), evaluate))

    def answer(self, number: int, go_on: bool) -> None:
        """Says to a trial whose epoch has ended whether it goes on."""
        process = next(process for process in self.processes if process is not None and process.number == number)
        process.waits = False
        process.send(go_on)

    def wait(self, seconds: float) -> list[Event]:
        """The news, as soon as there are some; none after a time without."""
        until = time.monotonic() + seconds
        while True:
            running = [process for process in self.processes if process is not None and process.number is not None]
            heard = [process.connection for process in running if not process.waits]
            watched: list[Any] = [*heard, *(process.process.sentinel for process in running)]
            left = until - time.monotonic()
            ready = connection.wait(watched, timeout=max(0, min(left, 1)))
            found = [event for process in running for event in self._news(process, ready)]
            if found or left <= 0:
                return found

    def _news(self, process: _Process, ready: list[Any]) -> list[Event]:
        number = process.number
        assert number is not None
        if process.connection in ready:
            try:
                kind, content = process.connection.recv()
            except (EOFError, OSError):
                return [self._lost(process, number)]
            if kind == "epoch":
                process.waits = True
                return [Event(number, "epoch", content)]
            process.number = None
            self._replace_if_grown(process, content["memory_mib"])
            return [Event(number, "ended", content)]
        if process.process.sentinel in ready:
            return [self._lost(process, number)]
        if self.memory_mib is not None and (taken := process.memory_mib()) > self.memory_mib:
            process.kill()
            self._forget(process)
            reason = f"took {taken:,} MiB of memory, more than {self.memory_mib:,}"
            return [Event(number, "ended", {"status": "failed", "kind": "memory", "reason": reason})]
        return []

    def _lost(self, process: _Process, number: int) -> Event:
        process.process.join()
        how = _how(process)
        process.connection.close()
        self._forget(process)
        return Event(number, "died", {"kind": "killed", "reason": f"the worker was ended {how}"})

    def _replace_if_grown(self, process: _Process, memory_mib: int) -> None:
        process.first_mib = process.first_mib or memory_mib
        if memory_mib > max(_GROWTH * process.first_mib, process.first_mib + _SLACK_MIB):
            process.kill()
            self._forget(process)

    def _forget(self, process: _Process) -> None:
        self.processes[self.processes.index(process)] = None

    def close(self) -> None:
        """Ends all workers at once: what a trial has finished is on disk."""
        for process in self.processes:
            if process is not None:
                process.kill()
        self.processes = [None] * len(self.processes)


def _how(process: _Process) -> str:
    process.process.join(10)
    code = process.process.exitcode
    if code is None or code >= 0:
        return f"with exit status {code}"
    return f"by signal {-code}" + (" (perhaps by the kernel, for its memory)" if code == -9 else "")


def _environment(index: int, workers: int, graphics_cards: int, num_cores: int) -> dict[str, str]:
    threads = str(max(1, num_cores // workers)) if num_cores else ""
    found = {"OMP_NUM_THREADS": threads, "TF_NUM_INTRAOP_THREADS": threads} if threads else {}
    if graphics_cards:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # numbers or names of those that TensorFlow has counted
        cards = visible.split(",") if visible else [str(card) for card in range(graphics_cards)]
        found["CUDA_VISIBLE_DEVICES"] = cards[index % graphics_cards].strip()
        if workers > graphics_cards:
            found["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    return found
