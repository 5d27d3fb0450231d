"""KServe's V2 inference protocol to numpy arrays and back; knows neither HTTP nor TensorFlow.

A body is JSON, or JSON with the raw bytes of tensors behind it (the binary data extension).

Source: KServe, "Open Inference Protocol"; Triton, "Binary Tensor Data Extension".
"""

import itertools
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from kerasdl.serving.errors import Code, ServingError, no_signature
from kerasdl.serving.tensor_json import decimal_texts, parse_object

DATATYPES = {
    "bool": "BOOL",
    "string": "BYTES",
    "half": "FP16",
    "bfloat16": "BF16",
    "float": "FP32",
    "double": "FP64",
    **{f"{kind}int{bits}": f"{kind}int{bits}".upper() for kind in ("", "u") for bits in (8, 16, 32, 64)},
}
"""The protocol's word for a data type, by TensorFlow's."""

_NUMPY = {
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
}
_WORDS = {dtype: word for word, dtype in _NUMPY.items()} | {np.dtype(bool): "BOOL", np.dtype(object): "BYTES"}


@dataclass(frozen=True)
class InferRequest:
    """What a client asks for.

    Attributes:
        id: returned with the answer; None for none.
        signature: to be run.
        inputs: array by name; strings as object arrays of bytes.
        outputs: the outputs to be returned and whether as raw bytes; empty for all.
        binary: whether outputs that `outputs` does not name are returned as raw bytes.
    """

    id: str | None
    signature: str
    inputs: dict[str, np.ndarray]
    outputs: dict[str, bool] = field(default_factory=dict)
    binary: bool = False


def read_request(
    body: bytes, header_length: int | None, dtypes: Mapping[str, Mapping[str, str]] | ServingError
) -> InferRequest:
    """Reads a request.

    Args:
        body: JSON, and raw bytes behind it.
        header_length: bytes of the JSON; None if it is all.
        dtypes: TensorFlow's word for the data type of each input, by signature; or why there is no model.

    Raises:
        ServingError: INVALID_ARGUMENT for what is malformed or does not fit the signature; UNIMPLEMENTED for an
            extension of the protocol that is not known here; that of the model.
    """
    if header_length is None:
        header_length = len(body)
    if header_length > len(body):
        raise _invalid(f"Inference-Header-Content-Length is {header_length}, but the body holds {len(body)} bytes")
    request = parse_object(body[:header_length])
    if isinstance(dtypes, ServingError):
        raise dtypes
    parameters = _parameters(request, "the request")
    name = _taken(parameters, "signature_name", str, "the parameters", "serving_default")
    if name not in dtypes:
        raise no_signature(name)
    outputs: dict[str, bool] = {}
    binary = _taken(parameters, "binary_data_output", bool, "the parameters", False)
    for output in _objects(request, "outputs"):
        wanted = _taken(output, "name", str, "an output")
        if wanted in outputs:
            raise _invalid(f'Output "{wanted}" is asked for twice')
        where = f'output "{wanted}"'
        outputs[wanted] = _taken(_parameters(output, where), "binary_data", bool, where, binary)
    inputs = _read_inputs(_objects(request, "inputs"), memoryview(body)[header_length:], dtypes[name])
    return InferRequest(_taken(request, "id", str, "the request", None), name, inputs, outputs, binary)


