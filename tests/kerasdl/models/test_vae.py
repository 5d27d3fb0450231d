"""The variational autoencoder as a model: its bounds, that it learns, and how it is measured."""

import block_checks
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from apps.vae import VariationalAutoencoder
from kerasdl.blocks import autoencoding, variational
from kerasdl.models.vae import log_likelihood_bound, measured, observed, reconstructions, ways

RNG = np.random.default_rng(0)
BINARY = (RNG.random((6, 4, 4, 1)) < 0.4).astype(np.float32)


def networks(latents=3, units=8):
    image, latent = keras.Input((4, 4, 1)), keras.Input((latents,))
    x = autoencoding.dense_encoder(image, (units,), activation="tanh", name="encoder")
    encoder = keras.Model(image, [keras.layers.Dense(latents, name=name)(x) for name in ("mean", "log_var")])
    decoder = keras.Model(
        latent, autoencoding.dense_decoder(latent, (units,), (4, 4, 1), activation="tanh", name="decoder")
    )
    for model in (encoder, decoder):
        block_checks.random_weights(model)
    return encoder, decoder


def bounds(model, image, num_samples, **options):
    return log_likelihood_bound(model.score, image, num_samples, **options)


def loss(model, image, training=False):
    answer = model(image)
    return float(model.compute_loss(x=image, y_pred=answer, training=training)), answer


def test_loss_is_the_negative_bound_of_both_objectives():
    parts = networks()
    value, answer = loss(VariationalAutoencoder(*parts, num_samples=5, seed=1), BINARY)
    mean, log_var = (part.numpy() for part in parts[0](BINARY))
    divergence = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(1)
    assert value == pytest.approx((divergence - answer["log_likelihood"].numpy().mean(1)).mean(), rel=1e-5)
    np.testing.assert_allclose(answer["kl"].numpy().sum(1), divergence, rtol=1e-4)
    value, answer = loss(VariationalAutoencoder(*parts, objective="iwae", num_samples=5, seed=1), BINARY)
    weights = answer["log_weights"].numpy()
    assert value == pytest.approx(-(np.logaddexp.reduce(weights, 1) - np.log(5)).mean(), rel=1e-5)


def test_each_draw_meets_its_own_picture():
    encoder, decoder = networks()
    model = VariationalAutoencoder(encoder, decoder, num_samples=4, seed=1)
    answer = model(BINARY)["log_likelihood"].numpy()
    mean, log_var = encoder(BINARY)
    latent = variational.GaussianSampling(seed=1)(mean, log_var, num_samples=4)
    logits = decoder(latent).numpy().reshape(6, 4, -1)
    flat = BINARY.reshape(6, 1, -1)
    expected = -(np.logaddexp(0, logits) - flat * logits).sum(-1)
    np.testing.assert_allclose(answer, expected, rtol=1e-4)


def test_batch_normalization_trains():
    image = keras.Input((4, 4, 1))
    x = autoencoding.convolutional_encoder(image, (2,), name="encoder")
    x = keras.layers.Flatten()(x)
    encoder = keras.Model(image, [keras.layers.Dense(3, name=name)(x) for name in ("mean", "log_var")])
    model = VariationalAutoencoder(encoder, networks()[1], seed=1)
    model.compile("adam")
    moving = [weight for weight in model.weights if "moving" in weight.path]
    before = [weight.numpy() for weight in moving]
    model.evaluate(BINARY, verbose=0)
    for weight, start in zip(moving, before, strict=True):
        np.testing.assert_array_equal(weight, start)
    model.fit(BINARY, verbose=0)
    assert moving
    assert all((weight.numpy() != start).any() for weight, start in zip(moving, before, strict=True))


def test_warmup_and_free_bits_count_in_training_alone():
    parts = networks()
    model = VariationalAutoencoder(*parts, kl_warmup_steps=10, minimum_kl=5.0, seed=1)
    model.compile("adam")
    image = BINARY[:2]
    answer = model(image)
    kl, reconstruction = answer["kl"].numpy(), answer["log_likelihood"].numpy().mean()
    losses = {}
    for step in (0, 5, 20):
        model.optimizer.iterations.assign(step)
        losses[step] = [float(model.compute_loss(y_pred=answer, training=training)) for training in (True, False)]
    counted = np.maximum(kl.mean(0), 5).sum()
    for step, factor in ((0, 0), (5, 0.5), (20, 1)):
        assert losses[step][0] == pytest.approx(factor * counted - reconstruction, rel=1e-5)
        assert losses[step][1] == pytest.approx(kl.sum(1).mean() - reconstruction, rel=1e-5)


