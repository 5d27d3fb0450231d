"""The HTTP server around the application: what it bears of slow clients and of many."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from kerasdl.serving.limits import Limits


def server(app: ASGIApp, limits: Limits, certificate: tuple[Path, Path] | None = None) -> uvicorn.Server:
    """A server that is still to be run.

    Args:
        app: answers.
        limits: of connections.
        certificate: files of the certificate and its private key, for HTTPS; None for HTTP.
    """

    class Protocol(_Impatient):
        head_seconds = limits.read_seconds

    config = uvicorn.Config(
        app,
        http=Protocol,
        log_level="warning",
        lifespan="off",
        ws="none",
        limit_concurrency=limits.max_connections,
        timeout_graceful_shutdown=math.ceil(limits.grace_seconds),
        ssl_certfile=certificate and certificate[0],
        ssl_keyfile=certificate and certificate[1],
    )
    return uvicorn.Server(config)


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
