"""Training speed of the VAE, images a second, side by side: this project, plain Keras, PyTorch eager and compiled.

    python -m benchmarks.vae_speed                (needs the extra `benchmark`, about 20 minutes, a quiet machine)

Every contender trains the application's default network for MNIST: two dense layers to 40 latents, and two
back to 28x28 pixels, with GELU. `elbo` draws one code of each picture, `iwae` weighs 5, both by Adam on the batch of
keras-io's example; `muon` is `elbo` by the application's own optimizer and batch, which the peers' libraries have, too.

Plain Keras goes the way of keras-io's "Variational AutoEncoder": stock layers, a layer that samples, a model with its
own `train_step` and three logged means, `binary_crossentropy` of probabilities, `fit` on a numpy array. Made
equal are the network, the batch and the pixels, zeros and ones drawn once, before the clock starts; the example has 2
latents, convolutions and grey pixels. It has no importance weights: `iwae` puts them into its
`train_step`. Ours and PyTorch draw the pixels anew in each step and take the cross-entropy of logits.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from benchmarks import _contest

SIZE, UNITS, LATENTS, PICTURES = 28, 300, 40, 20_480
BATCH = {"elbo": 128, "iwae": 128, "muon": 512}
SAMPLES = {"elbo": 1, "iwae": 5, "muon": 1}
MUON = {"learning_rate": 8e-3, "adam_lr_ratio": 0.25, "ns_steps": 2}


def pictures() -> np.ndarray:
    """Random pictures uint8[n, SIZE, SIZE, 1]: the speed of training does not depend on what they show."""
    return np.random.default_rng(0).integers(0, 256, (PICTURES, SIZE, SIZE, 1), dtype=np.uint8)


def ours(work: str, precision: str) -> float:
    """The application's own path: its pipeline, its model, its optimizer, `fit`."""
    from apps import vae
    from apps._contract import Splits

    config = vae.Config(
        units=UNITS, latents=LATENTS, batch_size=BATCH[work], epochs=3, objective="iwae" if work == "iwae" else "elbo",
        samples=SAMPLES[work], optimizer="muon" if work == "muon" else "adam", precision=precision,
    )  # fmt: skip
    images = pictures()
    data = Splits(images, None, lambda: None, {"shape": [SIZE, SIZE, 1]}, "random")
    clock = _contest.clock()
    vae.train(config, vae.build_model(config, data), data, [clock])
    return len(images) / min(clock.seconds[1:])


