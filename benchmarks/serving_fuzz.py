"""The model server under mutated requests: no crash, no status 500, no hang, memory bounded.

    python -m benchmarks.serving_fuzz --requests 100000        (needs the extra `serving`; exports in saved_models/)

Starts from requests that are right, of some exports, by TensorFlow Serving's REST API, by KServe's V2 and by gRPC, and
breaks them: values at the ends of their types and of other types, keys that are missing or too many, nesting, cut and
changed bytes, cut and changed pictures, odd headers, paths and methods. The same seed sends the same requests.
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

import grpc
import numpy as np
import psutil
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, inference_pb2, predict_pb2

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


PREDICTION = "/tensorflow.serving.PredictionService/"
UNEXPECTED = ("UNKNOWN", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED")
"""Codes of which no request of a client is the reason; INTERNAL is the library's own for bytes that are no message."""


def valid_messages() -> list[tuple[str, Any]]:
    """Methods of gRPC and messages that are answered."""
    picture = base64.b64decode(png(20, 30, 0)["b64"])
    predictions = [
        ("cifar10", "", {"image_bytes": np.array([picture], object)}),
        ("cifar10", "class_name", {"index": np.array([0, 9], np.int32)}),
        ("vae", "", {"count": np.array([1], np.int32), "seed": np.array([0], np.int32)}),
        ("vae", "decode", {"latent": np.full([1, 40], 0.5, np.float32)}),
        ("dcgan", "from_latent", {"latent": np.zeros([1, 100], np.float32), "class_index": np.array([3], np.int32)}),
    ]
    found: list[tuple[str, Any]] = []
    for model, signature, inputs in predictions:
        message = predict_pb2.PredictRequest()
        message.model_spec.name, message.model_spec.signature_name = model, signature
        for name, array in inputs.items():
            message.inputs[name].CopyFrom(tf.make_tensor_proto(array))
        found.append((PREDICTION + "Predict", message))
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata.model_spec.name = "cifar10"
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "vae"
    several = inference_pb2.MultiInferenceRequest()
    several.tasks.add(method_name="tensorflow/serving/classify").model_spec.name = "cifar10"
    found += [
        (PREDICTION + "GetModelMetadata", metadata),
        ("/tensorflow.serving.ModelService/GetModelStatus", status),
        (PREDICTION + "MultiInference", several),
    ]
    return found


def changed_message(chance: random.Random, message: Any) -> None:
    """Makes something of a message wrong, at some place."""
    fields = [field for field in message.DESCRIPTOR.fields if chance.random() < 0.5]
    for field in fields[:2]:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key in list(value):
                if chance.random() < 0.1:
                    value[key + "x"].CopyFrom(value[key])
                    del value[key]
                elif chance.random() < 0.6:
                    changed_message(chance, value[key])
        elif field.message_type is not None:
            for one in value if field.is_repeated else [value]:
                changed_message(chance, one)
        else:
            of_type = {
                field.CPPTYPE_STRING: ["", "x", "\x00", "decode", "serving_default"],
                field.CPPTYPE_BOOL: [True, False],
                field.CPPTYPE_FLOAT: [0.0, math.nan, math.inf, -3e38],
                field.CPPTYPE_DOUBLE: [0.0, math.nan, math.inf, -1e308],
                field.CPPTYPE_ENUM: [0, 1, 3, 7, 9, 19, 22, 99],
            }.get(field.cpp_type, [0, 1, -1, 2**31 - 1, 10_001])
            if field.type == field.TYPE_BYTES:
                of_type = [b"", b"\xff", broken(chance, value if isinstance(value, bytes) else b"abc")]
            try:
                if field.is_repeated:
                    value.extend([chance.choice(of_type)] * chance.choice([1, 1, 5, 300]))
                else:
                    setattr(message, field.name, chance.choice(of_type))
            except ValueError:  # not of this type
                message.ClearField(field.name)


def call(chance: random.Random, right: list[tuple[str, Any]]) -> tuple[str, bytes]:
    """A method of gRPC and the bytes of a message."""
    method, message = chance.choice(right)
    changed = type(message).FromString(message.SerializeToString())
    for _ in range(chance.choice([1, 1, 2, 4])):
        changed_message(chance, changed)
    data = changed.SerializeToString()
    return method, broken(chance, data) if chance.random() < 0.15 else data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="how many (default 100000)")
    parser.add_argument("--seed", type=int, default=0, help="of the requests (default 0)")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    for model in MODELS:
        (root / model).symlink_to(SAVED_MODELS / model)
    words = [sys.executable, "-m", "kerasdl.serving", str(root), "--rest-port", "0", "--grpc-port", "0"]
    log = Path(tempfile.mkdtemp(), "errors")
    with log.open("w") as errors:
        server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert server.stdout is not None
    ready, beside = 0, ""
    while ready < len(MODELS):
        line = server.stdout.readline()
        if line.startswith("gRPC: "):
            beside = line.removeprefix("gRPC: ").strip()
        elif ":predict" in line:
            ready, port = ready + 1, int(line.split("http://")[1].split(":")[1].split("/")[0])
    threading.Thread(target=server.stdout.read, daemon=True).start()
    process, right = psutil.Process(server.pid), valid()
    messages = valid_messages()
    statuses: Counter[str] = Counter()
    wrong: list[str] = []
    slowest, lock, left = [0.0], threading.Lock(), iter(range(arguments.requests))

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        channel = grpc.insecure_channel(beside)
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            chance = random.Random(f"{arguments.seed} {number}")
            began, status, answer = time.perf_counter(), 0, b""
            if chance.random() < 0.3:
                path, data = call(chance, messages)
                code = "OK"
                try:
                    channel.unary_unary(path)(data, timeout=60)
                except grpc.RpcError as error:
                    code, answer = error.code().name, str(error.details()).encode()
                with lock:
                    statuses[code] += 1
                    slowest[0] = max(slowest[0], time.perf_counter() - began)
                    if code in UNEXPECTED and b"deserializing" not in answer:
                        wrong.append(f"request {number}: {path} {data[:200]!r}: {code} {answer[:200]!r}")
                continue
            method, path, data, headers = request(chance, right)
            try:
                connection.request(method, path, data, headers)
                reply = connection.getresponse()
                status, answer = reply.status, reply.read()
            except (OSError, http.client.HTTPException) as error:
                answer = repr(error).encode()
                connection.close()
            with lock:
                statuses[str(status)] += 1
                slowest[0] = max(slowest[0], time.perf_counter() - began)
                if status in (0, 500, 504):
                    wrong.append(f"request {number}: {method} {path} {data[:200]!r}: {status} {answer[:200]!r}")

    for path, body in right:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        status = connection.getresponse().status
        assert status == (400 if ":classify" in path else 200), (path, status)
    channel = grpc.insecure_channel(beside)
    for path, message in messages:
        try:
            channel.unary_unary(path)(message.SerializeToString(), timeout=60)
        except grpc.RpcError:
            if "MultiInference" not in path:  # which no model here answers
                raise
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
        "statuses": dict(sorted(statuses.items())),
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
