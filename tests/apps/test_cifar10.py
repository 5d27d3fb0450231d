"""The image classifier: it learns, it fails when it must, and it takes a person's own pictures."""

import csv
import dataclasses
import io
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import small_network
import tensorflow as tf
from PIL import Image

from apps import _run, _weights, cifar10
from apps.__main__ import main
from apps._contract import Splits, jsonable
from kerasdl import export
from kerasdl.data import augmentation, image_data, synthetic
from kerasdl.errors import UserError
from kerasdl.metrics import classification
from kerasdl.models import pretrained
from kerasdl.training import run

ROOT = Path(__file__).parent.parent.parent
QUICK = cifar10.Config(
    architecture="lenet", epochs=4, batch_size=50, learning_rate=0.05, precision="float32", flip="none"
)


def shapes(count, *, classes=4, shuffled=False):
    """Drawn shapes as the application's data; `shuffled` breaks the tie between picture and label."""
    images, labels = synthetic.shapes(count, num_classes=classes, seed=0)
    if shuffled:
        labels = np.random.default_rng(0).permutation(labels)
    parts = np.split(np.arange(count), [round(0.7 * count), round(0.85 * count)])
    train, validation, test = (image_data.Images(images[part], labels[part]) for part in parts)
    info = {"image_size": 32, "class_names": list(synthetic.SHAPE_NAMES[:classes])}
    return Splits(train, validation, lambda: test, info | image_data.Images(images).normalization(), "shapes")


def accuracy(config, data, tmp_path):
    folder = _run.train(cifar10, "cifar10", config, data, runs=tmp_path)
    return _run.measure(cifar10, config, _weights.restore(cifar10, config, data, folder), data)["accuracy"]


def probabilities(model, data):
    """Those of the test pictures."""
    return cifar10.probabilities(export.in_memory(cifar10.endpoints(model, data)), data.test().images)


def test_shuffled_labels_are_not_learned(tmp_path):
    """Those of `--tiny` are, as they stand: tests/apps/test_demo.py."""
    config, data = cifar10.tiny()
    broken = image_data.Images(data.train.images, np.random.default_rng(0).permutation(data.train.labels))
    assert accuracy(dataclasses.replace(config, epochs=1), dataclasses.replace(data, train=broken), tmp_path) < 0.3


def of_one_channel(kind, count):
    """Waves that run along or across, whose content stands in one channel; the others are constant, or nearly."""
    rng = np.random.default_rng(0)
    along = np.sin(np.arange(32) * rng.uniform(0.6, 1.2, (count, 1)) + rng.uniform(0, 6, (count, 1)))
    wave = np.broadcast_to(along[:, None], (count, 32, 32))
    labels = (np.arange(count) % 2).astype(np.int32)
    wave = np.where(labels[:, None, None] == 1, wave, wave.transpose(0, 2, 1))[..., None]
    grey = np.clip(128 + 60 * wave + rng.normal(0, 20, wave.shape), 0, 255).astype(np.uint8)
    noise = rng.integers(0, 3, grey.shape, np.uint8)
    rest = {"grey": grey, "green": np.zeros_like(grey), "green, noise": noise, "yellow": np.full_like(grey, 255)}[kind]
    return image_data.Images(np.concatenate([rest, grey, rest], -1), labels)


def test_pictures_of_one_channel_are_learned_as_their_grey_version_is():
    """And a later picture that has the other channels gets an answer of the usual size."""
    config = dataclasses.replace(QUICK, epochs=8, batch_size=20)
    colour = synthetic.shapes(50, seed=1)[0].astype(np.float32)
    for kind in ("grey", "green", "green, noise", "yellow"):
        whole = of_one_channel(kind, 240)
        train, test = (whole.of(part) for part in np.split(np.arange(240), [200]))
        info = {"image_size": 32, "class_names": ["a", "b"], **train.normalization()}
        data = Splits(train, None, lambda test=test: test, info, kind)
        keras.utils.set_random_seed(0)
        model = cifar10.build_model(config, data)
        targets = np.eye(2, dtype=np.float32)[train.labels]
        model.fit(train.images.astype(np.float32), targets, config.batch_size, config.epochs, verbose=0)
        assert np.mean(model(test.images.astype(np.float32)).numpy().argmax(1) == test.labels) >= 0.95, kind
        assert np.abs(model(colour)).max() < 30, kind


