"""The DCGAN: it draws what it has seen, of the class that is asked for, the same from the same seed."""

import dataclasses
import functools
import json
import math
from pathlib import Path

import fitting
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from apps import _run, _weights, dcgan
from apps.__main__ import main
from apps._contract import Splits
from kerasdl import export
from kerasdl.data import image_data, synthetic
from kerasdl.data.divided import Divided
from kerasdl.errors import UserError
from kerasdl.models import feature_space
from kerasdl.models.generator import Generator

ROOT = Path(__file__).parent.parent.parent
CLASSES = 4
SMALL = dcgan.Config(
    conditional=True, latent_dim=8, filters=8, ema_momentum=0.9,
    generator_learning_rate=5e-3, discriminator_learning_rate=2e-3, epochs=9, batch_size=16, samples_every=9,
    flip="none", feature_epochs=8,
)  # fmt: skip


def bars(count, seed):
    """A bright bar on dark ground whose place is the class; its brightness varies."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % CLASSES).astype(np.int32)
    images = np.full((count, 16, 16, 1), 25.0)
    for image, label, brightness in zip(images, labels, rng.uniform(150, 240, count), strict=True):
        image[4 * label : 4 * label + 4] = brightness
    return image_data.Images(np.uint8(images + rng.normal(0, 6, images.shape).clip(-20, 15)), labels)


def splits(train=None, **info):
    parts = [bars(count, seed) for seed, count in enumerate((200, 40, 80))]
    found = Divided(train or parts[0], parts[1], lambda: parts[2], list("abcd"), "bars")
    return Splits.of(found, info | image_data.facts(found, "bars"))


fitted = functools.partial(fitting.fitted, dcgan)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """So that each network that measures is trained once."""
    return tmp_path_factory.mktemp("features")


# --- Learning --------------------------------------------------------------------------------------------------------


def test_tiny_comes_near_to_the_shapes_and_an_untrained_generator_does_not(cache, tmp_path):
    config, data = dcgan.tiny()
    config = dataclasses.replace(config, cache=cache)
    folder = _run.train(dcgan, "dcgan", config, data, runs=tmp_path)
    learned = _run.measure(dcgan, config, _weights.restore(dcgan, config, data, folder), data)
    untrained = _run.measure(dcgan, config, dcgan.build_model(config, data), data)
    assert learned["frechet"] < 0.55 * untrained["frechet"]
    assert learned["frechet_floor"] == untrained["frechet_floor"] < 0.2 * learned["frechet"]
    assert learned["recall"] > 0.1 > untrained["recall"] == 0
    assert (learned["modes_hit"], untrained["modes_hit"]) == (4, 1)
    assert learned["class_accuracy"] > 0.55 > 0.35 > untrained["class_accuracy"]  # chance is 1/4
    assert learned["classifier_accuracy"] > 0.9
    assert learned["feature_space"].startswith(
        "fast network, 3 epochs on the classes of 2,000 pictures of drawn shapes"
    )
    grids = sorted((folder / "figures/samples").iterdir())
    assert [grid.name for grid in grids] == ["0002.png", "0004.png", "0006.png", "0008.png", "0010.png"]
    with Image.open(folder / "figures/training.gif") as image:
        assert image.n_frames == 5
    log = (folder / "log.csv").read_text().splitlines()[0].split(",")
    assert {"val_frechet", "real_accuracy", "generated_accuracy", "generator_gradient_norm", "diversity"} <= set(log)


@pytest.mark.parametrize("labels", ["true", "shuffled"])
def test_it_draws_the_class_that_is_asked_for(labels, cache, tmp_path):
    """Chance is 1/4. What the classes are is learned from the true labels."""
    config, data = dataclasses.replace(SMALL, cache=cache), splits()
    given = data
    if labels == "shuffled":
        order = np.random.default_rng(0).permutation(200)
        given = dataclasses.replace(data, train=image_data.Images(data.train.images, data.train.labels[order]))
        config = dataclasses.replace(config, cache=None, feature_epochs=1)
    model = fitted(config, given, tmp_path)
    metrics = _run.measure(dcgan, dataclasses.replace(SMALL, cache=cache), model, data, tmp_path / "figures")
    assert metrics["classifier_accuracy"] > 0.95
    assert metrics["class_accuracy"] > 0.8 if labels == "true" else metrics["class_accuracy"] < 0.5
    for name in ("samples", "neighbours", "interpolation"):
        assert (tmp_path / f"figures/{name}.png").is_file()


# --- Training --------------------------------------------------------------------------------------------------------


def test_resume_is_exact_with_both_optimizers_and_all_other_settings(cache, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 0

    config = dataclasses.replace(
        SMALL, conditional=False, loss="minimax", label_smoothing=0.1, minibatch_deviation=True, discriminator_steps=2,
        normalization="spectral", precision="float32", flip="random", epochs=2, patience=2, cache=cache,
    )  # fmt: skip
    data = splits()
    whole = fitted(config, data, tmp_path / "whole")
    fitted(config, data, tmp_path / "parts", Stop())
    parts = fitted(config, data, tmp_path / "parts", resume=True)
    variables = [*whole.variables, *whole.optimizer.variables]
    assert len(whole.discriminator_optimizer.variables) > len(whole.discriminator.trainable_variables)
    for one, other in zip(variables, [*parts.variables, *parts.optimizer.variables], strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)
    logs = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("whole", "parts")]
    without_seconds = [[row.split(",")[2:] for row in log] for log in logs]
    assert without_seconds[0] == without_seconds[1]
    assert len(logs[0]) == 3


# --- Data ------------------------------------------------------------------------------------------------------------


def test_digits_get_a_border_and_are_not_mirrored(monkeypatch):
    drawn = np.random.default_rng(0).integers(1, 256, (100, 28, 28, 1), np.uint8)
    labels = np.arange(100, dtype=np.int32) % 10
    of = {"train": slice(None), "test": slice(9)}
    monkeypatch.setattr(image_data.tfds, "images", lambda name, split, folder: (drawn[of[split]], labels[of[split]]))
    monkeypatch.setattr(image_data.tfds, "class_names", lambda name, folder: list("0123456789"))
    config = dcgan.Config(dataset="mnist")
    assert (config.flip, config.image_size) == ("none", 32)
    assert dcgan.Config().flip == "random"
    data = dcgan.load_data(config)
    assert data.train.images.shape == (96, 32, 32, 1)
    assert data.validation.images.shape == (4, 32, 32, 1)
    test = data.test().images
    np.testing.assert_array_equal(test[:, 2:-2, 2:-2], drawn[:9])
    assert test.sum() == drawn[:9].sum(dtype=int)  # the border is black
    both = np.concatenate([data.train.labels, data.validation.labels])
    assert sorted(both) == sorted(labels)
    position = [int(np.flatnonzero((drawn == image[2:-2, 2:-2]).all((1, 2, 3)))[0]) for image in data.train.images]
    np.testing.assert_array_equal(labels[position], data.train.labels)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Two classes of 30 pictures of several sizes and kinds, one of them broken."""
    root = tmp_path_factory.mktemp("own")
    images, labels = synthetic.shapes(60, size=40, num_classes=2, seed=5)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / f"pictures/kind {label}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image).resize((12 + index, 40))
        (picture.convert("L") if index % 5 == 0 else picture).save(folder / f"{index}.{'png' if index % 2 else 'jpg'}")
    (root / "pictures/kind 1/broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return root


def test_a_folder_without_classes_is_taken_as_it_is(own, capsys):
    plain = own / "pictures/kind 0"
    data = dcgan.load_data(dcgan.Config(data=plain, image_size=16, validation_ratio=0.2))
    assert "taken without classes" in capsys.readouterr().err
    assert (data.info["class_names"], data.train.labels, data.test().labels) == (None, None, None)
    parts = [data.train.images, data.validation.images, data.test().images]
    assert sum(map(len, parts)) == 30
    assert all(len(part) > 1 and part.shape[1:] == (16, 16, 3) for part in parts)
    few = dataclasses.replace(data, test=lambda: image_data.Images(parts[2][:3]))
    with pytest.raises(UserError, match="there are 3 test pictures; expected 4 or more"):
        dcgan.evaluate(SMALL, {}, few)
    whole = dcgan.load_data(dcgan.Config(data=plain, image_size=16, validation_ratio=0))
    assert whole.validation is None
    assert len(whole.train.images) == len(parts[0]) + len(parts[1])
    np.testing.assert_array_equal(whole.test().images, parts[2])


def test_classes_are_asked_for_and_not_there(own, tmp_path):
    with pytest.raises(UserError, match=r"--conditional needs classes.*expected a sub-folder for each class"):
        dcgan.load_data(dcgan.Config(data=own / "pictures/kind 0", conditional=True))
    with pytest.raises(UserError, match="There is no folder"):
        dcgan.load_data(dcgan.Config(data=tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="There are no pictures"):
        dcgan.load_data(dcgan.Config(data=tmp_path / "empty"))
    with pytest.raises(UserError, match="one validation picture is no measure; give more pictures"):
        dcgan.load_data(dcgan.Config(data=own / "pictures/kind 0", validation_ratio=0.001))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": Path("x"), "image_size": 48}, "--image-size is 48; expected a power of two: 32 or 64"),
        ({"data": Path("x"), "image_size": 8}, "--image-size is 8; expected 16 or more"),
        ({"image_size": 64}, "--image-size is 64; --dataset cifar10 has 32: leave it out"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "--loss hinge has no targets to smooth"),
        ({"loss": "minimax", "label_smoothing": 0.7}, "--label-smoothing is 0.7; expected 0 to 0.5"),
        ({"discriminator_steps": 65}, "--batch-size is 64; expected 65 or more"),
        ({"ema_momentum": 1.0}, "--ema-momentum is 1.0"),
        ({"beta_1": math.nan}, "--beta-1 is nan"),
        ({"generator_learning_rate": 0.0}, "--generator-learning-rate is 0.0"),
        ({"samples_every": 0}, "--samples-every is 0; expected 1 or more"),
        ({"validation_pictures": 1}, "--validation-pictures is 1; expected 2 or more"),
        ({"feature_network": "InceptionV3"}, "--feature-network and --feature-weights belong together"),
        ({"validation_ratio": 0.0, "patience": 2}, "needs validation data"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(UserError, match=message):
        dcgan.Config(**fields)


# --- From a folder of pictures to drawn ones -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(own):
    """Trained, measured and exported by the command line; the export is loaded once."""
    flags = {"data": own / "pictures", "image-size": 16, "filters": 4, "latent-dim": 8, "epochs": 1, "batch-size": 8,
             "validation-ratio": 0.2, "feature-epochs": 1, "cache": own / "features", "runs": own / "runs"}  # fmt: skip
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    assert main(["dcgan", "train", *words, "--conditional"]) == 0
    (run,) = (own / "runs/dcgan").iterdir()
    assert main(["dcgan", "evaluate", str(run)]) == 0
    assert main(["dcgan", "export", str(run), "--saved-models", str(own / "saved_models")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "signatures", functools.cache(export.signatures))
        yield own / "saved_models/dcgan"


def command(verb, exported, output, *words):
    return main(["dcgan", verb, str(exported), "--output", str(output), *map(str, words)])


def test_a_run_and_an_export_say_what_was_measured_in_which_space(own, exported):
    (run,) = (own / "runs/dcgan").iterdir()
    figures = {path.name for path in (run / "figures").iterdir()}
    assert {"samples.png", "neighbours.png", "interpolation.png", "training.gif", "learning_curves.png"} <= figures
    assert len(list((own / "features").glob("*.npz"))) == 1  # trained once by three commands
    for folder in (run, exported / "1"):
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["feature_space"].startswith("fast network, 1 epochs on the classes of 4")
        assert {"frechet", "frechet_floor", "precision", "recall", "nearest_distance", "class_accuracy"} <= set(metrics)
    assert f"| feature_space | {metrics['feature_space']} |" in (exported / "1/MODEL_CARD.md").read_text()


def test_a_picture_follows_from_its_seed_and_class_alone(exported, tmp_path):
    assert command("generate", exported, tmp_path / "a", "--files", "--count", 3, "--seed", 5, "--classes", "all") == 0
    names = [f"kind {kind}_5-0000{index}.png" for kind in (0, 1) for index in (0, 1, 2)]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    again = ("--files", "--count", 1, "--seed", 5, "--classes", "kind 1")
    assert command("generate", exported, tmp_path / "b", *again) == 0
    (path,) = (tmp_path / "b").iterdir()
    assert path.read_bytes() == (tmp_path / "a/kind 1_5-00000.png").read_bytes()
    assert len({path.read_bytes() for path in (tmp_path / "a").iterdir()}) == 6
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (16, 16))
    assert command("generate", exported, tmp_path / "c", "--files", "--count", 1, "--seed", 6, "--classes", "1") == 0
    assert (tmp_path / "c/kind 1_6-00000.png").read_bytes() != path.read_bytes()


def test_grids(exported, tmp_path):
    sizes = {}
    for verb, words in (
        ("generate", ("--count", 12, "--truncation", 0.7)),
        ("generate", ("--count", 5, "--classes", "all")),
        ("interpolate", ("--count", 3, "--steps", 6, "--classes", "kind 1")),
    ):
        path = tmp_path / "new" / f"{len(sizes)}.png"
        assert command(verb, exported, path, *words) == 0
        with Image.open(path) as image:
            sizes[path.stem] = image.size
    tile = 68  # pixels: 64 and the gap, which is also in front of the first
    assert sizes == {
        "0": (4 * tile + 4, 3 * tile + 4), "1": (5 * tile + 4, 2 * tile + 4), "2": (6 * tile + 4, 3 * tile + 4),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        ("generate", ("--count", 0), "--count is 0; expected 1 to 10000"),
        ("generate", ("--count", 10**10), "--count is 10000000000; expected 1 to 10000"),
        ("generate", ("--count", 600, "--classes", "all"), "1200 pictures are too many for a grid; expected 1,000"),
        ("generate", ("--classes", "kint 1"), "kint 1 is no class; did you mean kind 1?"),
        ("generate", ("--classes", "2"), "--classes is 2; expected 0 to 1"),
        ("generate", ("--truncation", -1), "--truncation is -1.0; expected 0 or more"),
        ("generate", ("--seed", 2**31), "--seed is 2147483648; expected"),
        ("interpolate", ("--steps", 1), "--steps is 1; expected 2 to 50"),
        ("interpolate", ("--classes", "cat"), "cat is no class; known: kind 0, kind 1"),
    ],
)
def test_wrong_words(verb, words, message, exported, tmp_path, capsys):
    assert command(verb, exported, tmp_path / "a.png", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


def test_an_output_of_the_other_kind_is_refused(exported, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for verb, words in (("generate", ()), ("interpolate", ())):
        assert command(verb, exported, tmp_path, *words) == 2
        assert "is a folder; expected a file" in capsys.readouterr().err
    assert command("generate", exported, tmp_path / "file", "--files") == 2
    assert "file is no folder; expected one" in capsys.readouterr().err


# --- The graph -------------------------------------------------------------------------------------------------------


def asked(signature, **inputs):
    dtypes = {"truncation": tf.float32, "latent": tf.float32}
    given = {name: tf.constant(value, dtypes.get(name, tf.int32)) for name, value in inputs.items()}
    return {name: value.numpy() for name, value in signature(**given).items()}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"count": [0]}, "count is out of range"),
        ({"count": [10_001]}, "count is out of range"),
        ({"truncation": [-1]}, "truncation is below 0"),
        ({"truncation": [math.nan]}, "truncation is below 0"),
        ({"class_index": [2]}, "class_index is out of range, expected 0 to 1"),
        ({"class_index": [-2]}, "class_index is out of range"),
    ],
)
def test_the_graph_refuses(inputs, message, exported):
    usual = {"count": [1], "seed": [0], "truncation": [0], "class_index": [0]}
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        asked(export.signatures(exported)["generate"], **usual | inputs)


