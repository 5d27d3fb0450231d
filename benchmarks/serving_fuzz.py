"""The model server under mutated requests: no crash, no status 500, no hang, memory bounded.

    python -m benchmarks.serving_fuzz --requests 100000        (needs the extra `serving`; exports in saved_models/)

Starts from requests that are right, of some exports, by TensorFlow Serving's REST API and by KServe's V2, and breaks
them: values at the ends of their types and of other types, keys that are missing or too many, nesting, cut and changed
bytes, cut and changed pictures, odd headers, paths and methods. The same seed sends the same requests.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import math
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from benchmarks import _results
from benchmarks.serving_load import SAVED_MODELS, png

MODELS = ("cifar10", "dcgan", "vae")
THREADS = 8
ODD: list[Any] = [
    *(None, True, False, "", "a", "\x00", "\ud800", [], {}, [[]], [{}], {"b64": ""}, {"b64": "!"}, {"b64": 3}),
    *(0, -1, 1, 1.5, 2**31 - 1, -(2**31), 2**31, 2**63, -(2**63), 2**64, 10**400, 1e308, -1e308, 1e-320),
    *(math.nan, math.inf, -math.inf),
]


def valid() -> list[tuple[str, Any]]:
    """Paths and bodies that are answered."""
    latents = {"vae": 40, "dcgan": 100}
    found: list[tuple[str, Any]] = [
        ("/v1/models/cifar10:predict", {"instances": [{"image_bytes": png(20, 30, 0)}]}),
        ("/v1/models/cifar10:predict", {"inputs": {"image_bytes": [png(20, 30, 0), png(5, 5, 1)]}}),
        ("/v1/models/cifar10:predict", {"signature_name": "class_name", "inputs": {"index": [0, 9]}}),
        ("/v1/models/vae:predict", {"inputs": {"count": [1], "seed": [0]}}),
        ("/v1/models/vae:predict", {"signature_name": "decode", "inputs": [[0.5] * latents["vae"]]}),
        ("/v1/models/vae:predict", {"signature_name": "encode", "instances": [png(28, 28, 0)]}),
        (
            "/v1/models/dcgan:predict",
            {"inputs": {"count": [1], "seed": [0], "truncation": [0.0], "class_index": [-1]}},
        ),
        (
            "/v1/models/dcgan:predict",
            {"signature_name": "from_latent", "inputs": {"latent": [[0.0] * latents["dcgan"]], "class_index": [3]}},
        ),
        ("/v1/models/cifar10:classify", {"examples": [{"a": 1.0, "b": ["x"], "c": [1, 2]}]}),
        ("/v1/models/cifar10/metadata", None),
        ("/v1/models/cifar10", None),
        ("/v2/models/cifar10", None),
        (
            "/v2/models/vae/infer",
            {
                "id": "1",
                "parameters": {"signature_name": "decode"},
                "inputs": [{"name": "latent", "shape": [1, 40], "datatype": "FP32", "data": [0.5] * 40}],
                "outputs": [{"name": "image"}],
            },
        ),
        (
            "/v2/models/cifar10/infer",
            {
                "parameters": {"signature_name": "class_name"},
                "inputs": [{"name": "index", "shape": [2], "datatype": "INT32", "data": [0, 9]}],
            },
        ),
    ]  # fmt: skip
    return found


def mutated(chance: random.Random, value: Any, depth: int = 0) -> Any:
    """A value with something wrong at some place."""
    if depth < 8 and isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        kind = chance.random()
        if kind < 0.1:
            return {name: one for name, one in value.items() if name != key}
        if kind < 0.2:
            return {**value, chance.choice(["", "x", "inputs", "instances", "b64", key + "x"]): chance.choice(ODD)}
        if key == "b64" and isinstance(value[key], str):
            try:
                data = base64.b64decode(value[key])
            except ValueError:
                data = b"no base64"
            return {"b64": base64.b64encode(broken(chance, data)).decode()}
        return {**value, key: mutated(chance, value[key], depth + 1)}
    if depth < 8 and isinstance(value, list) and value and chance.random() < 0.85:
        place, kind = chance.randrange(len(value)), chance.random()
        if kind < 0.1:
            return value[:place]
        if kind < 0.2:
            return value + value[: place + 1] * chance.choice([1, 2, 40])
        return [*value[:place], mutated(chance, value[place], depth + 1), *value[place + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.3:
        return value + chance.choice([-1, 1, 100, 10_000])
    nested = chance.choice(ODD)
    for _ in range(chance.choice([0, 0, 0, 1, 3, 70])):
        nested = [nested]
    return nested


def broken(chance: random.Random, data: bytes) -> bytes:
    """Bytes that are cut, changed, doubled or mixed up."""
    if not data:
        return chance.choice([b"", b"\x00", b"\xff\xd8\xff"])
    changed = bytearray(data)
    for _ in range(chance.choice([0, 1, 1, 3, 20])):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    kind = chance.random()
    if kind < 0.3:
        changed = changed[: chance.randrange(len(changed))]
    elif kind < 0.4:
        start = chance.randrange(len(changed))
        changed[start:start] = changed[: chance.randrange(min(len(changed), 300))]
    return bytes(changed)


def request(chance: random.Random, right: list[tuple[str, Any]]) -> tuple[str, str, bytes, dict[str, str]]:
    """Method, path, body and headers."""
    path, body = chance.choice(right)
    method, headers = "GET" if body is None else "POST", {}
    if body is not None:
        for _ in range(chance.choice([1, 1, 1, 2, 4])):
            body = mutated(chance, body)
    data = b"" if body is None else json.dumps(body).encode()
    if chance.random() < 0.15:
        data = broken(chance, data)
    if chance.random() < 0.05:
        headers["Content-Encoding"] = "gzip"
    if chance.random() < 0.05:
        headers["Inference-Header-Content-Length"] = chance.choice(["0", "-1", "10", "x", str(len(data)), "9" * 30])
    if chance.random() < 0.03:
        method = chance.choice(["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
    if chance.random() < 0.05:
        place = chance.randrange(1, len(path))
        path = (
            path[:place]
            + chance.choice(["%00", "%ff", "/", "..", "?x=1", ":", "versions/99999999999999999999"])
            + path[place:]
        )
    return method, path, data, headers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="how many (default 100000)")
    parser.add_argument("--seed", type=int, default=0, help="of the requests (default 0)")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    for model in MODELS:
        (root / model).symlink_to(SAVED_MODELS / model)
    words = [sys.executable, "-m", "kerasdl.serving", str(root), "--rest-port", "0"]
    log = Path(tempfile.mkdtemp(), "errors")
    with log.open("w") as errors:
        server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert server.stdout is not None
    ready = 0
    while ready < len(MODELS):
        line = server.stdout.readline()
        ready += "http://" in line
    port = int(line.split("http://")[1].split(":")[1].split("/")[0])
    threading.Thread(target=server.stdout.read, daemon=True).start()
    process, right = psutil.Process(server.pid), valid()
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    slowest, lock, left = [0.0], threading.Lock(), iter(range(arguments.requests))

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            method, path, data, headers = request(random.Random(f"{arguments.seed} {number}"), right)
            began, status, answer = time.perf_counter(), 0, b""
            try:
                connection.request(method, path, data, headers)
                reply = connection.getresponse()
                status, answer = reply.status, reply.read()
            except (OSError, http.client.HTTPException) as error:
                answer = repr(error).encode()
                connection.close()
            with lock:
                statuses[status] += 1
                slowest[0] = max(slowest[0], time.perf_counter() - began)
                if status in (0, 500, 504):
                    wrong.append(f"request {number}: {method} {path} {data[:200]!r}: {status} {answer[:200]!r}")

    for path, body in right:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        status = connection.getresponse().status
        assert status == (400 if ":classify" in path else 200), (path, status)
    memory = [process.memory_info().rss >> 20]
    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(20)
        memory.append(process.memory_info().rss >> 20)
        print(sum(statuses.values()), dict(statuses), len(wrong), "wrong", memory[-1], "MiB", flush=True)
    server.terminate()
    ended = server.wait(timeout=60)
    row = {
        "requests": sum(statuses.values()),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "wrong": len(wrong),
        "slowest_seconds": round(slowest[0], 2),
        "memory_mib": memory,
        "lines_on_stderr": len(log.read_text().splitlines()),
        "exit_status": ended,
    }
    print(json.dumps(row, indent=2))
    print("\n".join(wrong[:20]))
    _results.write_of_kind("serving_fuzz", f"seed {arguments.seed}, {THREADS} connections", [row])
    return 1 if wrong or ended else 0


if __name__ == "__main__":
    sys.exit(main())
