"""Image classifier: CIFAR-10 in minutes on two CPU cores, or your own folder of pictures.

**Source**: the fast network and its recipe after Jordan 2024, arXiv:2404.00498 (airbench94); ResNets: He et al. 2015,
arXiv:1512.03385; LeNet-5: LeCun 1998; AlexNet: Krizhevsky 2012; VGG: Simonyan 2014, arXiv:1409.1556.

**Expect**: `train` then `evaluate` reach the accuracy in README.md's results table; `train --tiny` takes half a minute
and ends above 90 % on drawn shapes (chance 12.5 %).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from apps import _pictures, _training
from apps._contract import Card, Objective, Splits
from apps._settings import RECIPE, AtLeast, Augmentation, Between, PictureData, Training, at_least
from kerasdl import export
from kerasdl.blocks import convolution, image_classifier
from kerasdl.data import augmentation, corruption, image_data, pipeline, synthetic
from kerasdl.errors import UserError
from kerasdl.figures import plots, saliency
from kerasdl.files import as_csv, as_json
from kerasdl.metrics import classification
from kerasdl.models import pretrained
from kerasdl.training import optimizers, precision

Architecture = Literal[
    "fast", "lenet", "alexnet", "vgg16", "vgg19", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110",
    "plain20", "plain32", "plain44", "plain56", "se-resnet20", "se-resnet32", "se-resnet56", "preresnet20",
    "preresnet56", "preresnet110", "resnet18", "resnet34", "resnet50", "backbone",
]  # fmt: skip

# What a paper (or a search on the validation split) found for an architecture; flags left out take these values.
USUAL = {"epochs": 30, "batch_size": 128, "label_smoothing": 0.0, "flip": "random", "padding": 4, "progressive": "none"}
RECIPES: dict[str, dict[str, Any]] = {
    "fast": {
        "epochs": 13, "batch_size": 2000, "optimizer": "muon", "learning_rate": 0.24, "weight_decay": 0.11,
        "schedule": "linear", "label_smoothing": 0.2, "flip": "alternating", "padding": 2, "progressive": "resize",
    },
    "resnet": {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 1e-4, "schedule": "step"},
    "classic": {"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 5e-4, "schedule": "one-cycle"},
    "backbone": {
        "epochs": 8, "batch_size": 64, "optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4,
        "schedule": "cosine", "label_smoothing": 0.1, "padding": 0, "image_size": 160,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config(Augmentation, PictureData, Training, epochs=RECIPE, batch_size=RECIPE, learning_rate=RECIPE,
             weight_decay=RECIPE, schedule=RECIPE, flip=RECIPE, padding=RECIPE, progressive=RECIPE):  # fmt: skip
    """Image classifier; many defaults are those of the architecture's recipe."""

    architecture: Architecture = "fast"
    """Network; alexnet and vgg are the papers' from 128 pixels on, below in a form for small pictures; resnet18, 34 and
    50 are for large ones; `backbone` is a keras.applications network, see --backbone and --weights."""
    image_size: AtLeast[int, 8] = RECIPE
    """Side of the square pictures that the network sees, in pixels; 32, or 64 with --data, or 160 for a backbone."""
    optimizer: Literal["muon", "sgd", "adamw"] = RECIPE
    """muon: orthogonalised momentum for kernels; sgd: Nesterov momentum 0.9; adamw."""
    ema_momentum: Between[float | None, 0, 0.99999] = None
    """Average the weights over steps with this momentum, such as 0.999, and evaluate the average."""
    label_smoothing: Between[float, 0, 0.9] = RECIPE
    """Probability mass spread over all classes in the targets."""
    dropout: Between[float, 0, 0.9] = 0.0
    """Share of features dropped before the last layer (lenet, alexnet, vgg, backbone)."""
    backbone: str = "MobileNetV2"
    """Name in keras.applications, for --architecture backbone."""
    weights: str | None = None
    """Weights of the backbone without its top: `imagenet` (Keras downloads them) or a .weights.h5 file."""
    head_epochs: AtLeast[int, 1] = 3
    """Backbone: epochs in which only the new head learns, before everything is tuned at a tenth of the rate."""

    @staticmethod
    def recipe(architecture: str, data: Path | None) -> dict[str, Any]:
        """What a paper, or a search on the validation split, found for an architecture."""
        kind = "resnet" if "resnet" in architecture or architecture.startswith("plain") else architecture
        return {**USUAL, "image_size": 64 if data else 32, **RECIPES.get(kind, RECIPES["classic"])}

    def __post_init__(self) -> None:
        """Checks every value."""
        super().__post_init__()
        # In a smaller picture the last maps would have no pixel.
        smallest = {"fast": 9 if self.progressive == "none" else 12, "lenet": 16, "vgg16": 32, "vgg19": 32}
        at_least(smallest.get(self.architecture, 8), image_size=self.image_size)
        if self.progressive != "none" and self.architecture not in ("fast", "backbone"):
            raise UserError(f"--progressive is for networks of any size, fast and backbone; {self.architecture} is not")
        for begin, end, tuned in _phases(self):
            self.check_warmup(end - begin, "epochs" if tuned else "head_epochs")


