"""KServe's V2 inference protocol (Open Inference Protocol) over a model repository, as an ASGI application."""

import logging
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kerasdl.serving import kserve_tensor
from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.kserve_tensor import DATATYPES
from kerasdl.serving.predictor import Predictor
from kerasdl.serving.repository import State, VersionStatus
from kerasdl.serving.servable import Servable
from kerasdl.serving.tensor_json import parse_object
from kerasdl.serving.waiting import (
    FEW_NUMBERS,
    SMALL_BODY,
    BodyTooLargeError,
    Waiting,
    holds_many_values,
    json_response,
    server_version,
)

_PATHS = {
    "GET": re.compile(r"/v2(?:/health/(live|ready)|/models/([^/]+)(?:/versions/([0-9]{1,18}))?(/ready)?)?"),
    "POST": re.compile(
        r"/v2/(?:models/([^/]+)(?:/versions/([0-9]{1,18}))?/infer|repository/(?:(index)|models/[^/]+/(load|unload)))"
    ),
}
_STATES = {State.START: "LOADING", State.LOADING: "LOADING", State.AVAILABLE: "READY", State.END: "UNAVAILABLE"}

_log = logging.getLogger(__name__)


class _Target(NamedTuple):
    """What an inference asks for."""

    model: str
    version: int | None


