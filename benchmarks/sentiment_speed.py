"""Training speed of the sentiment model on the IMDB reviews, side by side: this project, plain Keras, PyTorch.

    python -m benchmarks.sentiment_speed          (needs the extra `benchmark`, about 15 minutes, a quiet machine)

An embedding of 64, an LSTM of 128 in both directions, the maximum over the words; 1,920 reviews of up to 400 words,
batch 64. The speed counts words, not padding.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from typing import Any

import numpy as np

from benchmarks import _contest

BATCH, REVIEWS, WORDS, VOCABULARY, DIMENSION, UNITS = 64, 1920, 400, 30_000, 64, 128


def reviews() -> tuple[Any, Any]:
    """The application's configuration and data: the first REVIEWS of its training part."""
    from apps import sentiment

    config = sentiment.Config(
        epochs=3, batch_size=BATCH, max_words=WORDS, vocabulary_size=VOCABULARY, embedding_dim=DIMENSION, units=UNITS,
        pooling="max", ngrams=False, validation_ratio=0.1,
    )  # fmt: skip
    data = sentiment.load_data(config)
    train = dataclasses.replace(data.train, texts=data.train.texts[:REVIEWS], labels=data.train.labels[:REVIEWS])
    return config, dataclasses.replace(data, train=train, validation=None)


def sequences() -> tuple[list[np.ndarray], np.ndarray]:
    """Words of each review int32[words], and the labels."""
    from apps import sentiment

    _, data = reviews()
    return sentiment.encoded(sentiment.vocabulary(data), data.train.texts), data.train.labels


def ours(precision: str) -> float:
    """The application's own path: reviews of like length in a batch, its model, its optimizer, `fit`."""
    from apps import sentiment

    config, data = reviews()
    config = dataclasses.replace(config, precision=precision)
    clock = _contest.clock()
    sentiment.train(config, sentiment.build_model(config, data), data, [clock])
    words = sum(map(len, sentiment.encoded(sentiment.vocabulary(data), data.train.texts)))
    return words / min(clock.seconds[1:])


def plain_keras() -> float:
    """Stock layers, float32, every review padded to WORDS, `fit` on numpy arrays with its defaults."""
    import keras
    from keras import layers

    rows, labels = sequences()
    model = keras.Sequential(
        [
            keras.Input((WORDS,), dtype="int32"),
            layers.Embedding(VOCABULARY + 2, DIMENSION, mask_zero=True),
            layers.Bidirectional(layers.LSTM(UNITS, return_sequences=True)),
            layers.GlobalMaxPooling1D(),
            layers.Dropout(0.5),
            layers.Dense(2),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    x = keras.utils.pad_sequences(rows, WORDS, padding="post")
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        model.fit(x, labels, batch_size=BATCH, verbose=0)
        seconds.append(time.perf_counter() - start)
    return sum(map(len, rows)) / min(seconds[1:])


def torch_eager(precision: str) -> float:
    """PyTorch: random batches padded to their longest review; autocast for bfloat16.

    Not packed: on a CPU a packed sequence leaves oneDNN's LSTM and takes six times as long.
    """
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.nn.utils.rnn import pad_sequence

    torch.set_num_threads(os.cpu_count() or 2)
    rows, labels = sequences()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY + 2, DIMENSION, padding_idx=0)
            self.lstm = nn.LSTM(DIMENSION, UNITS, batch_first=True, bidirectional=True)
            self.dropout = nn.Dropout(0.5)
            self.head = nn.Linear(2 * UNITS, 2)

        def forward(self, tokens: Any) -> Any:
            x, _ = self.lstm(self.embedding(tokens))
            x = x.masked_fill((tokens == 0)[..., None], -1e4)
            return self.head(self.dropout(x.amax(1)))

    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    y = torch.from_numpy(labels).long()
    seconds = []
    for epoch in range(3):
        start = time.perf_counter()
        order = np.random.default_rng(epoch).permutation(len(rows))
        for part in np.split(order, range(BATCH, len(order), BATCH)):
            tokens = pad_sequence([torch.from_numpy(rows[i]).long() for i in part], batch_first=True)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                logits = model(tokens)
            functional.cross_entropy(logits.float(), y[part]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        seconds.append(time.perf_counter() - start)
    return sum(map(len, rows)) / min(seconds[1:])


def main() -> None:
    """Measures and writes benchmarks/results/sentiment_speed_training.json."""
    contenders = {
        "ours_bfloat16": functools.partial(ours, "bfloat16"),
        "ours_float32": functools.partial(ours, "float32"),
        "keras_float32": plain_keras,
        "torch_bfloat16": functools.partial(torch_eager, "bfloat16"),
        "torch_float32": functools.partial(torch_eager, "float32"),
    }
    _contest.main(
        "sentiment_speed",
        __doc__,
        {"training": contenders},
        unit="words",
        protocol=f"{REVIEWS:,} IMDB reviews of up to {WORDS} words, batch {BATCH}; embedding of {DIMENSION}, LSTM of "
        f"{UNITS} in both directions; best of two epochs after one warm-up; words without padding",
    )


if __name__ == "__main__":
    main()
