"""Threads that run calls of models: some for each model, a limit on what waits, an end of what nobody waits for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

from kerasdl.frozen import Cancellation
from kerasdl.serving.errors import Code, ServingError

T = TypeVar("T")


class Cancels(Protocol):
    """What ends work that is under way."""

    def cancel(self) -> None:
        """Ends it."""


class Call(Generic[T]):
    """Work that was handed in.

    Attributes:
        future: receives what it returns or raises.

    Args:
        cancellation: ends it when it is under way.
    """

    def __init__(self, cancellation: Cancels) -> None:
        self.future: Future[T] = Future()
        self._cancellation = cancellation

    async def result(self) -> T:
        """Waits for what it returns or raises; ends it when nobody waits any more."""
        try:
            return await asyncio.wrap_future(self.future)
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Takes it back, or ends it before its next operation; nothing happens to work that is done."""
        if not self.future.cancel() and not self.future.done():
            self._cancellation.cancel()


class Workers:
    """Runs work in threads, those of a model apart, so that the load of one model leaves the others answering.

    Args:
        threads: of each model, which compute beside each other.
        waiting: calls of a model that may wait for a thread; a further one is refused.
    """

    def __init__(self, threads: int, waiting: int) -> None:
        self._threads, self._limit = threads, threads + waiting
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._calls: dict[Call[Any], str] = {}
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def submit(self, model: str, work: Callable[[Cancellation], T]) -> Call[T]:
        """Hands in work for a model.

        Args:
            model: whose threads run it.
            work: takes what ends it.

        Raises:
            ServingError: RESOURCE_EXHAUSTED, when too much waits.
        """
        cancellation = Cancellation()
        call: Call[T] = Call(cancellation)
        self.admit(model, call)

        def run() -> None:
            if call.future.set_running_or_notify_cancel():
                try:
                    call.future.set_result(work(cancellation))
                except Exception as error:
                    call.future.set_exception(error)

        self.start(model, run)
        return call

    def admit(self, model: str, call: Call[Any]) -> None:
        """Counts a call until it is done.

        Raises:
            ServingError: RESOURCE_EXHAUSTED, when too much waits.
        """
        with self._lock:
            if self._counts[model] >= self._limit:
                raise ServingError(
                    Code.RESOURCE_EXHAUSTED, f"{self._counts[model]} requests of {model} run or wait; try again later"
                )
            self._counts[model] += 1
            self._calls[call] = model
        call.future.add_done_callback(lambda _: self._ended(call))

    def start(self, model: str, work: Callable[[], None]) -> None:
        """Runs work that counts its calls itself in a thread of a model."""
        with self._lock:
            pool = self._pools.get(model)
            if pool is None:
                pool = self._pools[model] = ThreadPoolExecutor(self._threads, thread_name_prefix=f"model-{model}")
        pool.submit(work)

    def _ended(self, call: Call[Any]) -> None:
        with self._lock:
            self._counts[self._calls.pop(call)] -= 1

    def full(self) -> dict[str, str]:
        """Models of which a further request would be refused now, each with the reason."""
        with self._lock:
            return {
                model: f"{count} requests run or wait" for model, count in self._counts.items() if count >= self._limit
            }

    def close(self, seconds: float) -> bool:
        """Ends all work; gives whether that was done within a time."""
        with self._lock:
            calls, pools = list(self._calls), list(self._pools.values())
        for call in calls:
            call.cancel()
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        until = time.monotonic() + seconds
        while self._calls and time.monotonic() < until:
            time.sleep(0.01)
        return not self._calls
