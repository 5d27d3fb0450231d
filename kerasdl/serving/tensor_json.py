"""JSON of TensorFlow Serving's REST API to numpy arrays and back; knows neither HTTP nor TensorFlow.

Data types go by TensorFlow's own words, which appear in error texts: `float`, `double`, `half`, `string`,
`int32` and so on. Whole lists are converted at once; only when that fails does a slow walk in TensorFlow
Serving's order find the first fault, so that error texts agree with it at no cost to good requests.

Source: the protocol of tensorflow/serving, `util/json_tensor.cc`, in own words and code.
"""

import base64
import binascii
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np

from kerasdl.serving.errors import Code, ServingError, no_signature

Layout = Literal["row", "columnar"]

_EXCERPT_CHARACTERS = 256
_MAX_RANK = 64  # numpy's limit

_INT32_RANGE = (-(2**31), 2**31 - 1)
# Narrow integers take the whole int32 range and wrap, as in TensorFlow Serving.
_INTEGER_RANGES = {
    "int8": _INT32_RANGE,
    "uint8": _INT32_RANGE,
    "int16": _INT32_RANGE,
    "int32": _INT32_RANGE,
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}
_FLOATS: dict[str, type[np.floating[Any]]] = {"float": np.float32, "double": np.float64}
_SUPPORTED = {*_INTEGER_RANGES, *_FLOATS, "bool", "string"}

# Strings are matched first, so that a literal inside one stays as it is.
_STRING_OR_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"|-?\bInf\b|-NaN\b')
_PERHAPS_LARGE = re.compile(r"[eE]\+?\d{3}|\d{300}")
_LITERALS = {"Inf": "Infinity", "-Inf": "-Infinity", "-NaN": "NaN"}


@dataclass(frozen=True)
class Asked:
    """What a request is for.

    Attributes:
        dtypes: TensorFlow's word for the data type of each input, by signature; or why there is no model.
        verb: predict, classify or regress.
    """

    dtypes: Mapping[str, Mapping[str, str]] | ServingError
    verb: str = "predict"


def read_request(body: bytes, asked: Asked) -> tuple[str, dict[str, np.ndarray], Layout]:
    """Reads a request.

    Args:
        body: JSON text.
        asked: what it is for.

    Returns:
        The signature, one array per input, and the layout that the reply must have.

    Raises:
        ServingError: the first fault, in the order of TensorFlow Serving: the text, the model, the signature, the
            tensors.
    """
    request = parse_object(body)
    signature = signature_name(request)
    if isinstance(asked.dtypes, ServingError):
        raise asked.dtypes
    if signature not in asked.dtypes:
        raise no_signature(signature)
    if not asked.dtypes[signature]:
        raise _invalid(f"Failed to get input map for signature: {signature}")
    if asked.verb != "predict":
        check_examples(request)
        raise _invalid(
            f"Expected a signature with method_name tensorflow/serving/{asked.verb}, but exports of Keras have only "
            "tensorflow/serving/predict; send the inputs to :predict"
        )
    return signature, *decode_inputs(request, asked.dtypes[signature])


