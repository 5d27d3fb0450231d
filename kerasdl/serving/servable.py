"""One loaded version of a model: its signatures, its metadata, prediction on numpy arrays."""

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, prediction_log_pb2

from kerasdl import frozen
from kerasdl.errors import UserError
from kerasdl.serving.batch_parameters import Parameters, read_parameters
from kerasdl.serving.errors import Code, ServingError, no_signature
from kerasdl.serving.metrics import Metrics

WARMUP = Path("assets.extra", "tf_serving_warmup_requests")
BATCHING = "batching_params.pbtxt"
BATCHED = Path("assets.extra", "batched_signatures.json")
MAX_WARMUP_RECORDS = 1000


@dataclass(frozen=True)
class Input:
    """What a signature says of one input.

    Attributes:
        dtype: TensorFlow's word: `float`, `string`, `int32`, `half` and so on.
        shape: declared shape, batch dimension included.
    """

    dtype: str
    shape: tf.TensorShape


class Servable:
    """A SavedModel in memory, warmed up; safe to use from many threads.

    Attributes:
        folder: where the version lies.
        version: number of the version.
        batched: signatures whose examples do not depend on each other, so that those of several requests may be
            computed together; each with the inputs in which they must agree then.
        batching: the parameters of batches that stand beside the model; None for none.
        dtypes: TensorFlow's word for the data type of each input, by signature.
        examples: the first recorded request of each signature, as arrays by input.
        metadata: the signature definitions, as TensorFlow Serving's REST API writes them.

    Args:
        folder: version folder with `saved_model.pb`; its name is the version number.
        metrics: receives how long the warm-up takes.

    Raises:
        ServingError: the warm-up file is corrupt or one of its requests fails.
        Exception: whatever TensorFlow raises on a SavedModel that it cannot load.
    """

    def __init__(self, folder: Path, metrics: Metrics | None = None) -> None:
        self.folder, self.version = folder, int(folder.name)
        # The signatures hold their variables weakly: without this reference they would be gone.
        self._loaded = tf.saved_model.load(str(folder))
        self._functions = frozen.frozen_all(self._loaded)
        self._first = {id(function): threading.Lock() for function in self._functions.values()}
        self._inputs, self.metadata = _read_signatures(folder)
        self.dtypes = {name: {key: spec.dtype for key, spec in inputs.items()} for name, inputs in self._inputs.items()}
        self.batched = _read_batched(folder / BATCHED, self._inputs)
        try:
            path = folder / BATCHING
            self.batching: Parameters | None = read_parameters(path) if path.is_file() else None
        except UserError as error:
            raise ServingError(Code.INVALID_ARGUMENT, str(error)) from error
        self.examples: dict[str, dict[str, np.ndarray]] = {}
        began, code = time.monotonic(), Code.OK
        try:
            _warm_up(self, folder / WARMUP)
        except ServingError as error:
            code = error.code
            raise
        finally:
            if metrics is not None:
                metrics.warmup(folder, code.name, time.monotonic() - began)

    def inputs(self, signature: str) -> dict[str, Input]:
        """Returns the inputs that a signature takes; at least one.

        Raises:
            ServingError: INVALID_ARGUMENT, when there is no such signature or it takes no input.
        """
        if signature not in self._inputs:
            raise no_signature(signature)
        if not self._inputs[signature]:
            raise ServingError(Code.INVALID_ARGUMENT, f"Failed to get input map for signature: {signature}")
        return self._inputs[signature]

    def is_prepared(self, signature: str) -> bool:
        """Whether a signature was called before; the first call prepares its graph, which takes seconds."""
        return id(self._functions[signature]) not in self._first

    def has_batch(self, signature: str) -> bool:
        """Whether all inputs of a signature begin with a dimension of any size, that of examples."""
        return all(spec.shape.rank and spec.shape[0] is None for spec in self._inputs[signature].values())

    def check(self, signature: str, inputs: Mapping[str, np.ndarray]) -> None:
        """Refuses what a signature does not take.

        Args:
            signature: name of the signature.
            inputs: arrays by name.

        Raises:
            ServingError: INVALID_ARGUMENT, when names or shapes do not fit the signature. (The graph of a SavedModel
                does not check shapes: it may compute nonsense from a wrong one.)
        """
        expected = self.inputs(signature)
        check_names(inputs.keys(), expected.keys())
        for name, array in inputs.items():
            if not expected[name].shape.is_compatible_with(array.shape):
                raise ServingError(
                    Code.INVALID_ARGUMENT,
                    f'Input "{name}" has shape {list(array.shape)}, but signature "{signature}" takes '
                    f"{expected[name].shape}",
                )

    def run(
        self, signature: str, inputs: Mapping[str, np.ndarray], cancellation: frozen.Cancellation | None = None
    ) -> dict[str, np.ndarray]:
        """Runs a signature on inputs that were checked.

        Args:
            signature: name of the signature.
            inputs: array for each of its inputs; strings as object arrays of bytes.
            cancellation: may end the call.

        Returns:
            Array for each output; strings as object arrays of bytes.

        Raises:
            ServingError: with TensorFlow's own code when the graph refuses the values.
        """
        function = self._functions[signature]
        try:
            tensors = {
                name: tf.constant(array, tf.string if array.dtype == object else None) for name, array in inputs.items()
            }
            with self._one_at_first(function):
                outputs = function.call(tensors, cancellation)
            return {
                name: np.asarray(tensor.numpy(), object if tensor.dtype == tf.string else None)
                for name, tensor in outputs.items()
            }
        except tf.errors.OpError as error:
            raise ServingError(Code(error.error_code), _reason(error.message)) from error
        except UnicodeDecodeError as error:  # of TensorFlow's own message, which quotes an input that is no UTF-8
            message = error.object.decode(errors="replace")
            raise ServingError(Code.INVALID_ARGUMENT, _reason(message)) from error

    @contextmanager
    def _one_at_first(self, function: frozen.SignatureFunction) -> Iterator[None]:
        """The first call prepares the graph, which takes seconds; others that came beside it would do so, too."""
        lock = self._first.get(id(function))
        if lock is None:
            yield
            return
        with lock:
            if id(function) in self._first:
                try:
                    yield
                finally:
                    self._first.pop(id(function), None)
                return
        yield


