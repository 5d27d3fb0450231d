"""What long work prints: a bar on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress


def verbosity() -> int:
    """Keras' `verbose`: a progress bar on a terminal, one plain line an epoch in a log file."""
    return 1 if sys.stdout.isatty() else 2


@contextmanager
def bar(total: int, name: str, begin: str, done: str, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, or in a log file a line at the begin and one at the end.

    Args:
        total: steps of the work.
        name: what stands before the bar.
        begin: the first line.
        done: what the last line says, before "in 3 s.".
        shown: False prints nothing.

    Yields:
        A function to call with the steps that were done.
    """
    console = Console(stderr=True)
    start = time.monotonic()
    if shown and not console.is_terminal:
        print(begin, file=sys.stderr)
    with Progress(console=console, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task(name, total=total)
        yield lambda steps: progress.advance(task, steps)
    if shown and not console.is_terminal:
        print(f"{done} in {time.monotonic() - start:.0f} s.", file=sys.stderr)
