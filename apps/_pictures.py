"""Verbs over pictures: those of a person are read and answered one by one, drawn ones are written.

Of a person's pictures, what cannot be read is named and left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from apps._settings import between
from kerasdl import export, startup
from kerasdl.data import picture_decoding, picture_files
from kerasdl.errors import UserError
from kerasdl.figures import plots
from kerasdl.files import check_output, separate, write_bytes
from kerasdl.models import generator


def squares(pictures: list[Path], size: int, channels: int) -> np.ndarray:
    """The middle squares uint8[n, size, size, channels] of those pictures that can be read; the others are named.

    Args:
        pictures: picture files (JPEG, PNG, GIF, BMP or WebP) and folders of them.
        size: side of the squares, in pixels.
        channels: 3, or 1 for grey.

    Raises:
        UserError: there are no pictures, or none can be read.
    """
    files = picture_files.find(pictures)
    images, _, skipped = picture_files.decode(files, size=size)
    picture_files.report_skipped(skipped, len(files), strict=not len(images))
    return images if channels == 3 else picture_decoding.grey(tf.constant(images)).numpy()


def answers(
    pictures: list[Path], ask: Callable[[bytes], Any], output: Path | None = None, *, flag: str = "--output"
) -> Iterator[tuple[Path, bytes, Any, Path]]:
    """Path, content and answer of each picture, and the file that belongs to it in a folder.

    Args:
        pictures: picture files (JPEG, PNG, GIF, BMP or WebP) and folders of them.
        ask: from the content of a file to an answer.
        output: folder for a PNG file a picture; those of a folder keep their places in it, and equal names get numbers.
        flag: that named it.

    Returns:
        Those that can be read, one after another; the others are a line each on standard error.

    Raises:
        UserError: there are no pictures, or files that would be written exist; later, that none could be read.
    """
    files = picture_files.find(pictures)
    targets = files
    if output is not None:
        check_output(output, folder=True, flag=flag)
        roots = [next((one for one in pictures if one in path.parents), path.parent) for path in files]
        places = [output / path.relative_to(root) for path, root in zip(files, roots, strict=True)]
        targets = separate([path.with_suffix(".png") for path in places], flag=flag)
    return _answers(files, ask, targets)


def _answers(
    files: list[Path], ask: Callable[[bytes], Any], targets: list[Path]
) -> Iterator[tuple[Path, bytes, Any, Path]]:
    failed = 0
    for path, target in zip(files, targets, strict=True):
        reason = ""
        with startup.silenced():  # the libraries behind TensorFlow's decoders write about damaged files on their own
            try:
                content = path.read_bytes()
                answer = ask(content)
            except (OSError, tf.errors.InvalidArgumentError) as error:
                reason = picture_decoding.reason(error)
        if reason:
            failed += 1
            print(f"{path}: left out, {reason}", file=sys.stderr)
            continue
        yield path, content, answer, target
    if failed == len(files):
        raise UserError(f"none of the {len(files)} pictures could be read; expected {picture_decoding.NAMED} files")


def generator_of(model: Path, output: Path, *, seed: int, files: bool = False) -> generator.Generator:
    """The generator of an export, for a verb that draws into a new file, or with `files` into a folder.

    Raises:
        UserError: the seed is out of range, the file exists, or there is no such export.
    """
    between(-(2**31), 2**31 - 1, seed=seed)
    check_output(output, folder=files)
    signatures = export.signatures(model, "generate", "from_latent")
    return generator.Generator(signatures, export.class_names(signatures))


def save(
    pictures: Sequence[bytes], names: Sequence[str], output: Path, *, files: bool, columns: int | None = None
) -> None:
    """Writes drawn pictures, PNG, into one of rows, or with `files` each under its name into a folder.

    Equal names get numbers. `columns` are pictures a row, by default about as many as rows.

    Raises:
        UserError: a file exists.
    """
    if files:
        targets = separate([output / f"{name}.png" for name in names])
        for target, content in zip(targets, pictures, strict=True):
            write_bytes(target, content)
    else:
        images = np.stack([tf.io.decode_png(content).numpy() for content in pictures])
        plots.image_grid(images, output, columns=columns)
