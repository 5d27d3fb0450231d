"""Training speed of the sentiment model on the IMDB reviews, side by side: this project, plain Keras, PyTorch eager and
compiled.

    python -m benchmarks.sentiment_speed          (needs the extra `benchmark`, about 20 minutes, a quiet machine)

An embedding of 64, an LSTM of 128 in both directions, the maximum over the words; 1,920 reviews of up to 400 words,
batch 64. The speed counts words, not padding. torch.compile compiles what stands before and behind the LSTM: inductor
cannot compile nn.LSTM for training, and leaves it to oneDNN's kernel.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from benchmarks import _contest

BATCH, REVIEWS, WORDS, VOCABULARY, DIMENSION, UNITS = 64, 1920, 400, 30_000, 64, 128


def reviews() -> tuple[Any, Any]:
    """The application's configuration and data: the first REVIEWS of its training part."""
    from apps import sentiment

    config = sentiment.Config(
        epochs=3, batch_size=BATCH, max_words=WORDS, vocabulary_size=VOCABULARY, embedding_dim=DIMENSION, units=UNITS,
        pooling="max", ngrams=False, validation_ratio=0.1, excerpts=0,
    )  # fmt: skip
    data = sentiment.load_data(config)
    train = dataclasses.replace(data.train, texts=data.train.texts[:REVIEWS], labels=data.train.labels[:REVIEWS])
    return config, dataclasses.replace(data, train=train, validation=None)


def sequences() -> tuple[list[np.ndarray], np.ndarray]:
    """Words of each review int32[words], and the labels."""
    from apps import sentiment

    _, data = reviews()
    return sentiment.vocabulary_of(data).sequences(data.train.texts), data.train.labels


def ours(precision: str) -> float:
    """The application's own path: reviews of like length in a batch, its model, its optimizer, `fit`."""
    from apps import sentiment

    config, data = reviews()
    config = dataclasses.replace(config, precision=precision)
    clock = _contest.clock()
    sentiment.train(config, sentiment.build_model(config, data), data, [clock])
    words = sum(map(len, sentiment.vocabulary_of(data).sequences(data.train.texts)))
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
    return sum(map(len, rows)) / _contest.epoch_seconds(lambda: model.fit(x, labels, batch_size=BATCH, verbose=0))


def pytorch(precision: str, compiled: bool) -> float:
    """PyTorch: random batches padded to their longest review; autocast for bfloat16.

    Not packed: on a CPU a packed sequence leaves oneDNN's LSTM and takes six times as long.
    """
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.nn.utils.rnn import pad_sequence

    autocast, maybe_compiled = _contest.torch_tools(precision, compiled)
    rows, labels = sequences()

    embedding = nn.Embedding(VOCABULARY + 2, DIMENSION, padding_idx=0)
    lstm = nn.LSTM(DIMENSION, UNITS, batch_first=True, bidirectional=True)
    dropout, head = nn.Dropout(0.5), nn.Linear(2 * UNITS, 2)
    weights = list(nn.ModuleList([embedding, lstm, head]).parameters())
    optimizer = torch.optim.AdamW(weights, 1e-3)
    labels = torch.from_numpy(labels).long()
    random = np.random.default_rng(0)
    embedded = maybe_compiled(embedding.forward)

    @maybe_compiled
    def loss(x: Any, tokens: Any, y: Any) -> Any:
        x = x.masked_fill((tokens == 0)[..., None], -1e4)
        return functional.cross_entropy(head(dropout(x.amax(1))).float(), y)

    def epoch() -> None:
        order = random.permutation(len(rows))
        for part in np.split(order, range(BATCH, len(order), BATCH)):
            tokens = pad_sequence([torch.from_numpy(rows[i]).long() for i in part], batch_first=True)
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                value = loss(lstm(embedded(tokens))[0], tokens, labels[part])
            value.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()

    return sum(map(len, rows)) / _contest.epoch_seconds(epoch)


def main() -> None:
    """Measures and writes benchmarks/results/sentiment_speed_training.json."""
    _contest.main(
        "sentiment_speed",
        __doc__,
        {"training": _contest.training(ours, plain_keras, pytorch)},
        unit="words",
        protocol=f"{REVIEWS:,} IMDB reviews of up to {WORDS} words, batch {BATCH}; embedding of {DIMENSION}, LSTM of "
        f"{UNITS} in both directions; best of two epochs after one warm-up; words without padding; "
        "torch.compile leaves the LSTM to oneDNN",
    )


if __name__ == "__main__":
    main()
