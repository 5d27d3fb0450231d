"""Spaces of features in which pictures are compared, each with the name that a number measured in it bears.

    space = trained(images, labels, data="cifar10", epochs=8, folder=Path("runs/features"))
    distance = frechet_distance(space.features(real), space.features(generated))
    metrics = compare(space, generated, test, space.features(images))

A number says something only beside others of the same space. A network that is trained again, or on another machine,
is another space; so a name ends with a checksum of the weights.
"""

import hashlib
import json
import math
import random
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from kerasdl.blocks import convolution, image_classifier
from kerasdl.data import augmentation, channels, image_data, pipeline
from kerasdl.errors import UserError
from kerasdl.files import atomic_path, claim
from kerasdl.metrics import generated_pictures
from kerasdl.models import pretrained
from kerasdl.training import optimizers, schedule
from kerasdl.training.precision import precision
from kerasdl.training.progress import bar

# Those of `apps/cifar10.py`, with half of the width and without flips, which digits and letters do not bear.
_SETTINGS: dict[str, Any] = {
    "widths": (32, 128, 256),
    "learning_rate": 0.24,
    "weight_decay": 0.11,
    "label_smoothing": 0.2,
    "padding": 2,
    "seed": 2009,
}
_SIDES = {"InceptionV3": 299, "InceptionResNetV2": 299, "Xception": 299}  # pixels; 224 of all others
_PIXELS = 2**21  # of the pictures that go through a network at once


