"""Denoiser: takes the noise out of pictures of any size.

**Source**: denoising autoencoder: Vincent et al. 2010, JMLR 11; the network: Ronneberger et al. 2015, arXiv:1505.04597
(U-Net); residual learning (the network predicts the noise), and one network for all strengths: Zhang et al. 2016,
arXiv:1608.03981 (DnCNN).

**Expect**: `train` with the flags in benchmarks/README.md, then `evaluate`, reach the figures in README.md's results
table; `train --tiny` takes half a minute and takes 2.5 dB more noise out of drawn shapes than the best Gaussian filter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from apps import _pictures, _training
from apps._contract import Card, Objective, Splits
from apps._settings import RECIPE, AtLeast, Between, Noise, Squares, Training, at_least
from kerasdl import export
from kerasdl.blocks import autoencoding
from kerasdl.data import (
    augmentation,
    captioned_pictures,
    divided,
    image_data,
    noise,
    picture_decoding,
    pipeline,
    synthetic,
)
from kerasdl.decoding import tiles
from kerasdl.errors import UserError
from kerasdl.figures import plots
from kerasdl.files import write_bytes
from kerasdl.metrics import denoising
from kerasdl.training import optimizers, precision, several_sizes


@dataclass(frozen=True, kw_only=True)
class Config(Squares, Noise, Training, epochs=16, learning_rate=RECIPE, warmup_epochs=0.2, clip_norm=1.0,
             validation_ratio=0.04):  # fmt: skip
    """Denoiser."""

    dataset: Literal["cifar10", "mnist"] = "cifar10"
    """Pictures from TFDS."""
    flip: bool = True
    """Show half of the training pictures mirrored."""
    architecture: Literal["unet", "autoencoder"] = "unet"
    """autoencoder: everything goes through the smallest map; unet: a way past it for details, at each size."""
    width: AtLeast[int, 1] = 48
    """Channels at the picture's size; each smaller size has twice as many."""
    depth: Between[int, 2, 10] = 3
    """Sizes, each half the one before."""
    upsampling: Literal["transposed", "resize"] = "transposed"
    """How a map doubles its sides: a transposed convolution, or repeated pixels and a convolution, which is slower."""
    sparsity: AtLeast[float, 0] = 0.0
    """autoencoder: factor of an L1 penalty on the smallest map, so that few of its values are active; try 1e-5."""
    optimizer: Literal["muon", "adam"] = "muon"
    """muon: orthogonalised momentum for kernels, Adam at a quarter of the rate for the rest."""

    @staticmethod
    def recipe(noise: str, optimizer: str, photographs: Path | None) -> dict[str, Any]:
        """The strength for the noise, the learning rate for the optimizer, the squares for what they are cut from."""
        strength = {"gaussian": 25.0, "salt_and_pepper": 0.2, "masking": 0.5}[noise]
        rate, patches = 2e-2 if optimizer == "muon" else 6e-3, 50 if photographs is None else 4
        return {"strength": strength, "learning_rate": rate, "patches": patches}

    def __post_init__(self) -> None:
        """Checks every value."""
        super().__post_init__()
        if self.sparsity and self.architecture == "unet":
            raise UserError("--sparsity is for --architecture autoencoder: a unet has ways past its smallest map")
        at_least(max(11, 2 ** (self.depth - 1)), patch_size=self.patch_size)  # the SSIM's window
        if self.photographs is not None and (self.data is not None or self.dataset != "cifar10"):
            raise UserError("--photographs are learned from beside --dataset cifar10; of own pictures give one --data")
        if self.photographs is not None and self.devices > 1:
            raise UserError("--photographs has a graph for each size of picture, on one device; leave --devices out")


OBJECTIVE = Objective(metric="val_psnr_db", direction="max")

# --- Data ------------------------------------------------------------------------------------------------------------


def load_data(config: Config) -> Splits:
    """Pictures uint8[pictures, height, width, channels] of --dataset, or squares of those of --data."""
    cut = image_data.patches(config.patch_size, config.patches, strict=config.strict)
    if config.data is None:
        found = image_data.from_tfds(config.dataset, config.data_dir, held_out=config.held_out)
    else:
        found = image_data.from_folder(config.data, cut, held_out=config.held_out, classes="none")
    test, description = found.test, f"squares of the {found.description}" if config.data else found.description
    train = [found.train.images]
    if config.photographs is not None:
        photographs = captioned_pictures.pictures(config.photographs)
        train.append(cut([(path, 0) for path in photographs], "train").images)
    return splits_of(train, found.validation.images, lambda: test().images, description)


def splits_of(
    train: Sequence[np.ndarray], validation: np.ndarray, test: Callable[[], np.ndarray], description: str, **info: Any
) -> Splits:
    """Clean pictures uint8[pictures, height, width, channels]; those to train on, of a size each, are taken in turn."""
    held = validation if len(validation) else None
    info |= {"channels": train[0].shape[-1], "fingerprint": divided.fingerprint(*train, held)}
    return Splits(train, held, test, info, description)


