"""The variational autoencoder: it tells pictures better than single pixels do, encodes them and draws new ones."""

import dataclasses
import functools
import json
from pathlib import Path

import fitting
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy.special import xlogy

from apps import _pictures, _run, vae
from apps.__main__ import main
from apps._contract import Splits
from kerasdl import export
from kerasdl.blocks import variational
from kerasdl.data import image_data, picture_decoding, synthetic
from kerasdl.errors import UserError
from kerasdl.models.vae import DRAWS

ROOT = Path(__file__).parent.parent.parent
SMALL = vae.Config(filters=4, units=8, latents=2, epochs=1, batch_size=10, bound_samples=100)


def splits(count=60, size=16, channels=1):
    images, labels = synthetic.shapes(count, size=size, num_classes=4, seed=3)
    train, validation, rest = np.split(images[..., :channels], [count // 2, 3 * count // 4])
    test = image_data.Images(rest, labels[-len(rest) :])
    return Splits(train, validation, lambda: test, {"shape": [size, size, channels]}, "drawn shapes")


fitted = functools.partial(fitting.fitted, vae)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    config, data = vae.tiny()
    return config, data, fitted(config, data, tmp_path_factory.mktemp("tiny"))


def test_tiny_tells_pictures_far_better_than_pixels_on_their_own(tiny):
    config, data, model = tiny
    metrics = _run.measure(vae, config, model, data)
    test, shares = data.test().images / 255, np.clip(data.train.mean(0) / 255, 1e-3, 1 - 1e-3)
    alone = -(xlogy(test, shares) + xlogy(1 - test, 1 - shares)).sum((1, 2, 3)).mean()
    assert alone > 80
    assert metrics["nll_nats"] < 50
    assert metrics["nll_nats"] < metrics["elbo_nats"]
    assert metrics["elbo_nats"] == pytest.approx(metrics["kl_nats"] + metrics["reconstruction_nats"])
    assert metrics["active_latents"] + metrics["collapsed_latents"] == config.latents


@pytest.mark.parametrize("likelihood", ["bernoulli", "logistic"])
@pytest.mark.parametrize("log_var", [-500.0, -31.0, 0.0, 21.0, 142.0, 1e4])
def test_the_score_of_a_picture_unlike_all_others_is_a_finite_low_bound(likelihood, log_var):
    """Where the encoder gives log-variances whose exponential float32 does not hold."""
    config, data = dataclasses.replace(SMALL, likelihood=likelihood), splits()
    model = vae.build_model(config, data)
    usual = model.score(data.train[:3] / np.float32(255), np.arange(3))
    for layer, value in (("mean", 300.0), ("log_var", log_var)):
        model.encoder.get_layer(layer).bias.assign(np.full(2, value, np.float32))
    signatures = export.in_memory(vae.endpoints(model, data))
    answer = signatures["score"](image=data.train[:3], seed=np.arange(3))
    for key, value in answer.items():
        assert np.isfinite(value).all(), key
    assert (answer["bound_nats"].numpy() < usual["bound_nats"].numpy() - 1000).all()
    code = signatures["pixels"](image=data.train[:3])
    np.testing.assert_array_equal(code["log_var"].numpy() > 20, False)
    if log_var == 0.0:
        assert np.abs(code["log_var"]).max() < 5  # within the bounds nothing is changed


def test_without_its_divergence_the_codes_are_no_prior(tiny, monkeypatch, tmp_path):
    """KL x 0: reconstructions get better, what is drawn from the prior and the bound get worse."""
    config, data, model = tiny
    monkeypatch.setattr(variational, "free_bits", lambda kl, minimum: 0.0 * tf.reduce_sum(kl))
    broken = fitted(dataclasses.replace(config, epochs=10), data, tmp_path)
    with_kl, without = (_run.measure(vae, config, one, data) for one in (model, broken))
    assert without["reconstruction_nats"] < with_kl["reconstruction_nats"]
    assert without["kl_nats"] > 3 * with_kl["kl_nats"]
    assert without["elbo_nats"] > with_kl["elbo_nats"] + 10


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "iwae", "samples": 3},
        {"encoder": "convolutional", "optimizer": "adam"},
        {"dataset": "cifar10", "free_bits": 0.1, "kl_warmup_ratio": 0.5},
        {"precision": "bfloat16", "decoder": "convolutional"},
    ],
)
def test_other_settings_train(changes, tmp_path):
    given = {field: getattr(SMALL, field) for field in ("filters", "units", "latents", "epochs", "batch_size")}
    config = vae.Config(**given, bound_samples=100, **changes)
    data = splits(channels=3 if config.likelihood == "logistic" else 1)
    metrics = _run.measure(vae, config, fitted(config, data, tmp_path), data, tmp_path / "figures")
    assert all(np.isfinite(value) for value in metrics.values())
    assert ("bits_per_dimension" in metrics) == (config.likelihood == "logistic")
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    expected = {"reconstructions", "samples", "interpolation", "traversal", "kl_per_latent", "latent_map"}
    assert drawn == expected


