"""VAE: learns a latent code for pictures, and generates new ones from latents drawn at random.

**Source**: Kingma and Welling 2013, arXiv:1312.6114; the importance-weighted objective and the measurement: Burda et
al. 2015, arXiv:1509.00519 (IWAE).

**Expect**: `train` then `evaluate` reach the bound in README.md's results table; `train --tiny` takes half
a minute and reaches a likelihood of drawn shapes that is 40 nats above that of independent pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from apps import _pictures, _training
from apps._contract import Card, Objective, Splits
from apps._settings import RECIPE, AtLeast, Between, PictureData, Training, between
from kerasdl import export
from kerasdl.blocks import autoencoding, variational
from kerasdl.data import image_data, pipeline, synthetic
from kerasdl.decoding import latents, rows
from kerasdl.errors import UserError
from kerasdl.figures import plots
from kerasdl.files import check_output, separate, write_bytes
from kerasdl.models import vae
from kerasdl.training import devices, optimizers, precision


@dataclass(frozen=True, kw_only=True)
class Config(PictureData, Training, epochs=500, batch_size=512, learning_rate=RECIPE, warmup_epochs=0.2,
             validation_ratio=0.04, precision="float32"):  # fmt: skip
    """Variational autoencoder."""

    dataset: Literal["mnist", "cifar10"] = "mnist"
    """Pictures from TFDS."""
    data: Path | None = None
    """Own pictures in place of --dataset: a folder, searched with its sub-folders."""
    image_size: AtLeast[int, 8] = 32
    """Side of the middle squares to which the pictures of --data are scaled, in pixels."""
    likelihood: Literal["bernoulli", "logistic"] = RECIPE
    """bernoulli: pixels are ones or zeros, drawn anew each time by their brightness, for mnist; logistic: they have
    256 values, for all others."""
    encoder: Literal["dense", "convolutional"] = RECIPE
    """Network from a picture to the mean and variance of its code; dense for mnist, convolutional for all others."""
    decoder: Literal["dense", "convolutional"] = RECIPE
    """Network from a code to a picture, in the same way."""
    filters: AtLeast[int, 1] = 32
    """Channels at half the picture's size, twice as many at a quarter (convolutional)."""
    units: AtLeast[int, 1] = 300
    """Units of the hidden layers: two in a dense network, one beside the convolutions."""
    latents: AtLeast[int, 1] = 40
    """Numbers of the code; with 2 a map of them is drawn."""
    objective: Literal["elbo", "iwae"] = "elbo"
    """elbo: the evidence lower bound; iwae: the tighter, importance-weighted one of all samples."""
    samples: AtLeast[int, 1] = 1
    """Codes drawn for a picture in training."""
    kl_warmup_ratio: Between[float, 0, 1] = 0.1
    """Share of the training in which the weight of the divergence rises from 0 to 1 (elbo)."""
    free_bits: AtLeast[float, 0] = 0.0
    """Nats that each latent may cost for nothing (elbo)."""
    bound_samples: AtLeast[int, 100] = 5000
    """Codes drawn for each test picture when its likelihood is measured; a multiple of 100."""
    optimizer: Literal["muon", "adam"] = "muon"
    """muon: orthogonalised momentum for matrices and kernels, Adam at a quarter of the rate for the rest."""

    @staticmethod
    def recipe(dataset: str, data: Path | None, optimizer: str) -> dict[str, Any]:
        """Likelihood and networks for the data, the learning rate for the optimizer."""
        is_mnist = dataset == "mnist" and data is None
        networks = dict.fromkeys(("encoder", "decoder"), "dense" if is_mnist else "convolutional")
        likelihood = "bernoulli" if is_mnist else "logistic"
        return {"likelihood": likelihood, **networks, "learning_rate": 8e-3 if optimizer == "muon" else 2e-3}

    @property
    def laid_out(self) -> str | None:
        """The warm-up of the divergence, or the schedule."""
        rises = self.kl_warmup_ratio and self.objective == "elbo"
        return f"--kl-warmup-ratio {self.kl_warmup_ratio}" if rises else super().laid_out

    def __post_init__(self) -> None:
        """Checks every value."""
        super().__post_init__()
        if self.image_size % 4:
            raise UserError(f"--image-size is {self.image_size}; expected a multiple of 4: it is halved twice")
        if self.bound_samples % 100:
            raise UserError(f"--bound-samples is {self.bound_samples}; expected a multiple of 100")
        if self.objective == "iwae" and self.free_bits:
            raise UserError("--free-bits change the divergence, which iwae has not; leave them 0")


