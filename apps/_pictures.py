"""A verb over pictures: each is read and answered by itself, and what cannot be read is named and left out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from kerasdl.data import picture_files
from kerasdl.errors import UserError


def answers(pictures: list[Path], ask: Callable[[bytes], Any]) -> Iterator[tuple[Path, bytes, Any]]:
    """Path, content and answer of each picture.

    Args:
        pictures: picture files and folders of them.
        ask: from the content of a file to an answer.

    Returns:
        Those that can be read, one after another; the others are a line each on standard error.

    Raises:
        UserError: there are no pictures; later, that none could be read.
    """
    return _answers(picture_files.find(pictures), ask)


def _answers(files: list[Path], ask: Callable[[bytes], Any]) -> Iterator[tuple[Path, bytes, Any]]:
    failed = 0
    for path in files:
        try:
            content = path.read_bytes()
            answer = ask(content)
        except (OSError, tf.errors.InvalidArgumentError) as error:
            failed += 1
            reason = error if isinstance(error, OSError) else "no JPEG, PNG, GIF or BMP that can be decoded"
            print(f"{path}: left out, {reason}", file=sys.stderr)
            continue
        yield path, content, answer
    if failed == len(files):
        raise UserError(f"none of the {len(files)} pictures could be read; expected JPEG, PNG, GIF or BMP files")
