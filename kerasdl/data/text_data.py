"""Texts in memory with their labels, divided into train, validation and test: those of TFDS, or of a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kerasdl.data import stratified, table, tfds
from kerasdl.data.divided import SEED, Divided, HeldOut, check_sizes, held_and_kept


@dataclass(frozen=True)
class Texts:
    """Texts and their labels int32[examples]; and texts without labels, to learn from as well, read when asked for."""

    texts: list[str]
    labels: np.ndarray
    unlabeled: Callable[[], list[str]] = list

    def __len__(self) -> int:
        return len(self.texts)

    def of(self, indices: np.ndarray, unlabeled: Callable[[], list[str]] = list) -> Texts:
        """Some of the examples."""
        return Texts([self.texts[i] for i in indices], self.labels[indices], unlabeled)

    def without(self, texts: list[str]) -> list[str]:
        """Those texts that are none of these examples, such as what may be trained on beside a test split."""
        known = set(self.texts)
        return [text for text in texts if text not in known]


_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\s*(?:<br\s*/?>\s*)+|\n+")


def excerpts(texts: Sequence[str], count: int, *, seed: int) -> tuple[list[str], np.ndarray]:
    """Cuts runs of one or two sentences out of texts, at random places.

    Args:
        texts: of any length. Those of a single sentence are left out, and no excerpt is a whole text.
        count: excerpts of a text, at most one for each of its sentences, all with another beginning.
        seed: another seed gives other excerpts.

    Returns:
        excerpts: in the order of the texts.
        sources: int64[excerpts], the position in `texts` of the text that each was cut out of.

    Source: own.
    """
    rng = np.random.default_rng(seed)
    found, sources = [], []
    for position, text in enumerate(texts):
        sentences = [sentence for sentence in _BETWEEN_SENTENCES.split(text) if sentence.strip()]
        if len(sentences) < 2:
            continue
        begins = rng.permutation(len(sentences))[:count]
        lengths = rng.integers(1, min(2, len(sentences) - 1) + 1, len(begins))
        found += [" ".join(sentences[begin : begin + length]) for begin, length in zip(begins, lengths, strict=True)]
        sources += [position] * len(begins)
    return found, np.array(sources, np.int64)


def from_tfds(name: str, data_dir: Path | None, *, held_out: HeldOut, unlabeled: str | None = None) -> Divided[Texts]:
    """Reads a data set of TFDS with labelled texts in a split for training and one for the test.

    Args:
        name: of the data set, such as `imdb_reviews/plain_text`.
        data_dir: see `kerasdl.data.tfds.builder`.
        held_out: of the training split, for validation.
        unlabeled: a split of texts without labels. Those that stand in the test split, too, are left out.

    Returns:
        The texts.

    Raises:
        UserError: the data set is not there.
    """
    whole = Texts(*tfds.texts(name, "train", data_dir))
    # A split by position that is the same for every seed, so that runs and searches compare.
    order = np.random.default_rng(SEED).permutation(len(whole))
    held, kept = (order[positions] for positions in held_and_kept(len(whole), held_out))

    def test() -> Texts:
        return Texts(*tfds.texts(name, "test", data_dir))

    def more() -> list[str]:
        return test().without(tfds.texts(name, unlabeled, data_dir)[0]) if unlabeled else []

    description = f"{name.partition('/')[0]} (TFDS), test split"
    return Divided(whole.of(kept, more), whole.of(held), test, tfds.class_names(name, data_dir), description)


def from_table(
    path: Path,
    *,
    text_column: str,
    label_column: str,
    held_out: HeldOut,
    unlabeled: Path | None = None,
    quoting: str = "auto",
) -> Divided[Texts]:
    """Reads a table of texts and labels, of which about a tenth is for the test, divided by the texts themselves.

    So a text stays in its part when rows are added or removed, and equal texts stand in one part, see
    `stratified.divide`. Texts without labels that stand in the test, too, are left out.

    Args:
        path: a .csv, .tsv or .jsonl file in UTF-8, see `table.read`.
        text_column: name of the column of texts.
        label_column: name of the column of labels.
        held_out: for validation.
        unlabeled: a file of texts without labels, see `table.read_texts`.
        quoting: what double quotes mean in both files, see `table.read`.

    Returns:
        The texts; classes are in the order of their names.

    Raises:
        UserError: the table lacks columns, rows or classes, or has too few texts for the parts.
    """
    texts, classes = table.read(path, text_column=text_column, label_column=label_column, quoting=quoting)
    names = sorted(set(classes))
    whole = Texts(texts, np.array([names.index(name) for name in classes], np.int32))
    parts = stratified.divide(texts, classes, held_out=held_out, test_ratio=0.1, seed=SEED)
    counts = {name: len(part) for name, part in parts.items()}
    if any(text.strip() for text in texts):  # else there is more to say than that they are all alike
        check_sizes(path, "texts", **counts, least_validation=1 if held_out else 0)
    positions = {name: np.array(part, np.int64) for name, part in parts.items()}
    test = whole.of(positions["test"])
    added = {} if unlabeled is None else table.read_texts(unlabeled, text_column=text_column, quoting=quoting)
    train = whole.of(positions["train"], lambda: test.without(list(added.values())))
    description = f"texts of {path.name}, test part, {len(test)} texts"
    return Divided(train, whole.of(positions["validation"]), lambda: test, names, description)