OBJECTIVE = Objective(metric="val_accuracy", direction="max")

# --- Data ------------------------------------------------------------------------------------------------------------


def load_data(config: Config) -> Splits:
    """Reads CIFAR-10, or the pictures of --data: uint8[examples, size, size, 3] and labels int32[examples]."""
    if config.data is None:
        found = image_data.from_tfds("cifar10", config.data_dir, held_out=config.held_out)
    else:
        load = image_data.squares(config.image_size, strict=config.strict)
        found = image_data.from_folder(config.data, load, held_out=config.held_out, classes="required")
    info = {"image_size": found.train.images.shape[1], "class_names": found.class_names, **found.train.normalization()}
    return Splits.of(found, info, None if config.data else "CIFAR-10 (TFDS), test split, 10,000 pictures")


# --- Model -----------------------------------------------------------------------------------------------------------


def build_model(config: Config, data: Splits) -> keras.Model:
    """Pixels 0..255 float32[batch, height, width, 3] -> logits float32[batch, classes], compiled."""
    classes = len(data.info["class_names"])
    if config.architecture != "backbone" and config.image_size != data.info["image_size"]:
        size = data.info["image_size"]
        raise UserError(
            f"--image-size is {config.image_size}; pictures that are not of --data have {size}: leave it out"
        )
    with precision.precision(config.precision):
        if config.architecture == "backbone":
            backbone = config.backbone, config.weights, config.image_size
            model = pretrained.classifier(*backbone, classes, dropout=config.dropout, name="backbone")
        else:
            # The fast network pools globally at its end and takes any size, which progressive resizing needs.
            side = None if config.architecture == "fast" else config.image_size
            image = keras.Input((side, side, 3), name="image")
            x = keras.layers.Normalization(
                mean=data.info["mean"], variance=[s**2 for s in data.info["deviation"]], name="normalize"
            )(image)
            large = config.image_size >= 128
            network = image_classifier.by_name(config.architecture, large=large, dropout=config.dropout)
            model = keras.Model(image, network(x, classes), name=config.architecture)
    if config.architecture == "fast" and data.train is not None:
        sample = model.get_layer("normalize")(data.train.images[:5000].astype(np.float32))
        kernel = convolution.whitening_kernel(keras.ops.convert_to_numpy(sample))
        model.get_layer("fast_whiten").kernel.assign(kernel)
    _compile(config, model, len(data.train))
    return model


def _compile(config: Config, model: keras.Model, count: int, *, epochs: int | None = None, scale: float = 1.0) -> None:
    kind: optimizers.OptimizerKind = config.optimizer
    options: dict[str, Any] = {"use_ema": True, "ema_momentum": config.ema_momentum} if config.ema_momentum else {}
    if kind == "muon" and config.architecture == "fast":  # which bears kernels of a fixed norm, and such rates
        kind, options["batch_size"] = "normalized_muon", min(config.batch_size, count)
    steps = pipeline.num_steps(count, config.batch_size)
    with model.distribute_strategy.scope():
        model.compile(
            optimizer=optimizers.make(kind, config, steps, epochs=epochs, scale=scale, **options),
            loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=config.label_smoothing),
            metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
            jit_compile=False,  # XLA's convolutions take 1.4 to 2 times as long on a CPU
        )


# --- Training --------------------------------------------------------------------------------------------------------


