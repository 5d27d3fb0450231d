"""The REST API, as tables of request, status and text; the numbers of the rows are those of the protocol notes."""

import base64
import gzip
import json
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from kerasdl.serving.errors import Code
from kerasdl.serving.repository import ModelRepository
from kerasdl.serving.waiting import HTTP_STATUS

GOOD = '{"instances": [[1.0, 2.0]]}'
INT64_MAX = 2**63 - 1


# --- URLs and methods -------------------------------------------------------------------------------------

MALFORMED = [
    ("PUT", "/v1/models/pair:predict"),
    ("DELETE", "/v1/models/pair"),
    ("PATCH", "/v1/models/pair"),
    ("GET", "/v1/models/pair:predict"),
    ("POST", "/v1/models/pair"),
    ("POST", "/v1/models/pair:predict?x=1"),
    ("POST", "/v1/models/pair:predict?"),
    ("POST", "/v1/models/pair:predict#here"),
    ("POST", "/v1/models/pair:classify?x=1"),
    ("POST", "/v1/models/pair:regress?x=1"),
    ("GET", "/v1/models/pair/metadata?x=1"),
    ("GET", "/v1/models/pair/metadata#here"),
    ("GET", "/v1/models/pair/versions/3?x=1"),
    ("GET", "/v1/models?x=1"),
    ("POST", "/v1/models/pair:PREDICT"),
    ("POST", "/v1/models/pair:Classify"),
    ("POST", "/v1/models/pair:predict/"),
    ("GET", "/v1/models/pair/"),
    ("GET", "/v1/models/"),
    ("GET", "/v1/models/pair/metadata/"),
    ("GET", "/v1/models/pair/versions/3/labels/stable"),
    ("POST", "/v1/models/pair:explain"),
    ("POST", "/v1/models/:predict"),
    ("POST", "/v1/models/pair/versions/x:predict"),
    ("POST", "/v1/models/pair/versions/3/labels/stable:predict"),
    ("GET", "/v1/models/a/b"),
    ("GET", "/v1/nonsense"),
]


@pytest.mark.parametrize(("method", "path"), MALFORMED)
def test_malformed_request(client, method, path):
    reply = client(method, path, GOOD if method == "POST" else None)
    assert reply.status == 400
    assert reply.headers["content-type"] == "application/json"
    assert reply.json == {"error": f"Malformed request: {method} {path}"}


def test_head_is_malformed_too(client):
    reply = client("HEAD", "/v1/models/pair")
    assert (reply.status, reply.body) == (400, b"")


@pytest.mark.parametrize("path", ["/page", "/v1", "/v3/models/pair", "/index.html"])
def test_other_paths_are_not_json(client, path):
    reply = client("GET", path)
    assert reply.status == 404
    assert reply.headers["content-type"].startswith("text/html")


URLS = [
    ("GET", "/v1/models", 400, "Missing model name in request."),
    ("GET", "/v1/models/metadata", 404, "Could not find any versions of model metadata"),
    ("GET", "/v1/models/nope", 404, "Could not find any versions of model nope"),
    # A name is anything without slash and colon: here the query is part of it.
    ("GET", "/v1/models/pair?x=1", 404, "Could not find any versions of model pair?x=1"),
    ("GET", "/v1/models/pair?", 404, "Could not find any versions of model pair?"),
    ("GET", "/v1/models/pair#here", 404, "Could not find any versions of model pair#here"),
    ("POST", "/v1/models/pair?x=1:predict", 404, "Servable not found for request: Latest(pair?x=1)"),
    ("GET", "/v1/models/versions/3", 400, "Missing model name in request."),
    ("GET", "/v1/models/pair/versions/9", 404, "Could not find version 9 of model pair"),
    ("GET", "/v1/models/nope/metadata", 404, "Servable not found for request: Latest(nope)"),
    ("GET", "/v1/models/pair/versions/9/metadata", 404, "Servable not found for request: Specific(pair, 9)"),
    ("GET", "/v1/models/pair/labels/L/metadata", 400, "Unrecognized servable version label: L"),
    ("POST", "/v1/models/nope:predict", 404, "Servable not found for request: Latest(nope)"),
    ("POST", "/v1/models/pair/versions/9:predict", 404, "Servable not found for request: Specific(pair, 9)"),
    ("POST", "/v1/models/pair/labels/L:predict", 400, "Unrecognized servable version label: L"),
    ("POST", "/v1/models/pair/labels/%4C%20x:predict", 400, "Unrecognized servable version label: L x"),
    ("POST", "/v1/models/n%6Fpe%20x:predict", 404, "Servable not found for request: Latest(nope x)"),
    ("POST", "/v1/models/%FF:predict", 404, "Servable not found for request: Latest("),
    ("POST", "/v1/models/nope:classify", 404, "Servable not found for request: Latest(nope)"),
]