# --- Model -----------------------------------------------------------------------------------------------------------


def build_model(config: Config, data: Splits) -> keras.Model:
    """Noisy pixels float32[batch, height, width, channels], about 0..255 -> clean ones, compiled."""
    channels = data.info["channels"]
    filters = [config.width * 2**level for level in range(config.depth)]
    with precision.precision(config.precision):
        image = keras.Input((None, None, channels), name="image")
        x = keras.layers.Rescaling(1 / 128, -1, name="rescale")(image)
        # The picture itself is the first guess: after 300 steps on CIFAR-10 that is worth 0.8 dB.
        small = keras.initializers.RandomNormal(stddev=1e-3)
        if config.architecture == "unet":
            x = autoencoding.unet(x, filters, channels, upsampling=config.upsampling, output_kernel=small, name="unet")
        else:
            x = autoencoding.convolutional_encoder(x, filters, name="encoder")
            if config.sparsity:
                x = autoencoding.SparsityPenalty("l1", config.sparsity, name="sparsity")(x)
            x = autoencoding.convolutional_decoder(
                x, filters[::-1], channels, upsampling=config.upsampling, output_kernel=small, name="decoder"
            )
            x = autoencoding.CutTo(name="cut")(x, image)
        noise = keras.layers.Rescaling(128, dtype="float32", name="noise")(x)
        restored = keras.layers.Subtract(dtype="float32", name="restored")([image, noise])
        model = several_sizes.SeveralSizes(image, restored, name="denoiser")
    steps = pipeline.num_steps(num_examples(config, data), config.batch_size) * len(data.train)
    model.compile(
        optimizers.make(config.optimizer, config, steps),
        loss=root_mean_square_error,
        metrics=[keras.metrics.MeanMetricWrapper(psnr_db, name="psnr_db")],
        jit_compile=False,
    )
    return model


def num_examples(config: Config, data: Splits) -> int:
    """Pictures of the first size, which an epoch passes over once."""
    return len(data.train[0])


def noisy_of(config: Config, clean: np.ndarray, strength: float, *, seed: int) -> np.ndarray:
    """Pictures with noise for a measurement, the same each time."""
    return noise.add_noise(clean, [seed, 0], kind=config.noise, strength=strength).numpy()


@keras.saving.register_keras_serializable(package="apps")
def root_mean_square_error(clean: tf.Tensor, restored: tf.Tensor) -> tf.Tensor:
    """The loss of each picture.

    The root makes each picture count in proportion to its noise level, not to its square. Restored values are clipped
    as for the PSNR, so that values outside of 0..255 cost nothing more.
    """
    error = (clean - tf.clip_by_value(restored, 0, 255)) / 128
    return tf.sqrt(tf.reduce_mean(tf.square(error), [1, 2, 3]) + 1e-6)


@keras.saving.register_keras_serializable(package="apps")
def psnr_db(clean: tf.Tensor, restored: tf.Tensor) -> tf.Tensor:
    """Peak signal-to-noise ratio of each picture, in dB."""
    return tf.image.psnr(clean, tf.clip_by_value(restored, 0, 255), 255)


# --- Training --------------------------------------------------------------------------------------------------------


def train(config: Config, model: keras.Model, data: Splits, callbacks: list[Any]) -> keras.callbacks.History:
    """Fits the model to take away noise that is drawn anew in each step."""
    validation = None
    if data.validation is not None:
        noisy = noisy_of(config, data.validation, config.strength, seed=0)
        validation = pipeline.evaluation_batches(
            [noisy, data.validation.astype(np.float32)], 100, devices=config.devices
        )
    return _training.fit_in_turn(config, model, data.train, callbacks, noise_maker(config), validation=validation)


