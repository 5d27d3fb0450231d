import math

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
from keras import ops

from kerasdl.blocks.autoencoding import dense_decoder, dense_encoder
from kerasdl.blocks.variational import (
    GaussianSampling,
    bernoulli_log_likelihood,
    discretized_logistic_log_likelihood,
    free_bits,
    gaussian_log_likelihood,
    importance_weighted_bound,
    kl_per_latent,
    kl_warmup,
    log_importance_weights,
)
from kerasdl.training.precision import precision


def posterior(shape=(3, 4), seed=0):
    """Means and logarithms of variances."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype("float32"), rng.normal(size=shape).astype("float32")


# --- Sampling --------------------------------------------------------------------------------------------------------


def test_samples_have_the_moments_that_were_asked_for():
    mean, log_var = posterior()
    count = 20_000
    samples = GaussianSampling(seed=1)(mean, log_var, num_samples=count).numpy()
    assert samples.shape == (3 * count, 4)
    rows = samples.reshape(3, count, 4)  # the draws of a row stand one behind the other
    deviation = np.exp(log_var / 2)
    # Four standard errors of a mean and of a standard deviation.
    assert np.abs((rows.mean(1) - mean) / deviation).max() < 4 / math.sqrt(count)
    assert np.abs(rows.std(1) / deviation - 1).max() < 4 / math.sqrt(2 * count)
    noise = ((rows - mean[:, None]) / deviation[:, None]).transpose(1, 0, 2).reshape(count, 12)
    assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(noise.T) - np.eye(12)).max() < 4.5 / math.sqrt(count)  # of 66 pairs


def test_samples_follow_the_seed_and_never_repeat():
    mean, log_var = posterior()
    layer, twin, other = (GaussianSampling(seed=seed) for seed in (1, 1, 2))
    first = layer(mean, log_var).numpy()
    np.testing.assert_array_equal(twin(mean, log_var, training=True), first)
    second = layer(mean, log_var).numpy()
    np.testing.assert_array_equal(twin(mean, log_var, training=False), second)
    for another in (second, other(mean, log_var).numpy()):
        assert np.all(another != first)


def sampling_model():
    inputs = [keras.Input((4,)), keras.Input((4,))]
    return keras.Model(inputs, GaussianSampling(seed=3, name="latent")(*inputs, num_samples=2))


def test_sampling_reloads_and_begins_at_its_seed(tmp_path):
    model = sampling_model()
    assert model.output.shape == (None, 4)
    arrays = list(posterior())
    first = model(arrays).numpy()
    assert first.shape == (6, 4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("latent").get_config() == model.get_layer("latent").get_config()
    np.testing.assert_array_equal(loaded(arrays), first)
    assert np.all(loaded(arrays) != first)


def test_sampling_goes_on_from_the_variables_that_a_checkpoint_keeps():
    model, resumed = sampling_model(), sampling_model()
    arrays = list(posterior())
    model(arrays)
    for variable, kept in zip(resumed.variables, model.variables, strict=True):
        variable.assign(kept)
    np.testing.assert_array_equal(resumed(arrays), model(arrays))


def test_gradient_goes_through_the_sample():
    mean, log_var = map(tf.constant, posterior())
    with tf.GradientTape() as tape:
        tape.watch([mean, log_var])
        z = GaussianSampling(seed=1)(mean, log_var, num_samples=5)
    to_mean, to_log_var = tape.gradient(z, [mean, log_var])
    np.testing.assert_allclose(to_mean, np.full((3, 4), 5.0))
    # z = mean + exp(log_var / 2) noise, so that dz / dlog_var = (z - mean) / 2.
    expected = np.sum((z.numpy().reshape(3, 5, 4) - mean.numpy()[:, None]) / 2, axis=1)
    np.testing.assert_allclose(to_log_var, expected, rtol=1e-4, atol=1e-5)


def test_samples_of_maps_empty_batches_and_half_precision():
    layer = GaussianSampling(dtype="mixed_bfloat16")
    mean = tf.fill((2, 3, 4, 5), tf.constant(1.0, tf.bfloat16))
    assert layer(mean, mean).shape == (2, 3, 4, 5)
    assert layer(mean[:0], mean[:0], num_samples=7).shape == (0, 3, 4, 5)
    z = layer(mean, mean)
    assert z.dtype == tf.float32
    assert np.any(z != tf.cast(tf.cast(z, tf.bfloat16), tf.float32))
    third = np.full((2, 3), 1 / 3, np.float32)  # no half precision holds it
    np.testing.assert_allclose(layer(third, np.full((2, 3), -200.0)), third, rtol=1e-6)


# --- Divergence ------------------------------------------------------------------------------------------------------


def test_divergence_by_hand():
    """Means (1, 0) and (0, 2), variances (1, 4) and (1, 1): per latent (mean^2 + variance - 1 - log variance) / 2."""
    mean, log_var = np.array([[1.0, 0.0], [0.0, 2.0]]), np.log([[1.0, 4.0], [1.0, 1.0]])
    expected = [[0.5, 1.5 - math.log(2)], [0, 2]]
    np.testing.assert_allclose(kl_per_latent(mean, log_var), expected, rtol=1e-6, atol=1e-7)


def test_divergence_equals_monte_carlo():
    """The mean of log q(z) - log p(z) over draws from q, within four standard errors."""
    mean, log_var = posterior((2, 8))
    deviation = np.exp(np.float64(log_var) / 2)
    for row, (m, s) in enumerate(zip(np.float64(mean), deviation, strict=True)):
        z = np.random.default_rng(1).normal(m, s, size=(250_000, 8))
        ratio = np.sum(scipy.stats.norm.logpdf(z, m, s) - scipy.stats.norm.logpdf(z), axis=1)
        error = 4 * ratio.std() / 500
        assert error < 0.01 * ratio.mean()
        assert float(kl_per_latent(mean, log_var)[row].numpy().sum()) == pytest.approx(ratio.mean(), abs=error)


def test_divergence_has_any_shape_and_is_exact_near_zero():
    mean, log_var = posterior((3, 2, 2, 5))
    assert kl_per_latent(mean, log_var).shape == (3, 2, 2, 5)
    tiny = kl_per_latent(np.zeros((1, 1)), np.full((1, 1), 1e-3))
    assert float(tiny[0, 0]) == pytest.approx(1e-6 / 4, rel=1e-3)  # log_var^2 / 4


def test_free_bits_by_hand():
    """Latents of mean divergence 0.1, 0.4 and 2: the first costs the minimum and has no gradient."""
    kl = tf.constant([[0.0, 0.1, 1.0], [0.2, 0.7, 3.0]])
    with tf.GradientTape() as tape:
        tape.watch(kl)
        loss = free_bits(kl, 0.25)
    assert float(loss) == pytest.approx(0.25 + 0.4 + 2)
    np.testing.assert_allclose(tape.gradient(loss, kl), [[0, 0.5, 0.5]] * 2)


def test_free_bits_of_zero_are_the_mean_divergence():
    mean, log_var = posterior((5, 2, 3))
    kl = kl_per_latent(mean, log_var).numpy()
    expected = kl.reshape(5, -1).sum(1).mean()  # a mean over the latents would weigh it too little
    assert float(free_bits(kl, 0.0)) == pytest.approx(expected, rel=1e-5)


# --- Warm-up ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_steps", "factors"), [(4, [0, 0.25, 0.5, 0.75, 1, 1, 1]), (1, [0, 1, 1, 1, 1, 1, 1]), (0, [1] * 7)]
)
def test_warmup_rises_on_a_line(num_steps, factors):
    steps = [kl_warmup(np.int64(step), num_steps) for step in range(7)]
    assert all(step.dtype == tf.float32 for step in steps)
    np.testing.assert_allclose(steps, factors)


class Warming(keras.Model):
    """Its loss is the factor of the warm-up, and nothing else."""

    def __init__(self):
        super().__init__()
        self.weight = self.add_weight(shape=())

    def call(self, x):
        return x * self.weight

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return kl_warmup(self.optimizer.iterations, 4) + 0 * ops.sum(y_pred)


def test_warmup_in_a_compiled_step_goes_on_where_the_optimizer_is():
    def factors(model, count):
        x = np.zeros((2, 1), np.float32)
        return [model.fit(x, epochs=1, verbose=0).history["loss"][0] for _ in range(count)]

    def compiled():
        model = Warming()
        model.compile("sgd", jit_compile=False)
        return model

    whole = factors(compiled(), 6)
    assert whole == [0, 0.25, 0.5, 0.75, 1, 1]
    resumed = compiled()
    resumed.optimizer.iterations.assign(2)
    assert factors(resumed, 4) == whole[2:]


# --- Likelihoods -----------------------------------------------------------------------------------------------------


def test_bernoulli_equals_scipy():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, size=(5, 7, 6, 1)).astype("float32")
    image = (rng.random(logits.shape) < 0.5).astype("float32")
    expected = scipy.stats.bernoulli.logpmf(image, scipy.special.expit(np.float64(logits))).reshape(5, -1).sum(1)
    np.testing.assert_allclose(bernoulli_log_likelihood(image, logits), expected, rtol=1e-5)


def test_bernoulli_by_hand_and_far_from_zero():
    """One pixel of probability 3/4 for a one; logits of 40 that are right cost exp(-40) and wrong 40 nats."""
    third = math.log(3)
    values = bernoulli_log_likelihood([[1.0], [0.0], [1.0], [0.0]], [[third], [third], [40.0], [40.0]])
    np.testing.assert_allclose(values, [math.log(0.75), math.log(0.25), -math.exp(-40), -40], rtol=1e-5, atol=1e-6)


def test_bernoulli_probabilities_sum_to_one():
    images = np.array([[int(bit) for bit in f"{number:03b}"] for number in range(8)])
    logits = np.tile(np.float32([0.3, -1.2, 2.0]), (8, 1))
    assert np.sum(np.exp(bernoulli_log_likelihood(images, logits))) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("log_var_shape", [(4, 3, 5), (5,), (1, 1, 1), ()])
def test_gaussian_equals_scipy(log_var_shape):
    rng = np.random.default_rng(0)
    value, mean = rng.normal(size=(2, 4, 3, 5))
    log_var = rng.normal(size=log_var_shape)
    expected = scipy.stats.norm.logpdf(value, mean, np.exp(np.broadcast_to(log_var, value.shape) / 2))
    result = gaussian_log_likelihood(value, mean, log_var)
    np.testing.assert_allclose(result, expected.reshape(4, -1).sum(1), rtol=1e-5)


def test_gaussian_counts_its_constant_for_every_component_of_a_common_variance():
    value = np.zeros((2, 3), np.float32)
    np.testing.assert_allclose(gaussian_log_likelihood(value, 0, 0), [-1.5 * math.log(2 * math.pi)] * 2, rtol=1e-6)


def test_gaussian_variance_is_learned_where_the_likelihood_is_largest():
    value = np.random.default_rng(0).normal(1.0, 3.0, size=(100, 20)).astype("float32")
    log_var = tf.constant(2 * math.log(np.sqrt(np.mean((value - 1.0) ** 2))))
    with tf.GradientTape() as tape:
        tape.watch(log_var)
        loss = tf.reduce_mean(gaussian_log_likelihood(value, 1.0, log_var))
    assert abs(float(tape.gradient(loss, log_var))) < 1e-4


def levels():
    return (np.arange(256) / 255)[:, None]


@pytest.mark.parametrize("log_scale", [-6.0, -3.0, 0.0])
@pytest.mark.parametrize("mean", [-0.1, 0.0, 0.5, 0.503, 1.2])
def test_discretized_logistic_equals_scipy_and_sums_to_one(mean, log_scale):
    image, scale = levels(), math.exp(log_scale)
    result = np.float64(discretized_logistic_log_likelihood(image, mean, log_scale))
    assert np.exp(result).sum() == pytest.approx(1, abs=1e-4)
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 255, [np.inf]])
    # The smaller tail of each interval is the precise one.
    lower, upper = edges[:-1], edges[1:]
    left = scipy.stats.logistic.cdf(upper, mean, scale) - scipy.stats.logistic.cdf(lower, mean, scale)
    right = scipy.stats.logistic.sf(lower, mean, scale) - scipy.stats.logistic.sf(upper, mean, scale)
    expected = np.where(upper < mean, left, right)
    np.testing.assert_allclose(result, np.log(expected), rtol=1e-3, atol=1e-4)


def test_discretized_logistic_is_finite_with_finite_slopes_where_the_guess_is_far_off():
    image, mean, log_scale = np.repeat(levels(), 2, axis=1), tf.Variable(0.0), tf.Variable(-9.0)
    with tf.GradientTape() as tape:
        result = discretized_logistic_log_likelihood(image, mean, log_scale)
    slopes = tape.gradient(result, [mean, log_scale])
    assert result.shape == (256,)
    assert np.isfinite(result).all()
    assert np.isfinite(slopes).all()
    assert float(result[255]) == pytest.approx(-2 * (254.5 / 255) * math.exp(9), rel=1e-4)


# --- Importance weights ----------------------------------------------------------------------------------------------

DECODER = np.array([[1.0, 0.5], [-0.5, 1.0], [1.0, 0.0]])  # columns at right angles: a posterior without covariance
NOISE = 0.5  # variance
OBSERVED = np.array([[1.0, -0.5, 0.3], [-2.0, 1.0, 0.5]])


def exact_log_likelihood():
    """z ~ N(0, I), x | z ~ N(W z, s I): x ~ N(0, W W' + s I)."""
    return scipy.stats.multivariate_normal.logpdf(OBSERVED, np.zeros(3), DECODER @ DECODER.T + NOISE * np.eye(3))


def exact_posterior():
    gram = DECODER.T @ DECODER
    assert abs(gram[0, 1]) < 1e-12
    variance = 1 / (1 + np.diag(gram) / NOISE)
    return OBSERVED @ DECODER / NOISE * variance, np.tile(np.log(variance), (2, 1))


def log_weights(mean, log_var, num_samples, seed=1):
    """float32[2, num_samples], by the recipe of the module's docstring."""
    latent = GaussianSampling(seed=seed)(mean, log_var, num_samples=num_samples)
    observed, mean, log_var = (
        ops.repeat(ops.cast(t, "float32"), num_samples, axis=0) for t in (OBSERVED, mean, log_var)
    )
    likelihood = gaussian_log_likelihood(observed, ops.matmul(latent, np.float32(DECODER.T)), math.log(NOISE))
    return ops.reshape(log_importance_weights(likelihood, latent, mean, log_var), (-1, num_samples)), likelihood


def off_posterior():
    """Shifted and too wide by a third."""
    mean, log_var = exact_posterior()
    return mean + 0.5, log_var + 0.6


def test_with_the_exact_posterior_every_weight_is_the_likelihood():
    weights, _ = log_weights(*exact_posterior(), 5)
    np.testing.assert_allclose(weights, np.tile(exact_log_likelihood()[:, None], (1, 5)), rtol=1e-4)
    np.testing.assert_allclose(importance_weighted_bound(weights), exact_log_likelihood(), rtol=1e-4)


def test_bound_of_one_sample_is_the_evidence_lower_bound_of_that_sample():
    mean, log_var = off_posterior()
    weights, likelihood = log_weights(mean, log_var, 1)
    np.testing.assert_array_equal(importance_weighted_bound(weights), weights[:, 0])
    z = GaussianSampling(seed=1)(mean, log_var).numpy()  # the same draw
    q, p = scipy.stats.norm.logpdf(z, mean, np.exp(log_var / 2)), scipy.stats.norm.logpdf(z)
    np.testing.assert_allclose(importance_weighted_bound(weights), likelihood - np.sum(q - p, axis=1), rtol=1e-4)


def test_one_sample_gives_on_average_the_bound_with_the_closed_divergence():
    mean, log_var = off_posterior()
    weights, likelihood = log_weights(mean, log_var, 40_000)
    elbo = np.mean(np.reshape(likelihood, (2, -1)), axis=1) - kl_per_latent(mean, log_var).numpy().sum(1)
    error = 4 * np.std(weights, axis=1) / 200
    assert error.max() < 0.05
    assert np.all(np.abs(np.mean(weights, axis=1) - elbo) < error)


def test_bound_grows_with_the_samples_up_to_the_likelihood():
    weights, _ = log_weights(*off_posterior(), 65_536)
    exact = exact_log_likelihood()

    def mean_bound(k):
        return np.mean(np.reshape(importance_weighted_bound(ops.reshape(weights, (-1, k))), (2, -1)), axis=1)

    bounds = np.array([mean_bound(k) for k in (1, 4, 16, 64, 65_536)])
    assert np.all(np.diff(bounds, axis=0) > 0)
    gaps = exact - bounds
    assert np.all(gaps[0] > 0.3)
    assert np.all(np.abs(gaps[-1]) < 0.02)


def test_bound_by_hand_and_of_weights_that_no_float_holds():
    """Weights 1 and 3 have the mean 2; a thousand nats less must not underflow."""
    weights = np.log([[1.0, 3.0], [2.0, 2.0]])
    np.testing.assert_allclose(importance_weighted_bound(weights), [math.log(2)] * 2, rtol=1e-6)
    np.testing.assert_allclose(importance_weighted_bound(weights - 1000), [math.log(2) - 1000] * 2, rtol=1e-6)


# --- All of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (gaussian_log_likelihood, ((28, 28), (28, 28, 1), ())),
        (gaussian_log_likelihood, ((4, 1), (4, 3), ())),
        (gaussian_log_likelihood, ((4, 3), (4, 3), (2, 4, 3))),
        (discretized_logistic_log_likelihood, ((28, 28), (28, 28, 1), ())),
    ],
)
def test_a_missing_axis_is_refused(function, arguments):
    with pytest.raises(ValueError, match=rf"{function.__name__} got a value of shape .* stretch it to .*, expected"):
        function(*(np.zeros(shape) for shape in arguments))


