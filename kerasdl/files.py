"""Writing files so that a crash, a kill or a full disk never leaves half of one behind."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what was written there takes its place when the block succeeds.

    Works for a file and for a folder (a folder must not exist yet under its final name). The data is flushed to
    the disk before the rename. When the block raises, the temporary file or folder is removed and `path` is
    as it was. The temporary name keeps the suffix, because Keras and matplotlib choose the format by it.

    Args:
        path: where the result is to stand; its folder is created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def lock(path: Path, waiting: str) -> AbstractContextManager[Any]:
    """Takes a lock that one process at a time has; the others wait, and say so in a line on standard error.

    Args:
        path: an empty file that stands for it; it is created.
        waiting: the line.

    Returns:
        A context that releases the lock at its end.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    taken = FileLock(path)
    try:
        return taken.acquire(blocking=False)
    except Timeout:
        print(waiting, file=sys.stderr)
        return taken.acquire()


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically, two spaces of indent, keys in their order; paths become strings."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
