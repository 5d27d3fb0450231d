"""KServe's V2 protocol: through Triton's client, and byte for byte where that sends no such thing."""

import gzip
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from kerasdl.serving.repository import ModelRepository

PAIR = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
TEXT = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["good", "bad"]}


@pytest.fixture
def remote(client) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{client.port}") as remote:
        yield remote


def _input(name: str, array: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    return tensor.set_data_from_numpy(array, binary_data=binary)


def _infer(client, model: str, body: dict[str, Any], raw: bytes = b"", **headers: str):
    text = json.dumps(body).encode()
    if raw:
        headers["Inference-Header-Content-Length"] = str(len(text))
    return client("POST", f"/v2/models/{model}/infer", text + raw, headers)


def _named(signature: str) -> dict[str, Any]:
    return {"parameters": {"signature_name": signature}}


# --- metadata and health ----------------------------------------------------------------------------------


def test_server_metadata(remote):
    known = remote.get_server_metadata()
    assert known["name"] == "kerasdl"
    assert known["version"]
    assert known["extensions"] == ["binary_tensor_data"]


def test_server_that_is_not_installed(client, monkeypatch):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    assert client("GET", "/v2").json["version"] == "unknown"


def test_health(client, remote):
    assert remote.is_server_live()
    assert remote.is_server_ready()
    assert client("GET", "/v2/health/live").json == {"live": True}
    assert client("GET", "/v2/health/ready").json == {"ready": True}


def test_model_metadata(remote):
    for version in ("", "3"):
        known = remote.get_model_metadata("pair", version)
        x, y = ({"name": name, "datatype": "FP32", "shape": [-1, 2]} for name in "xy")
        assert known == {
            "name": "pair",
            "versions": ["3"],
            "platform": "tensorflow_savedmodel",
            "inputs": [x],
            "outputs": [{**y, "shape": [-1, 2]}],
            "parameters": {"signature_name": "serving_default"},
            "signatures": {"serving_default": {"inputs": [x], "outputs": [y]}},
        }


def test_metadata_of_many_signatures_and_of_an_unknown_rank(remote):
    known = remote.get_model_metadata("echo")
    assert known["inputs"] == []  # there is no serving_default
    assert {name: signature["inputs"][0]["datatype"] for name, signature in known["signatures"].items()} == {
        **{"float32": "FP32", "float64": "FP64", "float16": "FP16", "bfloat16": "BF16", "complex64": "COMPLEX64"},
        **{f"{kind}{bits}": f"{kind}{bits}".upper() for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
        **{"bool": "BOOL", "string": "BYTES"},
    }
    assert known["signatures"]["bool"]["inputs"][0]["shape"] == [-1]


def test_model_ready(remote, client):
    assert remote.is_model_ready("pair")
    assert remote.is_model_ready("pair", "3")
    assert not remote.is_model_ready("pair", "9")
    assert not remote.is_model_ready("nope")
    assert client("GET", "/v2/models/p%61ir/ready").json == {"name": "pair", "ready": True}


def test_index(remote, client):
    entries = remote.get_model_repository_index()
    assert {entry["name"]: entry["version"] for entry in entries} == {
        **dict.fromkeys(("echo", "named", "odd", "text"), "1"),
        "pair": "3",
    }
    assert {(entry["state"], entry["reason"]) for entry in entries} == {("READY", "")}
    assert client("POST", "/v2/repository/index").json == entries


def test_model_that_is_not_ready(serve, scales, tmp_path):
    shutil.copytree(scales[1], tmp_path / "good" / "1")
    (tmp_path / "bad" / "2").mkdir(parents=True)
    (tmp_path / "bad" / "2" / "saved_model.pb").write_bytes(b"no model")
    repository = ModelRepository(tmp_path, retry_seconds=1000)
    repository.poll()
    with serve(repository) as client:
        assert client("GET", "/v2/health/live").status == 200
        assert client("GET", "/v2/health/ready").status == 503
        for method, path in (("GET", ""), ("GET", "/versions/2/ready"), ("POST", "/infer")):
            reply = client(
                method, f"/v2/models/bad{path}", json.dumps({"inputs": [PAIR]}) if method == "POST" else None
            )
            assert reply.status == 503
            assert reply.json["error"].startswith("Model bad version 2 is not ready: ")
        assert client("GET", "/v2/models/bad/versions/1").status == 404
        bad, good = client("POST", "/v2/repository/index").json
        assert (bad["name"], bad["version"], bad["state"]) == ("bad", "2", "UNAVAILABLE")
        assert bad["reason"]
        assert client("POST", "/v2/repository/index", '{"ready": true}').json == [good]
        shutil.copytree(scales[2], tmp_path / "good" / "2")
        repository.poll()
        assert client("GET", "/v2/models/good").json["versions"] == ["2"]
        assert client("GET", "/v2/models/good/versions/1/ready").status == 404  # unloaded, and no failure


@pytest.mark.parametrize("change", ["load", "unload"])
def test_models_do_not_change_on_request(remote, change):
    with pytest.raises(InferenceServerException, match="as their folders change") as caught:
        getattr(remote, f"{change}_model")("pair")
    assert caught.value.status() == "501"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/"),
        ("GET", "/v2/models"),
        ("GET", "/v2/models/pair/infer"),
        ("GET", "/v2/models/pair/config"),
        ("POST", "/v2/models/pair"),
        ("POST", "/v2"),
        ("GET", "/v2/models/pair/versions/x"),
        ("GET", "/v2/models/nope"),
        ("GET", "/v2/models/pair/versions/9"),
        ("POST", "/v2/models/nope/infer"),
        ("POST", "/v2/models/pair/versions/9/infer"),
    ],
)
def test_not_found(client, method, path):
    reply = client(method, path, json.dumps({"inputs": [PAIR]}) if method == "POST" else None)
    assert reply.status == 404
    assert list(reply.json) == ["error"]


