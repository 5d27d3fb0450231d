"""A model server in a thread that is asked byte for byte."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from starlette.types import ASGIApp

from kerasdl.serving.access import Keys
from kerasdl.serving.batch_parameters import Parameters
from kerasdl.serving.grpc import GrpcServer
from kerasdl.serving.http import server as http_server
from kerasdl.serving.limits import Limits
from kerasdl.serving.predictor import Predictor
from kerasdl.serving.rest import create_app


def idle(process: psutil.Process | None = None, seconds: float = 20) -> bool:
    """Whether a process, or this one, computes nothing for a moment, within a time."""
    process = process or psutil.Process()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        before = sum(process.cpu_times()[:2])
        time.sleep(0.3)
        if sum(process.cpu_times()[:2]) - before < 0.1:
            return True
    return False


class Reply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Sends a request exactly as given: no normalised path, no added header but Host and Content-Length."""

    def __init__(self, port: int, grpc_port: int = 0) -> None:
        self.port, self.grpc_port = port, grpc_port

    def __call__(
        self, method: str, path: str, body: bytes | str | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            body = body.encode() if isinstance(body, str) else body
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def predict(self, model: str, body: bytes | str | dict[str, Any]) -> Reply:
        text = json.dumps(body) if isinstance(body, dict) else body
        return self("POST", f"/v1/models/{model}:predict", text)


@contextmanager
def serve(
    repository: Any,
    *,
    metrics_path: str | None = None,
    cors: bool = False,
    keyed: bool = False,
    parameters: Parameters | None = None,
    every: bool = False,
    grpc: bool = False,
    guard: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    keys: Keys | None = None,
    certificate: tuple[Path, Path] | None = None,
    **options: Any,
) -> Iterator[Client]:
    """A client of a server of the repository, on a free port."""
    limits = Limits(**options)
    predictor = Predictor(repository, limits, parameters=parameters, every=every)
    app = guard(create_app(predictor, metrics_path=metrics_path, cors=cors, keyed=keyed))
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as grpc_listener:
        grpc_port = grpc_listener.getsockname()[1]
        beside = GrpcServer(predictor, grpc_listener, keys, certificate)
        server = http_server(app, limits, certificate, beside if grpc else None)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            yield Client(listener.getsockname()[1], grpc_port)
        finally:
            server.should_exit = True
            thread.join()
            predictor.close(seconds=5)