def test_the_fast_network_learns_few_pictures_of_one_channel_in_small_batches(tmp_path):
    """Three steps an epoch; a channel that is constant may not blow up the first gradient."""
    whole = of_one_channel("green", 66)
    train, held = (whole.of(part) for part in np.split(np.arange(66), [48]))
    info = {"image_size": 32, "class_names": ["a", "b"], **train.normalization()}
    data = Splits(train, held, lambda: held, info, "green waves")
    assert accuracy(cifar10.Config(epochs=6, batch_size=16, progressive="none"), data, tmp_path) >= 0.95


def test_pictures_that_are_all_alike_teach_nothing_and_break_nothing(tmp_path):
    drawn = shapes(60)
    for value in (0, 128):
        flat = image_data.Images(np.full_like(drawn.train.images, value), drawn.train.labels)
        data = dataclasses.replace(drawn, train=flat, info=drawn.info | flat.normalization())
        config = dataclasses.replace(QUICK, epochs=1, batch_size=10)
        model = _weights.restore(cifar10, config, data, _run.train(cifar10, "cifar10", config, data, runs=tmp_path))
        assert np.isfinite(model.predict(drawn.test().images.astype(np.float32), verbose=0)).all()


@pytest.mark.parametrize(
    "architecture", ["lenet", "alexnet", "vgg19", "resnet20", "plain20", "se-resnet20", "preresnet20"]
)
def test_every_architecture_trains_a_step_and_predicts(architecture, tmp_path):
    config = cifar10.Config(architecture=architecture, epochs=1, batch_size=16)
    data = shapes(40)
    model = cifar10.build_model(config, data)
    before = [w.copy() for w in model.get_weights()]
    folder = _run.train(cifar10, "cifar10", config, data, runs=tmp_path)
    after = _weights.restore(cifar10, config, data, folder)
    assert any((a != b).any() for a, b in zip(before, after.get_weights(), strict=True))
    answer = probabilities(after, data)
    np.testing.assert_allclose(answer.sum(-1), 1, rtol=1e-5)
    assert after.output.dtype == "float32"


def test_an_export_divides_by_a_temperature_of_held_out_pictures(tmp_path, capsys):
    """It keeps every answer; without such pictures it takes that of a run that has them, or says so."""
    data = shapes(300)
    config = QUICK
    whole = dataclasses.replace(config, validation_ratio=0.0), dataclasses.replace(data, validation=None)
    keras.utils.set_random_seed(0)
    model = cifar10.build_model(config, data)
    model.layers[-1].kernel.assign(20 * model.layers[-1].kernel)  # far too sure of what it has not learned
    folder, bare = (
        run.create(tmp_path / name, "cifar10", jsonable(own), dict(known.info))
        for name, (own, known) in (("held", (config, data)), ("bare", whole))
    )
    for place in (folder, bare):
        model.save(place / run.MODEL)

    def made(*what, **options):
        target = _run.export_run(cifar10, "cifar10", *what, root=tmp_path / "out", version=None, **options)
        return json.loads((target / "metrics.json").read_text()), (target / "MODEL_CARD.md").read_text(), target

    calibrated, card, target = made(config, data, folder)
    plain = _run.measure(cifar10, config, model, data)
    assert calibrated["temperature"] > 2
    assert calibrated["nll_nats"] < plain["nll_nats"] - 0.1
    assert calibrated["calibration_error"] < plain["calibration_error"]
    assert calibrated["uncalibrated_nll_nats"] == pytest.approx(plain["nll_nats"], rel=0.02)
    assert {name: calibrated[name] for name in plain if "accuracy" in name} == {
        name: pytest.approx(value, abs=0.03) for name, value in plain.items() if "accuracy" in name
    }
    assert f"temperature {calibrated['temperature']:.3f}, fitted to the 45 validation examples of this run" in card
    uncertain = cifar10.probabilities(export.signatures(target), data.test().images)
    sure = probabilities(model, data)
    assert uncertain.max(1).mean() < sure.max(1).mean() - 0.05

    metrics, card, _ = made(*whole, bare)
    assert "temperature" not in metrics
    assert "not calibrated: this run held no examples out" in card
    metrics, card, _ = made(*whole, bare, calibrate_on=(config, data, folder))
    assert metrics["temperature"] == pytest.approx(calibrated["temperature"])
    assert f"validation examples of the run {folder.name}" in card
    wider = dataclasses.replace(config, learning_rate=0.01)
    with pytest.raises(UserError, match="differs in learning_rate, "):
        made(*whole, bare, calibrate_on=(wider, data, folder))
    with pytest.raises(UserError, match="held no examples out"):
        made(*whole, bare, calibrate_on=(*whole, bare))
    capsys.readouterr()
    _run.evaluate(cifar10, [(config, data)], [folder])
    assert f"temperature {calibrated['temperature']:.3f}" in capsys.readouterr().out


