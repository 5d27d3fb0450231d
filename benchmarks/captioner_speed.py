"""Speed of the captioner, side by side: writing captions and training on cached features.

    python -m benchmarks.captioner_speed          (needs the extra `benchmark`, about 20 minutes, a quiet machine)

Captions: the export's own pixels at 224 px, beam 3, against `model.predict` for each word, as the keras-io example
calls it, with the same beam. Training: captions of 5 to 20 words on cached 7 x 7 x 1280 features, batch 64, against
stock Keras layers with attention in a loop over `LSTMCell`, as the TensorFlow tutorial has it, and against PyTorch.
torch.compile compiles one step of that loop, what stands before it and what stands behind it: captions differ in
length, and the whole loop would be compiled anew for each.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import _contest

PICTURES, CAPTIONS, BATCH, WORDS, FEATURES = 200, 1280, 64, 3000, (7, 7, 1280)
SIZES = {"units": 512, "attention_units": 256, "feature_dim": 256, "embedding_dim": 256}


def best_of(call: Callable[[], Any], times: int) -> float:
    """Seconds of the quickest call after a first one."""
    call()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def splits(config: Any, images: np.ndarray, words: Any) -> Any:
    """Each part of the data holds these pictures and captions."""
    from apps._contract import Splits
    from kerasdl.models import caption_examples

    count = len(images)
    found = caption_examples.cut(np.tile(images, (3, 1, 1, 1)), words * 3, (count, 2 * count), "random")
    return Splits.of(found, caption_examples.facts(found, config))


# --- Captions --------------------------------------------------------------------------------------------------------


def restored() -> tuple[Any, Any]:
    """The application's model of the default size, untrained, and pictures uint8[32, 224, 224, 3].

    To it the end is as unlikely as any of 3,000 words, so that it comes where it must, behind the eleventh word.
    """
    import keras

    from apps import captioner

    keras.utils.set_random_seed(0)
    config = captioner.Config(encoder_weights="none", max_words=11, min_count=1, tune_epochs=0, beam_width=3, **SIZES)
    images = np.random.default_rng(0).integers(0, 256, (32, 224, 224, 3), np.uint8)
    words = [[[f"word{i}" for i in range(WORDS)]]]
    data = splits(config, images[:1], words)
    return captioner.build_model(config, data), (images, data)


def ours_writing(batch: int) -> float:
    """Captions a second of the export's function for pixels."""
    import tensorflow as tf

    from apps import captioner

    model, (images, data) = restored()
    write = tf.function(captioner.endpoints(model, data)["pixels"].function, autograph=False)
    given = tf.constant(images[:batch])
    said = write(image=given)["caption"].numpy()
    assert all(len(caption.split()) == data.info["max_words"] for caption in said), said
    return batch / best_of(lambda: write(image=given)["caption"].numpy(), 10)


def predict_writing(batch: int) -> float:
    """Captions a second when each picture's hypotheses are gone on with by `model.predict`, word by word."""
    from kerasdl.blocks import caption_decoder

    model, (images, data) = restored()

    def one(image: np.ndarray) -> list[int]:
        features = model.encoder.predict(image[None].astype(np.float32), verbose=0).astype(np.float16)
        beams = [(0.0, [caption_decoder.START])]
        for _ in range(data.info["max_words"] + 1):
            tokens = np.array([words for _, words in beams], np.int32)
            given = {"picture": np.repeat(features, len(beams), 0), "tokens": tokens}
            logits = model.decoder.predict(given, verbose=0)["logits"][:, -1]
            logits -= logits.max(1, keepdims=True)
            shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            longer = [
                (score + float(share[word]), [*words, int(word)])
                for (score, words), share in zip(beams, shares, strict=True)
                for word in np.argsort(-share)[:3]
            ]
            beams = sorted(longer, reverse=True)[:3]
        return beams[0][1]

    return batch / best_of(lambda: [one(image) for image in images[:batch]], 1)


# --- Training --------------------------------------------------------------------------------------------------------


