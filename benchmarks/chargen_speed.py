"""Training and generation speed of the character model, side by side: this project, plain Keras, PyTorch eager
and compiled.

    python -m benchmarks.chargen_speed            (needs the extra `benchmark`, about 15 minutes, a quiet machine)

Two LSTM layers of 256 on one-hot characters (65 of them), windows of 100, batch 64. In training torch.compile compiles
what stands before and behind the LSTM: inductor cannot compile nn.LSTM for training, and leaves it to oneDNN's kernel.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import _contest

BATCH, WINDOW, LETTERS, UNITS, DEPTH, STEPS = 64, 100, 65, 256, 2, 20
TEXT = "".join(
    chr(48 + i) for i in np.random.default_rng(0).integers(0, LETTERS, BATCH * (WINDOW * STEPS + 1) + WINDOW)
)


def application(precision: str) -> Any:
    """The application's model and data of this size."""
    from apps import chargen

    config = chargen.Config(
        units=UNITS, depth=DEPTH, window=WINDOW, batch_size=BATCH, epochs=3, dropout=0.0, reset_ratio=0.0,
        precision=precision,
    )  # fmt: skip
    data = chargen.splits_of([TEXT, TEXT[:20_000], TEXT[:2000]], "characters", "random")
    return chargen, config, data


def ours(precision: str) -> float:
    """The application's own path: its batches with carried state, its model, its optimizer, `fit`."""
    module, config, data = application(precision)
    clock = _contest.clock()
    module.train(config, module.build_model(config, data), data, [clock])
    return BATCH * WINDOW * STEPS / min(clock.seconds[1:])


def windows() -> tuple[np.ndarray, np.ndarray]:
    """int32[BATCH * STEPS, WINDOW], and the same one character later."""
    ids = np.frombuffer(TEXT.encode(), np.uint8).astype(np.int32) - 48
    count = BATCH * STEPS * WINDOW
    return ids[:count].reshape(-1, WINDOW), ids[1 : count + 1].reshape(-1, WINDOW)


def plain_model(**inputs: Any) -> Any:
    """What people write: stock layers."""
    import keras
    from keras import layers

    tokens = keras.Input(dtype="int32", **inputs)
    x = layers.CategoryEncoding(LETTERS, "one_hot")(tokens)
    for _ in range(DEPTH):
        x = layers.LSTM(UNITS, return_sequences=True)(x)
    return keras.Model(tokens, layers.Dense(LETTERS)(x))


def plain_keras() -> float:
    """Stock layers, float32, `fit` on numpy arrays with its defaults."""
    import keras

    model = plain_model(shape=(WINDOW,))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = windows()
    return x.size / _contest.epoch_seconds(lambda: model.fit(x, y, batch_size=BATCH, verbose=0))


def torch_layers() -> tuple[Any, Any]:
    """The LSTM, and the layer that gives the logits."""
    from torch import nn

    return nn.LSTM(LETTERS, UNITS, DEPTH, batch_first=True), nn.Linear(UNITS, LETTERS)


def pytorch(precision: str, compiled: bool) -> float:
    """PyTorch with autocast for bfloat16."""
    import torch
    from torch.nn import functional

    autocast, maybe_compiled = _contest.torch_tools(precision, compiled)
    lstm, head = torch_layers()
    weights = [*lstm.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, 1e-3)
    x, y = (torch.from_numpy(part).long() for part in windows())

    @maybe_compiled
    def encoded(tokens: Any) -> Any:
        return functional.one_hot(tokens, LETTERS).float()

    @maybe_compiled
    def loss(x: Any, y: Any) -> Any:
        return functional.cross_entropy(head(x).float().flatten(0, 1), y.flatten())

    def epoch() -> None:
        for i in range(0, len(x), BATCH):
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                value = loss(lstm(encoded(x[i : i + BATCH]))[0], y[i : i + BATCH])
            value.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()

    return x.numel() / _contest.epoch_seconds(epoch)


def per_second(make: Callable[[int], Any], count: int, batch: int) -> float:
    """Characters a second of `make(count)`, best of three after a warm-up."""
    make(count)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        make(count)
        seconds.append(time.perf_counter() - start)
    return count * batch / min(seconds)


