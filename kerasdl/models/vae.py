"""The networks of a variational autoencoder as one model, without the loss, and the measurement of its likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasdl.blocks import variational
from kerasdl.data import pipeline
from kerasdl.decoding import latents
from kerasdl.figures import plots

Likelihood = Literal["bernoulli", "logistic"]
Objective = Literal["elbo", "iwae"]

DRAWS = 100
"""Latents of each picture that `LatentVariableModel.score` draws."""
LOG_VAR_BOUNDS = -30.0, 20.0
"""What a log-variance is held within. Those of pictures like the training's lie near 0 and below, far inside; of others
an encoder may give hundreds, whose exponentials float32 does not hold. The bounds are those of Rombach et al. 2021,
arXiv:2112.10752, in the authors' code."""


class LatentVariableModel(keras.Model):
    """An encoder that gives each picture a Gaussian over latents, and a decoder from latents to pixels.

    A subclass computes the bounds in `call(image, num_samples=None, noise=None, training=None)`, where image is
    float32[batch, ...], num_samples draws of each are taken, those of the constructor if None, and noise, standard
    normal numbers float32[batch * num_samples, latents], stands in place of new ones. It returns log_likelihood and
    log_weights float32[batch, num_samples] and kl float32[batch, latents], all in nats, and takes the loss from them in
    `compute_loss`: `VariationalAutoencoder` of apps/vae.py. Logged are `reconstruction`, the mean log-likelihood of
    the pixels, and `kl`, the divergence from the prior.

    Args:
        encoder: pictures float32[batch, ...] -> [mean, log_var], float32[batch, latents] each.
        decoder: latents float32[batch, latents] -> float32 of a picture's shape: logits of the probability of a one
            (bernoulli), or the mean of an 8-bit value n / 255 (logistic).
        likelihood: bernoulli for pictures of zeros and ones; logistic for 8-bit pictures in 0..1, with one learned
            scale.
        objective: elbo, the mean over samples of the evidence lower bound, with the divergence in closed form; or
            iwae, the importance-weighted bound of all samples.
        num_samples: draws for each picture, k.
        kl_warmup_steps: steps in which the factor of the divergence rises from 0 to 1; elbo only.
        minimum_kl: nats that each latent may cost for nothing, the free bits; elbo only.
        seed: of the draws; drawn from Keras' global seed if None.
        **kwargs: those of `keras.Model`.

    Raises:
        ValueError: warm-up or free bits with iwae, or no sample.
    Source: Kingma and Welling 2013, arXiv:1312.6114, section 2.3.
    """

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        *,
        likelihood: Likelihood = "bernoulli",
        objective: Objective = "elbo",
        num_samples: int = 1,
        kl_warmup_steps: int = 0,
        minimum_kl: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        # The networks cast what they get; in half precision neither a draw nor an 8-bit value would be what it was.
        super().__init__(autocast=False, **kwargs)
        if objective == "iwae" and (kl_warmup_steps or minimum_kl):
            raise ValueError("kl_warmup_steps and minimum_kl change the elbo's divergence, iwae has none; give 0")
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}, expected 1 or more")
        self.encoder, self.decoder = encoder, decoder
        self.likelihood = likelihood
        self.objective = objective
        self.num_samples = num_samples
        self.kl_warmup_steps = kl_warmup_steps
        self.minimum_kl = minimum_kl
        self.seed = seed
        self.sampling = variational.GaussianSampling(seed, name="latent")
        self.reconstruction_mean = keras.metrics.Mean("reconstruction")
        self.kl_mean = keras.metrics.Mean("kl")
        if likelihood == "logistic":
            self.log_scale = self.add_weight(
                shape=(), initializer=keras.initializers.Constant(-2.0), dtype="float32", name="log_scale"
            )
        self.built = True

    def code(self, image: Any, training: bool | None = None) -> tuple[Any, Any]:
        """Mean and log-variance of the latents of pictures, float32[batch, latents] each, finite for every picture."""
        mean, log_var = (ops.cast(part, "float32") for part in self.encoder(image, training=training))
        return mean, ops.clip(log_var, *LOG_VAR_BOUNDS)

    def log_likelihood(self, image: Any, decoded: Any) -> Any:
        """Logarithm of p(x | z), float32[batch], in nats, of pictures and what the decoder gave."""
        if self.likelihood == "bernoulli":
            return variational.bernoulli_log_likelihood(image, decoded)
        return variational.discretized_logistic_log_likelihood(image, decoded, self.log_scale)

    def score(self, image: Any, seed: Any) -> dict[str, Any]:
        """Bounds on log p(x) of each picture, by `DRAWS` latents that follow from its seed alone.

        Args:
            image: float32[batch, ...].
            seed: int32[batch].

        Returns:
            bound_nats float32[batch], the importance-weighted bound; elbo_nats float32[batch], the evidence lower
            bound; kl_nats and mean float32[batch, latents], divergence and mean of each latent. All are finite.
        """
        shape = [DRAWS, self.decoder.inputs[0].shape[-1]]
        noise = tf.map_fn(
            lambda one: tf.random.stateless_normal(shape, [one, 0], alg="philox"),
            seed,
            fn_output_signature=tf.TensorSpec(shape, tf.float32),
        )
        answer = self(image, num_samples=DRAWS, noise=tf.reshape(noise, [-1, shape[1]]), training=False)
        return {
            "bound_nats": variational.importance_weighted_bound(answer["log_weights"]),
            "elbo_nats": ops.mean(answer["log_likelihood"], -1) - ops.sum(answer["kl"], -1),
            "kl_nats": answer["kl"],
            "mean": self.code(image, training=False)[0],
        }

    def pictures(self, latent: Any) -> Any:
        """The mean pixels 0..1 of latents float32[batch, latents]."""
        decoded = self.decoder(latent, training=False)
        return ops.sigmoid(decoded) if self.likelihood == "bernoulli" else ops.clip(decoded, 0, 1)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Means over the epoch so far."""
        self.reconstruction_mean.update_state(ops.mean(y_pred["log_likelihood"], -1))
        self.kl_mean.update_state(ops.sum(y_pred["kl"], -1))
        return self.get_metrics_result()

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "encoder": serialize(self.encoder),
            "decoder": serialize(self.decoder),
            "likelihood": self.likelihood,
            "objective": self.objective,
            "num_samples": self.num_samples,
            "kl_warmup_steps": self.kl_warmup_steps,
            "minimum_kl": self.minimum_kl,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> LatentVariableModel:
        """From `get_config`."""
        networks = {
            part: keras.saving.deserialize_keras_object(config.pop(part), custom_objects=custom_objects)
            for part in ("encoder", "decoder")
        }
        return cls(**networks, **config)


def observed(likelihood: Likelihood, images: Any, seed: Any = None) -> tf.Tensor:
    """Pictures as a likelihood takes them: zeros and ones (bernoulli), or as they are (logistic).

    Args:
        likelihood: see `LatentVariableModel`.
        images: uint8[...].
        seed: int32[2]: each pixel is a one with a probability equal to its brightness; None: by rounding.

    Returns:
        float32[...], 0..1.

    Source: dynamic binarisation: Burda et al. 2015, arXiv:1509.00519, section 5.
    """
    brightness = tf.cast(images, tf.float32) / 255
    if likelihood == "logistic":
        return brightness
    if seed is None:
        return tf.round(brightness)
    return tf.cast(tf.random.stateless_uniform(tf.shape(brightness), seed) < brightness, tf.float32)


def measured(
    score: Callable[..., Mapping[str, Any]], images: np.ndarray, num_samples: int
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Bounds on the likelihood of pictures, in nats a picture, and how many latents are in use.

    Args:
        score: see `log_likelihood_bound`.
        images: pictures, of the kind that `score` takes.
        num_samples: draws for each picture of `nll_nats`, minus the importance-weighted bound. The others are means of
            what `score` answers: `elbo_nats`, minus the evidence lower bound, and its two parts.

    Returns:
        The metrics; the means float32[pictures, latents] of the codes; the mean divergence float32[latents] of each.

    Raises:
        ValueError: num_samples is no multiple of `DRAWS`.
    Source: a latent is in use if its mean moves with the picture: Burda et al. 2015, arXiv:1509.00519, section 5.2.
    """
    bound = log_likelihood_bound(score, images, num_samples)
    parts = pipeline.slices(len(images), 100)
    answers = [score(image=images[part], seed=np.arange(part.start, part.stop)) for part in parts]
    elbo, kl, mean = (np.concatenate([answer[key] for answer in answers]) for key in ("elbo_nats", "kl_nats", "mean"))
    active = int(np.sum(mean.var(0) > 0.01))
    metrics = {
        "nll_nats": float(-bound.mean()),
        "elbo_nats": float(-elbo.mean()),
        "kl_nats": float(kl.sum(1).mean()),
        "reconstruction_nats": float(-(elbo + kl.sum(1)).mean()),
        "active_latents": active,
        "collapsed_latents": mean.shape[1] - active,
        "bound_samples": num_samples,
    }
    return metrics, mean, kl.mean(0)