def parse_object(body: bytes) -> dict[str, Any]:
    """Parses a request body; text after the first complete JSON value is ignored.

    Bytes that are no UTF-8 survive as lone surrogates, so that a string tensor receives what was sent.

    Args:
        body: JSON text in UTF-8; the literals NaN, Inf, Infinity, -Inf and -Infinity are numbers.

    Returns:
        The top-level object.

    Raises:
        ServingError: INVALID_ARGUMENT, when the body is empty, broken or no object.
    """
    text = body.decode("utf-8-sig", "surrogateescape").lstrip(" \t\r\n")
    if not text:
        raise _invalid("JSON Parse error: The document is empty")
    try:
        value = _parse(text)
    except json.JSONDecodeError as error:
        raise _invalid(f"JSON Parse error: {error.msg} at offset: {error.pos}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise _invalid(f"JSON Parse error: {error} at offset: 0") from None
    except RecursionError:
        raise _invalid("JSON Parse error: Nested too deeply at offset: 0") from None
    if not isinstance(value, dict):
        raise _invalid(f"JSON Value: {_excerpt(value)} Is not object")
    return value


def signature_name(request: dict[str, Any]) -> str:
    """Returns the signature that a request names, `serving_default` when it names none.

    Raises:
        ServingError: INVALID_ARGUMENT, when the name is no string.
    """
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise _invalid(
            f"JSON Value: {_excerpt(request)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name or "serving_default"


def decode_inputs(request: dict[str, Any], dtypes: Mapping[str, str]) -> tuple[dict[str, np.ndarray], Layout]:
    """Reads the tensors of a predict request.

    Args:
        request: the parsed body, with either `instances` (row form) or `inputs` (columnar form).
        dtypes: TensorFlow's word for the data type of each input of the signature; at least one.

    Returns:
        One array per input (strings as object arrays of bytes) and the layout that the reply must have.

    Raises:
        ServingError: INVALID_ARGUMENT for a malformed request; UNIMPLEMENTED for an input of a data type that
            JSON cannot carry, in columnar form.
    """
    try:
        if "instances" in request:
            return _decode_rows(request, dtypes), "row"
        if "inputs" in request:
            return _decode_columns(request["inputs"], dtypes), "columnar"
    except RecursionError:
        raise _invalid("JSON Value: nested too deeply for a tensor") from None
    raise _invalid("Missing 'inputs' or 'instances' key")


def check_examples(request: dict[str, Any]) -> None:
    """Checks the `context` and the `examples` of a classify or regress request.

    Args:
        request: the parsed body. An example is an object of features; a feature is a value or a flat list of one kind.

    Raises:
        ServingError: INVALID_ARGUMENT for a malformed request.
    """
    if "context" in request:
        _check_example(request["context"])
    if "examples" not in request:
        raise _invalid(
            f"JSON Value: {_excerpt(request)} When method is classify, key 'examples' is expected and was not found"
        )
    examples = request["examples"]
    if not isinstance(examples, list):
        raise _invalid(f"JSON Value: {_excerpt(request)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise _invalid(f"JSON Value: {_excerpt(request)} 'examples' value is an empty array")
    for example in examples:
        _check_example(example)


def encode_outputs(outputs: Mapping[str, np.ndarray], layout: Layout) -> bytes:
    """Writes the body of a predict reply.

    Non-finite numbers are written as NaN, Infinity and -Infinity, which strict JSON does not know. Strings of
    outputs whose name ends in `_bytes` are written as `{"b64": ...}`.

    Args:
        outputs: array per output name (strings as object arrays of bytes); at least one.
        layout: form of the request. `row` needs a batch dimension, equal in all outputs.

    Returns:
        JSON in UTF-8; invalid UTF-8 in a string that is not written in base64 goes out as it is.

    Raises:
        ServingError: INVALID_ARGUMENT, when an output does not fit the layout or its type cannot be written.
    """
    names = [json.dumps(name) for name in outputs]
    if layout == "row":
        _check_batch(outputs)
        columns = [_nested_texts(name, array, outer=1) for name, array in outputs.items()]
        if len(columns) == 1:
            rows: Iterable[str] = columns[0]
        else:
            rows = (_object_text(names, values) for values in zip(*columns, strict=True))
        text = '{"predictions": [' + ",\n".join(rows) + "]}"
    else:
        values = [_nested_texts(name, array, outer=0)[0] for name, array in outputs.items()]
        text = '{"outputs": ' + (values[0] if len(values) == 1 else _object_text(names, values)) + "}"
    return text.encode("utf-8", "surrogateescape")


def _invalid(message: str) -> ServingError:
    return ServingError(Code.INVALID_ARGUMENT, message)


def _excerpt(value: Any) -> str:
    """The beginning of a value's JSON; stops writing there, since a value may be megabytes long."""
    text = ""
    for chunk in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        text += chunk
        if len(text) >= _EXCERPT_CHARACTERS:
            break
    return text[:_EXCERPT_CHARACTERS]


def _parse(text: str) -> Any:
    # Reading each number by a function of one's own takes longer, and few bodies hold one that could be too large.
    decoder = json.JSONDecoder(parse_float=_finite) if _PERHAPS_LARGE.search(text) else json.JSONDecoder()
    try:
        return decoder.raw_decode(text)[0]
    except json.JSONDecodeError:
        spelled = _STRING_OR_LITERAL.sub(lambda match: _LITERALS.get(match[0], match[0]), text)
        if spelled == text:
            raise
    return decoder.raw_decode(spelled)[0]


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise _invalid(f"JSON Parse error: Number too big to be stored in double: {number[:30]}")
    return value


# --- JSON to arrays ---------------------------------------------------------------------------------------


def _decode_rows(request: dict[str, Any], dtypes: Mapping[str, str]) -> dict[str, np.ndarray]:
    if "inputs" in request:
        raise _invalid(
            f"JSON Value: {_excerpt(request)} Not formatted correctly expecting only one of 'inputs' or "
            "'instances' keys to exist"
        )
    rows = request["instances"]
    if not isinstance(rows, list):
        raise _invalid(f"JSON Value: {_excerpt(request)} Expecting 'instances' to be an list/array")
    if not rows:
        raise _invalid(f"JSON Value: {_excerpt(request)} No values in 'instances' array")
    if not isinstance(rows[0], dict) and len(dtypes) > 1:
        raise _invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as "
            "per tensorinfo_map"
        )
    if _is_named(rows[0]):
        if not all(_is_named(row) and row.keys() == dtypes.keys() for row in rows):
            _raise_row_fault(rows, dtypes)
        columns = {name: [row[name] for row in rows] for name in dtypes}
    else:
        columns = {next(iter(dtypes)): rows}
    arrays = {}
    for name, column in columns.items():
        array = _convert(column, dtypes[name])
        if array is None:
            _raise_row_fault(rows, dtypes)
        arrays[name] = array
    return arrays


def _decode_columns(inputs: Any, dtypes: Mapping[str, str]) -> dict[str, np.ndarray]:
    if not _is_named(inputs):
        if len(dtypes) > 1:
            raise _invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as "
                "per tensorinfo_map"
            )
        inputs = {next(iter(dtypes)): inputs}
    arrays = {}
    for name, dtype in dtypes.items():
        if name not in inputs:
            raise _invalid(f"Missing named input: {name} in 'inputs' object.")
        array = _convert(inputs[name], dtype)
        if array is None:
            _raise_tensor_fault(inputs[name], dtype)
        arrays[name] = array
    return arrays


def _is_named(value: Any) -> bool:
    """Whether a value is an object of named inputs, rather than a tensor's value."""
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: dict[str, Any]) -> bool:
    return len(value) == 1 and isinstance(value.get("b64"), str)


