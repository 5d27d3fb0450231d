"""The denoiser: it takes away more noise than a filter, of pictures of any size, and takes a person's own pictures."""

import dataclasses
import functools
import json
from pathlib import Path

import fitting
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from apps import _run, denoiser
from apps.__main__ import main
from kerasdl import export
from kerasdl.data import divided, image_data, synthetic
from kerasdl.errors import UserError
from kerasdl.metrics import denoising

ROOT = Path(__file__).parent.parent.parent
SMALL = denoiser.Config(width=4, depth=2, epochs=1, batch_size=16)


def splits(count=60, size=32):
    images, _ = synthetic.shapes(count, size=size, num_classes=8, seed=3)
    parts = np.split(images, [count // 2, 3 * count // 4])
    return denoiser.splits_of([parts[0]], parts[1], lambda: parts[2], "drawn shapes")


fitted = functools.partial(fitting.fitted, denoiser)


def test_tiny_beats_the_best_gaussian_filter_and_no_denoiser_does_not(tmp_path):
    config, data = denoiser.tiny()
    test = data.test()
    noisy = denoiser.noisy_of(config, test, 25, seed=1)
    settings = denoising.best_settings(
        "gaussian_filter", data.validation, denoiser.noisy_of(config, data.validation, 25, seed=2)
    )
    filtered = denoising.psnr_and_ssim(test, denoising.gaussian_filter(noisy, **settings))
    learned = _run.measure(denoiser, config, fitted(config, data, tmp_path), data)
    assert learned["restored_psnr_db_25"] > filtered["psnr_db"] + 2.5
    assert learned["restored_ssim_25"] > filtered["ssim"] + 0.05
    image = keras.Input((None, None, 3))
    nothing = _run.measure(denoiser, config, keras.Model(image, keras.layers.Identity()(image)), data)
    assert nothing["restored_psnr_db_25"] == pytest.approx(nothing["noisy_psnr_db_25"])
    assert nothing["restored_psnr_db_25"] < filtered["psnr_db"]


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": "salt_and_pepper"},
        {"noise": "masking", "blind": False},
        {"architecture": "autoencoder", "upsampling": "resize", "sparsity": 1e-4},
        {"precision": "float32"},
        {"optimizer": "adam", "learning_rate": None},
    ],
)
def test_other_settings_train(changes, tmp_path):
    config = dataclasses.replace(SMALL, strength=None, **changes)
    data = splits()
    model = fitted(config, data, tmp_path)
    metrics = _run.measure(denoiser, config, model, data, tmp_path / "figures")
    assert f"restored_psnr_db_{config.strength:g}" in metrics
    assert all(np.isfinite(value) for value in metrics.values())
    assert (tmp_path / "figures/restored.png").is_file()


def test_a_penalty_makes_the_code_of_an_autoencoder_sparse(tmp_path):
    """The mean size of the smallest map's values falls with the penalty."""
    config, data = dataclasses.replace(SMALL, architecture="autoencoder", epochs=12, learning_rate=0.2), splits()
    sizes = []
    for sparsity in (1e-12, 100.0):
        model = fitted(dataclasses.replace(config, sparsity=sparsity), data, tmp_path / str(sparsity))
        code = keras.Model(model.inputs, model.get_layer("sparsity").output)
        sizes.append(float(np.mean(np.abs(code.predict_on_batch(data.validation.astype(np.float32))))))
    assert sizes[1] < 0.7 * sizes[0]
    with pytest.raises(UserError, match="--sparsity is for --architecture autoencoder"):
        dataclasses.replace(SMALL, sparsity=1.0)


@pytest.mark.parametrize("architecture", ["unet", "autoencoder"])
def test_pictures_of_any_size_are_taken(architecture):
    model = denoiser.build_model(dataclasses.replace(SMALL, architecture=architecture, depth=3), splits())
    for height, width in ((1, 1), (7, 9), (32, 33)):
        noisy = np.random.default_rng(0).uniform(0, 255, (2, height, width, 3)).astype(np.float32)
        assert model.predict_on_batch(noisy).shape == noisy.shape


