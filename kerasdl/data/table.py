"""A person's own labelled texts: a CSV, TSV or JSON Lines file with a column of texts and one of labels.

    text,label                                 {"text": "A joy.", "label": "good"}
    "Long, but a joy.",good                    {"text": "I left early.", "label": "bad"}

`read` reads the file; `kerasdl.data.text_data` divides its rows.
"""

import collections
import csv
import difflib
import io
import itertools
import json
import re
import sys
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from kerasdl.data import text_file
from kerasdl.errors import UserError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")

_DIALECTS: dict[str, dict[str, Any]] = {
    "none": {"quoting": csv.QUOTE_NONE},
    # Strict, since otherwise a quote that is never closed takes in the rest of the file.
    "double": {"strict": True},
    "backslash": {"strict": True, "escapechar": "\\"},
}
_HOLDS_SEPARATOR = {
    "none": "take the separator out of its text, or give --quoting double if double quotes enclose fields.",
    "double": "put a text that holds the separator in double quotes, without a space before them.",
    "backslash": "put a text that holds the separator in double quotes, without a space before them.",
}

_THOUSANDS = re.compile(r",(?<=\d,)(?=\d{3}\b)")  # as in 1,000 dollars

_Row = tuple[int, dict[str, Any]]
"""The line on which a row begins, and its columns."""
_Cells = tuple[int, list[str]]
"""The line on which a row begins, and its fields."""


def read(path: Path, *, text_column: str, label_column: str, quoting: str = "auto") -> tuple[list[str], list[str]]:
    """Reads the texts and labels of a table; any number of classes, any language.

    The ending of the name decides the format: .csv and .tsv (a header; fields by `quoting`), .jsonl or .ndjson (a JSON
    object a line). UTF-8, with or without a byte order mark. Blank lines are left out, and blanks around labels and
    column names. Texts that stand in several rows are counted in a line on standard error, and so are those with
    several labels.

    Args:
        path: the file.
        text_column: the column, or key, of the texts; an empty text is allowed, and null is one.
        label_column: the column, or key, of the labels; JSON's numbers and booleans are labels as they are written.
        quoting: what double quotes mean in .csv and .tsv. `none`: nothing, a row is a line. `double`: they enclose
            fields that may hold separators and line breaks, and those inside are doubled (RFC 4180). `backslash`: the
            same, but for a backslash before those inside (Spark, MySQL). `auto`: in .csv `double`, in .tsv `none`; if
            the whole file shows something else, that, and a line on standard error says so.

    Returns:
        texts and labels, of equal length, in the order of the file.

    Raises:
        UserError: if the file is missing, empty, not UTF-8 or of another format; lacks a column; has a row that does
            not fit the header, is no JSON object, or lacks its label; has two columns of one name, or a field in
            quotes that seems to hold rows; has one class only, or a class of one row.
    """
    rows = _rows(path, {text_column: "texts", label_column: "labels"}, quoting)
    texts = [_text(path, line, row, text_column) for line, row in rows]
    labels = [_label(path, line, row, label_column) for line, row in rows]
    lines = [line for line, _ in rows]
    _check_classes(path, labels, lines)
    _report_repeated(path, texts, labels, lines)
    return texts, labels


def is_table(path: Path) -> bool:
    """Whether a file is called as a table is; texts stand one a line in others."""
    return path.suffix.lower() in (*_SEPARATORS, *_JSON_LINES)


def read_texts(path: Path, *, text_column: str, quoting: str = "auto") -> dict[int, str]:
    """Reads texts without labels: the column of a table, see `read`, or the lines of any other file that are not blank.

    Args:
        path: the file.
        text_column: the column, or key, of the texts in a table.
        quoting: what double quotes mean in a table, see `read`.

    Returns:
        The texts by the line on which their row begins, in the order of the file.

    Raises:
        UserError: if the file is missing, empty or not UTF-8; or a table that lacks the column, or has a row that does
            not fit the header or is no JSON object.
    """
    if is_table(path):
        rows = _rows(path, {text_column: "texts"}, quoting)
        return {line: _text(path, line, row, text_column) for line, row in rows}
    return {line: text for line, text in enumerate(text_file.read(path).split("\n"), start=1) if text.strip()}