def test_evaluation_says_what_corruptions_cost(tmp_path):
    data = shapes(100)
    metrics = _run.measure(cifar10, QUICK, cifar10.build_model(QUICK, data), data)
    kinds = ("noise_10", "blur_1_pixel", "jpeg_quality_30", "brighter_30_percent")
    assert all(0 <= metrics[f"accuracy_{kind}"] <= 1 for kind in kinds)


def augmenter(config, data):
    return augmentation.chain(config, num_classes=len(data.info["class_names"]), size=data.info["image_size"])


def test_every_augmentation_and_option_goes_through(tmp_path):
    config = dataclasses.replace(
        QUICK, epochs=2, flip="random", padding=3, rotation_degrees=10.0, scale_ratio=0.1, color_jitter=0.2,
        cutout_size=8, mixup_alpha=0.2, label_smoothing=0.1, ema_momentum=0.9, clip_norm=1.0, optimizer="adamw",
        learning_rate=1e-3, schedule="plateau", patience=5,
    )  # fmt: skip
    data = shapes(100)
    transform = augmenter(config, data)
    images, labels = data.train.images[:20], data.train.labels[:20]
    batch = {"index": tf.range(20, dtype=tf.int64), "epoch": tf.constant(0, tf.int64), "seed": tf.constant([1, 2])}
    changed, targets = transform(tf.constant(images), tf.constant(labels), **batch)
    assert changed.shape == (20, 32, 32, 3)
    assert np.abs(changed.numpy() - images).mean() > 5
    np.testing.assert_allclose(targets.numpy().sum(-1), 1, rtol=1e-5)
    assert ((targets.numpy() > 0).sum(-1) == 2).any(), "mixup mixed nothing"
    plain, hard = augmenter(dataclasses.replace(config, augment=False), data)(
        tf.constant(images), tf.constant(labels), **batch
    )
    np.testing.assert_array_equal(plain.numpy(), images)
    assert (hard.numpy().max(-1) == 1).all()
    folder = _run.train(cifar10, "cifar10", config, data, runs=tmp_path)
    assert len((folder / "log.csv").read_text().splitlines()) == 3


def test_progressive_resizing_ends_at_the_full_size():
    assert augmentation.progressive_sizes(12, 32) == [24] * 6 + [28] * 3 + [32] * 3
    assert augmentation.progressive_sizes(1, 32) == [24]