@dataclass(frozen=True)
class FeatureSpace:
    """A network by whose features pictures are compared."""

    name: str
    """Which network and weights: it is to stand beside each number."""
    network: keras.Model
    """Pixels 0..255 float32[batch, height, width, channels] -> `features`, and `logits` if it knows the classes."""
    side: int
    """Side of the pictures inside the network, in pixels."""
    classifies: bool = False
    """Whether it knows the classes of the data."""
    distance: Literal["frechet", "fid"] = "frechet"
    """What a Fréchet distance in this space is called."""

    def features(self, images: np.ndarray, name: str = "") -> np.ndarray:
        """Gives the features of pictures.

        Args:
            images: uint8[n, height, width, channels], at least one; grey ones are shown to a network of colours, too.
            name: with one the progress is shown, see `pipeline.slices`.

        Returns:
            float32[n, features].
        """
        return self._output(images, "features", name)

    def classify(self, images: np.ndarray) -> np.ndarray:
        """Gives the classes that the network sees in pictures.

        Args:
            images: see `features`.

        Returns:
            int64[n].

        Raises:
            ValueError: if the network does not know the classes.
        """
        if not self.classifies:
            raise ValueError(f"{self.name} knows no classes; expected a space that was trained with labels; give them")
        return self._output(images, "logits").argmax(1)

    def _output(self, images: np.ndarray, output: str, name: str = "") -> np.ndarray:
        images = np.broadcast_to(images, (*images.shape[:3], self.network.input_shape[-1]))
        rows = max(1, min(500, _PIXELS // self.side**2))
        parts = pipeline.slices(len(images), rows, name)
        return np.concatenate([self.network.predict_on_batch(images[part])[output] for part in parts])


def from_applications(name: str, weights: str) -> FeatureSpace:
    """The space of a pre-trained network: the globally averaged output of its last convolutional layer.

    Pictures are scaled bilinearly to the size of the network's training. The Fréchet distance is called FID with
    InceptionV3 alone. Keras' weights of it are not those of 2015 by which FID was defined: values differ by a little.

    Args:
        name: of its constructor in `keras.applications`.
        weights: `imagenet`, or a .weights.h5 file of the network without top.

    Returns:
        The space, which knows no classes of the data.

    Raises:
        UserError: see `kerasdl.models.pretrained.network`.

    Source: Heusel et al. 2017, arXiv:1706.08500, section "Experiments".
    """
    side = _SIDES.get(name, 224)
    base, preprocess = pretrained.network(name, weights, side)
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.Resizing(side, side, name="resize")(image)
    x = keras.layers.GlobalAveragePooling2D(name="features")(base(preprocess(x), training=False))
    network = keras.Model(image, {"features": x}, name="feature_space")
    return FeatureSpace(
        f"{name} of keras.applications at {side} pixels, weights {_checksum(network.get_weights()):08x}",
        network,
        side,
        distance="fid" if name == "InceptionV3" else "frechet",
    )


def trained(
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    data: str,
    epochs: int,
    folder: Path | None = None,
    progress: bool = True,
) -> FeatureSpace:
    """The space of a network that is trained on the pictures themselves: the last, globally pooled features.

    It learns the classes, or without labels by which of four angles a picture is turned. Initial weights and order
    follow from a fixed seed of its own, and neither is drawn by Keras' or anybody's generator.

    Args:
        images: training pictures uint8[n, size, size, channels], of 9 pixels or more.
        labels: their classes int[n], from 0.
        data: what the pictures are, for the name.
        epochs: passes over the pictures; 8 reach about nine of ten on CIFAR-10, 2 are too few for MNIST.
        folder: where the network is kept in a file whose name follows from pictures, labels and settings, so that it
            is trained once; of several processes one trains and the others wait. A damaged file, or another's, is made
            anew, with a line on standard error. None keeps nothing.
        progress: show a bar on a terminal, elsewhere lines, see `kerasdl.training.progress.bar`.

    Returns:
        The space; it knows the classes if there are labels.

    Raises:
        UserError: if the file cannot be written.

    Source: network and training: Jordan 2024, arXiv:2404.00498; rotations: Gidaris et al. 2018, arXiv:1803.07728,
        section 3.1; a network of the data's own classes in place of Inception: own.
    """
    task = "angles" if labels is None else "classes"
    described = f"fast network, {epochs} epochs on the {task} of {data}"
    num_outputs = 4 if labels is None else int(labels.max()) + 1
    network = _network(images, num_outputs)

    def train() -> list[np.ndarray]:
        lines = f"Training the network that measures: {described}.", "Trained it"
        return _train(images, labels, num_outputs, epochs, lines, progress)

    if folder is None:
        weights = train()
    else:
        checksum = zlib.crc32(np.ascontiguousarray(images).data)
        if labels is not None:
            checksum = zlib.crc32(np.ascontiguousarray(labels, np.int32).data, checksum)
        identity = {"described": described, "shape": list(images.shape), "pictures": checksum, "settings": _SETTINGS}
        weights = _kept(folder, json.dumps(identity), [weight.shape for weight in network.weights], train)
    network.set_weights(weights)
    name = f"{described}, weights {_checksum(weights):08x}"
    space = FeatureSpace(name, network, images.shape[1], classifies=labels is not None)
    if labels is not None:
        right = float(np.mean(space.classify(images[:1000]) == labels[:1000]))
        if right < 0.5:
            print(
                f"The network that measures knows the classes of {right:.0%} of its own training pictures; expected "
                "half of them or more, for distances to mean something: train it for more epochs.",
                file=sys.stderr,
            )
    return space


def compare(
    space: FeatureSpace,
    generated: np.ndarray,
    test: image_data.Images,
    known: np.ndarray,
    *,
    asked: np.ndarray | None = None,
    training_labels: np.ndarray | None = None,
) -> dict[str, Any]:
    """Measures generated pictures beside real ones that the generator has not seen, and these beside those it has.

    Args:
        space: where distances are measured.
        generated: uint8[n, height, width, channels], 4 or more.
        test: as many held-out pictures, with labels if the space knows the classes.
        known: float32[m, features], those of the generator's training pictures.
        asked: int[n], the classes that the generator was asked for, of a conditional one.
        training_labels: int[m], needed if the space knows the classes.

    Returns:
        `feature_space`, the name, and in this space
        `frechet` or `fid`, of the generated and the test pictures, and `..._floor`, of as many training pictures (as
        far as there are) and the test pictures;
        `precision` and `recall`, see `generated_pictures.precision_and_recall`, of 2,500 pictures at most;
        `nearest_distance`, the mean Euclidean distance of 1,000 generated pictures, at most, to the nearest training
        picture, and `nearest_distance_test`, that of test pictures: copies are nearer than these;
        if the space knows the classes, what `generated_pictures.modes_hit` counts among the generated pictures,
        `classifier_accuracy` on the test pictures, and with `asked` `class_accuracy`, the share of generated pictures
        that are taken for what was asked for.

    Source: Fréchet distance: Heusel et al. 2017, arXiv:1706.08500; class accuracy, as "GAN-test": Shmelkov et al. 2018,
        arXiv:1807.09499, section 3; the others: see `kerasdl.metrics.generated_pictures`.
    """
    real, made = (space.features(images, "Features") for images in (test.images, generated))
    floor = known[np.random.default_rng(2009).permutation(len(known))[: len(real)]]
    metrics: dict[str, Any] = {
        "feature_space": space.name,
        space.distance: generated_pictures.frechet_distance(real, made),
        f"{space.distance}_floor": generated_pictures.frechet_distance(real, floor),
        **generated_pictures.precision_and_recall(real[:2500], made[:2500]),
    }
    for name, features in (("nearest_distance", made), ("nearest_distance_test", real)):
        metrics[name] = float(generated_pictures.nearest_neighbours(features[:1000], known)[1].mean())
    if space.classifies:
        assert training_labels is not None
        seen = space.classify(generated)
        metrics |= generated_pictures.modes_hit(seen, training_labels)
        metrics["classifier_accuracy"] = float(np.mean(space.classify(test.images) == test.labels))
        if asked is not None:
            metrics["class_accuracy"] = float(np.mean(seen == asked))
    return metrics


class FrechetDistance(keras.callbacks.Callback):
    """Adds `val_frechet`, the distance of generated to real pictures, to the log of each epoch; nan for one picture.

    Args:
        space: where it is measured.
        real: uint8[n, height, width, channels], of the validation data.
        draw: gives the generated pictures, as many; the same random numbers in each epoch.
    """

    def __init__(self, space: FeatureSpace, real: np.ndarray, draw: Callable[[], np.ndarray]) -> None:
        super().__init__()
        self.space, self.real, self.draw = space, space.features(real), draw  # the pictures are not kept

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Measures."""
        assert logs is not None
        enough = len(self.real) > 1
        drawn = self.space.features(self.draw())
        logs["val_frechet"] = generated_pictures.frechet_distance(self.real, drawn) if enough else math.nan


def _network(images: np.ndarray, num_outputs: int) -> keras.Model:
    """With initial weights that follow from the pictures alone."""
    sample = images[:: max(1, len(images) // 5000)].astype(np.float32)
    mean, deviation = sample.mean((0, 1, 2)), channels.usable_deviation(sample.std((0, 1, 2)))
    with _seeded(_SETTINGS["seed"]):
        image = keras.Input((None, None, images.shape[-1]), name="image")
        x = keras.layers.Normalization(mean=mean, variance=deviation**2, name="normalize")(image)
        logits = image_classifier.fast_network(x, num_outputs, widths=_SETTINGS["widths"], name="fast")
        inner = keras.Model(image, logits)
        network = keras.Model(image, {"features": inner.get_layer("fast_max").output, "logits": logits})
    kernel = convolution.whitening_kernel((sample - mean) / deviation)
    network.get_layer("fast_whiten").kernel.assign(kernel)
    return network


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Keras draws the seeds of initial weights by Python's generator: here by one of our own."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


def _train(
    images: np.ndarray,
    labels: np.ndarray | None,
    num_outputs: int,
    epochs: int,
    lines: tuple[str, str],
    progress: bool,
) -> list[np.ndarray]:
    with precision("auto"):
        network = _network(images, num_outputs)
    model = keras.Model(network.inputs[0], network.output["logits"])
    # Muon is made for 2,000 pictures a step; a small set gets steps enough to learn from.
    batch_size = min(2000, max(50, len(images) // 10))
    steps = pipeline.num_steps(len(images), batch_size)
    model.compile(
        optimizers.NormalizedMuon(
            schedule.schedule("linear", _SETTINGS["learning_rate"], total_steps=steps * epochs),
            weight_decay=_SETTINGS["weight_decay"],
        ),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=_SETTINGS["label_smoothing"]),
        jit_compile=False,  # XLA's convolutions take 1.4 to 2 times as long on a CPU
    )

    def transform(pixels: tf.Tensor, *classes: tf.Tensor, seed: tf.Tensor, **_: tf.Tensor) -> tuple[tf.Tensor, ...]:
        pixels = augmentation.pad_and_crop(pixels, seed, padding=_SETTINGS["padding"])
        if classes:
            target = classes[0]
        else:
            target = tf.random.stateless_uniform([tf.shape(pixels)[0]], seed, 0, 4, tf.int32)
            turned = tf.stack([tf.image.rot90(pixels, quarters) for quarters in range(4)], 1)
            pixels = tf.gather(turned, target, batch_dims=1)
        return tf.cast(pixels, tf.float32), tf.one_hot(target, num_outputs)

    arrays = [images] if labels is None else [images, labels]
    batches = pipeline.training_batches(arrays, batch_size, seed=_SETTINGS["seed"], transform=transform)
    optimizers.build(model)
    with bar(steps * epochs, "Feature network", *lines, shown=progress) as advance:
        model.fit(
            batches,
            epochs=epochs,
            steps_per_epoch=steps,
            shuffle=False,  # the batches are shuffled already
            callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: advance(1))],
            verbose=0,
        )
    return network.get_weights()


def _kept(folder: Path, identity: str, shapes: Sequence[tuple[int, ...]], train: Any) -> list[np.ndarray]:
    """The weights in the file that stands for `identity`; trains and writes them if they are not there."""
    path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npz"
    try:
        waiting = f"Waiting for another process that trains the network {path}."
        with claim(path.with_suffix(".lock"), wait=waiting):
            weights = _read(path, identity, shapes)
            if weights is None:
                weights = train()
                arrays: Mapping[str, Any] = {str(i): weight for i, weight in enumerate(weights)}
                with atomic_path(path) as temporary:
                    np.savez(temporary, identity=np.array(identity), **arrays)
    except OSError as error:
        raise UserError(
            f"The feature network {path} cannot be written ({error.strerror}); expected room and permission there;"
            " make room, or choose another folder."
        ) from None
    return weights


def _read(path: Path, identity: str, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray] | None:
    if not path.exists():
        return None
    try:
        with np.load(path) as file:
            weights = [file[str(i)] for i in range(len(shapes))]
            whole = str(file["identity"]) == identity and [weight.shape for weight in weights] == list(shapes)
    except Exception:  # NumPy raises whatever a cut archive, or another kind of file, leads to
        whole = False
    if not whole:
        print(f"The feature network {path} is damaged, or another one; training it anew.", file=sys.stderr)
    return weights if whole else None


def _checksum(weights: Sequence[np.ndarray]) -> int:
    return zlib.crc32(b"".join(weight.tobytes() for weight in weights))
