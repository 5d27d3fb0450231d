"""Hosts, keys, certificates, names of requests and the log of them."""

import asyncio
import functools
import io
import json
import logging
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from kerasdl.errors import UserError
from kerasdl.serving import page
from kerasdl.serving.access import Access, Keys, check_certificate, hosts, read_keys, request_id
from kerasdl.serving.repository import ModelRepository

GOOD = '{"instances": [[1.0, 2.0]]}'
PREDICT = "/v1/models/pair:predict"


@pytest.fixture(scope="module")
def repository(root) -> ModelRepository:
    repository = ModelRepository(root)
    repository.poll()
    return repository


# --- hosts ------------------------------------------------------------------------------------------------

LOCAL = {"localhost", "127.0.0.1", "[::1]"}


@pytest.mark.parametrize(
    ("listened", "allowed", "expected"),
    [
        ("127.0.0.1", (), LOCAL),
        ("localhost", (), LOCAL),
        ("::1", (), LOCAL),
        ("127.0.0.5", (), {*LOCAL, "127.0.0.5"}),
        ("0.0.0.0", (), None),
        ("::", (), None),
        ("192.168.1.5", (), None),
        ("myhost", (), None),
        ("0.0.0.0", ("Models.Example.org", "10.0.0.1"), {"models.example.org", "10.0.0.1"}),
        ("127.0.0.1", ("host.docker.internal",), {"host.docker.internal"}),
        ("127.0.0.1", ("FE80::1", "[::2]"), {"[fe80::1]", "[::2]"}),
        ("127.0.0.1", ("*",), None),
        ("127.0.0.1", ("a", "*"), None),
    ],
)
def test_hosts(listened, allowed, expected):
    assert hosts(listened, allowed) == expected


@pytest.mark.parametrize("host", ["", "a:80", "http://a", "a/b", "*.a", "[::1", "[::1]:80", "a b"])
def test_host_that_is_none(host):
    with pytest.raises(UserError, match="expected a name or an address, without a port"):
        hosts("127.0.0.1", (host,))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("localhost", "LOCALHOST:8501", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8501")),
        *((host, 400) for host in ("evil.example", "evil.example:8501", "localhost.evil.example", "", "[::2]:8501")),
        *((host, 400) for host in ("::1", "127.0.0.1.evil.example", "x@localhost", "[::1].evil.example", "[::1")),
    ],
)
def test_host_of_a_request(local, host, status):
    for path in (PREDICT, "/v2/models/pair/infer", "/healthz"):
        reply = local("POST" if ":" in path or "infer" in path else "GET", path, GOOD, {"Host": host})
        assert (reply.status == 400 and "known by that Host" in reply.json["error"]) == (status == 400), path
    assert local("POST", PREDICT, GOOD, {"Host": host}).status == status


@pytest.fixture(scope="module")
def local(serve, repository) -> Iterator[Any]:
    with serve(repository, guard=functools.partial(Access, hosts=hosts("127.0.0.1", ()))) as client:
        yield client


def _raw(port: int, text: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(text)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def test_no_host_and_two_hosts(local):
    assert _raw(local.port, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")
    two = b"GET /healthz HTTP/1.1\r\nHost: %s\r\nHost: %s\r\nConnection: close\r\n\r\n"
    for names in ((b"localhost", b"evil.example"), (b"evil.example", b"localhost")):
        assert _raw(local.port, two % names).startswith(b"HTTP/1.1 400")


# --- keys -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(serve, repository) -> Iterator[Any]:
    with serve(repository, guard=functools.partial(Access, keys=Keys([b"first-key", b"second"]))) as client:
        yield client


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer first-key"}, 200),
        ({"Authorization": "bearer second"}, 200),
        ({"authorization": "BEARER  second "}, 200),
        ({"X-API-Key": "second"}, 200),
        ({}, 401),
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Basic second"}, 401),
        ({"Authorization": "second"}, 401),
        ({"Authorization": "Bearer first-ke"}, 401),
        ({"Authorization": "Bearer first-key2"}, 401),
        ({"Authorization": "Bearer SECOND"}, 401),
        ({"X-API-Key": ""}, 401),
        ({"X-API-Key": "s\xe9cond"}, 401),
        ({"Api-Key": "second"}, 401),
    ],
)
def test_key_of_a_request(keyed, headers, status):
    reply = keyed("POST", PREDICT, GOOD, headers)
    assert reply.status == status
    if status == 401:
        assert list(reply.json) == ["error"]
        assert reply.headers["www-authenticate"] == "Bearer"