def test_bernoulli_refuses_logits_of_another_shape():
    with pytest.raises(ValueError, match="shape"):
        bernoulli_log_likelihood(np.zeros((28, 28)), np.zeros((28, 28, 1)))


TWO = [(3, 4), (3, 4)]
FUNCTIONS = {
    "kl_per_latent": (kl_per_latent, TWO, (3, 4)),
    "free_bits": (lambda kl: free_bits(kl, 0.5), [(3, 4)], ()),
    "bernoulli": (bernoulli_log_likelihood, TWO, (3,)),
    "gaussian": (gaussian_log_likelihood, [*TWO, (3, 4)], (3,)),
    "logistic": (discretized_logistic_log_likelihood, [*TWO, (3, 4)], (3,)),
    "log_importance_weights": (log_importance_weights, [(3,), *TWO, (3, 4)], (3,)),
    "importance_weighted_bound": (importance_weighted_bound, [(3, 4)], (3,)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_work_everywhere_in_float32(name):
    """Eager, in a graph of unknown batch, in a functional model, and on bfloat16."""
    function, shapes, result_shape = FUNCTIONS[name]
    # Exact in bfloat16, so that the results must be equal.
    arrays = [np.random.default_rng(i).integers(0, 2, shape).astype("float32") for i, shape in enumerate(shapes)]
    expected = function(*arrays)
    assert expected.shape == result_shape
    signature = [tf.TensorSpec((None, *shape[1:])) for shape in shapes]
    graph = tf.function(function, input_signature=signature, autograph=False)(*arrays)
    half = function(*(tf.cast(array, tf.bfloat16) for array in arrays))
    inputs = [keras.Input(shape[1:]) for shape in shapes]
    model = keras.Model(inputs, function(*inputs))
    for result in (graph, half, model(arrays)):
        assert result.dtype == expected.dtype == tf.float32
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_every_weight_of_a_variational_autoencoder_gets_a_gradient(num_samples, kind):
    keras.utils.set_random_seed(0)
    with precision(kind):
        inputs = keras.Input((4, 4, 1))
        features = dense_encoder(inputs, (8,), activation="tanh", name="encoder")
        mean, log_var = (keras.layers.Dense(2, dtype="float32", name=part)(features) for part in ("mean", "log_var"))
        latent = GaussianSampling(seed=0, name="latent")(mean, log_var, num_samples=num_samples)
        logits = dense_decoder(latent, (8,), (4, 4, 1), activation="tanh", name="decoder")
    model = keras.Model(inputs, [mean, log_var, latent, logits])
    image = (np.random.default_rng(0).random((6, 4, 4, 1)) < 0.5).astype("float32")
    with tf.GradientTape() as tape:
        mean, log_var, latent, logits = model(image, training=True)
        image, mean, log_var = (ops.repeat(part, num_samples, axis=0) for part in (image, mean, log_var))
        weights = log_importance_weights(bernoulli_log_likelihood(image, logits), latent, mean, log_var)
        loss = -tf.reduce_mean(importance_weighted_bound(ops.reshape(weights, (-1, num_samples))))
    assert loss.dtype == tf.float32
    assert 5 < float(loss) < 50  # 16 log 2 = 11.1 for a decoder that knows nothing
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    assert len(gradients) == 10
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        assert np.isfinite(gradient).all(), weight.path
        assert np.any(gradient), weight.path