def log_likelihood_bound(
    score: Callable[..., Mapping[str, Any]], images: np.ndarray, num_samples: int, *, batch_size: int = 100
) -> np.ndarray:
    """Bounds log p(x) of each picture from below by the importance weights of many draws.

    Args:
        score: takes image and seed int32[n], gives what `LatentVariableModel.score` does: that one, or a signature.
        images: pictures, of the kind that `score` takes.
        num_samples: draws for each picture, k; a multiple of `DRAWS`. 5,000 in the literature.
        batch_size: pictures at once.

    Returns:
        float64[pictures], nats.

    Raises:
        ValueError: num_samples is no multiple.
    Source: Burda et al. 2015, arXiv:1509.00519, section 5.
    """
    blocks, rest = divmod(num_samples, DRAWS)
    if blocks < 1 or rest:
        raise ValueError(f"num_samples is {num_samples}, expected a multiple of {DRAWS}")
    bounds = np.empty(len(images))
    for part in pipeline.slices(len(images), batch_size, "Likelihood"):
        seeds = np.arange(part.start, part.stop, dtype=np.int32) * blocks
        answers = (score(image=images[part], seed=seeds + block) for block in range(blocks))
        drawn = [np.asarray(answer["bound_nats"], np.float64) for answer in answers]
        bounds[part] = np.logaddexp.reduce(drawn) - np.log(blocks)
    return bounds