def given(texts: Sequence[str], file: Path | None, *, text_column: str, quoting: str) -> list[tuple[int | None, str]]:
    """Texts of a command line: its words, or those of a file, which may be a table, or of standard input.

    Args:
        texts: given as words.
        file: a table, see `read_texts`, or one text a line.
        text_column: "text", but for a table.
        quoting: "auto", but for a table.

    Returns:
        The texts; those of a table with the line on which their row begins, others with None.

    Raises:
        UserError: see `read_texts` and `text_file.lines`; or a column or quoting is given without a table.
    """
    if file is not None and not texts and is_table(file):
        return [*read_texts(file, text_column=text_column, quoting=quoting).items()]
    if (text_column, quoting) != ("text", "auto"):
        raise UserError("--text-column and --quoting are for a table: a --file that ends in .csv, .tsv or .jsonl")
    return [(None, text) for text in text_file.lines(texts, file)]


def _rows(path: Path, columns_of: dict[str, str], quoting: str) -> list[_Row]:
    """The rows of a table that has these columns: name -> what it holds."""
    suffix = path.suffix.lower()
    if not is_table(path):
        raise UserError(
            f"{path} is of no known format; expected a name that ends in .csv, .tsv or .jsonl; convert or rename it."
        )
    if not path.is_file():
        wanted = " and ".join(columns_of.values())
        raise UserError(f"There is no file {path}; expected a table of {wanted}; check the path.")
    content = text_file.read(path)
    if suffix in _SEPARATORS:
        rows = separated_rows(path, content, _SEPARATORS[suffix], quoting)
    else:
        rows = list(_json_rows(path, content))
    if not rows:
        raise UserError(f"{path} has a header and no rows; expected a row for each text; add them.")
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    for column, content_of in columns_of.items():
        if column not in columns:
            hint = _hint(column, columns)
            if suffix in _SEPARATORS and (len(columns) == 1 or any(";" in name for name in columns)):
                # Spreadsheets of many countries separate by semicolons.
                hint = f", and separate columns by {'a comma' if suffix == '.csv' else 'a tab'}"
            raise UserError(
                f"{path} has no column '{column}'; expected one of {', '.join(columns)}; name the one of the"
                f" {content_of}{hint}."
            )
    return rows


def separated_rows(path: Path, content: str, separator: str, quoting: str = "auto") -> list[_Row]:
    r"""Reads the rows of a CSV or TSV file; blank lines are left out, and blanks around column names.

    Args:
        path: the file, for messages.
        content: its text, with `\n` as the only line ending.
        separator: stands between the columns.
        quoting: what double quotes mean, see `read`.

    Returns:
        For each row the line on which it begins, and its fields by column.

    Raises:
        UserError: if a row does not fit the header, two columns have one name, double quotes do not pair, or under
            `auto` a field in quotes holds lines that look like rows.
    """
    lines = content.split("\n")
    if quoting == "auto":
        quoting, rows = _decided(path, content, separator)
        long = [line for line, cells in rows if len(cells) == 1 and "\n" in cells[0]]
        if long:  # without a separator nothing shows whether a quote has taken in rows
            print(
                f"{path}: {len(long)} texts hold line breaks, the first at line {long[0]}; give --quoting none if"
                " quotes belong to the texts.",
                file=sys.stderr,
            )
    else:
        rows = _parsed(path, content, separator, quoting)
        if swallowing := _swallowing(rows, lines, separator):
            print(
                f"{path}: {len(swallowing)} fields hold lines that look like rows, the first at line {swallowing[0]};"
                f" they are read as texts, as --quoting {quoting} has it.",
                file=sys.stderr,
            )
    header = [name.strip() for name in rows[0][1]]
    return [(line, dict(zip(header, cells, strict=True))) for line, cells in rows[1:]]