def made_up() -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Features float16[pictures, 7, 7, 1280], captions int32[words] with the end, and the picture of each."""
    rng = np.random.default_rng(0)
    features = rng.uniform(0, 2, (PICTURES, *FEATURES)).astype(np.float16)
    lengths = np.clip(rng.normal(11, 4, CAPTIONS).round(), 5, 20).astype(int)
    captions = [np.append(rng.integers(3, WORDS, length), 2).astype(np.int32) for length in lengths]
    return features, captions, rng.integers(0, PICTURES, CAPTIONS).astype(np.int32)


def ours_training(precision: str) -> float:
    """The application's model, batches and optimizer, `fit`."""
    import tensorflow as tf

    from apps import captioner
    from kerasdl.data import pipeline

    features, captions, rows = made_up()
    config = captioner.Config(
        encoder_weights="none", precision=precision, min_count=1, epochs=3, tune_epochs=0, **SIZES
    )
    words = [[[f"word{i}" for i in range(WORDS - 3)]]]
    data = splits(config, np.zeros((1, 224, 224, 3), np.uint8), words)
    model = captioner.build_model(config, data)
    bank = tf.constant(features)

    def batch(tokens: Any, row: Any) -> Any:
        return {"picture": tf.gather(bank, row), "tokens": tf.pad(tokens[:, :-1], [[0, 0], [1, 0]])}, tokens

    clock = _contest.clock()
    batches = pipeline.bucketed_batches(captions, [rows], BATCH, seed=0).map(batch)
    model.fit(batches, epochs=3, steps_per_epoch=CAPTIONS // BATCH, callbacks=[clock], verbose=0)
    return CAPTIONS / min(clock.seconds[1:])


def plain_keras() -> float:
    """Stock layers, float32, captions padded to 21 words, `fit` on numpy arrays with its defaults."""
    import keras
    from keras import layers, ops

    class AttentiveDecoder(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.cell = layers.LSTMCell(SIZES["units"])
            self.query = layers.Dense(SIZES["attention_units"], use_bias=False)
            self.score, self.gate = layers.Dense(1, use_bias=False), layers.Dense(1, "sigmoid")

        def build(self, *shapes: Any) -> None:
            for layer, size in (
                (self.cell, SIZES["embedding_dim"] + SIZES["feature_dim"]),
                (self.query, SIZES["units"]),
                (self.score, SIZES["attention_units"]),
                (self.gate, SIZES["units"]),
            ):
                layer.build((None, size))

        def call(self, words: Any, h: Any, c: Any, items: Any, keys: Any) -> Any:
            states, outputs = [h, c], []
            for step in range(21):  # Keras 3's RNN hands no constants to a cell
                weights = ops.softmax(self.score(ops.tanh(self.query(states[0])[:, None] + keys)), axis=1)
                context = self.gate(states[0]) * ops.sum(weights * items, 1)
                output, states = self.cell(ops.concatenate([words[:, step], context], -1), states)
                outputs.append(output)
            return ops.stack(outputs, 1)

    features, captions, rows = made_up()
    picture, tokens = keras.Input(FEATURES), keras.Input((21,), dtype="int32")
    items = layers.Dense(SIZES["feature_dim"], "relu")(layers.Reshape((-1, FEATURES[-1]))(picture))
    mean = layers.GlobalAveragePooling1D()(items)
    first = [layers.Dense(SIZES["units"], "tanh")(mean) for _ in range(2)]
    keys = layers.Dense(SIZES["attention_units"])(items)
    words = layers.Dropout(0.5)(layers.Embedding(WORDS, SIZES["embedding_dim"])(tokens))
    outputs = AttentiveDecoder()(words, *first, items, keys)
    deep = layers.Add()([words, layers.Dense(SIZES["embedding_dim"])(layers.Dropout(0.5)(outputs))])
    logits = layers.Dense(WORDS)(layers.Dropout(0.5)(layers.Activation("tanh")(deep)))
    model = keras.Model([picture, tokens], logits)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0))
    padded = keras.utils.pad_sequences(captions, 21, dtype="int32", padding="post")
    before = np.pad(padded, [[0, 0], [1, 0]])[:, :-1]
    return CAPTIONS / _contest.epoch_seconds(
        lambda: model.fit([features[rows].astype(np.float32), before], padded, batch_size=BATCH, verbose=0)
    )