def plain_keras(work: str) -> float:
    """Stock layers, a sampling layer, an own `train_step`, `fit` on a numpy array with its defaults."""
    import keras
    import tensorflow as tf
    from keras import layers, ops

    count = SAMPLES[work]
    gelu = functools.partial(ops.gelu, approximate=True)

    class Sampling(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.seed_generator = keras.random.SeedGenerator(0)

        def call(self, mean: Any, log_var: Any) -> Any:
            noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
            return mean + ops.exp(log_var / 2) * noise

    image = x = keras.Input((SIZE, SIZE, 1))
    x = layers.Flatten()(x)
    for _ in range(2):
        x = layers.Dense(UNITS, activation=gelu)(x)
    code = [layers.Dense(LATENTS)(x) for _ in ("mean", "log_var")]
    if count > 1:
        code = [ops.repeat(part, count, axis=0) for part in code]
    encoder = keras.Model(image, [*code, Sampling()(*code)])

    latent = x = keras.Input((LATENTS,))
    for _ in range(2):
        x = layers.Dense(UNITS, activation=gelu)(x)
    decoder = keras.Model(latent, layers.Reshape((SIZE, SIZE, 1))(layers.Dense(SIZE**2, activation="sigmoid")(x)))

    class VAE(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = encoder, decoder
            self.means = [keras.metrics.Mean(name) for name in ("total_loss", "reconstruction_loss", "kl_loss")]

        @property
        def metrics(self) -> list[Any]:
            return self.means

        def losses_of(self, image: Any) -> tuple[Any, Any, Any]:
            mean, log_var, latent = self.encoder(image, training=True)
            pixels = ops.repeat(image, count, axis=0) if count > 1 else image
            errors = keras.losses.binary_crossentropy(pixels, self.decoder(latent, training=True))
            errors = ops.sum(errors, axis=(1, 2))
            reconstruction = ops.mean(errors)
            if work != "iwae":
                kl = ops.mean(ops.sum(ops.exp(log_var) + ops.square(mean) - 1 - log_var, axis=1)) / 2
                return reconstruction + kl, reconstruction, kl
            noise = (latent - mean) * ops.exp(-log_var / 2)
            log_ratio = ops.sum(ops.square(noise) + log_var - ops.square(latent), axis=1) / 2
            bounds = ops.logsumexp(ops.reshape(log_ratio - errors, (-1, count)), axis=1) - math.log(count)
            return -ops.mean(bounds), reconstruction, -ops.mean(log_ratio)

        def train_step(self, image: Any) -> dict[str, Any]:
            with tf.GradientTape() as tape:
                losses = self.losses_of(image)
            gradients = tape.gradient(losses[0], self.trainable_weights)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
            for mean, loss in zip(self.means, losses, strict=True):
                mean.update_state(loss)
            return {mean.name: mean.result() for mean in self.means}

    model = VAE()
    optimizer = keras.optimizers.Muon(**MUON, weight_decay=None, adam_weight_decay=None)
    model.compile(optimizer if work == "muon" else keras.optimizers.Adam())
    shares = pictures()
    pixels = (np.random.default_rng(1).integers(0, 255, shares.shape, np.uint8) < shares).astype(np.float32)
    return len(pixels) / _contest.epoch_seconds(lambda: model.fit(pixels, batch_size=BATCH[work], verbose=0))


def pytorch(work: str, precision: str, compiled: bool) -> float:
    """PyTorch with autocast for bfloat16 in the networks, the bound in float32."""
    import torch
    from torch import nn
    from torch.nn import functional

    autocast, maybe_compiled = _contest.torch_tools(precision, compiled)
    count, batch = SAMPLES[work], BATCH[work]
    encoder = nn.Sequential(
        nn.Flatten(),
        nn.Linear(SIZE**2, UNITS),
        nn.GELU(approximate="tanh"),
        nn.Linear(UNITS, UNITS),
        nn.GELU(approximate="tanh"),
        nn.Linear(UNITS, 2 * LATENTS),
    )
    decoder = nn.Sequential(
        nn.Linear(LATENTS, UNITS),
        nn.GELU(approximate="tanh"),
        nn.Linear(UNITS, UNITS),
        nn.GELU(approximate="tanh"),
        nn.Linear(UNITS, SIZE**2),
    )
    weights = [*encoder.parameters(), *decoder.parameters()]
    if work == "muon":
        vectors = torch.optim.Adam([weight for weight in weights if weight.ndim == 1], 2e-3)
        matrices = torch.optim.Muon(
            [weight for weight in weights if weight.ndim == 2], MUON["learning_rate"], weight_decay=0.0,
            ns_steps=int(MUON["ns_steps"]), adjust_lr_fn="match_rms_adamw",
        )  # fmt: skip
        optimizers: list[Any] = [matrices, vectors]
    else:
        optimizers = [torch.optim.Adam(weights, 1e-3)]
    shares = torch.from_numpy(pictures()).permute(0, 3, 1, 2).float().div(255)

    def repeated(x: Any) -> Any:
        return x.repeat_interleave(count, 0) if count > 1 else x

    @maybe_compiled
    def loss(image: Any) -> Any:
        mean, log_var = repeated(encoder(image).float()).chunk(2, 1)
        noise = torch.randn_like(mean)
        latent = mean + (log_var / 2).exp() * noise
        pixels = repeated(image.flatten(1))
        logits = decoder(latent).float()
        errors = functional.binary_cross_entropy_with_logits(logits, pixels, reduction="none").sum(1)
        if work != "iwae":
            return (errors + (log_var.exp() + mean.square() - 1 - log_var).sum(1) / 2).mean()
        log_weights = (noise.square() + log_var - latent.square()).sum(1) / 2 - errors
        return math.log(count) - log_weights.view(-1, count).logsumexp(1).mean()

    def epoch() -> None:
        for i in range(0, len(shares), batch):
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            with autocast():
                value = loss(torch.bernoulli(shares[i : i + batch]))
            value.backward()
            for optimizer in optimizers:
                optimizer.step()

    return len(shares) / _contest.epoch_seconds(epoch)


WORKS = {
    work: _contest.training(*(functools.partial(function, work) for function in (ours, plain_keras, pytorch)))
    for work in SAMPLES
}


def main() -> None:
    """Measures and writes benchmarks/results/vae_speed_<work>.json."""
    _contest.main(
        "vae_speed",
        __doc__,
        WORKS,
        unit="images",
        protocol=f"{SIZE}x{SIZE} grey pictures, layers of {UNITS}, {LATENTS} latents, {PICTURES:,} pictures "
        "an epoch, best of two epochs after one warm-up; elbo: batch 128, Adam; iwae: 5 codes of a picture, batch 128, "
        "Adam; muon: batch 512, Muon of two iterations, PyTorch's in bfloat16",
    )


if __name__ == "__main__":
    main()