def _convert(value: Any, dtype: str) -> np.ndarray | None:
    """Converts a value or nested list at once; None if any part of it is at fault."""
    shape: list[int] = []
    level = [value]
    while level and type(level[0]) is list:
        if set(map(type, level)) != {list} or len(set(map(len, level))) != 1:
            return None
        shape.append(len(level[0]))
        level = list(itertools.chain.from_iterable(level))
    if len(shape) > _MAX_RANK:
        return None
    try:
        leaves = _convert_leaves(level, dtype)
    except (ServingError, OverflowError):
        return None
    return None if leaves is None else leaves.reshape(shape)


def _convert_leaves(leaves: list[Any], dtype: str) -> np.ndarray | None:
    # Exact types: a bool is an int to Python, but not to the protocol.
    types = set(map(type, leaves))
    if dtype in _FLOATS:
        if types <= {int, float}:
            with np.errstate(over="ignore"):  # beyond float32 is infinity
                return np.array(leaves, _FLOATS[dtype])
    elif dtype in _INTEGER_RANGES:
        low, high = _INTEGER_RANGES[dtype]
        if types <= {int} and (not leaves or low <= min(leaves) <= max(leaves) <= high):
            return np.array(leaves, np.uint64 if dtype == "uint64" else np.int64).astype(dtype)
    elif dtype == "bool":
        if types <= {bool}:
            return np.array(leaves, np.bool_)
    elif dtype == "string" and types <= {str, dict}:
        array = np.empty(len(leaves), object)
        array[:] = [_string_bytes(leaf) for leaf in leaves]
        return array
    return None


