"""Variational autoencoders: Gaussian codes, their divergence from the prior, likelihoods, and bounds on log p(x).

The prior is the unit Gaussian. All functions take plain tensors, compute in float32 under every dtype policy and give
nats; those of an example are summed over its pixels or latents, and never averaged: a mean over the latents would
weigh the divergence too little, by their number.

The evidence lower bound, and the tighter one of k samples, whose rows are folded into the batch:

    latent = sampling(mean, log_var)
    elbo = bernoulli_log_likelihood(image, decoder(latent)) - ops.sum(kl_per_latent(mean, log_var), -1)

    latent = sampling(mean, log_var, num_samples=k)
    image, mean, log_var = (ops.repeat(tensor, k, axis=0) for tensor in (image, mean, log_var))
    log_weights = log_importance_weights(bernoulli_log_likelihood(image, decoder(latent)), latent, mean, log_var)
    bound = importance_weighted_bound(ops.reshape(log_weights, (-1, k)))
"""

import math
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="kerasdl")
class GaussianSampling(keras.layers.Layer):
    """Draws from a Gaussian so that gradients reach its mean and variance: mean + exp(log_var / 2) * noise.

    It draws in training and inference alike. Whoever wants a fixed code takes the mean in its place.

    Args:
        seed: of the draws; taken from Keras' global seed if None. Where the draws stand is a variable of the model,
            so that a checkpoint holds it.
        **kwargs: those of `keras.layers.Layer`.
    Source: Kingma and Welling 2013, arXiv:1312.6114, section 2.4.
    """

    def __init__(self, seed: int | None = None, **kwargs: Any) -> None:
        # In half precision a draw would not have the density that an importance weight divides by.
        super().__init__(autocast=False, **kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, mean: Any, log_var: Any, num_samples: int = 1, noise: Any = None) -> Any:
        """Draws.

        Args:
            mean: float[batch, ...].
            log_var: float[batch, ...], natural logarithm of the variance.
            num_samples: draws for each row.
            noise: standard normal numbers of the result's shape, to be taken in place of new ones.

        Returns:
            float32[batch * num_samples, ...]; the draws of a row stand one behind the other, as the rows of
            `ops.repeat(mean, num_samples, axis=0)` do.
        """
        mean, log_var = (ops.repeat(ops.cast(part, "float32"), num_samples, axis=0) for part in (mean, log_var))
        if noise is None:
            noise = keras.random.normal(ops.shape(mean), dtype="float32", seed=self.seed_generator)
        return mean + ops.exp(log_var / 2) * noise

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "seed": self.seed}


def kl_per_latent(mean: Any, log_var: Any) -> Any:
    """Divergence of each latent's Gaussian from the unit Gaussian, KL(q || p).

    Args:
        mean: float[batch, ...].
        log_var: float[batch, ...], natural logarithm of the variance.

    Returns:
        float32[batch, ...], nats, not below zero.

    Source: Kingma and Welling 2013, arXiv:1312.6114, appendix B.
    """
    mean, log_var = ops.cast(mean, "float32"), ops.cast(log_var, "float32")
    return (ops.square(mean) + ops.expm1(log_var) - log_var) / 2


def free_bits(kl: Any, minimum: float) -> Any:
    """Divergence that counts in each latent only above a minimum, so that a latent is not given up early.

    A latent whose mean divergence over the batch is below the minimum costs the minimum, and gets no gradient of it.

    Args:
        kl: of `kl_per_latent`, float[batch, ...]; each latent is a group of its own.
        minimum: nats for each latent, lambda; with 0 the result is the sum over the latents of the mean divergence.

    Returns:
        float32[], nats an example.

    Source: Kingma et al. 2016, arXiv:1606.04934, appendix, "Objective with Free Bits".
    """
    return ops.sum(ops.maximum(ops.mean(ops.cast(kl, "float32"), axis=0), minimum))


def kl_warmup(step: Any, num_steps: int) -> Any:
    """Factor of the divergence in training, which rises on a straight line from 0 to 1.

    It follows from the step alone, so that a resumed run goes on where it was. A validation loss should have
    the factor 1 from the beginning, so that epochs compare.

    Args:
        step: int[], such as `optimizer.iterations`.
        num_steps: step from which the factor is 1; 0 for no warm-up.

    Returns:
        float32[], 0 to 1.

    Source: Sønderby et al. 2016, arXiv:1602.02282, section "Warm-up from deterministic to variational autoencoder".
    """
    if num_steps == 0:
        return ops.ones(())
    return ops.minimum(ops.cast(step, "float32") / num_steps, 1.0)


def bernoulli_log_likelihood(image: Any, logits: Any) -> Any:
    """Log-probability of binary pixels, summed over the pixels.

    Args:
        image: float[batch, ...] of zeros and ones. Values between would give a number that is no likelihood.
        logits: float[batch, ...], of the probability of a one.

    Returns:
        float32[batch], nats.

    Raises:
        ValueError: the shapes differ.
    Source: Kingma and Welling 2013, arXiv:1312.6114, appendix C.1.
    """
    image, logits = ops.cast(image, "float32"), ops.cast(logits, "float32")
    _require_shape(image * logits, image, "bernoulli_log_likelihood")
    # Fewer passes over the pixels than a cross-entropy that guards against large logits, which softplus does, too.
    return _sum_of_example(image * logits - ops.softplus(logits))


