"""DCGAN: draws pictures like those it was trained on, of a class if asked.

**Source**: Goodfellow et al. 2014, arXiv:1406.2661; the networks: Radford et al. 2015, arXiv:1511.06434 (DCGAN); hinge
loss and spectral normalization: Miyato et al. 2018, arXiv:1802.05957; classes: Miyato and Koyama 2018,
arXiv:1802.05637; the averaged generator: Yazıcı et al. 2018, arXiv:1806.04498.

**Expect**: `train` then `evaluate` reach the figures in README.md's results table; `train --tiny` takes half a minute,
halves the distance of an untrained generator to drawn shapes, and draws every other one like the shape it is asked for.
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
from apps._settings import RECIPE, AtLeast, Between, Measurement, PictureData, at_least, between
from kerasdl import export
from kerasdl.blocks import dcgan
from kerasdl.data import augmentation, image_data, pipeline, synthetic
from kerasdl.decoding import latents, rows
from kerasdl.errors import UserError
from kerasdl.fast import fused_adam
from kerasdl.figures import plots
from kerasdl.models import feature_space, gan, generator
from kerasdl.training import devices, precision, run


@dataclass(frozen=True, kw_only=True)
class Config(Measurement, PictureData, epochs=24, validation_ratio=0.04):
    """DCGAN."""

    dataset: Literal["cifar10", "mnist"] = "cifar10"
    """Pictures from TFDS, 32 pixels wide: MNIST's 28 get a border."""
    data: Path | None = None
    """Own pictures in place of --dataset: a folder, with one sub-folder a class if there are classes."""
    image_size: AtLeast[int, 16] = RECIPE
    """Side to which the middle squares of --data are scaled, also up, in pixels: 16, 32, 64, 128 ...; by default 64."""
    flip: Literal["none", "random"] = RECIPE
    """Show half of the training pictures mirrored; by default random, but none of mnist's digits."""
    conditional: bool = False
    """Learn to draw a picture of a given class."""
    latent_dim: AtLeast[int, 1] = 100
    """Random numbers that a picture is made of."""
    filters: AtLeast[int, 1] = 64
    """Channels of the largest map of both networks; each smaller map has twice as many, up to eight times."""
    loss: Literal["minimax", "non-saturating", "hinge"] = "non-saturating"
    """The game that the networks play."""
    normalization: Literal["batch", "spectral"] = "batch"
    """Normalization of the discriminator; the generator has batch normalization."""
    minibatch_deviation: bool = False
    """Show the discriminator how much the pictures of a batch differ, against a generator that draws all alike."""
    label_smoothing: Between[float, 0, 0.5] = 0.0
    """What the target of real pictures lacks to 1; not with --loss hinge."""
    discriminator_steps: AtLeast[int, 1] = 1
    """Steps of the discriminator for each of the generator; they share the batch."""
    ema_momentum: Between[float, 0, 0.99999] = 0.999
    """Momentum of the exponential moving average of the generator, which draws all but the pictures of training."""
    generator_learning_rate: AtLeast[float, 1e-12] = 2e-4
    """Learning rate of the generator's Adam."""
    discriminator_learning_rate: AtLeast[float, 1e-12] = 2e-4
    """Learning rate of the discriminator's Adam."""
    beta_1: Between[float, 0, 0.99999] = 0.5
    """Decay of the first moment in both."""
    samples_every: AtLeast[int, 1] = 1
    """Epochs between two grids of pictures in the run's figures/samples, which become figures/training.gif."""

    @staticmethod
    def recipe(dataset: str, data: Path | None) -> dict[str, Any]:
        """What the data decide."""
        digits = data is None and dataset == "mnist"
        return {"image_size": 64 if data else 32, "flip": "none" if digits else "random"}

    def __post_init__(self) -> None:
        """Checks every value."""
        super().__post_init__()
        at_least(self.discriminator_steps, batch_size=self.batch_size)
        if self.image_size & (self.image_size - 1):
            larger = 1 << self.image_size.bit_length()
            raise UserError(f"--image-size is {self.image_size}; expected a power of two: {larger // 2} or {larger}")
        if self.data is None and self.image_size != 32:
            raise UserError(f"--image-size is {self.image_size}; --dataset {self.dataset} has 32: leave it out")
        if self.label_smoothing and self.loss == "hinge":
            raise UserError("--loss hinge has no targets to smooth; give --label-smoothing 0, or another loss")