@pytest.mark.parametrize(("method", "path", "status", "text"), URLS)
def test_url_error(client, method, path, status, text):
    reply = client(method, path, GOOD if method == "POST" else None)
    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"
    assert list(reply.json) == ["error"]
    assert text in reply.json["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/pair:predict",
        "/V1/Models/pair:predict",
        "/v1/models/p%61ir:predict",
        "/v1/models/pair/versions/3:predict",
        "/v1/models/pair/versions/0003:predict",
    ],
)
def test_url_reaches_the_model(client, path):
    reply = client("POST", path, GOOD, {"Content-Type": "text/plain"})
    assert (reply.status, reply.json) == (200, {"predictions": [[2.0, 4.0]]})
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize("digits", [str(INT64_MAX + 1), "9" * 5000])
@pytest.mark.parametrize("form", ["GET /v1/models/pair/versions/{}", "POST /v1/models/pair/versions/{}:predict"])
def test_version_beyond_int64(client, digits, form):
    method, path = form.format(digits).split()
    reply = client(method, path, GOOD if method == "POST" else None)
    assert (reply.status, reply.body) == (400, b"")
    assert reply.headers["content-type"] == "application/json"


def test_largest_version_is_only_unknown(client):
    assert client("GET", f"/v1/models/pair/versions/{INT64_MAX}").status == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Origin": "http://a.b"}, 200), ({"Origin": "https://a.b"}, 200), ({"Origin": "a.b"}, 400), ({}, 400)],
)
def test_options(client, headers, status):
    reply = client("OPTIONS", "/v1/models/pair:predict", headers=headers)
    assert (reply.status, reply.body) == (status, b"")


def test_cors(serve, root):
    repository = ModelRepository(root)
    repository.poll()
    cors = {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Methods": "POST, GET",
        "Access-Control-Allow-Headers": "Content-Type",
    }
    requests = [
        ("OPTIONS", "/v1/models/pair:predict", 200, True),
        ("GET", "/v1/models/pair", 200, True),
        ("GET", "/V1/models/nope", 404, True),
        ("PUT", "/v1/models/pair", 400, True),
        ("GET", "/index.html", 404, False),
    ]
    for enabled in (True, False):
        with serve(repository, cors=enabled) as client:
            for method, path, status, api in requests:
                reply = client(method, path, headers={"Origin": "http://a.b"})
                assert reply.status == status
                expected = cors if enabled and api else dict.fromkeys(cors)
                assert {name: reply.headers[name] for name in cors} == expected


def test_every_code_has_its_http_status():
    assert {code.name: status for code, status in HTTP_STATUS.items()} == {
        **{"OK": 200, "CANCELLED": 499, "UNKNOWN": 500, "INVALID_ARGUMENT": 400, "DEADLINE_EXCEEDED": 504},
        **{"NOT_FOUND": 404, "ALREADY_EXISTS": 409, "PERMISSION_DENIED": 403, "RESOURCE_EXHAUSTED": 429},
        **{"FAILED_PRECONDITION": 400, "ABORTED": 409, "OUT_OF_RANGE": 400, "UNIMPLEMENTED": 501},
        **{"INTERNAL": 500, "UNAVAILABLE": 503, "DATA_LOSS": 500, "UNAUTHENTICATED": 401},
    }
    assert [code.value for code in Code] == list(range(17))


# --- the predict request ----------------------------------------------------------------------------------

