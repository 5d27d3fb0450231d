import html
import re

import numpy as np
import pytest

from kerasdl.figures import colored_text

TEXT = 'if a < b && "c":\n    d[0] = [bold]e[/bold]\n\n' + "long " * 60 + "end  \nÄ😀"


def page(tmp_path, pieces, values, title="a title"):
    path = tmp_path / "pages" / "figure.html"
    colored_text.colored(pieces, values, title=title, html=path)
    return path.read_text(encoding="utf-8")


def visible(source):
    """What a browser shows of the figure."""
    return html.unescape(re.sub(r"<[^>]+>", "", re.search(r"<pre.*?>(.*)</pre>", source, re.DOTALL)[1]))


def backgrounds(source):
    """The piece in every coloured span, by its colour."""
    spans = re.findall(r'<span style="[^"]*background-color: (#\w{6})">(.*?)</span>', source, re.DOTALL)
    return {html.unescape(piece): color for color, piece in spans}


def test_the_printed_text_equals_the_input(capsys):
    colored_text.colored(list(TEXT), np.linspace(-2, 2, len(TEXT)), title="a [red]title[/red] with 3 cells")
    assert capsys.readouterr().out == f"a [red]title[/red] with 3 cells\n{TEXT}\n"


def test_a_terminal_gets_colours_around_the_same_text(capsys, monkeypatch):
    for name, value in {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored_text.colored(["ab", "c\n", "d"], [1, -1, 0], title="title")
    printed = capsys.readouterr().out
    assert re.sub(r"\x1b\[[\d;]*m", "", printed) == "title\nabc\nd\n"
    for color, piece in (("255;0;0", "ab"), ("0;0;255", "c"), ("255;255;255", "d")):
        assert re.search(rf"\x1b\[[\d;]*48;2;{color}m{piece}\x1b", printed), color


def test_the_page_holds_the_same_text_escaped(tmp_path):
    source = page(tmp_path, ["<b>", " & ", '"x"', "\n", "[red]", "ä😀"], [0.1] * 6, title="1 < 2 [red]")
    assert visible(source) == '1 < 2 [red]\n<b> & "x"\n[red]ä😀\n'
    assert "<b>" not in source
    assert 'charset="UTF-8"' in source.replace("'", '"')


def test_colours_run_from_blue_over_white_to_red(tmp_path):
    values = {"minus": -1, "half": -0.5, "zero": 0, "plus": 1, "beyond": 7, "below": -7}
    found = backgrounds(page(tmp_path, [f"{name}\n" for name in values], list(values.values())))
    assert {name.strip(): color for name, color in found.items()} == {
        "minus": "#0000ff", "half": "#8080ff", "zero": "#ffffff", "plus": "#ff0000",
        "beyond": "#ff0000", "below": "#0000ff",
    }  # fmt: skip


def test_only_the_asked_page_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    colored_text.colored(["a"], [0], title="t")
    assert list(tmp_path.iterdir()) == []
    page(tmp_path, ["a"], [0])
    assert [path.name for path in tmp_path.rglob("*.html")] == ["figure.html"]
    assert capsys.readouterr().out.endswith("figure.html\n")


def test_nothing_to_colour_is_a_title_alone(capsys):
    colored_text.colored([], [], title="nothing")
    assert capsys.readouterr().out == "nothing\n\n"


@pytest.mark.parametrize("values", [[0.0], [0.0] * 3, [[0.0, 0.0]], 0.0])
def test_as_many_values_as_pieces(values):
    with pytest.raises(ValueError, match="values for 2 pieces; expected one a piece"):
        colored_text.colored(["a", "b"], values, title="t")


def test_words_weigh_relative_to_the_largest_of_their_text():
    words = np.array([[b"good", "Ä".encode(), b""], [b"", b"", b""]], object)
    weight = np.array([[-4, 1, 9], [0, 0, 0]], np.float32)
    weight[0, 2] = 0
    assert colored_text.weighed(words, weight) == [[("good ", -1.0), ("Ä ", 0.25)], []]
