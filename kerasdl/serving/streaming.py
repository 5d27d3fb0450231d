"""Texts as they are written: server-sent events of every model that writes piece by piece."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar
from urllib.parse import unquote_to_bytes

import numpy as np
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from kerasdl.decoding.sampling import BLOCK
from kerasdl.serving import streaming_request
from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.predictor import Predictor
from kerasdl.serving.servable import Servable
from kerasdl.serving.waiting import Waiting, holds_many_values

_PATH = re.compile(r"/stream/([^/]+)(?:/versions/([0-9]{1,18})|/labels/([^/]+))?")
_OUTPUTS = {"begin": {"state"}, "advance": {"state", "text"}}
Arrays = dict[str, np.ndarray]
_CUT = "\N{REPLACEMENT CHARACTER}"

_log = logging.getLogger(__name__)


def route(predictor: Predictor, *, cors: bool = False) -> Mount:
    """Where the web application streams.

    Args:
        predictor: computes.
        cors: whether browsers may hand the replies to pages from elsewhere.
    """
    api = StreamingApi(predictor)
    return Mount("/stream", CORSMiddleware(api, ["*"], ["POST"], ["*"]) if cors else api)


class StreamingApi:
    """Answers `POST /stream/<model>`, also with `/versions/<number>` or `/labels/<label>` behind it.

    A model goes on with a prompt, or says in words what a picture shows; its signatures tell. The body is as
    `streaming_request` has it. The reply is server-sent events: `{"text": ...}` for each piece, then an event `done`
    with the number of characters, or an event `error`. What is wrong from the start has a status and a reply in JSON
    instead.

    Args:
        predictor: computes, each piece as a request of its own, so that those of several clients make a batch.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor, self._waiting = predictor, Waiting(predictor)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""

        def measure(request: Request, code: Code, seconds: float) -> None:
            if code is not Code.OK:  # else only the beginning is done
                self._measure(request, code, seconds)

        response = await self._waiting.reply(Request(scope, receive), self._respond, measure)
        if response is not None:
            await response(scope, receive, send)

    def _measure(self, request: Request, code: Code, seconds: float) -> None:
        model: str | None = getattr(request.state, "model", None)
        if model is not None:
            known = model if self._predictor.repository.known(model) else ""
            self._predictor.metrics.request(known, "stream", "REST", code, seconds)

    async def _respond(self, request: Request) -> Response:
        began = time.monotonic()
        path = request.scope["raw_path"].decode("latin-1")
        found = _PATH.fullmatch(path)
        if found is None or request.method != "POST":
            raise ServingError(
                Code.NOT_FOUND, f"No such request: {request.method} {path}; expected POST /stream/<model>"
            )
        model, version, label = (None if part is None else _decode(part) for part in found.groups())
        assert model is not None
        request.state.model = model
        body = await self._waiting.body(request)
        servable = self._predictor.acquire(model, None if version is None else int(version), label)
        writes = _kind(model, servable)
        inputs = await self._waiting.answer(request, self._read(model, writes.read, body))
        text = writes(self._predictor, model, servable, inputs)

        async def piece() -> str | None:
            if await request.is_disconnected():  # a quick piece does not look
                raise ClientDisconnect
            return await self._waiting.answer(request, text.piece())

        # The first piece comes before the head of the reply: what is wrong from the start has a status.
        return _Events(
            await _told(model, piece), piece, lambda code: self._measure(request, code, time.monotonic() - began), model
        )

    async def _read(self, model: str, read: Callable[[bytes], Arrays], body: bytes) -> Arrays:
        if holds_many_values(body):
            return await self._predictor.apart.run(read, body)
        return await self._waiting.beside(model, lambda: read(body))


class _Text(ABC):
    """A text that is under way.

    Attributes:
        begin: inputs of the signature of this name that such a model has, with TensorFlow's words for their types.
        advance: likewise.

    Args:
        predictor: computes.
        model: its name.
        servable: the loaded version.
        inputs: arrays of one row.
    """

    begin: ClassVar[Mapping[str, str]]
    advance: ClassVar[Mapping[str, str]]

    def __init__(self, predictor: Predictor, model: str, servable: Servable, inputs: Arrays) -> None:
        self._predictor, self._model, self._servable = predictor, model, servable
        self._inputs = inputs
        self._state: np.ndarray | None = None

    @classmethod
    def wanted(cls) -> dict[str, Mapping[str, str]]:
        """Inputs by signature."""
        return {"begin": cls.begin, "advance": cls.advance}

    @staticmethod
    @abstractmethod
    def read(body: bytes) -> Arrays:
        """The inputs that the body of a request gives."""

    async def piece(self) -> str | None:
        """The next characters; None at the end."""
        if self._state is None:
            self._state = (await self._run("begin", {name: self._inputs[name] for name in self.begin}))["state"]
        return await self._next()

    @abstractmethod
    async def _next(self) -> str | None:
        """The next characters, behind the state that is there now."""

    async def _run(self, signature: str, inputs: Arrays) -> Arrays:
        return await self._predictor.submit(self._model, self._servable, signature, inputs).result()


