"""The temperature of a classifier, fitted to examples that a training held out.

Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import keras

from apps import _settings, _weights
from apps._contract import Application, Classifier, Splits, jsonable
from kerasdl import export
from kerasdl.errors import UserError
from kerasdl.metrics import classification

# How an export was trained may differ in these from the run that it is calibrated on.
_OF_NO_CONSEQUENCE = {
    *_settings.PLACES, "validation_ratio", "fold", "seed", "precision", "strict", "teacher", "patience", "batch_size"
}  # fmt: skip


def calibration(
    module: Application, model: keras.Model, data: Splits, origin: str = "this run"
) -> tuple[dict[str, Any], str | None]:
    """Fits the temperature of a classifier to the examples that its training held out.

    Args:
        module: the application.
        model: in float32.
        data: that it was trained on.
        origin: the run that held them out, for the sentence.

    Returns:
        What `endpoints` and `evaluate` take: the temperature, or nothing; and a sentence about it, None where there
        are no probabilities.
    """
    if not hasattr(module, "predictions"):
        return {}, None
    classifier = cast(Classifier, module)
    if data.validation is None:
        return {}, f"Its probabilities are not calibrated: {origin} held no examples out."
    found = classifier.predictions(export.in_memory(module.endpoints(model, data)), data.validation)
    temperature = classification.fit_temperature(*found)
    return {"temperature": temperature}, (
        f"Its probabilities are calibrated: the logits are divided by the temperature {temperature:.3f}, fitted to "
        f"the {len(found[1]):,} validation examples of {origin}."
    )


def calibration_of_another(
    module: Application, config: Any, data: Splits, other: tuple[Any, Splits, Path]
) -> tuple[dict[str, Any], str | None]:
    """The temperature of a run of the same configuration that held examples out."""
    other_config, other_data, folder = other
    if not hasattr(module, "predictions"):
        raise UserError("--calibrate-on is for classifiers; this application has no probabilities of classes")
    own, others = jsonable(config), jsonable(other_config)
    changed = [name for name in own if name not in _OF_NO_CONSEQUENCE and own[name] != others[name]]
    if other_data.info["class_names"] != data.info["class_names"]:
        changed.append("classes")
    if changed:
        raise UserError(
            f"--calibrate-on {folder} differs in {', '.join(changed)}, so that it is sure of other things than this "
            "run; give one of the same configuration but for --validation-ratio"
        )
    if other_data.validation is None:
        raise UserError(
            f"--calibrate-on {folder} held no examples out; give a run that was trained with --validation-ratio above 0"
        )
    return calibration(
        module, _weights.restore(module, other_config, other_data, folder), other_data, f"the run {folder.name}"
    )