OBJECTIVE = Objective(metric="val_frechet", direction="min")

# --- Data ------------------------------------------------------------------------------------------------------------


def load_data(config: Config) -> Splits:
    """Reads --dataset, or the pictures of --data: uint8[examples, size, size, channels] and labels int32[examples]."""
    held_out, own = config.held_out, config.data
    if own is None:
        found = image_data.from_tfds(config.dataset, config.data_dir, held_out=held_out, size=config.image_size)
    else:
        options: dict[str, Any] = {"classes": "optional", "held_out": held_out, "least_test": 4}
        if config.conditional:
            options |= {"classes": "required", "why": "--conditional needs classes."}
        found = image_data.from_folder(own, image_data.squares(config.image_size, strict=config.strict), **options)
    if len(found.validation) == 1:
        raise UserError("one validation picture is no measure; give more pictures, or --validation-ratio 0")
    return Splits.of(found, image_data.facts(found, "a folder" if own else config.dataset))


# --- Model -----------------------------------------------------------------------------------------------------------


def build_model(config: Config, data: Splits) -> GAN:
    """Latents float32[batch, latent_dim], and labels int32[batch] if conditional -> pictures -1..1, compiled."""
    size, channels = data.info["image_size"], data.info["channels"]
    with precision.precision(config.precision):
        latent = keras.Input((config.latent_dim,), name="latent")
        image = keras.Input((size, size, channels), name="image")
        classes = len(data.info["class_names"]) if config.conditional else 0
        labels = [keras.Input((), dtype="int32", name="label") if classes else None for _ in range(2)]
        drawn = dcgan.dcgan_generator(
            latent, size, config.filters, channels=channels, label=labels[0], num_classes=classes, name="generator"
        )
        logits = dcgan.dcgan_discriminator(
            image,
            config.filters,
            normalization=config.normalization,
            minibatch_deviation=config.minibatch_deviation,
            label=labels[1],
            num_classes=classes,
            name="discriminator",
        )
    inputs = [[latent, labels[0]], [image, labels[1]]] if classes else [latent, image]
    model = GAN(
        keras.Model(inputs[0], drawn, name="generator"),
        keras.Model(inputs[1], logits, name="discriminator"),
        loss=config.loss,
        label_smoothing=config.label_smoothing,
        discriminator_steps=config.discriminator_steps,
        ema_momentum=config.ema_momentum,
        seed=config.seed,
        name="dcgan",
    )
    rates = config.generator_learning_rate, config.discriminator_learning_rate
    model.compile(*(fused_adam.FusedAdam(rate, beta_1=config.beta_1) for rate in rates))
    return model


@keras.saving.register_keras_serializable(package="apps")
class GAN(gan.AdversarialNetworks):
    """The game: k steps of the discriminator, then one of the generator.

    A batch is cut into k = `discriminator_steps` parts: the discriminator takes a step on each, so that it sees every
    picture once. A generated picture is given the label of a real one. Real and generated pictures go through the
    discriminator separately, since the statistics of batch normalization, and the minibatch standard deviation, are to
    be those of one kind (as in Radford's code). As there, the pictures of the last discriminator step are those of the
    generator's, made once.

    Source: Goodfellow et al. 2014, arXiv:1406.2661, algorithm 1.
    """

    def train_step(self, data: Any) -> dict[str, Any]:
        """Steps of the discriminator, and one of the generator."""
        pictures, label = self.unpack(data)
        k = self.discriminator_steps
        *others, (real, real_label) = [(pictures[i::k], None if label is None else label[i::k]) for i in range(k)]
        for other in others:
            self._train_discriminator(*other, self.generate(self.generator, *other, training=True))
        variables = self.generator.trainable_variables
        with tf.GradientTape() as tape:
            generated = self.generate(self.generator, real, real_label, training=True)
            with tape.stop_recording():
                self._train_discriminator(real, real_label, generated)
            loss = self.generator_loss(self.judge(generated, real_label, training=True))
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        self.update_average()
        norm = tf.linalg.global_norm(devices.summed(gradients))
        self.record(generator_gradient_norm=norm, diversity=gan.diversity(generated, real))
        return self.results(training=True)

    def _train_discriminator(self, real: Any, label: Any, generated: Any) -> None:
        variables = self.discriminator.trainable_variables
        with tf.GradientTape() as tape:
            loss = self.discriminator_loss(*(self.judge(kind, label, training=True) for kind in (real, generated)))
        gradients = tape.gradient(loss, variables)
        self.discriminator_optimizer.apply_gradients(zip(gradients, variables, strict=True))
        self.record(discriminator_gradient_norm=tf.linalg.global_norm(devices.summed(gradients)))


