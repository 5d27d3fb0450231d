"""Training speed of the DCGAN, images a second, side by side: this project, plain Keras, PyTorch eager and compiled.

    python -m benchmarks.dcgan_speed              (needs the extra `benchmark`, about 25 minutes, a quiet machine)

Every contender trains Radford's networks with 64 filters and batch normalization on colour pictures of 32 or 64 pixels,
64 of them a step, by the logistic loss and two Adams. Counted are real pictures.

Plain Keras goes the way of keras-io's "DCGAN to generate face images", see `benchmarks.dcgan_baseline`: stock layers, a
model with its own `train_step`, which judges generated and real pictures in one batch and makes new ones for the
generator's step, `fit` on a shuffled tf.data pipeline. Made equal are the networks, the batch and the optimizers;
pictures come from memory, not from files. PyTorch goes the way of its own DCGAN example, as ours: both kinds are judged
apart, and pictures made once for both steps; the gradient of the discriminator's weights, which the example computes in
the generator's step and throws away, is left out. Only ours averages the generator's weights, measures diversity and
the size of the gradients, and mirrors pictures.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _contest, dcgan_baseline

BATCH, FILTERS, LATENTS, RATE, BETA = 64, 64, 100, 2e-4, 0.5
STEPS = {32: 24, 64: 6}


def pictures(size: int) -> np.ndarray:
    """Random pictures uint8[n, size, size, 3]: the speed of training does not depend on what they show."""
    return np.random.default_rng(0).integers(0, 256, (BATCH * STEPS[size], size, size, 3), dtype=np.uint8)


def widths(size: int) -> list[int]:
    """Channels of the maps of size / 2, size / 4, ... 4 pixels."""
    return [FILTERS * 2**stage for stage in range(size.bit_length() - 3)]


def ours(size: int, precision: str) -> float:
    """The application's own path: its pipeline with flips, its model, its optimizers, `fit`."""
    from apps import dcgan
    from apps._contract import Splits
    from kerasdl.data import image_data
    from kerasdl.data.divided import Divided

    config = dcgan.Config(
        data=Path("unused"), image_size=size, filters=FILTERS, latent_dim=LATENTS, normalization="batch",
        loss="non-saturating", batch_size=BATCH, epochs=3, samples_every=4, precision=precision,
    )  # fmt: skip
    images = pictures(size)
    none = image_data.Images(images[:0])
    found = Divided(image_data.Images(images), none, lambda: none, None, "random")
    data = Splits.of(found, image_data.facts(found, "random numbers"))
    clock = _contest.clock()
    dcgan.train(config, dcgan.build_model(config, data), data, [clock])
    return len(images) / min(clock.seconds[1:])


def plain_keras(size: int) -> float:
    """Stock layers, float32, keras-io's `train_step`, `fit` with its defaults."""
    import keras
    import tensorflow as tf
    from keras import layers

    first, *others = reversed(widths(size))
    generator = keras.Sequential([keras.Input((LATENTS,)), layers.Dense(16 * first, use_bias=False)])
    generator.add(layers.Reshape((4, 4, first)))
    for filters in others:
        generator.add(layers.BatchNormalization())
        generator.add(layers.ReLU())
        generator.add(layers.Conv2DTranspose(filters, 4, strides=2, padding="same", use_bias=False))
    generator.add(layers.BatchNormalization())
    generator.add(layers.ReLU())
    generator.add(layers.Conv2DTranspose(3, 4, strides=2, padding="same", activation="tanh"))
    first, *others = widths(size)
    discriminator = keras.Sequential([keras.Input((size, size, 3))])
    discriminator.add(layers.Conv2D(first, 4, strides=2, padding="same"))
    discriminator.add(layers.LeakyReLU(0.2))
    for filters in others:
        discriminator.add(layers.Conv2D(filters, 4, strides=2, padding="same", use_bias=False))
        discriminator.add(layers.BatchNormalization())
        discriminator.add(layers.LeakyReLU(0.2))
    discriminator.add(layers.Flatten())
    discriminator.add(layers.Dense(1))
    optimizers = keras.optimizers.Adam(RATE, beta_1=BETA), keras.optimizers.Adam(RATE, beta_1=BETA)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model = dcgan_baseline.game(generator, discriminator, optimizers, loss)
    images = pictures(size).astype(np.float32) / 127.5 - 1
    batches = tf.data.Dataset.from_tensor_slices(images).shuffle(1024).batch(BATCH).prefetch(32)
    # shuffle=False: they are shuffled already.
    return len(images) / _contest.epoch_seconds(lambda: model.fit(batches, shuffle=False, verbose=0))


