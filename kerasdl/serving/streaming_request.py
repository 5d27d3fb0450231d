"""The body of a request for a stream: a prompt and how to go on from it, or a picture.

Knows neither HTTP nor TensorFlow.
"""

import json
from typing import NamedTuple

import numpy as np

from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.tensor_json import decode_inputs, parse_object

MAX_LENGTH = 100_000
"""As `kerasdl.decoding.sampling` has it."""


class Setting(NamedTuple):
    """A number of a request, from the lowest to the highest."""

    default: float
    lowest: float
    highest: float
    dtype: type[np.generic]


SETTINGS = {
    "length": Setting(300, 1, MAX_LENGTH, np.int32),
    "temperature": Setting(0.8, 0, float(np.finfo(np.float32).max), np.float32),
    "top_k": Setting(0, 0, 2**31 - 1, np.int32),
    "top_p": Setting(1.0, 1e-6, 1, np.float32),
    "seed": Setting(0, -(2**31), 2**31 - 1, np.int32),
}


def read(body: bytes) -> dict[str, np.ndarray]:
    """An array of one row for the prompt, and for each setting.

    Args:
        body: a JSON object with `prompt`, and any of `SETTINGS`.

    Raises:
        ServingError: INVALID_ARGUMENT, when it is not.
    """
    asked = parse_object(body)
    for name in asked:
        if name != "prompt" and name not in SETTINGS:
            raise _invalid(f"{_excerpt(name)} is unknown; expected prompt and, if need be, {', '.join(SETTINGS)}")
    if "prompt" not in asked:
        raise _invalid('"prompt" is missing; expected a text to go on from')
    if not isinstance(asked["prompt"], str):
        raise _invalid(f'"prompt" is {_excerpt(asked["prompt"])}; expected a text')
    try:
        prompt = asked["prompt"].encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _invalid('"prompt" holds half of a surrogate pair; expected a text') from None
    numbers = {name: _number(name, asked.get(name, setting.default)) for name, setting in SETTINGS.items()}
    return {"prompt": np.array([prompt], object), **numbers}


def read_picture(body: bytes) -> dict[str, np.ndarray]:
    """An array of one row for the picture.

    Args:
        body: a JSON object with `image_bytes`, an object whose `b64` is a picture's file in base64.

    Raises:
        ServingError: INVALID_ARGUMENT, when it is not.
    """
    asked = parse_object(body)
    if asked.keys() != {"image_bytes"} or not isinstance(asked["image_bytes"], dict):
        raise _invalid('The request is not a picture; expected {"image_bytes": {"b64": "..."}} and no more')
    return decode_inputs({"instances": [asked]}, {"image_bytes": "string"})[0]


def _number(name: str, value: object) -> np.ndarray:
    _, lowest, highest, dtype = SETTINGS[name]
    whole = issubclass(dtype, np.integer)
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not lowest <= value <= highest:
        kind = "an integer" if whole else "a number"
        raise _invalid(f'"{name}" is {_excerpt(value)}; expected {kind} from {lowest:.10g} to {highest:.10g}')
    return np.array([value], dtype)


def _invalid(message: str) -> ServingError:
    return ServingError(Code.INVALID_ARGUMENT, message)


def _excerpt(value: object) -> str:
    return json.dumps(value)[:100]