def noise_maker(config: Config) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """The transform of a training batch: uint8 pictures -> noisy and clean ones, float32, 0..255 without noise."""
    highest = 2.2 * config.strength if config.blind else config.strength
    highest = highest if config.noise == "gaussian" else min(1.0, highest)

    def transform(images: tf.Tensor, *, seed: tf.Tensor, **_: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        seeds = [tf.random.fold_in(seed, i) for i in range(5)]
        if config.flip:
            images = augmentation.random_flip(images, seeds[0])
        count = tf.shape(images)[0]

        def drawn(share: float, seed: tf.Tensor) -> tf.Tensor:
            return tf.random.stateless_uniform([count, 1, 1, 1], seed) < share

        in_grey = drawn(config.grey, seeds[3])
        if images.shape[-1] == 3:
            images = tf.where(in_grey, picture_decoding.grey(images), images)
        clean = tf.cast(images, tf.float32)
        strength = tf.fill([count], highest)
        if config.blind:
            strength = tf.random.stateless_uniform([count], seeds[1], 0, highest)
        noisy = noise.add_noise(clean, seeds[2], kind=config.noise, strength=strength)
        noisy = tf.where(in_grey, noisy[..., :1], noisy)
        return tf.where(drawn(config.rounded, seeds[4]), tf.round(tf.clip_by_value(noisy, 0, 255)), noisy), clean

    return transform


# --- Evaluation ------------------------------------------------------------------------------------------------------


def restore(signatures: Mapping[str, Any], noisy: np.ndarray) -> np.ndarray:
    """float32 pictures as the model restores them, neither clipped nor rounded."""
    parts = pipeline.slices(len(noisy), 100, "Restoring")
    return np.concatenate([signatures["pixels"](image=tf.constant(noisy[part]))["image"] for part in parts])


def evaluate(
    config: Config, signatures: Mapping[str, Any], data: Splits, figures: Path | None = None
) -> dict[str, float]:
    """PSNR and SSIM on the test split at the strength of the training, of Gaussian noise also at 15, 25 and 50."""
    clean = data.test()
    if not len(clean):
        raise UserError("there is no test picture: expected three or more pictures in --data, large enough for a patch")
    strengths = {config.strength} | ({15.0, 25.0, 50.0} if config.noise == "gaussian" and config.blind else set())
    metrics: dict[str, float] = {}
    for strength in sorted(strengths):
        noisy = noisy_of(config, clean, strength, seed=1)
        for name, images in (("noisy", noisy), ("restored", restore(signatures, noisy))):
            scores = denoising.psnr_and_ssim(clean, images)
            metrics |= {f"{name}_{score}_{strength:g}": value for score, value in scores.items()}
    if figures is not None:
        noisy = noisy_of(config, clean[:8], config.strength, seed=1)
        rows = np.concatenate([clean[:8], noisy, restore(signatures, noisy)])
        plots.image_grid(np.clip(rows, 0, 255).astype(np.uint8), figures / "restored.png", columns=8)
    return metrics


def verdict(metrics: Mapping[str, float]) -> str | None:
    """Why the model is of no use, if it is not."""
    prefix = "noisy_psnr_db_"
    strengths = [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)]
    gains = {at: metrics[f"restored_psnr_db_{at}"] - metrics[prefix + at] for at in strengths}
    if max(gains.values()) < 0.1:
        return f"it does not take away noise of strength {', '.join(strengths)}: less than 0.1 dB"
    return None


# --- Export ----------------------------------------------------------------------------------------------------------

CARD = Card.read("denoiser")


def endpoints(model: keras.Model, data: Splits) -> Mapping[str, export.Endpoint]:
    """Encoded pictures in, encoded pictures out; or pixels."""
    channels = data.info["channels"]
    halving = (keras.layers.MaxPooling2D, keras.layers.Conv2D)
    stride = 2 ** sum(layer.strides == (2, 2) for layer in model.layers if isinstance(layer, halving))

    def network(image: tf.Tensor) -> tf.Tensor:
        return model(image, training=False)

    def from_pixels(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"image": network(export.finite(image, "image"))}

    def from_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        files = tiles.files(network, image_bytes, channels=channels, border=8 * stride)  # it looks less far
        return {"image_bytes": files}

    example = data.train[0][:1]
    return {
        "denoise": export.Endpoint(
            from_bytes,
            *export.encoded(example),
            f"{export.ENCODED}, to PNG of the same size: upright, grey where the picture is, 8 bits a channel, without "
            "transparency",
        ),
        "pixels": export.Endpoint(
            from_pixels,
            {"image": tf.TensorSpec([None, None, None, channels], tf.float32)},
            {"image": example.astype(np.float32)},
            "pixels about 0..255, with the noise neither clipped nor rounded; the restored ones are not, either",
            alike=(),
        ),
    }


# --- Verb ------------------------------------------------------------------------------------------------------------


def denoise(model: Path, pictures: list[Path], *, output: Path) -> None:
    """Take the noise out of pictures, with an exported model.

    Args:
        model: exported model, such as saved_models/denoiser.
        pictures: picture files (JPEG, PNG, GIF, BMP or WebP) and folders of them.
        output: folder for the restored pictures, PNG: upright, grey where the picture is grey, 8 bits a channel, on
            white where it was transparent; those of a folder keep their places in it, equal names get numbers, and
            nothing is overwritten.
    """
    signature = export.signatures(model, "denoise")["denoise"]
    for path, _, answer, target in _pictures.answers(
        pictures, lambda content: signature(image_bytes=tf.constant([content]))["image_bytes"].numpy()[0], output
    ):
        write_bytes(target, answer)
        print(f"{path} -> {target}")


VERBS: tuple[Callable[..., None], ...] = (denoise,)


def tiny(config: Config | None = None) -> tuple[Config, Splits]:
    """Drawn shapes: straight edges on plain ground, which a filter blurs."""
    images, _ = synthetic.shapes(2500, size=32, num_classes=8, seed=0)
    train, validation, test = np.split(images, [2000, 2200])
    config = config or Config(width=16, depth=2, epochs=8, batch_size=32)
    return config, splits_of([train], validation, lambda: test, "drawn shapes, test split, 300 pictures", tiny=True)
