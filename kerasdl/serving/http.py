"""The HTTP server around the application: what it bears of slow clients and of many."""

from __future__ import annotations

import asyncio
import math
import socket
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from kerasdl.serving.limits import Limits


class Beside(Protocol):
    """Another server, which runs for as long as the HTTP server."""

    async def start(self) -> None:
        """Begins to answer."""

    async def stop(self, seconds: float) -> None:
        """Ends when what is under way is done, or after a time."""


def server(
    app: ASGIApp, limits: Limits, certificate: tuple[Path, Path] | None = None, beside: Beside | None = None
) -> uvicorn.Server:
    """A server that is still to be run.

    Args:
        app: answers.
        limits: of connections.
        certificate: files of the certificate and its private key, for HTTPS; None for HTTP.
        beside: a server that is to run in the same event loop.
    """

    class ImpatientProtocol(_Impatient):
        head_seconds = limits.read_seconds

    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        log_level="warning",
        lifespan="off",
        proxy_headers=False,
        ws="none",
        limit_concurrency=limits.max_connections,
        timeout_graceful_shutdown=math.ceil(limits.grace_seconds),
        ssl_certfile=certificate and certificate[0],
        ssl_keyfile=certificate and certificate[1],
    )
    return uvicorn.Server(config) if beside is None else _Both(config, beside)


class _Both(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, beside: Beside) -> None:
        super().__init__(config)
        self._beside = beside

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._beside.start()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopped = asyncio.ensure_future(self._beside.stop(self.config.timeout_graceful_shutdown or 0))
        await super().shutdown(sockets)
        while not stopped.done() and not self.force_exit:
            await asyncio.wait([stopped], timeout=0.1)
        if not stopped.done():
            await self._beside.stop(0)
        await stopped


class _Impatient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # one of two classes, by what is installed
    """Closes a connection on which the head of a request takes too long; uvicorn waits for ever."""

    head_seconds: float
    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._limit = self.loop.call_later(self.head_seconds, self._close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        under_way = self.cycle is not None and not self.cycle.response_complete
        if under_way and self._limit is not None:
            self._limit.cancel()
            self._limit = None
        elif not under_way and self._limit is None:
            self._limit = self.loop.call_later(self.head_seconds, self._close)

    def on_headers_complete(self) -> None:
        """Of httptools alone, which would drop a fragment or an empty query and so answer a request that is none."""
        super().on_headers_complete()
        if b"#" in self.url or self.url.endswith(b"?"):
            self.scope["raw_path"], self.scope["query_string"] = self.url, b""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._limit is not None:
            self._limit.cancel()
        super().connection_lost(exc)

    def _close(self) -> None:
        self._limit = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
