import math

import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf

from apps.dcgan import GAN
from kerasdl.blocks import dcgan
from kerasdl.data.pipeline import training_batches
from kerasdl.models.gan import (
    LOSSES,
    CollapseWarning,
    diversity,
    hinge_discriminator_loss,
    hinge_generator_loss,
    logistic_discriminator_loss,
    minimax_generator_loss,
    non_saturating_generator_loss,
    scaled,
)
from kerasdl.training.checkpoint import Checkpoint
from kerasdl.training.precision import precision

LOGGED = {
    "loss", "discriminator_loss", "generator_loss", "real_accuracy", "generated_accuracy", "diversity",
    "discriminator_gradient_norm", "generator_gradient_norm",
}  # fmt: skip
SIZE, LATENT, CLASSES = 16, 8, 4


@pytest.fixture(autouse=True)
def _same_initial_weights():
    keras.utils.set_random_seed(0)


def points(seed=1, rows=12):
    return np.random.default_rng(seed).normal(size=(rows, 2)).astype("float32")


def dense_networks(units=8, latent=3):
    """Points of the plane instead of pictures."""
    relu, linear = (lambda width: keras.layers.Dense(width, "relu")), keras.layers.Dense
    generator = keras.Sequential([keras.Input((latent,)), relu(units), relu(units), linear(2)])
    discriminator = keras.Sequential([keras.Input((2,)), relu(units), relu(units), linear(1)])
    return generator, discriminator


def picture_networks(*, filters=4, conditional=False, channels=1, **options):
    latent, label = keras.Input((LATENT,)), keras.Input((), dtype="int32")
    picture, given = keras.Input((SIZE, SIZE, channels)), keras.Input((), dtype="int32")
    generator, discriminator = (
        {"label": tensor, "num_classes": CLASSES, "name": name} if conditional else {"name": name}
        for tensor, name in ((label, "g"), (given, "d"))
    )
    return (
        keras.Model(
            [latent, label] if conditional else latent,
            dcgan.dcgan_generator(latent, SIZE, filters, channels=channels, **generator),
        ),
        keras.Model(
            [picture, given] if conditional else picture,
            dcgan.dcgan_discriminator(picture, filters, **discriminator, **options),
        ),
    )


def adam(rate=2e-3):
    return keras.optimizers.Adam(rate, beta_1=0.5)


def compiled(networks, *, rates=(2e-3, 2e-3), eager=True, **options):
    """Eager for tests of a few steps: tracing takes longer than they do."""
    gan = GAN(*networks, seed=3, **options)
    gan.compile(*(adam(rate) for rate in rates), run_eagerly=eager)
    return gan


def drawn(num_examples=64, seed=0):
    """A bright bar on dark ground whose quarter of the picture is the label; the brightness varies."""
    rng = np.random.default_rng(seed)
    label = (np.arange(num_examples) % CLASSES).astype("int32")
    pictures = np.full((num_examples, SIZE, SIZE, 1), -0.8, "float32")
    for picture, which, brightness in zip(pictures, label, rng.uniform(0.2, 0.9, num_examples), strict=True):
        picture[:, 4 * which : 4 * which + 4] = brightness
    return pictures + 0.05 * rng.normal(size=pictures.shape).astype("float32"), label


# --- The step --------------------------------------------------------------------------------------------------------


def stepped(networks, game, parts, latents):
    """The weights after one step of plain gradient descent, written out: algorithm 1 of Goodfellow et al."""
    generator, discriminator = (keras.models.clone_model(network) for network in networks)
    for copy, network in zip((generator, discriminator), networks, strict=True):
        copy.set_weights(network.get_weights())
    judge_loss, paint_loss = LOSSES[game]
    norms = []
    for real, latent in zip(parts, latents, strict=True):
        with tf.GradientTape() as tape:
            loss = judge_loss(discriminator(real), discriminator(generator(latent)))
        variables = [weight.value for weight in discriminator.weights]
        gradients = tape.gradient(loss, variables)
        norms.append(math.sqrt(sum(np.sum(np.square(gradient)) for gradient in gradients)))
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(0.1 * gradient)
    with tf.GradientTape() as tape:
        loss = paint_loss(discriminator(generator(latents[-1])))
    variables = [weight.value for weight in generator.weights]
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        variable.assign_sub(0.2 * gradient)
    return generator.get_weights(), discriminator.get_weights(), float(loss), float(np.mean(norms))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("game", LOSSES)
