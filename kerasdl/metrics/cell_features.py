"""What a reader can name at each character of a text, to compare with what the cells of a language model remember.

Source: Karpathy et al. 2015, "Visualizing and Understanding Recurrent Networks", arXiv:1506.02078, section 4.2.
"""

import re
from collections.abc import Callable

import numpy as np

FEATURES: dict[str, Callable[[str], list[float]]] = {
    "inside quotes": lambda text: _inside(text, '"', '"'),
    "inside brackets": lambda text: _inside(text, "([{", ")]}"),
    "place in the line": lambda text: [
        float(place) for line in text.splitlines(keepends=True) for place in range(len(line))
    ],
    "place in the word": lambda text: [
        float(place) for word in _words(text) for place in range(len(word))
    ],
    "capital letters": lambda text: [float(letter.isupper()) for letter in text],
    "speaker's line": lambda text: [
        float(line.rstrip().endswith(":")) for line in text.splitlines(keepends=True) for _ in line
    ],
}  # fmt: skip


def _inside(text: str, opening: str, closing: str) -> list[float]:
    depths, depth = [], 0
    for letter in text:
        if letter in closing and depth:
            depth -= 1
        elif letter in opening:
            depth += 1
        depths.append(float(depth > 0))
    return depths


def _words(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=\W)|(?=\W)", text) if part]


def correlation(memory: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each cell with a feature.

    Args:
        memory: float[characters, cells].
        values: float[characters].

    Returns:
        float[cells], 0 for a cell that does not change.
    """
    centred, values = memory - memory.mean(0), values - values.mean()
    return values @ centred / (np.linalg.norm(values) * np.linalg.norm(centred, axis=0) + 1e-9)