@pytest.mark.parametrize("likelihood", ["bernoulli", "logistic"])
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_fit_learns_and_every_weight_moves(likelihood, objective, tmp_path):
    keras.utils.set_random_seed(0)
    # Two kinds of pictures: a latent tells which.
    kind = RNG.integers(0, 2, 256)
    pictures = np.where(kind[:, None, None, None] == 0, np.eye(4)[:, :, None], 1 - np.eye(4)[:, :, None])
    pictures = np.float32(pictures if likelihood == "bernoulli" else 0.2 + 0.6 * pictures)
    model = VariationalAutoencoder(*networks(), likelihood=likelihood, objective=objective, num_samples=2)
    model.compile(keras.optimizers.Adam(0.02))
    before = [weight.numpy() for weight in model.trainable_weights]
    history = model.fit(pictures, batch_size=32, epochs=15, validation_data=(pictures, None), verbose=0).history
    assert all((one != other.numpy()).any() for one, other in zip(before, model.trainable_weights, strict=True))
    assert {"loss", "kl", "reconstruction", "val_loss", "val_kl", "val_reconstruction"} == set(history)
    # One bit has to go through the latents, log(2) = 0.69 nats.
    bound = bounds(model, pictures[:64], 100).mean()
    if likelihood == "bernoulli":
        assert -2.0 < bound < -0.69
        assert history["val_kl"][-1] > 0.5
    else:
        # Of two values with little noise 8-bit guesses (log 256 = 5.5 nats a pixel) are far behind.
        assert bound > -5.0 * 16 > -history["val_loss"][0]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(bounds(again, pictures[:64], 100).mean(), bound, rtol=1e-5)


def test_the_bound_of_many_draws_is_the_likelihood_where_latents_mean_nothing():
    encoder, decoder = networks()
    for weight in [*decoder.weights[:-1], *encoder.weights]:
        weight.assign(np.zeros(weight.shape))
    # A proposal wider than the prior, beside it, whose weights are bounded.
    encoder.get_layer("mean").bias.assign([0.6] * 3)
    encoder.get_layer("log_var").bias.assign([0.3] * 3)
    model = VariationalAutoencoder(encoder, decoder)
    logits = decoder.weights[-1].numpy()
    exact = -(np.logaddexp(0, logits) - BINARY.reshape(6, -1) * logits).sum(1)
    # The prior is integrated over by draws from the posterior: noise, but no bias in the limit.
    np.testing.assert_allclose(bounds(model, BINARY, 5000, batch_size=4), exact, atol=0.1)
    few = model.score(BINARY, np.arange(6))
    assert few["elbo_nats"].numpy().mean() < exact.mean() - 0.3
    assert few["elbo_nats"].numpy().mean() < few["bound_nats"].numpy().mean()


def test_the_bound_of_more_draws_is_that_of_all_of_them():
    model = VariationalAutoencoder(*networks())
    blocks = np.stack([model.score(BINARY, np.arange(6) * 3 + block)["bound_nats"] for block in range(3)])
    expected = np.log(np.exp(blocks.astype(np.float64)).mean(0))
    np.testing.assert_allclose(bounds(model, BINARY, 300, batch_size=4), expected, rtol=1e-6)


def test_a_score_follows_from_picture_and_seed():
    model = VariationalAutoencoder(*networks(), seed=5)
    before = model.sampling.seed_generator.state.numpy()
    both = model.score(BINARY[:2], np.array([3, 4]))
    alone = model.score(BINARY[1:2], np.array([4]))
    other = model.score(BINARY[1:2], np.array([5]))
    for key, value in both.items():
        np.testing.assert_allclose(value[1:], alone[key], rtol=1e-5)
    assert float(other["bound_nats"][0]) != float(alone["bound_nats"][0])
    np.testing.assert_array_equal(model.sampling.seed_generator.state, before)


