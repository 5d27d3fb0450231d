"""The captioner: it learns from pictures, fails without them, and takes a person's own pictures."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import fitting
import keras
import numpy as np
import pytest
import small_network
import tensorflow as tf
from PIL import Image

from apps import _run, _weights, captioner
from apps.__main__ import main
from apps._contract import Splits
from kerasdl import export
from kerasdl.blocks import caption_decoder
from kerasdl.data import captioned_pictures, synthetic
from kerasdl.decoding import beam_search
from kerasdl.errors import UserError
from kerasdl.models import caption_examples, caption_search
from kerasdl.models.captioner import feature_bank, pixels

ROOT = Path(__file__).parent.parent.parent
SMALL = captioner.Config(
    encoder="cnn", image_size=32, units=16, attention_units=8, feature_dim=8, embedding_dim=8, flip=False, min_count=1,
    epochs=1, batch_size=16,
)  # fmt: skip


def splits(config=SMALL, count=60):
    images, said = synthetic.scenes(count, size=32, seed=3)
    captions = [[one.split()] for one in said]
    found = caption_examples.cut(images, captions, (round(0.7 * count), round(0.85 * count)), "drawn scenes")
    return Splits.of(found, caption_examples.facts(found, config))


def bank_of(config, model, examples, data, *, cut=False, mirrored=False):
    return feature_bank(config, model, examples, data.info["words"], cut=cut, mirrored=mirrored)


fitted = functools.partial(fitting.fitted, captioner)


def described(model, pictures, data):
    return caption_search.describe(export.in_memory(captioner.endpoints(model, data)), pictures)


def exact(model, data):
    test = data.test()
    said = described(model, test.pictures, data)
    return float(np.mean([one == " ".join(several[0]) for one, several in zip(said, test.captions, strict=True)]))


def test_tiny_is_learned_and_shuffled_pictures_are_not(tmp_path):
    config, data = captioner.tiny()
    assert exact(fitted(config, data, tmp_path / "a"), data) > 0.8
    order = np.random.default_rng(0).permutation(len(data.train.captions))
    shuffled = caption_examples.Examples(data.train.pictures[order], data.train.captions)
    short = dataclasses.replace(config, epochs=1)
    assert exact(fitted(short, dataclasses.replace(data, train=shuffled), tmp_path / "b"), data) < 0.03


@pytest.mark.parametrize("changes", [{"attention": "none", "flip": True}, {"precision": "float32"}])
def test_other_settings_train(changes, tmp_path):
    config = dataclasses.replace(SMALL, **changes)
    data = splits(config)
    model = fitted(config, data, tmp_path)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    metrics = _run.measure(captioner, config, model, data, tmp_path / "figures")
    assert 0 <= metrics["bleu1"] <= 100
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {"captions.png", "worst_captions.png"}


def test_mirrored_pictures_exchange_left_and_right():
    config = dataclasses.replace(SMALL, flip=True)
    data = splits(config)
    model = captioner.build_model(config, data)
    bank = bank_of(config, model, data.train, data, mirrored=True)
    count = len(data.train.captions)
    np.testing.assert_array_equal(bank.pictures[count:], bank.pictures[:count, :, ::-1])
    names = ["", "", *data.info["words"]]
    assert len(bank.captions) == 2 * count
    for i in range(count):
        plain, mirrored = ([names[word] for word in bank.captions[j][0]] for j in (i, count + i))
        assert mirrored == [{"left": "right", "right": "left"}.get(word, word) for word in plain]


# --- A person's own pictures -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Files of drawn scenes with captions, and made-up weights of a small network, here keras.applications' one."""
    root = tmp_path_factory.mktemp("own")
    images, said = synthetic.scenes(40, size=48, seed=5)
    (root / "images").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(root / f"images/{index}.png")
    rows = [f"{index}.png,{caption}\n{index}.png,I see {caption}." for index, caption in enumerate(said)]
    (root / "captions.csv").write_text("image,caption\n" + "\n".join(rows) + "\n")
    keras.utils.set_random_seed(0)
    network = small_network.network()
    for layer in network.layers:  # its statistics are those of these pictures, so that features do not vanish
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network(tf.image.resize(images, [64, 64]) / 127.5 - 1, training=True)
    network.save_weights(root / "network.weights.h5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.applications, "MobileNetV2", small_network.network)
        yield root


def arguments(own, *more):
    flags = {
        "data": own / "captions.csv", "encoder-weights": own / "network.weights.h5", "image-size": 64, "units": 16,
        "attention-units": 8, "feature-dim": 8, "embedding-dim": 8, "min-count": 1, "epochs": 1, "batch-size": 16,
        "tune-epochs": 0,
        "cache": own / "cache", "runs": own / "runs",
    }  # fmt: skip
    return ["captioner", "train", *(str(word) for name, value in flags.items() for word in (f"--{name}", value)), *more]


def latest(own):
    return max((own / "runs/captioner").iterdir(), key=lambda path: path.stat().st_mtime)


def test_own_pictures_from_training_to_captions(own, capsys):
    assert main(arguments(own)) == 0
    run = latest(own)
    assert main(["captioner", "evaluate", str(run)]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"bleu1", "bleu4", "cider", "rouge_l", "distinct_words", "in_training_ratio"} <= set(metrics)
    assert main(["captioner", "export", str(run), "--saved-models", str(own / "saved_models")]) == 0
    capsys.readouterr()
    export_folder, picture = str(own / "saved_models/captioner"), str(own / "images/3.png")
    shown = ["--beam-width", "4", "--top", "2", "--explain", str(own / "figures")]
    assert main(["captioner", "caption", export_folder, picture, *shown]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"\(p = [\d.e-]+\)", printed)) == 2
    assert (own / "figures/3.png").is_file()
    assert main(["captioner", "caption", export_folder, picture, "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["captions"][0]["log_probability"] < 0
    # What the search says of its caption, the attention signature says of the same words.
    signatures = export.signatures(own / "saved_models/captioner")
    content = tf.constant([(own / "images/3.png").read_bytes()])
    words = signatures["attention"](image_bytes=content, caption=tf.constant([answer["captions"][0]["caption"]]))
    assert words["weights"].shape[2:] == (2, 2)
    total = float(tf.reduce_sum(words["log_probabilities"]))
    assert total == pytest.approx(answer["captions"][0]["log_probability"], abs=1e-3)


def with_encoder(own, **changes):
    weights = str(own / "network.weights.h5")
    fields = {"encoder_weights": weights, "image_size": 64, "data": own / "captions.csv", "cache": own / "cache"}
    return dataclasses.replace(SMALL, encoder="MobileNetV2", **{"tune_epochs": 0, **fields, **changes})


def test_features_are_computed_once_for_an_encoder(own, tmp_path, monkeypatch):
    encoded = []
    original = keras.Model.predict_on_batch
    monkeypatch.setattr(keras.Model, "predict_on_batch", lambda self, x: encoded.append(len(x)) or original(self, x))
    config = with_encoder(own, cache=tmp_path)
    data = captioner.load_data(config)
    model = captioner.build_model(config, data)
    first = bank_of(config, model, data.train, data).pictures
    assert encoded
    encoded.clear()
    again = bank_of(config, model, data.train, data).pictures
    np.testing.assert_array_equal(first, again)
    assert encoded == []
    both = bank_of(config, model, data.train, data, mirrored=True).pictures
    assert encoded
    assert np.abs(both[len(first) :] - first).max() > 0
    encoded.clear()
    kernel = model.encoder.weights[0]
    kernel.assign(kernel + 0.1)
    changed = bank_of(config, model, data.train, data).pictures
    assert encoded
    assert np.abs(changed - first).max() > 0


def test_the_top_of_the_encoder_is_tuned_and_the_rest_is_not(own, tmp_path):
    config = with_encoder(own, tune_from="block_15_add", tune_epochs=1, reinforce_epochs=1)
    data = captioner.load_data(config)
    fresh = captioner.build_model(config, data)
    trained = fitted(config, data, tmp_path)
    top, other = (model.top.get_weights() for model in (fresh, trained))
    assert any(np.abs(one - another).max() > 0 for one, another in zip(top, other, strict=True))
    for one, another in zip(fresh.encoder.get_weights(), trained.encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(one, another)
    restored = _weights.restore(captioner, config, data, tmp_path)
    assert restored.top.get_weights()[0].shape == top[0].shape


def test_resume_before_and_within_the_tuning_is_exact(own, tmp_path):
    config = with_encoder(own, tune_from="block_15_add", tune_epochs=2)
    data = captioner.load_data(config)
    whole = fitted(config, data, tmp_path / "whole")
    for done in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            fitted(config, data, tmp_path / "parts", fitting.StopsBefore(done), resume=done > 1)
    parts = fitted(config, data, tmp_path / "parts", resume=True)
    for one, other in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_picture_with_all_its_captions_counts_like_each_by_itself(own, tmp_path):
    config = with_encoder(own, tune_from="block_15_add", tune_epochs=1, precision="float32", cache=tmp_path)
    data = captioner.load_data(config)
    model = captioner.build_model(config, data)
    banks = [bank_of(config, model, data.train, data, cut=cut, mirrored=True) for cut in (False, True)]
    alike = []
    for bank in banks:
        inputs, tokens = next(iter(bank.whole(8)))
        assert tokens.shape[:2] == (8, 2)
        alike.append(model.compute_loss(inputs, tokens, model(inputs), training=False).numpy())
        rows = np.repeat(np.arange(8), 2)
        flat = {key: tf.gather(value, rows) for key, value in inputs.items() if key != "tokens"}
        flat["tokens"] = tf.reshape(inputs["tokens"], (16, -1))
        alike.append(model.compute_loss(flat, tf.reshape(tokens, (16, -1)), model(flat), training=False).numpy())
    np.testing.assert_allclose(alike, alike[0], rtol=1e-3)


def test_captions_of_its_own_are_learned_from(tmp_path):
    config = dataclasses.replace(SMALL, reinforce_epochs=1)
    data = splits(config)
    log = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: log.append(dict(logs)))
    fitted(config, data, tmp_path, watch)
    assert len(log) == 2
    assert "reward" not in log[0]
    assert 0 <= log[1]["reward"] <= 10


def test_flickr8k_folders_without_a_test_split_are_tested_on_validation(own, tmp_path):
    lines = (own / "captions.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join(lines[:61]))
    (tmp_path / "validation.csv").write_text("\n".join([lines[0], *lines[61:]]))
    data = captioner.load_data(dataclasses.replace(SMALL, data=tmp_path, images=own / "images"))
    assert len(data.test().captions) == 10
    assert len(data.train.captions) + len(data.validation.captions) == 30
    files = [set(part.pictures) for part in (data.train, data.validation, data.test())]
    assert not files[0] & files[1] | files[1] & files[2] | files[0] & files[2]


def test_coco_is_read_through_tfds(own, tmp_path, monkeypatch):
    asked = []

    def from_tfds(data_dir, path, *, progress):
        asked.append((data_dir, path))
        whole = captioned_pictures.read(own / "captions.csv")["train"]
        parts = captioned_pictures.hold_out(whole, 0.4, seed=0)
        train, held = parts["train"], captioned_pictures.hold_out(parts["validation"], 0.5, seed=0)
        return {"train": train, "validation": held["validation"], "test": held["train"]}

    monkeypatch.setattr(captioned_pictures, "from_tfds", from_tfds)
    config = dataclasses.replace(SMALL, dataset="coco_captions", data_dir=Path("tfds"), cache=tmp_path)
    data = captioner.load_data(config)
    assert asked == [(Path("tfds"), tmp_path / "coco_captions")]
    assert [len(part.captions) for part in (data.train, data.validation, data.test())] == [24, 8, 8]
    assert data.description.startswith("coco_captions, 8 pictures")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tune_epochs": -1}, "--tune-epochs is -1"),
        ({"validation_ratio": 0.0, "patience": 2}, "needs validation data"),
        ({"beam_width": 0}, "--beam-width is 0"),
        ({"length_penalty": -1.0}, "--length-penalty is -1"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(UserError, match=message):
        captioner.Config(**fields)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--encoder", "MobileNet7"], "not in keras.applications"),
        (["--encoder-weights", "nowhere.weights.h5"], "do not exist"),
        (["--tune-from", "nothing", "--tune-epochs", "1"], "is no layer of MobileNetV2"),
        (["--min-count", "1000"], "lower --min-count"),
        (["--data", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_wrong_values_are_one_line(own, words, message, capsys):
    assert main(arguments(own, *words)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error


def test_flickr8k_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"flickr8k/train.csv; Flickr8k cannot be downloaded"):
        captioner.load_data(dataclasses.replace(SMALL, data_dir=tmp_path))


def test_broken_pictures_are_left_out_with_their_captions(own, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for file in (own / "images").iterdir():
        content = file.read_bytes()
        (tmp_path / "images" / file.name).write_bytes(content[:50] if file.name == "0.png" else content)
    (tmp_path / "captions.csv").write_text((own / "captions.csv").read_text())
    config = dataclasses.replace(SMALL, data=tmp_path)
    data = captioner.load_data(config)
    model = captioner.build_model(config, data)
    splits = (data.train, data.validation)
    banks = [bank_of(config, model, part, data) for part in splits]
    test, _ = pixels(data.test().pictures, 32)
    assert sum(len(bank.pictures) for bank in banks) + len(test) == 39
    assert "0.png" in capsys.readouterr().err
    assert all(len(bank.captions) == len(bank.pictures) for bank in banks)
    assert all(len(several) == 2 for bank in banks for several in bank.captions)


def test_any_picture_gets_a_caption(own):
    signatures = export.signatures(own / "saved_models/captioner", "caption")

    def said(encoded):
        return signatures["caption"](image_bytes=tf.constant([encoded]))["caption"].numpy()[0].decode()

    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    pictures = {
        "grey": tf.io.encode_png(pixels[..., :1]),
        "transparent": tf.io.encode_png(np.concatenate([pixels, pixels[..., :1]], -1)),
        "deep": tf.io.encode_png(pixels.astype(np.uint16) * 257),
        "one pixel": tf.io.encode_png(pixels[:1, :1]),
        "wide": tf.io.encode_png(np.tile(pixels[:2], (1, 200, 1))),
        "jpeg": tf.io.encode_jpeg(pixels),
    }
    for encoded in pictures.values():
        assert len(said(encoded.numpy()).split()) <= 20


def test_captions_hold_known_words_alone(own):
    config, data = SMALL, splits()
    model = captioner.build_model(config, data)
    said = described(model, data.test().pictures, data)
    known = set(data.info["words"])
    assert all(set(caption.split()) <= known - {"<end>"} for caption in said)
    assert caption_decoder.END == 2


@pytest.mark.real
def test_the_trained_export_has_the_scores_on_its_card(data_dir, card):
    folder = ROOT / "saved_models/captioner/1"
    # The splits do not depend on the encoder: this one needs no weights.
    config = captioner.Config(encoder="cnn", data_dir=data_dir)
    data = captioner.load_data(config)
    test = data.test()
    some = card.rows(len(test), 200)
    test = caption_examples.Examples([test.pictures[i] for i in some], [test.captions[i] for i in some])
    measured = captioner.evaluate(config, export.signatures(folder), dataclasses.replace(data, test=lambda: test))
    # On another processor the beam search may choose other words for a few pictures.
    card.compare(folder, measured, bleu1=(0.2, 1), bleu4=(0.2, 1), rouge_l=(0.2, 0.6), cider=(0.01, 0.04))
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 12 * 2**20


def test_the_trained_export_says_the_same_however_it_is_asked():
    """Without data: its own example, by all signatures."""
    folder = ROOT / "saved_models/captioner/1"
    signatures = export.signatures(folder)
    content = tf.constant([tf.io.encode_png(synthetic.scenes(1, size=224, seed=0)[0][0]).numpy()])
    best = {key: value.numpy()[0] for key, value in signatures["caption"](image_bytes=content).items()}
    assert 4 <= len(best["caption"].split()) <= 20
    found = signatures["search"](
        image_bytes=content, beam_width=tf.constant([3]), length_penalty=tf.constant([0.7], tf.float32)
    )
    assert found["captions"].numpy()[0, 0] == best["caption"]
    assert found["log_probabilities"].numpy()[0, 0] == pytest.approx(best["log_probability"], abs=1e-3)
    words = signatures["attention"](image_bytes=content, caption=tf.constant([best["caption"]]))
    assert words["words"].numpy()[0].tolist() == [*best["caption"].split(), b""]
    assert float(tf.reduce_sum(words["log_probabilities"])) == pytest.approx(best["log_probability"], abs=1e-3)
    np.testing.assert_allclose(tf.reduce_sum(words["weights"], [2, 3]), 1, atol=1e-5)
    image = export.decode_images(content, 224, squash=True)
    assert signatures["pixels"](image=image)["caption"].numpy()[0] == best["caption"]
    narrow = signatures["search"](image_bytes=content, beam_width=tf.constant([1]), length_penalty=tf.constant([0.0]))
    found, text = signatures["begin"](image_bytes=content), b""
    while not text or found["text"].numpy()[0]:
        found = signatures["advance"](state=found["state"])
        text += found["text"].numpy()[0]
    assert text == narrow["captions"].numpy()[0, 0]


def test_places_that_a_picture_did_not_ask_for_are_empty_and_finite():
    """JSON has no minus infinity."""
    config, data = captioner.tiny()
    config = dataclasses.replace(config, units=8, attention_units=8, feature_dim=8, embedding_dim=8)
    signatures = export.in_memory(captioner.endpoints(captioner.build_model(config, data), data))
    content = tf.constant([tf.io.encode_png(image).numpy() for image in data.train.pictures[:2]])
    found = signatures["search"](
        image_bytes=content, beam_width=tf.constant([1, 3]), length_penalty=tf.constant([0.0, 10.0])
    )
    assert found["captions"].shape == (2, 3)
    assert np.isfinite(found["log_probabilities"]).all()
    np.testing.assert_array_equal(found["log_probabilities"].numpy() < -1e38, [[False, True, True], [False] * 3])
    assert found["captions"].numpy()[0, 1:].tolist() == [b"", b""]


@pytest.mark.parametrize("attention", ["additive", "none"])
def test_a_caption_word_by_word_is_that_of_a_beam_of_width_1(attention):
    keras.utils.set_random_seed(1)
    config, data = captioner.tiny()
    config = dataclasses.replace(
        config, units=8, attention_units=8, feature_dim=8, embedding_dim=8, attention=attention, max_words=4
    )
    model = captioner.build_model(config, data)
    for variable in model.decoder.trainable_variables:  # so that captions differ
        if "cnn" not in variable.path:
            variable.assign(30 * variable)
    signatures = export.in_memory(
        captioner.endpoints(model, dataclasses.replace(data, info=data.info | {"max_words": 4}))
    )
    content = tf.constant([tf.io.encode_png(image).numpy() for image in data.train.pictures[:40]])
    rows = tf.ones([40], tf.int32)
    expected = signatures["search"](image_bytes=content, beam_width=rows, length_penalty=tf.zeros([40]))
    state, texts = signatures["begin"](image_bytes=content)["state"], np.full(40, b"", object)
    for _ in range(6):
        found = signatures["advance"](state=state)
        state, texts = found["state"], texts + found["text"].numpy()
    assert texts.tolist() == expected["captions"].numpy()[:, 0].tolist()
    assert {len(text.split()) for text in texts} >= {4}
    assert len({*texts}) > 1
    assert not found["text"].numpy().any()
    with pytest.raises(tf.errors.InvalidArgumentError, match="state holds NaN or infinity"):
        signatures["advance"](state=state + np.inf)


def test_the_widest_beam_of_the_configuration_is_that_of_the_search():
    captioner.Config(beam_width=beam_search.MAX_WIDTH)
    with pytest.raises(UserError, match=f"expected 1 to {beam_search.MAX_WIDTH}"):
        captioner.Config(beam_width=beam_search.MAX_WIDTH + 1)