def figures(
    signatures: Mapping[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    mean: np.ndarray,
    kl: np.ndarray,
    folder: Path,
) -> None:
    """Draws reconstructions, samples, ways from code to code, walks along single latents and how much each tells.

    Args:
        signatures: `decode` takes latent and gives image, `generate` takes count and seed and gives image, all 0..1.
        images: uint8[pictures, height, width, channels].
        labels: int[pictures], which colour the map of two latents.
        mean: float32[pictures, latents], the codes.
        kl: float32[latents], the mean divergence of each in nats.
        folder: receives the figures.
    """
    decode = signatures["decode"]
    reconstructions(decode, images[:16], mean[:16], folder / "reconstructions.png")
    drawn = signatures["generate"](count=tf.constant([64]), seed=tf.constant([0]))["image"].numpy()
    plots.image_grid(drawn, folder / "samples.png", columns=8)
    if len(mean) > 1:
        ways(decode, mean[:7], 8, folder / "interpolation.png")
    walk, used = np.linspace(-3, 3, 9), np.argsort(-kl)[:10]
    traversal = np.tile(mean[:1], (len(used) * len(walk), 1))
    traversal[np.arange(len(traversal)), np.repeat(used, len(walk))] = np.tile(walk, len(used))
    plots.image_grid(decode(latent=traversal)["image"].numpy(), folder / "traversal.png", columns=len(walk))
    plots.kl_per_latent(kl, folder / "kl_per_latent.png")
    if mean.shape[1] == 2:
        plots.latent_map(mean, labels, folder / "latent_map.png")


def reconstructions(decode: Callable[..., Any], images: np.ndarray, mean: np.ndarray, path: Path) -> Path:
    """Draws rows of eight pictures, each above the pictures of their codes.

    Args:
        decode: takes latent float32[n, latents] and gives image, 0..1.
        images: uint8[pictures, height, width, channels].
        mean: float32[pictures, latents], the codes.
        path: file to write; it is returned.
    """
    both = plots.paired_rows(images / 255, decode(latent=mean)["image"].numpy())
    return plots.image_grid(both, path, columns=8)


def ways(decode: Callable[..., Any], mean: np.ndarray, steps: int, path: Path) -> Path:
    """Draws a row for the way from each code to the next one.

    Args:
        decode: takes latent float32[n, latents] and gives image, 0..1.
        mean: float32[codes, latents], two or more.
        steps: pictures of a row, both ends counted.
        path: file to write; it is returned.
    """
    way = latents.interpolate(mean[:-1], mean[1:], steps).numpy().reshape(-1, mean.shape[1])
    return plots.image_grid(decode(latent=way)["image"].numpy(), path, columns=steps)