def gaussian_log_likelihood(value: Any, mean: Any, log_var: Any) -> Any:
    """Log-density of a Gaussian of independent components, summed over the components.

    Of pixels it grows without limit as a learned variance shrinks: bound the variance from below, or take
    `discretized_logistic_log_likelihood`.

    Args:
        value: float[batch, ...].
        mean: float[batch, ...], or anything that broadcasts to it.
        log_var: natural logarithm of the variance; float[batch, ...], or anything that broadcasts to it, such as a
            number or one learned weight.

    Returns:
        float32[batch], nats.

    Raises:
        ValueError: mean or log_var do not broadcast to the shape of the value, but the value to theirs.
    Source: Kingma and Welling 2013, arXiv:1312.6114, appendix C.2.
    """
    value, mean, log_var = (ops.cast(part, "float32") for part in (value, mean, log_var))
    # The difference in units of the deviation: squared by itself, or over the variance, it leaves float32 sooner.
    density = -(math.log(2 * math.pi) + log_var + ops.square((value - mean) * ops.exp(-log_var / 2))) / 2
    _require_shape(density, value, "gaussian_log_likelihood")
    return _sum_of_example(density)


def discretized_logistic_log_likelihood(image: Any, mean: Any, log_scale: Any) -> Any:
    """Log-probability of 8-bit pixels, summed over them: a logistic distribution's share of each of 256 values.

    The lowest and the highest value get the tails. Divided by the number of pixels and channels and by -log 2, these
    are the bits per dimension of the literature.

    Args:
        image: float[batch, ...], values n / 255 with n = 0, 1, ..., 255.
        mean: float[batch, ...], in the unit of the image, or anything that broadcasts to it.
        log_scale: natural logarithm of the logistic's scale, which is its standard deviation times sqrt(3) / pi, in
            the unit of the image; float[batch, ...], or anything that broadcasts to it.

    Returns:
        float32[batch], nats, not above zero.

    Raises:
        ValueError: mean or log_scale do not broadcast to the shape of the image, but the image to theirs.
    Source: Kingma et al. 2016, arXiv:1606.04934, appendix; Salimans et al. 2017, arXiv:1701.05517, section 2.1.
    """
    image, mean, log_scale = (ops.cast(part, "float32") for part in (image, mean, log_scale))
    half = 1 / 510
    upper = (image - mean + half) * ops.exp(-log_scale)
    lower = (image - mean - half) * ops.exp(-log_scale)
    below, above = ops.log_sigmoid(upper), ops.log_sigmoid(-lower)
    # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)): no difference of nearly equal numbers.
    between = below + above + ops.log(-ops.expm1(-2 * half * ops.exp(-log_scale)))
    probability = ops.where(image < half, below, ops.where(image > 1 - half, above, between))
    _require_shape(probability, image, "discretized_logistic_log_likelihood")
    return _sum_of_example(probability)


def log_importance_weights(log_likelihood: Any, latent: Any, mean: Any, log_var: Any) -> Any:
    """Logarithm of p(x, z) / q(z | x): unbiased samples of p(x), as logarithms.

    Args:
        log_likelihood: log p(x | z), float[n].
        latent: z, drawn from q, float[n, ...].
        mean: of q(z | x), float[n, ...].
        log_var: of q(z | x), natural logarithm of the variance, float[n, ...].

    Returns:
        float32[n], nats.

    Source: Burda et al. 2015, arXiv:1509.00519, section 3.
    """
    prior, posterior = gaussian_log_likelihood(latent, 0, 0), gaussian_log_likelihood(latent, mean, log_var)
    return ops.cast(log_likelihood, "float32") + prior - posterior


def importance_weighted_bound(log_weights: Any) -> Any:
    """Lower bound of log p(x) from k weights, log(sum(weights) / k); its expectation does not fall with k.

    Args:
        log_weights: of `log_importance_weights`, float[batch, k].

    Returns:
        float32[batch], nats.

    Source: Burda et al. 2015, arXiv:1509.00519, section 3.
    """
    log_weights = ops.cast(log_weights, "float32")
    return ops.logsumexp(log_weights, axis=-1) - ops.log(ops.cast(ops.shape(log_weights)[-1], "float32"))


def _sum_of_example(values: Any) -> Any:
    """float32[batch, ...] -> float32[batch]."""
    return ops.sum(values, axis=tuple(range(1, len(values.shape))))


def _require_shape(result: Any, value: Any, function: str) -> None:
    """Refuses parameters that made the result larger than the value: a missing axis, which would be summed over."""
    known = [(a, b) for a, b in zip(result.shape, value.shape, strict=False) if a is not None and b is not None]
    if len(result.shape) != len(value.shape) or any(a != b for a, b in known):
        raise ValueError(
            f"{function} got a value of shape {tuple(value.shape)} and parameters that stretch it to "
            f"{tuple(result.shape)}, expected parameters of the value's shape, or that broadcast to it: reshape them"
        )
