"""The model server beside LitServe and FastAPI on the same exports: requests a second, latency, processor time.

    python -m benchmarks.serving_speed            (needs KERASDL_DATA_DIR, about 25 minutes, a quiet machine)

Needs `wrk` (a Debian package) and the extra `benchmark`. One example a request, as JSON: a picture of CIFAR-10's test
split as a PNG in base64, or a whole review of IMDB's; 64 of each in turn. Each server runs alone, in turns for several
rounds; its processor time is that of all its processes. LitServe and FastAPI call the loaded signature as TensorFlow's
documentation shows; `predict` is Keras' `model.predict` around the export. The bare signature, called in a process of
its own with 1 and 32 examples, is the limit.
"""

from __future__ import annotations

import argparse
import base64
import functools
import io
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import _results

SAVED_MODELS = Path(__file__).parent.parent / "saved_models"
MODELS = {"cifar10": "image_bytes", "sentiment": "text"}
CONNECTIONS = (1, 8, 64)
SERVERS = ("ours", "litserve", "fastapi", "fastapi_predict")
BARE = (1, 32)
BATCH = 32


def requests(data_dir: str) -> dict[str, list[bytes]]:
    """Examples of test splits, by model."""
    import tensorflow_datasets as tfds
    from PIL import Image

    def png(pixels: Any) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    def load(name: str) -> Iterator[Any]:
        return tfds.load(name, split="test[:64]", data_dir=data_dir).as_numpy_iterator()

    return {
        "cifar10": [png(row["image"]) for row in load("cifar10")],
        "sentiment": [row["text"] for row in load("imdb_reviews")],
    }


def value(model: str, example: bytes) -> Any:
    """An example as JSON has it."""
    return {"b64": base64.b64encode(example).decode()} if model == "cifar10" else example.decode()


# --- The servers -----------------------------------------------------------------------------------------------------


def command(server: str, model: str, port: int) -> list[str]:
    if server == "ours":
        folder = tempfile.mkdtemp()
        Path(folder, model).symlink_to(SAVED_MODELS / model)
        return [sys.executable, "-m", "kerasdl.serving", folder, "--rest-port", str(port)]
    return [sys.executable, "-m", "benchmarks.serving_speed", "--serve", server, model, str(port)]


def path(server: str, model: str) -> str:
    return f"/v1/models/{model}:predict" if server == "ours" else "/predict"


def decoded(model: str, given: Any) -> bytes:
    return base64.b64decode(given["b64"]) if model == "cifar10" else given.encode()


def answer(label: Any, probabilities: Any) -> dict[str, Any]:
    return {"label": label.decode(), "probabilities": probabilities.tolist()}


def serve(server: str, model: str, port: int) -> None:
    """Runs a peer's server."""
    name, folder = MODELS[model], str(SAVED_MODELS / model / "1")

    if server == "litserve":
        import litserve

        from benchmarks._litserve import Api

        api = Api(folder, name, functools.partial(decoded, model), answer, max_batch_size=BATCH, batch_timeout=0.005)
        litserve.LitServer(api, accelerator="cpu").run(port=port, generate_client_file=False, log_level="warning")
        return
    import fastapi
    import tensorflow as tf
    import uvicorn

    app = fastapi.FastAPI()
    if server == "fastapi":
        loaded = tf.saved_model.load(folder)
        signature = loaded.signatures["serving_default"]
    else:
        import keras

        layer = keras.layers.TFSMLayer(folder, call_endpoint="serving_default")
        given = keras.Input((), dtype="string")
        keras_model = keras.Model(given, layer(given))

    @app.post("/predict")
    def predict(request: dict[str, Any]) -> dict[str, Any]:
        batch = tf.constant([decoded(model, one) for one in request["instances"]])
        if server == "fastapi":
            found = {key: tensor.numpy() for key, tensor in signature(**{name: batch}).items()}
        else:
            found = keras_model.predict(batch, verbose=0)
        rows = zip(found["label"], found["probabilities"], strict=True)
        return {"predictions": [answer(*row) for row in rows]}

    uvicorn.run(app, port=port, log_level="warning")


