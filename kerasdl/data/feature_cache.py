"""Features of pictures, computed once by a frozen encoder and kept on disk.

A cache is some files in a folder, named by a hash of the encoder and the pictures' size:

    <hash>.float16   the rows, one after the other, and nothing else
    <hash>.json      encoder, size and shape of a row, in clear; row and checksum of each picture, by its content
    <hash>.lock      empty, there while a process fills the cache
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kerasdl.data import picture_files
from kerasdl.errors import UserError
from kerasdl.files import claim, write_text
from kerasdl.training.progress import bar

SAVE_EVERY = 256
"""Pictures after which rows are written: what an interruption can cost at most."""

_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Features:
    """What an encoder makes of pictures: `array[rows[i]]` belongs to `paths[kept[i]]`."""

    array: np.ndarray
    """float16[rows of the cache, ...], a memory map that cannot be written to."""
    rows: np.ndarray
    """int64[kept], indices into `array`; equal pictures share a row."""
    kept: np.ndarray
    """int64[kept], positions of the pictures that could be decoded, in ascending order."""


def features(
    paths: Sequence[Path],
    encode: Callable[[np.ndarray], Any],
    *,
    size: int,
    encoder: str,
    folder: Path,
    batch_size: int = 32,
    strict: bool = False,
    progress: bool,
) -> Features:
    """Gives the features of pictures, of which only those that the cache does not hold are decoded and encoded.

    A picture is known by its content: a changed one is computed anew, a renamed one is not. What the cache holds is
    checked, and what is damaged is computed anew, with a line on standard error. An interrupted call goes on where it
    stopped; of several processes with the same cache one computes and the others wait.

    Pictures are decoded whole, as `kerasdl.data.captioned_pictures.load` does. One that cannot be decoded is left out,
    and the first few are named in a line on standard error.

    Args:
        paths: the pictures' files.
        encode: takes uint8[batch_size, size, size, 3], always as many, of which the last may be black, and returns
            float[batch_size, ...]; each row may depend on its picture alone.
        size: side of the squares in pixels.
        encoder: identifies encoder, weights and preprocessing: features under another string are others.
        folder: where the cache lies; it is created.
        batch_size: number of pictures in a call of `encode`.
        strict: raise at pictures that cannot be decoded, after all others are in the cache.
        progress: show a bar on a terminal, elsewhere lines, see `kerasdl.training.progress.bar`.

    Returns:
        The features, in half precision: values beyond its range are clipped to +-65504.

    Raises:
        UserError: if the cache cannot be written; what it held can still be used. If every picture is broken, or
            under `strict` any.
        ValueError: if size or batch_size is below 1, or `encode` returns another number or shape of rows.

    Source: own.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1; choose a larger one.")
    cache = _Cache(folder, encoder, size)
    with cache.locked(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        contents = list(pool.map(_content, paths))
        cache.read(set(contents))
        new = {content: path for content, path in zip(contents, paths, strict=True) if content not in cache.rows}
        reasons = _compute(cache, new, encode, batch_size, progress) if new else {}
    skipped = [(path, reasons[content]) for content, path in zip(contents, paths, strict=True) if content in reasons]
    kept = [position for position, content in enumerate(contents) if content not in reasons]
    picture_files.report_skipped(skipped, len(paths), strict=strict or not kept)
    rows = [cache.rows[contents[position]][0] for position in kept]
    return Features(cache.array(), np.array(rows, np.int64), np.array(kept, np.int64))


def _content(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return f"unreadable: {path}"  # is left out in the same way as a broken picture, with the decoder's reason


def _compute(
    cache: "_Cache", new: Mapping[str, Path], encode: Callable[[np.ndarray], Any], batch_size: int, progress: bool
) -> dict[str, str]:
    """Adds pictures to the cache; gives the contents that cannot be decoded, each with the reason."""
    reasons: dict[str, str] = {}
    contents: list[str] = []
    rows: list[np.ndarray] = []
    lines = f"Computing the features of {len(new):,} pictures for the cache {cache.index}.", "Computed them"
    with bar(len(new), "Features", *lines, shown=progress) as advance:
        todo = iter(new.items())
        while part := list(itertools.islice(todo, batch_size)):
            images, kept, skipped = picture_files.decode([path for _, path in part], size=cache.size, fit="squash")
            reason_of = dict(skipped)
            reasons |= {content: reason_of[path] for content, path in part if path in reason_of}
            if len(kept):
                contents += [part[position][0] for position in kept]
                rows += list(_encode(images, encode, batch_size))
            if len(contents) >= SAVE_EVERY:
                cache.append(contents, rows)
                contents, rows = [], []
            advance(len(part))
        if contents:
            cache.append(contents, rows)
    return reasons


def _encode(images: np.ndarray, encode: Callable[[np.ndarray], Any], batch_size: int) -> np.ndarray:
    # Batches of one size only: an encoder may be compiled anew for each.
    batch = np.zeros((batch_size, *images.shape[1:]), np.uint8)
    batch[: len(images)] = images
    rows = np.asarray(encode(batch), np.float32)
    if rows.shape[:1] != (batch_size,) or not rows.size:
        raise ValueError(
            f"encode made {list(rows.shape)} of {batch_size} pictures; expected a row for each; return one a picture."
        )
    return np.clip(rows[: len(images)], -_LARGEST, _LARGEST).astype(np.float16)


class _Cache:
    """The files; `rows` gives the row and the checksum of each content that the index lists."""

    def __init__(self, folder: Path, encoder: str, size: int) -> None:
        name = hashlib.sha256(f"{size}/{encoder}".encode()).hexdigest()[:16]
        self.data = folder / f"{name}.float16"
        self.index = folder / f"{name}.json"
        self.size = size
        self.identity = {"encoder": encoder, "size": size}
        self.shape: tuple[int, ...] = ()
        self.rows: dict[str, tuple[int, int]] = {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from appending to the same rows."""
        waiting = f"Waiting for another process that fills the cache {self.index}."
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(claim(self.index.with_suffix(".lock"), wait=waiting))
            except OSError as error:
                raise self._unwritable(error) from None
            yield

    def read(self, wanted: set[str]) -> None:
        """Reads the index, and of what is wanted keeps only the rows that are whole."""
        try:
            content = json.loads(self.index.read_text("utf-8"))
            damaged = content.pop("checksum") != _checksum(content)
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged = True
        if damaged:
            print(f"The index {self.index} is damaged; computing its features anew.", file=sys.stderr)
            # Not overwritten: another process may have it mapped, with its rows in another order.
            self.data.unlink(missing_ok=True)
            return
        self.shape = tuple(content["shape"])
        num_whole = self.data.stat().st_size // (2 * math.prod(self.shape)) if self.data.exists() else 0
        self.rows = {key: (row, checksum) for key, (row, checksum) in content["rows"].items() if row < num_whole}
        array = self.array()
        for key, (row, checksum) in list(self.rows.items()):
            if key in wanted and zlib.crc32(array[row].tobytes()) != checksum:
                del self.rows[key]
        lost = len(content["rows"]) - len(self.rows)
        if lost:
            print(f"{lost} rows of {self.data} are damaged; computing them anew.", file=sys.stderr)

    def append(self, contents: Sequence[str], rows: Sequence[np.ndarray]) -> None:
        """Writes rows behind those of the index, then the index: at no time it lists what is not there."""
        if self.rows and rows[0].shape != self.shape:
            raise ValueError(
                f"encode made rows of shape {list(rows[0].shape)}, and the cache holds {list(self.shape)}; expected one"
                f" shape for the encoder {self.identity['encoder']!r}; name the encoder anew when it changes."
            )
        self.shape = rows[0].shape
        first = self._num_rows()
        places = enumerate((zlib.crc32(row.tobytes()) for row in rows), start=first)
        listed = self.rows | dict(zip(contents, places, strict=True))
        index = {**self.identity, "shape": self.shape, "rows": listed}
        try:
            with self.data.open("r+b" if self.data.exists() else "wb") as stream:
                stream.seek(first * rows[0].nbytes)
                stream.writelines(row.tobytes() for row in rows)
                stream.flush()
                os.fsync(stream.fileno())
            write_text(self.index, json.dumps({**index, "checksum": _checksum(index)}) + "\n")
        except OSError as error:
            raise self._unwritable(error) from None
        self.rows = listed

    def array(self) -> np.ndarray:
        """float16[rows, ...], mapped from the disk."""
        if not self.rows:  # an empty file cannot be mapped
            return np.empty((0, *self.shape), np.float16)
        return np.memmap(self.data, np.float16, "r", shape=(self._num_rows(), *self.shape))

    def _num_rows(self) -> int:
        return 1 + max((row for row, _ in self.rows.values()), default=-1)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"The feature cache {self.data} cannot be written ({error.strerror}); expected room and permission there;"
            " make room and run it again, which goes on where it stopped, or choose another folder."
        )


def _checksum(index: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(index).encode())