def test_only_the_health_checks_and_the_page_need_no_key(keyed):
    assert {keyed("GET", path).status for path in ("/healthz", "/readyz", *page.PATHS)} == {200}
    others = [
        "//",
        "/page",
        "/page/",
        "/page/nope.js",
        "/page/../docs",
        "/v1/models/pair",
        "/v2",
        "/v2/health/ready",
        "/docs",
        "/openapi.json",
        "/healthz/",
        "//healthz",
    ]
    others += ["/healthz/../docs", "/v1/models/pair?/healthz", "/nope", "/docs/pair/serving_default.json"]
    assert {keyed("GET", path).status for path in others} == {401}


def test_pages_of_other_hosts_may_ask_with_a_key(serve, repository):
    guard = functools.partial(Access, keys=Keys([b"first-key"]))
    asked = {"Origin": "https://a.b", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization"
    with serve(repository, guard=guard, cors=True, keyed=True, metrics_path="/metrics") as client:
        for path in (PREDICT, "/stream/pair"):
            reply = client("OPTIONS", path, headers=asked)
            assert (reply.status, reply.headers["Access-Control-Allow-Origin"]) == (200, "*")
            assert "authorization" in reply.headers["Access-Control-Allow-Headers"].lower()
            assert client("POST", path, GOOD, {"Origin": "https://a.b"}).status == 401
        key = {"Origin": "https://a.b", "Authorization": "Bearer first-key"}
        assert client("POST", PREDICT, GOOD, key).status == 200
        for path in ("/docs", "/openapi.json", "/v2", "/v2/models/pair", "/metrics", "/v1/models/pair/metadata"):
            body = client("OPTIONS", path, headers=asked).body
            assert body == client("OPTIONS", path.replace("pair", "nope"), headers=asked).body.replace(b"nope", b"pair")
            assert len(body) < 100


def test_no_other_protocol_goes_round_the_keys(keyed):
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "A"}
    assert keyed("GET", "/docs", headers=upgrade).status == 401


def test_keys_are_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda *pair: compared.append(pair) or False)
    assert not Keys([b"a", b"b"]).admit(b"a")
    assert compared == [(b"a", b"a"), (b"a", b"b")]


def test_key_file(tmp_path):
    path = tmp_path / "keys"
    path.write_bytes(b"# of the team\nfirst-key\r\n\n  second  \n")
    keys = read_keys(path)
    assert keys.admit(b"first-key")
    assert keys.admit(b"second")
    for other in (b"", b"# of the team", b"first-key\r"):
        assert not keys.admit(other)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "holds no key; expected a key a line"),
        (b"\n# none\n", "holds no key; expected a key a line"),
        (b"good\nsecret phrase\n", "line 2 holds a space or a character beyond ASCII"),
        ("sécret".encode(), "line 1 holds a space or a character beyond ASCII"),
    ],
)
def test_mistake_in_the_key_file(tmp_path, content, text):
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_keys(path)
    assert text in str(caught.value)
    assert "cret" not in str(caught.value)  # it goes to a log


# --- certificates -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pems(tmp_path_factory) -> dict[str, Path]:
    """Certificate and key of a server, another key, and the authority that vouches for the server."""
    folder = tmp_path_factory.mktemp("pems")
    authority = trustme.CA()
    server, other = (authority.issue_cert("127.0.0.1") for _ in range(2))
    blobs = {"certificate": server.cert_chain_pems[0], "key": server.private_key_pem, "other": other.private_key_pem}
    for name, blob in {**blobs, "authority": authority.cert_pem}.items():
        blob.write_to_path(str(folder / name))
    (folder / "noise").write_text("no PEM")
    return {path.name: path for path in folder.iterdir()} | {"nope": folder / "nope"}


def test_https(serve, repository, pems):
    context = ssl.create_default_context(cafile=str(pems["authority"]))
    with serve(repository, certificate=(pems["certificate"], pems["key"])) as client:
        url = f"https://127.0.0.1:{client.port}"
        with urllib.request.urlopen(url + PREDICT, GOOD.encode(), timeout=30, context=context) as reply:
            assert json.load(reply) == {"predictions": [[2.0, 4.0]]}
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(url, timeout=30)
        assert not _raw(client.port, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP")


@pytest.mark.parametrize(
    ("certificate", "key", "text"),
    [
        ("certificate", "other", "they do not belong together"),
        ("key", "certificate", "expected a certificate and its private key in PEM format"),
        ("noise", "key", "expected a certificate and its private key in PEM format"),
        ("certificate", "noise", "expected a certificate and its private key in PEM format"),
        ("nope", "key", "nope: No such file or directory"),
        ("certificate", "nope", "nope: No such file or directory"),
    ],
)
def test_mistake_in_the_certificate(pems, certificate, key, text):
    check_certificate(pems["certificate"], pems["key"])
    with pytest.raises(UserError) as caught:
        check_certificate(pems[certificate], pems[key])
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


# --- names and log ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log() -> io.BytesIO:
    return io.BytesIO()


@pytest.fixture(scope="module")
def logged(serve, repository, log) -> Iterator[Any]:
    guard = functools.partial(Access, hosts=frozenset({"127.0.0.1"}), log=log.write)
    with serve(repository, guard=guard, max_body_mib=1000 / 2**20) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/healthz"), ("POST", PREDICT), ("GET", "/nope"), ("GET", "/docs")]
)
def test_name_of_a_request(logged, method, path):
    body = GOOD if method == "POST" else None
    for name in ("7", "a b ~", "x" * 128):
        assert logged(method, path, body, {"X-Request-ID": name}).headers["x-request-id"] == name
    made = [logged(method, path, body, {"X-Request-ID": name}).headers["x-request-id"] for name in ("", "x" * 129, "é")]
    made += [logged(method, path, body).headers["x-request-id"] for _ in range(2)]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(r"[0-9a-f]{12}-\d+", name) for name in made)