@pytest.mark.parametrize("progressive", ["resize", "crop"])
def test_progressive_pictures(progressive):
    config = cifar10.Config(epochs=4, progressive=progressive, flip="none", padding=0, cutout_size=0)
    transform = augmenter(config, shapes(40))
    source = shapes(40).train.images[:2].astype(np.float32)
    for epoch, size in enumerate([24, 24, 28, 32]):
        images, _ = transform(
            tf.constant(source),
            tf.zeros([2], tf.int32),
            index=tf.range(2, dtype=tf.int64),
            epoch=tf.constant(epoch, tf.int64),
            seed=tf.constant([0, 0]),
        )
        assert images.shape == (2, size, size, 3)
        windows = np.lib.stride_tricks.sliding_window_view(source[0], (size, size, 3)).reshape(-1, size, size, 3)
        is_cut = any((window == images[0].numpy()).all() for window in windows)
        assert is_cut == (progressive == "crop" or size == 32)


def test_the_validation_split_is_the_same_for_every_seed():
    examples = image_data.Images(np.arange(100), np.arange(100))
    train, validation = image_data.hold_out(examples, 0.1)
    assert len(validation.labels) == 10
    assert sorted([*train.labels, *validation.labels]) == list(range(100))
    assert len(image_data.hold_out(examples, 0.0)[1]) == 0


def test_ensemble_averages_probabilities(tmp_path):
    data = shapes(60)
    folders = [
        _run.train(cifar10, "cifar10", dataclasses.replace(QUICK, epochs=1, seed=seed), data, runs=tmp_path)
        for seed in (0, 1)
    ]
    models = [_weights.restore(cifar10, QUICK, data, folder) for folder in folders]
    single = [probabilities(model, data) for model in models]
    assert np.abs(single[0] - single[1]).max() > 1e-3
    np.testing.assert_allclose(probabilities(cifar10.ensemble(models), data), np.mean(single, axis=0), atol=1e-5)
    metrics = _run.evaluate(cifar10, [(QUICK, data)] * 2, folders)
    assert 0 <= metrics["accuracy"] <= 1
    [written] = folders[0].glob("ensemble*/metrics.json")
    assert written.parent.name == f"ensemble+{folders[1].name}"
    assert json.loads(written.read_text())["runs"] == [str(f) for f in folders]


# --- A person's own pictures ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """300 JPEGs and PNGs of mixed sizes and modes, three classes told apart by their shape."""
    root = tmp_path_factory.mktemp("pictures")
    images, labels = synthetic.shapes(300, size=48, num_classes=3, seed=5)
    rng = random.Random(0)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / f"kind {label}"
        folder.mkdir(exist_ok=True)
        picture = Image.fromarray(image).resize((rng.randint(40, 90), rng.randint(40, 90)))
        if i % 7 == 0:
            picture = picture.convert("L")
        picture.save(folder / f"{i}.{'png' if i % 5 == 0 else 'jpg'}", **({} if i % 5 == 0 else {"quality": 92}))
    return root


def test_own_pictures_are_learned_exported_and_classified(pictures, tmp_path, capsys):
    arguments = ["--data", str(pictures), "--image-size", "32", "--epochs", "14", "--batch-size", "30"]
    assert main(["cifar10", "train", *arguments, "--runs", str(tmp_path)]) == 0
    (folder,) = (tmp_path / "cifar10").iterdir()
    assert main(["cifar10", "evaluate", str(folder)]) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.7, "chance is 0.33"
    assert {"class_accuracy_kind 0", "class_accuracy_kind 1", "class_accuracy_kind 2"} <= set(metrics)
    exports = tmp_path / "exports"
    assert main(["cifar10", "export", str(folder), "--saved-models", str(exports)]) == 0
    capsys.readouterr()
    sample = sorted(pictures.glob("kind 1/*.jpg"))[:20]
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    command = ["cifar10", "classify", str(exports / "cifar10"), *map(str, sample), str(tmp_path / "broken.jpg")]
    assert main([*command, "--format", "json", "--top", "1"]) == 0
    printed = capsys.readouterr()
    answers = [json.loads(line)["classes"] for line in printed.out.splitlines()]
    assert len(answers) == 20
    assert sum("kind 1" in answer for answer in answers) > 12
    assert "broken.jpg: left out" in printed.err
    command = ["cifar10", "classify", str(exports / "cifar10"), str(sample[0]), "--explain", str(tmp_path / "why")]
    assert main(command) == 0
    assert (tmp_path / "why" / f"{sample[0].stem}.png").stat().st_size > 1000


