"""What long work prints: a bar on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

SHORT = 2.0
"""Seconds of work without a first line that show no bar."""

FIRST, NEXT = 10.0, 30.0
"""Seconds to the first line about the way in a log file, and from that to the next."""


def verbosity() -> int:
    """Keras' `verbose`: a progress bar on a terminal, one plain line an epoch in a log file."""
    return 1 if sys.stdout.isatty() else 2


@contextmanager
def bar(total: int, name: str, begin: str = "", done: str = "", *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; in a log file lines that say how far it is and how long it takes yet.

    Without a first line, work that is soon done shows nothing.

    Args:
        total: steps of the work.
        name: what stands before the bar.
        begin: the first line in a log file.
        done: what its last line says, before "in 3 s.".
        shown: False prints nothing.

    Yields:
        A function to call with the steps that were done.
    """
    console = Console(stderr=True)
    progress = Progress(console=console, transient=not begin)
    task = progress.add_task(name, total=total)
    on_terminal, in_log = shown and console.is_terminal, shown and not console.is_terminal
    start = time.monotonic()
    finished, following = 0, start + FIRST

    def advance(steps: int) -> None:
        nonlocal finished, following
        finished += steps
        progress.update(task, completed=finished)
        now = time.monotonic()
        if on_terminal and now - start > SHORT:
            progress.start()
        if in_log and now > following and finished < total:
            following = now + NEXT
            left = (now - start) / finished * (total - finished)
            print(f"{name}: {finished:,} of {total:,}, about {left:.0f} s to go.", file=sys.stderr, flush=True)

    if on_terminal and begin:
        progress.start()
    if in_log and begin:
        print(begin, file=sys.stderr, flush=True)
    try:
        yield advance
    finally:
        if progress.live.is_started:
            progress.stop()
    if in_log and done:
        print(f"{done} in {time.monotonic() - start:.0f} s.", file=sys.stderr)