def pytorch(precision: str, compiled: bool) -> float:
    """PyTorch: `nn.LSTMCell` in a loop, as usual reimplementations of the paper; autocast for bfloat16."""
    import torch
    from torch import nn
    from torch.nn import functional

    autocast, maybe_compiled = _contest.torch_tools(precision, compiled)
    features, captions, rows = made_up()
    units, hidden, width, embedding = SIZES.values()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items, self.keys = nn.Linear(FEATURES[-1], width), nn.Linear(width, hidden)
            self.first_h, self.first_c = nn.Linear(width, units), nn.Linear(width, units)
            self.words, self.cell = nn.Embedding(WORDS, embedding), nn.LSTMCell(embedding + width, units)
            self.query, self.score = nn.Linear(units, hidden, bias=False), nn.Linear(hidden, 1, bias=False)
            self.gate, self.deep = nn.Linear(units, 1), nn.Linear(units + width, embedding)
            self.logits, self.dropout = nn.Linear(embedding, WORDS), nn.Dropout(0.5)

        def begin(self, picture: Any, tokens: Any) -> Any:
            items = functional.relu(self.items(picture.flatten(1, 2)))
            words, mean = self.dropout(self.words(functional.pad(tokens[:, :-1], (1, 0)))), items.mean(1)
            return items, self.keys(items), words, self.first_h(mean).tanh(), self.first_c(mean).tanh()

        def step(self, items: Any, keys: Any, word: Any, h: Any, c: Any) -> Any:
            weights = self.score((self.query(h)[:, None] + keys).tanh()).softmax(1)
            context = self.gate(h).sigmoid() * (weights * items).sum(1)
            h, c = self.cell(torch.cat([word, context], 1), (h, c))
            return torch.cat([h, context], 1), h, c

        def loss(self, outputs: Any, words: Any, tokens: Any) -> Any:
            logits = self.logits(self.dropout((words + self.deep(self.dropout(outputs))).tanh()))
            return functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), ignore_index=0)

    model = Model()
    begin, step, loss = map(maybe_compiled, (model.begin, model.step, model.loss))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    bank = torch.from_numpy(features)
    # Captions of like length in a batch, as ours has them.
    order = np.argsort([len(caption) for caption in captions], kind="stable").reshape(-1, BATCH)

    def epoch() -> None:
        for part in order:
            tokens = nn.utils.rnn.pad_sequence([torch.from_numpy(captions[i]).long() for i in part], batch_first=True)
            picture = bank[torch.from_numpy(rows[part]).long()].float()
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                items, keys, words, h, c = begin(picture, tokens)
                outputs = []
                for word in words.unbind(1):
                    output, h, c = step(items, keys, word, h, c)
                    outputs.append(output)
                value = loss(torch.stack(outputs, 1), words, tokens)
            value.backward()
            optimizer.step()

    return CAPTIONS / _contest.epoch_seconds(epoch)


WORKS: dict[str, _contest.Contenders] = {
    **{
        f"writing_{batch}": {
            "ours": functools.partial(ours_writing, batch),
            "predict_loop": functools.partial(predict_writing, batch),
        }
        for batch in (1, 32)
    },
    "training": _contest.training(ours_training, plain_keras, pytorch),
}


def main() -> None:
    """Measures and writes benchmarks/results/captioner_speed_*.json."""
    _contest.main(
        "captioner_speed",
        __doc__,
        WORKS,
        unit="captions",
        protocol="writing: 224 px pictures, encoder included, 11 words, beam 3, at batch 1 and 32; training: cached "
        "features 7 x 7 x 1280, captions of 5 to 20 words, batch 64, best of two epochs after one warm-up, "
        "torch.compile compiles a step of the loop over words",
    )


if __name__ == "__main__":
    main()