@pytest.mark.parametrize(("architecture", "depth"), [("unet", 2), ("unet", 4), ("autoencoder", 3)])
def test_a_large_picture_is_restored_in_tiles_as_it_is_whole(architecture, depth):
    data = splits()
    model = denoiser.build_model(dataclasses.replace(SMALL, architecture=architecture, depth=depth, width=2), data)
    for weight in model.weights:
        if weight.name == "kernel":
            weight.assign(np.random.default_rng(0).normal(0, 0.3, weight.shape))
    image = np.random.default_rng(1).integers(0, 256, (530, 600, 3), np.uint8)
    endpoint = denoiser.endpoints(model, data)["denoise"].function
    restored = tf.io.decode_png(endpoint(image_bytes=tf.io.encode_png(image)[None])["image_bytes"][0]).numpy()
    whole = model.predict_on_batch(image[None].astype(np.float32))[0]
    assert np.abs(whole - image).max() > 5
    np.testing.assert_allclose(restored, np.clip(whole, 0, 255), atol=0.51)


def test_noise_is_drawn_anew_and_of_all_strengths():
    clean = np.full((200, 16, 16, 3), 100, np.uint8)
    for blind, low in ((True, 0), (False, 21)):
        transform = denoiser.noise_maker(dataclasses.replace(SMALL, blind=blind))
        first, second = (
            transform(tf.constant(clean), seed=tf.constant([0, i]), index=None, epoch=None) for i in range(2)
        )
        np.testing.assert_array_equal(first[1], clean)
        assert (first[0].numpy() != second[0].numpy()).any()
        deviations = (first[0] - first[1]).numpy().std((1, 2, 3))
        assert low <= deviations.min() < (8 if blind else 25)
        assert deviations.max() == pytest.approx(55 if blind else 25, rel=0.15)


def test_grey_pictures_have_the_same_noise_in_all_channels_and_files_hold_round_values():
    clean = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 3), np.uint8)

    def shares(**fields):
        transform = denoiser.noise_maker(dataclasses.replace(SMALL, blind=False, flip=False, **fields))
        noisy, wanted = (part.numpy() for part in transform(tf.constant(clean), seed=tf.constant([0, 1])))
        assert noisy.dtype == wanted.dtype == np.float32
        grey = (noisy == noisy[..., :1]).all((1, 2, 3))
        np.testing.assert_array_equal(grey, (wanted == wanted[..., :1]).all((1, 2, 3)))
        np.testing.assert_array_equal(wanted[~grey], clean[~grey])
        luma = clean[grey] @ np.array([0.299, 0.587, 0.114])
        assert not grey.any() or np.abs(wanted[grey][..., 0] - luma).max() < 0.6
        rounded = ((noisy == np.round(noisy)) & (noisy >= 0) & (noisy <= 255)).all((1, 2, 3))
        return grey.mean(), rounded.mean()

    assert shares(grey=0.0, rounded=0.0) == (0, 0)
    assert shares(grey=1.0, rounded=1.0) == (1, 1)
    assert shares(grey=0.25, rounded=0.5) == pytest.approx((0.25, 0.5), abs=0.07)


