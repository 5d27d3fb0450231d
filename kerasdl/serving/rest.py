"""TensorFlow Serving's REST API over a model repository, and two health checks, as an ASGI application."""

import asyncio
import json
import logging
import os
import re
import time
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from kerasdl.frozen import Cancellation
from kerasdl.serving import pictures, tensor_json
from kerasdl.serving.discovery import MAX_VERSION
from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.limits import Limits
from kerasdl.serving.metrics import Metrics
from kerasdl.serving.repository import ModelRepository
from kerasdl.serving.servable import Input, Servable
from kerasdl.serving.workers import Workers

_HTTP_STATUS = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}

_MODEL = r"/v1/models/([^/:]+)"
_WHICH = r"(?:/versions/([0-9]+)|/labels/([^/:]+))?"
_PATHS = {
    "POST": re.compile(rf"{_MODEL}{_WHICH}:(classify|regress|predict)", re.IGNORECASE),
    "GET": re.compile(rf"/v1/models(?:/([^/:]+))?{_WHICH}(?:/(metadata))?", re.IGNORECASE),
}

_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}

_log = logging.getLogger(__name__)


class _Target(NamedTuple):
    """What a URL asks for."""

    model: str
    version: int | None
    label: str | None
    verb: str  # predict, classify, regress, metadata; empty for the status


class _BodyTooLargeError(Exception):
    pass


class _BodyTooSlowError(Exception):
    pass