class _RowError(UserError):
    """A row that cannot be read."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}, line {line}: {problem}")
        self.line = line


def _decided(path: Path, content: str, separator: str) -> tuple[str, list[_Cells]]:
    """What double quotes mean: by the rule of the format, unless the whole file shows something else."""
    tabs = separator == "\t"
    rule, *others = ("none", "double", "backslash") if tabs else ("double", "backslash")
    differ = {"double": '"' in content, "backslash": "\\" in content}
    others = [other for other in others if differ[other]]
    lines = content.split("\n")
    found: dict[str, list[_Cells]] = {}
    errors = []
    for quoting in (rule, *others):
        try:
            rows = _parsed(path, content, separator, quoting)
            for line in _swallowing(rows, lines, separator):
                raise _RowError(
                    path,
                    line,
                    "a field that begins with a double quote holds lines that look like rows; expected one text; close"
                    " the quote, or give --quoting none if quotes belong to the texts, double if this is one text.",
                )
        except _RowError as error:
            errors.append(error)
        else:
            found[quoting] = rows
    if not found:
        # Of the reading that comes furthest: what a TSV is written by cannot be known.
        raise max(errors, key=lambda error: error.line) if tabs else errors[0]
    if rule not in found:
        decided = next(iter(found))
    else:
        shown = [other for other in others if other in found and _shows(found["none"], found[other])] if tabs else []
        decided = shown[0] if shown else rule
    if decided != rule:
        first = next(line for line, cells in found[decided] if cells != lines[line - 1].split(separator))
        print(
            f"{path} is read with --quoting {decided}, as line {first} shows; give another if that is wrong.",
            file=sys.stderr,
        )
    return decided, found[decided]


def _shows(plain: list[_Cells], quoted: list[_Cells]) -> bool:
    """Whether rows that can be read without quoting were written with it.

    Who encloses fields in quotes encloses all that hold one. Then either one with quotes inside shows it, or a column
    of which every field is enclosed; one that is enclosed and holds none may be a quotation.
    """
    if [line for line, _ in plain] != [line for line, _ in quoted]:
        return False
    pairs = [pair for (_, a), (_, b) in zip(plain, quoted, strict=True) for pair in zip(a, b, strict=True)]
    if any('"' in written and written[0] != '"' for written, _ in pairs):
        return False
    inside = any(written[:1] == '"' and len(written) - 2 != len(read) for written, read in pairs)
    columns = zip(*(cells for _, cells in plain[1:]), strict=True)
    return inside or any(all(cell[:1] == '"' for cell in column) for column in columns)


def _parsed(path: Path, content: str, separator: str, quoting: str) -> list[_Cells]:
    """The lines on which header and rows begin, and their cells, as many as the header has."""
    if quoting == "backslash":
        # To csv each backslash is an escape: those before other characters than these stand for themselves.
        escaped = re.compile(rf'\\([\\"\n{separator}])|\\')
        content = escaped.sub(lambda match: match[0] if match[1] else r"\\", content)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, **_DIALECTS[quoting])
    rows: list[_Cells] = []
    line = 1
    limit = csv.field_size_limit(len(content))
    try:
        for cells in reader:
            if rows and len(cells) == len(rows[0][1]):
                rows.append((line, cells))
            elif not "".join(cells).strip() and (len(cells) < 2 or not rows):
                pass  # a blank line
            elif not rows:
                _check_header(path, line, [name.strip() for name in cells])
                rows.append((line, cells))
            else:
                expected = [name.strip() for name in rows[0][1]]
                raise _RowError(
                    path,
                    line,
                    f"the row has {len(cells)} fields; expected {len(expected)} ({', '.join(expected)}); add the"
                    " missing ones, or " + _HOLDS_SEPARATOR[quoting],
                )
            line = reader.line_num + 1
    except csv.Error as error:
        escape = "doubled" if quoting == "double" else "behind a backslash"
        raise _RowError(
            path,
            line,
            f"the row cannot be read ({error}); expected a field that begins with a double quote to end with one, and"
            f" those inside to be {escape}; correct the quotes, or give --quoting none if they belong to the texts,"
            f" {'backslash' if quoting == 'double' else 'double'} if they are escaped so.",
        ) from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _check_header(path: Path, line: int, names: list[str]) -> None:
    repeated = [name for name, count in collections.Counter(names).items() if count > 1 and name]
    if repeated:
        places = [str(place) for place, name in enumerate(names, start=1) if name == repeated[0]]
        raise _RowError(
            path,
            line,
            f"the columns {' and '.join(places)} are both called '{repeated[0]}'; expected each name once; rename or"
            " delete one of them.",
        )


def _swallowing(rows: list[_Cells], lines: list[str], separator: str) -> list[int]:
    """The lines at which rows begin that seem to hold further rows in a field, for want of a closing quote.

    Most of its lines then are cut by the separator into fields like those of other rows; or one of them, if each line
    of the file has as many fields as the header.
    """
    width = len(rows[0][1])
    even = all(line.count(separator) == width - 1 for line in lines if line.strip())
    usual = [cells for _, cells in rows[1:] if not any("\n" in cell for cell in cells)]
    values = [{cells[i] for cells in usual} for i in range(width)]
    kinds = [{_cell_kind(value) for value in known} for known in values]
    numbers_meet = any(a == b == {"number"} for a, b in itertools.pairwise(kinds))

    def alike(cell: str, i: int, text: bool) -> bool:
        kind = _cell_kind(cell)
        if text or not usual or kind in ("empty", "indented"):
            return kind not in ("empty", "indented") or kind in kinds[i]
        few = len(usual) >= 10 and 2 * len(values[i]) <= len(usual)  # such as labels
        return cell.strip('"') in values[i] if few else kind in kinds[i]

    found = []
    for line, cells in rows:
        long = [i for i, cell in enumerate(cells) if "\n" in cell]
        if not long:
            continue
        # The first line always begins like a row, the last one always ends so.
        first = line - 1 + (long[0] == width - 1)
        last = line - 1 + sum(cell.count("\n") for cell in cells) - (long[-1] == 0)
        pieces = [piece for piece in lines[first : last + 1] if piece.strip()]
        inside = [(piece if numbers_meet else _THOUSANDS.sub("", piece)).split(separator) for piece in pieces]
        like_rows = sum(
            len(piece) == width > 1 and all(alike(cell, i, i in long) for i, cell in enumerate(piece))
            for piece in inside
        )
        if like_rows > (0 if even else len(inside) / 2):
            found.append(line)
    return found


def _cell_kind(cell: str) -> str:
    cell = cell.strip('"')
    if not cell.strip():
        return "empty"
    if cell[0] == " ":  # as after a comma of a sentence
        return "indented"
    return "number" if re.fullmatch(r"[\d.:/-]+", cell.strip()) else "text"


def _json_rows(path: Path, content: str) -> Iterator[_Row]:
    for line, written in enumerate(content.split("\n"), start=1):
        if not written.strip():
            continue
        try:
            row = json.loads(written, object_pairs_hook=_distinct, parse_constant=_missing)
        except json.JSONDecodeError as error:
            row, found = None, f"is no JSON ({error.msg} at character {error.pos + 1})"
        except KeyError as error:
            row, found = None, f"has the key {error} twice"
        else:
            found = f"is {_kind(row)}"
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {line}: the line {found}; expected a JSON object with text and label; correct the line."
            )
        yield line, row


def _missing(_: str) -> None:
    """What NaN is, which is no JSON, but what programs write for a missing value; and Infinity."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that stands twice Python would keep the last value."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise KeyError(next(key for key, count in collections.Counter(key for key, _ in pairs).items() if count > 1))
    return row


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
    label = unicodedata.normalize("NFC", (label or "").strip())  # one letter with an accent, or letter and accent
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


def _report_repeated(path: Path, texts: list[str], labels: list[str], lines: list[int]) -> None:
    rows: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        if text.strip():
            rows.setdefault(text, []).append(number)
    repeated = [same for same in rows.values() if len(same) > 1]
    if repeated:
        count = sum(map(len, repeated))
        print(f"{path}: {len(repeated)} texts stand several times, in {count} rows.", file=sys.stderr)
    contrary = [same for same in repeated if len({labels[number] for number in same}) > 1]
    if contrary:
        first = contrary[0][0]
        other = next(number for number in contrary[0] if labels[number] != labels[first])
        print(
            f"{path}: {len(contrary)} of them have several labels, the first {_shortened(texts[first])}:"
            f" '{labels[first]}' in line {lines[first]}, '{labels[other]}' in line {lines[other]}; correct them.",
            file=sys.stderr,
        )


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _hint(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f" (did you mean '{close[0]}'?)" if close else ""