@contextmanager
def running(server: str, model: str, body: bytes) -> Iterator[tuple[int, int]]:
    """Port and process of a server that answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(command(server, model, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        for _ in range(20):
            while not ask(port, path(server, model), body):
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"{server} does not answer for {model}")
                time.sleep(0.2)
        yield port, process.pid
    finally:
        for one in reversed(family(process.pid)):
            one.kill()
        process.wait()


def ask(port: int, where: str, body: bytes) -> bool:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{where}", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return bool(json.load(reply)["predictions"][0]["probabilities"])
    except (urllib.error.URLError, OSError):
        return False


def family(pid: int) -> list[Any]:
    import psutil

    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def processor_seconds(pid: int) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in family(pid))


# --- The load --------------------------------------------------------------------------------------------------------


def script(bodies: list[bytes]) -> str:
    """What wrk sends, in Lua."""
    listed = ",".join("[==[" + body.decode() + "]==]" for body in bodies)
    return (
        f"local bodies = {{{listed}}}\nlocal n = 0\n"
        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        "request = function() n = n % #bodies + 1; return wrk.format(nil, nil, nil, bodies[n]) end\n"
    )


def wrk(port: int, where: str, lua: Path, connections: int, seconds: int) -> str:
    url = f"http://127.0.0.1:{port}{where}"
    words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(lua), "--latency", "--timeout", "60s", url]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def told(pattern: str, said: str) -> re.Match[str]:
    """A figure in what wrk said."""
    found = re.search(pattern, said)
    if found is None:
        raise SystemExit(f"wrk said no {pattern}: {said}")
    return found


def load(port: int, pid: int, where: str, lua: Path, connections: int, seconds: int) -> dict[str, float]:
    before = processor_seconds(pid)
    said = wrk(port, where, lua, connections, seconds)
    used = processor_seconds(pid) - before
    if "Non-2xx" in said or "Socket errors" in said:
        raise SystemExit(f"requests failed: {said}")

    def milliseconds(share: str) -> float:
        number, unit = told(rf"{share}%\s+([\d.]+)(us|ms|s|m)", said).groups()
        return float(number) * {"us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4}[unit]

    count = int(told(r"(\d+) requests in", said)[1])
    per_second = float(told(r"Requests/sec:\s+([\d.]+)", said)[1])
    return {
        "per_second": per_second,
        "p50_ms": milliseconds("50"),
        "p99_ms": milliseconds("99"),
        "processor_ms": 1e3 * used / count,
    }


def bare(model: str, examples: list[bytes], size: int, seconds: float) -> dict[str, float]:
    """The signature without a server."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(SAVED_MODELS / model / "1"))
    signature, name = loaded.signatures["serving_default"], MODELS[model]
    batches = [tf.constant(examples[i : i + size]) for i in range(0, len(examples), size)]
    for batch in batches:
        signature(**{name: batch})
    count, began, before = 0, time.perf_counter(), sum(os.times()[:2])
    while time.perf_counter() - began < seconds:
        for batch in batches:
            signature(**{name: batch})
            count += size
    wall = time.perf_counter() - began
    return {"per_second": count / wall, "processor_ms": 1e3 * (sum(os.times()[:2]) - before) / count}


# --- The contest -----------------------------------------------------------------------------------------------------


def measured(model: str, examples: list[bytes], rounds: int, seconds: int) -> list[dict[str, Any]]:
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    bodies = [json.dumps({"instances": [value(model, example)]}).encode() for example in examples]
    lua = Path(tempfile.mkdtemp(), "requests.lua")
    lua.write_text(script(bodies))
    for turn in range(1, rounds + 1):
        for size in BARE:
            say = [sys.executable, "-m", "benchmarks.serving_speed", "--bare", model, str(size), str(seconds)]
            given = json.dumps([base64.b64encode(example).decode() for example in examples])
            said = subprocess.run(say, input=given, capture_output=True, text=True, check=True).stdout
            found.setdefault((f"bare_{size}", 1), []).append(json.loads(said.splitlines()[-1]))
        for server in SERVERS:
            with running(server, model, bodies[0]) as (port, pid):
                wrk(port, path(server, model), lua, 8, 5)  # what comes first is slow
                for connections in CONNECTIONS:
                    figures = load(port, pid, path(server, model), lua, connections, seconds)
                    found.setdefault((server, connections), []).append(figures)
                    print(model, f"round {turn}", server, connections, figures, flush=True)
    return [
        {
            "model": model,
            "contender": name,
            "connections": connections,
            **{key: round(statistics.median(one[key] for one in values), 3) for key in values[0]},
            "all": [round(one["per_second"], 1) for one in values],
        }
        for (name, connections), values in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of every server (default 3)")
    parser.add_argument("--seconds", type=int, default=8, help="length of one measurement in seconds (default 8)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default both")
    parser.add_argument("--data-dir", default=os.environ.get("KERASDL_DATA_DIR"), help="of TFDS")
    parser.add_argument("--serve", nargs=3, metavar=("SERVER", "MODEL", "PORT"), help="run one server here")
    parser.add_argument("--bare", nargs=3, metavar=("MODEL", "SIZE", "SECONDS"), help="measure the bare signature here")
    arguments = parser.parse_args()
    if arguments.serve:
        server, model, port = arguments.serve
        serve(server, model, int(port))
        return
    if arguments.bare:
        model, size, seconds = arguments.bare
        examples = [base64.b64decode(one) for one in json.load(sys.stdin)]
        print(json.dumps(bare(model, examples, int(size), float(seconds))))
        return
    if arguments.data_dir is None:
        raise SystemExit("give --data-dir, or set KERASDL_DATA_DIR")
    examples = requests(arguments.data_dir)
    rows = [
        row
        for model in arguments.models
        for row in measured(model, examples[model], arguments.rounds, arguments.seconds)
    ]
    protocol = (
        f"wrk, one thread, {arguments.seconds} s; one example a request; median of {arguments.rounds} rounds in turns"
    )
    _results.write_of_kind("serving_speed", protocol, rows)


if __name__ == "__main__":
    main()