def create_app(
    repository: ModelRepository, limits: Limits, *, metrics_path: str | None = None, cors: bool = False
) -> Starlette:
    """Builds the web application.

    Args:
        repository: models to serve.
        limits: of requests.
        metrics_path: where Prometheus finds the metrics; None for nowhere.
        cors: whether browsers may hand the replies to pages from elsewhere.

    Returns:
        An ASGI application: `/v1/...`, `/healthz` (the process lives) and `/readyz` (every model answers); its
        `state.workers` are what runs the models, its `state.metrics` what is measured.
    """
    # Four threads a core, as in TensorFlow Serving; a model computes without the interpreter lock.
    workers = Workers(4 * (os.cpu_count() or 1), limits.max_waiting)

    async def live(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def ready(_: Request) -> Response:
        unavailable = repository.unavailable() | workers.full()
        return _json({"ready": not unavailable, "unavailable": unavailable}, 503 if unavailable else 200)

    metrics = Metrics()
    api = _RestApi(repository, workers, limits, metrics, metrics_path, cors)
    app = Starlette(routes=[Route("/healthz", live), Route("/readyz", ready), Mount("/", app=api)])
    app.state.workers, app.state.metrics = workers, metrics
    return app


class _RestApi:
    def __init__(
        self,
        repository: ModelRepository,
        workers: Workers,
        limits: Limits,
        metrics: Metrics,
        metrics_path: str | None,
        cors: bool,
    ) -> None:
        self._repository, self._workers, self._limits = repository, workers, limits
        self._metrics, self._metrics_path, self._cors = metrics, metrics_path, cors
        self._max_body_bytes = round(limits.max_body_mib * 2**20)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        began = time.monotonic()
        response: Response | None = None
        try:
            code, response = Code.OK, await self._respond(request)
        except ServingError as error:
            code, status = error.code, _HTTP_STATUS[error.code]
            response = _json({"error": error.message}, status, {"Retry-After": "1"} if status == 429 else None)
        except _BodyTooLargeError:
            code = Code.INVALID_ARGUMENT
            response = _json({"error": f"Request body is longer than {self._max_body_bytes} bytes"}, 413)
        except _BodyTooSlowError:
            code, words = Code.DEADLINE_EXCEEDED, f"did not arrive within {self._limits.read_seconds:g} seconds"
            response = _json({"error": f"Request body {words}"}, 408, {"Connection": "close"})
        except ClientDisconnect:
            code = Code.CANCELLED
        except asyncio.CancelledError:  # the server was told to stop, and the time of grace is over
            code = Code.UNAVAILABLE
            response = _json({"error": "The server stops"}, 503, {"Connection": "close"})
        self._measure(request, code, time.monotonic() - began)
        if response is not None:
            if self._cors and request.url.path.lower().startswith("/v1/"):
                response.headers.update(_CORS)
            await response(scope, receive, send)

    def _measure(self, request: Request, code: Code, seconds: float) -> None:
        target: _Target | None = getattr(request.state, "target", None)
        if target is not None and request.method == "POST":
            model = target.model if self._repository.known(target.model) else ""
            self._metrics.request(model, target.verb, "REST", code, seconds)

    async def _respond(self, request: Request) -> Response:
        # Percent-encoding is part of the match, so the path is taken as it came.
        path = request.scope["raw_path"].decode("latin-1")
        if query := request.scope["query_string"].decode("latin-1"):
            path = f"{path}?{query}"
        if path.partition("?")[0] == self._metrics_path:
            return self._tell_metrics(path)
        if not path.lower().startswith("/v1/"):
            return HTMLResponse("<html><body><h1>Not Found</h1></body></html>", status_code=404)
        if request.method == "OPTIONS":
            allowed = re.match("https?://", request.headers.get("origin", ""))
            return Response(status_code=200 if allowed else 400)
        target = request.state.target = _match(request.method, path)
        if target.version is not None and target.version > MAX_VERSION:
            return Response(status_code=400, media_type="application/json")
        if request.method == "GET":
            return _json(self._describe(target))
        try:
            body = await asyncio.wait_for(self._read(request), self._limits.read_seconds)
        except TimeoutError:
            raise _BodyTooSlowError from None
        return await self._answer(request, target, body)

    def _tell_metrics(self, path: str) -> Response:
        headers = {"Content-Type": "text/plain"}
        if path != self._metrics_path:
            return Response(f"Unexpected path: {path}. Should be {self._metrics_path}", 400, headers)
        return Response(self._metrics.page(), 200, headers)

    async def _read(self, request: Request) -> bytes:
        """Reads the body, but no further than the limit."""
        if int(request.headers.get("content-length", 0)) > self._max_body_bytes:
            raise _BodyTooLargeError
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_body_bytes:
                raise _BodyTooLargeError
        return bytes(body)

    async def _answer(self, request: Request, target: _Target, body: bytes) -> Response:
        """Runs a model beside the event loop; what nobody waits for any more is ended."""
        compressed = request.headers.get("content-encoding", "").lower() == "gzip"
        call = self._workers.submit(
            self._whose_threads(target), lambda cancellation: self._predict(target, body, compressed, cancellation)
        )
        answer, gone = asyncio.wrap_future(call.future), asyncio.ensure_future(_gone(request))
        waited: set[asyncio.Future[Any]] = {answer, gone}
        try:
            await asyncio.wait(waited, timeout=self._limits.timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone.done():
                raise ClientDisconnect
            raise ServingError(Code.DEADLINE_EXCEEDED, f"No answer within {self._limits.timeout_seconds:g} seconds")
        finally:
            call.cancel()
            answer.cancel()
            gone.cancel()

    def _whose_threads(self, target: _Target) -> str:
        """The model's; those of all requests together that name none."""
        try:
            self._acquire(target)
        except ServingError:
            return ""
        return target.model

    def _predict(self, target: _Target, body: bytes, compressed: bool, cancellation: Cancellation) -> Response:
        if compressed:
            body = _inflate(body, self._max_body_bytes)
        try:
            request = tensor_json.parse_object(body)
            signature = tensor_json.signature_name(request)
            servable = self._acquire(target)
            expected = servable.inputs(signature)
            if target.verb != "predict":
                tensor_json.check_examples(request)
                raise ServingError(
                    Code.INVALID_ARGUMENT,
                    f"Expected a signature with method_name tensorflow/serving/{target.verb}, but exports of "
                    "Keras have only tensorflow/serving/predict; send the inputs to :predict",
                )
            dtypes = {name: spec.dtype for name, spec in expected.items()}
            inputs, layout = tensor_json.decode_inputs(request, dtypes)
            self._check_size(inputs, expected)
            outputs = servable.predict(signature, inputs, cancellation)
            if cancellation.cancelled:  # to write millions of numbers takes long, too
                raise ServingError(Code.CANCELLED, "Nobody waits for the answer")
            content = tensor_json.encode_outputs(outputs, layout)
        except ServingError:
            raise
        except Exception as error:
            _log.exception("%s %s failed", target.verb, target.model)
            raise ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}") from error
        return Response(content, media_type="application/json")

    def _check_size(self, inputs: Mapping[str, np.ndarray], expected: Mapping[str, Input]) -> None:
        """What is not refused here fits into memory: activations take a hundred times what a request does."""
        for name, array in inputs.items():
            shape = expected[name].shape
            if shape.rank and shape[0] is None and len(array) > self._limits.max_examples:
                raise ServingError(
                    Code.INVALID_ARGUMENT,
                    f'Input "{name}" holds {len(array):,} examples; this server takes '
                    f"{self._limits.max_examples:,} in a request at most",
                )
            if array.dtype == object:
                pictures.check(array.flat, round(self._limits.max_megapixels * 1e6))

    def _describe(self, target: _Target) -> dict[str, object]:
        if not target.model:
            raise ServingError(Code.INVALID_ARGUMENT, "Missing model name in request.")
        if target.verb == "metadata":
            servable = self._acquire(target)
            spec = {"name": target.model, "signature_name": "", "version": str(servable.version)}
            return {"model_spec": spec, "metadata": {"signature_def": servable.metadata}}
        versions = self._repository.status(target.model, target.version)
        return {
            "model_version_status": [
                {
                    "version": str(version),
                    "state": status.state.name,
                    "status": {
                        "error_code": (status.error.code if status.error else Code.OK).name,
                        "error_message": status.error.message if status.error else "",
                    },
                }
                for version, status in versions.items()
            ]
        }

    def _acquire(self, target: _Target) -> Servable:
        version = target.version if target.label is None else self._repository.labelled(target.model, target.label)
        return self._repository.acquire(target.model, version)


def _match(method: str, path: str) -> _Target:
    found = _PATHS[method].fullmatch(path) if method in _PATHS else None
    # The match ignores case, but a verb in capitals is none.
    if found is None or (method == "POST" and not found[4].islower()):
        raise ServingError(Code.INVALID_ARGUMENT, f"Malformed request: {method} {path}")
    model, version, label, verb = found.groups()
    return _Target(
        model=_decode(model or ""),
        version=None if version is None else _number(version),
        label=None if label is None else _decode(label),
        verb=verb or "",
    )


def _number(digits: str) -> int:
    """Reads a version; only the beginning of one that is too large anyway, since Python limits int()."""
    return int((digits.lstrip("0") or "0")[:20])


async def _gone(request: Request) -> None:
    """Returns when the client of a request that was read whole has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # Not starlette's JSONResponse: it fails on the lone surrogates that stand for bytes which are no UTF-8.
    return Response(json.dumps(content), status, headers, media_type="application/json")


def _decode(text: str) -> str:
    return unquote_to_bytes(text.encode("latin-1")).decode("utf-8", "surrogateescape")


def _inflate(body: bytes, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        inflated = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise ServingError(Code.INVALID_ARGUMENT, f"Cannot inflate the gzip body: {error}") from None
    if len(inflated) > max_bytes:
        raise _BodyTooLargeError
    if not stream.eof:
        raise ServingError(Code.INVALID_ARGUMENT, "Cannot inflate the gzip body: it is cut short")
    return inflated
