"""Who may ask the server, over HTTP: hosts, keys and certificates; and a line of JSON for each request."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import itertools
import json
import os
import re
import ssl
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kerasdl.errors import UserError
from kerasdl.serving import page

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is answered; empty outside of one."""

NO_KEY = "Expected a key, as Authorization: Bearer KEY or as X-API-Key: KEY"

_OPEN_PATHS = frozenset(("/healthz", "/readyz", *page.PATHS))
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_SANE = re.compile(rb"[\x20-\x7e]{1,128}")

_HOST_AND_PORT = re.compile(rb"(\[[^\]]*\]|[^:\[\]]*)(?::[0-9]*)?")


class Keys:
    """The keys of which a client must show one.

    Args:
        keys: at least one.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = tuple(keys)

    def admit(self, shown: bytes) -> bool:
        """Whether it is one of the keys; how long that takes does not tell how far they agree."""
        return any(hmac.compare_digest(shown, key) for key in self._keys)


def shown_key(name: bytes, value: bytes) -> bytes:
    """The key in a header; empty if it holds none.

    Args:
        name: of the header, in small letters.
        value: of the header.
    """
    if name == b"x-api-key":
        return value
    return value[7:].strip() if name == b"authorization" and value[:7].lower() == b"bearer " else b""


def read_keys(path: Path) -> Keys:
    """Reads a file with a key on each line; empty lines and those that begin with # are none.

    Raises:
        UserError: unreadable, or a line that can be no key, or no key at all.
    """
    keys = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        key = line.strip()
        if not key or key.startswith(b"#"):
            continue
        if not re.fullmatch(rb"[\x21-\x7e]+", key):
            raise UserError(f"{path} line {number} holds a space or a character beyond ASCII; expected a key a line")
        keys.append(key)
    if not keys:
        raise UserError(f"{path} holds no key; expected a key a line, such as one that `openssl rand -hex 32` writes")
    return Keys(keys)


def check_certificate(certificate: Path, key: Path) -> None:
    """Finds out whether a server can prove itself by a certificate.

    Args:
        certificate: file in PEM format, with the certificates that vouch for it behind it.
        key: file in PEM format with its private key, without a passphrase.

    Raises:
        UserError: it cannot.
    """
    for path in (certificate, key):
        _read(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:  # ValueError of an empty passphrase
        reason = "they do not belong together"
        if getattr(error, "reason", "") != "KEY_VALUES_MISMATCH":
            reason = "expected a certificate and its private key in PEM format, without a passphrase"
        raise UserError(f"cannot use the certificate {certificate} with the key {key}: {reason}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def hosts(listened: str, allowed: Sequence[str]) -> frozenset[str] | None:
    """The hosts as which the server may be addressed.

    On a loopback address these are only the names of this machine for itself: a page of the web, whose own name the
    page's owner lets point to 127.0.0.1 (DNS rebinding), cannot ask what this machine alone may.

    Args:
        listened: address on which the server listens.
        allowed: names and addresses that were asked for, `*` for any; empty for the default.

    Returns:
        Names and addresses in small letters, those of IPv6 in brackets; None for any.

    Raises:
        UserError: one is no name and no address.
    """
    if not allowed:
        if listened != "localhost" and not _is_loopback(listened):
            return None
        return frozenset((*_LOOPBACK, _bracketed(listened)))
    for host in allowed:
        if host != "*" and not re.fullmatch(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]", _bracketed(host)):
            raise UserError(f"--allowed-hosts names {host}; expected a name or an address, without a port")
    return None if "*" in allowed else frozenset(_bracketed(host).lower() for host in allowed)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _bracketed(address: str) -> str:
    try:
        return f"[{ipaddress.IPv6Address(address)}]"
    except ValueError:
        return address


def _host(header: bytes) -> str:
    """A Host header without its port; empty if it is none."""
    found = _HOST_AND_PORT.fullmatch(header)
    return found[1].decode("latin-1").lower() if found else ""


class Access:
    """Stands before an application: refuses what may not ask, names every request, and tells what came of it.

    A request keeps the name that its client gave it in `X-Request-ID`; every reply bears it.

    Args:
        app: answers.
        hosts: as which the server may be addressed; None for any. (A request without a Host comes from no browser.)
        keys: of which a client must show one, but for the health checks and the files of the page; None for none.
        log: receives a line of JSON for each request; None for no log.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: frozenset[str] | None = None,
        keys: Keys | None = None,
        log: Callable[[bytes], object] | None = None,
    ) -> None:
        self._app, self._hosts, self._keys, self._log = app, hosts, keys, log
        self._prefix, self._count = os.urandom(6).hex(), itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        began = time.perf_counter()
        name, shown, refusal = b"", b"", None
        for key, value in scope["headers"]:
            if key == b"x-request-id":
                name = value
            elif key == b"host":
                if self._hosts is not None and _host(value) not in self._hosts:
                    refusal = _refuse_host
            elif self._keys is not None:
                shown = shown_key(key, value) or shown
        if not _SANE.fullmatch(name):
            name = f"{self._prefix}-{next(self._count)}".encode()
        # A browser's question whether a page of another host may ask bears no key; its answer tells nothing of models.
        open_ = scope["path"] in _OPEN_PATHS or scope["method"] == "OPTIONS"
        if refusal is None and self._keys is not None and not open_:
            refusal = None if self._keys.admit(shown) else _refuse_client
        status, size = 0, 0

        async def answer(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name)]
            else:
                size += len(message.get("body", b""))
            await send(message)

        request_id.set(name.decode())
        try:
            await (refusal or self._app)(scope, receive, answer)
        except BaseException:
            status = status or 500
            raise
        finally:
            if self._log is not None:
                query = scope["query_string"]
                line = {
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "request_id": name.decode(),
                    "client": scope["client"][0] if scope["client"] else None,
                    "method": scope["method"],
                    "path": (scope["raw_path"] + (b"?" + query if query else b"")).decode("latin-1"),
                    "status": status or 499,  # the client has left
                    "milliseconds": round((time.perf_counter() - began) * 1e3, 3),
                    "bytes": 0 if scope["method"] == "HEAD" else size,
                }
                # Not through `logging`, which takes 30 microseconds. A full disk is no reason to refuse an answer.
                with contextlib.suppress(OSError):
                    self._log(json.dumps(line).encode() + b"\n")


async def _refuse_host(scope: Scope, receive: Receive, send: Send) -> None:
    await _refuse(send, 400, "This server is not known by that Host")


async def _refuse_client(scope: Scope, receive: Receive, send: Send) -> None:
    await _refuse(send, 401, NO_KEY, (b"www-authenticate", b"Bearer"))


async def _refuse(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps({"error": text}).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
