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

from apps import _training
from apps._contract import Card, Objective, Splits
from apps._settings import RECIPE, AtLeast, Between, PictureData, Training, between
from kerasdl import export
from kerasdl.blocks import autoencoding, variational
from kerasdl.data import image_data, picture_decoding, picture_files, pipeline, synthetic
from kerasdl.decoding import latents
from kerasdl.errors import UserError
from kerasdl.figures import plots
from kerasdl.files import check_output, separate, write_bytes
from kerasdl.models import vae
from kerasdl.training import optimizers, precision


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
    bound_samples: int = 5000
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
        if self.bound_samples < 1 or self.bound_samples % 100:
            raise UserError(f"--bound-samples is {self.bound_samples}; expected a multiple of 100")
        if self.objective == "iwae" and self.free_bits:
            raise UserError("--free-bits change the divergence, which iwae has not; leave them 0")


OBJECTIVE = Objective(metric="val_loss", direction="min")

# --- Data ------------------------------------------------------------------------------------------------------------


def load_data(config: Config) -> Splits:
    """Pictures uint8[pictures, size, size, channels] of --dataset or --data; classes only colour a figure."""
    ratio = config.validation_ratio
    if config.data is None:
        found = image_data.from_tfds(config.dataset, config.data_dir, validation_ratio=ratio)
    else:
        squares = image_data.squares(config.image_size, strict=config.strict)
        found = image_data.from_folder(config.data, squares, validation_ratio=ratio, classes="none")
    return splits_of(found.train.images, found.validation.images, found.test, found.description)


def splits_of(
    train: np.ndarray, validation: np.ndarray, test: Callable[[], image_data.Images], description: str, **info: Any
) -> Splits:
    """Pictures uint8[pictures, size, size, channels] as the other parts of this file take them."""
    return Splits(
        train=train,
        validation=validation if len(validation) else None,
        test=test,
        info={**info, "shape": list(train.shape[1:])},
        description=description,
    )


def pictures_of(likelihood: vae.Likelihood, images: Any, seed: Any) -> tf.Tensor:
    """uint8 pictures as the likelihood takes them, float32 in 0..1: zeros and ones drawn by brightness, or as they are.

    Source: dynamic binarisation: Burda et al. 2015, arXiv:1509.00519, section 5.
    """
    brightness = tf.cast(images, tf.float32) / 255
    if likelihood == "logistic":
        return brightness
    return tf.cast(tf.random.stateless_uniform(tf.shape(brightness), seed) < brightness, tf.float32)


# --- Model -----------------------------------------------------------------------------------------------------------


