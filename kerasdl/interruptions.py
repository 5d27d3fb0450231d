"""Ctrl-C and SIGTERM end a command in one line that says what can be done next."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

AGAIN = "nothing was lost: run the command again"


class Terminated(KeyboardInterrupt):
    """SIGTERM, as schedulers and preemptible machines send it."""


def end_at_once() -> None:
    """Until `raised` says otherwise both signals end the process: for the imports at the start of a command."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, f"interrupted; {AGAIN}\n".encode())
    os._exit(128 + number)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Within it Ctrl-C raises KeyboardInterrupt and SIGTERM `Terminated`; a handler that was ignoring them stays."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if before[signal.SIGINT] != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if before[signal.SIGTERM] != signal.SIG_IGN:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def status(stop: KeyboardInterrupt) -> int:
    """The exit status that shells give: 143 for SIGTERM, 130 for Ctrl-C."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