def pytorch(size: int, precision: str, compiled: bool) -> float:
    """PyTorch with channels-last tensors and autocast for bfloat16, pixels already scaled."""
    import torch
    from torch import nn
    from torch.nn import functional

    autocast, maybe_compiled = _contest.torch_tools(precision, compiled)
    falling, rising = widths(size)[::-1], widths(size)
    parts: list[nn.Module] = [nn.Linear(LATENTS, 16 * falling[0], bias=False), nn.Unflatten(1, (falling[0], 4, 4))]
    for before, after in itertools.pairwise(falling):
        parts += [nn.BatchNorm2d(before), nn.ReLU(inplace=True), nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]
    parts += [nn.BatchNorm2d(FILTERS), nn.ReLU(inplace=True), nn.ConvTranspose2d(FILTERS, 3, 4, 2, 1), nn.Tanh()]
    generator = nn.Sequential(*parts).to(memory_format=torch.channels_last)
    parts = [nn.Conv2d(3, FILTERS, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
    for before, after in itertools.pairwise(rising):
        parts += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2, inplace=True)]
    parts += [nn.Flatten(), nn.Linear(16 * rising[-1], 1)]
    discriminator = nn.Sequential(*parts).to(memory_format=torch.channels_last)
    of_generator, of_discriminator = (
        torch.optim.Adam(network.parameters(), RATE, betas=(BETA, 0.999)) for network in (generator, discriminator)
    )
    images = torch.from_numpy(pictures(size)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    images = images.contiguous(memory_format=torch.channels_last)

    def cross_entropy(logits: Any, target: float) -> Any:
        return functional.binary_cross_entropy_with_logits(logits.float(), torch.full((len(logits), 1), target))

    @maybe_compiled
    def drawn() -> Any:
        return generator(torch.randn(BATCH, LATENTS))

    @maybe_compiled
    def discriminator_loss(real: Any, generated: Any) -> Any:
        return cross_entropy(discriminator(real), 1.0) + cross_entropy(discriminator(generated), 0.0)

    @maybe_compiled
    def generator_loss(generated: Any) -> Any:
        return cross_entropy(discriminator(generated), 1.0)

    def step(real: Any) -> None:
        with autocast():
            generated = drawn()
            loss = discriminator_loss(real, generated.detach())
        of_discriminator.zero_grad(set_to_none=True)
        loss.backward()
        of_discriminator.step()
        discriminator.requires_grad_(False)
        with autocast():
            loss = generator_loss(generated)
        of_generator.zero_grad(set_to_none=True)
        loss.backward()
        of_generator.step()
        discriminator.requires_grad_(True)

    def epoch() -> None:
        for i in range(0, len(images), BATCH):
            step(images[i : i + BATCH])

    return len(images) / _contest.epoch_seconds(epoch)


WORKS = {
    str(size): _contest.training(*(functools.partial(function, size) for function in (ours, plain_keras, pytorch)))
    for size in STEPS
}


def main() -> None:
    """Measures and writes benchmarks/results/dcgan_speed_<pixels>.json."""
    _contest.main(
        "dcgan_speed",
        __doc__,
        WORKS,
        unit="images",
        protocol=f"colour pictures of 32 or 64 pixels, {FILTERS} filters, batch normalization, batch {BATCH}, "
        f"{STEPS[32]} or {STEPS[64]} steps of both networks an epoch, best of two epochs after one warm-up",
    )


if __name__ == "__main__":
    main()
