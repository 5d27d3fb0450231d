"""Training speed, images a second, side by side: this project, plain Keras, PyTorch eager and compiled.

    python -m benchmarks.cifar10_speed            (needs the extra `benchmark`, about 25 minutes, a quiet machine)

Every contender trains the same network on 32x32 pictures with batch 512.
"""

from __future__ import annotations

import functools
import itertools
import time
from typing import Any

import numpy as np

from benchmarks import _contest

BATCH, STEPS = 512, 8
# Multiply-accumulates of one picture, forward; a training step does three times as many, twice that in operations.
MACS = {"fast": 118.0e6, "resnet20": 40.8e6}


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Random pictures: the speed of training does not depend on what they show."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (BATCH * STEPS, 32, 32, 3), dtype=np.uint8)
    return images, random.integers(0, 10, BATCH * STEPS).astype(np.int32)


def ours(network: str, precision: str) -> float:
    """The application's own path: its pipeline with augmentation, its model, its optimizer, `fit`."""
    from apps import cifar10
    from apps._contract import Splits
    from kerasdl.data import image_data

    config = cifar10.Config(
        architecture=network, batch_size=BATCH, epochs=3, progressive="none", precision=precision,
    )  # fmt: skip
    images, labels = pictures()
    info = {"class_names": list("abcdefghij"), "image_size": 32, "mean": [120.0] * 3, "deviation": [60.0] * 3}
    data = Splits(image_data.Images(images, labels), None, lambda: None, info, "random")
    clock = _contest.clock()
    cifar10.train(config, cifar10.build_model(config, data), data, [clock])
    return len(labels) / min(clock.seconds[1:])


def plain_keras(network: str) -> float:
    """What people write: stock layers, float32, `fit` on numpy arrays with its defaults."""
    import keras
    from keras import layers

    def conv(x: Any, filters: int, strides: int = 1, relu: bool = True) -> Any:
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        return layers.Activation("relu")(x) if relu else x

    image = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 255)(image)
    if network == "fast":
        x = layers.Activation("gelu")(layers.Conv2D(24, 2)(x))
        for filters in (64, 256, 256):
            x = layers.MaxPooling2D()(layers.Conv2D(filters, 3, padding="same", use_bias=False)(x))
            x = layers.Activation("gelu")(layers.BatchNormalization(scale=False)(x))
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.Activation("gelu")(layers.BatchNormalization(scale=False)(x))
        x = layers.GlobalMaxPooling2D()(x)
    else:
        x = conv(x, 16)
        for stage, filters in enumerate((16, 32, 64)):
            for block in range(3):
                strides = 2 if stage and not block else 1
                branch = conv(conv(x, filters, strides), filters, relu=False)
                if strides == 2:
                    x = layers.AveragePooling2D(1, 2)(x)
                    x = layers.Concatenate()([x, layers.Rescaling(0.0)(x)])  # option A: pads with zero channels
                x = layers.Activation("relu")(layers.Add()([x, branch]))
        x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(10)(x))
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    images, labels = pictures()
    return len(labels) / _contest.epoch_seconds(lambda: model.fit(images, labels, batch_size=BATCH, verbose=0))


def pytorch(network: str, precision: str, compiled: bool) -> float:
    """PyTorch with channels-last tensors and autocast for bfloat16, pictures already normalised, no augmentation."""
    import torch
    from torch import nn
    from torch.nn import functional

    autocast, maybe_compiled = _contest.torch_tools(precision, compiled)

    class Block(nn.Module):
        """Basic block of He et al. 2015 with option A."""

        def __init__(self, channels: int, filters: int) -> None:
            super().__init__()
            self.strides = filters // channels
            self.conv1 = nn.Conv2d(channels, filters, 3, self.strides, 1, bias=False)
            self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.norm1, self.norm2 = nn.BatchNorm2d(filters), nn.BatchNorm2d(filters)

        def forward(self, x: Any) -> Any:
            branch = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
            if self.strides == 2:
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))
            return functional.relu(x + branch)

    modules: list[nn.Module]
    if network == "fast":
        modules, channels = [nn.Conv2d(3, 24, 2), nn.GELU()], 24
        modules[0].weight.requires_grad = False
        for filters in (64, 256, 256):
            modules += [nn.Conv2d(channels, filters, 3, padding=1, bias=False), nn.MaxPool2d(2)]
            modules += [
                nn.BatchNorm2d(filters),
                nn.GELU(),
                nn.Conv2d(filters, filters, 3, padding=1, bias=False),
            ]
            modules += [nn.BatchNorm2d(filters), nn.GELU()]
            channels = filters
        modules += [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(256, 10, bias=False)]
    else:
        modules = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        channels = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        modules += [Block(before, after) for before, after in itertools.pairwise(channels)]
        modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    model = nn.Sequential(*modules).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01, 0.9, nesterov=True)
    images, labels = pictures()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(labels).long()

    @maybe_compiled
    def loss(x: Any, y: Any) -> Any:
        return functional.cross_entropy(model(x).float(), y)

    def epoch() -> None:
        for i in range(0, len(y), BATCH):
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                value = loss(x[i : i + BATCH], y[i : i + BATCH])
            value.backward()
            optimizer.step()

    return len(labels) / _contest.epoch_seconds(epoch)


def convolution_peak(precision: str) -> float:
    """GFLOP/s of a 3x3 convolution, forward and backward: what the fastest layer alone can do."""
    import tensorflow as tf

    x = tf.cast(tf.random.normal([512, 16, 16, 256]), precision)
    kernel = tf.cast(tf.random.normal([3, 3, 256, 256]), precision)

    @tf.function
    def step(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = tf.reduce_sum(tf.nn.conv2d(x, kernel, 1, "SAME"))
        return tape.gradient(y, [x, kernel])

    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        step(x, kernel)[1].numpy()
        seconds.append(time.perf_counter() - start)
    return 3 * 2 * 512 * 16 * 16 * 9 * 256 * 256 / min(seconds) / 1e9


def main() -> None:
    """Measures and writes benchmarks/results/cifar10_speed_<network>.json."""
    works = {
        network: {
            **_contest.training(*(functools.partial(function, network) for function in (ours, plain_keras, pytorch))),
            "convolution_peak_bfloat16": functools.partial(convolution_peak, "bfloat16"),
            "convolution_peak_float32": functools.partial(convolution_peak, "float32"),
        }
        for network in MACS
    }
    _contest.main(
        "cifar10_speed",
        __doc__,
        works,
        unit="images",
        protocol=f"batch {BATCH}, {STEPS} steps an epoch, best of two epochs after one warm-up; only ours augments",
    )


if __name__ == "__main__":
    main()
