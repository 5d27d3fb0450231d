import csv
import json

import pytest

from kerasdl.data import table
from kerasdl.errors import UserError

TEXTS = ['Long, but "good".', "", "two\nlines\tand a tab", "Süß 字 مرحبا 🙂", "  kept  ", "\u2028 is no line break"]
LABELS = ["good", "bad", "good", "so so", "bad", "so so"]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_rows(path, texts, labels):
    """Writes a table as other programs do, with a column more than is asked for."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        if path.suffix in (".jsonl", ".ndjson"):
            for index, (text, label) in enumerate(zip(texts, labels, strict=True)):
                stream.write(json.dumps({"id": index, "text": text, "label": label}, ensure_ascii=False) + "\n")
        else:
            writer = csv.writer(stream, csv.excel if path.suffix == ".csv" else csv.excel_tab)
            writer.writerow(["id", "text", "label"])
            writer.writerows((index, *row) for index, row in enumerate(zip(texts, labels, strict=True)))
    return path


def read(path, text_column="text", label_column="label", **options):
    return table.read(path, text_column=text_column, label_column=label_column, **options)


def message_of(path, **columns):
    with pytest.raises(UserError) as caught:
        read(path, **columns)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert message.count(";") >= 2  # what happened; what was expected; how to fix it
    return message


# --- read ---


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "ndjson"])
def test_what_was_written_is_read(tmp_path, suffix):
    assert read(write_rows(tmp_path / f"a.{suffix}", TEXTS, LABELS)) == (TEXTS, LABELS)


def test_the_columns_are_those_named_and_the_suffix_may_be_upper_case(tmp_path):
    path = write_rows(tmp_path / "a.csv", TEXTS, LABELS).rename(tmp_path / "A.CSV")
    numbers = ["0", "1", "2", "3", "4", "5"]
    assert read(path, text_column="id") == (numbers, LABELS)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_texts_without_labels_of_a_table(tmp_path, suffix):
    path = write_rows(tmp_path / f"texts{suffix}", TEXTS, [""] * len(TEXTS))
    assert list(table.read_texts(path, text_column="text").values()) == TEXTS
    with pytest.raises(
        UserError, match="has no column 'body'; expected one of id, text, label; name the one of the text"
    ):
        table.read_texts(path, text_column="body")
    with pytest.raises(UserError, match="expected a table of texts; check the path"):
        table.read_texts(tmp_path / f"other{suffix}", text_column="text")


def test_texts_without_labels_one_a_line(tmp_path):
    path = write(tmp_path / "texts.txt", "\ufeffone, two\r\n\n  three\u2028 \n \nfour")
    assert table.read_texts(path, text_column="text") == {1: "one, two", 3: "  three\u2028 ", 5: "four"}
    with pytest.raises(UserError, match="line 2 has 0xff"):
        table.read_texts(write(tmp_path / "broken.txt", b"one\n\xff"), text_column="text")


def test_a_byte_order_mark_blank_lines_other_line_endings_and_blanks_around_names_and_labels(tmp_path):
    path = write(tmp_path / "a.csv", "\ufefftext, label\r\na, x \r\n\r\n b,x\r\nc,y\r\nd, y\r\n\r\n")
    assert read(path) == (["a", " b", "c", "d"], ["x", "x", "y", "y"])
    path = write(tmp_path / "b.csv", "\ufeff\r\n,\r\n \r\ntext,label\r\na,x\r\n  \r\nb,y\r\n" + "c,x\r\nd,y")
    assert read(path) == (["a", "b", "c", "d"], ["x", "y", "x", "y"])
    path = write(tmp_path / "a.jsonl", '\ufeff\r\n{"text": "a", "label": " x"}\r\n{"text": "b", "label": "y"}\r\n' * 2)
    # The mark within the file is a character like any other: JSON has no place for it between lines.
    assert "line 4: the line is no JSON" in message_of(path)
    path = write(tmp_path / "a.jsonl", "\ufeff" + '\r\n{"text": "a", "label": " x"}\r\n{"text": "b", "label": "y"}' * 2)
    assert read(path) == (["a", "b"] * 2, ["x", "y"] * 2)


def test_values_of_json_that_are_no_strings(tmp_path):
    texts, labels = [None, "", "c", "d", "e", "f"], [1, 1, True, True, 0.5, 0.5]
    path = write_rows(tmp_path / "a.jsonl", texts, labels)
    assert read(path) == (["", "", "c", "d", "e", "f"], ["1", "1", "true", "true", "0.5", "0.5"])


def test_an_accent_is_one_label_as_one_character_and_as_two(tmp_path):
    path = write_rows(tmp_path / "a.csv", list("abcd"), ["\u00e9", "e\u0301", "x", "x"])
    assert read(path)[1] == ["\u00e9", "\u00e9", "x", "x"]


def test_a_number_that_is_none_is_a_missing_value(tmp_path):
    rows = ['{"text": "a", "label": "x", "score": -Infinity}', '{"text": NaN, "label": "y"}']
    assert read(write(tmp_path / "a.jsonl", "\n".join(2 * rows))) == (["a", ""] * 2, ["x", "y"] * 2)


def test_half_a_character_in_json_is_replaced(tmp_path):
    lines = [r'{"text": "cut \ud83d", "label": "x\ud83d"}', r'{"text": "whole \ud83d\ude42", "label": "y"}']
    path = write(tmp_path / "a.jsonl", "\n".join(lines * 2))
    assert read(path) == (["cut ?", "whole 🙂"] * 2, ["x?", "y"] * 2)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_text_of_100_000_words(tmp_path, suffix):
    limit = csv.field_size_limit()
    long = "word, " * 100_000
    assert len(long) > limit
    assert read(write_rows(tmp_path / f"a.{suffix}", [long, "b"] * 2, ["x", "y"] * 2))[0] == [long, "b"] * 2
    assert csv.field_size_limit() == limit


def test_a_missing_file_and_a_folder(tmp_path):
    assert "There is no file" in message_of(tmp_path / "a.csv")
    (tmp_path / "b.csv").mkdir()
    assert "There is no file" in message_of(tmp_path / "b.csv")


@pytest.mark.parametrize("name", ["a.xlsx", "csv", "a.csv.gz"])
def test_another_format_names_the_three(tmp_path, name):
    message = message_of(write(tmp_path / name, "text,label\n"))
    assert all(suffix in message for suffix in (".csv", ".tsv", ".jsonl"))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_wrong_column_names_the_nearest_and_the_known(tmp_path, suffix):
    path = write_rows(tmp_path / f"a.{suffix}", TEXTS, LABELS)
    message = message_of(path, label_column="labels")
    assert "no column 'labels'; expected one of id, text, label;" in message
    assert "did you mean 'label'?" in message
    message = message_of(path, text_column="review")
    assert "no column 'review'; expected one of id, text, label;" in message
    assert "did you mean" not in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.csv",
            "text;label\na;x\n",
            "no column 'text'; expected one of text;label; name the one of the texts, and sep",
        ),
        ("a.csv", "text;label\na;x\n", "separate columns by a comma."),
        ("a.tsv", "text,label\na,x\n", "separate columns by a tab."),
        ("a.csv", "text;label;x,y\na;x;1,2\n", "separate columns by a comma."),
        ("a.jsonl", '{"text": "a", "label": NaN}', "line 1: the row has no label"),
        ("a.csv", "text,label\na,x\n\nb, \nc,y\n", "line 4: the row has no label in 'label'"),
        ("a.csv", 'text,label\n"a\nb",x\nb,\n', "line 4: the row has no label in 'label'"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b"}', "line 2: the row has no label in 'label'"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": null}', "line 2: the row has no label"),
        ("a.jsonl", '{"text": "a", "label": ""}', "line 1: the row has no label"),
        ("a.jsonl", '{"text": "a", "label": ["x"]}', "line 1: 'label' is a list; expected one label"),
        ("a.csv", "text,label\na,x\nb\nc,y\n", "line 3: the row has 1 fields; expected 2 (text, label)"),
        ("a.csv", "text,label\na,x\nb, and c,y\n", "line 3: the row has 3 fields; expected 2"),
        ("a.tsv", "text\tlabel\na,x\n", "line 2: the row has 1 fields; expected 2"),
        ("a.csv", 'text,label\na,x\n"b,y\nc,x\n', "line 3: the row cannot be read (unexpected end of data)"),
        ("a.csv", 'text,label\na,x\n"b" c,y\n', "line 3: the row cannot be read ("),
        ("a.csv", "text,label,label\na,x,y\n", "line 1: the columns 2 and 3 are both called 'label';"),
        ("a.tsv", "\ntext\tnote\tlabel\ttext \na\t\tx\ty\n", "line 2: the columns 1 and 4 are both called 'text';"),
        ("a.jsonl", '{"text": "a", "label": "x", "label": "y"}', "line 1: the line has the key 'label' twice;"),
        ("a.csv", "text,label\n", "has a header and no rows"),
        ("a.csv", "text,label", "has a header and no rows"),
        ("a.csv", "", "is empty"),
        ("a.jsonl", "\n", "is empty"),
        ("a.csv", b"text,label\na,x\ncaf\xe9,y\n", "line 3 has 0xe9 at byte 4 of the line"),
        ("a.csv", "text,label\na,x\n".encode("utf-16"), "is no UTF-8 text: line 1"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n["b", "y"]', "line 2: the line is a list; expected a JSON object"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n\n3', "line 3: the line is a number; expected a JSON object"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b', "line 2: the line is no JSON ("),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"label": "x"}', "line 2: there is no 'text'"),
        ("a.jsonl", '{"text": 3, "label": "x"}', "line 1: 'text' is a number; expected a string"),
        ("a.csv", "text,label\na,x\nb,x\n", "has only the label 'x'; expected at least two classes"),
        ("a.csv", "text,label\na,x\n", "has only the label 'x'"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, name, content, expected):
    assert expected in message_of(write(tmp_path / name, content))


def test_a_label_seen_once_is_named_with_its_line_and_the_one_meant(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,good\nb,bad\nc,godo\nd,good\ne,bad\n")
    message = message_of(path)
    assert "the label 'godo' stands in one row only (line 4); expected at least 2 rows of each class" in message
    assert "did you mean 'good'?" in message
    write(path, "text,label\na,3.5\nb,0.1\nc,1.7\nd,1.7\ne,8\n")
    assert "the label '3.5' stands in one row only (line 2), and so do 2 other labels;" in message_of(path)


def test_after_a_mistake_in_a_csv_the_limit_of_fields_is_as_before(tmp_path):
    limit = csv.field_size_limit()
    message_of(write(tmp_path / "a.csv", "text,label\na\n"))
    assert csv.field_size_limit() == limit


# --- quoting ---

GOOD_BAD = ["good", "bad"]


def separated(path, texts, *, line="\n"):
    """A table whose texts are written as they are, with the labels good and bad by turns."""
    separator = "," if path.suffix == ".csv" else "\t"
    rows = [f"{text}{separator}{GOOD_BAD[i % 2]}" for i, text in enumerate(texts)]
    path.write_text(line.join([f"text{separator}label", *rows, ""]), encoding="utf-8", newline="")
    return path


FIRST, LAST = '"A joy from the first minute.', 'See it twice."'


@pytest.mark.parametrize(
    "texts",
    [
        [FIRST, "Dull.", "Fine, really.", "No.", "Yes.", "So so.", LAST, "Bad."],
        [FIRST, LAST],
        [*(f"Film {i}." for i in range(20)), FIRST, *(f"Scene {i}." for i in range(36)), LAST, '"Bad', 'film."'],
        ['"The Wiz" is fine', '"', '""', '""Great""', 'He said "no".', '"yes"'],
        ['"He said ""no""."', 'He said "no".'],
        ["C:\\new", "back\\", '\\"'],
    ],
)
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_a_tsv_has_no_quoting(tmp_path, capsys, texts, line):
    path = separated(tmp_path / "a.tsv", texts * 2, line=line)
    assert read(path)[0] == texts * 2
    assert "--quoting" not in capsys.readouterr().err
    assert read(path, quoting="none")[0] == texts * 2
    assert list(table.read_texts(path, text_column="text").values()) == texts * 2


@pytest.mark.parametrize(
    ("content", "texts", "line"),
    [
        ('"A ""great"" film"\tx\nb\ty\n', ['A "great" film', "b"], 2),  # as pandas writes
        ('b\ty\n"two\nlines"\tx\n', ["b", "two\nlines"], 3),
        ('b\ty\n"a\ttab"\tx\n', ["b", "a\ttab"], 3),
        ('"a"\t"x"\n"b"\t"y"\n', ["a", "b"], 2),  # as R writes
    ],
)
def test_a_tsv_whose_rows_show_quoting(tmp_path, capsys, content, texts, line):
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + content * 2)
    assert read(path) == (texts * 2, read(path, quoting="double")[1])
    error = capsys.readouterr().err.splitlines()
    assert f"{path} is read with --quoting double, as line {line} shows; give another if that is wrong." in error


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_quotes_behind_backslashes(tmp_path, capsys, name, separator):
    rows = [["text", "label"], [r'"With \"The Wiz\", C:\temp\\"', "x"]]
    rows += [['"b"', "y"], ['"c"', "x"], ['"d"', "y"]]
    path = write(tmp_path / name, "\n".join(separator.join(row) for row in rows))
    expected = ['With "The Wiz", C:\\temp\\', "b", "c", "d"], ["x", "y", "x", "y"]
    assert read(path) == expected
    assert f"{path} is read with --quoting backslash, as line 2 shows" in capsys.readouterr().err
    assert read(path, quoting="backslash") == expected
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "texts",
    [
        ["Fine.", "No.", FIRST, "Dull.", LAST, "Bad.", "Well.", "Hm."],
        [FIRST, "Dull.", "Fine.", LAST],
        ["Fine.", "Dull."] * 20 + [FIRST, LAST] + ["Fine.", "Dull."] * 20,
    ],
)
def test_a_quote_that_takes_in_rows_is_named(tmp_path, capsys, texts):
    path = separated(tmp_path / "a.csv", texts)
    line = texts.index(FIRST) + 2
    assert f"line {line}: a field that begins with a double quote holds lines that look like rows" in message_of(path)
    assert read(path, quoting="none")[0] == texts
    capsys.readouterr()
    assert len(table.read_texts(path, text_column="text", quoting="double")) < len(texts)
    assert f"1 fields hold lines that look like rows, the first at line {line};" in capsys.readouterr().err


def test_a_csv_that_follows_its_rule_is_read_by_it(tmp_path, capsys):
    content = 'text,label\n"""Great"" film",x\nC:\\new,y\n"say ""no""",x\n"b\\",y\n'
    expected = ['"Great" film', "C:\\new", 'say "no"', "b\\"]
    assert read(write(tmp_path / "a.csv", content))[0] == expected
    assert capsys.readouterr().err == ""


def test_a_quote_takes_in_rows_of_numbers(tmp_path):
    rows = ['7,100,"A joy.,good', "8,200,Dull.,bad", '9,300,See it twice.",good', "10,400,Fine.,bad"]
    path = write(tmp_path / "a.csv", "\n".join(["id,length,text,label", *rows]))
    assert "line 2: a field that begins with a double quote" in message_of(path)


def test_a_quote_in_a_header_takes_in_rows(tmp_path):
    path = write(tmp_path / "a.csv", '"text,label\na,good\nb",bad\nc,good\nd,bad\n')
    assert "line 1: a field that begins with a double quote" in message_of(path)


@pytest.mark.parametrize(
    "text",
    [
        "Dear John,\nfine, but long\n\nreally, it was",
        "Nice, but\nlong",
        "It cost 1,000 dollars\nand broke.",
        "one,two\nthree,four\nfive\nsix\nseven",
        "\nlast",
    ],
)
@pytest.mark.parametrize("columns", [["text", "label"], ["label", "text"], ["id", "text", "label"]])
def test_texts_of_several_lines_are_no_rows(tmp_path, capsys, text, columns):
    path = tmp_path / "a.csv"
    texts = [text, "Plain.", "Plain, too.", text]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({"id": i, "text": texts[i], "label": GOOD_BAD[i // 2]} for i in range(4))
    assert read(path) == (texts, ["good", "good", "bad", "bad"])
    assert "--quoting" not in capsys.readouterr().err


def test_an_unclear_table_names_the_row_and_the_flag(tmp_path):
    assert "give --quoting none" in message_of(separated(tmp_path / "a.csv", ['"The Wiz" is fine', "b"] * 2))
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"a\nb"\tx\nc\td\ty\n')
    assert "line 4: the row has 3 fields" in message_of(path)  # quotes in line 2 are read as such
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"a\tx\nb\nc\ty\n')
    assert "line 3: the row has 1 fields; expected 2 (text, label)" in message_of(path)


def test_repeated_texts_and_contrary_labels_are_counted(tmp_path, capsys):
    path = write(tmp_path / "a.csv", "text,label\na,x\nb,x\na,y\nc,y\nc,y\nc,y\n,x\n,y\n")
    assert len(read(path)[0]) == 8
    assert capsys.readouterr().err.splitlines() == [
        f"{path}: 2 texts stand several times, in 5 rows.",
        f"{path}: 1 of them have several labels, the first 'a': 'x' in line 2, 'y' in line 4; correct them.",
    ]
    read(write(tmp_path / "b.csv", "text,label\na,x\nb,x\nc,y\nd,y\n"))
    assert capsys.readouterr().err == ""


def test_of_one_column_a_text_of_several_lines_is_said(tmp_path, capsys):
    path = write(tmp_path / "x.csv", 'text\nplain\n"Wow\nnice film\nthe end"\nlast\n')
    assert [*table.read_texts(path, text_column="text").values()] == ["plain", "Wow\nnice film\nthe end", "last"]
    assert f"{path}: 1 texts hold line breaks, the first at line 3; give --quoting none" in capsys.readouterr().err
    assert len(table.read_texts(path, text_column="text", quoting="none")) == 5


def test_texts_of_a_command_line_have_a_line_if_they_stand_in_a_table(tmp_path):
    usual = {"text_column": "text", "quoting": "auto"}
    assert table.given(["a", "b"], None, **usual) == [(None, "a"), (None, "b")]
    lines = write(tmp_path / "lines.txt", b"one\n\ntwo\n")
    assert table.given([], lines, **usual) == [(None, "one"), (None, ""), (None, "two")]
    rows = write(tmp_path / "rows.csv", b'note\n"one\nmore"\ntwo\n')
    assert table.given([], rows, text_column="note", quoting="auto") == [(2, "one\nmore"), (4, "two")]
    with pytest.raises(UserError, match="texts and --file; give one of them"):
        table.given(["a"], rows, **usual)
    for options in ({"text_column": "note"}, {"quoting": "none"}):
        with pytest.raises(UserError, match="--text-column and --quoting are for a table: a --file that ends in"):
            table.given([], lines, **usual | options)
