"""A process beside the server for bodies of millions of numbers, which would hold Python's interpreter for seconds."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from kerasdl.serving.errors import Code, ServingError

T = TypeVar("T")


class Apart:
    """Runs functions in a process of its own, one at a time, each in a fresh one: so its memory comes back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """The value of a function of a module that imports no TensorFlow.

        Raises:
            ServingError: RESOURCE_EXHAUSTED, when the process was ended, as for want of memory.
        """
        with self._lock:
            if self._pool is None:
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(
                    max_workers=1,
                    mp_context=context,
                    initializer=signal.signal,  # Ctrl-C in a terminal is for the server
                    initargs=(signal.SIGINT, signal.SIG_IGN),
                    max_tasks_per_child=1,
                )
            pool = self._pool
        try:
            return await asyncio.wrap_future(pool.submit(function, *arguments))
        except BrokenProcessPool:
            with self._lock:
                if self._pool is pool:
                    self._pool = None
            raise ServingError(
                Code.RESOURCE_EXHAUSTED, "The process that reads large requests was ended, perhaps for want of memory"
            ) from None

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            if self._pool is not None:
                for process in list((self._pool._processes or {}).values()):
                    process.kill()
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = None