def build_model(config: Config, data: Splits) -> VariationalAutoencoder:
    """Pictures float32[batch, size, size, channels] in 0..1 -> bounds on their likelihood, compiled."""
    shape = tuple(data.info["shape"])
    filters = [config.filters, 2 * config.filters]
    with precision.precision(config.precision):
        image = keras.Input(shape, name="image")
        x = keras.layers.Rescaling(2, -1, name="rescale")(image)
        if config.encoder == "convolutional":
            x = autoencoding.convolutional_encoder(x, filters, activation="gelu", name="encoder")
            x = autoencoding.dense_encoder(x, [config.units], activation="gelu", name="encoder")
        else:
            x = autoencoding.dense_encoder(x, [config.units, config.units], activation="gelu", name="encoder")
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
        warmup = config.kl_warmup_ratio if config.objective == "elbo" else 0.0
        model = VariationalAutoencoder(
            encoder,
            decoder,
            likelihood=config.likelihood,
            objective=config.objective,
            num_samples=config.samples,
            kl_warmup_steps=round(steps * config.epochs * warmup),
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

    def call(
        self, image: Any, num_samples: int | None = None, noise: Any = None, training: bool | None = None
    ) -> dict[str, Any]:
        """What both bounds are made of.

        Args:
            image: float32[batch, ...].
            num_samples: draws for each picture, k; those of the constructor if None.
            noise: standard normal numbers float32[batch * k, latents] in place of new ones.
            training: of both networks.

        Returns:
            log_likelihood and log_weights float32[batch, k], kl float32[batch, latents], all in nats.
        """
        count = num_samples or self.num_samples
        mean, log_var = self.code(image, training=training)
        latent = self.sampling(mean, log_var, num_samples=count, noise=noise)  # mean + deviation * noise
        image, *code = (
            keras.ops.repeat(keras.ops.cast(part, "float32"), count, axis=0) for part in (image, mean, log_var)
        )
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
            return -keras.ops.mean(variational.importance_weighted_bound(y_pred["log_weights"]))
        reconstruction = keras.ops.mean(y_pred["log_likelihood"])
        if not training:
            return variational.free_bits(y_pred["kl"], 0.0) - reconstruction
        factor = variational.kl_warmup(self.optimizer.iterations, self.kl_warmup_steps)
        return factor * variational.free_bits(y_pred["kl"], self.minimum_kl) - reconstruction


# --- Training --------------------------------------------------------------------------------------------------------


def train(config: Config, model: keras.Model, data: Splits, callbacks: list[Any]) -> keras.callbacks.History:
    """Fits the model to pictures that are drawn anew in each step, where their pixels are zeros and ones."""
    validation = None
    if data.validation is not None:
        drawn = pictures_of(config.likelihood, data.validation, [0, 0]).numpy()
        validation = pipeline.evaluation_batches((drawn,), 100)

    def transform(images: tf.Tensor, *, seed: tf.Tensor, **_: tf.Tensor) -> tuple[tf.Tensor]:
        return (pictures_of(config.likelihood, images, seed),)

    return _training.fit_arrays(config, model, [data.train], callbacks, transform, validation=validation)


# --- Evaluation ------------------------------------------------------------------------------------------------------


def evaluate(
    config: Config, signatures: Mapping[str, Any], data: Splits, figures: Path | None = None
) -> dict[str, float]:
    """Bounds on the likelihood of the test split, in nats a picture, and how many latents are in use.

    `nll_nats` is minus the importance-weighted bound of --bound-samples draws, `elbo_nats` minus the evidence lower
    bound. Pixels of zeros and ones are drawn once.
    """
    examples = data.test()
    if not len(examples.images):
        raise UserError("there is no test picture: expected three or more pictures in --data")
    test = np.rint(255 * pictures_of(config.likelihood, examples.images, [1, 0]).numpy()).astype(np.uint8)

    def score(images: np.ndarray, seed: np.ndarray) -> dict[str, tf.Tensor]:
        return signatures["score"](image=tf.constant(images), seed=tf.constant(seed, tf.int32))

    bound = vae.log_likelihood_bound(lambda images, seed: score(images, seed)["bound_nats"], test, config.bound_samples)
    answers = [score(test[part], np.arange(part.start, part.stop)) for part in pipeline.slices(len(test), 100)]
    elbo, kl, mean = (np.concatenate([a[key] for a in answers]) for key in ("elbo_nats", "kl_nats", "mean"))
    # A latent is in use if its mean moves with the picture (Burda et al. 2015, section 5.2).
    active = int(np.sum(mean.var(0) > 0.01))
    metrics = {
        "nll_nats": float(-bound.mean()),
        "elbo_nats": float(-elbo.mean()),
        "kl_nats": float(kl.sum(1).mean()),
        "reconstruction_nats": float(-(elbo + kl.sum(1)).mean()),
        "active_latents": active,
        "collapsed_latents": mean.shape[1] - active,
        "bound_samples": config.bound_samples,
    }
    if config.likelihood == "logistic":
        metrics["bits_per_dimension"] = metrics["nll_nats"] / np.log(2) / test[0].size
    if figures is not None:
        vae.figures(signatures, test, examples.labels, mean, kl.mean(0), figures)
    return metrics


def verdict(metrics: Mapping[str, float]) -> str | None:
    """Why the model is of no use, if it is not."""
    if metrics["active_latents"] == 0 and metrics["kl_nats"] < 1:
        return (
            f"its latents are unused (divergence {metrics['kl_nats']:.2f} nats), so that every code gives the same "
            "picture; train for longer, or with --free-bits"
        )
    return None


# --- Export ----------------------------------------------------------------------------------------------------------


CARD = Card(
    summary="Encodes pictures, and makes new ones of codes; trained by `python -m apps vae train`.",
    limits=(
        "It draws what is usual in its training data, a little blurred: a detail that differs from picture to picture "
        "is averaged.",
        "Pictures of other kinds are encoded, too, and come back as the nearest thing that it knows; `score` tells "
        "them by a low bound, not by an error.",
        "The bound of 100 draws that `score` gives is lower than that of 5,000 on this card.",
        "With the likelihood bernoulli (see the configuration) it knows black and white: `encode` and `score` take "
        "grey of 128 and more for white, the rest for black.",
    ),
    sources=(
        "LeCun et al. 1998, Gradient-Based Learning Applied to Document Recognition (MNIST).",
        "Kingma and Welling 2013, Auto-Encoding Variational Bayes, arXiv:1312.6114.",
        "Burda et al. 2015, Importance Weighted Autoencoders, arXiv:1509.00519.",
    ),
)


def endpoints(model: keras.Model, data: Splits) -> Mapping[str, export.Endpoint]:
    """Pictures from a seed or a code; the code of a picture; how likely it is."""
    assert isinstance(model, vae.LatentVariableModel)
    size = model.decoder.inputs[0].shape[-1]

    def values(image: tf.Tensor) -> tf.Tensor:
        brightness = tf.cast(image, tf.float32) / 255
        return tf.round(brightness) if model.likelihood == "bernoulli" else brightness

    def decode(latent: tf.Tensor) -> dict[str, tf.Tensor]:
        image = tf.cast(model.pictures(export.finite(latent, "latent")), tf.float32)
        return {"image": image, "image_bytes": export.with_png(255 * image)}

    def generate(count: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        return decode(latents.draw(count, seed, size))

    def encode(image: tf.Tensor) -> dict[str, tf.Tensor]:
        mean, log_var = model.code(values(image), training=False)
        return {"mean": mean, "log_var": log_var}

    def score(image: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        return model.score(values(image), seed)

    whole = tf.TensorSpec([None], tf.int32)
    example = data.train[:1]
    return {
        "generate": export.Endpoint(
            generate,
            {"count": whole, "seed": whole},
            {"count": np.array([1]), "seed": np.array([0])},
            f"`count` new pictures of each seed (1 to {latents.MAX_COUNT:,}), as values 0..1 and as PNG; the same "
            "seed gives the same pictures",
        ),
        **export.of_pictures("encode", encode, example, "mean and logarithm of the variance of their codes"),
        "decode": export.Endpoint(
            decode,
            {"latent": tf.TensorSpec([None, size], tf.float32)},
            {"latent": np.zeros([1, size], np.float32)},
            "the pictures of codes, as values 0..1 and as PNG",
        ),
        "score": export.Endpoint(
            score,
            {"image": tf.TensorSpec([None, *example.shape[1:]], tf.uint8), "seed": whole},
            {"image": example, "seed": np.array([0])},
            f"log-likelihood of pixels 0..255 in nats, bounded from below by {vae.DRAWS} draws of each seed, "
            "and its parts",
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
    signature = export.signatures(model, "generate")["generate"]
    answer = signature(count=tf.constant([count]), seed=tf.constant([seed]))
    if not files:
        print(plots.image_grid(answer["image"].numpy(), output))
        return
    for target, picture in zip(targets, answer["image_bytes"].numpy(), strict=True):
        write_bytes(target, picture)
    print(f"{count} pictures in {output}")


def reconstruct(model: Path, pictures: list[Path], *, output: Path) -> None:
    """Draw pictures above what is left of them when they have gone through their codes, with an exported model.

    Args:
        model: exported model, such as saved_models/vae.
        pictures: picture files (JPEG, PNG, GIF, BMP or WebP) and folders of them.
        output: PNG to write, a new file; each row of pictures stands above its reconstructions.
    """
    check_output(output)
    signatures = export.signatures(model, "pixels", "decode")
    images = _read(signatures, pictures)
    codes = signatures["pixels"](image=tf.constant(images))["mean"]
    restored = signatures["decode"](latent=codes)["image"].numpy()
    print(plots.image_grid(plots.paired_rows(images / 255, restored), output, columns=8))


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
    signatures = export.signatures(model, "pixels", "decode")
    images = _read(signatures, pictures)
    if len(images) < 2:
        raise UserError("interpolate has one picture that can be read; expected two or more to go from one to another")
    codes = signatures["pixels"](image=tf.constant(images))["mean"]
    way = latents.interpolate(codes[:-1], codes[1:], steps)
    drawn = signatures["decode"](latent=tf.reshape(way, [-1, codes.shape[1]]))["image"].numpy()
    print(plots.image_grid(drawn, output, columns=steps))


def _read(signatures: Mapping[str, Any], pictures: list[Path]) -> np.ndarray:
    """Pictures uint8[n, size, size, channels] as the export takes them; broken ones are named and left out."""
    size, channels = signatures["pixels"].inputs["image"].shape[2:]
    files = picture_files.find(pictures)
    images, _, skipped = picture_files.decode(files, size=size)
    picture_files.report_skipped(skipped, len(files), strict=not len(images))
    return images if channels == 3 else picture_decoding.grey(tf.constant(images)).numpy()


VERBS: tuple[Callable[..., None], ...] = (generate, reconstruct, interpolate)


def tiny(config: Config | None = None) -> tuple[Config, Splits]:
    """Drawn shapes in black and white, 16 pixels: place, size and angle are all that there is to know."""
    images, labels = synthetic.shapes(3500, size=16, num_classes=4, seed=0)
    ground = images[:, :1, :1].astype(np.int32)
    images = (255 * (np.abs(images.astype(np.int32) - ground).sum(-1, keepdims=True) > 140)).astype(np.uint8)
    train, validation, test = np.split(images, [3000, 3250])
    config = config or Config(
        filters=8, units=64, latents=8, epochs=25, batch_size=50, learning_rate=3e-3, bound_samples=100,
        likelihood="bernoulli", encoder="convolutional", decoder="dense",
    )  # fmt: skip
    return config, splits_of(
        train,
        validation,
        lambda: image_data.Images(test, labels[3250:]),
        "drawn shapes, test split, 250 pictures",
        tiny=True,
    )