def test_csv_and_json_read_back_and_figures_of_equal_names_are_kept_apart(pictures, tmp_path, capsys):
    source = next(pictures.rglob("*.png"))
    names = ["cat, black/Grün.png", 'dog "big"/5" pipe.png', 'dog "big"/Grün.PNG', "two\nlines.png", "a\rb.png"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(source.read_bytes())
    found = sorted(tmp_path.glob("in/**/*.*"))
    exported = str(ROOT / "saved_models/cifar10")
    command = ["cifar10", "classify", exported, *(str(path) for path in found if path.is_file()), "--top", "2"]
    assert main([*command, "--format", "csv", "--explain", str(tmp_path / "why")]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out, newline="")))
    assert rows[0] == ["path", "class", "probability"]
    assert [row[0] for row in rows[1::2]] == [str(path) for path in found]
    assert all(len(row) == 3 and 0 <= float(row[2]) <= 1 for row in rows[1:])
    assert len(list((tmp_path / "why").iterdir())) == len(names)
    assert main([*command, "--format", "csv", "--explain", str(tmp_path / "why")]) == 2
    assert "exists, and nothing is overwritten; give another --explain" in capsys.readouterr().err
    assert main([*command, "--format", "json"]) == 0
    answers = [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]
    assert [answer["path"] for answer in answers] == [str(path) for path in found]


def test_the_graph_reads_pictures_as_the_loader_does(pictures):
    from kerasdl.data import picture_files

    files = sorted(pictures.rglob("*.png"))[:10]
    expected, _, _ = picture_files.load([(path, 0) for path in files], size=32)
    encoded = tf.constant([path.read_bytes() for path in files])
    np.testing.assert_array_equal(export.decode_images(encoded, 32), expected)


