"""Character-level text generator: an LSTM that writes like Shakespeare, or like your own text or source code.

**Source**: Karpathy 2015, "The Unreasonable Effectiveness of Recurrent Neural Networks" (the task, the cells of
`inspect`); LSTM: Hochreiter and Schmidhuber 1997; dropout between layers: Zaremba et al. 2014, arXiv:1409.2329;
truncated backpropagation through time: Williams and Peng 1990; gradient clipping: Pascanu et al. 2013, arXiv:1211.5063.

**Expect**: `train` then `evaluate` reach the nats per character in README.md's results table; `train --tiny` takes half
a minute and ends below 0.4 nats on made-up bookkeeping, where knowing the one before leaves 1.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from apps._contract import Card, Objective, Splits
from apps._settings import AtLeast, Between, DividedData, Training, at_least, between
from kerasdl import export
from kerasdl.blocks import recurrence
from kerasdl.data import divided, pipeline, synthetic, text_file, tfds, vocabulary
from kerasdl.decoding import sampling
from kerasdl.errors import UserError
from kerasdl.figures import colored_text
from kerasdl.files import check_output
from kerasdl.metrics import cell_features
from kerasdl.models import character_reader
from kerasdl.training import carried_state, fit, optimizers, precision


@dataclass(frozen=True, kw_only=True)
class Config(DividedData, Training, epochs=18, learning_rate=3e-3, weight_decay=0.01, warmup_epochs=0.5, clip_norm=1.0):
    """Text generator."""

    data: Path | None = None
    """Own text: a UTF-8 file, or a folder whose text files are joined (source code too); else Tiny Shakespeare."""
    data_dir: Path | None = None
    """TFDS folder that holds tiny_shakespeare; else KERASDL_DATA_DIR, else TFDS' own default and download."""
    alphabet: Literal["characters", "bytes"] = "characters"
    """What the model reads and writes: the characters of the training text, or bytes, for any text."""
    held_out_ratio: Between[float, 0.001, 0.4] = 0.05
    """Share of an own text kept for validation, and as much again, its end, for the test."""
    cell: Literal["lstm", "gru", "rnn", "peephole_lstm"] = "lstm"
    """Recurrent cell; peephole_lstm: an LSTM whose gates see its memory, too, in Keras' own loop."""
    units: AtLeast[int, 1] = 512
    """Width of each layer."""
    depth: AtLeast[int, 1] = 2
    """Layers."""
    dropout: Between[float, 0, 0.9] = 0.4
    """Share of features dropped after each layer."""
    window: AtLeast[int, 1] = 128
    """Characters through which the gradient goes back; the state is carried on to the next window."""
    reset_ratio: Between[float, 0, 1] = 0.1
    """Share of the windows that begin with an empty state, so that the model also learns to begin a text."""

    UNDIVIDED = "each row of a batch goes on from the state that the one before left"


OBJECTIVE = Objective(metric="val_loss", direction="min")

# --- Data ------------------------------------------------------------------------------------------------------------


def load_data(config: Config) -> Splits:
    """Reads Tiny Shakespeare, or the text of --data, in the order of the text: train, validation, test."""
    if config.data is None:
        parts = [tfds.text("tiny_shakespeare", part, config.data_dir) for part in ("train", "validation", "test")]
        description = "Tiny Shakespeare (TFDS), test split"
    else:
        whole = text_file.read(config.data)
        held = round(config.held_out_ratio * len(whole))
        parts = [whole[: -2 * held], whole[-2 * held : -held], whole[-held:]]
        description = f"the end of {config.data.name}"
    if isinstance(fold := config.held_out, divided.Fold):
        parts[:2] = divided.without(parts[0] + parts[1], fold)
    return splits_of(parts, config.alphabet, description)