def test_larger_pictures_are_learned_from_in_turn(own, tmp_path, monkeypatch):
    """Also when the training is resumed: the weights are those of one that was not stopped."""
    images, _ = synthetic.shapes(40, size=32, num_classes=8, seed=3)
    found = divided.Divided(image_data.Images(images[:32]), image_data.Images(images[32:36]),
                            lambda: image_data.Images(images[36:]), None, "drawn shapes")  # fmt: skip
    monkeypatch.setattr(denoiser.image_data, "from_tfds", lambda *_, **__: found)
    config = dataclasses.replace(
        SMALL, photographs=own / "pictures", patch_size=40, patches=2, batch_size=8, epochs=2, precision="float32"
    )
    data = denoiser.load_data(config)
    assert [part.shape for part in data.train] == [(32, 32, 32, 3), (24, 40, 40, 3)]
    sizes = []
    step = denoiser.keras.Model.train_step
    monkeypatch.setattr(
        denoiser.keras.Model, "train_step", lambda model, data: (sizes.append(data[0].shape), step(model, data))[1]
    )
    model = fitted(config, data, tmp_path / "whole")
    assert sizes == [(8, 32, 32, 3), (5, 40, 40, 3)]  # each is traced once
    assert int(model.optimizer.iterations) == 2 * 2 * 4
    with pytest.raises(KeyboardInterrupt):
        fitted(config, data, tmp_path / "parts", fitting.StopsBefore(1))
    resumed = fitted(config, data, tmp_path / "parts", resume=True)
    for one, other in zip(model.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    other = dataclasses.replace(config, photographs=None)
    assert denoiser.load_data(other).info["fingerprint"] != data.info["fingerprint"]
    assert denoiser.load_data(other).info["fingerprint"] == divided.fingerprint(images[:32], images[32:36])


# --- A person's own pictures -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    (root / "pictures/holiday").mkdir(parents=True)
    images, _ = synthetic.shapes(12, size=40, num_classes=8, seed=5)
    for index, image in enumerate(images):
        Image.fromarray(image).resize((40 + index, 40)).save(root / f"pictures/holiday/{index}.png")
    Image.fromarray(images[0, :5]).save(root / "pictures/small.png")
    return root


def arguments(own, *more):
    flags = {"data": own / "pictures", "patch-size": 24, "patches": 4, "width": 4, "depth": 2, "epochs": 1,
             "batch-size": 8, "runs": own / "runs"}  # fmt: skip
    return ["denoiser", "train", *(str(word) for name, value in flags.items() for word in (f"--{name}", value)), *more]


@pytest.fixture(scope="module")
def exported(own):
    assert main(arguments(own)) == 0
    (run,) = (own / "runs/denoiser").iterdir()
    assert main(["denoiser", "export", str(run), "--saved-models", str(own / "saved_models")]) == 0
    return str(own / "saved_models/denoiser")


def test_own_pictures_from_training_to_restored_files(own, exported, capsys):
    (run,) = (own / "runs/denoiser").iterdir()
    assert main(["denoiser", "evaluate", str(run)]) == 0
    assert "5x" not in (run / "metrics.json").read_text()
    assert json.loads((run / "metrics.json").read_text())["noisy_psnr_db_25"] > 15
    assert "small.png" in capsys.readouterr().err
    (own / "pictures/broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    pictures = str(own / "pictures")
    assert main(["denoiser", "denoise", exported, pictures, "--output", str(own / "clean")]) == 0
    assert "broken.jpg: left out" in capsys.readouterr().err
    with Image.open(own / "clean/holiday/7.png") as restored:
        assert restored.size == (47, 40)
    assert (own / "clean/small.png").is_file()  # too small to learn from, not to be restored
    assert main(["denoiser", "denoise", exported, pictures, "--output", pictures]) == 2
    assert ".png exists, and nothing is overwritten; give another --output" in capsys.readouterr().err


def test_equal_names_are_kept_apart_and_nothing_is_overwritten(own, exported, tmp_path, capsys):
    source = own / "pictures/small.png"
    for name in ("2019/a.png", "2020/a.png", "2020/a.bmp", "2020/A.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(source.read_bytes())
    command = ["denoiser", "denoise", exported, str(tmp_path / "2019"), str(tmp_path / "2020")]
    assert main([*command, "--output", str(tmp_path / "clean")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert sorted(path.name for path in (tmp_path / "clean").iterdir()) == ["A-2.png", "a-3.png", "a-4.png", "a.png"]
    (tmp_path / "clean/A-2.png").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "clean").iterdir()}
    assert main([*command, "--output", str(tmp_path / "clean")]) == 2
    assert "exists, and nothing is overwritten" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "clean").iterdir()} == before
    assert main([*command, "--output", str(source)]) == 2
    assert "small.png is no folder; expected one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strength": -1.0}, "--strength is -1"),
        ({"noise": "masking", "strength": 25.0}, "--strength is 25.0; expected 0 to 1"),
        ({"patch_size": 5}, "--patch-size is 5; expected 11 or more"),
        ({"depth": 1}, "--depth is 1"),
        ({"validation_ratio": 0.0, "patience": 2}, "needs validation data"),
        ({"photographs": Path("a"), "dataset": "mnist"}, "--photographs are learned from beside --dataset cifar10"),
        ({"photographs": Path("a"), "data": Path("b")}, "--photographs are learned from beside --dataset cifar10"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(UserError, match=message):
        denoiser.Config(**fields)


def test_pictures_that_are_all_too_small_are_named(own, capsys):
    assert main(arguments(own, "--patch-size", "64")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "smaller than a patch of 64" in error


def test_any_picture_comes_back_in_its_size(exported):
    signature = export.signatures(Path(exported), "denoise")["denoise"]
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    pictures = [
        tf.io.encode_png(pixels[..., :1]),
        tf.io.encode_png(np.concatenate([pixels, pixels[..., :1]], -1)),
        tf.io.encode_png(pixels.astype(np.uint16) * 257),
        tf.io.encode_png(pixels[:1, :1]),
        tf.io.encode_jpeg(pixels),
    ]
    restored = signature(image_bytes=tf.stack(pictures))["image_bytes"]
    shapes = [tuple(tf.io.decode_png(one).shape) for one in restored]
    assert shapes == [(40, 60, 1), *[(40, 60, 3)] * 2, (1, 1, 3), (40, 60, 3)]


def test_pictures_come_back_upright_and_grey_ones_grey(own, exported):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    grey = Image.fromarray(pixels[..., 0])
    exif = Image.Exif()
    exif[0x112] = 6
    (own / "kinds").mkdir()
    Image.fromarray(pixels).save(own / "kinds/phone.jpg", exif=exif)
    grey.save(own / "kinds/grey.png")
    grey.convert("RGB").save(own / "kinds/grey_in_three.webp", lossless=True)
    assert main(["denoiser", "denoise", exported, str(own / "kinds"), "--output", str(own / "kept")]) == 0
    found = {path.stem: tf.io.decode_png(path.read_bytes()).numpy() for path in (own / "kept").iterdir()}
    shapes = {name: image.shape for name, image in found.items()}
    assert shapes == {"phone": (60, 40, 3), "grey": (40, 60, 1), "grey_in_three": (40, 60, 1)}
    np.testing.assert_array_equal(found["grey"], found["grey_in_three"])
    pixels_endpoint = export.signatures(Path(exported), "pixels")["pixels"]
    restored = pixels_endpoint(image=np.repeat(np.asarray(grey)[None, ..., None], 3, -1).astype(np.float32))["image"]
    expected = np.clip(restored.numpy()[0].mean(-1, keepdims=True), 0, 255)
    np.testing.assert_allclose(found["grey"], expected, atol=0.51)


@pytest.mark.real
def test_the_trained_export_has_the_figures_on_its_card(data_dir, card):
    folder = ROOT / "saved_models/denoiser/1"
    config = denoiser.Config(data_dir=data_dir, blind=False)  # at 25 alone
    data = denoiser.load_data(config)
    test = data.test()
    test = test[card.rows(len(test), 300)]
    measured = denoiser.evaluate(config, export.signatures(folder), dataclasses.replace(data, test=lambda: test))
    card.compare(folder, measured, restored_psnr_db_25=(0.02, 0.02), restored_ssim_25=(5e-4, 5e-4))
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 6 * 2**20
