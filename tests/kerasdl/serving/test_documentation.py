"""OpenAPI and the page: every request that they show is sent."""

import json
import shlex
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
import numpy as np
import openapi_spec_validator
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from kerasdl.serving import documentation
from kerasdl.serving.limits import Limits
from kerasdl.serving.predictor import Predictor
from kerasdl.serving.repository import ModelRepository
from kerasdl.serving.servable import WARMUP
from kerasdl.serving.streaming_request import SETTINGS

EXPORTS = Path(__file__).parents[3] / "saved_models"
ODD_NAME = 'it\'s <b>&amp; "odd"'


def _record(folder: Path, x: np.ndarray) -> None:
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto(x))
    (folder / WARMUP).parent.mkdir()
    with tf.io.TFRecordWriter(str(folder / WARMUP)) as writer:
        writer.write(log.SerializeToString())


@pytest.fixture(scope="module")
def repository(tmp_path_factory, root, scales) -> ModelRepository:
    """Three of the applications, one with an odd name, one whose example JSON cannot carry, two without examples."""
    folder = tmp_path_factory.mktemp("documented")
    for name in ("cifar10", "sentiment", "vae"):
        (folder / name).symlink_to(EXPORTS / name)
    for name in ("echo", "odd"):
        (folder / name).symlink_to(root / name)
    for name, value in ((ODD_NAME, 1.0), ("nan", np.nan)):
        _record(Path(shutil.copytree(scales[2], folder / name / "1")), np.full((1, 2), value, np.float32))
    repository = ModelRepository(folder)
    repository.poll()
    assert repository.unavailable() == {}
    return repository


@pytest.fixture(scope="module")
def served(serve, repository) -> Iterator[Any]:
    with serve(repository) as client:
        yield client