def _lines(log: io.BytesIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_log(logged, log):
    earlier = len(_lines(log))
    before = datetime.now(UTC)
    requests = [
        ("GET", "/healthz", None, {}, 200),
        ("POST", PREDICT, GOOD, {"X-Request-ID": 'say "hi"'}, 200),
        ("POST", PREDICT, "0" * 1001, {}, 413),
        ("GET", "/v1/models/p%C3%A9?a=b", None, {}, 404),
        ("GET", "/healthz", None, {"Host": "evil.example"}, 400),
    ]
    replies = [logged(*request[:-1]) for request in requests]
    head = logged("HEAD", "/healthz")
    lines = _lines(log)[earlier:]
    assert len(lines) == len(requests) + 1
    for line, reply, (method, path, _, _, status) in zip(lines, replies, requests, strict=False):
        assert list(line) == ["time", "request_id", "client", "method", "path", "status", "milliseconds", "bytes"]
        assert (line["client"], line["method"], line["path"]) == ("127.0.0.1", method, path)
        assert line["status"] == reply.status == status
        assert line["bytes"] == len(reply.body) > 0
        assert line["request_id"] == reply.headers["x-request-id"]
        assert 0 < line["milliseconds"] < 10_000
        told = datetime.fromisoformat(line["time"])
        assert told.utcoffset() == timedelta(0)
        assert before - timedelta(seconds=1) <= told <= datetime.now(UTC)
    assert lines[1]["request_id"] == 'say "hi"'
    assert (lines[-1]["status"], lines[-1]["bytes"]) == (head.status, 0)


def test_disk_that_is_full(serve, repository):
    with open("/dev/full", "wb", buffering=0) as full:
        with pytest.raises(OSError, match="No space left"):
            full.write(b"x")
        with serve(repository, guard=functools.partial(Access, log=full.write)) as client:
            assert client.predict("pair", GOOD).status == 200


class _Trouble(logging.Handler):
    """Gathers the requests that met with trouble."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.requests: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.requests.append(request_id.get())


def test_client_that_leaves_and_mistake_in_the_server(serve, repository, monkeypatch):
    log = io.BytesIO()
    began, release = threading.Event(), threading.Event()

    def stuck(*_: Any) -> None:
        began.set()
        release.wait(30)
        raise RuntimeError("a mistake")

    monkeypatch.setattr("kerasdl.serving.servable.Servable.run", stuck)
    with serve(repository, guard=functools.partial(Access, log=log.write)) as client:
        body = GOOD.encode()
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (PREDICT.encode(), len(body))
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(head + body)
            assert began.wait(30)
        while not _lines(log):
            time.sleep(0.01)
        release.set()
        trouble = _Trouble()
        monkeypatch.setattr(logging.getLogger("kerasdl.serving"), "handlers", [trouble])
        assert client("POST", PREDICT, GOOD, {"X-Request-ID": "mine"}).status == 500
        assert trouble.requests == ["mine"]
        lines = [line for line in _lines(log) if line["path"] == PREDICT]
    assert [(line["status"], line["bytes"] > 0) for line in lines] == [(499, False), (500, True)]


def test_application_that_fails():
    async def app(*_: Any) -> None:
        raise RuntimeError("a mistake")

    log = io.BytesIO()
    scope = {"headers": [], "query_string": b"", "client": None, "method": "GET", "raw_path": b"/", "path": "/"}
    with pytest.raises(RuntimeError, match="a mistake"):
        asyncio.run(Access(app, log=log.write)(scope, app, app))
    [line] = _lines(log)
    assert (line["status"], line["client"]) == (500, None)