def _string_bytes(value: str | dict[str, Any]) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise _invalid("JSON Parse error: The surrogate pair in string is invalid.") from None
    if not _is_base64(value):
        raise _invalid(f"JSON Value: {_excerpt(value)} not formatted correctly for base64 data")
    text = value["b64"]
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # line breaks and missing padding are fine
        text = "".join(text.split())
        try:
            return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
        except ValueError:
            raise _invalid("Unable to base64 decode") from None


def _raise_row_fault(rows: list[Any], dtypes: Mapping[str, str]) -> NoReturn:
    """Raises the first fault, row by row and key by key."""
    named = _is_named(rows[0])
    shapes: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        where = f"Failed to process element: {index}"
        if not named:
            if _is_named(row):
                raise _invalid(f"Expecting value/list but got object at item {index} of input list")
            _check_row_tensor(row, next(iter(dtypes)), dtypes, shapes, where)
            continue
        if not _is_named(row):
            raise _invalid(f"Expecting object but got list at item {index} of input list")
        for key, value in row.items():
            _check_row_tensor(value, key, dtypes, shapes, f"{where} key: {key}")
        if row.keys() != dtypes.keys():
            raise _invalid(
                f"{where} of 'instances' list. JSON object: {_excerpt(row)} "
                f"keys must be equal to: {','.join(sorted(dtypes))}"
            )
    raise _invalid("JSON Value: cannot be converted to a tensor")


def _check_row_tensor(
    value: Any, name: str, dtypes: Mapping[str, str], shapes: dict[str, list[int]], where: str
) -> None:
    try:
        if name not in dtypes:
            raise _invalid(f"JSON object: does not have named input: {name}")
        shape = _first_shape(value)
        _check_tensor(value, shape, dtypes[name])
        expected = shapes.setdefault(name, shape)
        if math.prod(shape) != math.prod(expected):
            raise _invalid(f"Expecting tensor size: {math.prod(expected)} but got: {math.prod(shape)}")
        if shape != expected:
            raise _invalid(f"Expecting shape {_shape_text(expected)} but got: {_shape_text(shape)}")
    except ServingError as error:
        raise _invalid(f"{where} of 'instances' list. Error: {error.code.name}: {error.message}") from None


def _raise_tensor_fault(value: Any, dtype: str) -> NoReturn:
    _check_tensor(value, _first_shape(value), dtype)
    raise _invalid("JSON Value: cannot be converted to a tensor")


