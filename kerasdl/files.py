"""Writing files so that a crash, a kill or a full disk never leaves half of one, and what stands there is kept."""

import contextlib
import csv
import errno
import functools
import io
import itertools
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kerasdl.errors import UserError

_TEMPORARY = ".kerasdl-"  # nobody's own file begins so


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
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
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


def is_full(error: BaseException) -> bool:
    """Whether a file could not be written, also by TensorFlow, since the disk is full or a quota is used up."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def _lock_of(temporary: Path) -> Path:
    return temporary.with_name(temporary.name + ".lock")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Removes from a folder what `atomic_path` of killed processes left: nobody has its lock any more."""
    left = {path.name.removesuffix(".lock") for path in folder.iterdir() if path.name.startswith(_TEMPORARY)}
    for name in sorted(left):
        with contextlib.suppress(OSError), claim(_lock_of(folder / name)) as mine:
            if mine:
                _remove(folder / name)


_tidy_once = functools.cache(tidy)


@contextlib.contextmanager
def claim(path: Path, *, wait: bool | str = False) -> Iterator[bool]:
    """Takes a lock while the block runs, and gives whether it was to be had; that of a killed process is.

    Args:
        path: an empty file that stands for it; its folder is created, and it is removed at the end.
        wait: until it is to be had; a text is a line that says so on standard error, if another process has it.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    taken = FileLock(path)
    try:
        taken.acquire(blocking=wait is True)
    except Timeout:
        if not wait:
            yield False
            return
        print(wait, file=sys.stderr)
        taken.acquire()
    try:
        yield True
    finally:
        with contextlib.suppress(PermissionError):  # Windows, where the release removes it
            path.unlink(missing_ok=True)  # before the release: whoever waits for this file makes a new one
        taken.release()


def check_output(path: Path | None, *, folder: bool = False, flag: str = "--output") -> None:
    """Checks a place that a command line was given to write to, before anything is computed.

    Args:
        path: a file that is to be new, or with `folder` a folder, there or not; None passes.
        folder: what it is to be.
        flag: that named it.

    Raises:
        UserError: the file exists, for nothing is overwritten; or something of the other kind stands there.
    """
    if path is None:
        return
    if path.is_dir() and not folder:
        raise UserError(f"{path} is a folder; expected a file: give one by {flag}")
    above = next((one for one in (path, *path.parents) if os.path.lexists(one)), path)
    if not above.is_dir() and (folder or above != path):
        raise UserError(f"{above} is no folder; expected one: give another {flag}")
    if not folder and os.path.lexists(path):
        raise UserError(f"{path} exists, and nothing is overwritten; give another {flag}, or remove it")


def separate(paths: Sequence[Path], *, flag: str = "--output") -> list[Path]:
    """Names for files that one command writes: none equals another, and none exists.

    Args:
        paths: the names that the files would have by themselves.
        flag: that named their folder.

    Returns:
        The names in the same order. Of equal ones, also where they differ in case or in the Unicode form alone, which
        some disks take for equal, all but the first get a number: `a.png`, `a-2.png`.

    Raises:
        UserError: see `check_output`.
    """
    taken: set[str] = set()
    found = []
    for path in paths:
        numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
        free = next(one for one in itertools.chain([path], numbered) if _folded(one) not in taken)
        taken.add(_folded(free))
        check_output(free, flag=flag)
        found.append(free)
    return found


def _folded(path: Path) -> str:
    return unicodedata.normalize("NFC", str(path)).casefold()


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def as_json(content: Any, **options: Any) -> str:
    """Valid JSON, which has no number for nan and inf: they become null; paths become strings.

    Args:
        content: what is to be written.
        **options: more of those of `json.dumps`.
    """
    finite = json.loads(json.dumps(content, default=_plain), parse_constant=lambda name: None)
    return json.dumps(finite, **options)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if type(value).__module__ == "numpy" and value.ndim == 0:  # which a command line does not import for its help
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def as_csv(values: Sequence[Any]) -> str:
    """A line of CSV, without its end; what holds a comma, a quotation mark or a line break stands in quotes."""
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\r\n").writerow(values)  # only what the end holds is quoted, in Python 3.11
    return line.getvalue().removesuffix("\r\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: a file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: it is not there.
        UserError: it cannot be read, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); expected an object in UTF-8; restore it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a JSON object; restore it")
    return content


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically, two spaces of indent, keys in their order; see `as_json`."""
    write_text(path, as_json(content, indent=2, ensure_ascii=False) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
