"""TensorFlow Serving's gRPC API over a predictor, with the standard services for health and reflection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format, wrappers_pb2
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from tensorflow.core.framework import types_pb2
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2,
    predict_pb2,
    prediction_service_pb2,
    regression_pb2,
)
from tensorflow_serving.apis.model_pb2 import ModelSpec

from kerasdl.errors import UserError
from kerasdl.serving.access import NO_KEY, Keys, shown_key
from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.predictor import Predictor
from kerasdl.serving.servable import Servable, check_names

_FEW_NUMBERS = 2_000
"""Numbers of a request or an answer that are read or written at once: to hand them to another thread takes longer."""
_SMALL_TENSOR = 64 * 2**10
"""Bytes of a tensor that is read in Python."""
_MAX_DETAILS = 1024
"""Bytes of the text of an error, as in TensorFlow Serving; HTTP/2 bears no long ones."""

_HEALTH_SECONDS = 1.0
_SERVICES = (
    prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
)

T = TypeVar("T")

_log = logging.getLogger(__name__)


class GrpcServer:
    """Answers beside the HTTP server, in its event loop.

    Args:
        predictor: answers.
        listener: holds the port until the start, so that no other program takes it meanwhile.
        keys: of which a client must show one, but for its health checks; None for none.
        certificate: files of the certificate and its private key, for TLS; None for none.
    """

    def __init__(
        self,
        predictor: Predictor,
        listener: socket.socket,
        keys: Keys | None = None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        self._predictor, self._listener = predictor, listener
        self._keys, self._certificate = keys, certificate
        self._api = _Api(predictor)

    async def start(self) -> None:
        """Takes the port over.

        Raises:
            UserError: another program was quicker.
        """
        limits = self._predictor.limits
        self._stopping = asyncio.Event()
        self._server = grpc.aio.server(
            interceptors=[] if self._keys is None else [_Guard(self._keys)],
            maximum_concurrent_rpcs=limits.max_connections,
            options=[
                ("grpc.so_reuseport", 0),  # else two servers could share a port without a word
                ("grpc.max_receive_message_length", _max_bytes(self._predictor)),
                ("grpc.max_allowed_incoming_connections", limits.max_connections),
                ("grpc.server_handshake_timeout_ms", math.ceil(limits.read_seconds * 1000)),
            ],
        )
        self._server.add_generic_rpc_handlers(self._api.handlers())
        health_pb2_grpc.add_HealthServicer_to_server(_Health(self._predictor, self._stopping), self._server)
        names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(names, self._stopping), self._server)
        host, port = self._listener.getsockname()[:2]
        self._listener.close()
        try:
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            if self._certificate is None:
                self._server.add_insecure_port(address)
            else:
                chain, key = (path.read_bytes() for path in self._certificate)
                self._server.add_secure_port(address, grpc.ssl_server_credentials([(key, chain)]))
        except RuntimeError:
            raise UserError(f"cannot listen on {host} port {port} for gRPC; choose another --grpc-port") from None
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """Takes no more calls; ends those that are not done within a time."""
        self._stopping.set()
        self._api.reloads.shutdown(wait=False, cancel_futures=True)
        await self._server.stop(seconds)
        if self._api.calls:  # which are ended; the event loop has to last until they know
            await asyncio.wait(self._api.calls, timeout=5)


class _Guard(grpc.aio.ServerInterceptor):
    """Refuses who shows no key, before the request is read."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        if details.method.startswith(f"/{health.SERVICE_NAME}/"):
            return await continuation(details)
        shown = b""
        for name, value in details.invocation_metadata:
            shown = shown_key(name.encode(), value.encode() if isinstance(value, str) else value) or shown
        if self._keys.admit(shown):
            return await continuation(details)
        return grpc.stream_stream_rpc_method_handler(_refuse)


async def _refuse(requests: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, NO_KEY)


