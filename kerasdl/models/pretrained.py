"""Networks of `keras.applications` with pre-trained weights, and the errors of those who name them wrongly."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from kerasdl.errors import UserError


def network(name: str, weights: str | None, size: int) -> tuple[keras.Model, Callable[[Any], Any]]:
    """A network without its top layers, and the preprocessing that its weights expect.

    Args:
        name: of its constructor in `keras.applications`, such as MobileNetV2.
        weights: `imagenet`, which Keras downloads, a .weights.h5 file of the network without top, or None for random
            ones.
        size: side of the pictures in pixels.

    Returns:
        The model float32[batch, size, size, 3] -> float32[batch, height, width, channels], and a function of pixels
        0..255 whose result it takes.

    Raises:
        UserError: no such network or file, or weights that do not fit.
    """
    constructor = getattr(keras.applications, name, None)
    if not callable(constructor):
        known = ", ".join(name for name in dir(keras.applications) if name[0].isupper())
        raise UserError(f"{name} is not in keras.applications; choose one of {known}")
    if weights not in (None, "imagenet") and not Path(weights).is_file():
        raise UserError(
            f"the weights {weights} do not exist; give a .weights.h5 file of {name} without top, or imagenet"
        )
    try:
        model = constructor(include_top=False, weights=weights, input_shape=(size, size, 3))
    except Exception as error:  # Keras raises whatever the download, HDF5 or a shape check raises
        raise UserError(
            f"the weights {weights} do not load into {name} at {size} pixels ({str(error).splitlines()[0]}); expected "
            "its weights without top, and a size that it takes"
        ) from None
    return model, sys.modules[constructor.__module__].preprocess_input


def classifier(
    backbone: str, weights: str | None, size: int, num_classes: int, *, dropout: float, name: str
) -> keras.Model:
    """A network without its top, and a new head.

    Args:
        backbone: name of the network, see `network`.
        weights: see `network`.
        size: to which pictures are scaled, see `network`.
        num_classes: size of the result.
        dropout: share of features dropped before the head.
        name: of the model.

    Returns:
        Pixels 0..255 float32[batch, height, width, 3] -> logits float32[batch, num_classes]; the last four layers are
        the network, `pool`, `dropout` and `head`. To train, see `tune`.

    Raises:
        UserError: see `network`.
    """
    base, preprocess = network(backbone, weights, size)
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.Resizing(size, size, name="resize")(image)
    x = base(preprocess(x))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    logits = keras.layers.Dense(num_classes, dtype="float32", name="head")(x)
    return keras.Model(image, logits, name=name)


def tune(base: keras.Model, tuned: bool, *, pretrained: bool) -> None:
    """Trains the weights of a network, or leaves them.

    Batch normalization stays as pre-trained, its statistics, too. `training=False` where the network is called does
    not hold them: `fit` of a model around it overrides that (Keras 3.15).

    Args:
        base: the network.
        tuned: whether its weights are trained.
        pretrained: else batch normalization is trained with the other weights, without which none learns.

    Source: statistics of small batches harm what was pre-trained: keras.io, guide "Transfer learning & fine-tuning".
    """
    base.trainable = tuned
    for layer in base.layers:
        if pretrained and isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False  # and so it infers


def encoder(
    name: str, weights: str | None, size: int, *, cut: str | None = None
) -> tuple[keras.Model, keras.Model | None]:
    """A network without its top layers that takes pixels; or two, the second of which goes on where the first ends.

    Args:
        name: see `network`.
        weights: see `network`.
        size: see `network`.
        cut: the layer that the first one ends with; None: the first is the whole network.

    Returns:
        Pixels 0..255 float32[batch, size, size, 3] -> features, and what is behind `cut`. The moving statistics of the
        first stay as pre-trained.

    Raises:
        UserError: see `network`; or there is no such layer.
    """
    base, preprocess = network(name, weights, size)
    top = None
    if cut is not None:
        names = [layer.name for layer in base.layers]
        if cut not in names:
            raise UserError(
                f"--tune-from {cut} is no layer of {name}; known: {', '.join(names)}; or give --tune-epochs 0"
            )
        middle = base.get_layer(cut).output
        top = keras.Model(middle, base.output, name="encoder_top")
        base = keras.Model(base.input, middle, name="encoder_bottom")
    image = keras.Input((size, size, 3), name="image")
    return keras.Model(image, base(preprocess(image), training=False), name="encoder"), top