class KserveApi:
    """Answers everything below `/v2`.

    A signature other than `serving_default` is asked for by the parameter `signature_name` of an inference.

    Args:
        predictor: answers.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor, self._waiting = predictor, Waiting(predictor)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        response = await self._waiting.reply(Request(scope, receive), self._respond, self._measure)
        if response is not None:
            await response(scope, receive, send)

    def _measure(self, request: Request, code: Code, seconds: float) -> None:
        target: _Target | None = getattr(request.state, "target", None)
        if target is not None:
            model = target.model if self._predictor.repository.known(target.model) else ""
            self._predictor.metrics.request(model, "predict", "REST", code, seconds)

    async def _respond(self, request: Request) -> Response:
        path = request.scope["raw_path"].decode("latin-1")
        found = _PATHS[request.method].fullmatch(path) if request.method in _PATHS else None
        if found is None:
            raise ServingError(Code.NOT_FOUND, f"No such request: {request.method} {path}")
        if request.method == "GET":
            return self._describe(*found.groups())
        name, version, index, change = found.groups()
        if index:
            return json_response(self._index(await self._waiting.body(request)))
        if change:
            raise ServingError(Code.UNIMPLEMENTED, f"Models {change} as their folders change, not on request")
        target = request.state.target = _Target(_decode(name), None if version is None else int(version))
        body = await self._waiting.body(request)
        return await self._waiting.answer(request, self._infer(target, body, request.headers))

    def _describe(self, health: str | None, model: str | None, version: str | None, ready: str | None) -> Response:
        if health == "live":
            return json_response({"live": True})
        if health == "ready":
            unavailable = self._predictor.unavailable()
            return json_response({"ready": not unavailable}, 503 if unavailable else 200)
        if model is None:
            known = {"name": "kerasdl", "version": server_version(), "extensions": ["binary_tensor_data"]}
            return json_response(known)
        target = _Target(_decode(model), None if version is None else int(version))
        servable = self._acquire(target)
        if ready:
            return json_response({"name": target.model, "ready": True})
        statuses = self._predictor.repository.status(target.model)
        return json_response(
            {
                "name": target.model,
                "versions": [str(number) for number, status in sorted(statuses.items()) if status.servable],
                "platform": "tensorflow_savedmodel",
                **_signatures(servable),
            }
        )

    def _acquire(self, target: _Target) -> Servable:
        """Returns a loaded model.

        Raises:
            ServingError: UNAVAILABLE for one that is to be loaded, or failed to; NOT_FOUND else.
        """
        try:
            return self._predictor.acquire(target.model, target.version, None)
        except ServingError:
            for version, status in self._predictor.repository.status(target.model, target.version).items():
                if status.state is not State.END or status.error:
                    reason = status.error.message if status.error else status.state.name
                    message = f"Model {target.model} version {version} is not ready: {reason}"
                    raise ServingError(Code.UNAVAILABLE, message) from None
            raise

    def _index(self, body: bytes) -> list[dict[str, str]]:
        only_ready = bool(body.strip()) and parse_object(body).get("ready") is True
        repository = self._predictor.repository
        return [
            _entry(name, version, status)
            for name in repository.names()
            for version, status in repository.status(name).items()
            if status.servable or not only_ready
        ]

    async def _infer(self, target: _Target, body: bytes, headers: Mapping[str, str]) -> Response:
        servable: Servable | None = None
        dtypes: Mapping[str, Mapping[str, str]] | ServingError
        try:
            servable = self._acquire(target)
            dtypes = servable.dtypes
        except ServingError as error:
            dtypes = error  # told if the body can be read at all
        model = "" if servable is None else target.model
        try:
            encoding = headers.get("content-encoding", "").lower()
            if encoding in ("gzip", "deflate"):
                packed = body
                body = await self._waiting.beside(model, lambda: self._waiting.inflated(packed, encoding))
            length = _header_length(headers)
            if len(body) <= SMALL_BODY:
                request = kserve_tensor.read_request(body, length, dtypes)
            elif not holds_many_values(body[:length]):
                request = await self._waiting.beside(model, lambda: kserve_tensor.read_request(body, length, dtypes))
            else:
                request = await self._predictor.apart.run(kserve_tensor.read_request, body, length, dtypes)
            assert servable is not None
            version = servable.version
            outputs = await self._predictor.submit(model, servable, request.signature, request.inputs).result()
            if sum(array.size for array in outputs.values()) <= FEW_NUMBERS:
                content, head = kserve_tensor.write_response(model, version, request, outputs)
            else:
                content, head = await self._waiting.beside(
                    model, lambda: kserve_tensor.write_response(model, version, request, outputs)
                )
        except (ServingError, BodyTooLargeError):
            raise
        except Exception as error:
            _log.exception("infer %s failed", target.model)
            raise ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}") from error
        if head is None:
            return Response(content, media_type="application/json")
        return Response(
            content, headers={"Inference-Header-Content-Length": str(head)}, media_type="application/octet-stream"
        )


def _header_length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("inference-header-content-length")
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ServingError(Code.INVALID_ARGUMENT, f"Inference-Header-Content-Length must be a number, not {text}")
    return int(text)


def _entry(name: str, version: int, status: VersionStatus) -> dict[str, str]:
    reason = status.error.message if status.error else ""
    return {"name": name, "version": str(version), "state": _STATES[status.state], "reason": reason}


def _signatures(servable: Servable) -> dict[str, Any]:
    """Tensors of `serving_default`, as the protocol has them, and those of every signature."""
    signatures = {
        name: {kind: [_tensor(key, info) for key, info in definition[kind].items()] for kind in ("inputs", "outputs")}
        for name, definition in servable.metadata["signature_def"].items()
        if definition["inputs"]
    }
    default = signatures.get("serving_default", {"inputs": [], "outputs": []})
    return {**default, "parameters": {"signature_name": "serving_default"}, "signatures": signatures}


def _tensor(name: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """A tensor of a signature; -1 stands for a size that is not known, and for the sizes of an unknown rank."""
    word = info["dtype"].removeprefix("DT_").lower()
    shape = info["tensor_shape"]
    sizes = [-1] if shape["unknown_rank"] else [int(size["size"]) for size in shape["dim"]]
    return {"name": name, "datatype": DATATYPES.get(word, word.upper()), "shape": sizes}


def _decode(text: str) -> str:
    return unquote_to_bytes(text.encode("latin-1")).decode("utf-8", "surrogateescape")