class _Method(NamedTuple):
    """A method with one request and one response.

    Attributes:
        request: type of its request.
        answer: makes the response.
        verb: under which it is measured; empty for what is not.
        limited: whether a model has to answer within the time of the limits.
    """

    request: type[Message]
    answer: Callable[[Any], Awaitable[Message]]
    verb: str = ""
    limited: bool = True


class _Api:
    """The methods of TensorFlow Serving.

    Attributes:
        calls: that are under way.
        reloads: thread in which a new configuration is loaded.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor, self._repository = predictor, predictor.repository
        self.calls: set[asyncio.Task[Any]] = set()
        self.reloads = ThreadPoolExecutor(1, thread_name_prefix="reload")

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        prediction = {
            "Predict": _Method(predict_pb2.PredictRequest, self._predict, "predict"),
            "Classify": _Method(classification_pb2.ClassificationRequest, self._classify, "classify"),
            "Regress": _Method(regression_pb2.RegressionRequest, self._regress, "regress"),
            "MultiInference": _Method(inference_pb2.MultiInferenceRequest, self._infer, "multi_inference"),
            "GetModelMetadata": _Method(get_model_metadata_pb2.GetModelMetadataRequest, self._metadata),
        }
        models = {
            "GetModelStatus": _Method(get_model_status_pb2.GetModelStatusRequest, self._status),
            "HandleReloadConfigRequest": _Method(model_management_pb2.ReloadConfigRequest, self._reload, limited=False),
        }
        return [
            grpc.method_handlers_generic_handler(
                service, {name: self._handler(method) for name, method in methods.items()}
            )
            for service, methods in zip(_SERVICES, (prediction, models), strict=True)
        ]

    def _handler(self, method: _Method) -> grpc.RpcMethodHandler:
        async def handle(messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
            began, request, code, details = time.monotonic(), method.request(), Code.CANCELLED, ""
            task = asyncio.current_task()
            assert task is not None
            self.calls.add(task)
            task.add_done_callback(self.calls.discard)
            try:
                await self._read(request, messages)
                response = await self._answer(method, request)
                code = Code.OK
            except ServingError as error:
                code, details = error.code, _details(error.message)
            except asyncio.CancelledError:
                if context.time_remaining() == 0:
                    code = Code.DEADLINE_EXCEEDED
                raise
            finally:
                self._measure(method, request, code, time.monotonic() - began)
            if code is not Code.OK:
                await context.abort(grpc.StatusCode[code.name], details)
            return response.SerializeToString()

        # As a stream of requests, of which there is one: else a client could hold a call open for ever by sending half
        # of its request.
        return grpc.stream_unary_rpc_method_handler(handle)

    def _measure(self, method: _Method, request: Message, code: Code, seconds: float) -> None:
        if method.verb:
            name = _spec(request).name
            model = name if self._repository.known(name) else ""
            self._predictor.metrics.request(model, method.verb, "GRPC", code, seconds)

    async def _read(self, request: Message, messages: AsyncIterator[bytes]) -> None:
        seconds = self._predictor.limits.read_seconds
        try:
            async with asyncio.timeout(seconds):
                message = await anext(messages, None)
        except TimeoutError:
            raise ServingError(Code.DEADLINE_EXCEEDED, f"Request did not arrive within {seconds:g} seconds") from None
        if message is None:
            await asyncio.sleep(0.1)  # after a message that was too large, in which the library ends the call
            raise _invalid("Malformed request: it is empty")
        try:
            request.MergeFromString(message)
        except DecodeError:
            raise _invalid(f"Malformed request: it is no {request.DESCRIPTOR.full_name}") from None

    async def _answer(self, method: _Method, request: Message) -> Message:
        seconds = self._predictor.limits.timeout_seconds
        try:
            async with asyncio.timeout(seconds if method.limited else None) as limit:
                return await method.answer(request)
        except ServingError:
            raise
        except Exception as error:
            if limit.expired():
                raise ServingError(Code.DEADLINE_EXCEEDED, f"No answer within {seconds:g} seconds") from None
            _log.exception("%s failed", request.DESCRIPTOR.name)
            raise ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}") from error

    async def _predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        model, signature, servable = self._acquire(request)
        if signature not in servable.dtypes:
            raise ServingError(Code.FAILED_PRECONDITION, f'Serving signature key "{signature}" not found.')
        check_names(set(request.inputs), servable.dtypes[signature].keys())
        _check_filter(request.output_filter, servable.metadata["signature_def"][signature]["outputs"])

        def read() -> dict[str, np.ndarray]:
            dtypes, most = servable.dtypes[signature], _max_bytes(self._predictor)
            return {name: read_tensor(name, tensor, dtypes[name], most) for name, tensor in request.inputs.items()}

        few = sum(math.prod(_sizes(tensor)) for tensor in request.inputs.values()) <= _FEW_NUMBERS
        inputs = read() if few else await self._beside(model, read)
        outputs = await self._predictor.submit(model, servable, signature, inputs).result()
        wanted = {name: outputs[name] for name in request.output_filter or outputs}

        def write() -> predict_pb2.PredictResponse:
            response = predict_pb2.PredictResponse()
            _name(response.model_spec, model, servable.version, signature)
            for name, array in wanted.items():
                write_tensor(array, response.outputs[name])
            return response

        few = sum(array.size for array in wanted.values()) <= _FEW_NUMBERS
        return write() if few else await self._beside(model, write)

    async def _classify(self, request: classification_pb2.ClassificationRequest) -> Message:
        _, signature, servable = self._acquire(request)
        raise _no_such_method(servable, signature, "classify", "No signature was found with the name")

    async def _regress(self, request: regression_pb2.RegressionRequest) -> Message:
        _, signature, servable = self._acquire(request)
        raise _no_such_method(servable, signature, "regress", "No signature was found with the name")

    async def _infer(self, request: inference_pb2.MultiInferenceRequest) -> Message:
        task = request.tasks[0] if request.tasks else inference_pb2.InferenceTask(model_spec=ModelSpec())
        _, signature, servable = self._acquire(task)
        verb = task.method_name.removeprefix("tensorflow/serving/")
        if verb not in ("classify", "regress"):
            raise ServingError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        raise _no_such_method(servable, signature, verb, "Requested signature not found in model graph")

    async def _metadata(self, request: get_model_metadata_pb2.GetModelMetadataRequest) -> Message:
        if not request.HasField("model_spec"):
            raise _invalid("Missing ModelSpec")
        if not request.metadata_field:
            raise _invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise _invalid(f"Metadata field {field} is not supported")
        model, _, servable = self._acquire(request)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        _name(response.model_spec, model, servable.version)
        definitions = json_format.ParseDict(servable.metadata, get_model_metadata_pb2.SignatureDefMap())
        response.metadata["signature_def"].Pack(definitions)
        return response

    async def _status(self, request: get_model_status_pb2.GetModelStatusRequest) -> Message:
        if not request.HasField("model_spec"):
            raise _invalid("Missing ModelSpec")
        spec = request.model_spec
        response = get_model_status_pb2.GetModelStatusResponse()
        version = spec.version.value if spec.HasField("version") else None
        for number, status in self._repository.status(spec.name, version).items():
            told = response.model_version_status.add(version=number, state=status.state.name)
            if status.error is not None:
                told.status.error_code = int(status.error.code)
                told.status.error_message = _text(status.error.message)
        return response

    async def _reload(self, request: model_management_pb2.ReloadConfigRequest) -> Message:
        if request.config.WhichOneof("config") != "model_config_list":
            raise _invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            )
        before = self._repository.unavailable()
        await asyncio.get_running_loop().run_in_executor(self.reloads, self._repository.reload, request.config)
        failed = {name: why for name, why in self._repository.unavailable().items() if name not in before}
        if failed:
            reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
            raise ServingError(Code.UNKNOWN, f"{len(failed)} servable(s) did not become available: {reasons}")
        return model_management_pb2.ReloadConfigResponse(status={})

    def _acquire(self, request: Any) -> tuple[str, str, Servable]:
        """The name of the model, the name of the signature, and the loaded version that a request names."""
        if not request.HasField("model_spec"):
            raise _invalid("Missing ModelSpec")
        spec = request.model_spec
        if not spec.name:
            raise _invalid("ModelSpec has no name specified.")
        version = spec.version.value if spec.HasField("version") else None
        label = spec.version_label if spec.HasField("version_label") else None
        servable = self._predictor.acquire(spec.name, version, label)
        return spec.name, spec.signature_name or "serving_default", servable

    async def _beside(self, model: str, work: Callable[[], T]) -> T:
        """Runs work in a thread of a model."""
        return await self._predictor.workers.submit(model, lambda _: work()).result()


def read_tensor(name: str, tensor: TensorProto, dtype: str, max_bytes: int) -> np.ndarray:
    """Reads an input.

    Args:
        name: of the input.
        tensor: as sent.
        dtype: TensorFlow's word for the data type that the signature takes.
        max_bytes: of the array; few bytes of a message may say that a value is to be repeated.

    Returns:
        The array; strings as an object array of bytes.

    Raises:
        ServingError: INVALID_ARGUMENT, for another data type or a malformed tensor.
    """
    if (sent := _dtype_word(tensor.dtype)) != dtype:
        raise _invalid(f'Input "{name}" is of type {sent}, but the signature takes {dtype}')
    sizes = _sizes(tensor)
    if tensor.tensor_shape.unknown_rank or min(sizes, default=0) < 0:
        raise _invalid(f'Input "{name}" is a malformed tensor: its shape is not known')
    known = tf.as_dtype(tensor.dtype)
    needed = math.prod(sizes) * (np.dtype(object).itemsize if dtype == "string" else known.size)
    if needed > max_bytes:
        raise _invalid(f'Input "{name}" takes {needed:,} bytes; this server takes {max_bytes:,} at most')
    try:
        if tensor.tensor_content or len(message := tensor.SerializeToString()) <= _SMALL_TENSOR:
            return tf.make_ndarray(tensor)
        # Of a million numbers in a field of their own: 6 ms, and 81 ms above, in which nothing else runs.
        return tf.io.parse_tensor(message, known).numpy()
    except (ValueError, TypeError, OverflowError, tf.errors.InvalidArgumentError):
        raise _invalid(f'Input "{name}" is a malformed tensor: its values do not fit its shape') from None


_PACKED = {"float32": 5, "float64": 6, "complex64": 9, "complex128": 12}
"""Numbers of the fields whose bytes in a message are those of the array."""
_FIELDS = {"int64": "int64_val", "uint32": "uint32_val", "uint64": "uint64_val", "bool": "bool_val"}


def write_tensor(array: np.ndarray, tensor: TensorProto) -> None:
    """Writes an output into the field for its data type, where TensorFlow Serving has it and clients look for it.

    Args:
        array: the output; strings as an object array of bytes.
        tensor: receives it; empty before.
    """
    kind, flat = array.dtype.name, array.ravel()
    tensor.dtype = tf.string.as_datatype_enum if kind == "object" else tf.as_dtype(array.dtype).as_datatype_enum
    tensor.tensor_shape.SetInParent()
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if kind in _PACKED:
        if array.size:
            # A packed field is its number, its length and its bytes. Of a million numbers: 2 ms, and 90 ms one by one.
            field = wrappers_pb2.BytesValue(value=flat.tobytes()).SerializeToString()
            tensor.MergeFromString(bytes([_PACKED[kind] << 3 | 2]) + field[1:])
    elif kind == "object":
        tensor.string_val.extend(flat.tolist())
    elif kind in ("float16", "bfloat16"):
        tensor.half_val.extend(flat.view(np.uint16).tolist())
    else:
        getattr(tensor, _FIELDS.get(kind, "int_val")).extend(flat.tolist())


class _Health(health_pb2_grpc.HealthServicer):
    """The server as a whole and each service serve while every model answers; the server stops serving at its end."""

    def __init__(self, predictor: Predictor, stopping: asyncio.Event) -> None:
        self._predictor, self._stopping = predictor, stopping

    def _status(self, service: str) -> health_pb2.HealthCheckResponse:
        status = health_pb2.HealthCheckResponse
        if service not in ("", *_SERVICES):
            return status(status=status.SERVICE_UNKNOWN)
        ready = not self._stopping.is_set() and not self._predictor.unavailable()
        return status(status=status.SERVING if ready else status.NOT_SERVING)

    async def Check(self, request: Any, context: grpc.aio.ServicerContext) -> health_pb2.HealthCheckResponse:
        """What it is now."""
        response = self._status(request.service)
        if response.status == response.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Unknown service {_details(request.service)}")
        return response

    async def Watch(
        self, request: Any, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """What it is now, and every change of it until the server stops."""
        told = None
        while True:
            last = self._stopping.is_set()
            response = self._status(request.service)
            if response != told:
                yield response
                told = response
            if last:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _HEALTH_SECONDS)


class _Reflection(reflection.aio.ReflectionServicer):
    """Ends its streams when the server stops, which would wait for them otherwise."""

    def __init__(self, names: Iterable[str], stopping: asyncio.Event) -> None:
        super().__init__(names)
        self._stopping = stopping

    async def ServerReflectionInfo(
        self, request_iterator: AsyncIterator[Any], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Any]:
        """Answers a stream of questions."""
        async for response in super().ServerReflectionInfo(self._until_stop(request_iterator), context):
            yield response

    async def _until_stop(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            while True:
                following = asyncio.ensure_future(anext(requests, None))
                await asyncio.wait([following, stop], return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    return
                if (request := following.result()) is None:
                    return
                yield request
        finally:
            stop.cancel()


def _max_bytes(predictor: Predictor) -> int:
    return round(predictor.limits.max_body_mib * 2**20)


def _spec(request: Any) -> ModelSpec:
    if isinstance(request, inference_pb2.MultiInferenceRequest):
        return request.tasks[0].model_spec if request.tasks else ModelSpec()
    return request.model_spec


def _name(spec: ModelSpec, model: str, version: int, signature: str = "") -> None:
    spec.name, spec.version.value, spec.signature_name = model, version, signature


def _check_filter(names: Iterable[str], outputs: Iterable[str]) -> None:
    seen = set()
    for name in names:
        if name not in outputs:
            raise _invalid(
                f"output tensor alias not found in signature: {name} "
                f"Outputs expected to be in the set {{{','.join(sorted(outputs))}}}."
            )
        if name in seen:
            raise _invalid(f"duplicate output tensor alias: {name}")
        seen.add(name)


def _no_such_method(servable: Servable, signature: str, verb: str, unknown: str) -> ServingError:
    """The answer to what exports with predict signatures alone do not do."""
    definition = servable.metadata["signature_def"].get(signature)
    if definition is None:
        return _invalid(f"{unknown}: {signature}")
    noun = {"classify": "classification", "regress": "regression"}[verb]
    return _invalid(
        f"Expected {noun} signature method_name to be tensorflow/serving/{verb}. Was: {definition['method_name']}"
    )


def _sizes(tensor: TensorProto) -> list[int]:
    return [dimension.size for dimension in tensor.tensor_shape.dim]


def _dtype_word(number: int) -> str:
    try:
        return types_pb2.DataType.Name(number).removeprefix("DT_").lower()
    except ValueError:
        return str(number)


def _text(words: str) -> str:
    """What a message can carry: no half characters, such as those of file names that are not UTF-8."""
    return words.encode("utf-8", "replace").decode()


def _details(message: str) -> str:
    words = message.encode("utf-8", "replace")
    if len(words) <= _MAX_DETAILS:
        return words.decode()
    return words[:_MAX_DETAILS].decode("utf-8", "ignore") + "...TRUNCATED"


def _invalid(message: str) -> ServingError:
    return ServingError(Code.INVALID_ARGUMENT, message)
