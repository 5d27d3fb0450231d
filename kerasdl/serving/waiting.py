"""What the HTTP APIs have in common: bodies, waits and replies to what goes wrong, all within the limits."""

import asyncio
import json
import time
import zlib
from collections.abc import Awaitable, Callable, Coroutine
from importlib import metadata
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.predictor import Predictor

HTTP_STATUS = {
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

SMALL_BODY = 64 * 2**10
"""Bytes of a body that is parsed at once: to hand it to another thread would take longer."""
_MANY_VALUES = 250_000
FEW_NUMBERS = 2_000
"""Numbers of an answer that is written at once."""

_LOOK_SECONDS = 0.05

T = TypeVar("T")

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class BodyTooLargeError(Exception):
    """A body is longer than the limit."""


class _BodyTooSlowError(Exception):
    pass


class Waiting:
    """Holds requests to the limits.

    Args:
        predictor: whose limits and threads these are.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._limits, self._workers = predictor.limits, predictor.workers
        self._max_body_bytes = round(self._limits.max_body_mib * 2**20)

    async def reply(
        self,
        request: Request,
        respond: Callable[[Request], Awaitable[Response]],
        measure: Callable[[Request, Code, float], None],
    ) -> Response | None:
        """The reply to a request, also if there is no answer.

        Args:
            request: what is asked.
            respond: gives the answer, or raises what is told in its place.
            measure: receives the request, how it ended and the time in seconds.

        Returns:
            The reply; None if nobody waits for it any more.
        """
        began = time.monotonic()
        response: Response | None = None
        try:
            code, response = Code.OK, await respond(request)
        except ServingError as error:
            code, status = error.code, HTTP_STATUS[error.code]
            response = json_response({"error": error.message}, status, {"Retry-After": "1"} if status == 429 else None)
        except BodyTooLargeError:
            code = Code.INVALID_ARGUMENT
            response = json_response({"error": f"Request body is longer than {self._max_body_bytes} bytes"}, 413)
        except _BodyTooSlowError:
            code, words = Code.DEADLINE_EXCEEDED, f"did not arrive within {self._limits.read_seconds:g} seconds"
            response = json_response({"error": f"Request body {words}"}, 408, {"Connection": "close"})
        except ClientDisconnect:
            code = Code.CANCELLED
        except asyncio.CancelledError:  # the server was told to stop, and the time of grace is over
            code = Code.UNAVAILABLE
            response = json_response({"error": "The server stops"}, 503, {"Connection": "close"})
        measure(request, code, time.monotonic() - began)
        return response

    async def body(self, request: Request) -> bytes:
        """Reads a body, but no further than the limit."""
        try:
            async with asyncio.timeout(self._limits.read_seconds):
                return await self._read(request)
        except TimeoutError:
            raise _BodyTooSlowError from None

    async def _read(self, request: Request) -> bytes:
        if int(request.headers.get("content-length", 0)) > self._max_body_bytes:
            raise BodyTooLargeError
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_body_bytes:
                raise BodyTooLargeError
        return bytes(body)

    def inflated(self, body: bytes, encoding: str) -> bytes:
        """A body without its compression.

        Args:
            body: as it came.
            encoding: `gzip` or `deflate`.

        Raises:
            BodyTooLargeError: it would be longer than the limit.
            ServingError: INVALID_ARGUMENT, when it is not compressed so.
        """
        stream = zlib.decompressobj(wbits=_WINDOW_BITS[encoding])
        try:
            inflated = stream.decompress(body, self._max_body_bytes + 1)
        except zlib.error as error:
            raise ServingError(Code.INVALID_ARGUMENT, f"Cannot inflate the {encoding} body: {error}") from None
        if len(inflated) > self._max_body_bytes:
            raise BodyTooLargeError
        if not stream.eof:
            raise ServingError(Code.INVALID_ARGUMENT, f"Cannot inflate the {encoding} body: it is cut short")
        return inflated

    async def answer(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """Waits for an answer as long as its client does, and no longer than the limit; then the work ends."""
        task = asyncio.current_task()
        assert task is not None
        watch: asyncio.Task[None] | None = None
        gone = False

        async def look() -> None:
            nonlocal gone
            while (await request.receive())["type"] != "http.disconnect":
                pass
            gone = True
            task.cancel()

        def begin() -> None:
            nonlocal watch
            watch = asyncio.ensure_future(look())

        # Most answers are there before it would be worth to look.
        later = asyncio.get_running_loop().call_later(_LOOK_SECONDS, begin)
        try:
            async with asyncio.timeout(self._limits.timeout_seconds):
                return await work
        except TimeoutError:
            words = f"No answer within {self._limits.timeout_seconds:g} seconds"
            raise ServingError(Code.DEADLINE_EXCEEDED, words) from None
        except asyncio.CancelledError:
            if not gone:
                raise
            task.uncancel()
            raise ClientDisconnect from None
        finally:
            later.cancel()
            if watch is not None:
                watch.cancel()

    async def beside(self, model: str, work: Callable[[], T]) -> T:
        """Runs work in a thread of a model; the empty name stands for requests that name none."""
        return await self._workers.submit(model, lambda _: work()).result()


def holds_many_values(body: bytes) -> bool:
    """Whether a body is to be parsed in another process, since nothing else runs in this one meanwhile."""
    return sum(body.count(mark) for mark in (b",", b"[", b"{")) > _MANY_VALUES


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A reply in JSON."""
    # Not starlette's JSONResponse: it fails on the lone surrogates that stand for bytes which are no UTF-8.
    return Response(json.dumps(content), status, headers, media_type="application/json")


def server_version() -> str:
    """Version of this server; of a checkout that is not installed nothing is known."""
    try:
        return metadata.version("kerasdl")
    except metadata.PackageNotFoundError:
        return "unknown"
