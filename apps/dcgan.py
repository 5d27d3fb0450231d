"""DCGAN: draws pictures like those it was trained on, of a class if asked.

**Source**: Goodfellow et al. 2014, arXiv:1406.2661; the networks: Radford et al. 2015, arXiv:1511.06434 (DCGAN); hinge
loss and spectral normalization: Miyato et al. 2018, arXiv:1802.05957; classes: Miyato and Koyama 2018,
arXiv:1802.05637; the averaged generator: Yazıcı et al. 2018, arXiv:1806.04498.

**Expect**: `train` then `evaluate` reach the figures in README.md's results table; `train --tiny` takes half a minute,
halves the distance of an untrained generator to drawn shapes, and draws every other one like the shape it is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from apps import _training
from apps._contract import Card, Objective, Splits
from apps._settings import RECIPE, AtLeast, Between, PictureData, Settings, at_least, between
from kerasdl import command_line, export
from kerasdl.blocks import dcgan
from kerasdl.data import augmentation, image_data, pipeline, synthetic
from kerasdl.decoding import latents
from kerasdl.errors import UserError
from kerasdl.fast import fused_adam
from kerasdl.figures import plots
from kerasdl.files import check_output, separate, write_bytes
from kerasdl.models import feature_space, gan, generator
from kerasdl.training import precision, run


@dataclass(frozen=True, kw_only=True)
class Config(PictureData, Settings, epochs=24, validation_ratio=0.04):
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
    validation_pictures: AtLeast[int, 2] = 2000
    """Validation pictures with which as many generated ones are compared after each epoch, at most."""
    feature_epochs: AtLeast[int, 1] = 8
    """Training of the small network whose features distances are measured in."""
    feature_network: str | None = None
    """In its place a network of keras.applications; with InceptionV3 the distance is FID."""
    feature_weights: str | None = None
    """Weights of --feature-network without its top: `imagenet` (Keras downloads them) or a .weights.h5 file."""
    cache: Path | None = Path("runs/features")
    """Folder in which the small network is kept, once trained; None keeps it nowhere."""

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
        if (self.feature_network is None) != (self.feature_weights is None):
            raise UserError("--feature-network and --feature-weights belong together; give both, or none")


OBJECTIVE = Objective(metric="val_frechet", direction="min")

# --- Data ------------------------------------------------------------------------------------------------------------


def load_data(config: Config) -> Splits:
    """Reads --dataset, or the pictures of --data: uint8[examples, size, size, channels] and labels int32[examples]."""
    ratio = config.validation_ratio
    if config.data is None:
        found = image_data.from_tfds(config.dataset, config.data_dir, validation_ratio=ratio)
    else:
        classes: Literal["required", "optional"] = "required" if config.conditional else "optional"
        squares = image_data.squares(config.image_size, strict=config.strict)
        try:
            found = image_data.from_folder(config.data, squares, validation_ratio=ratio, classes=classes, least_test=4)
        except image_data.NoClasses as error:
            raise UserError(f"--conditional needs classes. {error}") from None
    names, test = found.class_names, found.test  # `found` would keep the training pictures a second time

    def framed(examples: image_data.Images) -> image_data.Images:
        border = 0 if config.data else (32 - examples.images.shape[1]) // 2
        images = examples.images
        if border:
            images = np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
        return image_data.Images(images, examples.labels if names else None)

    return splits_of(
        framed(found.train),
        framed(found.validation),
        lambda: framed(test()),
        found.description,
        source="a folder" if config.data else config.dataset,
        class_names=names,
    )


def splits_of(
    train: image_data.Images,
    validation: image_data.Images,
    test: Callable[[], image_data.Images],
    description: str,
    *,
    source: str,
    class_names: list[str] | None,
    **info: Any,
) -> Splits:
    """Pictures, with labels if there are classes, as the other parts of this file take them."""
    if len(validation) == 1:
        raise UserError("one validation picture is no measure; give more pictures, or --validation-ratio 0")
    return Splits(
        train=train,
        validation=validation if len(validation) else None,
        test=test,
        info={
            **info,
            "image_size": train.images.shape[1],
            "channels": train.images.shape[-1],
            "class_names": class_names,
            # A part of the name of the space in which distances are measured.
            "training_pictures": f"{len(train):,} pictures of {source}, CRC-32 {train.checksum()}",
        },
        description=description,
    )


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
        norm = tf.linalg.global_norm(gradients)
        self.record(generator_loss=loss, generator_gradient_norm=norm, diversity=gan.diversity(generated, real))
        return self.results(training=True)

    def _train_discriminator(self, real: Any, label: Any, generated: Any) -> None:
        variables = self.discriminator.trainable_variables
        with tf.GradientTape() as tape:
            loss = self.discriminator_loss(*(self.judge(kind, label, training=True) for kind in (real, generated)))
        gradients = tape.gradient(loss, variables)
        self.discriminator_optimizer.apply_gradients(zip(gradients, variables, strict=True))
        self.record(discriminator_gradient_norm=tf.linalg.global_norm(gradients))


# --- Training --------------------------------------------------------------------------------------------------------


def train(config: Config, model: keras.Model, data: Splits, callbacks: list[Any]) -> keras.callbacks.History:
    """Plays the game, measures each epoch's averaged generator and draws by it."""
    drawn = generator.Generator(export.in_memory(endpoints(model, data)), data.info["class_names"])
    figures = callbacks[-1].folder / run.FIGURES
    others = [gan.CollapseWarning(), gan.ProgressGrids(drawn.sheet, figures, every=config.samples_every)]
    validation = None
    if data.validation is not None:
        validation = pipeline.evaluation_batches(_arrays(config, data.validation), config.batch_size).map(_scaled)
        some = data.validation.some(config.validation_pictures)
        draw = functools.partial(drawn.draw, drawn.noise(len(some), seed=0), some.labels)
        others.append(feature_space.FrechetDistance(measure(config, data), some.images, draw))

    def transform(images: tf.Tensor, *labels: tf.Tensor, seed: tf.Tensor, **_: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return _scaled(augmentation.random_flip(images, seed) if config.flip == "random" else images, *labels)

    arrays = _arrays(config, data.train)
    return _training.fit_arrays(config, model, arrays, callbacks, transform, validation=validation, others=others)


def _arrays(config: Config, examples: image_data.Images) -> list[Any]:
    return [examples.images, examples.labels] if config.conditional else [examples.images]


def _scaled(images: tf.Tensor, *labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
    return tf.cast(images, tf.float32) / 127.5 - 1, *labels


def measure(config: Config, data: Splits) -> feature_space.FeatureSpace:
    """The space in which distances are measured."""
    if config.feature_network is not None:
        return feature_space.from_applications(config.feature_network, str(config.feature_weights))
    return feature_space.trained(
        data.train.images,
        data.train.labels,
        data=data.info["training_pictures"],
        epochs=config.feature_epochs,
        folder=config.cache,
    )


# --- Evaluation ------------------------------------------------------------------------------------------------------


def evaluate(
    config: Config, signatures: Mapping[str, Any], data: Splits, figures: Path | None = None
) -> dict[str, Any]:
    """Compares the test pictures, 10,000 at most, with as many generated ones: see `feature_space.compare`."""
    test = data.test()
    if len(test) < 4:
        raise UserError(f"there are {len(test)} test pictures; expected 4 or more: give more in --data")
    drawn = generator.Generator(signatures, data.info["class_names"])
    space, test = measure(config, data), test.some(10_000)
    known = space.features(data.train.images, "Features")
    metrics = feature_space.compare(
        space,
        drawn.draw(drawn.noise(len(test), seed=1), test.labels, "Drawing"),
        test.images,
        known,
        asked=test.labels if drawn.conditional else None,
        test_labels=test.labels,
        training_labels=data.train.labels,
    )
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


CARD = Card(
    summary="Draws pictures like those of its training; trained by `python -m apps dcgan train`.",
    limits=(
        "What it draws never was: nothing follows from a picture about the world.",
        "Distances hold in the feature space that stands beside them, and are no FID unless they are called so.",
        "It draws what is frequent and leaves out what is rare, see recall.",
        "CIFAR-10 holds small web photographs of 2009; of their objects it gets colours and outlines, seldom parts.",
    ),
    sources=(
        "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images (CIFAR-10).",
        "Radford et al. 2015, Unsupervised Representation Learning with DCGANs, arXiv:1511.06434.",
        "Miyato et al. 2018, Spectral Normalization for Generative Adversarial Networks, arXiv:1802.05957.",
    ),
)


def endpoints(model: keras.Model, data: Splits) -> Mapping[str, export.Endpoint]:
    """Seeds in, encoded pictures out; or latents in, pixels out; and the names of the classes."""
    assert isinstance(model, GAN)
    names = data.info["class_names"] if model.conditional else []
    size = model.latent_dim

    def from_latent(latent: tf.Tensor, class_index: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        given = export.finite(latent, "latent")
        if class_index is not None:
            given = [given, export.within(class_index, len(names), "class_index")]
        return {"image": 127.5 * (model(given, training=False) + 1)}

    def generate(
        count: tf.Tensor, seed: tf.Tensor, truncation: tf.Tensor, class_index: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        given = {"latent": latents.draw(count, seed, size, truncation)}
        if names:
            given["class_index"] = latents.classes(class_index, count, seed, len(names))
        return {"image_bytes": export.with_png(from_latent(**given)["image"]), **given}

    whole, real = (tf.TensorSpec([None], dtype) for dtype in (tf.int32, tf.float32))
    classes = {"class_index": whole} if names else {}
    found = {
        "generate": export.Endpoint(
            generate,
            {"count": whole, "seed": whole, "truncation": real, **classes},
            {"count": np.array([1]), "seed": np.array([0]), "truncation": np.zeros(1, np.float32)}
            | ({"class_index": np.array([-1])} if names else {}),
            f"`count` PNG pictures of each seed (1 to {latents.MAX_COUNT:,}) and their latents, which have no number "
            "beyond `truncation` standard deviations (0: any)"
            + ("; class_index -1 draws classes, too" if names else ""),
        ),
        "from_latent": export.Endpoint(
            from_latent,
            {"latent": tf.TensorSpec([None, size], tf.float32), **classes},
            {"latent": np.zeros((1, size), np.float32)} | ({"class_index": np.array([0])} if names else {}),
            "pixels 0..255, not rounded, of latents, which in training were standard normal numbers",
        ),
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
    between(-(2**31), 2**31 - 1, seed=seed)
    at_least(0, truncation=truncation)
    check_output(output, folder=files)
    signatures = export.signatures(model, "generate", "from_latent")
    names = export.class_names(signatures) if "class_name" in signatures else []
    chosen = _chosen(classes, names) or [-1]
    if not files and count * len(chosen) > 1_000:
        raise UserError(f"{count * len(chosen)} pictures are too many for a grid; expected 1,000 at most: give --files")
    drawn = generator.Generator(signatures)
    answers = [drawn.generate(count, seed, truncation, index) for index in chosen]
    if files:
        contents = [content for answer in answers for content in answer["image_bytes"]]
        kinds = [f"{names[index]}_" for answer in answers for index in answer["class_index"]] if names else None
        stems = [f"{kinds[i] if kinds else ''}{seed}-{i % count:05d}" for i in range(len(contents))]
        targets = separate([output / f"{stem}.png" for stem in stems])
        for target, content in zip(targets, contents, strict=True):
            write_bytes(target, content)
    else:
        images = np.stack([tf.io.decode_png(one).numpy() for answer in answers for one in answer["image_bytes"]])
        plots.image_grid(images, output, columns=count if len(chosen) > 1 else None)
    print(f"{count * len(chosen)} pictures in {output}")


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
    between(-(2**31), 2**31 - 1, seed=seed)
    check_output(output)
    signatures = export.signatures(model, "generate", "from_latent")
    names = export.class_names(signatures) if "class_name" in signatures else []
    chosen = _chosen(classes, names) or list(range(len(names)))
    drawn = generator.Generator(signatures)
    ends = drawn.generate(count + 1, seed)["latent"]
    rows = latents.interpolate(ends[:-1], ends[1:], steps).numpy().reshape(count * steps, -1)
    labels = np.repeat(np.resize(np.array(chosen, np.int32), count), steps) if names else None
    plots.image_grid(drawn.draw(rows, labels), output, columns=steps)
    print(f"{count} rows -> {output}")


def _chosen(classes: tuple[str, ...], names: list[str]) -> list[int]:
    """The numbers of the classes that a person named."""
    if classes and not names:
        raise UserError("this model knows no classes; leave --classes out, or train one with --conditional")
    return command_line.positions(classes, names, "class", "classes")


VERBS: tuple[Callable[..., None], ...] = (generate, interpolate)


def tiny(config: Config | None = None) -> tuple[Config, Splits]:
    """Drawn shapes in any place, size and angle."""
    drawn, labels = synthetic.shapes(3000, size=32, num_classes=4, seed=0)
    # Bright on dark: in half a minute it learns either outlines or colours.
    light = np.abs(drawn[..., :1].astype(int) - drawn[:, :1, :1, :1])
    images = np.minimum(light * 3 // 2, 255).astype(np.uint8)
    train, validation, test = (
        image_data.Images(images[part], labels[part]) for part in np.split(np.arange(3000), [2000, 2500])
    )
    config = config or Config(
        conditional=True, latent_dim=32, filters=16, ema_momentum=0.95,
        generator_learning_rate=2e-3, discriminator_learning_rate=2e-3, epochs=11, batch_size=32, samples_every=2,
        feature_epochs=3, cache=None,
    )  # fmt: skip
    return config, splits_of(
        train,
        validation,
        lambda: test,
        "drawn shapes, test split, 500 pictures",
        source="drawn shapes",
        class_names=list(synthetic.SHAPE_NAMES[:4]),
        tiny=True,
    )