def _first_shape(value: Any) -> list[int]:
    """The shape that the first elements of nested lists promise for the rest."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _shape_text(shape: list[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _check_tensor(value: Any, shape: list[int], dtype: str, level: int = 0) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise _invalid(
                f"JSON Value: {_excerpt(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        _check_leaf(value, dtype)
        return
    if level >= len(shape):
        raise _invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise _invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for item in value:
        _check_tensor(item, shape, dtype, level + 1)


def _check_leaf(value: Any, dtype: str) -> None:
    if dtype not in _SUPPORTED and not isinstance(value, dict):
        raise ServingError(Code.UNIMPLEMENTED, f"Conversion of JSON Value: {_excerpt(value)} to type: {dtype}")
    try:
        fits = _convert_leaves([value], dtype) is not None
    except OverflowError:
        raise _invalid("JSON Parse error: Number too big to be stored in double.") from None
    if not fits:
        raise _invalid(f"JSON Value: {_excerpt(value)} Type: {_type_word(value)} is not of expected type: {dtype}")


def _type_word(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "Null", False: "False", True: "True"}[value]
    words: dict[type, str] = {dict: "Object", list: "Array", str: "String"}
    return words.get(type(value), "Number")


# --- examples ---------------------------------------------------------------------------------------------


def _check_example(example: Any) -> None:
    if not isinstance(example, dict):
        raise _invalid(f"Example must be JSON object but got JSON {_type_word(example)}")
    for name, feature in example.items():
        expected = None
        for value in feature if isinstance(feature, list) else [feature]:
            kind = _feature_kind(name, value)
            if expected not in (None, kind):
                raise _invalid(f"Unexpected element type in feature: {name} expecting type: {expected}")
            expected = kind
            if kind == "bytes":
                _string_bytes(value)
            elif kind == "int64" and value > _INTEGER_RANGES["int64"][1]:
                raise _invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")


def _feature_kind(name: str, value: Any) -> str:
    """The list of a `tf.train.Feature` that takes a value; an integer that no 64 bits hold is a decimal."""
    if isinstance(value, str) or (isinstance(value, dict) and _is_base64(value)):
        return "bytes"
    if value is None or isinstance(value, (dict, list)):
        raise _invalid(f"Feature: {name} has element with unexpected JSON type: {_type_word(value)}")
    if isinstance(value, float) or not _INTEGER_RANGES["int64"][0] <= value <= _INTEGER_RANGES["uint64"][1]:
        return "float"
    return "int64"


# --- arrays to JSON ---------------------------------------------------------------------------------------


def _check_batch(outputs: Mapping[str, np.ndarray]) -> None:
    expected = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise _invalid(f"Tensor name: {name} has no shape information")
        if expected not in (None, len(array)):
            raise _invalid(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {expected}")
        expected = len(array)


def _object_text(names: list[str], values: Iterable[str]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in zip(names, values, strict=True)) + "}"


def _nested_texts(name: str, array: np.ndarray, *, outer: int) -> list[str]:
    """One JSON text for each index of the first `outer` dimensions."""
    texts = _scalar_texts(name, array.ravel())
    for axis in range(array.ndim - 1, outer - 1, -1):
        size = array.shape[axis]
        starts = (index * size for index in range(math.prod(array.shape[:axis])))
        texts = ["[" + ", ".join(texts[start : start + size]) + "]" for start in starts]
    return texts


def _scalar_texts(name: str, values: np.ndarray) -> list[str]:
    if not len(values):
        return []
    word = {"float16": "half", "float32": "float", "float64": "double", "object": "string"}.get(
        values.dtype.name, values.dtype.name
    )
    if word in _FLOATS:
        return decimal_texts(values)
    if word in _INTEGER_RANGES:
        return list(map(str, values.tolist()))
    if word == "bool":
        return ["true" if value else "false" for value in values]
    if word == "string":
        if name.endswith("_bytes"):
            return [f'{{"b64": "{base64.b64encode(value).decode()}"}}' for value in values]
        return [json.dumps(value.decode("utf-8", "surrogateescape"), ensure_ascii=False) for value in values]
    raise _invalid(f"Failed to write JSON value for tensor type: {word}")


def decimal_texts(values: np.ndarray) -> list[str]:
    """Six significant digits where these read back to the same value, else as many as that may need.

    All numbers are formatted by one `%` each time: several times quicker than a call per number.
    """
    numbers = values.tolist()
    texts = ("%.6g " * len(numbers) % tuple(numbers)).split()
    with np.errstate(over="ignore"):
        read_back = np.array(list(map(float, texts))).astype(values.dtype)
    inexact = np.flatnonzero(read_back != values).tolist()
    if inexact:
        digits = 9 if values.dtype == np.float32 else 17
        exact = f"%.{digits}g " * len(inexact) % tuple([numbers[index] for index in inexact])
        for index, text in zip(inexact, exact.split(), strict=True):
            texts[index] = text
    texts = [text if "." in text or "e" in text else text + ".0" for text in texts]
    for index in np.flatnonzero(~np.isfinite(values)).tolist():
        texts[index] = json.dumps(numbers[index])
    return texts
