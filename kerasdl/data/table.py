"""A person's own labelled texts: a CSV, TSV or JSON Lines file with a column of texts and one of labels.

    text,label                                 {"text": "A joy.", "label": "good"}
    "Long, but a joy.",good                    {"text": "I left early.", "label": "bad"}

`read` reads the file; `kerasdl.data.text_data` divides its rows.
"""

import collections
import csv
import difflib
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from kerasdl.data import text_file
from kerasdl.errors import UserError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")

_Row = tuple[int, dict[str, Any]]
"""The line on which a row begins, and its columns."""


def read(path: Path, *, text_column: str, label_column: str) -> tuple[list[str], list[str]]:
    """Reads the texts and labels of a table; any number of classes, any language.

    The ending of the name decides the format: .csv and .tsv (a header; a field with a separator, a line break or a
    leading double quote stands in double quotes, those inside doubled), .jsonl or .ndjson (a JSON object a line).
    UTF-8, with or without a byte order mark. Blank lines are left out, and blanks around labels and column names.

    Args:
        path: the file.
        text_column: the column, or key, of the texts; an empty text is allowed, and null is one.
        label_column: the column, or key, of the labels; JSON's numbers and booleans are labels as they are written.

    Returns:
        texts and labels, of equal length, in the order of the file.

    Raises:
        UserError: if the file is missing, empty, not UTF-8 or of another format; lacks a column; has a row that does
            not fit the header, is no JSON object, or lacks its label; has one class only, or a class of one row.
    """
    rows = _rows(path, {text_column: "texts", label_column: "labels"})
    texts = [_text(path, line, row, text_column) for line, row in rows]
    labels = [_label(path, line, row, label_column) for line, row in rows]
    _check_classes(path, labels, [line for line, _ in rows])
    return texts, labels


def read_texts(path: Path, *, text_column: str) -> list[str]:
    """Reads texts without labels: the column of a table, see `read`, or the lines of any other file that are not blank.

    Args:
        path: the file.
        text_column: the column, or key, of the texts in a table.

    Returns:
        The texts, in the order of the file.

    Raises:
        UserError: if the file is missing, empty or not UTF-8; or a table that lacks the column, or has a row that does
            not fit the header or is no JSON object.
    """
    if path.suffix.lower() in (*_SEPARATORS, *_JSON_LINES):
        return [_text(path, line, row, text_column) for line, row in _rows(path, {text_column: "texts"})]
    return [line for line in text_file.read(path).split("\n") if line.strip()]


def _rows(path: Path, columns_of: dict[str, str]) -> list[_Row]:
    """The rows of a table that has these columns: name -> what it holds."""
    suffix = path.suffix.lower()
    if suffix not in (*_SEPARATORS, *_JSON_LINES):
        raise UserError(
            f"{path} is of no known format; expected a name that ends in .csv, .tsv or .jsonl; convert or rename it."
        )
    if not path.is_file():
        wanted = " and ".join(columns_of.values())
        raise UserError(f"There is no file {path}; expected a table of {wanted}; check the path.")
    content = text_file.read(path)
    if suffix in _SEPARATORS:
        rows = list(separated_rows(path, content, _SEPARATORS[suffix]))
    else:
        rows = list(_json_rows(path, content))
    if not rows:
        raise UserError(f"{path} has a header and no rows; expected a row for each text; add them.")
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    for column, content_of in columns_of.items():
        if column not in columns:
            hint = _hint(column, columns)
            if suffix in _SEPARATORS and len(columns) == 1:
                # Spreadsheets of many countries separate by semicolons.
                hint = f", and separate columns by {'a comma' if suffix == '.csv' else 'a tab'}"
            raise UserError(
                f"{path} has no column '{column}'; expected one of {', '.join(columns)}; name the one of the"
                f" {content_of}{hint}."
            )
    return rows


def separated_rows(path: Path, content: str, separator: str) -> Iterator[_Row]:
    """Reads the rows of a CSV or TSV file; blank lines are left out, and blanks around column names.

    Args:
        path: the file, for messages.
        content: its text.
        separator: stands between the columns.

    Yields:
        The line on which a row begins, and its fields by column.

    Raises:
        UserError: if a row does not fit the header, or its double quotes do not pair.
    """
    # Strict, since otherwise a quote that is never closed takes in the rest of the file.
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    line = 1
    limit = csv.field_size_limit(len(content))
    try:
        for row in reader:
            if row and len(row) == len(header):
                yield line, dict(zip(header, row, strict=True))
            elif row and header:
                raise UserError(
                    f"{path}, line {line}: the row has {len(row)} fields; expected {len(header)} ({', '.join(header)});"
                    " add the missing ones, or put a text that holds the separator in double quotes."
                )
            elif row:
                header = [name.strip() for name in row]
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: the row cannot be read ({error}); expected a field that begins with a double quote"
            " to end with one, and those inside to be doubled; correct the quotes."
        ) from None
    finally:
        csv.field_size_limit(limit)


def _json_rows(path: Path, content: str) -> Iterator[_Row]:
    for line, written in enumerate(content.split("\n"), start=1):
        if not written.strip():
            continue
        try:
            row = json.loads(written)
        except json.JSONDecodeError as error:
            row, found = None, f"is no JSON ({error.msg} at character {error.pos + 1})"
        else:
            found = f"is {_kind(row)}"
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {line}: the line {found}; expected a JSON object with text and label; correct the line."
            )
        yield line, row


def _kind(value: Any) -> str:
    kinds = {list: "a list", dict: "an object", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _text(path: Path, line: int, row: dict[str, Any], column: str) -> str:
    if column not in row:
        raise UserError(f"{path}, line {line}: there is no '{column}'; expected a text; add it, or delete the line.")
    text = row[column]
    if not isinstance(text, str | None):
        raise UserError(
            f"{path}, line {line}: '{column}' is {_kind(text)}; expected a string; put it in double quotes, or name"
            " the column of the texts."
        )
    return _encodable(text or "")


def _label(path: Path, line: int, row: dict[str, Any], column: str) -> str:
    label = row.get(column)
    if isinstance(label, list | dict):
        raise UserError(
            f"{path}, line {line}: '{column}' is {_kind(label)}; expected one label, a string or a number; choose one."
        )
    if isinstance(label, bool | int | float):
        label = json.dumps(label)
    label = (label or "").strip()
    if not label:
        raise UserError(
            f"{path}, line {line}: the row has no label in '{column}'; expected one in each row; add it, or delete"
            " the row."
        )
    return _encodable(label)


def _encodable(text: str) -> str:
    r"""JSON can hold half of a character, such as a cut emoji's \ud83d, which UTF-8 cannot."""
    return text.encode(errors="replace").decode()


def _check_classes(path: Path, labels: list[str], lines: list[int]) -> None:
    counts = collections.Counter(labels)
    if len(counts) == 1:
        raise UserError(
            f"{path} has only the label '{labels[0]}'; expected at least two classes; add rows of another, or name"
            " the column of the labels."
        )
    single = [label for label, count in counts.items() if count == 1]
    if single:
        known = [label for label in counts if label not in single]
        others = f", and so do {len(single) - 1} other labels" if single[1:] else ""
        raise UserError(
            f"{path}: the label '{single[0]}' stands in one row only (line {lines[labels.index(single[0])]}){others};"
            " expected at least 2 rows of each class, one to train on and one to validate, and better 10 or more;"
            f" correct the label, add rows, or delete it{_hint(single[0], known)}."
        )


def _hint(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f" (did you mean '{close[0]}'?)" if close else ""
