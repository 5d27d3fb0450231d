"""Training speed of the denoiser, images a second, side by side: this project, plain Keras, PyTorch eager and
compiled.

    python -m benchmarks.denoiser_speed           (needs the extra `benchmark`, about 15 minutes, a quiet machine)

Every contender trains the application's default U-Net on 32x32 colour pictures with batch 64 to say their noise.

Plain Keras goes the way of keras-io's "Convolutional autoencoder for image denoising": stock layers, pixels 0..1, Adam,
noise drawn and clipped by numpy once, before the clock starts, `fit` on arrays. Made equal are the network and the
batch; the example has a smaller autoencoder, 128 pictures a step and the cross-entropy. PyTorch draws new noise in each
step and clips the gradient, as ours does. Both peers have the absolute error, ours the root of each picture's squared
one. Only ours draws the strength of the noise for each picture, mirrors pictures, logs the PSNR and learns by Muon; the
others by Adam.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from benchmarks import _contest

BATCH, STEPS, SIZE, WIDTH, DEPTH, NOISE = 64, 16, 32, 48, 3, 25.0


def pictures() -> np.ndarray:
    """Random pictures uint8[n, SIZE, SIZE, 3]: the speed of training does not depend on what they show."""
    return np.random.default_rng(0).integers(0, 256, (BATCH * STEPS, SIZE, SIZE, 3), dtype=np.uint8)


def ours(precision: str) -> float:
    """The application's own path: its pipeline with new noise in each step, its model, its optimizer, `fit`."""
    from apps import denoiser

    config = denoiser.Config(
        width=WIDTH, depth=DEPTH, strength=NOISE, batch_size=BATCH, epochs=3, precision=precision,
    )  # fmt: skip
    images = pictures()
    data = denoiser.splits_of([images], images[:0], lambda: images[:0], "random")
    clock = _contest.clock()
    denoiser.train(config, denoiser.build_model(config, data), data, [clock])
    return len(images) / min(clock.seconds[1:])


def plain_keras() -> float:
    """Stock layers, float32, noise made beforehand, `fit` on numpy arrays with its defaults."""
    import keras
    from keras import layers

    def normalized(x: Any) -> Any:
        return layers.Activation("relu")(layers.BatchNormalization()(x))

    def two_convolutions(x: Any, filters: int) -> Any:
        for _ in range(2):
            x = normalized(layers.Conv2D(filters, 3, padding="same", use_bias=False)(x))
        return x

    image = x = keras.Input((SIZE, SIZE, 3))
    skips = []
    for level in range(DEPTH):
        if level:
            skips.append(x)
            x = layers.MaxPooling2D()(x)
        x = two_convolutions(x, WIDTH * 2**level)
    for level in reversed(range(DEPTH - 1)):
        x = normalized(layers.Conv2DTranspose(WIDTH * 2**level, 2, 2, use_bias=False)(x))
        x = two_convolutions(layers.Concatenate()([skips[level], x]), WIDTH * 2**level)
    model = keras.Model(image, layers.Subtract()([image, layers.Conv2D(3, 1)(x)]))
    model.compile("adam", "mae")
    clean = pictures().astype(np.float32) / 255
    drawn = np.random.default_rng(1).standard_normal(clean.shape, np.float32)
    noisy = np.clip(clean + NOISE / 255 * drawn, 0, 1)
    return len(clean) / _contest.epoch_seconds(lambda: model.fit(noisy, clean, batch_size=BATCH, verbose=0))


def pytorch(precision: str, compiled: bool) -> float:
    """PyTorch with channels-last tensors and autocast for bfloat16, pixels already scaled."""
    import torch
    from torch import nn
    from torch.nn import functional

    autocast, maybe_compiled = _contest.torch_tools(precision, compiled)

    def normalized(convolution: nn.Module, filters: int) -> list[nn.Module]:
        return [convolution, nn.BatchNorm2d(filters), nn.ReLU(inplace=True)]

    def two_convolutions(channels: int, filters: int) -> nn.Module:
        first, second = (nn.Conv2d(before, filters, 3, padding=1, bias=False) for before in (channels, filters))
        return nn.Sequential(*normalized(first, filters), *normalized(second, filters))

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [WIDTH * 2**level for level in range(DEPTH)]
            pairs = list(itertools.pairwise(widths))
            self.down = nn.ModuleList(two_convolutions(*pair) for pair in itertools.pairwise([3, *widths]))
            self.up = nn.ModuleList(
                nn.Sequential(*normalized(nn.ConvTranspose2d(below, width, 2, 2, bias=False), width))
                for width, below in pairs
            )
            self.joined = nn.ModuleList(two_convolutions(2 * width, width) for width, _ in pairs)
            self.noise = nn.Conv2d(WIDTH, 3, 1)

        def forward(self, image: Any) -> Any:
            x, skips = image, []
            for level, convolutions in enumerate(self.down):
                if level:
                    skips.append(x)
                    x = functional.max_pool2d(x, 2)
                x = convolutions(x)
            for level in reversed(range(len(skips))):
                x = self.joined[level](torch.cat([skips[level], self.up[level](x)], 1))
            return image - self.noise(x)

    model = UNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    clean = torch.from_numpy(pictures()).permute(0, 3, 1, 2).float().div(128).sub(1)
    clean = clean.contiguous(memory_format=torch.channels_last)

    @maybe_compiled
    def loss(batch: Any) -> Any:
        restored = model(batch + NOISE / 128 * torch.randn_like(batch))
        return functional.l1_loss(restored.float(), batch)

    def epoch() -> None:
        for i in range(0, len(clean), BATCH):
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                value = loss(clean[i : i + BATCH])
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return len(clean) / _contest.epoch_seconds(epoch)


WORKS = {"training": _contest.training(ours, plain_keras, pytorch)}


def main() -> None:
    """Measures and writes benchmarks/results/denoiser_speed_training.json."""
    _contest.main(
        "denoiser_speed",
        __doc__,
        WORKS,
        unit="images",
        protocol=f"U-Net of width {WIDTH} and depth {DEPTH}, {SIZE}x{SIZE} colour pictures, batch {BATCH}, {STEPS} "
        "steps an epoch, best of two epochs after one warm-up; new noise in each step, in plain Keras made beforehand",
    )


if __name__ == "__main__":
    main()