def test_latents_are_normal_or_truncated_and_classes_equally_likely(exported):
    signature = export.signatures(exported)["generate"]
    every = {"count": [1000], "seed": [0], "class_index": [-1]}
    free = asked(signature, **every, truncation=[0])
    latent = free["latent"].ravel()
    assert latent.mean() == pytest.approx(0, abs=0.03)
    assert latent.std() == pytest.approx(1, abs=0.03)
    assert np.mean(np.abs(latent) > 2) == pytest.approx(0.0455, abs=0.008)
    assert np.abs(np.corrcoef(free["latent"].T) - np.eye(8)).max() < 0.12
    assert np.mean(free["class_index"]) == pytest.approx(0.5, abs=0.06)
    near = asked(signature, **every, truncation=[1])
    assert np.abs(near["latent"]).max() < 1 + 1e-6
    assert near["latent"].std() == pytest.approx(0.5396, abs=0.02)  # of the normal distribution between -1 and 1
    assert (np.sign(near["latent"]) == np.sign(free["latent"])).all()
    np.testing.assert_array_equal(near["class_index"], free["class_index"])


def test_both_ways_give_the_same_picture_and_evaluate_sees_it(own, exported):
    signatures = export.signatures(exported)
    answer = asked(signatures["generate"], count=[1, 1], seed=[7, 8], truncation=[0, 0], class_index=[0, 1])
    pixels = np.stack([tf.io.decode_png(one).numpy() for one in answer["image_bytes"]])
    direct = asked(signatures["from_latent"], latent=answer["latent"], class_index=[0, 1])["image"]
    assert np.abs(direct - pixels).max() <= 0.501
    assert np.abs(Generator(signatures).draw(answer["latent"], np.int32([0, 1])) - pixels.astype(int)).max() <= 1
    (folder,) = (own / "runs/dcgan").iterdir()
    config, data = dcgan.Config(**_fields(folder)), splits()
    data = dataclasses.replace(data, info={**json.loads((folder / "run.json").read_text())["data"]})
    trained = _weights.restore(
        dcgan, config, data, folder
    )  # its weights are exact, those of the export in half precision
    trained = export.in_memory(dcgan.endpoints(trained, data))
    assert np.abs(Generator(trained).draw(answer["latent"], np.int32([0, 1])) - pixels.astype(int)).max() <= 3


