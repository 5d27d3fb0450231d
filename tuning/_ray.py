"""Workers on many machines: Ray's actors. Ray places them, gives them their resources and notices that one is lost."""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from kerasdl.errors import UserError
from tuning._worker import Event, Task, facts_or_refusal, run_trial


class _Actor:
    """Trains trials in a process of its own, on whichever machine of the cluster. Two calls run at a time in it.

    Args:
        task: what is trained.
        threads: those of its computations.
    """

    def __init__(self, task: Task, threads: int) -> None:
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(threads)
        from apps._lazy import start_keras

        start_keras()
        from tuning._trial import Trials

        self.trials = Trials.of(task)
        self.news: queue.Queue[tuple[str, Mapping[str, Any]]] = queue.Queue()
        self.answers: queue.Queue[bool] = queue.Queue()

    def ready(self) -> bool:
        """True, once the actor has a machine and stands there."""
        return True

    def facts(self, config: str, batch_size_given: bool) -> tuple[str, Any]:
        """`facts` or `refused`, and what `_trial.Trials.facts` says."""
        return facts_or_refusal(self.trials, Path(config), batch_size_given=batch_size_given)

    def run(self, folder: str, evaluate: bool) -> None:
        """Trains a trial in a thread; `poll` hears of it."""
        threading.Thread(target=self._run, args=(Path(folder), evaluate), daemon=True).start()

    def _run(self, folder: Path, evaluate: bool) -> None:
        def report(row: Mapping[str, float]) -> bool:
            self.news.put(("epoch", row))
            return self.answers.get()

        self.news.put(("ended", run_trial(self.trials, folder, report, evaluate=evaluate)))

    def poll(self) -> tuple[str, Mapping[str, Any]]:
        """Waits for the next news of the trial."""
        return self.news.get()

    def answer(self, go_on: bool) -> None:
        """Whether the trial goes on, whose epoch has ended."""
        self.answers.put(go_on)


def _knock(address: str) -> None:
    """Asks whether anything listens at an address: Ray itself tries for minutes.

    Raises:
        OSError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


class Cluster:
    """Trains trials in Ray's actors.

    The folder of the search must be the same on all machines: there the trials keep what they go on from, wherever
    that is. A trial whose machine is gone is begun again elsewhere.

    Args:
        task: what is trained.
        workers: actors.
        address: of the cluster, such as `auto`, or `ray://HOST:10001`.
        cores: those of each actor.
        graphics_cards: those of each actor, also parts of one.

    Raises:
        UserError: there is no cluster at the address.
    """

    def __init__(self, task: Task, workers: int, *, address: str, cores: float = 1, graphics_cards: float = 0) -> None:
        self.task, self.workers = task, workers
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"there is no Ray cluster at --address {address} ({reason}); begin one by `ray start --head`"
            ) from None
        if ray.cluster_resources().get("CPU", 0) < cores * workers:
            print(f"the cluster has fewer than {workers} times {cores:g} cores: some workers wait", file=sys.stderr)
        self._threads = max(1, int(cores))
        options = {"num_cpus": cores, "num_gpus": graphics_cards, "max_concurrency": 4}
        self._make = ray.remote(**options)(_Actor)
        self._idle: list[Any] = []
        self._busy: dict[int, Any] = {}
        self._polls: dict[Any, int] = {}
        self._unplaced: dict[int, tuple[Any, Path, bool]] = {}

    def facts(self, config: Path, *, batch_size_given: bool) -> dict[str, Any]:
        """What `_trial.Trials.facts` says.

        Args:
            config: file of the starting configuration.
            batch_size_given: whether its batch size is somebody's choice.

        Raises:
            UserError: the data cannot be read; or the worker is lost.
        """
        actor = self._new()
        try:
            kind, answer = ray.get(actor.facts.remote(str(config.resolve()), batch_size_given))
        except (RayActorError, RayTaskError) as error:
            raise UserError(f"the worker that read the data was lost: {' '.join(str(error).split())[:300]}") from None
        if kind == "refused":
            raise UserError(answer)
        self._idle.append(actor)
        return answer

    @property
    def free(self) -> int:
        """Workers without a trial."""
        return self.workers - len(self._busy)

    def start(self, number: int, folder: Path, *, evaluate: bool = False) -> None:
        """Gives a trial to a worker that is free, to measure on the test split, too, if wanted."""
        actor = self._waiting_actor()
        if actor is None:
            actor = self._new()
            self._unplaced[number] = actor.ready.remote(), folder, evaluate
        self._busy[number] = actor
        actor.run.remote(str(folder.resolve()), evaluate)
        self._listen(number)

    def _new(self) -> Any:
        return self._make.remote(self.task, self._threads)

    def _waiting_actor(self) -> Any:
        """One without a trial whose machine still answers."""
        while self._idle:
            actor = self._idle.pop()
            try:
                ray.get(actor.ready.remote(), timeout=30)
                return actor
            except (RayActorError, GetTimeoutError):
                ray.kill(actor)
        return None

    def _place(self) -> None:
        """Gives trials whose own actor has found no machine yet to actors that are free."""
        for number, (ready, folder, evaluate) in [*self._unplaced.items()]:
            if ray.wait([ready], timeout=0)[0]:
                del self._unplaced[number]
            elif self._idle:
                del self._unplaced[number]
                self._polls = {poll: other for poll, other in self._polls.items() if other != number}
                ray.kill(self._busy.pop(number))
                self.start(number, folder, evaluate=evaluate)

    def _listen(self, number: int) -> None:
        self._polls[self._busy[number].poll.remote()] = number

    def answer(self, number: int, go_on: bool) -> None:
        """Says to a trial whose epoch has ended whether it goes on."""
        self._busy[number].answer.remote(go_on)
        self._listen(number)

    def wait(self, seconds: float) -> list[Event]:
        """The news, as soon as there are some; none after a time without."""
        self._place()
        ready, _ = ray.wait([*self._polls], timeout=seconds)
        return [self._news(reference) for reference in ready]

    def _news(self, reference: Any) -> Event:
        number = self._polls.pop(reference)
        try:
            kind, content = ray.get(reference)
        except (RayActorError, RayTaskError) as error:
            del self._busy[number]
            self._unplaced.pop(number, None)
            reason = " ".join(str(error).split())[:300]
            return Event(number, "died", {"kind": "killed", "reason": f"the worker was lost: {reason}"})
        if kind == "ended":
            self._idle.append(self._busy.pop(number))
        return Event(number, kind, content)

    def close(self) -> None:
        """Ends all workers at once: what a trial has finished is on disk."""
        for actor in [*self._idle, *self._busy.values()]:
            ray.kill(actor)
        self._idle, self._busy, self._polls, self._unplaced = [], {}, {}, {}