BODIES = [
    (b"", 400, "JSON Parse error: The document is empty"),
    (b"  \n", 400, "JSON Parse error: The document is empty"),
    (b'{"instances": [1,', 400, "at offset: "),
    (b'{"instances": ' + b"[" * 100_000, 400, "JSON Parse error: "),
    (b'{"instances": ' + b"9" * 5000 + b"}", 400, "JSON Parse error: "),
    (b"[1]", 400, "JSON Value: [1] Is not object"),
    (GOOD.encode() + b" and more", 200, ""),
    (b"\xef\xbb\xbf" + GOOD.encode(), 200, ""),
    (
        b'{"signature_name": 3, "instances": [[1, 2]]}',
        400,
        "not formatted correctly. 'signature_name' key must be a string value.",
    ),
    (b'{"signature_name": "", "instances": [[1, 2]]}', 200, ""),
    (b'{"signature_name": "serving_default", "instances": [[1, 2]]}', 200, ""),
    (
        b'{"signature_name": "other", "instances": [[1, 2]]}',
        400,
        'Serving signature name: "other" not found in signature def',
    ),
    (
        b'{"signature_name": "__saved_model_init_op", "instances": [[1, 2]]}',
        400,
        "Failed to get input map for signature: __saved_model_init_op",
    ),
    (
        b'{"instances": [[1, 2]], "inputs": [[1, 2]]}',
        400,
        "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist",
    ),
    (b'{"x": 1}', 400, "Missing 'inputs' or 'instances' key"),
    (b'{"instances": {"x": 1}}', 400, "Expecting 'instances' to be an list/array"),
    (b'{"instances": []}', 400, "No values in 'instances' array"),
    (b'{"instances": [[1, 2]], "more": {"y": 1}}', 200, ""),
]


@pytest.mark.parametrize(("body", "status", "text"), BODIES, ids=range(len(BODIES)))
def test_body(client, body, status, text):
    reply = client.predict("pair", body)
    assert reply.status == status
    assert text in reply.json.get("error", "")


@pytest.mark.parametrize(
    ("model", "body", "status"),
    [
        ("nope", "{", 400),
        ("nope", "[1]", 400),
        ("nope", '{"signature_name": 3}', 400),
        ("nope", '{"signature_name": "other"}', 404),
        ("pair/labels/L", "{", 400),
        ("pair", '{"signature_name": "other", "x": 1}', 400),
    ],
)
def test_order_of_checks(client, model, body, status):
    reply = client.predict(model, body)
    assert reply.status == status
    assert ("not found in signature def" in reply.json["error"]) == (model == "pair")
    assert ("JSON Parse error" in reply.json["error"]) == (body == "{")


def test_non_finite_numbers_in_and_out(client):
    reply = client.predict("pair", '{"inputs": [[NaN, Inf], [-Inf, -Infinity], [Infinity, 1e39]]}')
    assert reply.status == 200
    assert np.array_equal(
        reply.json["outputs"], [[np.nan, np.inf], [-np.inf, -np.inf], [np.inf, np.inf]], equal_nan=True
    )
    assert b"NaN, Infinity" in reply.body
    assert b"-Infinity, -Infinity" in reply.body


def test_literal_inside_a_string_stays(client):
    reply = client.predict("named", '{"inputs": {"image": [[Inf, 0]], "caption": ["Inf, \\"Inf\\" -NaN"]}}')
    assert reply.json == {"outputs": {"label": ['Inf, "Inf" -NaN!'], "score": [np.inf]}}