def test_a_backbone_learns_its_head_first_then_everything(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.applications, "MobileNetV2", small_network.network)
    config = cifar10.Config(
        architecture="backbone", data=pictures, image_size=32, epochs=2, head_epochs=1, batch_size=60,
        weights=None, precision="float32",
    )  # fmt: skip
    data = cifar10.load_data(config)
    data = dataclasses.replace(data, train=image_data.Images(data.train.images[:60], data.train.labels[:60]))
    model = cifar10.build_model(config, data)
    base = model.layers[-4]
    kernels = {"base": base.get_layer("block_11_conv").kernel, "head": model.get_layer("head").kernel}
    seen = []

    class Record(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append({name: kernel.numpy().copy() for name, kernel in kernels.items()})

    start = {name: kernel.numpy().copy() for name, kernel in kernels.items()}
    saver = _run.checkpoint.Checkpoint(tmp_path, monitor="val_accuracy", maximize=True)
    cifar10.train(config, model, data, [Record(), saver])
    assert (seen[0]["base"] == start["base"]).all()
    assert (seen[0]["head"] != start["head"]).any()
    assert (seen[1]["base"] != start["base"]).any()


@pytest.mark.real
def test_a_pretrained_backbone_beats_its_random_twin(pictures, data_dir, tmp_path):
    weights = data_dir / "weights" / "mobilenet_v2_1.0_imagenet_notop.weights.h5"
    if not weights.is_file():
        pytest.skip(f"{weights} is not there: no ImageNet weights to test with")  # absent data
    scores = []
    for path in (None, str(weights)):
        config = cifar10.Config(
            architecture="backbone", data=pictures, image_size=96, weights=path, epochs=2, head_epochs=2,
            batch_size=32, learning_rate=3e-3,
        )  # fmt: skip
        scores.append(accuracy(config, cifar10.load_data(config), tmp_path))
    assert scores[1] > scores[0] + 0.2


# --- Killed and resumed --------------------------------------------------------------------------


def test_sigkill_at_a_random_moment_and_resume_gives_equal_weights(tmp_path):
    """The whole command line, in processes of its own."""
    flags = ["train", "--tiny", "--architecture", "lenet", "--epochs", "6", "--batch-size", "50"]
    command = [sys.executable, "-m", "apps", "cifar10"]

    def run(*words):
        subprocess.run([*command, *words], cwd=ROOT, check=True, capture_output=True)

    run(*flags, "--runs", str(tmp_path / "whole"))
    with subprocess.Popen(
        [*command, *flags, "--runs", str(tmp_path / "killed")], cwd=ROOT, stdout=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("killed/cifar10/*/log.csv")):
            assert time.monotonic() < deadline
            assert process.poll() is None, "finished before it could be killed"
            time.sleep(0.01)
        time.sleep(random.uniform(0, 1.0))
        process.send_signal(signal.SIGKILL)
    (killed,), (whole,) = tmp_path.glob("killed/cifar10/*"), tmp_path.glob("whole/cifar10/*")
    with np.load(killed / "checkpoint.npz") as file:
        done = len(json.loads(str(file["state"]))["history"])
    run("train", "--resume", str(killed))
    with np.load(whole / "checkpoint.npz") as a, np.load(killed / "checkpoint.npz") as b:
        assert len(json.loads(str(b["state"]))["history"]) == 6
        for name in set(a.files) - {"state"}:
            np.testing.assert_array_equal(a[name], b[name], err_msg=f"killed after {done} epochs")


def weights(folder):
    with np.load(folder / "checkpoint.npz") as file:
        return [file[name] for name in file.files if name != "state"]


def test_a_longer_run_equals_one_that_was_longer_from_the_beginning(tmp_path):
    """And the folder keeps its new number of epochs."""
    flags = ["--tiny", "--architecture", "lenet", "--schedule", "constant", "--batch-size", "500"]
    for name, epochs in (("whole", "3"), ("longer", "2")):
        assert main(["cifar10", "train", *flags, "--epochs", epochs, "--runs", str(tmp_path / name)]) == 0
    (whole,), (longer,) = tmp_path.glob("whole/cifar10/*"), tmp_path.glob("longer/cifar10/*")
    assert main(["cifar10", "train", "--resume", str(longer), "--epochs", "3"]) == 0
    for one, other in zip(weights(whole), weights(longer), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (longer / "config.json").read_text() == (whole / "config.json").read_text()


def test_averages_and_phases_resume_exactly(tmp_path, monkeypatch):
    """Killed after the head's phase, which Keras ends with averages in place of the weights."""

    def network(*_):
        image = keras.Input((32, 32, 3))
        x = keras.layers.Conv2D(4, 3, strides=2, activation="relu")(image)
        return keras.Model(image, x, name="base"), lambda x: x / 255

    monkeypatch.setattr(pretrained, "network", network)
    config = dataclasses.replace(
        QUICK, architecture="backbone", image_size=32, epochs=3, head_epochs=1, ema_momentum=0.9, optimizer="sgd",
        patience=2,
    )  # fmt: skip
    data = shapes(200)
    whole = _run.train(cifar10, "cifar10", config, data, runs=tmp_path / "whole")
    save = _run.checkpoint.Checkpoint.on_epoch_end

    def stop(saver, epoch, logs=None):
        save(saver, epoch, logs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_run.checkpoint.Checkpoint, "on_epoch_end", stop)
        _run.train(cifar10, "cifar10", config, data, runs=tmp_path / "killed")
    (killed,) = tmp_path.glob("killed/cifar10/*")
    _run.train(cifar10, "cifar10", config, data, runs=tmp_path, resume=killed)
    for one, other in zip(weights(whole), weights(killed), strict=True):
        np.testing.assert_array_equal(one, other)
    # The kept model is the one that the log's best epoch was measured on.
    rows = [row.split(",") for row in (killed / "log.csv").read_text().splitlines()]
    scores = [float(row[rows[0].index("val_accuracy")]) for row in rows[1:]]
    losses = [-float(row[rows[0].index("val_loss")]) for row in rows[1:]]
    model = _weights.restore(cifar10, config, data, killed)
    targets = np.eye(4, dtype=np.float32)[data.validation.labels]
    found = model.evaluate(data.validation.images, targets, verbose=0, return_dict=True)
    score, loss = max(zip(scores, losses, strict=True))
    assert (found["accuracy"], found["loss"]) == (pytest.approx(score), pytest.approx(-loss, rel=1e-4))


# --- Mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0; expected 1 or more"),
        ({"epochs": -1}, "--epochs is -1; expected 1 or more"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"validation_ratio": 1.0}, "--validation-ratio is 1.0; expected 0 to 0.8"),
        ({"patience": 3, "validation_ratio": 0.0}, "needs validation data"),
        ({"image_size": 4}, "--image-size"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(UserError, match=message):
        cifar10.Config(**fields)


def test_recipes_follow_the_architecture_and_flags_win():
    assert cifar10.Config(architecture="resnet20").optimizer == "sgd"
    assert cifar10.Config(architecture="plain20", learning_rate=0.3).learning_rate == 0.3
    assert cifar10.Config().optimizer == "muon"


def test_wrong_backbones_name_the_way_out():
    data = shapes(20)
    with pytest.raises(UserError, match=r"not in keras\.applications; choose one of .*MobileNetV2"):
        cifar10.build_model(cifar10.Config(architecture="backbone", backbone="MobileNetV9"), data)
    with pytest.raises(UserError, match=r"the weights nope\.h5 do not exist"):
        cifar10.build_model(cifar10.Config(architecture="backbone", weights="nope.h5"), data)


def test_a_diverging_run_stops_with_status_1_and_one_line(tmp_path, capsys):
    flags = ["--tiny", "--architecture", "lenet", "--learning-rate", "1e30", "--optimizer", "sgd", "--epochs", "2"]
    assert main(["cifar10", "train", *flags, "--runs", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "the loss became" in error
    assert "lower the learning rate" in error
    assert len(error.strip().splitlines()) == 1


# --- The trained export --------------------------------------------------------------------------


@pytest.mark.real
def test_the_trained_export_has_the_accuracy_on_its_card(data_dir, card):
    folder = ROOT / "saved_models/cifar10/1"
    test = cifar10.load_data(cifar10.Config(data_dir=data_dir)).test()
    test = test.of(card.rows(len(test), 2000))
    measured = classification.classification_report(*cifar10.predictions(export.signatures(folder), test))
    card.compare(folder, measured, accuracy=(2e-4, 2e-3), calibration_error=(1e-3, 4e-3))
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 8 * 2**20


def test_the_trained_export_names_a_drawn_picture():
    """Without data: the export loads and answers with CIFAR-10's classes and probabilities that sum to 1."""
    signatures = export.signatures(ROOT / "saved_models/cifar10")
    image = synthetic.shapes(2, seed=1)[0]
    answer = signatures["pixels"](image=tf.constant(image))
    names = signatures["class_name"](index=tf.range(10))["label"].numpy().tolist()
    assert names[:3] == [b"airplane", b"automobile", b"bird"]
    np.testing.assert_allclose(answer["probabilities"].numpy().sum(-1), 1, rtol=1e-5)
    assert answer["label"].numpy()[0] == names[int(answer["probabilities"].numpy()[0].argmax())]


@pytest.mark.parametrize(
    ("architecture", "kind"), [("fast", "NormalizedMuon"), ("lenet", "Muon"), ("resnet20", "Muon")]
)
def test_muon_normalizes_the_kernels_of_the_fast_network_alone(architecture, kind):
    """Others do not bear its rates: their matrices would take 1,400 times that of a kernel."""
    _, data = cifar10.tiny()
    model = cifar10.build_model(cifar10.Config(architecture=architecture, optimizer="muon"), data)
    assert type(model.optimizer).__name__ == kind
