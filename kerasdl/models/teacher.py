"""Self-training: an exported classifier of texts gives soft labels to texts that have none, for another to learn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kerasdl.data import pipeline
from kerasdl.errors import UserError
from kerasdl.files import atomic_path, read_json

FILE = "teacher.npy"
"""In a run's folder: the teacher's answers to the unlabelled texts."""


def probabilities(signatures: Mapping[str, Any], texts: Sequence[str]) -> np.ndarray:
    """What a classifier of texts says.

    Args:
        signatures: of an export, or in memory; `classify` takes `text` and gives `probabilities`.
        texts: one or more.

    Returns:
        float32[texts, classes].
    """
    order, answers = [], []
    for part in pipeline.sorted_slices([len(text) for text in texts], 250, "Classifying"):
        order.append(part)
        answers.append(signatures["classify"](text=tf.constant([texts[i] for i in part]))["probabilities"])
    found = np.concatenate(answers)
    return found[np.argsort(np.concatenate(order))]


def soft_labels(
    open_teacher: Callable[[], tuple[Path, Mapping[str, Any]]],
    texts: Sequence[str],
    class_names: Sequence[str],
    *,
    validation_ratio: float,
    kept: Path,
) -> np.ndarray:
    """The teacher's answers to texts, kept in a file: a training that is resumed goes on with the same.

    Args:
        open_teacher: loads an export: its version folder and its signatures. Not called if the answers are kept.
        texts: without labels, one or more.
        class_names: those that the student is to learn.
        validation_ratio: that of the student; a teacher that held out less has seen its validation texts.
        kept: a .npy file, written if it is not there; a damaged one is made anew, with a line on standard error.

    Returns:
        float32[texts, classes].

    Raises:
        UserError: there are no texts, the teacher knows other classes, or the file has answers to other texts.

    Source: a student that learns soft labels from noised inputs: Xie et al. 2019, arXiv:1911.04252, section 2.
    """
    answers = _kept(kept)
    if answers is None:
        folder, signatures = open_teacher()
        index = tf.range(probabilities(signatures, [""]).shape[1])
        names = [name.decode() for name in signatures["class_name"](index=index)["label"].numpy()]
        if names != list(class_names):
            raise UserError(
                f"--teacher {folder} knows the classes {', '.join(names)}; expected those of the data, "
                f"{', '.join(class_names)}; give one that was trained on this data"
            )
        if not texts:
            raise UserError("--teacher has no text to answer: expected unlabelled ones that are not in the test part")
        held_out = read_json(folder / "config.json").get("validation_ratio")
        if not isinstance(held_out, float | int):
            raise UserError(f"{folder / 'config.json'} has no validation_ratio; copy the export anew")
        if held_out < validation_ratio:
            print(
                f"{folder} learned from texts that this run validates by, so val_accuracy comes out too high; give "
                f"both the same --validation-ratio (the teacher had {held_out})",
                file=sys.stderr,
            )
        print(f"{folder} answers {len(texts):,} unlabelled texts", flush=True)
        answers = probabilities(signatures, texts)
        with atomic_path(kept) as temporary:
            np.save(temporary, answers)
    if len(answers) != len(texts):
        raise UserError(
            f"{kept} has answers to {len(answers):,} texts, expected {len(texts):,}: the unlabelled texts have changed "
            "since the run began; restore them, or train anew"
        )
    return answers


def _kept(path: Path) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        answers: np.ndarray = np.load(path)
        if answers.ndim == 2 and answers.dtype == np.float32:
            return answers
    except Exception:  # NumPy raises whatever a cut file, or another kind of file, leads to
        pass
    print(f"{path} is damaged; the teacher is asked anew", file=sys.stderr)
    return None