def generate_ours(batch: int) -> float:
    """The signature `generate`: strings in, strings out."""
    import tensorflow as tf

    module, config, data = application("float32")
    endpoint = module.endpoints(module.build_model(config, data), data)["generate"]
    function = tf.function(endpoint.function, autograph=False)

    def make(count: int) -> Any:
        fill = {"length": count, "temperature": 0.8, "top_k": 0, "top_p": 1.0}
        settings = {
            key: tf.fill([batch], tf.constant(value, endpoint.inputs[key].dtype)) for key, value in fill.items()
        }
        return function(prompt=tf.fill([batch], "abc"), seed=tf.range(batch), **settings)["text"].numpy()

    return per_second(make, 2000 if batch == 1 else 500, batch)


def generate_predict(batch: int) -> float:
    """The keras-io example's way: `model.predict` on the last 40 characters, for every character."""
    model = plain_model(shape=(40,))
    random = np.random.default_rng(0)

    def make(count: int) -> None:
        text = np.zeros((batch, 40), np.int32)
        for _ in range(count):
            logits = model.predict(text, verbose=0)[:, -1].astype(np.float64) / 0.8
            shares = np.exp(logits - logits.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            drawn = [random.choice(LETTERS, p=row) for row in shares]
            text = np.concatenate([text[:, 1:], np.array(drawn, np.int32)[:, None]], 1)

    return per_second(make, 30, batch)


def generate_one_step(batch: int) -> float:
    """The TensorFlow tutorial's way: a Python loop around a tf.function of one step that carries the state."""
    import keras
    import tensorflow as tf
    from keras import layers

    cells = [layers.LSTM(UNITS, return_sequences=True, return_state=True) for _ in range(DEPTH)]
    head = layers.Dense(LETTERS)
    encode = keras.layers.StringLookup(vocabulary=[chr(48 + i) for i in range(LETTERS)], num_oov_indices=0)
    decode = keras.layers.StringLookup(vocabulary=encode.get_vocabulary(), num_oov_indices=0, invert=True)

    @tf.function
    def step(letters: Any, states: Any) -> Any:
        x = tf.one_hot(encode(letters), LETTERS)[:, None]
        new = []
        for cell, state in zip(cells, states, strict=True):
            x, *state = cell(x, initial_state=state)
            new.append(state)
        drawn = tf.random.categorical(head(x)[:, -1] / 0.8, 1)[:, 0]
        return decode(drawn), new

    def make(count: int) -> Any:
        letters, made = tf.fill([batch], "0"), []
        states = [[tf.zeros([batch, UNITS])] * 2 for _ in cells]
        for _ in range(count):
            letters, states = step(letters, states)
            made.append(letters)
        return tf.strings.join(made).numpy()

    return per_second(make, 300, batch)


def generate_torch(batch: int) -> float:
    """PyTorch: a Python loop that carries the state."""
    import torch
    from torch.nn import functional

    _contest.torch_tools("float32", False)
    lstm, head = torch_layers()

    def make(count: int) -> Any:
        with torch.inference_mode():
            token, state, made = torch.zeros(batch, 1, dtype=torch.long), None, []
            for _ in range(count):
                x, state = lstm(functional.one_hot(token, LETTERS).float(), state)
                token = torch.multinomial(torch.softmax(head(x)[:, -1] / 0.8, -1), 1)
                made.append(token)
            return torch.cat(made, 1).numpy()

    return per_second(make, 500, batch)


CONTENDERS: dict[str, _contest.Contenders] = {
    "training": _contest.training(ours, plain_keras, pytorch),
    **{
        f"generation_batch_{batch}": {
            "ours": functools.partial(generate_ours, batch),
            "predict": functools.partial(generate_predict, batch),
            "one_step": functools.partial(generate_one_step, batch),
            "torch": functools.partial(generate_torch, batch),
        }
        for batch in (1, 64)
    },
}


def main() -> None:
    """Measures and writes benchmarks/results/chargen_speed_<work>.json."""
    _contest.main(
        "chargen_speed",
        __doc__,
        CONTENDERS,
        unit="characters",
        protocol=f"{DEPTH} LSTM layers of {UNITS}, {LETTERS} one-hot characters; training: batch {BATCH}, window "
        f"{WINDOW}, {STEPS} steps an epoch, best of two epochs after one warm-up, torch.compile leaves the LSTM to "
        "oneDNN; generation: best of three after one warm-up",
    )


if __name__ == "__main__":
    main()
