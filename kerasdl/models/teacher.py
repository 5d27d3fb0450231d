"""Self-training: an exported classifier of texts gives soft labels to texts that have none, for another to learn."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kerasdl.data import pipeline
from kerasdl.errors import UserError
from kerasdl.files import atomic_path


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
        kept: a .npy file, written if it is not there.

    Returns:
        float32[texts, classes].

    Raises:
        UserError: there are no texts, the teacher knows other classes, or the file has answers to other texts.

    Source: a student that learns soft labels from noised inputs: Xie et al. 2019, arXiv:1911.04252, section 2.
    """
    if not kept.is_file():
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
        held_out = json.loads((folder / "config.json").read_text(encoding="utf-8"))["validation_ratio"]
        if held_out < validation_ratio:
            print(
                f"{folder} learned from texts that this run validates by, so val_accuracy comes out too high; give "
                f"both the same --validation-ratio (the teacher had {held_out})",
                file=sys.stderr,
            )
        print(f"{folder} answers {len(texts):,} unlabelled texts", flush=True)
        with atomic_path(kept) as temporary:
            np.save(temporary, probabilities(signatures, texts))
    answers: np.ndarray = np.load(kept)
    if len(answers) != len(texts):
        raise UserError(
            f"{kept} has answers to {len(answers):,} texts, expected {len(texts):,}: the unlabelled texts have changed "
            "since the run began; restore them, or train anew"
        )
    return answers