ELEMENT = "Failed to process element: "
A, B = {"image": [1, 2], "caption": "a"}, {"image": [3, 4], "caption": "b"}
ROW_ERRORS = [
    ("named", [[1, 2]], "instances is a plain list, but expecting list of objects as multiple input tensors"),
    ("named", [A, [1, 2]], "Expecting object but got list at item 1 of input list"),
    ("pair", [[1, 2], {"x": [1, 2]}], "Expecting value/list but got object at item 1 of input list"),
    (
        "named",
        [A, {**B, "odd": 1}],
        f"{ELEMENT}1 key: odd of 'instances' list. Error: INVALID_ARGUMENT: "
        "JSON object: does not have named input: odd",
    ),
    ("named", [A, {"image": [1, 2]}], "keys must be equal to: caption,image"),
    ("named", [{"image": [1, 2]}], f"{ELEMENT}0 of 'instances' list. JSON object: "),
    (
        "named",
        [A, {**B, "image": [1]}],
        f"{ELEMENT}1 key: image of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 2 but got: 1",
    ),
    (
        "pair",
        [[[1, 2, 3], [4, 5, 6]], [[1, 2], [3, 4], [5, 6]]],
        f"{ELEMENT}1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting shape [2,3] but got: [3,2]",
    ),
    ("pair", [[[1, 2], [3]]], f"{ELEMENT}0 of 'instances' list. Error: INVALID_ARGUMENT: Encountered list at"),
    ("pair", [[[1, 2], [3]]], "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    ("pair", [[1, [2]]], "Encountered list at unexpected level: 1 expected < 1"),
    ("pair", [[[1], 2]], "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    ("pair", [[1, "a"]], 'JSON Value: "a" Type: String is not of expected type: float'),
    ("pair", [[1, None]], "JSON Value: null Type: Null is not of expected type: float"),
    ("pair", [[1, True]], "JSON Value: true Type: True is not of expected type: float"),
    ("pair", [[False, 1]], "JSON Value: false Type: False is not of expected type: float"),
    ("pair", [[1, {"a": 1}]], 'JSON Value: {"a": 1} Type: Object is not of expected type: float'),
    ("pair", [{"b64": "AAAA"}], "Type: Object is not of expected type: float"),
    ("pair", [["a" * 1000, 1]], 'JSON Value: "' + "a" * 255 + " Type: String"),
    ("named", [A, {**B, "caption": 3}], "JSON Value: 3 Type: Number is not of expected type: string"),
    ("named", [A, {**B, "caption": {"b64": "_-8="}}], "INVALID_ARGUMENT: Unable to base64 decode"),
    ("named", [A, {**B, "caption": {"b64": 3}}], "not formatted correctly for base64 data"),
    ("named", [A, {**B, "caption": {"b64": "AA==", "c": 1}}], "not formatted correctly for base64 data"),
    # Row by row: the first row at fault is told, whichever input it concerns.
    ("named", [A, {**B, "caption": 3}, {**B, "image": "x"}], f"{ELEMENT}1 key: caption"),
]


@pytest.mark.parametrize(("model", "instances", "text"), ROW_ERRORS, ids=range(len(ROW_ERRORS)))
def test_row_error(client, model, instances, text):
    reply = client.predict(model, {"instances": instances})
    assert reply.status == 400
    assert list(reply.json) == ["error"]
    assert text in reply.json["error"]


COLUMN_ERRORS = [
    ("named", {"image": [[1, 2]]}, "Missing named input: caption in 'inputs' object."),
    ("named", [[1, 2]], "inputs is a plain value/list, but expecting an object as multiple input tensors"),
    ("named", {"b64": "AAAA"}, "inputs is a plain value/list, but expecting an object as multiple input"),
    ("pair", {"z": [[1, 2]]}, "Missing named input: x in 'inputs' object."),
    ("pair", [[1, 2], [3]], "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    ("pair", [[1, 2], 3], "JSON Value: 3 found at incorrect level: 2"),
    ("pair", [[1, "a"]], 'JSON Value: "a" Type: String is not of expected type: float'),
    ("pair", [[1, 10**400]], "JSON Parse error: Number too big"),
]


@pytest.mark.parametrize(("model", "inputs", "text"), COLUMN_ERRORS, ids=range(len(COLUMN_ERRORS)))
def test_column_error(client, model, inputs, text):
    reply = client.predict(model, {"inputs": inputs})
    assert reply.status == 400
    assert text in reply.json["error"]


@pytest.mark.parametrize("body", [{"instances": [[1, 2, 3]]}, {"inputs": [1, 2]}, {"instances": [[[1, 2]]]}])
def test_shape_that_the_signature_does_not_take(client, body):
    reply = client.predict("pair", body)
    assert reply.status == 400
    assert 'Input "x" has shape' in reply.json["error"]


def test_error_of_the_graph_keeps_its_code(client):
    reply = client.predict("odd", {"signature_name": "failing", "inputs": [7.0]})
    assert reply.status == 400
    assert "indices" in reply.json["error"]


# --- the classify and regress requests --------------------------------------------------------------------

REFUSED = "but exports of Keras have only tensorflow/serving/predict; send the inputs to :predict"
EXAMPLES: list[tuple[Any, str]] = [
    ({}, "When method is classify, key 'examples' is expected and was not found"),
    ({"instances": [1]}, "When method is classify, key 'examples' is expected and was not found"),
    ({"examples": {"a": 1}}, "Expecting 'examples' value to be an list/array"),
    ({"examples": []}, "'examples' value is an empty array"),
    ({"examples": [{"a": 1}, [1]]}, "Example must be JSON object but got JSON Array"),
    ({"examples": ["a"]}, "Example must be JSON object but got JSON String"),
    ({"context": 3, "examples": [{}]}, "Example must be JSON object but got JSON Number"),
    ({"context": {"a": None}}, "Feature: a has element with unexpected JSON type: Null"),
    ({"examples": [{"a": None}]}, "Feature: a has element with unexpected JSON type: Null"),
    ({"examples": [{"a": [1, None]}]}, "Feature: a has element with unexpected JSON type: Null"),
    ({"examples": [{"a": [[1]]}]}, "Feature: a has element with unexpected JSON type: Array"),
    ({"examples": [{"a": {"b": 1}}]}, "Feature: a has element with unexpected JSON type: Object"),
    ({"examples": [{"a": {"b64": "AA==", "c": 1}}]}, "Feature: a has element with unexpected JSON type: Object"),
    ({"examples": [{"a": {"b64": "_-8="}}]}, "Unable to base64 decode"),
    ({"examples": [{"a": [1, 1.5]}]}, "Unexpected element type in feature: a expecting type: int64"),
    ({"examples": [{"a": [1.5, 1]}]}, "Unexpected element type in feature: a expecting type: float"),
    ({"examples": [{"a": ["x", 1]}]}, "Unexpected element type in feature: a expecting type: bytes"),
    ({"examples": [{"a": [True, "x"]}]}, "Unexpected element type in feature: a expecting type: int64"),
    ({"examples": [{"a": ["x", 2**63]}]}, "Unexpected element type in feature: a expecting type: bytes"),
    ({"examples": [{"a": 2**63}]}, "Feature: a has uint64 element. Only int64 is supported."),
    ({"examples": [{"a": [1, 2**64 - 1]}]}, "Feature: a has uint64 element. Only int64 is supported."),
    # What is well formed meets the end of the road.
    ({"examples": [{"age": 30, "name": "ann"}, {"age": [1, 2]}], "context": {"lang": "en"}}, REFUSED),
    ({"examples": [{"a": [1, True]}, {"a": ["x", {"b64": "AA=="}]}, {"a": []}, {}]}, REFUSED),
    ({"examples": [{"a": [1.5, 2**64, -(2**63) - 1]}, {"a": 2**63 - 1}]}, REFUSED),
]


@pytest.mark.parametrize(("body", "text"), EXAMPLES, ids=range(len(EXAMPLES)))
@pytest.mark.parametrize("verb", ["classify", "regress"])
def test_examples(client, verb, body, text):
    reply = client("POST", f"/v1/models/pair:{verb}", json.dumps(body))
    assert reply.status == 400
    assert list(reply.json) == ["error"]
    assert reply.json["error"].endswith(text)
    assert (f"method_name tensorflow/serving/{verb}" in reply.json["error"]) == (text == REFUSED)


@pytest.mark.parametrize(
    ("model", "body", "status", "text"),
    [
        ("nope", "{", 400, "JSON Parse error: "),
        ("nope", "[1]", 400, "Is not object"),
        ("nope", '{"signature_name": 3}', 400, "'signature_name' key must be a string value."),
        ("nope", "{}", 404, "Servable not found for request: Latest(nope)"),
        ("pair", '{"signature_name": "other"}', 400, 'Serving signature name: "other" not found in signature def'),
    ],
)
def test_order_of_checks_before_examples(client, model, body, status, text):
    reply = client("POST", f"/v1/models/{model}:classify", body)
    assert reply.status == status
    assert text in reply.json["error"]


# --- data types -------------------------------------------------------------------------------------------

WORDS = {"float32": "float", "float64": "double", "float16": "half"}
LITERALS: dict[str, tuple[list[Any], list[Any]]] = {
    "float32": ([1, 1.5, -2e3, 2**70], [True, None, "1"]),
    "float64": ([1, 1.5, 0.1, 2**70], [False, None, "1"]),
    "int8": ([-128, 127], [1.0, True, "1", 2**31]),
    "int16": ([-(2**15), 2**15 - 1], [1.0, None, 2**31]),
    "int32": ([-(2**31), 2**31 - 1], [1.0, False, 2**31, -(2**31) - 1]),
    "int64": ([-(2**63), 2**63 - 1], [1.0, "1", 2**63, -(2**63) - 1]),
    "uint8": ([0, 255], [1.0, "1", 2**31]),
    "uint32": ([0, 2**32 - 1], [1.0, -1, 2**32]),
    "uint64": ([0, 2**64 - 1], [1.0, -1, 2**64, True]),
    "bool": ([True, False], [0, 1, "true", None]),
    "string": (["", "ab", "ж☃", '"\\\n'], [1, 1.5, True, None]),
}


@pytest.mark.parametrize("dtype", LITERALS)
def test_valid_literals(client, dtype):
    valid, _ = LITERALS[dtype]
    for key, answer in (("instances", "predictions"), ("inputs", "outputs")):
        reply = client.predict("echo", {"signature_name": dtype, key: valid})
        assert reply.status == 200, reply.body
        if dtype.startswith("float"):
            assert np.array_equal(np.array(reply.json[answer], dtype), np.array(valid, dtype))
        else:
            assert reply.json == {answer: valid}


@pytest.mark.parametrize(
    ("dtype", "literal"), [(dtype, literal) for dtype, (_, bad) in LITERALS.items() for literal in bad]
)
def test_invalid_literal(client, dtype, literal):
    good = LITERALS[dtype][0][0]
    reply = client.predict("echo", {"signature_name": dtype, "instances": [good, literal]})
    assert reply.status == 400
    assert reply.json["error"].endswith(f"is not of expected type: {WORDS.get(dtype, dtype)}")
    assert reply.json["error"].startswith(f"{ELEMENT}1 of 'instances' list.")


def test_narrow_integers_wrap(client):
    reply = client.predict("echo", {"signature_name": "int8", "inputs": [300, -129]})
    assert reply.json == {"outputs": [44, 127]}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64", "uint16"])
def test_data_type_that_json_cannot_carry(client, dtype):
    word = WORDS.get(dtype, dtype)
    row = client.predict("echo", {"signature_name": dtype, "instances": [1.0]})
    assert row.status == 400
    assert row.json["error"].endswith(f"UNIMPLEMENTED: Conversion of JSON Value: 1.0 to type: {word}")
    column = client.predict("echo", {"signature_name": dtype, "inputs": [1.0]})
    assert column.status == 501
    assert column.json == {"error": f"Conversion of JSON Value: 1.0 to type: {word}"}


def test_output_type_that_json_cannot_carry(client):
    for key in ("instances", "inputs"):
        reply = client.predict("odd", {"signature_name": "half", key: [1.0]})
        assert reply.status == 400
        assert reply.json == {"error": "Failed to write JSON value for tensor type: half"}


BINARY = bytes(range(256))


@pytest.mark.parametrize(
    "encoded",
    [
        base64.b64encode(BINARY).decode(),
        base64.b64encode(BINARY).decode().rstrip("="),
        base64.encodebytes(BINARY).decode(),
    ],
    ids=["standard", "no padding", "line breaks"],
)
def test_base64_in_and_out(client, encoded):
    reply = client.predict("text", {"signature_name": "bytes", "instances": [{"b64": encoded}, "plain"]})
    assert [base64.b64decode(item["b64"]) for item in reply.json["predictions"]] == [BINARY, b"plain"]


def test_output_without_suffix_is_plain_text(client):
    reply = client.predict("text", {"inputs": {"b64": base64.b64encode("é".encode()).decode()}})
    assert reply.json == {"outputs": "é"}


def test_bytes_that_are_not_utf8_pass_through(client):
    reply = client.predict("text", b'{"instances": ["\xff\xfe"]}')
    assert reply.status == 200
    assert b'"\xff\xfe"' in reply.body


def test_half_of_a_surrogate_pair_is_refused(client):
    assert client.predict("text", '{"instances": ["\\ud800"]}').status == 400


# --- the predict reply ------------------------------------------------------------------------------------

REPLIES = [
    ("pair", {"instances": [[1, 2], [3, 4]]}, {"predictions": [[2.0, 4.0], [6.0, 8.0]]}),
    ("pair", {"instances": [{"x": [1, 2]}]}, {"predictions": [[2.0, 4.0]]}),
    ("pair", {"inputs": [[1, 2], [3, 4]]}, {"outputs": [[2.0, 4.0], [6.0, 8.0]]}),
    ("pair", {"inputs": {"x": [[1, 2]], "ignored": 3}}, {"outputs": [[2.0, 4.0]]}),
    ("pair", {"inputs": []}, None),
    (
        "named",
        {"instances": [A, B]},
        {"predictions": [{"label": "a!", "score": 3.0}, {"label": "b!", "score": 7.0}]},
    ),
    (
        "named",
        {"inputs": {"image": [[1, 2], [3, 4]], "caption": ["a", {"b64": "Yg=="}]}},
        {"outputs": {"label": ["a!", "b!"], "score": [3.0, 7.0]}},
    ),
    ("named", {"inputs": {"image": [[1, 2]], "caption": ["a"]}}, {"outputs": {"label": ["a!"], "score": [3.0]}}),
    ("echo", {"signature_name": "int32", "inputs": 5}, {"outputs": 5}),
    ("echo", {"signature_name": "int32", "inputs": [[[1], [2]]]}, {"outputs": [[[1], [2]]]}),
    ("echo", {"signature_name": "int32", "instances": [[], []]}, {"predictions": [[], []]}),
    ("echo", {"signature_name": "string", "inputs": []}, {"outputs": []}),
    ("odd", {"signature_name": "scalar", "inputs": [1, 2]}, {"outputs": 3.0}),
]


@pytest.mark.parametrize(("model", "body", "expected"), REPLIES, ids=range(len(REPLIES)))
def test_reply(client, model, body, expected):
    reply = client.predict(model, body)
    if expected is None:
        assert reply.status == 400
    else:
        assert (reply.status, reply.json) == (200, expected)


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        ("scalar", "Tensor name: total has no shape information"),
        ("uneven", "has inconsistent batch size: "),
    ],
)
def test_output_without_batch_in_row_form(client, signature, text):
    reply = client.predict("odd", {"signature_name": signature, "instances": [1, 2]})
    assert reply.status == 400
    assert text in reply.json["error"]


@pytest.mark.parametrize(("dtype", "third"), [("float32", "0.333333343"), ("float64", "0.33333333333333331")])
def test_floats_survive_the_round_trip(client, dtype, third):
    random = np.random.default_rng(0)
    extremes = np.finfo(dtype)
    named = [0.2, 1 / 3, 3.0, 9e6, 1e-7, 0.0, -0.0, np.nan, np.inf, -np.inf]
    limits = [extremes.max, extremes.tiny, extremes.smallest_subnormal]
    drawn = random.standard_normal(300) * 10.0 ** random.integers(-30, 30, 300)
    values = np.array([*named, *limits, *drawn], dtype)
    reply = client.predict("echo", {"signature_name": dtype, "inputs": values.astype(float).tolist()})
    assert np.array_equal(np.array(reply.json["outputs"], dtype), values, equal_nan=True)
    texts = reply.body.decode().split("[")[1].split(", ")
    assert texts[:10] == ["0.2", third, "3.0", "9e+06", "1e-07", "0.0", "-0.0", "NaN", "Infinity", "-Infinity"]


# --- status, metadata, health -----------------------------------------------------------------------------

AVAILABLE = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}


