"""Writing files so that a crash, a kill or a full disk never leaves half of one behind."""

import contextlib
import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what was written there takes its place when the block succeeds.

    What a killed process was writing into the folder is removed, see `tidy`.

    Works for a file and for a folder (a folder must not exist yet under its final name). The data is flushed to
    the disk before the rename. When the block raises, the temporary file or folder is removed and `path` is
    as it was. The temporary name keeps the suffix, because Keras and matplotlib choose the format by it.

    Args:
        path: where the result is to stand; its folder is created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _tidy_once(path.parent)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    with claim(_lock_of(temporary), wait=True):  # a process of another machine may have the same number
        _remove(temporary)
        try:
            yield temporary
            if temporary.is_file():
                with temporary.open("rb") as stream:
                    os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            _remove(temporary)
            raise


def _lock_of(temporary: Path) -> Path:
    return temporary.with_name(temporary.name + ".lock")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Removes from a folder what `atomic_path` of killed processes left: nobody has its lock any more."""
    names = {path.name for path in folder.iterdir()}
    for name in sorted(names):
        found = re.fullmatch(r"(\.\d+-(.+?))(\.lock)?", name)
        # Nobody's own file: it has a lock beside it, or stands beside the file that it was to become.
        if found and ({found[1] + ".lock", found[2]} & names):
            with contextlib.suppress(OSError), claim(_lock_of(folder / found[1])) as mine:
                if mine:
                    _remove(folder / found[1])


_tidy_once = functools.cache(tidy)


@contextlib.contextmanager
def claim(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Takes a lock while the block runs, and gives whether it was to be had; that of a killed process is.

    Args:
        path: an empty file that stands for it, in a folder that exists; it is removed at the end.
        wait: until it is to be had.
    """
    taken = FileLock(path)
    try:
        taken.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)  # before the release: whoever waits for this file makes a new one
        taken.release()


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
