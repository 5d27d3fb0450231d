"""A process beside the server for calls that take long, which gives way to it.

TensorFlow has one pool of threads for the parts of operations, and no order among them: while a large picture is
computed, each operation of a small request waits for parts that take a tenth of a second. A process of lower priority
has a pool of its own, and the operating system gives the processor to whom it is due.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from kerasdl.serving.errors import Code, ServingError

Arrays = Mapping[str, np.ndarray]

NICE = 5
"""Steps of priority below the server: beside a busy one it still gets a quarter of a core."""
_CACHED = 2
_END_SECONDS = 3.0
_LOOK_SECONDS = 0.02


class Lane:
    """Runs calls one at a time; the process begins with the first one, and keeps the models that it has loaded."""

    def __init__(self) -> None:
        self._turn, self._closed = threading.Lock(), False
        self._process: Any = None
        self._connection: Connection | None = None

    def run(
        self, folder: Path, signature: str, inputs: Arrays, cancelled: threading.Event
    ) -> tuple[dict[str, np.ndarray], float]:
        """Runs a signature.

        Args:
            folder: of the version.
            signature: its name.
            inputs: arrays by name, checked.
            cancelled: ends the call.

        Returns:
            The outputs, and the time in seconds that they took, without that of the process' beginning.

        Raises:
            ServingError: as `Servable.run`; CANCELLED when it was ended; RESOURCE_EXHAUSTED when the process was, as
                for want of memory.
        """
        while not self._turn.acquire(timeout=_LOOK_SECONDS):
            _check(cancelled)
        try:
            _check(cancelled)
            connection = self._begun()
            try:
                connection.send((str(folder), signature, dict(inputs)))
                while not connection.poll(_LOOK_SECONDS):
                    if cancelled.is_set():
                        self._end_call(connection)
                        _check(cancelled)
                answer = connection.recv()
            except (OSError, EOFError):
                self._stop()
                raise ServingError(
                    Code.RESOURCE_EXHAUSTED, "The process for long calls was ended, perhaps for want of memory"
                ) from None
        finally:
            self._turn.release()
        if isinstance(answer, ServingError):
            raise answer
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._closed = True
        self._stop()

    def _begun(self) -> Connection:
        if self._closed:
            raise ServingError(Code.CANCELLED, "The server stops")
        if self._connection is None or not self._process.is_alive():
            context = multiprocessing.get_context("spawn")
            self._connection, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other,), daemon=True, name="long-calls")
            self._process.start()
            other.close()
        return self._connection

    def _end_call(self, connection: Connection) -> None:
        """Ends the call under way; the process, too, if an operation does not end in time."""
        connection.send(None)
        if connection.poll(_END_SECONDS):
            connection.recv()
        else:
            self._stop()

    def _stop(self) -> None:
        process, self._process, connection, self._connection = self._process, None, self._connection, None
        if process is not None:
            process.kill()
            process.join()
        if connection is not None:
            connection.close()


def _check(cancelled: threading.Event) -> None:
    if cancelled.is_set():
        raise ServingError(Code.CANCELLED, "Nobody waits for the answer")


def _serve(connection: Connection) -> None:
    """What the process does until its pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the server
    if hasattr(os, "nice"):  # not on Windows
        os.nice(NICE)
    from kerasdl.startup import import_tensorflow

    import_tensorflow(inference=True)
    from kerasdl.frozen import Cancellation
    from kerasdl.serving.servable import Servable

    loaded: dict[tuple[str, int], Servable] = {}

    def answer(folder: str, signature: str, inputs: Arrays, cancellation: Cancellation) -> None:
        try:
            key = (folder, (Path(folder) / "saved_model.pb").stat().st_mtime_ns)
            if key not in loaded:
                while len(loaded) >= _CACHED:
                    loaded.pop(next(iter(loaded)))
                loaded[key] = Servable(Path(folder))
            began = time.monotonic()
            found: Any = loaded[key].run(signature, inputs, cancellation), time.monotonic() - began
        except ServingError as error:
            found = error
        except Exception as error:
            found = ServingError(Code.UNAVAILABLE, f"{folder} cannot be loaded for a long call ({error})")
        with contextlib.suppress(OSError):
            connection.send(found)

    while True:
        try:
            message = connection.recv()
            if message is None:  # of a call that has just ended
                continue
            cancellation = Cancellation()
            call = threading.Thread(target=answer, args=(*message, cancellation), daemon=True)
            call.start()
            while call.is_alive():
                if connection.poll(_LOOK_SECONDS) and connection.recv() is None:
                    cancellation.cancel()
                    call.join()
        except (EOFError, OSError):
            return


class Deadlines:
    """Calls functions after a time, all the same; one thread for any number of them.

    Attributes:
        seconds: the time.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._waiting: deque[tuple[float, list[Callable[[], None]]]] = deque()
        self._changed, self._closed = threading.Condition(), False
        threading.Thread(target=self._work, daemon=True, name="deadlines").start()

    def add(self, function: Callable[[], None]) -> list[Callable[[], None]]:
        """Will call a function, unless the list that this gives is cleared before."""
        entry = [function]
        with self._changed:
            self._waiting.append((time.monotonic() + self.seconds, entry))
            if len(self._waiting) == 1:
                self._changed.notify()
        return entry

    def close(self) -> None:
        """Calls no more functions."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                at, entry = self._waiting[0]
                left = at - time.monotonic()
                if left <= 0:
                    self._waiting.popleft()
            if left > 0:
                time.sleep(left)
            else:
                for function in tuple(entry):
                    function()