def train(config: Config, model: keras.Model, data: Splits, callbacks: list[Any]) -> keras.callbacks.History:
    """Fits the model; a backbone in two phases, its head first."""
    saver = callbacks[-1]
    classes = len(data.info["class_names"])
    validation = None
    if data.validation is not None:
        targets = np.eye(classes, dtype=np.float32)[data.validation.labels]
        validation = pipeline.evaluation_batches((data.validation.images, targets), 500, devices=config.devices)
    history = keras.callbacks.History()
    for begin, end, tuned in _phases(config):
        if saver.initial_epoch >= end or saver.stopped:
            continue
        if config.architecture == "backbone":
            base = model.layers[-4]  # before pool, dropout and head
            pretrained.tune(base, tuned, pretrained=config.weights is not None)
            _compile(config, model, len(data.train), epochs=end - begin, scale=0.1 if tuned else 1.0)
        saver.optimizer_since = begin
        transform = augmentation.chain(config, num_classes=classes, size=data.info["image_size"])
        arrays = data.train.images, data.train.labels
        options = {"validation": validation, "epochs": end}
        history = _training.fit_arrays(config, model, arrays, callbacks, transform, **options)
    return history


def _phases(config: Config) -> list[tuple[int, int, bool]]:
    """(first epoch, end, is the backbone tuned)."""
    if config.architecture != "backbone" or config.head_epochs >= config.epochs:
        return [(0, config.epochs, False)]
    return [(0, config.head_epochs, False), (config.head_epochs, config.epochs, True)]


# --- Evaluation ------------------------------------------------------------------------------------------------------


CORRUPTED_PICTURES = 2000
"""Test pictures, evenly spaced, on which `evaluate` measures what noise, blur, JPEG and brightness cost."""


def probabilities(signatures: Mapping[str, Any], images: np.ndarray) -> np.ndarray:
    """float32[examples, classes] for pictures uint8[examples, size, size, 3]."""
    parts = pipeline.slices(len(images), 500, "Classifying")
    return np.concatenate([signatures["pixels"](image=images[part])["probabilities"] for part in parts])


def predictions(signatures: Mapping[str, Any], examples: image_data.Images) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float32[examples, classes] and labels int32[examples]: what a temperature is fitted to."""
    return probabilities(signatures, examples.images), examples.labels


def evaluate(
    config: Config,
    signatures: Mapping[str, Any],
    data: Splits,
    figures: Path | None = None,
    *,
    temperature: float | None = None,
) -> dict[str, float]:
    """Accuracy and calibration on the test split, averaged over a left-right flip, and with the pictures corrupted."""
    test, names = data.test(), data.info["class_names"]
    plain, flipped = (probabilities(signatures, images) for images in (test.images, test.images[:, :, ::-1]))
    metrics = classification.classification_report(plain, test.labels)
    metrics |= classification.without_skill(plain, test.labels)
    metrics |= classification.before_calibration(plain, test.labels, temperature)
    both = np.add(*(classification.with_temperature(part, 1 / (temperature or 1)) for part in (plain, flipped)))
    metrics["flip_average_accuracy"] = float(np.mean(both.argmax(1) == test.labels))
    some = test.of(np.linspace(0, len(test) - 1, min(len(test), CORRUPTED_PICTURES)).astype(int))
    for name, corrupt in corruption.CORRUPTIONS.items():
        answers = probabilities(signatures, corrupt(some.images))
        metrics[f"accuracy_{name}"] = float(np.mean(answers.argmax(1) == some.labels))
    recall = zip(names, classification.per_class_accuracy(plain, test.labels), strict=True)
    metrics |= {f"class_accuracy_{name}": float(value) for name, value in recall if np.isfinite(value)}
    if figures is not None:
        matrix = classification.confusion_matrix(plain, test.labels)
        plots.confusion_matrix(matrix, names, figures / "confusion_matrix.png")
        plots.calibration(plain, test.labels, figures / "calibration.png")
        plots.worst_errors(test.images, test.labels, plain, names, figures / "worst_errors.png")
        if config.architecture != "backbone":  # hundreds of large pictures
            _explain(signatures, test.images[0], names, figures / "occlusion.png")
    return metrics


def verdict(metrics: Mapping[str, float]) -> str | None:
    """Why the model is of no use, if it is not."""
    return classification.verdict(metrics)


def _explain(signatures: Mapping[str, Any], image: np.ndarray, names: list[str], path: Path) -> Path:
    """Draws what the likeliest class of a picture depends on."""
    label, heat = saliency.of_likeliest(lambda images: probabilities(signatures, images), image)
    return plots.saliency(image, heat, path, title=f"what {names[label]} depends on")


def figures(model: keras.Model, data: Splits, folder: Path) -> None:
    """Draws the first layer's filters, and the activations of the second one for a picture of the validation data."""
    kernels = [layer for layer in model.layers if getattr(getattr(layer, "kernel", None), "ndim", 0) == 4]
    if kernels:
        plots.filters(keras.ops.convert_to_numpy(kernels[0].kernel), folder / "filters.png")
        image = (data.validation or data.train).images[0].astype(np.float32)
        maps = saliency.activation_maps(model, image, kernels[:2][-1].name)
        plots.activation_maps(maps, folder / "activation_maps.png")