def _reason(message: str) -> str:
    """The sentence in a message of TensorFlow, which may stand behind a stack trace and before the graph's node."""
    head = ("Graph execution error", "Detected at node", "<stack traces", " ", "\t")
    lines = [line for line in message.splitlines() if line and not line.startswith(head)]
    reason = lines[0] if lines else message
    of_a_loop = r"^(?:{{function_node \S*}} )*(?:assertion failed: \[(.*?)\](?: .*)?)?"
    return re.sub(of_a_loop, r"\1", reason).strip()


def _read_signatures(folder: Path) -> tuple[dict[str, dict[str, Input]], dict[str, Any]]:
    saved_model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    graph = next(graph for graph in saved_model.meta_graphs if "serve" in graph.meta_info_def.tags)
    inputs = {
        name: {
            key: Input(
                dtype=types_pb2.DataType.Name(info.dtype).removeprefix("DT_").lower(),
                shape=tf.TensorShape(info.tensor_shape),
            )
            for key, info in signature.inputs.items()
        }
        for name, signature in graph.signature_def.items()
    }
    definitions = get_model_metadata_pb2.SignatureDefMap(signature_def=graph.signature_def)
    metadata = json_format.MessageToDict(
        definitions, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return inputs, metadata


def _read_batched(path: Path, inputs: Mapping[str, Mapping[str, Input]]) -> dict[str, tuple[str, ...]]:
    if not path.is_file():
        return {}
    try:
        batched = {name: tuple(alike) for name, alike in json.loads(path.read_bytes()).items()}
        if not all({*alike} <= {*inputs[name]} for name, alike in batched.items()):
            raise ValueError("no such input")
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ServingError(
            Code.INVALID_ARGUMENT, f"{path} does not name signatures with inputs of this model ({error})"
        ) from error
    return batched


def check_names(sent: Set[str], expected: Set[str]) -> None:
    """Refuses other inputs than a signature takes.

    Raises:
        ServingError: INVALID_ARGUMENT, with both.
    """
    if sent == expected:
        return

    def listed(names: Set[str]) -> str:
        return "{" + ",".join(sorted(names)) + "}"

    raise ServingError(
        Code.INVALID_ARGUMENT,
        f"input size does not match signature: {len(sent)}!={len(expected)} "
        f"len({listed(sent)}) != len({listed(expected)}). "
        f"Sent extra: {listed(sent - expected)}. Missing but required: {listed(expected - sent)}.",
    )


def _warm_up(servable: Servable, path: Path) -> None:
    """Replays recorded requests, so that the first real one does not pay for lazy initialisation.

    Source: TensorFlow Serving, "SavedModel Warmup".
    """
    if not path.is_file():
        return
    try:
        records = list(tf.data.TFRecordDataset(str(path)).take(MAX_WARMUP_RECORDS + 1).as_numpy_iterator())
    except tf.errors.DataLossError as error:
        raise ServingError(
            Code.DATA_LOSS, f"{error.message}. Please verify your warmup data is in TFRecord format."
        ) from error
    if len(records) > MAX_WARMUP_RECORDS:
        raise ServingError(
            Code.INVALID_ARGUMENT,
            f"Number of warmup records exceeds the maximum ({MAX_WARMUP_RECORDS}) at {path}",
        )
    for record in records:
        try:
            log = prediction_log_pb2.PredictionLog.FromString(record)
        except DecodeError as error:
            raise ServingError(
                Code.INVALID_ARGUMENT, f"Failed to parse warmup record: {record[:100]!r} from {path}"
            ) from error
        kind = log.WhichOneof("log_type")
        if kind != "predict_log":
            raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
        request = log.predict_log.request
        signature = request.model_spec.signature_name or "serving_default"
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        servable.check(signature, inputs)
        servable.run(signature, inputs)
        servable.examples.setdefault(signature, inputs)