def splits_of(parts: list[str], alphabet: str, description: str, **info: Any) -> Splits:
    """The parts of a text, and the characters of the first."""
    train, validation, test = parts
    if min(map(len, parts)) < 2:  # the first character is not measured
        raise UserError(
            f"the text has {sum(map(len, parts))} characters, too few for three parts; give a longer one, or a higher "
            "--held-out-ratio"
        )
    info["characters"] = vocabulary.characters_of(train) if alphabet == "characters" else None
    return Splits(train, validation, lambda: (validation, test), info, f"{description}, {len(test):,} characters")


def vocabulary_of(data: Splits) -> vocabulary.CharacterVocabulary:
    """Text to numbers and back."""
    return vocabulary.CharacterVocabulary(data.info["characters"])


# --- Model -----------------------------------------------------------------------------------------------------------


def build_model(config: Config, data: Splits) -> keras.Model:
    """Characters int32[batch, window] -> logits of each next one float32[batch, window, characters], compiled.

    The layers carry their state from batch to batch: row i of a batch goes on where row i of the last one ended.
    """
    size = vocabulary_of(data).size
    with precision.precision(config.precision):
        tokens = keras.Input(batch_shape=(config.batch_size, None), dtype="int32", name="tokens")
        x = keras.ops.one_hot(tokens, size)
        for index in range(config.depth):
            options = {"return_sequences": True, "stateful": True, "name": f"layer{index}"}
            x = recurrence.recurrent_layer(config.cell, config.units, **options)(x)
            x = keras.layers.Dropout(config.dropout, name=f"dropout{index}")(x)
        logits = keras.layers.Dense(size, dtype="float32", name="logits")(x)
        model = keras.Model(tokens, logits, name="chargen")
    steps = pipeline.num_windows(len(vocabulary_of(data).encode_text(data.train)), config.batch_size, config.window)
    model.compile(
        optimizer=optimizers.make("adamw", config, steps),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),  # nats per character
        jit_compile=False,
    )
    return model


# --- Training --------------------------------------------------------------------------------------------------------


def train(config: Config, model: keras.Model, data: Splits, callbacks: list[Any]) -> keras.callbacks.History:
    """Fits the model by truncated backpropagation through time."""
    encode = vocabulary_of(data).encode_text
    ids = encode(data.train)
    return fit.fit(
        model,
        pipeline.continuous_batches(
            ids, config.batch_size, config.window, initial_epoch=callbacks[-1].initial_epoch, seed=config.seed
        ),
        callbacks,
        config,
        steps=pipeline.num_windows(len(ids), config.batch_size, config.window),
        validation=pipeline.streams(encode(data.validation), config.batch_size, config.window),
        others=[carried_state.FreshStarts(reset_ratio=config.reset_ratio, seed=config.seed)],
    )


