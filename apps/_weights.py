"""The weights of a run, loaded into its model; what does not fit is refused by name."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras

from apps._contract import Application, Splits
from kerasdl.errors import UserError
from kerasdl.training import run


def restore(module: Application, config: Any, data: Splits, folder: Path) -> keras.Model:
    """Builds the model of a run in float32 and loads its weights.

    Raises:
        UserError: nothing trained yet, or the file is damaged.
    """
    path = folder / run.MODEL
    if not path.is_file():
        raise UserError(f"{folder} has no {run.MODEL}: no epoch was finished; go on with train --resume {folder}")
    # Half precision is for training: measured and exported models compute in float32.
    model = module.build_model(dataclasses.replace(config, precision="float32", devices=1), data)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # the optimizer is not wanted, and of all else the error says enough
            model.load_weights(path)
            unread = _stored_arrays(path) - _own_arrays(model)
            if unread:
                raise ValueError(f"{len(unread)} of its arrays have no place in the model")
    except Exception as error:  # Keras raises whatever a cut archive or a shape leads to
        reason = str(error).splitlines()[0].partition(" Example error")[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be loaded ({reason[:200]}); it is damaged, or its weights are those of another model than "
            f"{run.CONFIG} describes; restore it, or train anew"
        ) from error
    return model


def _stored_arrays(path: Path) -> set[str]:
    """Names of the arrays of a saved model; what Keras does not look for it passes over."""
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as stream:
        return _names(stream)


def _own_arrays(model: keras.Model) -> set[str]:
    """Names under which Keras saves the arrays of a model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.weights.h5"
        model.save_weights(path)
        return _names(path)


def _names(weights: Any) -> set[str]:
    """Names of the arrays in a file of weights, but for those of optimizers."""
    names: list[str] = []
    with h5py.File(weights) as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return {name for name in names if "optimizer" not in name.split("/")[0]}