@pytest.mark.parametrize(
    "path", ["/v1/models/pair", "/v1/models/pair/versions/3", "/v1/models/pair/labels/ignored", "/V1/MODELS/pair"]
)
def test_status(client, path):
    reply = client("GET", path)
    assert reply.status == 200
    assert reply.json == {"model_version_status": [{"version": "3", **AVAILABLE}]}


@pytest.mark.parametrize("path", ["/v1/models/pair/metadata", "/v1/models/pair/versions/3/metadata"])
def test_metadata(client, path):
    def tensor(name: str) -> dict[str, Any]:
        sizes = [{"size": "-1", "name": ""}, {"size": "2", "name": ""}]
        return {"dtype": "DT_FLOAT", "tensor_shape": {"dim": sizes, "unknown_rank": False}, "name": name}

    reply = client("GET", path)
    assert reply.status == 200
    assert reply.json["model_spec"] == {"name": "pair", "signature_name": "", "version": "3"}
    definitions = reply.json["metadata"]["signature_def"]["signature_def"]
    assert definitions.keys() == {"serving_default", "__saved_model_init_op"}
    assert definitions["serving_default"] == {
        "inputs": {"x": tensor("serving_default_x:0")},
        "outputs": {"y": tensor("StatefulPartitionedCall:0")},
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }


def test_health(client):
    assert client("GET", "/healthz").status == 200
    reply = client("GET", "/readyz")
    assert (reply.status, reply.json) == (200, {"ready": True, "unavailable": {}})


# --- bodies and time --------------------------------------------------------------------------------------


def test_gzip_body(client):
    def send(body: bytes) -> Any:
        return client("POST", "/v1/models/pair:predict", body, {"Content-Encoding": "gzip"})

    assert send(gzip.compress(GOOD.encode())).json == {"predictions": [[2.0, 4.0]]}
    for broken in (GOOD.encode(), gzip.compress(GOOD.encode())[:-4]):
        reply = send(broken)
        assert reply.status == 400
        assert "gzip" in reply.json["error"]


def test_body_limit(serve, root):
    repository = ModelRepository(root)
    repository.poll()
    padded = json.dumps({"instances": [[1, 2]], "padding": "0" * 1000})
    with serve(repository, max_body_mib=len(padded) / 2**20) as client:
        assert client.predict("pair", padded).status == 200
        longer = padded + " "
        for body, headers in (
            (longer.encode(), {}),
            (longer.encode(), {"Transfer-Encoding": "chunked"}),
            (gzip.compress(longer.encode()), {"Content-Encoding": "gzip"}),
        ):
            if "Transfer-Encoding" in headers:
                body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
            reply = client("POST", "/v1/models/pair:predict", body, headers)
            assert reply.status == 413
            assert f"longer than {len(padded)} bytes" in reply.json["error"]


