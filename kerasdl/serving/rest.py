"""TensorFlow Serving's REST API over a model repository, and two health checks, as an ASGI application."""

import asyncio
import json
import logging
import re
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from kerasdl.serving import tensor_json
from kerasdl.serving.discovery import MAX_VERSION
from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.predictor import Predictor
from kerasdl.serving.servable import Servable

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

_SMALL_BODY = 64 * 2**10
"""Bytes of a body that is parsed at once: to hand it to another thread would take longer."""
_MANY_NUMBERS = 250_000
"""Commas of a body that is parsed in another process, since nothing else runs in this one meanwhile."""
_FEW_NUMBERS = 2_000
"""Numbers of an answer that is written at once."""

T = TypeVar("T")

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


def create_app(predictor: Predictor, *, metrics_path: str | None = None, cors: bool = False) -> Starlette:
    """Builds the web application.

    Args:
        predictor: answers.
        metrics_path: where Prometheus finds the metrics; None for nowhere.
        cors: whether browsers may hand the replies to pages from elsewhere.

    Returns:
        An ASGI application: `/v1/...`, `/healthz` (the process lives) and `/readyz` (every model answers).
    """

    async def live(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def ready(_: Request) -> Response:
        unavailable = predictor.unavailable()
        return _json({"ready": not unavailable, "unavailable": unavailable}, 503 if unavailable else 200)

    api = _RestApi(predictor, metrics_path, cors)
    return Starlette(routes=[Route("/healthz", live), Route("/readyz", ready), Mount("/", app=api)])


class _RestApi:
    def __init__(self, predictor: Predictor, metrics_path: str | None, cors: bool) -> None:
        self._predictor, self._limits, self._metrics = predictor, predictor.limits, predictor.metrics
        self._metrics_path, self._cors = metrics_path, cors
        self._max_body_bytes = round(self._limits.max_body_mib * 2**20)

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
            model = target.model if self._predictor.repository.known(target.model) else ""
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
        """Waits for an answer as long as its client does, and no longer than the limit; then the work ends."""
        compressed = request.headers.get("content-encoding", "").lower() == "gzip"
        answer = asyncio.ensure_future(self._predict(target, body, compressed))
        gone = asyncio.ensure_future(_gone(request))
        waited: set[asyncio.Future[Any]] = {answer, gone}
        try:
            await asyncio.wait(waited, timeout=self._limits.timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone.done():
                raise ClientDisconnect
            raise ServingError(Code.DEADLINE_EXCEEDED, f"No answer within {self._limits.timeout_seconds:g} seconds")
        finally:
            answer.cancel()
            gone.cancel()

    async def _predict(self, target: _Target, body: bytes, compressed: bool) -> Response:
        servable: Servable | None = None
        try:
            servable = self._predictor.acquire(target.model, target.version, target.label)
            asked = tensor_json.Asked(servable.dtypes, target.verb)
        except ServingError as error:
            asked = tensor_json.Asked(error, target.verb)  # told if the body can be read at all
        model = "" if servable is None else target.model
        try:
            if compressed:
                packed = body
                body = await self._beside(model, lambda: _inflate(packed, self._max_body_bytes))
            if len(body) <= _SMALL_BODY:
                signature, inputs, layout = tensor_json.read_request(body, asked)
            elif body.count(b",") <= _MANY_NUMBERS:
                signature, inputs, layout = await self._beside(model, lambda: tensor_json.read_request(body, asked))
            else:
                signature, inputs, layout = await self._predictor.apart.run(tensor_json.read_request, body, asked)
            assert servable is not None
            call = self._predictor.submit(model, servable, signature, inputs)
            try:
                outputs = await asyncio.wrap_future(call.future)
            finally:
                call.cancel()
            if sum(array.size for array in outputs.values()) <= _FEW_NUMBERS:
                content = tensor_json.encode_outputs(outputs, layout)
            else:
                content = await self._beside(model, lambda: tensor_json.encode_outputs(outputs, layout))
        except (ServingError, _BodyTooLargeError):
            raise
        except Exception as error:
            _log.exception("%s %s failed", target.verb, target.model)
            raise ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}") from error
        return Response(content, media_type="application/json")

    async def _beside(self, model: str, work: Callable[[], T]) -> T:
        """Runs work in a thread of a model; the empty name stands for requests that name none."""
        call = self._predictor.workers.submit(model, lambda _: work())
        try:
            return await asyncio.wrap_future(call.future)
        finally:
            call.cancel()

    def _describe(self, target: _Target) -> dict[str, object]:
        if not target.model:
            raise ServingError(Code.INVALID_ARGUMENT, "Missing model name in request.")
        if target.verb == "metadata":
            servable = self._predictor.acquire(target.model, target.version, target.label)
            spec = {"name": target.model, "signature_name": "", "version": str(servable.version)}
            return {"model_spec": spec, "metadata": {"signature_def": servable.metadata}}
        versions = self._predictor.repository.status(target.model, target.version)
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