# --- inference --------------------------------------------------------------------------------------------


def test_reply_as_json(client):
    reply = _infer(
        client,
        "named",
        {"id": "7", "inputs": [{**PAIR, "name": "image"}, {**TEXT, "name": "caption", "shape": [1], "data": ["a"]}]},
    )
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.json == {
        "model_name": "named",
        "model_version": "1",
        "id": "7",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["a!"]},
            {"name": "score", "datatype": "FP32", "shape": [1], "data": [3.0]},
        ],
    }


VALUES = {
    "bool": [True, False],
    "string": [b"", bytes(range(256))],
    **{name: [0.5, -2.0] for name in ("float16", "float32", "float64")},
    **{f"int{bits}": [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": [0, 2**bits - 1] for bits in (8, 16, 32, 64)},
}


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
@pytest.mark.parametrize("name", VALUES)
def test_data_type(remote, name, binary_input, binary_output):
    values = [b"", "é☃".encode()] if name == "string" and not (binary_input and binary_output) else VALUES[name]
    array = np.array(values, object if name == "string" else name).reshape(2, 1)
    binary_input |= name == "float16"  # the client refuses to write it in JSON
    result = remote.infer(
        "echo",
        [_input("x", array, binary=binary_input)],
        outputs=[triton.InferRequestedOutput("y", binary_data=binary_output)],
        parameters={"signature_name": name},
    )
    assert ("parameters" in result.get_output("y")) == binary_output
    answer = result.as_numpy("y")
    if name == "string" and not binary_output:
        answer = np.array([value.encode() for value in answer.flat], object).reshape(answer.shape)
    assert answer.dtype == array.dtype
    assert np.array_equal(answer, array)


def test_binary_is_what_triton_asks_for_by_default(remote):
    result = remote.infer("pair", [_input("x", np.array([[1, 2]], np.float32))], request_id="a b")
    assert result.get_output("y")["parameters"] == {"binary_data_size": 8}
    assert result.get_response()["id"] == "a b"
    assert np.array_equal(result.as_numpy("y"), [[2, 4]])


def test_bfloat16(client):
    body = {"inputs": [{"name": "x", "shape": [2], "datatype": "BF16", "data": [0.5, 3]}], **_named("bfloat16")}
    assert _infer(client, "echo", body).json["outputs"][0]["data"] == [0.5, 3.0]
    raw = np.array([0.5, 3], ml_dtypes.bfloat16).tobytes()
    tensor = {"name": "x", "shape": [2], "datatype": "BF16", "parameters": {"binary_data_size": 4}}
    parameters = {"signature_name": "bfloat16", "binary_data_output": True}
    reply = _infer(client, "echo", {"inputs": [tensor], "parameters": parameters}, raw)
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.body[int(reply.headers["inference-header-content-length"]) :] == raw


@pytest.mark.parametrize(
    ("shape", "data"),
    [([], [5]), ([2, 1], [5, 6]), ([2, 1], [[5], [6]]), ([0], []), ([2, 0], [[], []]), ([0, 3], [])],
)
def test_flat_and_nested_data(client, shape, data):
    body = {"inputs": [{"name": "x", "shape": shape, "datatype": "INT32", "data": data}], **_named("int32")}
    [output] = _infer(client, "echo", body).json["outputs"]
    assert (output["shape"], output["data"]) == (shape, np.ravel(data).tolist())


@pytest.mark.parametrize("shape", [[], [0], [3, 0]])
def test_bool_of_any_shape_in_binary(client, shape):
    raw = b"\x02"[: int(np.prod(shape))]  # any byte but 0 is true
    tensor = {"name": "x", "shape": shape, "datatype": "BOOL", "parameters": {"binary_data_size": len(raw)}}
    [output] = _infer(client, "echo", {"inputs": [tensor], **_named("bool")}, raw).json["outputs"]
    assert (output["shape"], output["data"]) == (shape, [True] * len(raw))


def test_two_inputs_in_binary_and_an_output_filter(remote):
    inputs = [
        _input("image", np.array([[1, 2], [3, 4]], np.float32)),
        _input("caption", np.array([b"\xff", b"b"], object)),
    ]
    result = remote.infer("named", inputs)
    assert list(result.as_numpy("label")) == [b"\xff!", b"b!"]
    assert list(result.as_numpy("score")) == [3, 7]
    result = remote.infer("named", inputs, outputs=[triton.InferRequestedOutput("score")])
    assert [output["name"] for output in result.get_response()["outputs"]] == ["score"]
    with pytest.raises(InferenceServerException, match="is not one of signature") as caught:
        remote.infer("named", inputs, outputs=[triton.InferRequestedOutput("nope")])
    assert caught.value.status() == "400"


def test_numbers_that_are_not_finite(client):
    text = b'{"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [NaN, Infinity, -Infinity, 1e39]}]}'
    [output] = client("POST", "/v2/models/pair/infer", text).json["outputs"]
    assert np.array_equal(output["data"], [np.nan, np.inf, -np.inf, np.inf], equal_nan=True)


def test_bytes_that_json_cannot_carry(client):
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}
    reply = _infer(client, "text", {"inputs": [tensor]}, b"\1\0\0\0\xff")
    assert reply.status == 400
    assert 'ask for it with the parameter "binary_data": true' in reply.json["error"]
    reply = _infer(client, "text", {"inputs": [tensor], "parameters": {"binary_data_output": True}}, b"\1\0\0\0\xff")
    assert reply.body.endswith(b"\1\0\0\0\xff")


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_body(remote, client, algorithm):
    inputs = [_input("x", np.array([[1, 2]], np.float32))]
    result = remote.infer("pair", inputs, request_compression_algorithm=algorithm)
    assert np.array_equal(result.as_numpy("y"), [[2, 4]])
    reply = client("POST", "/v2/models/pair/infer", b"{}", {"Content-Encoding": algorithm})
    assert reply.status == 400
    assert f"Cannot inflate the {algorithm} body" in reply.json["error"]


@pytest.mark.parametrize("count", [10_000, 300_000])
def test_long_bodies_and_answers(client, count):
    """Beside the loop, and in another process."""
    data = list(range(count))
    body = {"inputs": [{"name": "x", "shape": [1, count], "datatype": "INT32", "data": data}], **_named("int32")}
    [output] = _infer(client, "echo", body).json["outputs"]
    assert output["data"] == data


def test_reading_needs_no_tensorflow():
    """Else the process that reads long bodies would take seconds to begin."""
    program = "import sys, kerasdl.serving.kserve_tensor; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_commas_in_binary_data_are_no_numbers(serve, root, monkeypatch):
    repository = ModelRepository(root)
    repository.poll()
    monkeypatch.setattr("kerasdl.serving.apart.Apart.run", None)  # a call of it would fail
    raw = b"," * 400_000
    tensor = {"name": "x", "shape": [1, len(raw)], "datatype": "UINT8", "parameters": {"binary_data_size": len(raw)}}
    parameters = {"signature_name": "uint8", "binary_data_output": True}
    with serve(repository) as client:
        reply = _infer(client, "echo", {"inputs": [tensor], "parameters": parameters}, raw)
    assert (reply.status, reply.body[-len(raw) :]) == (200, raw)


# --- mistakes ---------------------------------------------------------------------------------------------


def _pair(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{key: value for key, value in {**PAIR, **changes}.items() if value is not None}]}