def test_a_step_is_k_of_the_discriminator_and_one_of_the_generator(game, k):
    networks, real = dense_networks(), points()
    seeds = keras.random.SeedGenerator(3)
    latents = [keras.random.normal((12 // k, 3), seed=seeds) for _ in range(k)]
    expected = stepped(networks, game, [real[i::k] for i in range(k)], latents)
    gan = GAN(*networks, loss=game, discriminator_steps=k, seed=3)
    gan.compile(keras.optimizers.SGD(0.2), keras.optimizers.SGD(0.1))
    logs = gan.train_on_batch(real, return_dict=True)
    for network, weights in zip(networks, expected[:2], strict=True):
        for weight, value in zip(network.weights, weights, strict=True):
            np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-6)
    assert logs["generator_loss"] == pytest.approx(expected[2], rel=1e-5)
    assert logs["discriminator_gradient_norm"] == pytest.approx(expected[3], rel=1e-4)
    assert set(logs) == LOGGED


def test_the_discriminator_step_leaves_the_generator_alone_and_the_other_way_round():
    for rates, still, moving in (
        ((0.0, 0.01), "generator", "discriminator"),
        ((0.01, 0.0), "discriminator", "generator"),
    ):
        gan = compiled(dense_networks(), rates=rates)
        before = {part: getattr(gan, part).get_weights() for part in (still, moving)}
        gan.train_on_batch(points())
        for one, other in zip(before[still], getattr(gan, still).get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
        assert any(np.any(a != b) for a, b in zip(before[moving], getattr(gan, moving).get_weights(), strict=True))


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("normalization", ["batch", "spectral"])
def test_one_step_moves_every_weight_of_both_networks(normalization, conditional):
    gan = compiled(picture_networks(conditional=conditional, normalization=normalization, minibatch_deviation=True))
    before = [np.array(weight) for network in (gan.generator, gan.discriminator) for weight in network.weights]
    pictures, label = drawn(8)
    gan.train_on_batch(pictures, label)
    after = [weight for network in (gan.generator, gan.discriminator) for weight in network.weights]
    assert [weight.path for old, weight in zip(before, after, strict=True) if np.array_equal(old, weight)] == []


def test_pictures_are_scaled_and_labels_stay():
    images, label = scaled(np.array([[0, 255]], np.uint8), 3)
    assert (images.numpy().tolist(), images.dtype, label) == ([[-1, 1]], tf.float32, 3)


def test_accuracy_counts_logits_above_and_below_zero():
    generator, discriminator = dense_networks()
    discriminator.set_weights([np.zeros(weight.shape) for weight in discriminator.weights])
    discriminator.weights[-1].assign([0.5])  # calls everything real
    gan = compiled((generator, discriminator), rates=(0.0, 0.0))
    logs = gan.train_on_batch(points(), return_dict=True)
    assert (logs["real_accuracy"], logs["generated_accuracy"]) == (1, 0)
    discriminator.weights[-1].assign([-0.5])
    gan.reset_metrics()
    logs = gan.train_on_batch(points(), return_dict=True)
    assert (logs["real_accuracy"], logs["generated_accuracy"]) == (0, 1)
    # -0.5: softplus(0.5) for a real picture, softplus(-0.5) for a generated one
    assert logs["discriminator_loss"] == pytest.approx(math.log1p(math.exp(0.5)) + math.log1p(math.exp(-0.5)), rel=1e-5)
    assert logs["generator_loss"] == pytest.approx(math.log1p(math.exp(0.5)), rel=1e-5)
    assert logs["loss"] == pytest.approx(logs["discriminator_loss"] + logs["generator_loss"])


def test_label_smoothing_reaches_the_loss():
    generator, discriminator = dense_networks()
    discriminator.set_weights([np.zeros(weight.shape) for weight in discriminator.weights])
    discriminator.weights[-1].assign([2.0])
    gan = compiled((generator, discriminator), rates=(0.0, 0.0), label_smoothing=0.1)
    loss = gan.train_on_batch(points(), return_dict=True)["discriminator_loss"]
    assert loss == pytest.approx(math.log1p(math.exp(-2)) + 0.1 * 2 + math.log1p(math.exp(2)), rel=1e-5)


def test_fit_logs_the_means_of_an_epoch_and_validation_has_no_gradients():
    data = points(rows=24), np.arange(24)  # labels are not asked for
    gan = compiled(dense_networks())
    history = gan.fit(*data, batch_size=8, epochs=2, validation_data=data, verbose=0).history
    assert set(history) == LOGGED | {f"val_{name}" for name in LOGGED if "norm" not in name}
    assert all(np.isfinite(values).all() for values in history.values())
    total = np.add(history["discriminator_loss"], history["generator_loss"])
    np.testing.assert_allclose(history["loss"], total, rtol=1e-6)


def test_validation_changes_no_weight():
    gan = compiled(picture_networks(normalization="spectral"))
    before = [np.array(variable) for variable in gan.weights]
    gan.evaluate(drawn(8)[0], verbose=0)
    for one, other in zip(before, gan.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_mixed_precision_trains_float32_weights():
    with precision("bfloat16"):
        networks = picture_networks(conditional=True, normalization="spectral")
    gan = compiled(networks)
    history = gan.fit(*drawn(16), batch_size=8, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
    assert gan.generator.get_layer("g_stage0_conv").compute_dtype == "bfloat16"
    assert {weight.dtype for weight in gan.weights} == {"float32"}
    assert gan.predict([np.zeros((2, LATENT)), np.arange(2)], verbose=0).dtype == "float32"


def test_xla_compiles_the_step():
    """Its random numbers are others, so that the numbers cannot be compared."""
    gan = GAN(*dense_networks(), seed=3)
    gan.compile("sgd", "sgd", jit_compile=True)
    before = gan.get_weights()
    assert all(math.isfinite(value) for value in gan.train_on_batch(points(), return_dict=True).values())
    assert gan.jit_compile
    assert any(np.any(one != other) for one, other in zip(before, gan.get_weights(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "least-squares"}, "loss is 'least-squares', expected one of: minimax, non-saturating, hinge"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0, expected 0 or more, below 1"),
        ({"label_smoothing": 0.1, "loss": "hinge"}, "label_smoothing is 0.1, expected .* 0 for hinge"),
        ({"discriminator_steps": 0}, "discriminator_steps is 0, expected 1 or more"),
        ({"ema_momentum": 1.0}, "ema_momentum is 1.0, expected 0 or more, below 1"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GAN(*dense_networks(), **options)


def test_one_optimizer_for_both_is_refused():
    optimizer = adam()
    with pytest.raises(ValueError, match="same optimizer object, expected two"):
        GAN(*dense_networks()).compile(optimizer, optimizer)


def test_pictures_in_bytes_and_missing_labels_are_refused():
    pictures, label = drawn(8)
    with pytest.raises(
        ValueError, match=r"pictures are .*uint8.*, expected float32 in -1\.\.1: give pictures / 127\.5 - 1"
    ):
        compiled(picture_networks()).train_on_batch(np.uint8(pictures))
    with pytest.raises(ValueError, match=r"takes a label and the data have none, expected \(pictures, labels\)"):
        compiled(picture_networks(conditional=True)).train_on_batch(pictures)


# --- The average -----------------------------------------------------------------------------------------------------


def test_the_average_follows_its_equation_and_makes_the_pictures():
    gan = compiled(picture_networks(), ema_momentum=0.2)
    expected = gan.generator.get_weights()
    pictures, _ = drawn(8)
    for step in range(1, 4):
        gan.train_on_batch(pictures)
        kept = min(0.2, (1 + step) / (10 + step))  # 2/11 at first, then 0.2
        expected = [kept * a + (1 - kept) * w for a, w in zip(expected, gan.generator.get_weights(), strict=True)]
    for average, value in zip(gan.average.get_weights(), expected, strict=True):
        np.testing.assert_allclose(average, value, rtol=1e-4, atol=1e-6)
    latent = np.random.default_rng(0).normal(size=(4, LATENT)).astype("float32")
    made = gan.predict(latent, verbose=0)
    np.testing.assert_allclose(made, gan.average(latent, training=False), rtol=1e-5, atol=1e-6)
    assert np.abs(made - gan.generator(latent, training=False)).max() > 1e-4
    assert not gan.average.trainable_variables


# --- State -----------------------------------------------------------------------------------------------------------


class Stop(keras.callbacks.Callback):
    """Interrupts in the middle of the third epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 5:
            raise KeyboardInterrupt


def run(folder, *, resume=False, callbacks=()):
    """Four epochs of two steps; what is resumed begins with other weights."""
    keras.utils.set_random_seed(8 if resume else 7)
    folder.mkdir(exist_ok=True)
    networks = picture_networks(conditional=True, normalization="batch", minibatch_deviation=True)
    picture, label = networks[1].inputs
    spectral = dcgan.SpectralNormalization(keras.layers.Dense(4, name="extra"), name="extra_spectral")
    extra = keras.layers.Dense(1)(spectral(keras.layers.Flatten()(picture)))
    judge = keras.Model([picture, label], keras.layers.Add()([networks[1].output, extra]))
    gan = compiled((networks[0], judge), rates=(2e-3, 1e-3), eager=False)
    saver = Checkpoint(folder, monitor="none", maximize=False, resume=resume)
    start = saver.initial_epoch
    gan.fit(
        training_batches(drawn(16), 8, initial_epoch=start, seed=5), initial_epoch=start, epochs=4, steps_per_epoch=2,
        shuffle=False, verbose=0, callbacks=[*callbacks, saver],
    )  # fmt: skip
    return gan, saver


def state(gan):
    return [np.array(variable) for variable in (*gan.variables, *gan.optimizer.variables)]


def log(saver):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in saver.history]


def test_resumed_training_equals_uninterrupted_bit_for_bit(tmp_path):
    """Batch and spectral normalization, labels, both optimizers, the average."""
    expected, saver = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", callbacks=[Stop()])
    with np.load(tmp_path / "broken" / "checkpoint.npz") as file:
        halfway = [file[str(i)] for i in range(len(file.files) - 1)]
    actual, resumed = run(tmp_path / "broken", resume=True)
    variables = [*expected.variables, *expected.optimizer.variables]
    for variable, one, two, half in zip(variables, state(expected), state(actual), halfway, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=variable.path)
        assert variable.name == "learning_rate" or np.any(one != half), f"{variable.path} did not change: no test"
    assert log(saver) == log(resumed)
    assert len(resumed.history) == 4


def test_the_seed_decides_the_latents():
    """Equal weights and pictures: the same numbers with the same seed, others with another."""
    pictures, _ = drawn(8)
    logs = []
    for seed in (3, 3, 4):
        keras.utils.set_random_seed(7)
        gan = GAN(*picture_networks(), seed=seed)
        gan.compile(adam(), adam(), run_eagerly=True)
        logs.append([gan.train_on_batch(pictures, return_dict=True) for _ in range(2)])
    assert logs[0] == logs[1]
    assert logs[0] != logs[2]


def test_the_saved_state_holds_both_optimizers_the_statistics_and_the_seeds():
    gan = compiled(picture_networks(conditional=True, normalization="spectral"))
    saved = {id(variable) for variable in (*gan.variables, *gan.optimizer.variables)}
    discriminator, generator = gan.discriminator_optimizer, gan.optimizer
    assert len(discriminator.variables) == 2 + 2 * len(gan.discriminator.trainable_variables)
    assert len(generator.variables) == 2 + 2 * len(gan.generator.trainable_variables)
    needed = [
        *discriminator.variables, *generator.variables, *gan.generator.variables, *gan.discriminator.variables,
        *gan.average.variables, gan.seed_generator.state,
    ]  # fmt: skip
    assert [variable.path for variable in needed if id(variable) not in saved] == []
    names = {variable.name for variable in needed}
    assert {"moving_mean", "moving_variance", "u", "seed_generator_state"} <= names


def test_a_saved_model_goes_on_with_both_optimizers(tmp_path):
    gan = compiled(
        picture_networks(conditional=True), rates=(2e-3, 1e-3), loss="minimax", label_smoothing=0.1,
        discriminator_steps=2, ema_momentum=0.9,
    )  # fmt: skip
    pictures, label = drawn(8)
    gan.train_on_batch(pictures, label)
    gan.save(tmp_path / "gan.keras")
    again = keras.models.load_model(tmp_path / "gan.keras")
    settings = ("game", "label_smoothing", "discriminator_steps", "ema_momentum", "seed", "conditional", "latent_dim")
    assert [getattr(again, name) for name in settings] == ["minimax", 0.1, 2, 0.9, 3, True, LATENT]
    assert again.jit_compile is False
    assert float(again.optimizer.learning_rate) == pytest.approx(2e-3)
    assert float(again.discriminator_optimizer.learning_rate) == pytest.approx(1e-3)
    again.seed_generator.state.assign(gan.seed_generator.state)  # Keras' file format leaves it out
    for one, other in zip(state(gan), state(again), strict=True):
        np.testing.assert_array_equal(one, other)
    again.run_eagerly = True
    logs = [model.train_on_batch(pictures, label, return_dict=True) for model in (gan, again)]
    assert logs[0]["generator_gradient_norm"] > 0
    for one, other in zip(state(gan), state(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_loaded_to_make_pictures_needs_no_optimizer(tmp_path):
    gan = compiled(picture_networks())
    gan.save(tmp_path / "gan.keras")
    again = keras.models.load_model(tmp_path / "gan.keras", compile=False)
    assert not again.compiled
    assert len(again.variables) == len(gan.variables) - len(gan.discriminator_optimizer.variables)
    latent = np.ones((2, LATENT), "float32")
    np.testing.assert_array_equal(again.predict(latent, verbose=0), gan.predict(latent, verbose=0))


def test_a_broken_picture_is_seen_in_the_loss():
    pictures = points(rows=16)
    pictures[3, 0] = math.nan
    assert math.isnan(compiled(dense_networks()).train_on_batch(pictures, return_dict=True)["loss"])


def test_a_weight_that_is_no_number_is_seen_though_relu_may_swallow_it():
    """oneDNN's ReLU makes 0 of it, so that both losses stay finite (findings/tensorflow_relu_nan.sh)."""
    gan = compiled(picture_networks(), eager=False)
    pictures = np.random.default_rng(0).uniform(-1, 1, (8, SIZE, SIZE, 1)).astype(np.float32)
    assert math.isfinite(gan.train_on_batch(pictures, return_dict=True)["loss"])
    kernel = gan.generator.get_layer("g_project").kernel
    kernel.assign(np.nan * kernel)
    logs = gan.train_on_batch(pictures, return_dict=True)
    assert math.isnan(logs["loss"])


# --- Diversity and collapse ------------------------------------------------------------------------------------------


def nearest(pictures):
    """Mean distance to the nearest other one, pair by pair."""
    flat = np.float64(pictures).reshape(len(pictures), -1)
    return np.mean([min(np.linalg.norm(a - b) for j, b in enumerate(flat) if j != i) for i, a in enumerate(flat)])


def test_diversity_is_the_ratio_of_distances_to_the_nearest_other():
    rng = np.random.default_rng(0)
    generated, real = (
        rng.normal(size=(2, 9, 4, 3, 2)).astype("float32") * np.float32([[[[[[0.3]]]]], [[[[[1]]]]]])[:, 0]
    )
    value = diversity(generated, real)
    assert float(value) == pytest.approx(nearest(generated) / nearest(real), rel=1e-4)
    assert float(diversity(real, real)) == pytest.approx(1)
    assert float(diversity(tf.cast(real, tf.bfloat16), real)) == pytest.approx(1, rel=0.02)


def test_diversity_of_one_picture_or_of_twins_is_nothing():
    real = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32")
    same = np.broadcast_to(real[:1], real.shape)
    assert float(diversity(same, real)) < 1e-5
    twins = np.repeat(real[:4], 2, axis=0)  # their variance is that of four real pictures
    assert float(diversity(twins, real)) < 1e-3
    almost = 0.9 + 1e-3 * real  # distances are not lost in rounding
    assert float(diversity(almost, real)) == pytest.approx(1e-3, rel=1e-3)
    assert float(diversity(real[:1], real[:1])) == 1


@pytest.fixture
def warnings_of(capsys):
    """Of two epochs of two steps of a frozen generator whose points are made so many times as different."""

    def fit(scale, **options):
        generator, discriminator = dense_networks()
        generator.layers[-1].kernel.assign(scale * generator.layers[-1].kernel)
        gan = compiled((generator, discriminator), rates=(0.0, 0.0))
        watch = CollapseWarning(**options)
        gan.fit(points(rows=16), batch_size=8, epochs=2, verbose=0, callbacks=[watch])
        return capsys.readouterr().err.splitlines()

    return fit


def test_a_constant_generator_is_called_collapsed_and_one_that_varies_is_not(warnings_of):
    lines = warnings_of(0, warmup_steps=0)
    assert [line.split(":")[0] for line in lines] == ["epoch 1", "epoch 2"]
    assert "the generator collapsed, diversity is" in lines[0]
    assert "expected 0.1 or more; lower the learning rates" in lines[0]
    assert warnings_of(1, warmup_steps=0) == []
    assert len(warnings_of(1, warmup_steps=0, threshold=10)) == 2


def test_nothing_is_said_of_the_first_steps(warnings_of):
    assert warnings_of(0, warmup_steps=4) == []
    assert len(warnings_of(0, warmup_steps=3)) == 1


# --- Learning --------------------------------------------------------------------------------------------------------


def recognised(gan, pictures, label):
    """Share of generated pictures nearest to the mean of their class, and their distance to a mean (classes: 1)."""
    means = np.stack([pictures[label == index].mean(0) for index in range(CLASSES)])
    asked = np.arange(200) % CLASSES
    latent = np.random.default_rng(1).normal(size=(200, LATENT)).astype("float32")
    made = gan.average([latent, asked]).numpy()
    distances = np.linalg.norm((made[:, None] - means).reshape(200, CLASSES, -1), axis=-1)
    return np.mean(distances.argmin(1) == asked), distances.min(1).mean() / np.linalg.norm(means[0] - means[1])


@pytest.mark.parametrize("broken", [None, "frozen", "shuffled"])
def test_the_generator_learns_to_draw_what_it_is_asked_for(broken):
    """A hundred steps; chance is 1/4."""
    pictures, label = drawn(64)
    given = np.random.default_rng(2).permutation(label) if broken == "shuffled" else label
    rates = (0.0 if broken == "frozen" else 5e-3, 2e-3)
    gan = compiled(picture_networks(conditional=True, filters=8), rates=rates, eager=False, ema_momentum=0.9)
    gan.fit(pictures, given, batch_size=16, epochs=25, verbose=0)
    share, distance = recognised(gan, pictures, label)
    assert share > 0.95 if broken is None else share < 0.6
    assert distance > 0.7 if broken == "frozen" else distance < 0.5


# --- Losses ----------------------------------------------------------------------------------------------------------

REAL, GENERATED = (3 * np.random.default_rng(seed).normal(size=(7, 1)).astype("float32") for seed in (4, 5))
ZERO = np.zeros((2, 1), "float32")


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_logistic_loss_is_the_cross_entropy_with_a_smoothed_target_of_real_pictures(smoothing):
    real, generated = oracles.sigmoid(REAL), oracles.sigmoid(GENERATED)
    target = 1 - smoothing
    expected = -np.mean(target * np.log(real) + smoothing * np.log(1 - real)) - np.mean(np.log(1 - generated))
    loss = logistic_discriminator_loss(REAL, GENERATED, label_smoothing=smoothing)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_generator_losses_equal_their_equations():
    chance = oracles.sigmoid(GENERATED)
    minimax, non_saturating, hinge = (LOSSES[game][1] for game in ("minimax", "non-saturating", "hinge"))
    assert float(minimax(GENERATED)) == pytest.approx(np.mean(np.log(1 - chance)), rel=1e-5)
    assert float(non_saturating(GENERATED)) == pytest.approx(-np.mean(np.log(chance)), rel=1e-5)
    assert float(hinge(GENERATED)) == pytest.approx(-GENERATED.mean(), rel=1e-5)


def test_worked_values():
    """A discriminator that knows nothing: log 4 as in section 4.1 of Goodfellow et al."""
    for game in ("minimax", "non-saturating"):
        assert float(LOSSES[game][0](ZERO, ZERO)) == pytest.approx(math.log(4))
    assert float(minimax_generator_loss(ZERO)) == pytest.approx(-math.log(2))
    assert float(non_saturating_generator_loss(ZERO)) == pytest.approx(math.log(2))
    real, generated = np.float32([[3.0], [0.5]]), np.float32([[-2.0], [0.5]])
    # (0 + 0.5) / 2 for the real ones, (0 + 1.5) / 2 for the others
    assert float(hinge_discriminator_loss(real, generated)) == pytest.approx(1.0)
    assert float(hinge_generator_loss(generated)) == pytest.approx(0.75)


def test_the_smoothed_loss_is_least_where_the_discriminator_says_nine_tenths():
    logit = tf.Variable([[math.log(9.0)]])
    with tf.GradientTape() as tape:
        loss = logistic_discriminator_loss(logit, [[0.0]], label_smoothing=0.1)
    assert abs(float(tape.gradient(loss, logit)[0, 0])) < 1e-6


@pytest.mark.parametrize("game", LOSSES)
def test_large_logits_neither_overflow_nor_lose_their_gradient(game):
    large = tf.constant([[1e4]])
    judge, paint = LOSSES[game]
    wrong = {"minimax": 2e4, "non-saturating": 2e4, "hinge": 2e4 + 2}[game]
    assert float(judge(-large, large)) == pytest.approx(wrong)
    assert float(judge(large, -large)) == 0
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(large)
        losses = [paint(large), paint(-large)]
    expected = {"minimax": [-1e4, 0], "non-saturating": [0, 1e4], "hinge": [-1e4, 1e4]}[game]
    assert [float(loss) for loss in losses] == pytest.approx(expected)
    slopes = [float(tape.gradient(loss, large)[0, 0]) for loss in losses]
    # Only the minimax game has no gradient where the discriminator is surely right.
    assert slopes == {"minimax": [-1, 0], "non-saturating": [0, 1], "hinge": [-1, 1]}[game]


@pytest.mark.parametrize("game", LOSSES)
def test_losses_of_bfloat16_logits_are_float32(game):
    logits = tf.cast(REAL, tf.bfloat16)
    judge, paint = LOSSES[game]
    assert judge(logits, logits).dtype == paint(logits).dtype == "float32"
