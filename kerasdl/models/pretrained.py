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