def test_metrics_are_means_of_what_the_scores_say():
    """Over more pictures than are scored at once, each with its own seed."""
    model = VariationalAutoencoder(*networks(latents=3))
    kernel = model.encoder.get_layer("mean").kernel
    kernel.assign(kernel.numpy() * [0, 1, 1])  # the first latent tells nothing
    images = np.tile(BINARY, (20, 1, 1, 1))
    metrics, mean, kl = measured(model.score, images, 200)
    score = {key: value.numpy() for key, value in model.score(images, np.arange(120)).items()}
    np.testing.assert_allclose(mean, score["mean"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kl, score["kl_nats"].mean(0), rtol=1e-5)
    assert metrics["nll_nats"] == pytest.approx(-bounds(model, images, 200).mean())
    assert metrics["elbo_nats"] == pytest.approx(-score["elbo_nats"].mean(), rel=1e-5)
    assert metrics["kl_nats"] == pytest.approx(score["kl_nats"].sum(1).mean(), rel=1e-5)
    assert metrics["reconstruction_nats"] == pytest.approx(metrics["elbo_nats"] - metrics["kl_nats"], rel=1e-5)
    assert (metrics["active_latents"], metrics["collapsed_latents"]) == (2, 1)
    assert metrics["bound_samples"] == 200


def test_pixels_are_drawn_by_their_brightness_or_rounded():
    images = np.full((400, 4, 4, 1), 64, np.uint8)
    first, second = (observed("bernoulli", images, [0, seed]).numpy() for seed in range(2))
    assert set(np.unique(first)) == {0.0, 1.0}
    assert (first != second).any()
    assert first.mean() == pytest.approx(64 / 255, abs=0.02)
    np.testing.assert_array_equal(observed("bernoulli", np.uint8([0, 127, 128, 255])), [0, 0, 1, 1])
    for seed in (None, [0, 0]):
        np.testing.assert_allclose(observed("logistic", images, seed), images / 255)


def test_figures_of_codes_have_a_row_for_each_way_and_two_for_eight_pictures(tmp_path):
    def decode(latent):
        return {"image": tf.reshape(tf.repeat(latent[:, :1], 16, 1), [-1, 4, 4, 1])}

    def height(path):
        with Image.open(path) as picture:
            return picture.size[1]

    mean = np.linspace(0.2, 1, 27, dtype=np.float32).reshape(9, 3)
    images = np.zeros((9, 4, 4, 1), np.uint8)
    two = height(reconstructions(decode, images[:8], mean[:8], tmp_path / "eight.png"))
    four = height(reconstructions(decode, images, mean, tmp_path / "nine.png"))
    assert height(ways(decode, mean[:3], 5, tmp_path / "two.png")) == two
    assert height(ways(decode, mean[:5], 5, tmp_path / "four.png")) == four > two


def test_pictures_are_probabilities_or_values():
    latent = RNG.normal(size=(2, 3)).astype(np.float32)
    parts = networks()
    decoded = parts[1](latent).numpy()
    np.testing.assert_allclose(VariationalAutoencoder(*parts).pictures(latent), 1 / (1 + np.exp(-decoded)), rtol=1e-5)
    values = VariationalAutoencoder(*parts, likelihood="logistic").pictures(latent)
    np.testing.assert_allclose(values, np.clip(decoded, 0, 1), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "iwae", "kl_warmup_steps": 3}, "iwae has none"),
        ({"objective": "iwae", "minimum_kl": 0.1}, "iwae has none"),
        ({"num_samples": 0}, "num_samples is 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        VariationalAutoencoder(*networks(), **options)


def test_draws_that_are_no_multiple_are_refused():
    with pytest.raises(ValueError, match="num_samples is 150, expected a multiple of 100"):
        bounds(VariationalAutoencoder(*networks()), BINARY, 150)


def test_half_precision_leaves_pictures_and_draws_as_they_are():
    image, latent = keras.Input((4, 4, 1)), keras.Input((3,))
    policy = keras.DTypePolicy("mixed_bfloat16")
    code = [keras.layers.Dense(3, dtype="float32")(keras.layers.Flatten()(image)) for _ in range(2)]
    decoder = keras.Model(latent, autoencoding.dense_decoder(latent, (), (4, 4, 1), name="decoder"))
    model = VariationalAutoencoder(keras.Model(image, code), decoder, likelihood="logistic", dtype=policy)
    seen = []
    model.log_likelihood = lambda image, decoded: (
        seen.append(image) or variational.bernoulli_log_likelihood(image, 0.0 * decoded)
    )
    pictures = np.full((2, 4, 4, 1), 201 / 255, np.float32)
    model.score(pictures, np.arange(2))
    np.testing.assert_array_equal(seen[0][:2], pictures)