def _fields(folder):
    content = json.loads((folder / "config.json").read_text())
    return {name: Path(value) if value and name in ("data", "cache") else value for name, value in content.items()}


def test_a_model_without_classes_neither_takes_nor_gives_them(monkeypatch, tmp_path, capsys):
    config = dataclasses.replace(SMALL, conditional=False)
    data = splits()
    found = dcgan.endpoints(dcgan.build_model(config, data), data)
    assert set(found) == {"generate", "from_latent"}
    assert set(found["generate"].inputs) == {"count", "seed", "truncation"}

    class Signature:
        def __init__(self, endpoint):
            self.inputs, self.function = endpoint.inputs, endpoint.function

        def __call__(self, **inputs):
            return self.function(**inputs)

    signatures = {name: Signature(endpoint) for name, endpoint in found.items()}
    monkeypatch.setattr(export, "signatures", lambda *names: signatures)
    assert command("generate", "any", tmp_path / "a", "--files", "--count", 2) == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["0-00000.png", "0-00001.png"]
    with Image.open(tmp_path / "a/0-00000.png") as image:
        assert (image.mode, image.size) == ("L", (16, 16))
    assert command("interpolate", "any", tmp_path / "a.png", "--count", 1, "--steps", 2) == 0
    assert (tmp_path / "a.png").is_file()
    assert command("generate", "any", tmp_path / "b", "--classes", "cat") == 2
    assert "knows no classes; leave --classes out" in capsys.readouterr().err