# --- Training --------------------------------------------------------------------------------------------------------


def train(config: Config, model: keras.Model, data: Splits, callbacks: list[Any]) -> keras.callbacks.History:
    """Plays the game, measures each epoch's averaged generator and draws by it."""
    drawn = generator.Generator(export.in_memory(endpoints(model, data)), data.info["class_names"])
    figures = callbacks[-1].folder / run.FIGURES
    others = [gan.CollapseWarning(), gan.ProgressGrids(drawn.sheet, figures, every=config.samples_every)]
    validation = None
    if data.validation is not None:
        arrays = data.validation.arrays(labelled=config.conditional)
        validation = pipeline.evaluation_batches(arrays, config.batch_size, devices=config.devices).map(gan.scaled)
        some = data.validation.some(config.validation_pictures)
        noise, space = drawn.noise(len(some), seed=0), config.space(data)
        others.append(feature_space.FrechetDistance(space, some.images, lambda: drawn.draw(noise, some.labels)))

    def transform(images: tf.Tensor, *labels: tf.Tensor, seed: tf.Tensor, **_: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return gan.scaled(augmentation.random_flip(images, seed) if config.flip == "random" else images, *labels)

    arrays = data.train.arrays(labelled=config.conditional)
    return _training.fit_arrays(config, model, arrays, callbacks, transform, validation=validation, others=others)


# --- Evaluation ------------------------------------------------------------------------------------------------------


def evaluate(
    config: Config, signatures: Mapping[str, Any], data: Splits, figures: Path | None = None
) -> dict[str, Any]:
    """Compares the test pictures, 10,000 at most, with as many generated ones: see `feature_space.compare`."""
    test = data.test()
    if len(test) < 4:
        raise UserError(f"there are {len(test)} test pictures; expected 4 or more: give more in --data")
    drawn = generator.Generator(signatures, data.info["class_names"])
    space, test = config.space(data), test.some(10_000)
    known = space.features(data.train.images, "Features")
    generated = drawn.draw(drawn.noise(len(test), seed=1), test.labels, "Drawing")
    asked = test.labels if drawn.conditional else None
    metrics = feature_space.compare(space, generated, test, known, asked=asked, training_labels=data.train.labels)
    if figures is not None:
        drawn.figures(figures, space, known, data.train.images)
    return metrics


def verdict(metrics: Mapping[str, Any]) -> str | None:
    """Why the model is of no use, if it is not."""
    if metrics["recall"] < 0.005:
        return "it has collapsed, or learned nothing: what it draws covers no test picture (recall 0)"
    if metrics.get("modes_hit") == 1 and metrics["class_kl_nats"] > 0.5:
        return "it has collapsed: all that it draws is of one class"
    return None


# --- Export ----------------------------------------------------------------------------------------------------------

CARD = Card.read("dcgan")


def endpoints(model: keras.Model, data: Splits) -> Mapping[str, export.Endpoint]:
    """Seeds in, encoded pictures out; or latents in, pixels out; and the names of the classes."""
    assert isinstance(model, GAN)
    names = data.info["class_names"] if model.conditional else []

    def from_latent(latent: tf.Tensor, class_index: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        given = export.finite(latent, "latent")
        if class_index is not None:
            given = [given, export.within(class_index, len(names), "class_index")]
        return {"image": 127.5 * (model(given, training=False) + 1)}

    def generate(
        count: tf.Tensor, seed: tf.Tensor, truncation: tf.Tensor, class_index: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        given = {"latent": latents.draw(count, seed, model.latent_dim, truncation)}
        if names:
            given["class_index"] = latents.classes(class_index, count, seed, len(names))
        files = rows.by_blocks(lambda *some: export.with_png(from_latent(*some)["image"]), *given.values())
        return {"image_bytes": files, **given}

    meaning = (
        f"`count` PNG pictures of each seed ({latents.MAX_COUNT:,} in all at most) and their latents, with no number "
        "beyond `truncation` standard deviations (0: any)" + ("; class_index -1 draws classes, too" if names else "")
    )
    pixels = "pixels 0..255, not rounded, of latents, which in training were standard normal numbers"
    any_class, first = ({"class_index": [index]} if names else {} for index in (-1, 0))
    found = {
        "generate": export.by_example(generate, meaning, count=[1], seed=[0], truncation=[0.0], **any_class),
        "from_latent": export.by_rows(from_latent, pixels, latent=[[0.0] * model.latent_dim], **first),
    }
    return found | ({"class_name": export.class_name(names, counted=True)} if names else {})


# --- Verbs -----------------------------------------------------------------------------------------------------------


def generate(
    model: Path,
    *,
    output: Path,
    count: int = 64,
    classes: tuple[str, ...] = (),
    seed: int = 0,
    truncation: float = 0.0,
    files: bool = False,
) -> None:
    """Draw pictures, with an exported model.

    Args:
        model: exported model, such as saved_models/dcgan.
        output: PNG file for a grid of the pictures; with --files a folder for a PNG each; nothing is overwritten.
        count: pictures, of each class if classes are given; up to 10,000.
        classes: names or numbers of classes, or all; else any, if the model knows classes.
        seed: the same seed gives the same pictures.
        truncation: draw numbers of a latent again that are beyond so many standard deviations, which gives more usual
            pictures that differ less; 0 draws from all.
        files: write each picture by itself.
    """
    between(1, latents.MAX_COUNT, count=count)
    at_least(0, truncation=truncation)
    drawn = _pictures.generator_of(model, output, seed=seed, files=files)
    chosen = drawn.classes(classes) or [-1]
    if not files and count * len(chosen) > 1_000:
        raise UserError(f"{count * len(chosen)} pictures are too many for a grid; expected 1,000 at most: give --files")
    pictures, names = drawn.files(count, seed, truncation, chosen)
    _pictures.save(pictures, names, output, files=files, columns=count if len(chosen) > 1 else None)
    print(f"{len(pictures)} pictures in {output}")


def interpolate(
    model: Path, *, output: Path, count: int = 8, steps: int = 8, classes: tuple[str, ...] = (), seed: int = 0
) -> None:
    """Draw rows of pictures, each from one picture of `generate` step by step to the next one, with an exported model.

    Args:
        model: exported model, such as saved_models/dcgan.
        output: PNG file for the grid, a new one.
        count: rows.
        steps: pictures of a row.
        classes: names or numbers of classes, or all, one for each row in turn; else all, if the model knows classes.
        seed: the same seed gives the same pictures, those of `generate`.
    """
    between(1, 50, count=count)
    between(2, 50, steps=steps)
    drawn = _pictures.generator_of(model, output, seed=seed)
    chosen = drawn.classes(classes)
    ends = drawn.generate(count + 1, seed)["latent"]
    plots.image_grid(drawn.ways(ends[:-1], ends[1:], steps, chosen), output, columns=steps)
    print(f"{count} rows -> {output}")


VERBS: tuple[Callable[..., None], ...] = (generate, interpolate)


def tiny(config: Config | None = None) -> tuple[Config, Splits]:
    """Drawn shapes in any place, size and angle."""
    images, labels = synthetic.shapes(3000, size=32, num_classes=4, seed=0)
    # Bright on dark: in half a minute it learns either outlines or colours.
    light = np.abs(images[..., :1].astype(int) - images[:, :1, :1, :1])
    images = np.minimum(light * 3 // 2, 255).astype(np.uint8)
    names, description = list(synthetic.SHAPE_NAMES[:4]), "drawn shapes, test split, 500 pictures"
    found = image_data.cut(images, labels, (2000, 2500), names, description)
    config = config or Config(
        conditional=True, latent_dim=32, filters=16, ema_momentum=0.95,
        generator_learning_rate=2e-3, discriminator_learning_rate=2e-3, epochs=11, batch_size=32, samples_every=2,
        feature_epochs=3, cache=None,
    )  # fmt: skip
    return config, Splits.of(found, {"tiny": True, **image_data.facts(found, "drawn shapes")})