def num_examples(config: Config, data: Splits) -> int:
    """Windows of the training text, of which a step takes a batch."""
    return max(1, len(vocabulary_of(data).encode_text(data.train)) // config.window - 1)


# --- Evaluation ------------------------------------------------------------------------------------------------------


def evaluate(
    config: Config, signatures: Mapping[str, Any], data: Splits, figures: Path | None = None
) -> dict[str, float]:
    """Loss on the test text with carried state, and by nanoGPT's protocol on validation and test text together.

    nanoGPT holds out the last tenth of Tiny Shakespeare, its best checkpoint is chosen on it, and its loss is the mean
    over random windows of 256 characters that begin without memory; here a window begins every 64 characters.
    `unigram_nats_per_character` is the loss of the training text's frequencies alone, without a model.
    """
    validation, test = data.test()

    def nats(texts: list[str]) -> float:
        parts = pipeline.slices(len(texts), 64, "Reading")
        answers = [signatures["score"](text=texts[part]) for part in parts]
        totals = [(float(tf.reduce_sum(a["nats"])), int(tf.reduce_sum(a["characters"]))) for a in answers]
        return sum(total for total, _ in totals) / sum(count for _, count in totals)

    strict = nats([test])
    held_out = validation + test
    windows = [held_out[begin : begin + 257] for begin in range(0, max(1, len(held_out) - 256), 64)]
    encode = vocabulary_of(data).encode_text
    counts = 1 + np.bincount(encode(data.train), minlength=vocabulary_of(data).size)
    unigrams = np.log(counts.sum() / counts)[encode(test)[1:]]
    characters = len(test) - 1 if config.alphabet == "bytes" else len(unigrams)
    return {
        "nats_per_character": strict,
        "bits_per_character": strict / math.log(2),
        "nats_per_character_validation_and_test": nats([held_out]),
        "nats_per_character_nanogpt_protocol": nats(windows),
        "unigram_nats_per_character": float(unigrams.sum() / max(1, characters)),
    }


def verdict(metrics: Mapping[str, float]) -> str | None:
    """Why the model is of no use, if it is not."""
    own, unigrams = metrics["nats_per_character"], metrics.get("unigram_nats_per_character", math.inf)
    if own < 0.98 * unigrams:
        return None
    return f"it knows no more than how frequent characters are: {own:.2f} nats a character, by frequency {unigrams:.2f}"


# --- Export ----------------------------------------------------------------------------------------------------------

CARD = Card.read("chargen")


def endpoints(model: keras.Model, data: Splits) -> Mapping[str, export.Endpoint]:
    """Prompt in, text out; the same in two parts, for streaming; the loss of a text; what the cells remember."""
    letters = vocabulary_of(data)
    reader = character_reader.CharacterReader(model, letters)

    def begin(prompt: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens, mask = reader.encode(prompt)
        # A prompt without a known character stands for a line break.
        return {"state": reader.read(tokens, mask | (tf.range(tf.shape(tokens)[1]) == 0))[0]}

    def advance(state: tf.Tensor, **settings: tf.Tensor) -> dict[str, tf.Tensor]:
        state = export.finite(state, "state")
        tokens, state = sampling.continuation(reader.step, state, letters.size, **settings)
        return {"text": letters.decode(tokens), "state": state}

    def generate(prompt: tf.Tensor, **settings: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"text": advance(begin(prompt)["state"], start=tf.zeros_like(settings["length"]), **settings)["text"]}

    def score(text: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens, mask = reader.encode(text)
        counted = (mask & reader.begins_character(tokens))[:, 1:]
        return {"nats": reader.read(tokens, mask)[1], "characters": tf.reduce_sum(tf.cast(counted, tf.int32), 1)}

    def cells(text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"memory": reader.memory(text), "text": letters.decode(letters.encode(text))}

    written = (
        f"goes on for `length` characters (1 to {sampling.MAX_LENGTH:,}, all texts {sampling.MAX_TOKENS:,}); "
        "temperature 0 takes the likeliest, top_k 0 and top_p 1 draw from all; the same seed gives the same text"
    )
    settings = {"length": [40], "temperature": [0.8], "top_k": [0], "top_p": [1.0], "seed": [0]}
    prompt, sentence = {"prompt": ["\n"]}, {"text": ["To be"]}
    return {
        "generate": export.row_by_row(export.by_example(generate, written, **prompt, **settings), "length"),
        "begin": export.by_rows(begin, "reads the prompt; its state goes to `advance`", **prompt),
        "advance": export.row_by_row(
            export.by_example(
                advance,
                "the next characters and the state after them, for streaming; `start` counts those already made",
                state=np.zeros([1, reader.state_size]),
                start=[0],
                **settings,
            ),
            "length",
        ),
        "score": export.by_rows(
            score, "summed loss in nats of the characters after the first, and their number", **sentence
        ),
        "cells": export.by_example(cells, "memory of every cell, -1 to 1, after each known character", **sentence),
    }


# --- Verbs -----------------------------------------------------------------------------------------------------------


def generate(
    model: Path,
    *,
    prompt: str = "\n",
    length: int = 300,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    samples: int = 1,
) -> None:
    """Write a text, with an exported model; it appears as it is made.

    Args:
        model: exported model, such as saved_models/chargen.
        prompt: the beginning; characters that the model does not know are left out.
        length: characters to write, up to 100,000.
        temperature: below 1 safer, above 1 wilder; 0 always takes the likeliest character.
        top_k: draw from the k likeliest characters only; 0 from all.
        top_p: draw from the likeliest characters that hold this probability together; 1 from all.
        seed: the same seed gives the same text; further samples take the seeds after it.
        samples: number of texts.
    """
    at_least(1, samples=samples)
    between(1, sampling.MAX_LENGTH, length=length)
    at_least(0, temperature=temperature)
    between(0, 2**31 - 1, top_k=top_k)
    between(1e-6, 1, top_p=top_p)
    between(-(2**31), 2**31 - samples, seed=seed)
    signatures = export.signatures(model, "begin", "advance")
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    for index in range(samples):
        if samples > 1:
            print(f"--- seed {seed + index}")
        print(prompt.lstrip("\n"), end="", flush=True)
        for piece in character_reader.stream(signatures, prompt, length, **settings, seed=seed + index):
            print(piece, end="", flush=True)
        print()


def inspect(
    model: Path,
    *,
    text: str | None = None,
    file: Path | None = None,
    cell: int | None = None,
    top: int = 3,
    width: int = 1500,
    html: Path | None = None,
) -> None:
    """Colour a text by what one cell remembers, and list the cells that follow something a reader can name.

    Args:
        model: exported model, such as saved_models/chargen.
        text: text to look at.
        file: UTF-8 file to look at, in place of `text`.
        cell: number of the cell to show; by default the one that follows a feature best.
        top: cells to list for a feature.
        width: characters of the text that are coloured.
        html: file for the coloured text, a new one.
    """
    check_output(html, flag="--html")
    at_least(1, top=top, width=width)
    if (text is None) == (file is None):
        raise UserError("inspect needs one text to look at; give either --text or --file")
    whole = text_file.read(file) if file is not None else text or ""
    answer = export.signatures(model, "cells")["cells"](text=[whole[:20_000]])
    known, memory = answer["text"].numpy()[0].decode(errors="replace"), answer["memory"].numpy()[0]
    if not known:
        raise UserError(f"{model} knows no character of this text; expected text like that of its training")
    rows: list[tuple[float, int, str]] = []
    for name, feature in cell_features.FEATURES.items():
        values = np.array(feature(known))
        if values.std() == 0:
            continue
        scores = np.abs(cell_features.correlation(memory, values))
        best = np.argsort(-scores)[:top]
        rows += [(float(scores[i]), int(i), name) for i in best]
        print(f"{name:<20}" + "  ".join(f"cell {i} ({scores[i]:.2f})" for i in best))
    chosen = cell if cell is not None else max(rows)[1] if rows else 0
    if not 0 <= chosen < memory.shape[1]:
        raise UserError(f"--cell is {chosen}; expected 0 to {memory.shape[1] - 1}")
    reason = f", {max(rows)[2]}" if cell is None and rows else ""
    title = f"cell {chosen}{reason}: blue remembers -1, red +1"
    colored_text.colored(list(known[:width]), memory[:width, chosen], title=title, html=html)


VERBS: tuple[Callable[..., None], ...] = (generate, inspect)


def tiny(config: Config | None = None) -> tuple[Config, Splits]:
    """Made-up bookkeeping: brackets close, quotes close, sums are right; single characters tell little of it."""
    whole = synthetic.bookkeeping(60_000, seed=0)
    parts = [whole[:50_000], whole[50_000:55_000], whole[55_000:]]
    config = config or Config(units=96, depth=1, dropout=0.0, window=64, batch_size=32, epochs=6, learning_rate=1e-2)
    return config, splits_of(parts, config.alphabet, "made-up bookkeeping", tiny=True)
