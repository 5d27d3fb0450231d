"""The web application: TensorFlow Serving's REST API over a model repository, KServe's beside it, health checks."""

import logging
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kerasdl.serving import documentation, page, streaming, tensor_json
from kerasdl.serving.discovery import MAX_VERSION
from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.kserve import KserveApi
from kerasdl.serving.predictor import Predictor
from kerasdl.serving.servable import Servable
from kerasdl.serving.waiting import (
    FEW_NUMBERS,
    SMALL_BODY,
    BodyTooLargeError,
    Waiting,
    holds_many_values,
    json_response,
)

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


def create_app(
    predictor: Predictor, *, metrics_path: str | None = None, cors: bool = False, keyed: bool = False
) -> ASGIApp:
    """Builds the web application.

    Args:
        predictor: answers.
        metrics_path: where Prometheus finds the metrics; None for nowhere.
        cors: whether browsers may hand the replies to pages from elsewhere.
        keyed: whether clients need a key, for the documentation.

    Returns:
        An ASGI application: the page at `/`, `/v1/...`, `/v2/...`, `/stream/...`, `/docs`, `/openapi.json`, `/healthz`
        (the process lives) and `/readyz` (every model answers).
    """

    async def live(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def ready(_: Request) -> Response:
        unavailable = predictor.unavailable()
        return json_response({"ready": not unavailable, "unavailable": unavailable}, 503 if unavailable else 200)

    headers = None
    if cors:
        headers = (
            {**_CORS, "Access-Control-Allow-Headers": "Authorization, Content-Type, X-API-Key"} if keyed else _CORS
        )
    rest, kserve = _RestApi(predictor, metrics_path, headers if cors else None), KserveApi(predictor)
    others = Starlette(
        routes=[
            Route("/healthz", live),
            streaming.route(predictor, cors=cors),
            Route("/readyz", ready),
            Route("/v2", kserve),
            Mount("/v2", kserve),
            *documentation.routes(predictor, keyed=keyed),
            *page.routes(),
            Mount("/", rest),
        ]
    )

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        # Routes and middleware take as long as all else that happens to a small request.
        quick = scope["type"] == "http" and scope["path"].startswith("/v1/")
        await (rest if quick else others)(scope, receive, send)

    return application


class _RestApi:
    def __init__(self, predictor: Predictor, metrics_path: str | None, cors: Mapping[str, str] | None) -> None:
        self._predictor, self._metrics, self._waiting = predictor, predictor.metrics, Waiting(predictor)
        self._metrics_path, self._cors = metrics_path, cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await self._waiting.reply(request, self._respond, self._measure)
        if response is not None:
            if self._cors is not None and request.url.path.lower().startswith("/v1/"):
                response.headers.update(self._cors)
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
        if path.partition("?")[0] == self._metrics_path and request.method != "OPTIONS":  # which needs no key
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
            return json_response(self._describe(target))
        body = await self._waiting.body(request)
        compressed = request.headers.get("content-encoding", "").lower() == "gzip"
        return await self._waiting.answer(request, self._predict(target, body, compressed))

    def _tell_metrics(self, path: str) -> Response:
        headers = {"Content-Type": "text/plain"}
        if path != self._metrics_path:
            return Response(f"Unexpected path: {path}. Should be {self._metrics_path}", 400, headers)
        return Response(self._metrics.page(), 200, headers)

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
                body = await self._waiting.beside(model, lambda: self._waiting.inflated(packed, "gzip"))
            if len(body) <= SMALL_BODY:
                signature, inputs, layout = tensor_json.read_request(body, asked)
            elif not holds_many_values(body):
                signature, inputs, layout = await self._waiting.beside(
                    model, lambda: tensor_json.read_request(body, asked)
                )
            else:
                signature, inputs, layout = await self._predictor.apart.run(tensor_json.read_request, body, asked)
            assert servable is not None
            outputs = await self._predictor.submit(model, servable, signature, inputs).result()
            if sum(array.size for array in outputs.values()) <= FEW_NUMBERS:
                content = tensor_json.encode_outputs(outputs, layout)
            else:
                content = await self._waiting.beside(model, lambda: tensor_json.encode_outputs(outputs, layout))
        except (ServingError, BodyTooLargeError):
            raise
        except Exception as error:
            _log.exception("%s %s failed", target.verb, target.model)
            raise ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}") from error
        return Response(content, media_type="application/json")

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


def _decode(text: str) -> str:
    return unquote_to_bytes(text.encode("latin-1")).decode("utf-8", "surrogateescape")