def write_response(
    model: str, version: int, request: InferRequest, outputs: Mapping[str, np.ndarray]
) -> tuple[bytes, int | None]:
    """Writes an answer.

    Args:
        model: its name.
        version: of the model.
        request: what was asked for.
        outputs: array by name; strings as object arrays of bytes.

    Returns:
        The body; and the bytes of its JSON, None if it is all. Numbers that are not finite are written as NaN, Infinity
        and -Infinity, as in TensorFlow Serving's protocol.

    Raises:
        ServingError: INVALID_ARGUMENT, when there is no such output, or JSON cannot carry it; UNIMPLEMENTED, when
            the protocol has no such data type.
    """
    for name in request.outputs:
        if name not in outputs:
            raise _invalid(
                f'Output "{name}" is not one of signature "{request.signature}": {", ".join(sorted(outputs))}'
            )
    texts, raw = [], []
    for name in request.outputs or outputs:
        array = outputs[name]
        if array.dtype not in _WORDS:
            raise ServingError(Code.UNIMPLEMENTED, f'Output "{name}" is of data type {array.dtype.name}')
        head = f'{{"name": {json.dumps(name)}, "datatype": "{_WORDS[array.dtype]}", "shape": {list(array.shape)}, '
        if request.outputs.get(name, request.binary):
            data = _raw(array)
            raw.append(data)
            texts.append(f'{head}"parameters": {{"binary_data_size": {len(data)}}}}}')
        else:
            texts.append(f'{head}"data": [{", ".join(_texts(name, array.ravel()))}]}}')
    known = {"model_name": model, "model_version": str(version)}
    if request.id is not None:
        known["id"] = request.id
    text = f'{json.dumps(known)[:-1]}, "outputs": [{", ".join(texts)}]}}'.encode()
    return b"".join([text, *raw]), len(text) if raw else None


def _invalid(message: str) -> ServingError:
    return ServingError(Code.INVALID_ARGUMENT, message)


_MISSING: Any = object()
_KINDS = {str: "a string", bool: "true or false", int: "an integer", list: "a list", dict: "an object"}


def _taken(values: Mapping[str, Any], key: str, kind: type, where: str, default: Any = _MISSING) -> Any:
    """The value of a key, of exactly one type: a bool is an int to Python, but not to the protocol."""
    value = values.get(key, default)
    if value is _MISSING:
        raise _invalid(f'"{key}" of {where} is missing')
    if value is not default and type(value) is not kind:
        raise _invalid(f'"{key}" of {where} must be {_KINDS[kind]}')
    return value