class _Continuation(_Text):
    """Goes on with a prompt."""

    begin: ClassVar = {"prompt": "string"}
    advance: ClassVar = {
        **{"state": "float", "start": "int32", "length": "int32", "temperature": "float"},
        **{"top_k": "int32", "top_p": "float", "seed": "int32"},
    }
    read = staticmethod(streaming_request.read)

    def __init__(self, predictor: Predictor, model: str, servable: Servable, inputs: Arrays) -> None:
        super().__init__(predictor, model, servable, inputs)
        self._length, self._done = int(inputs["length"][0]), 0

    async def _next(self) -> str | None:
        assert self._state is not None
        left = self._length - self._done
        ahead = min(BLOCK, left)
        while ahead:
            own = {"state": self._state, "start": np.array([self._done], np.int32)}
            given = {**self._inputs, **own, "length": np.array([ahead], np.int32)}
            outputs = await self._run("advance", {name: given[name] for name in self.advance})
            text: str = outputs["text"][0].decode(errors="replace")
            if text.endswith(_CUT) and ahead < left:
                ahead += 1  # bytes may end inside of a character: the piece is made anew, longer
                continue
            self._state, self._done = outputs["state"], self._done + ahead
            return text
        return None


class _Caption(_Text):
    """Says in words what a picture shows."""

    begin: ClassVar = {"image_bytes": "string"}
    advance: ClassVar = {"state": "float"}
    read = staticmethod(streaming_request.read_picture)

    async def _next(self) -> str | None:
        assert self._state is not None
        outputs = await self._run("advance", {"state": self._state})
        self._state = outputs["state"]
        return outputs["text"][0].decode(errors="replace") or None


_KINDS: dict[str, type[_Text]] = {"text": _Continuation, "caption": _Caption}


class _Events(Response):
    """Sends a text as it is made.

    Args:
        first: piece.
        piece: gives the next one, None at the end.
        measure: receives how it ended.
        model: name, for the log.
    """

    def __init__(
        self,
        first: str | None,
        piece: Callable[[], Awaitable[str | None]],
        measure: Callable[[Code], None],
        model: str,
    ) -> None:
        # The second header keeps nginx from gathering the events.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(headers=headers, media_type="text/event-stream")
        del self.headers["content-length"]
        self._first, self._piece, self._measure, self._model = first, piece, measure, model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it all."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        code, characters, text = Code.OK, 0, self._first
        try:
            while text is not None:
                characters += len(text)
                await send({"type": "http.response.body", "body": _event({"text": text}), "more_body": True})
                text = await _told(self._model, self._piece)
            last = _event({"characters": characters}, "done")
        except ServingError as error:
            code, last = error.code, _event({"error": error.message}, "error")
        except ClientDisconnect:
            code, last = Code.CANCELLED, b""
        except asyncio.CancelledError:  # the server was told to stop, and the time of grace is over
            code, last = Code.UNAVAILABLE, _event({"error": "The server stops"}, "error")
        self._measure(code)
        await send({"type": "http.response.body", "body": last, "more_body": False})


async def _told(model: str, piece: Callable[[], Awaitable[str | None]]) -> str | None:
    """A piece; a mistake in the server is logged, and becomes a ServingError."""
    try:
        return await piece()
    except (ServingError, ClientDisconnect):
        raise
    except Exception as error:
        _log.exception("stream %s failed", model)
        raise ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}") from error


def _event(content: dict[str, Any], name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + f"data: {json.dumps(content)}\n\n".encode()


def kind(servable: Servable) -> str | None:
    """What a model streams, by its signatures.

    Args:
        servable: a loaded version.

    Returns:
        `text` that goes on with a prompt, `caption` of a picture, or None for nothing.
    """
    return next((name for name, text in _KINDS.items() if _fits(text, servable)), None)


def _fits(text: type[_Text], servable: Servable) -> bool:
    definitions = servable.metadata["signature_def"]
    return all(
        servable.dtypes.get(name) == inputs and _OUTPUTS[name] <= {*definitions[name]["outputs"]}
        for name, inputs in text.wanted().items()
    )


def _kind(model: str, servable: Servable) -> type[_Text]:
    """How a model writes a text piece by piece.

    Raises:
        ServingError: INVALID_ARGUMENT, when it does not.
    """
    if (name := kind(servable)) is not None:
        return _KINDS[name]
    expected = []
    for text in _KINDS.values():
        takes = (", ".join(f"{key}: {dtype}" for key, dtype in inputs.items()) for inputs in text.wanted().values())
        expected.append("begin that takes {} and advance that takes {}".format(*takes))
    raise ServingError(
        Code.INVALID_ARGUMENT,
        f"Model {model} writes no text piece by piece; expected signatures {', or '.join(expected)}; begin gives "
        "state, advance state and text",
    )


def _decode(text: str) -> str:
    return unquote_to_bytes(text.encode("latin-1")).decode("utf-8", "surrogateescape")