MISTAKES: list[tuple[str, Any, str]] = [
    ("pair", [], "Is not object"),
    ("pair", {}, '"inputs" of the request is missing'),
    ("pair", {"inputs": {}}, '"inputs" of the request must be a list'),
    ("pair", {"inputs": [3]}, '"inputs" of the request must be a list of objects'),
    ("pair", {"inputs": []}, "Missing but required: {x}."),
    ("pair", {"id": 3, **_pair()}, '"id" of the request must be a string'),
    ("pair", {"parameters": [], **_pair()}, '"parameters" of the request must be an object'),
    ("pair", {"parameters": {"signature_name": 3}, **_pair()}, '"signature_name" of the parameters must be a string'),
    ("pair", {**_named("nope"), **_pair()}, 'Serving signature name: "nope" not found'),
    ("pair", {"parameters": {"binary_data_output": 1}, **_pair()}, "must be true or false"),
    ("pair", {"outputs": {}, **_pair()}, '"outputs" of the request must be a list'),
    ("pair", {"outputs": [{}], **_pair()}, '"name" of an output is missing'),
    ("pair", {"outputs": [{"name": "y"}] * 2, **_pair()}, 'Output "y" is asked for twice'),
    ("pair", {"outputs": [{"name": "x"}], **_pair()}, 'Output "x" is not one of signature "serving_default": y'),
    ("pair", {"inputs": [PAIR, PAIR]}, 'Input "x" is sent twice'),
    ("pair", _pair(name=None), '"name" of an input is missing'),
    ("pair", _pair(name="z"), 'Input "z" is not one of the signature: x'),
    ("pair", _pair(datatype=None), '"datatype" of input "x" is missing'),
    ("pair", _pair(datatype="FP64"), 'Input "x" has datatype FP64, but the signature takes FP32'),
    ("pair", _pair(shape=None), '"shape" of input "x" is missing'),
    ("pair", _pair(shape=[-1, 2]), '"shape" of input "x" must be a list'),
    ("pair", _pair(shape=[1.0, 2]), '"shape" of input "x" must be a list'),
    ("pair", _pair(shape=[1] * 64 + [2]), '"shape" of input "x" must be a list'),
    ("pair", _pair(shape=[2, 2]), 'has shape [2], but its "shape" is [2, 2]'),
    ("pair", _pair(data=[[1], [2]]), 'has shape [2, 1], but its "shape" is [1, 2]'),
    ("pair", _pair(data=[[1], 2]), 'Lists of input "x" differ in length or depth'),
    ("pair", _pair(data=[[1], [2, 3]]), 'Lists of input "x" differ in length or depth'),
    ("pair", _pair(data=None), '"data" or the parameter "binary_data_size" of input "x" must be given'),
    ("pair", _pair(parameters={"binary_data_size": 8}), "must be given, and not both"),
    ("pair", _pair(data=7), '"data" of input "x" must be a list'),
    ("pair", _pair(data=[1, "2"]), '"data" of input "x" holds what is no FP32'),
    ("pair", _pair(data=[1, True]), '"data" of input "x" holds what is no FP32'),
    ("pair", _pair(data=[1, 10**400]), '"data" of input "x" holds what is no FP32'),
    ("pair", _pair(shape=[2], data=[1, 2]), 'Input "x" has shape [2], but signature "serving_default" takes'),
    ("text", {"inputs": [{**TEXT, "data": ["a", 3]}]}, "holds what is no BYTES"),
    ("text", {"inputs": [{**TEXT, "data": ["a", "\ud800"]}]}, "holds what is no BYTES"),
    ("odd", {**_named("failing"), "inputs": [{**PAIR, "shape": [2], "data": [7, 7]}]}, "indices"),
]
BAD_VALUES = [
    *((f"int{bits}", bad) for bits in (8, 16, 32, 64) for bad in (2 ** (bits - 1), -(2 ** (bits - 1)) - 1, 1.0)),
    *((f"uint{bits}", bad) for bits in (8, 16, 32, 64) for bad in (2**bits, -1, False)),
    *(("bool", bad) for bad in (0, 1, "true", None)),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_value_beyond_its_data_type(client, name, value):
    tensor = {"name": "x", "shape": [1], "datatype": name.upper(), "data": [value]}
    reply = _infer(client, "echo", {"inputs": [tensor], **_named(name)})
    assert (reply.status, reply.json) == (400, {"error": f'"data" of input "x" holds what is no {name.upper()}'})


@pytest.mark.parametrize(("model", "body", "text"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistake(client, model, body, text):
    reply = _infer(client, model, body)
    assert reply.status == 400
    assert list(reply.json) == ["error"]
    assert text in reply.json["error"]


def test_broken_json_comes_before_the_unknown_model(client):
    for body, status in (("{", 400), ("{}", 404)):
        assert client("POST", "/v2/models/nope/infer", body).status == status


@pytest.mark.parametrize(
    ("size", "raw", "length", "text"),
    [
        (8, b"1234567", None, '7 bytes behind the JSON are left for input "x", not 8'),
        (-1, b"12345678", None, 'are left for input "x", not -1'),
        (7, b"1234567", None, "takes 8 bytes, not 7"),
        (8, b"123456789", None, "1 bytes behind the JSON belong to no input"),
        ("8", b"12345678", None, '"binary_data_size" of input "x" must be an integer'),
        (8, b"12345678", "x", "Inference-Header-Content-Length must be a number, not x"),
        (8, b"12345678", "9" * 5000, "Inference-Header-Content-Length must be a number"),
        (8, b"12345678", "1000", "Inference-Header-Content-Length is 1000, but the body holds"),
        (8, b"12345678", "5", "JSON Parse error"),
    ],
)
def test_mistake_in_binary_data(client, size, raw, length, text):
    body = json.dumps(_pair(data=None, parameters={"binary_data_size": size})).encode()
    headers = {"Inference-Header-Content-Length": length or str(len(body))}
    reply = client("POST", "/v2/models/pair/infer", body + raw, headers)
    assert reply.status == 400
    assert text in reply.json["error"]


@pytest.mark.parametrize("raw", [b"", b"\1\0\0", b"\1\0\0\0", b"\1\0\0\0ab", b"\0\0\0\0" * 2, b"\xff\xff\xff\xffab"])
def test_mistake_in_binary_strings(client, raw):
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    reply = _infer(client, "text", {"inputs": [tensor]}, raw)
    assert reply.status == 400
    assert 'The bytes of input "text" must be 1 strings, each behind its length' in reply.json["error"]


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": [{**PAIR, "parameters": {"shared_memory_region": "r"}}]},
        {"outputs": [{"name": "y", "parameters": {"classification": 2}}]},
        {"inputs": [{**PAIR, "datatype": "COMPLEX64"}], **_named("complex64")},
    ],
)
def test_what_is_not_supported(client, change):
    reply = _infer(client, "echo", {**_pair(), **_named("float32"), **change})
    assert reply.status == 501
    assert list(reply.json) == ["error"]


# --- limits and measurements ------------------------------------------------------------------------------


def test_limits_and_metrics(serve, root):
    repository = ModelRepository(root)
    repository.poll()
    with serve(repository, max_body_mib=1000 / 2**20, max_examples=2, metrics_path="/metrics") as client:
        assert _infer(client, "pair", _pair()).status == 200
        assert _infer(client, "pair", {**_pair(), "id": "0" * 1000}).status == 413
        packed = gzip.compress(json.dumps({**_pair(), "id": "0" * 1000}).encode())
        assert client("POST", "/v2/models/pair/infer", packed, {"Content-Encoding": "gzip"}).status == 413
        reply = _infer(client, "pair", _pair(shape=[3, 2], data=[0] * 6))
        assert reply.status == 400
        assert "holds 3 examples; this server takes 2" in reply.json["error"]
        assert _infer(client, "nope", _pair()).status == 404
        page = client("GET", "/metrics").body
    for labels, count in (
        (b'model_name="pair",status="OK"', 1),
        (b'model_name="pair",status="INVALID_ARGUMENT"', 3),
        (b'model_name="",status="NOT_FOUND"', 1),
    ):
        assert b":request_count{%s} %d.0\n" % (labels, count) in page


def test_an_answer_that_takes_too_long(serve, root, monkeypatch):
    repository = ModelRepository(root)
    repository.poll()
    release = threading.Event()
    monkeypatch.setattr("kerasdl.serving.servable.Servable.run", lambda *_: release.wait(30))
    with serve(repository, timeout_seconds=0.1) as client:
        reply = _infer(client, "pair", _pair())
        release.set()
        assert (reply.status, reply.json) == (504, {"error": "No answer within 0.1 seconds"})
        reply = _infer(client, "pair", _pair())
        assert reply.status == 500
