"""Coloured text, on the terminal and in an HTML file."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.style import Style
from rich.text import Text

from kerasdl.files import write_text


def colored(pieces: Sequence[str], values: npt.ArrayLike, *, title: str, html: Path | None = None) -> None:
    """Prints pieces of a text on backgrounds from blue (-1) over white (0) to red (+1).

    Tabs become spaces up to the next multiple of eight; bell, backspace and their like are left out. The terminal wraps
    long lines, the page at 120 characters.

    Args:
        pieces: characters or words with their spaces.
        values: float[pieces], cut to -1..1.
        title: line above the text, as it is.
        html: also write the figure there, as a page that needs nothing else.

    Raises:
        ValueError: as many values as pieces were expected.
    Source: own.
    """
    strengths = np.clip(np.asarray(values, np.float64), -1, 1)
    if strengths.shape != (len(pieces),):
        raise ValueError(f"colored got {strengths.shape} values for {len(pieces)} pieces; expected one a piece")
    text = Text()
    for piece, strength in zip(pieces, strengths, strict=True):
        pale = round(255 * (1 - abs(strength)))
        red, green, blue = (255, pale, pale) if strength > 0 else (pale, pale, 255)
        text.append(piece, Style(color="black", bgcolor=f"rgb({red},{green},{blue})"))
    heading = Text(title)  # a plain string would be read as markup
    Console().print(heading, text, sep="\n", soft_wrap=True)
    if html is not None:
        page = Console(record=True, file=io.StringIO(), width=120, color_system="truecolor", force_terminal=True)
        page.print(heading, text, sep="\n")
        write_text(html, page.export_html(inline_styles=True))
        print(html)


def weighed(words: Any, weight: Any) -> list[list[tuple[str, float]]]:
    """The pieces of texts for `colored`: each word with a space, and its weight relative to the text's largest.

    Args:
        words: string[texts, words], empty behind the end of a text.
        weight: float32[texts, words].
    """
    relative = np.asarray(weight) / np.maximum(np.abs(weight).max(1, keepdims=True), 1e-12)
    rows = zip(np.asarray(words), relative.tolist(), strict=True)
    return [[(word.decode() + " ", value) for word, value in zip(*row, strict=True) if word] for row in rows]