def ensemble(models: list[keras.Model]) -> keras.Model:
    """A model that averages the probabilities of several; its outputs are their logarithms."""
    image = keras.Input((None, None, 3), name="image")
    named = [keras.Model(model.inputs[0], model.outputs[0], name=f"member{i}") for i, model in enumerate(models)]
    members = [keras.layers.Softmax(name=f"probabilities{i}")(model(image)) for i, model in enumerate(named)]
    return keras.Model(image, keras.ops.log(keras.layers.Average(name="mean")(members)), name="ensemble")


# --- Export ----------------------------------------------------------------------------------------------------------

CARD = Card.read("cifar10")


def endpoints(model: keras.Model, data: Splits, temperature: float | None = None) -> Mapping[str, export.Endpoint]:
    """Encoded pictures or pixels in, label and probabilities out; and the names of the classes."""
    names = data.info["class_names"]

    def classify(image: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = tf.cast(model(tf.cast(image, tf.float32), training=False), tf.float32)
        label = tf.gather(tf.constant(names), tf.argmax(logits, -1))
        return {"label": label, "probabilities": tf.nn.softmax(logits / (temperature or 1))}

    return {
        **export.of_pictures("classify", classify, data.train.images[:1], "the likeliest class, and all probabilities"),
        "class_name": export.class_name(names),
    }


# --- Verb ------------------------------------------------------------------------------------------------------------


def classify(
    model: Path,
    pictures: list[Path],
    *,
    top: int = 3,
    format: Literal["text", "json", "csv"] = "text",
    explain: Path | None = None,
) -> None:
    """Name what pictures show, with an exported model.

    Args:
        model: exported model, such as saved_models/cifar10.
        pictures: picture files (JPEG, PNG, GIF, BMP or WebP) and folders of them.
        top: classes to print for a picture.
        format: text for people; json: one object a line; csv: path, class, probability.
        explain: folder for one figure a picture that shows where the answer came from (occlusion); equal names get
            numbers, and nothing is overwritten.
    """
    at_least(1, top=top)
    signatures = export.signatures(model, "classify", "class_name", "pixels")
    answers = _pictures.answers(
        pictures, lambda content: signatures["classify"](image_bytes=tf.constant([content])), explain, flag="--explain"
    )
    names: list[str] = []
    if format == "csv":
        print(as_csv(["path", "class", "probability"]))
    for path, _, answer, figure in answers:
        probabilities = answer["probabilities"].numpy()[0]
        names = names or export.class_names(signatures, len(probabilities))
        best = [(names[i], float(probabilities[i])) for i in np.argsort(-probabilities)[:top]]
        if format == "json":
            print(as_json({"path": str(path), "classes": dict(best)}))
        elif format == "csv":
            print("\n".join(as_csv([path, name, f"{probability:.6f}"]) for name, probability in best))
        else:
            print(f"{path}: " + ", ".join(f"{name} {probability:.1%}" for name, probability in best))
        if explain is not None:
            (image,) = _pictures.squares([path], *signatures["pixels"].inputs["image"].shape[2:])
            drawn = _explain(signatures, image, names, figure)
            print(f"  {drawn}", file=sys.stdout if format == "text" else sys.stderr)


VERBS: tuple[Callable[..., None], ...] = (classify,)


def tiny(config: Config | None = None) -> tuple[Config, Splits]:
    """Eight drawn shapes in any colour, place and size: a small network learns them, a linear model does not."""
    images, labels = synthetic.shapes(3000, size=32, num_classes=8, seed=0)
    train, validation, test = (
        image_data.Images(images[part], labels[part]) for part in np.split(np.arange(3000), [2000, 2500])
    )
    config = config or Config(epochs=3, batch_size=200, progressive="none")
    info = {"tiny": True, "image_size": 32, "class_names": list(synthetic.SHAPE_NAMES[:8])}
    return config, Splits(
        train=train,
        validation=validation,
        test=lambda: test,
        info=info | train.normalization(),
        description="drawn shapes, test split, 500 pictures",
    )