# --- The trained export ----------------------------------------------------------------------------------------------


TRAINED = ROOT / "saved_models/dcgan/1"


def test_another_classifier_sees_in_the_trained_export_what_its_card_says():
    """Without data: the classifier of CIFAR-10 that this repository exports looks at 1,000 pictures."""
    recorded = json.loads((TRAINED / "metrics.json").read_text())
    generate = export.signatures(TRAINED)["generate"]
    labels = np.repeat(np.arange(10), 100)
    asked_for = {"class_index": range(10)} if "class_accuracy" in recorded else {}
    encoded = asked(generate, count=[100] * 10, seed=range(10), truncation=[0] * 10, **asked_for)["image_bytes"]
    pixels = tf.stack([tf.io.decode_png(one) for one in encoded])
    seen = export.signatures(ROOT / "saved_models/cifar10")["pixels"](image=pixels)["probabilities"].numpy().argmax(1)
    assert len(set(seen)) == recorded["modes_hit"] == 10
    shares = np.bincount(seen, minlength=10) / 1000
    assert -np.sum(shares * np.log(shares)) == pytest.approx(recorded["class_entropy_nats"], abs=0.15)
    if asked_for:
        assert np.mean(seen == labels) == pytest.approx(recorded["class_accuracy"], abs=0.15)
    assert recorded["frechet_floor"] < recorded["frechet"]
    assert sum(path.stat().st_size for path in TRAINED.rglob("*") if path.is_file()) <= 6 * 2**20


@pytest.mark.real
def test_the_trained_export_has_the_distance_on_its_card(data_dir, monkeypatch):
    """By 1,000 pictures in place of 10,000: both distances are higher, by about as much."""
    recorded = json.loads((TRAINED / "metrics.json").read_text())
    config = dcgan.Config(**_fields(TRAINED) | {"data_dir": data_dir, "cache": ROOT / "runs/features"})
    # Another training of it gives other weights, whose distances do not compare (CONTRIBUTING.md, Decisions).
    monkeypatch.setattr(feature_space, "_train", lambda *_: pytest.skip("the network that measured is not kept here"))
    data = dcgan.load_data(config)
    test = data.test()
    data = dataclasses.replace(data, test=lambda: image_data.Images(test.images[:1000], test.labels[:1000]))
    measured = dcgan.evaluate(config, export.signatures(TRAINED), data)
    assert measured["feature_space"] == recorded["feature_space"]
    gaps = [metrics["frechet"] - metrics["frechet_floor"] for metrics in (measured, recorded)]
    assert gaps[0] == pytest.approx(gaps[1], rel=0.25)
    assert measured["nearest_distance"] == pytest.approx(recorded["nearest_distance"], rel=0.1)