# --- A person's own pictures, from training to verbs -----------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    (root / "pictures/holiday").mkdir(parents=True)
    images, _ = synthetic.shapes(16, size=40, num_classes=4, seed=5)
    for index, image in enumerate(images):
        grey = Image.fromarray(image).convert("L" if index == 3 else "RGB")  # greyscale in a colour folder
        grey.save(root / f"pictures/holiday/{index}.png")
    (root / "pictures/broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    Image.fromarray(images[0, :3, :3]).save(root / "pictures/small.png")
    return root


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def test_verbs_read_squares_in_colour_or_grey(own, capsys):
    colored, grey = (_pictures.squares([own / "pictures"], 16, channels) for channels in (3, 1))
    assert colored.shape == (17, 16, 16, 3)
    assert "Left out 1 of 18 pictures" in capsys.readouterr().err
    np.testing.assert_array_equal(grey, picture_decoding.grey(tf.constant(colored)))
    with pytest.raises(UserError, match=r"broken\.jpg"):
        _pictures.squares([own / "pictures/broken.jpg"], 16, 3)


def arguments(own, *more):
    flags = {"data": own / "pictures", "image-size": 16, "filters": 4, "units": 8, "latents": 2, "epochs": 1,
             "batch-size": 4, "bound-samples": 100, "runs": own / "runs"}  # fmt: skip
    return ["vae", "train", *(str(word) for name, value in flags.items() for word in (f"--{name}", value)), *more]


@pytest.fixture(scope="module")
def exported(own):
    assert main(arguments(own)) == 0
    (run,) = (own / "runs/vae").iterdir()
    assert main(["vae", "export", str(run), "--saved-models", str(own / "saved_models")]) == 0
    return str(own / "saved_models/vae")


def test_own_pictures_from_training_to_drawn_ones(own, exported, capsys):
    (run,) = (own / "runs/vae").iterdir()
    assert main(["vae", "evaluate", str(run)]) == 0
    assert "broken.jpg" in capsys.readouterr().err
    assert json.loads((run / "metrics.json").read_text())["bits_per_dimension"] > 0
    for name, more in (("generate", ["--count", "5"]), ("generate", ["--count", "5"]), ("generate", ["--seed", "1"])):
        output = own / f"drawn{len(list(own.glob('drawn*')))}.png"
        assert main(["vae", name, exported, *more, "--output", str(output)]) == 0
    drawn = [(own / f"drawn{index}.png").read_bytes() for index in range(3)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert main(["vae", "generate", exported, "--count", "3", "--files", "--output", str(own / "files")]) == 0
    assert [size_of(path) for path in sorted((own / "files").iterdir())] == [(16, 16)] * 3
    capsys.readouterr()
    for verb, width in (("reconstruct", 8), ("interpolate", 9)):
        output = own / f"{verb}.png"
        assert main(["vae", verb, exported, str(own / "pictures"), "--output", str(output)]) == 0
        assert "broken.jpg" in capsys.readouterr().err
        assert size_of(output)[0] == 4 + width * (64 + 4)


def test_wrong_requests_to_an_export(own, exported, capsys):
    output = ["--output", str(own / "no.png")]
    cases = {
        ("generate", "--count", "0"): "--count is 0; expected 1 to 10000",
        ("generate", "--count", "10001"): "--count is 10001; expected 1 to 10000",
        ("interpolate", str(own / "pictures/small.png")): "expected two or more",
        ("reconstruct", str(own / "pictures/broken.jpg")): "cannot be decoded",
    }
    for (verb, *rest), message in cases.items():
        assert main(["vae", verb, exported, *rest, *output]) == 2
        assert message in capsys.readouterr().err
    signature = export.signatures(Path(exported))["generate"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="count is out of range"):
        signature(count=tf.constant([20_000]), seed=tf.constant([0]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 30}, "--image-size is 30; expected a multiple of 4"),
        ({"bound_samples": 150}, "--bound-samples is 150; expected a multiple of 100"),
        ({"objective": "iwae", "free_bits": 0.5}, "which iwae has not"),
        ({"latents": 0}, "--latents is 0"),
        ({"validation_ratio": 0.0, "patience": 2}, "needs validation data"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(UserError, match=message):
        vae.Config(**fields)


def test_the_draws_of_a_score_are_those_that_the_configuration_counts():
    assert DRAWS == 100


@pytest.mark.real
def test_the_trained_export_has_the_figures_on_its_card(data_dir, card):
    """The bound of 100 draws lies between the evidence lower bound and that of 5,000 draws."""
    folder = ROOT / "saved_models/vae/1"
    recorded = json.loads((folder / "metrics.json").read_text())
    config = vae.Config(data_dir=data_dir, bound_samples=100)
    data = vae.load_data(config)
    test = data.test()
    test = test.of(card.rows(len(test), 2000))
    measured = vae.evaluate(config, export.signatures(folder), dataclasses.replace(data, test=lambda: test))
    nats = {"elbo_nats": (0.2, 0.2), "kl_nats": (0.05, 0.05), "reconstruction_nats": (0.2, 0.2)}
    card.compare(folder, measured, **nats, active_latents=(0, 0))
    assert measured["nll_nats"] < measured["elbo_nats"]
    if len(test) == 10_000:
        assert recorded["nll_nats"] < measured["nll_nats"] < recorded["elbo_nats"]
    assert export.size_bytes(folder) <= 6 * 2**20