def _parameters(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    parameters: dict[str, Any] = _taken(values, "parameters", dict, where, {})
    for key in ("shared_memory_region", "classification"):
        if key in parameters:
            raise ServingError(Code.UNIMPLEMENTED, f'Parameter "{key}" of {where} is not supported')
    return parameters


def _objects(request: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    items: list[Any] = _taken(request, key, list, "the request", *([[]] if key == "outputs" else []))
    if not all(isinstance(item, dict) for item in items):
        raise _invalid(f'"{key}" of the request must be a list of objects')
    return items


def _read_inputs(
    tensors: Sequence[dict[str, Any]], raw: memoryview, dtypes: Mapping[str, str]
) -> dict[str, np.ndarray]:
    inputs: dict[str, np.ndarray] = {}
    begin = 0
    for tensor in tensors:
        name = _taken(tensor, "name", str, "an input")
        where = f'input "{name}"'
        if name in inputs:
            raise _invalid(f'Input "{name}" is sent twice')
        if name not in dtypes:
            raise _invalid(f'Input "{name}" is not one of the signature: {", ".join(sorted(dtypes))}')
        if dtypes[name] not in DATATYPES:
            raise ServingError(Code.UNIMPLEMENTED, f'Input "{name}" is of data type {dtypes[name]}')
        datatype, expected = _taken(tensor, "datatype", str, where), DATATYPES[dtypes[name]]
        if datatype != expected:
            raise _invalid(f'Input "{name}" has datatype {datatype}, but the signature takes {expected}')
        shape = _taken(tensor, "shape", list, where)
        if not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 64:
            raise _invalid(f'"shape" of {where} must be a list of at most 64 sizes, each 0 or more')
        size = _taken(_parameters(tensor, where), "binary_data_size", int, where, None)
        if (size is None) == ("data" not in tensor):
            raise _invalid(f'"data" or the parameter "binary_data_size" of {where} must be given, and not both')
        if size is None:
            inputs[name] = _from_json(_taken(tensor, "data", list, where), datatype, shape, where)
        else:
            if not 0 <= size <= len(raw) - begin:
                raise _invalid(f"{len(raw) - begin} bytes behind the JSON are left for {where}, not {size}")
            inputs[name] = _from_raw(raw[begin : begin + size], datatype, shape, where)
            begin += size
    if begin != len(raw):
        raise _invalid(f"{len(raw) - begin} bytes behind the JSON belong to no input")
    return inputs


# --- JSON -------------------------------------------------------------------------------------------------


def _from_json(data: list[Any], datatype: str, shape: list[int], where: str) -> np.ndarray:
    leaves, nested = data, [len(data)]
    while leaves and type(leaves[0]) is list:
        if set(map(type, leaves)) != {list} or len(set(map(len, leaves))) != 1:
            raise _invalid(f"Lists of {where} differ in length or depth")
        nested.append(len(leaves[0]))
        leaves = list(itertools.chain.from_iterable(leaves))
    if len(leaves) != math.prod(shape) or (len(nested) > 1 and nested != shape):
        raise _invalid(f'"data" of {where} has shape {nested}, but its "shape" is {shape}')
    array = _leaves(leaves, datatype)
    if array is None:
        raise _invalid(f'"data" of {where} holds what is no {datatype}')
    return array.reshape(shape)


def _leaves(leaves: list[Any], datatype: str) -> np.ndarray | None:
    types = set(map(type, leaves))
    if datatype == "BOOL":
        return np.array(leaves, bool) if types <= {bool} else None
    if datatype == "BYTES":
        if not types <= {str}:
            return None
        array = np.empty(len(leaves), object)
        try:
            array[:] = [leaf.encode("utf-8", "surrogateescape") for leaf in leaves]
        except UnicodeEncodeError:  # half of a surrogate pair
            return None
        return array
    dtype = _NUMPY[datatype]
    if datatype.startswith(("FP", "BF")):
        if not types <= {int, float}:
            return None
        try:
            with np.errstate(over="ignore"):  # what is too large is infinity
                return np.array(leaves, np.float64).astype(dtype)
        except OverflowError:  # an integer beyond float64
            return None
    limits = np.iinfo(dtype)
    if not types <= {int} or (leaves and not limits.min <= min(leaves) <= max(leaves) <= limits.max):
        return None
    return np.array(leaves, dtype)


def _texts(name: str, values: np.ndarray) -> Iterable[str]:
    if values.dtype == object:
        try:
            return [json.dumps(value.decode()) for value in values]
        except UnicodeDecodeError:
            raise _invalid(
                f'Output "{name}" holds bytes that are no UTF-8, which JSON cannot carry; '
                'ask for it with the parameter "binary_data": true'
            ) from None
    if values.dtype == bool:
        return ["true" if value else "false" for value in values]
    if values.dtype.kind in "iu":
        return map(str, values.tolist())
    return decimal_texts(values.astype(np.float32) if values.dtype == ml_dtypes.bfloat16 else values)


# --- raw bytes --------------------------------------------------------------------------------------------


def _from_raw(data: memoryview, datatype: str, shape: list[int], where: str) -> np.ndarray:
    count = math.prod(shape)
    if datatype == "BYTES":
        return _strings(data, count, where).reshape(shape)
    dtype = np.dtype(np.uint8) if datatype == "BOOL" else _NUMPY[datatype]
    if len(data) != count * dtype.itemsize:
        raise _invalid(
            f"{where} of shape {shape} and datatype {datatype} takes {count * dtype.itemsize} bytes, not {len(data)}"
        )
    array = np.frombuffer(data, dtype).reshape(shape)
    return array.astype(bool if datatype == "BOOL" else dtype)  # aligned, as the body need not be


def _strings(data: memoryview, count: int, where: str) -> np.ndarray:
    """Strings that each stand behind their length, four bytes."""
    found, begin = [], 0
    while begin + 4 <= len(data):
        end = begin + 4 + struct.unpack_from("<I", data, begin)[0]
        if end > len(data):
            break
        found.append(bytes(data[begin + 4 : end]))
        begin = end
    if begin != len(data) or len(found) != count:
        raise _invalid(f"The bytes of {where} must be {count} strings, each behind its length in four bytes")
    array = np.empty(count, object)
    array[:] = found
    return array


def _raw(array: np.ndarray) -> bytes:
    if array.dtype == object:
        return b"".join(part for value in array.flat for part in (struct.pack("<I", len(value)), value))
    return array.tobytes()