class _Stuck:
    """Stands in for a repository whose only model answers when told to, or fails."""

    version, batched, dtypes = 1, {}, {"serving_default": {"x": "float"}}

    def __init__(self) -> None:
        self.release = threading.Event()

    def acquire(self, name: str, version: int | None) -> "_Stuck":
        return self

    def known(self, name: str) -> bool:
        return True

    def inputs(self, signature: str) -> dict[str, Any]:
        return {"x": SimpleNamespace(dtype="float", shape=tf.TensorShape(None))}

    def check(self, signature: str, inputs: dict[str, np.ndarray]) -> None:
        pass

    def is_prepared(self, signature: str) -> bool:
        return False

    def run(self, signature: str, inputs: dict[str, np.ndarray], cancellation: object) -> dict[str, np.ndarray]:
        if self.release.wait(30):
            raise RuntimeError("a mistake in the server")
        return {}


def test_slow_model_and_mistake_in_the_server(serve):
    stuck = _Stuck()
    with serve(stuck, timeout_seconds=0.1, metrics_path="/metrics") as client:
        reply = client.predict("m", GOOD)
        stuck.release.set()
        assert (reply.status, reply.json) == (504, {"error": "No answer within 0.1 seconds"})
        reply = client.predict("m", GOOD)
        assert (reply.status, reply.json) == (500, {"error": "RuntimeError: a mistake in the server"})
        counted = client("GET", "/metrics").body
    for status in ("DEADLINE_EXCEEDED", "INTERNAL"):
        assert b':request_count{model_name="m",status="%s"} 1.0' % status.encode() in counted


def test_slow_request_does_not_hold_up_others(serve):
    stuck = _Stuck()
    with serve(stuck, timeout_seconds=30) as client:
        thread = threading.Thread(target=client.predict, args=("m", GOOD))
        thread.start()
        try:
            assert client("GET", "/healthz").status == 200
            assert thread.is_alive()
        finally:
            stuck.release.set()
            thread.join()


def test_signature_runs_in_float32(client):
    reply = client.predict("pair", {"inputs": [[16777217, 0.1]]})
    assert np.allclose(reply.json["outputs"], 2 * tf.constant([[16777216, 0.1]]).numpy())
