"""A person's own running text: one file, or a folder of them; prose, poems or source code."""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from kerasdl.data import folders
from kerasdl.errors import UserError

_HEAD_BYTES = 8192


def read(path: Path, *, suffixes: Collection[str] | None = None) -> str:
    r"""Reads a text file, or all text files of a folder and its sub-folders, joined by a newline.

    In a folder the order is that of the names, a folder's own files before those of its sub-folders; links are
    followed. Hidden and empty files are left out, see `folders.is_left_over`, and so is what is no UTF-8 text; the
    latter is counted in a line on standard error.

    Args:
        path: file or folder; text in UTF-8, with or without a byte order mark.
        suffixes: only files of a folder whose names end so, such as {".txt", ".md"}, in upper or lower case. None
            for all; a single file is read whatever its name.

    Returns:
        The text, with `\n` as the only line ending.

    Raises:
        UserError: if the path is missing; the file is empty or no UTF-8 text (a zero byte marks a binary file); or
            the folder holds no text.
    """
    if path.is_dir():
        return _read_folder(path, suffixes)
    if not path.exists():
        raise UserError(f"There is no file or folder {path}; expected UTF-8 text; check the path.")
    text = _read_file(path)
    if not text.strip():
        raise UserError(f"{path} is empty; expected UTF-8 text; check the path, or write something into the file.")
    return text


def lines(texts: Sequence[str], file: Path | None) -> list[str]:
    """Texts of a command line: its words, or the lines of a file, or those of standard input.

    Args:
        texts: given as words.
        file: UTF-8, one text a line.

    Raises:
        UserError: both are given; none is; or the input is no UTF-8 text.
    """
    if texts and file is not None:
        raise UserError("there are texts and --file; give one of them")
    if texts:
        return [text.encode(errors="replace").decode() for text in texts]  # a terminal may send any bytes
    if file is not None:
        whole = read(file)
    else:
        if sys.stdin.isatty():
            print("texts, one a line; Ctrl-D ends", file=sys.stderr)
        given = sys.stdin.buffer.read()
        try:
            whole = given.decode("utf-8")
        except UnicodeDecodeError as error:
            line = given.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"standard input is no UTF-8 text: line {line} has 0x{given[error.start]:02x}; expected one text a line"
            ) from None
        if not whole:
            raise UserError("no text given; expected texts as arguments, --file, or standard input with one a line")
    return whole.removesuffix("\n").split("\n")


def _read_folder(folder: Path, suffixes: Collection[str] | None) -> str:
    endings = None if suffixes is None else {suffix.lower() for suffix in suffixes}
    found, skipped = folders.files(folder)
    files = [path for path in found if endings is None or path.suffix.lower() in endings]
    count = len(files) + len(skipped)
    texts: list[str] = []
    for path in files:
        try:
            texts.append(_read_file(path))
        except UserError:
            skipped.append(path)
    texts = [text for text in texts if text.strip()]
    if not texts:
        kind = "" if suffixes is None else f" whose name ends in {', '.join(sorted(suffixes))}"
        raise UserError(
            f"{folder} holds no text ({count} files looked at, {len(skipped)} of them no UTF-8 text); expected"
            f" at least one UTF-8 text file{kind}; check the path, or convert the files."
        )
    if skipped:
        print(f"Left out {len(skipped)} of {count} files, no UTF-8 text, such as {skipped[0]}.", file=sys.stderr)
    return "\n".join(texts)


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            data = stream.read(_HEAD_BYTES)
            # A film or a model's weights are known as binary without reading all of it.
            if b"\0" not in data:
                data += stream.read()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); expected UTF-8 text; check its permissions."
        ) from None
    broken = data.find(b"\0")
    if broken < 0:
        try:
            return _normalize(data.decode("utf-8").removeprefix("\N{BYTE ORDER MARK}"))
        except UnicodeDecodeError as error:
            broken = error.start
    line = _normalize(data[:broken].decode("utf-8", "replace")).count("\n") + 1
    position = broken - max(data.rfind(b"\n", 0, broken), data.rfind(b"\r", 0, broken))
    raise UserError(
        f"{path} is no UTF-8 text: line {line} has 0x{data[broken]:02x} at byte {position} of the line; expected text"
        " in UTF-8; save the file anew in that encoding."
    )


def _normalize(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