OBJECTIVE = Objective(metric="val_loss", direction="min")

# --- Data ------------------------------------------------------------------------------------------------------------


def load_data(config: Config) -> Splits:
    """Pictures uint8[pictures, size, size, channels] of --dataset or --data; classes only colour a figure."""
    if config.data is None:
        found = image_data.from_tfds(config.dataset, config.data_dir, held_out=config.held_out)
    else:
        squares = image_data.squares(config.image_size, strict=config.strict)
        found = image_data.from_folder(config.data, squares, held_out=config.held_out, classes="none")
    train, validation, info = found.train.images, found.validation.images, {"shape": list(found.train.images.shape[1:])}
    return Splits(train, validation if len(validation) else None, found.test, info, found.description)


# --- Model -----------------------------------------------------------------------------------------------------------


def build_model(config: Config, data: Splits) -> VariationalAutoencoder:
    """Pictures float32[batch, size, size, channels] in 0..1 -> bounds on their likelihood, compiled."""
    shape = tuple(data.info["shape"])
    filters = [config.filters, 2 * config.filters]
    with precision.precision(config.precision):
        image = keras.Input(shape, name="image")
        x = keras.layers.Rescaling(2, -1, name="rescale")(image)
        units = [config.units, config.units]
        if config.encoder == "convolutional":
            x = autoencoding.convolutional_encoder(x, filters, activation="gelu", name="encoder")
            units = [config.units]
        x = autoencoding.dense_encoder(x, units, activation="gelu", name="encoder")
        code = [keras.layers.Dense(config.latents, dtype="float32", name=name)(x) for name in ("mean", "log_var")]
        encoder = keras.Model(image, code, name="encoder")

        x = latent = keras.Input((config.latents,), name="latent")
        if config.decoder == "convolutional":
            small = (shape[0] // 4, shape[1] // 4, filters[1])
            x = autoencoding.dense_decoder(x, [config.units], small, activation="gelu", name="map")
            x = autoencoding.convolutional_decoder(x, filters[::-1], shape[2], activation="gelu", name="decoder")
        else:
            x = autoencoding.dense_decoder(x, [config.units, config.units], shape, activation="gelu", name="decoder")
        decoder = keras.Model(latent, x, name="decoder")
        steps = pipeline.num_steps(len(data.train), config.batch_size)
        model = VariationalAutoencoder(
            encoder,
            decoder,
            likelihood=config.likelihood,
            objective=config.objective,
            num_samples=config.samples,
            kl_warmup_steps=round(steps * config.epochs * config.kl_warmup_ratio) if config.objective == "elbo" else 0,
            minimum_kl=config.free_bits,
            name="vae",
        )
    optimizer = optimizers.make(config.optimizer, config, steps)
    model.compile(optimizer, steps_per_execution=pipeline.steps_per_execution(steps), jit_compile=False)
    return model


@keras.saving.register_keras_serializable(package="apps")
class VariationalAutoencoder(vae.LatentVariableModel):
    """Bounds on the likelihood of pictures, and the loss: the negative bound.

    `fit` takes pictures alone. In validation the bound is whole: warm-up and free bits change the loss in training.

    Source: Kingma and Welling 2013, arXiv:1312.6114, section 2.3; iwae: Burda et al. 2015, arXiv:1509.00519, section 3.
    """

    def call(self, image: Any, num_samples: int | None = None, noise: Any = None, training: bool | None = None) -> Any:
        """What both bounds are made of, in nats; arguments and shapes are those of `vae.LatentVariableModel`."""
        count = num_samples or self.num_samples
        mean, log_var = self.code(image, training=training)
        latent = self.sampling(mean, log_var, num_samples=count, noise=noise)  # mean + deviation * noise
        image, *code = (keras.ops.repeat(part, count, axis=0) for part in (image, mean, log_var))
        log_likelihood = self.log_likelihood(image, self.decoder(latent, training=training))
        log_weights = variational.log_importance_weights(log_likelihood, latent, *code)
        return {
            "log_likelihood": keras.ops.reshape(log_likelihood, (-1, count)),
            "log_weights": keras.ops.reshape(log_weights, (-1, count)),
            "kl": variational.kl_per_latent(mean, log_var),
        }

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The negative bound, in nats a picture: divergence minus reconstruction, or the importance-weighted one."""
        if self.objective == "iwae":
            return devices.share(-keras.ops.mean(variational.importance_weighted_bound(y_pred["log_weights"])))
        reconstruction = keras.ops.mean(y_pred["log_likelihood"])
        divergence = variational.free_bits(y_pred["kl"], self.minimum_kl if training else 0.0)
        factor = variational.kl_warmup(self.optimizer.iterations, self.kl_warmup_steps) if training else 1.0
        return devices.share(factor * divergence - reconstruction)


# --- Training --------------------------------------------------------------------------------------------------------


def train(config: Config, model: keras.Model, data: Splits, callbacks: list[Any]) -> keras.callbacks.History:
    """Fits the model to pictures that are drawn anew in each step, where their pixels are zeros and ones."""

    def observed(images: Any, *, seed: Any, **_: Any) -> tuple[tf.Tensor]:
        return (vae.observed(config.likelihood, images, seed),)

    held = data.validation
    validation = None
    if held is not None:
        validation = pipeline.evaluation_batches(observed(held, seed=[0, 0]), 100, devices=config.devices)
    return _training.fit_arrays(config, model, [data.train], callbacks, observed, validation=validation)


# --- Evaluation ------------------------------------------------------------------------------------------------------


def evaluate(
    config: Config, signatures: Mapping[str, Any], data: Splits, figures: Path | None = None
) -> dict[str, float]:
    """Bounds on the likelihood of the test split, in nats a picture, and how many latents are in use.

    `nll_nats` is minus the importance-weighted bound of --bound-samples draws, `elbo_nats` minus the evidence lower
    bound. Pixels of zeros and ones are drawn once.
    """
    examples = data.test()
    test = np.rint(255 * vae.observed(config.likelihood, examples.images, [1, 0])).astype(np.uint8)
    metrics, mean, kl = vae.measured(signatures["score"], test, config.bound_samples)
    if config.likelihood == "logistic":
        metrics["bits_per_dimension"] = metrics["nll_nats"] / np.log(2) / test[0].size
    if figures is not None:
        vae.figures(signatures, test, examples.labels, mean, kl, figures)
    return metrics


def verdict(metrics: Mapping[str, float]) -> str | None:
    """Why the model is of no use, if it is not."""
    if metrics["active_latents"] == 0:
        unused = f"its latents are unused (divergence {metrics['kl_nats']:.2f} nats)"
        return f"{unused}, so that every code gives the same picture; train for longer, or with --free-bits"
    return None


# --- Export ----------------------------------------------------------------------------------------------------------

CARD = Card.read("vae")


def endpoints(model: keras.Model, data: Splits) -> Mapping[str, export.Endpoint]:
    """Pictures from a seed or a code; the code of a picture; how likely it is."""
    size = model.decoder.inputs[0].shape[-1]
    code, example = np.zeros([1, size]), data.train[:1]
    shown = tf.TensorSpec([None, *example.shape[1:]], tf.float32)

    def pictures(latent: tf.Tensor) -> tf.Tensor:
        return tf.cast(model.pictures(latent), tf.float32)

    def decode(latent: tf.Tensor) -> dict[str, tf.Tensor]:
        image = rows.by_blocks(pictures, export.finite(latent, "latent"), spec=shown)
        return {"image": image, "image_bytes": export.with_png(255 * image)}

    def encode(image: tf.Tensor) -> dict[str, tf.Tensor]:
        mean, log_var = model.code(vae.observed(model.likelihood, image), training=False)
        return {"mean": mean, "log_var": log_var}

    return {
        "generate": export.by_example(
            lambda count, seed: decode(latents.draw(count, seed, size)),
            f"`count` new pictures of each seed ({latents.MAX_COUNT:,} in all at most), as values 0..1 and as PNG; "
            "the same seed gives the same pictures",
            count=[1],
            seed=[0],
        ),
        **export.of_pictures("encode", encode, example, "mean and logarithm of the variance of their codes"),
        "decode": export.by_rows(decode, "the pictures of codes, as values 0..1 and as PNG", latent=code),
        "score": export.by_rows(
            lambda image, seed: model.score(vae.observed(model.likelihood, image), seed),
            f"log-likelihood of pixels 0..255 in nats, bounded from below by {vae.DRAWS} draws of each seed, "
            "and its parts",
            image=example,
            seed=[0],
        ),
    }


# --- Verbs -----------------------------------------------------------------------------------------------------------


def generate(model: Path, *, count: int = 64, seed: int = 0, output: Path, files: bool = False) -> None:
    """Draw new pictures, with an exported model.

    Args:
        model: exported model, such as saved_models/vae.
        count: number of pictures, up to 10,000.
        seed: the same seed gives the same pictures.
        output: PNG of all of them in rows, or with --files a folder; nothing is overwritten.
        files: write each picture into a file of its own.
    """
    between(1, latents.MAX_COUNT, count=count)
    between(-(2**31), 2**31 - 1, seed=seed)
    check_output(output, folder=files)
    targets = separate([output / f"{seed}-{index:05d}.png" for index in range(count)]) if files else []
    answer = export.signatures(model, "generate")["generate"](count=[count], seed=[seed])
    if files:
        for target, picture in zip(targets, answer["image_bytes"].numpy(), strict=True):
            write_bytes(target, picture)
    print(f"{count} pictures in {output}" if files else plots.image_grid(answer["image"].numpy(), output))


def reconstruct(model: Path, pictures: list[Path], *, output: Path) -> None:
    """Draw pictures above what is left of them when they have gone through their codes, with an exported model.

    Args:
        model: exported model, such as saved_models/vae.
        pictures: picture files (JPEG, PNG, GIF, BMP or WebP) and folders of them.
        output: PNG to write, a new file; each row of pictures stands above its reconstructions.
    """
    check_output(output)
    signatures, images, mean = _encoded(model, pictures)
    print(vae.reconstructions(signatures["decode"], images, mean, output))


def interpolate(model: Path, pictures: list[Path], *, steps: int = 9, output: Path) -> None:
    """Draw the way from each picture to the next one through the codes between, with an exported model.

    Args:
        model: exported model, such as saved_models/vae.
        pictures: two or more picture files (JPEG, PNG, GIF, BMP or WebP), or folders of them.
        steps: pictures of each way, both ends counted.
        output: PNG to write, a new file, a row for each way.
    """
    between(2, 100, steps=steps)
    check_output(output)
    signatures, images, mean = _encoded(model, pictures)
    if len(images) < 2:
        raise UserError("interpolate has one picture that can be read; expected two or more to go from one to another")
    print(vae.ways(signatures["decode"], mean, steps, output))


def _encoded(model: Path, pictures: list[Path]) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The signatures of an export, the pictures uint8[n, size, size, channels] that can be read, and their codes."""
    signatures = export.signatures(model, "pixels", "decode")
    images = _pictures.squares(pictures, *signatures["pixels"].inputs["image"].shape[2:])
    return signatures, images, signatures["pixels"](image=images)["mean"].numpy()


VERBS: tuple[Callable[..., None], ...] = (generate, reconstruct, interpolate)


def tiny(config: Config | None = None) -> tuple[Config, Splits]:
    """Drawn shapes in black and white, 16 pixels: place, size and angle are all that there is to know."""
    drawn, labels = synthetic.shapes(3500, size=16, num_classes=4, seed=0)
    images = 255 * (np.abs(drawn.astype(np.int32) - drawn[:, :1, :1]).sum(-1, keepdims=True) > 140).astype(np.uint8)
    test, info = image_data.Images(images[3250:], labels[3250:]), {"shape": [16, 16, 1], "tiny": True}
    config = config or Config(
        encoder="convolutional", filters=8, units=64, latents=8, epochs=25, batch_size=50, learning_rate=3e-3,
        bound_samples=100,
    )  # fmt: skip
    words = "drawn shapes, test split, 250 pictures"
    return config, Splits(images[:3000], images[3000:3250], lambda: test, info, words)