@pytest.fixture(scope="module")
def document(served) -> dict[str, Any]:
    reply = served("GET", "/openapi.json")
    assert reply.status == 200
    return json.loads(reply.body, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def _examples(client, document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Path, signature and body of every example, and the description of its path."""
    for path, methods in document["paths"].items():
        if "post" in methods:
            content = methods["post"]["requestBody"]["content"]["application/json"]
            for name, example in content["examples"].items():
                body = example["value"] if "value" in example else client("GET", example["externalValue"]).json
                yield path, name, body, methods["post"]


def test_document_is_valid(document):
    openapi_spec_validator.validate(document)


def test_every_example_is_answered(served, document):
    shown = set()
    for path, name, body, operation in _examples(served, document):
        reply = served("POST", path, json.dumps(body))
        assert reply.status == 200, (path, name, reply.body)
        jsonschema.validate(body, operation["requestBody"]["content"]["application/json"]["schema"])
        if reply.headers["content-type"] == "application/json":
            jsonschema.validate(reply.json, operation["responses"]["200"]["content"]["application/json"]["schema"])
        shown.add((path, name))
    signatures = {
        "cifar10": {"serving_default", "classify", "pixels", "class_name"},
        "sentiment": {"serving_default", "classify", "explain", "class_name"},
        "vae": {"serving_default", "generate", "encode", "pixels", "decode", "score"},
        quote(ODD_NAME): {"serving_default"},
    }
    assert {(path, name) for path, name in shown if path.startswith("/v1/")} == {
        (f"/v1/models/{model}:predict", name) for model, names in signatures.items() for name in names
    }
    assert ("/v2/models/vae/infer", "generate") in shown  # answers with pictures
    assert ("/v2/models/vae/infer", "encode") not in shown  # takes pictures, which that JSON cannot carry


def test_every_path_to_be_read_is_answered(served, document):
    paths = [path for path, methods in document["paths"].items() if "get" in methods]
    assert len(paths) == 2 + 3 * 7
    assert [served("GET", path).status for path in paths] == [200] * len(paths)


@pytest.mark.parametrize(
    ("model", "signature", "body", "fits"),
    [
        ("odd", "scalar", {"signature_name": "scalar", "inputs": {"x": [1.5]}}, True),
        ("odd", "scalar", {"signature_name": "scalar", "instances": [{"x": 1.5}]}, True),
        ("odd", "scalar", {"signature_name": "scalar", "inputs": {"x": [[1.5]]}}, False),
        ("odd", "scalar", {"signature_name": "scalar", "inputs": {"x": ["a"]}}, False),
        ("odd", "scalar", {"signature_name": "scalar"}, False),
        ("odd", "scalar", {"inputs": {"x": [1.5]}}, False),
        ("odd", "scalar", {"signature_name": "scalar", "inputs": {}}, False),
        ("cifar10", "pixels", {"signature_name": "pixels", "inputs": {"image": [[[[0, 0, 0]]]]}}, False),
        ("cifar10", "classify", {"signature_name": "classify", "inputs": {"image_bytes": [{"b64": "AA=="}]}}, True),
        ("cifar10", "classify", {"inputs": {"image_bytes": [{"b64": "AA=="}]}}, True),  # of serving_default
        ("cifar10", "classify", {"inputs": {"image_bytes": [{"b64": 3}]}}, False),
        ("echo", "int8", {"signature_name": "int8", "inputs": {"x": [[-128]]}}, True),  # of unknown rank
    ],
)
def test_schema_of_a_request(document, model, signature, body, fits):
    content = document["paths"][f"/v1/models/{model}:predict"]["post"]["requestBody"]["content"]["application/json"]
    assert signature in {schema["title"] for schema in content["schema"]["anyOf"]}
    assert jsonschema.Draft202012Validator(content["schema"]).is_valid(body) == fits


class _Page(HTMLParser):
    """Gathers headings, commands and addresses of other files."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {"h2": [], "h3": [], "pre": []}
        self.addresses: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag in self.texts:
            self.texts[tag].append("")
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open[-1:] == [tag]:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data


def test_every_command_of_the_page_works(served, repository):
    reply = served("GET", "/docs")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/html")
    page = _Page()
    page.feed(reply.body.decode())
    assert page.texts["h2"] == sorted(["cifar10", "sentiment", "vae", "echo", "odd", "nan", ODD_NAME])
    signatures = [inputs for name in repository.names() for inputs in repository.acquire(name).dtypes.values()]
    assert len(page.texts["h3"]) == sum(map(bool, signatures))
    assert len(page.texts["pre"]) == 15
    assert not [
        address
        for address in page.addresses
        if not address.startswith(("#", "/openapi.json", "/page/")) and address != "/"
    ]
    origin = f"http://127.0.0.1:{served.port}"
    long = 0
    for command in page.texts["pre"]:
        *fetch, send = command.split(" |\n")
        program, option, body, url = shlex.split(send)
        assert (program, option, url[: len(origin)]) == ("curl", "-d", origin)
        if fetch:
            program, option, source = shlex.split(fetch[0])
            assert (program, option, source[: len(origin)], body) == ("curl", "-s", origin, "@-")
            body = served("GET", source[len(origin) :]).body.decode()
            long += 1
        assert served("POST", url[len(origin) :], body).status == 200, command
    assert long >= 1


def test_without_an_example(served):
    for path in ("/docs/nan/serving_default.json", "/docs/echo/int8.json", "/docs/nope/serving_default.json"):
        reply = served("GET", path)
        assert reply.status == 404
        assert list(reply.json) == ["error"]


def test_key(repository):
    predictor = Predictor(repository, Limits())
    document = documentation.openapi(predictor, keyed=True)
    openapi_spec_validator.validate(document)
    assert document["security"] == [{"key": []}]
    assert document["paths"]["/readyz"]["get"]["security"] == []
    assert "security" not in documentation.openapi(predictor, keyed=False)
    page = _Page()
    page.feed(documentation.page(predictor, "https://host", keyed=True))
    assert all('-H "Authorization: Bearer $KEY"' in command for command in page.texts["pre"])


@pytest.fixture(scope="module")
def streaming_client(serve, tmp_path_factory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("streaming")
    for name in ("captioner", "chargen"):
        (folder / name).symlink_to(EXPORTS / name)
    repository = ModelRepository(folder)
    repository.poll()
    with serve(repository) as client:
        yield client


def test_stream(streaming_client):
    document = streaming_client("GET", "/openapi.json").json
    openapi_spec_validator.validate(document)
    operation = document["paths"]["/stream/chargen"]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    assert set(content["schema"]["properties"]) == {"prompt", *SETTINGS}
    fits = jsonschema.Draft202012Validator(content["schema"]).is_valid
    bodies: list[tuple[dict[str, Any], int]] = [
        (content["examples"]["stream"]["value"], 200),
        ({"prompt": "To be", "length": 2, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "seed": -1}, 200),
        ({"length": 2}, 400),
        ({"prompt": "To be", "length": 0}, 400),
        ({"prompt": "To be", "length": 2.5}, 400),
        ({"prompt": "To be", "top_p": 0}, 400),
        ({"prompt": "To be", "nope": 1}, 400),
    ]
    for body, status in bodies:
        reply = streaming_client("POST", "/stream/chargen", json.dumps(body))
        assert (reply.status, fits(body)) == (status, status == 200), body
        if status == 200:
            assert reply.headers["content-type"].partition(";")[0] in operation["responses"]["200"]["content"]


def test_stream_of_a_caption(streaming_client):
    paths = streaming_client("GET", "/openapi.json").json["paths"]
    schema = paths["/stream/captioner"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    example = streaming_client("GET", "/docs/captioner/caption.json").json["inputs"]
    picture = {"image_bytes": example["image_bytes"][0]}
    for body, status in ((picture, 200), ({}, 400), ({**picture, "length": 3}, 400), ({"image_bytes": "AA=="}, 400)):
        assert streaming_client("POST", "/stream/captioner", json.dumps(body)).status == status
        assert jsonschema.Draft202012Validator(schema).is_valid(body) == (status == 200)


def test_page_shows_how_to_stream(streaming_client):
    page = _Page()
    page.feed(streaming_client("GET", "/docs").body.decode())
    caption, command = (text for text in page.texts["pre"] if "/stream/" in text)
    assert caption.endswith(f"curl -N -d @- http://127.0.0.1:{streaming_client.port}/stream/captioner")
    program, *options, body, url = shlex.split(command)
    assert (page.texts["h3"][-1], program, options) == ("stream", "curl", ["-N", "-d"])
    reply = streaming_client("POST", url.removeprefix(f"http://127.0.0.1:{streaming_client.port}"), body)
    assert reply.body.endswith(b'event: done\ndata: {"characters": 200}\n\n')


def test_only_what_streams_is_shown_as_a_stream(document):
    assert not [path for path in document["paths"] if path.startswith("/stream/")]
