"""The model server under mixed load while versions come, go and are corrupt, beside one client of heavy requests.

    python -m benchmarks.serving_load --minutes 10           (needs the extra `serving`; all exports in saved_models/)

32 clients ask all seven models in turn for small things, each with a pause between two requests; every answer is
compared with the first one to the same request. Meanwhile one client sends the heaviest requests that the server takes
or refuses, one after another, and every ten seconds a model gets a newer version, loses it, or gets one that is cut
short. Prints the requests that failed, latencies and memory; exits with 1 if a request of the 32 failed.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import itertools
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import _results

SAVED_MODELS = Path(__file__).parent.parent / "saved_models"
CLIENTS = 32


def png(width: int, height: int, seed: int) -> dict[str, str]:
    from PIL import Image

    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return {"b64": base64.b64encode(file.getvalue()).decode()}


def small() -> list[tuple[str, dict[str, Any]]]:
    """Model and request."""
    normal = np.random.default_rng(0).standard_normal
    texts = ("A clever, moving film.", "I have seldom seen anything so dull. " * 20, "not bad, not good either")
    found: list[tuple[str, dict[str, Any]]] = []
    for i in range(4):
        found += [
            ("cifar10", {"instances": [{"image_bytes": png(32, 32, i)}]}),
            ("sentiment", {"instances": [{"text": texts[i % 3]}]}),
            ("vae", {"signature_name": "decode", "instances": [{"latent": normal(40).tolist()}]}),
            (
                "dcgan",
                {"signature_name": "from_latent", "inputs": {"latent": normal((1, 100)).tolist(), "class_index": [i]}},
            ),
            ("denoiser", {"instances": [{"image_bytes": png(48, 32, i)}]}),
            ("captioner", {"instances": [{"image_bytes": png(200, 150, i)}]}),
            (
                "chargen",
                {
                    "inputs": {
                        "prompt": ["\n"], "length": [40], "temperature": [0.8], "top_k": [0], "top_p": [1.0],
                        "seed": [i],
                    }
                },
            ),
        ]  # fmt: skip
    return found


def heavy() -> list[tuple[str, bytes]]:
    many = {"prompt": ["\n"], "length": [100_000], "temperature": [0.8], "top_k": [0], "top_p": [1.0], "seed": [0]}
    numbers = "[" + ",".join(["0.123456"] * 3072) + "]"
    requests: list[tuple[str, Any]] = [
        ("denoiser", {"instances": [{"image_bytes": png(1000, 1000, 0)}]}),
        ("denoiser", {"instances": [{"image_bytes": png(3000, 2000, 0)}]}),
        ("chargen", {"inputs": many}),
        ("vae", {"inputs": {"count": [10_000], "seed": [0]}}),
        ("dcgan", {"inputs": {"count": [10_000], "seed": [0], "truncation": [0.0], "class_index": [-1]}}),
        ("captioner", {"instances": [{"image_bytes": png(400, 300, 0)}] * 64}),
        ("sentiment", {"instances": [{"text": "not as dull as they say " * 2_000}] * 64}),
    ]
    bodies = [(model, json.dumps(body).encode()) for model, body in requests]
    return [
        *bodies,
        ("cifar10", ('{"signature_name": "pixels", "instances": [' + ",".join([numbers] * 2000) + "]}").encode()),
    ]


class Load:
    """What is asked and what came back."""

    def __init__(self, port: int, pause: float) -> None:
        self.port, self.pause = port, pause
        self.over = threading.Event()
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.failed: list[str] = []
        self.heavy: Counter[str] = Counter()
        self.first: dict[int, Any] = {}
        self.lock = threading.Lock()

    def ask(self, model: str, body: bytes, timeout: float = 120) -> tuple[int, bytes]:
        """Status and body of a reply."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", f"/v1/models/{model}:predict", body)
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def client(self, number: int) -> None:
        """Asks for small things until the time is over."""
        chance = random.Random(number)
        requests = [(i, model, json.dumps(body).encode()) for i, (model, body) in enumerate(small())]
        while not self.over.wait(chance.uniform(0, 2 * self.pause)):
            i, model, body = chance.choice(requests)
            began = time.perf_counter()
            try:
                status, answer = self.ask(model, body)
            except OSError as error:
                status, answer = 0, str(error).encode()
            seconds = time.perf_counter() - began
            with self.lock:
                self.seconds[model].append(seconds)
                if status != 200:
                    self.failed.append(f"{model} {status} {answer[:200]!r}")
                elif not alike(self.first.setdefault(i, json.loads(answer)), json.loads(answer)):
                    self.failed.append(f"{model} gave another answer than before")

    def heavy_client(self) -> None:
        """Asks for heavy things until the time is over."""
        for model, body in itertools.cycle(heavy()):
            if self.over.is_set():
                return
            try:
                status, _ = self.ask(model, body)
            except OSError:
                status = 0
            self.heavy[f"{model} {status}"] += 1

    def versions(self, root: Path) -> None:
        """Lets versions come and go until the time is over."""
        chance, turn = random.Random(0), 0
        while not self.over.wait(10):
            turn += 1
            model = chance.choice(sorted(path.name for path in root.iterdir()))
            newest = max(int(path.name) for path in (root / model).iterdir())
            kind = turn % 3
            if kind == 2 and newest > 1:
                shutil.rmtree(root / model / str(newest))
                continue
            hidden = root / model / f".{newest + 1}"
            shutil.copytree(root / model / "1", hidden)
            if kind == 1:
                whole = (hidden / "saved_model.pb").read_bytes()
                (hidden / "saved_model.pb").write_bytes(whole[: len(whole) // 2])
            hidden.rename(root / model / str(newest + 1))


def alike(one: Any, other: Any) -> bool:
    """Whether two answers are equal up to rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float):
        return abs(one - other) <= 1e-3 + 1e-3 * abs(one)
    return bool(one == other) or (isinstance(one, str) and len(one) > 200)  # a PNG may differ by a level


def ranked(values: list[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="length in minutes (default 10)")
    parser.add_argument("--pause", type=float, default=4.0, help="mean pause of a client in seconds (default 4)")
    parser.add_argument("--light", action="store_true", help="without the heavy client and the changes of versions")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    for folder in SAVED_MODELS.iterdir():
        shutil.copytree(folder, root / folder.name)
    words = [
        sys.executable,
        "-m",
        "kerasdl.serving",
        str(root),
        "--rest-port",
        "0",
        "--load-retry-interval-micros",
        "-1",
    ]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stderr is not None
        while "http://" not in (line := server.stdout.readline()):
            pass
        port = int(line.split("http://")[1].split(":")[1].split("/")[0])
        threading.Thread(target=server.stdout.read, daemon=True).start()
        threading.Thread(target=server.stderr.read, daemon=True).start()
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                break
            time.sleep(0.5)
        load = Load(port, arguments.pause)
        threads = [threading.Thread(target=load.client, args=(number,)) for number in range(CLIENTS)]
        if not arguments.light:
            threads.append(threading.Thread(target=load.heavy_client))
            threads.append(threading.Thread(target=load.versions, args=(root,)))
        process = psutil.Process(server.pid)
        memory = [process.memory_info().rss >> 20]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 60 * arguments.minutes
        while time.monotonic() < until:
            time.sleep(min(30.0, max(0.0, until - time.monotonic())))
            family = [process, *process.children(recursive=True)]
            memory.append(sum(one.memory_info().rss for one in family) >> 20)
            print(
                sum(map(len, load.seconds.values())),
                "requests,",
                len(load.failed),
                "failed,",
                memory[-1],
                "MiB",
                flush=True,
            )
        load.over.set()
        for thread in threads:
            thread.join()
    finally:
        server.terminate()
        ended = server.wait(timeout=60)
    seconds = sorted(itertools.chain(*load.seconds.values()))
    of_models = {model: round(ranked(values, 0.99), 3) for model, values in load.seconds.items()}
    row = {
        "requests": len(seconds),
        "failed": len(load.failed),
        "p50_seconds": round(statistics.median(seconds), 3),
        "p99_seconds": round(ranked(seconds, 0.99), 3),
        "p99_seconds_of_models": of_models,
        "longest_seconds": round(seconds[-1], 3),
        "heavy": dict(load.heavy),
        "memory_mib": memory,
        "exit_status": ended,
    }
    print(json.dumps(row, indent=2))
    print("\n".join(load.failed[:20]))
    protocol = f"{CLIENTS} clients, a request each about every {arguments.pause:g} s, {arguments.minutes:g} minutes"
    _results.write_of_kind("serving_load", protocol, [row])
    return 1 if load.failed else 0


if __name__ == "__main__":
    sys.exit(main())
