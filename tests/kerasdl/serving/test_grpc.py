"""The gRPC API through the client of TensorFlow Serving's own package, as tables of request, code and text."""

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import rest_client
import tensorflow as tf
import trustme
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from kerasdl import processor
from kerasdl.errors import UserError
from kerasdl.serving.access import NO_KEY, Keys
from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.grpc import GrpcServer, read_tensor, write_tensor
from kerasdl.serving.limits import Limits
from kerasdl.serving.predictor import Predictor
from kerasdl.serving.repository import ModelRepository

PREDICT = "/tensorflow.serving.PredictionService/Predict"
PAIR = {"x": [[1.0, 2.0]]}


class Stubs:
    """What a client of TensorFlow Serving has, and what it says in few words."""

    def __init__(self, channel):
        self.channel = channel
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.reflection = reflection_pb2_grpc.ServerReflectionStub(channel)

    def predict(self, *arguments, timeout=30, **options):
        response = self.prediction.Predict(request(*arguments, **options), timeout=timeout)
        return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}


@contextlib.contextmanager
def stubs(port):
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield Stubs(channel)


@pytest.fixture(scope="module")
def client(serve, root):
    """A client of a server of all models."""
    repository = ModelRepository(root)
    repository.poll()
    assert repository.unavailable() == {}
    with serve(repository, grpc=True) as rest, stubs(rest.grpc_port) as client:
        yield client


def fill(spec, model, version=None, label=None, signature=""):
    spec.name, spec.signature_name = model, signature
    if version is not None:
        spec.version.value = version
    if label is not None:
        spec.version_label = label


def request(model, inputs, output_filter=(), **spec):
    made = predict_pb2.PredictRequest(output_filter=output_filter)
    fill(made.model_spec, model, **spec)
    for name, value in inputs.items():
        dtype = tf.float32 if isinstance(value, list) and not isinstance(value[0], (str, bytes)) else None
        tensor = value if isinstance(value, TensorProto) else tf.make_tensor_proto(value, dtype)
        made.inputs[name].CopyFrom(tensor)
    return made


def failure(call, *arguments, **options):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **{"timeout": 30} | options)
    return caught.value.code().name, caught.value.details()


def within(seconds, condition):
    until = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(0.05)
    return found


# --- predict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [{}, {"version": 3}, {"signature": "serving_default"}])
def test_response_names_version_and_signature(client, which):
    response = client.prediction.Predict(request("pair", PAIR, **which))
    expected = predict_pb2.PredictResponse()
    fill(expected.model_spec, "pair", version=3, signature="serving_default")
    assert response.model_spec == expected.model_spec
    # Clients read this field, where TensorFlow Serving has the numbers.
    assert list(response.outputs["y"].float_val) == [2.0, 4.0]
    assert response.outputs["y"].dtype == tf.float32.as_datatype_enum


ERRORS = [
    (predict_pb2.PredictRequest(), "INVALID_ARGUMENT", "Missing ModelSpec"),
    (request("", PAIR), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    (request("nope", PAIR), "NOT_FOUND", "Servable not found for request: Latest(nope)"),
    (request("pair", PAIR, version=9), "NOT_FOUND", "Servable not found for request: Specific(pair, 9)"),
    (request("pair", PAIR, version=-1), "NOT_FOUND", "Servable not found for request: Specific(pair, -1)"),
    (request("pair", PAIR, label="L"), "INVALID_ARGUMENT", "Unrecognized servable version label: L"),
    (request("pair", PAIR, label=""), "INVALID_ARGUMENT", "Unrecognized servable version label: "),
    (request("pair", PAIR, signature="x"), "FAILED_PRECONDITION", 'Serving signature key "x" not found.'),
    (
        request("named", {"image": [[1.0, 2.0]]}),
        "INVALID_ARGUMENT",
        "input size does not match signature: 1!=2 len({image}) != len({caption,image}). "
        "Sent extra: {}. Missing but required: {caption}.",
    ),
    (
        request("pair", PAIR | {"a": 1}),
        "INVALID_ARGUMENT",
        "input size does not match signature: 2!=1 len({a,x}) != len({x}). Sent extra: {a}. Missing but required: {}.",
    ),
    (
        request("pair", {"a": 1}),
        "INVALID_ARGUMENT",
        "input size does not match signature: 1!=1 len({a}) != len({x}). Sent extra: {a}. Missing but required: {x}.",
    ),
    (
        request("named", {"image": [[1.0, 2.0]], "caption": ["a"]}, ["y"]),
        "INVALID_ARGUMENT",
        "output tensor alias not found in signature: y Outputs expected to be in the set {label,score}.",
    ),
    (request("pair", PAIR, ["y", "y"]), "INVALID_ARGUMENT", "duplicate output tensor alias: y"),
    (
        request("pair", {"x": np.array([[1, 2]])}),
        "INVALID_ARGUMENT",
        'Input "x" is of type int64, but the signature takes float',
    ),
    (
        request("pair", {"x": TensorProto(dtype=999)}),
        "INVALID_ARGUMENT",
        'Input "x" is of type 999, but the signature takes float',
    ),
    (
        request("pair", {"x": [1.0, 2.0]}),
        "INVALID_ARGUMENT",
        'Input "x" has shape [2], but signature "serving_default" takes (None, 2)',
    ),
    (
        request("pair", {"x": TensorProto(dtype=1, tensor_content=b"123")}),
        "INVALID_ARGUMENT",
        'Input "x" is a malformed tensor: its values do not fit its shape',
    ),
    (request("odd", {"x": [7.0, 1.0]}, signature="failing"), "INVALID_ARGUMENT", "indices = 7 is not in [0, 2)"),
    (
        request("odd", {}, signature="__saved_model_init_op"),
        "INVALID_ARGUMENT",
        "Failed to get input map for signature: __saved_model_init_op",
    ),
    (
        request("pair", PAIR, signature="ü" * 5000),
        "FAILED_PRECONDITION",
        f'Serving signature key "{"ü" * 500}',
    ),
]


@pytest.mark.parametrize(("sent", "code", "text"), ERRORS)
def test_predict_error(client, sent, code, text):
    found, details = failure(client.prediction.Predict, sent)
    assert found == code
    assert details.startswith(text)
    assert len(details.encode()) <= 1024 + len("...TRUNCATED")


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\x05ab", b"\x0a\x04\x0a\x02\xff\xff"])
def test_what_is_no_message(client, message):
    code, details = failure(client.channel.unary_unary(PREDICT), message)
    assert (code, details) == ("INVALID_ARGUMENT", "Malformed request: it is no tensorflow.serving.PredictRequest")


def test_no_message(client):
    code, details = failure(client.channel.stream_unary(PREDICT), iter(()))
    assert (code, details) == ("INVALID_ARGUMENT", "Malformed request: it is empty")


def test_unknown_method(client):
    assert failure(client.channel.unary_unary("/tensorflow.serving.PredictionService/Explain"), b"")[0] == (
        "UNIMPLEMENTED"
    )


def test_output_filter(client):
    inputs = {"image": [[1.0, 2.0]], "caption": ["a dog"]}
    assert client.predict("named", inputs) == {"label": [b"a dog!"], "score": [3.0]}
    assert client.predict("named", inputs, ["score"]) == {"score": [3.0]}


@pytest.mark.parametrize(
    "values", [[b"\x00\xff", b"", "ü".encode()], np.array([[b"a"], [b"b"]], object), b"alone", np.empty([0], object)]
)
@pytest.mark.parametrize(("signature", "output"), [("serving_default", "out"), ("bytes", "out_bytes")])
def test_strings_are_bytes(client, values, signature, output):
    tensor = tf.make_tensor_proto(values, tf.string)
    found = client.predict("text", {"text": tensor}, signature=signature)[output]
    assert found.tolist() == (values if isinstance(values, (bytes, list)) else values.tolist())


ARRAYS = [
    np.array([0.1, -0.0, np.inf, 1e-45], np.float32),
    np.array([0.1, -np.inf, 5e-324], np.float64),
    *(
        np.array([np.iinfo(kind).min, 0, np.iinfo(kind).max], kind)
        for kind in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    ),
    np.array([True, False]),
    np.array([1.5, 65504, np.inf], np.float16),
    np.array([1.5, 3e38], tf.bfloat16.as_numpy_dtype),
    np.array([1 + 2j, -1j], np.complex64),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: array.dtype.name)
def test_every_data_type_comes_back(client, array):
    signature = "bool" if array.dtype == bool else array.dtype.name
    for shaped in (array, array[0], array[:0], np.stack([array, array])):
        found = client.predict("echo", {"x": tf.make_tensor_proto(shaped)}, signature=signature)["y"]
        assert (found.dtype, found.shape) == (shaped.dtype, shaped.shape)
        assert found.tobytes() == shaped.tobytes()


def test_half_is_an_output(client):
    found = client.predict("odd", {"x": [0.5, 65504.0]}, signature="half")["y"]
    assert (found.dtype, found.tolist()) == (np.float16, [0.5, 65504.0])


def test_a_scalar_is_an_output(client):
    assert client.predict("odd", {"x": [0.5, 2.0]}, signature="scalar")["total"] == np.float32(2.5)


@pytest.mark.parametrize("kind", ["float32", "int32", "string"])
def test_large_tensors_are_the_same_either_way(client, kind):
    values = (
        np.arange(50_000).astype(kind) if kind != "string" else np.array([b"%d" % i for i in range(50_000)], object)
    )
    own = TensorProto()
    write_tensor(values, own)
    for tensor in (tf.make_tensor_proto(values), own):
        assert tensor.ByteSize() > 64 * 2**10
        model, name, output = ("text", "text", "out") if kind == "string" else ("echo", "x", "y")
        signature = "" if kind == "string" else kind
        found = client.channel.unary_unary(
            PREDICT, predict_pb2.PredictRequest.SerializeToString, predict_pb2.PredictResponse.FromString
        )(request(model, {name: tensor}, signature=signature), timeout=60)
        assert found.outputs[output] == own


def shape(*sizes, **options):
    return {"dim": [{"size": size} for size in sizes], **options}


MALFORMED = [
    ({"tensor_shape": shape(-1), "float_val": [1.0]}, "float", "its shape is not known"),
    ({"tensor_shape": shape(unknown_rank=True), "float_val": [1.0]}, "float", "its shape is not known"),
    ({"tensor_shape": shape(2), "float_val": [1.0, 2.0, 3.0]}, "float", "its values do not fit its shape"),
    ({"tensor_shape": shape(2), "tensor_content": b"1234"}, "float", "its values do not fit its shape"),
    ({"tensor_shape": shape(*[1] * 100), "float_val": [1.0]}, "float", "its values do not fit its shape"),
    ({"tensor_shape": shape(2), "string_val": [b"1"] * 3}, "string", "its values do not fit its shape"),
    ({"tensor_shape": shape(2), "tensor_content": b"12"}, "string", "its values do not fit its shape"),
    ({"tensor_shape": shape(1), "int_val": [256]}, "uint8", "its values do not fit its shape"),
    ({"tensor_shape": shape(1), "half_val": [65536]}, "half", "its values do not fit its shape"),
    ({"tensor_shape": shape(2**62, 2**62), "float_val": [1.0]}, "float", "bytes; this server takes 100,000 at most"),
    ({"tensor_shape": shape(25_001), "float_val": [1.0]}, "float", "100,004 bytes; this server takes 100,000 at most"),
    ({"tensor_shape": shape(12_501), "string_val": [b""]}, "string", "100,008 bytes"),
]


@pytest.mark.parametrize(("fields", "dtype", "text"), MALFORMED)
def test_malformed_tensor(fields, dtype, text):
    number = tf.as_dtype(dtype).as_datatype_enum
    with pytest.raises(ServingError, match=text) as caught:
        read_tensor("x", TensorProto(dtype=number, **fields), dtype, 100_000)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_value_may_stand_for_those_after_it(count):
    tensor = TensorProto(dtype=1, tensor_shape=shape(3), float_val=[7.0] * count)
    assert read_tensor("x", tensor, "float", 100).tolist() == [7.0 if count else 0.0] * 3


# --- the other methods ------------------------------------------------------------------------------------


def metadata(model="pair", fields=("signature_def",), **spec):
    made = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    fill(made.model_spec, model, **spec)
    return made


def test_metadata_is_that_of_the_file(client, root):
    response = client.prediction.GetModelMetadata(metadata())
    assert (response.model_spec.name, response.model_spec.version.value) == ("pair", 3)
    assert response.model_spec.signature_name == ""
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    model = saved_model_pb2.SavedModel.FromString((root / "pair/3/saved_model.pb").read_bytes())
    assert dict(found.signature_def) == dict(model.meta_graphs[0].signature_def)


@pytest.mark.parametrize(
    ("sent", "code", "text"),
    [
        (get_model_metadata_pb2.GetModelMetadataRequest(), "INVALID_ARGUMENT", "Missing ModelSpec"),
        (
            metadata(fields=()),
            "INVALID_ARGUMENT",
            "GetModelMetadataRequest must specify at least one metadata_field",
        ),
        (metadata(fields=("signature_def", "X")), "INVALID_ARGUMENT", "Metadata field X is not supported"),
        (metadata("nope"), "NOT_FOUND", "Servable not found for request: Latest(nope)"),
        (metadata(version=9), "NOT_FOUND", "Servable not found for request: Specific(pair, 9)"),
        (metadata(label="L"), "INVALID_ARGUMENT", "Unrecognized servable version label: L"),
    ],
)
def test_metadata_error(client, sent, code, text):
    assert failure(client.prediction.GetModelMetadata, sent) == (code, text)


def tasks(*methods, signature=""):
    made = inference_pb2.MultiInferenceRequest()
    for method in methods:
        fill(made.tasks.add(method_name=method).model_spec, "pair", signature=signature)
    return made


def example(kind, model="pair", **spec):
    made = kind()
    fill(made.model_spec, model, **spec)
    made.input.example_list.examples.add().features.feature["x"].float_list.value.append(1)
    return made


WAS = "to be tensorflow/serving/{}. Was: tensorflow/serving/predict"
CLASSIFY, REGRESS = classification_pb2.ClassificationRequest, regression_pb2.RegressionRequest
OTHERS = [
    ("Classify", example(CLASSIFY), "Expected classification signature method_name " + WAS.format("classify")),
    ("Regress", example(REGRESS), "Expected regression signature method_name " + WAS.format("regress")),
    ("Classify", example(CLASSIFY, signature="x"), "No signature was found with the name: x"),
    ("Regress", example(REGRESS, signature="x"), "No signature was found with the name: x"),
    ("Classify", CLASSIFY(), "Missing ModelSpec"),
    (
        "MultiInference",
        tasks("tensorflow/serving/regress", "tensorflow/serving/classify"),
        "Expected regression signature method_name " + WAS.format("regress"),
    ),
    (
        "MultiInference",
        tasks("tensorflow/serving/classify", signature="x"),
        "Requested signature not found in model graph: x",
    ),
    ("MultiInference", tasks(), "ModelSpec has no name specified."),
]


@pytest.mark.parametrize(("method", "sent", "text"), OTHERS)
def test_methods_that_no_export_has(client, method, sent, text):
    assert failure(getattr(client.prediction, method), sent) == ("INVALID_ARGUMENT", text)


def test_unknown_ones(client):
    code, details = failure(client.prediction.Classify, example(CLASSIFY, "nope"))
    assert (code, details) == ("NOT_FOUND", "Servable not found for request: Latest(nope)")
    code, details = failure(client.prediction.MultiInference, tasks("tensorflow/serving/predict"))
    assert (code, details) == ("UNIMPLEMENTED", "Unsupported signature method_name: tensorflow/serving/predict")


def status(model, **spec):
    made = get_model_status_pb2.GetModelStatusRequest()
    fill(made.model_spec, model, **spec)
    return made


def test_status(client):
    for which in ({}, {"version": 3}, {"label": "any"}):
        found = client.models.GetModelStatus(status("pair", **which)).model_version_status
        assert [(one.version, one.state, one.status.error_code) for one in found] == [
            (3, get_model_status_pb2.ModelVersionStatus.AVAILABLE, 0)
        ]


@pytest.mark.parametrize(
    ("sent", "code", "text"),
    [
        (get_model_status_pb2.GetModelStatusRequest(), "INVALID_ARGUMENT", "Missing ModelSpec"),
        (status("nope"), "NOT_FOUND", "Could not find any versions of model nope"),
        (status("pair", version=9), "NOT_FOUND", "Could not find version 9 of model pair"),
    ],
)
def test_status_error(client, sent, code, text):
    assert failure(client.models.GetModelStatus, sent) == (code, text)


def reload_request(*models, **options):
    made = model_management_pb2.ReloadConfigRequest()
    made.config.model_config_list.SetInParent()
    for name, path in models:
        made.config.model_config_list.config.add(name=name, base_path=str(path), model_platform="tensorflow", **options)
    return made


def test_reload_replaces_all_models(serve, root, tmp_path):
    broken = tmp_path / "broken\udcff"
    (broken / "1").mkdir(parents=True)
    (broken / "1/saved_model.pb").write_bytes(b"no model")
    repository = ModelRepository(root)
    repository.poll()
    with serve(repository, grpc=True, timeout_seconds=0.01) as rest, stubs(rest.grpc_port) as client:
        ask, name = client.models.HandleReloadConfigRequest, 'a "b"/ü:\n'
        response = ask(reload_request((name, root / "pair"), version_labels={}))
        assert (response.status.error_code, response.status.error_message) == (0, "")
        assert response.HasField("status")
        until = time.monotonic() + 20
        while True:  # an answer has 10 ms
            with contextlib.suppress(grpc.RpcError):
                assert client.predict(name, PAIR)["y"].tolist() == [[2.0, 4.0]]
                break
            assert time.monotonic() < until
        assert failure(client.prediction.Predict, request("pair", PAIR))[0] == "NOT_FOUND"
        assert ask(reload_request((name, root / "pair"), version_labels={"stable": 3})).HasField("status")
        found = client.models.GetModelStatus(status(name, label="stable")).model_version_status
        assert found[0].version == 3
        ended = client.models.GetModelStatus(status("pair")).model_version_status[0]
        assert ended.state == get_model_status_pb2.ModelVersionStatus.END

        for sent, code, text in (
            (model_management_pb2.ReloadConfigRequest(), "INVALID_ARGUMENT", "ServerModelConfig type not supported"),
            (reload_request(("m", "pair")), "INVALID_ARGUMENT", "Expected model m to have an absolute path"),
            (reload_request(("m", "/x"), ("m", "/y")), "INVALID_ARGUMENT", "Illegal to list model m multiple times"),
            (
                reload_request(("text", root / "text"), version_labels={"a": 1}),
                "FAILED_PRECONDITION",
                "Request to assign label to version 1 of model text",
            ),
        ):
            found, details = failure(ask, sent)
            assert (found, details[: len(text)]) == (code, text)
        assert client.models.GetModelStatus(status(name)).model_version_status[0].version == 3

        broken = broken.rename(tmp_path / "broken")
        models = [("bad", broken), (name, root / "pair"), ("away", tmp_path / "away")]
        code, details = failure(ask, reload_request(*models))
        assert code == "UNKNOWN"
        assert re.match(
            r"2 servable\(s\) did not become available: away: no version below \S+; bad: version 1: ", details
        )
        failed = client.models.GetModelStatus(status("bad")).model_version_status[0]
        assert failed.state == get_model_status_pb2.ModelVersionStatus.END
        assert failed.status.error_code != 0
        assert failed.status.error_message
        assert client.models.GetModelStatus(status(name)).model_version_status[0].version == 3
        assert client.health.Check(health_pb2.HealthCheckRequest()).status == NOT_SERVING


# --- health and reflection --------------------------------------------------------------------------------

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ("tensorflow.serving.PredictionService", "tensorflow.serving.ModelService")


def test_health(serve, root, tmp_path):
    (tmp_path / "pair").symlink_to(root / "pair")
    repository = ModelRepository(tmp_path)
    with repository._changing:
        repository._discover()
    with serve(repository, grpc=True) as rest, stubs(rest.grpc_port) as client:
        for service in ("", *SERVICES):
            assert client.health.Check(health_pb2.HealthCheckRequest(service=service)).status == NOT_SERVING
        watch = client.health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == NOT_SERVING
        repository.poll()
        assert next(watch).status == SERVING
        for service in ("", *SERVICES):
            assert client.health.Check(health_pb2.HealthCheckRequest(service=service)).status == SERVING
        unknown = health_pb2.HealthCheckRequest(service="x")
        assert failure(client.health.Check, unknown) == ("NOT_FOUND", "Unknown service x")
        assert next(client.health.Watch(unknown)).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def test_reflection(client):
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICES[0]),
    ]
    listed, described = client.reflection.ServerReflectionInfo(iter(asked), timeout=30)
    names = {service.name for service in listed.list_services_response.service}
    assert names == {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(file)
        for file in described.file_descriptor_response.file_descriptor_proto
    ]
    assert "tensorflow_serving/apis/prediction_service.proto" in {file.name for file in files}


# --- many clients, and none that waits --------------------------------------------------------------------


def test_threads_get_the_answers_of_rest_from_the_same_batches(serve, repository):
    rows = np.random.default_rng(0).normal(size=[16, 20, 1, 2]).astype(np.float32)
    with (
        serve(repository, grpc=True, every=True) as rest,
        stubs(rest.grpc_port) as client,
        ThreadPoolExecutor(32) as threads,
    ):
        calls = [
            threads.map(
                lambda own: [client.predict("pair", {"x": tf.make_tensor_proto(row)})["y"].tolist() for row in own],
                rows,
            ),
            threads.map(
                lambda own: [rest.predict("pair", {"inputs": row.tolist()}).json["outputs"] for row in own], rows
            ),
        ]
        over_grpc, over_rest = (np.array(list(call), np.float32) for call in calls)
    assert over_grpc.tolist() == over_rest.tolist() == (2 * rows).tolist()


ENDLESS = {"times": np.array([2_000_000_000], np.int32)}


@pytest.fixture(scope="module")
def repository(slow):
    repository = ModelRepository(slow)
    repository.poll()
    assert repository.unavailable() == {}
    return repository


def counts(rest):
    page = rest("GET", "/metrics").body.decode()
    return {
        (sample.labels["model_name"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if "request_count" in sample.name
    }


def test_work_ends_when_nobody_waits(serve, repository):
    with (
        serve(repository, grpc=True, timeout_seconds=300, metrics_path="/metrics") as rest,
        stubs(rest.grpc_port) as client,
    ):
        call = client.prediction.Predict.future(request("count", ENDLESS))
        time.sleep(0.5)
        assert not rest_client.idle(seconds=0.3)
        call.cancel()
        assert rest_client.idle()
        assert within(5, lambda: counts(rest) == {("count", "CANCELLED"): 1})

        assert failure(client.prediction.Predict, request("count", ENDLESS), timeout=0.5)[0] == "DEADLINE_EXCEEDED"
        assert rest_client.idle()
        assert within(5, lambda: counts(rest).get(("count", "DEADLINE_EXCEEDED")) == 1)

        with stubs(rest.grpc_port) as other:
            call = other.prediction.Predict.future(request("count", ENDLESS))
            time.sleep(0.5)
        assert rest_client.idle()
        assert client.predict("count", {"times": np.array([3], np.int32)})["last"] == [3]


def test_work_ends_when_its_time_is_over(serve, repository):
    with serve(repository, grpc=True, timeout_seconds=0.5) as rest, stubs(rest.grpc_port) as client:
        found = failure(client.prediction.Predict, request("count", ENDLESS))
        assert found == ("DEADLINE_EXCEEDED", "No answer within 0.5 seconds")
        assert rest_client.idle()


def test_a_full_queue(serve, repository):
    most = processor.num_cores() + 1
    with serve(repository, grpc=True, timeout_seconds=60, max_waiting=1) as rest, stubs(rest.grpc_port) as client:
        calls = [client.prediction.Predict.future(request("count", ENDLESS)) for _ in range(most)]
        check = health_pb2.HealthCheckRequest()
        assert within(10, lambda: client.health.Check(check).status == NOT_SERVING)
        assert failure(client.prediction.Predict, request("count", ENDLESS)) == (
            "RESOURCE_EXHAUSTED",
            f"{most} requests of count run or wait; try again later",
        )
        assert client.models.GetModelStatus(status("count"), timeout=30).model_version_status
        for call in calls:
            call.cancel()
        assert within(20, lambda: client.health.Check(check).status == SERVING)
        assert rest_client.idle()


def test_limits(serve, repository):
    with serve(repository, grpc=True, max_body_mib=0.1, max_examples=3) as rest, stubs(rest.grpc_port) as client:
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            sent = request("pair", {"x": np.zeros([20_000, 2], np.float32)})
            code, details = failure(client.prediction.Predict, sent, compression=compression)
            assert code == "RESOURCE_EXHAUSTED"
            assert "larger than max" in details
        assert failure(client.prediction.Predict, request("pair", {"x": [[1.0, 2.0]] * 4})) == (
            "INVALID_ARGUMENT",
            'Input "x" holds 4 examples; this server takes 3 in a request at most',
        )
        sent = request("pair", {"x": [[1.0, 2.0]] * 3})
        assert client.prediction.Predict(sent, compression=grpc.Compression.Gzip).outputs["y"].float_val[5] == 4.0


def test_half_a_request_is_given_up(serve, repository):
    with serve(repository, grpc=True, read_seconds=0.5) as rest, stubs(rest.grpc_port) as client:
        sent = threading.Event()

        def never():
            sent.wait(20)
            yield from ()

        found = failure(client.channel.stream_unary(PREDICT), never())
        sent.set()
        assert found == ("DEADLINE_EXCEEDED", "Request did not arrive within 0.5 seconds")


def test_connections_and_calls_beyond_the_limit(serve, repository):
    with serve(repository, grpc=True, max_connections=2) as rest, contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(stubs(rest.grpc_port)) for _ in range(3))
        assert first.predict("pair", PAIR)["y"].tolist() == [[2.0, 4.0]]
        assert second.predict("pair", PAIR)["y"].tolist() == [[2.0, 4.0]]
        assert failure(third.prediction.Predict, request("pair", PAIR))[0] == "UNAVAILABLE"
        calls = [first.prediction.Predict.future(request("count", ENDLESS)) for _ in range(2)]
        assert within(5, lambda: not rest_client.idle(seconds=0.3))
        assert failure(second.prediction.Predict, request("pair", PAIR))[0] == "RESOURCE_EXHAUSTED"
        for call in calls:
            call.cancel()
        assert rest_client.idle()


def test_metrics(serve, repository):
    with serve(repository, grpc=True, metrics_path="/metrics") as rest, stubs(rest.grpc_port) as client:
        client.predict("pair", PAIR)
        for sent in (request("pair", PAIR, signature="x"), request("nope1", PAIR), request("nope2", PAIR)):
            failure(client.prediction.Predict, sent)
        failure(client.prediction.Regress, example(REGRESS))
        failure(client.prediction.MultiInference, tasks())
        client.models.GetModelStatus(status("pair"))
        assert counts(rest) == {
            ("pair", "OK"): 1,
            ("pair", "FAILED_PRECONDITION"): 1,
            ("pair", "INVALID_ARGUMENT"): 1,
            ("", "NOT_FOUND"): 2,
            ("", "INVALID_ARGUMENT"): 1,
        }
        latency = b'request_latency_count{API="predict",entrypoint="GRPC",model_name="pair"} 1.0'
        assert latency in rest("GET", "/metrics").body


# --- the process ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(folder, log, *options):
    """A server, with the ports of its REST and gRPC APIs, once every model is loaded."""
    command = [sys.executable, "-m", "kerasdl.serving", str(folder), "--rest-port", "0", "--grpc-port", "0", *options]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, text=True) as server:
        try:
            until = time.monotonic() + 90
            while len(re.findall(r":predict", log.read_text())) < 2:
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.05)
            yield server, int(re.match(r"gRPC: 127\.0\.0\.1:(\d+)\n", log.read_text())[1])
        finally:
            server.kill()


def end(server):
    server.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, errors = server.communicate(timeout=60)
    assert server.returncode == 0
    return errors, time.monotonic() - began


def test_a_port_that_was_taken_meanwhile(root):
    async def start(listener):
        await GrpcServer(Predictor(ModelRepository(root), Limits()), listener).start()

    with socket.create_server(("127.0.0.1", 0)) as listener, listener.dup():
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1 port {port} for gRPC; choose another"):
            asyncio.run(start(listener))


def test_a_second_ctrl_c_waits_for_nothing(slow, tmp_path):
    with process(slow, tmp_path / "log", "--grace-seconds", "50") as (server, port), stubs(port) as client:
        call = client.prediction.Predict.future(request("count", ENDLESS))
        time.sleep(0.5)
        server.send_signal(signal.SIGINT)
        assert not within(1, lambda: server.poll() is not None)
        server.send_signal(signal.SIGINT)
        server.wait(timeout=20)
        assert call.exception().code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_sigterm_lets_calls_end_and_streams_do_not_hold_it(slow, tmp_path):
    with process(slow, tmp_path / "log", "--grace-seconds", "50") as (server, port), stubs(port) as client:
        with socket.socket() as taken, pytest.raises(OSError, match="in use"):
            taken.bind(("127.0.0.1", port))
        watch = client.health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        held = threading.Event()

        def questions():
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            held.wait(30)

        stream = client.reflection.ServerReflectionInfo(questions())
        next(stream)
        call = client.prediction.Predict.future(request("count", {"times": np.array([200_000], np.int32)}))
        time.sleep(0.3)
        assert not call.done()
        errors, seconds = end(server)
        assert call.result().outputs["last"].int_val == [200_000]
        assert [one.status for one in watch] == [NOT_SERVING]
        assert list(stream) == []
        held.set()
    assert errors == ""
    assert seconds < 40


def test_sigterm_ends_what_does_not_end(slow, tmp_path):
    with process(slow, tmp_path / "log", "--grace-seconds", "1") as (server, port), stubs(port) as client:
        call = client.prediction.Predict.future(request("count", ENDLESS))
        time.sleep(0.5)
        errors, seconds = end(server)
        assert call.exception().code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert "Traceback" not in errors
    assert seconds < 20


# --- keys and certificates --------------------------------------------------------------------------------


def test_keys_and_certificate(serve, root, tmp_path):
    repository = ModelRepository(root)
    repository.poll()
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    certificate = (tmp_path / "certificate", tmp_path / "key")
    server.cert_chain_pems[0].write_to_path(str(certificate[0]))
    server.private_key_pem.write_to_path(str(certificate[1]))
    trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    with (
        serve(repository, grpc=True, keys=Keys([b"first-key", b"second"]), certificate=certificate) as rest,
        grpc.secure_channel(f"127.0.0.1:{rest.grpc_port}", trusted) as channel,
    ):
        client, ask = Stubs(channel), request("pair", PAIR)
        for shown in (
            ("authorization", "Bearer second"),
            ("authorization", "bearer first-key"),
            ("x-api-key", "second"),
        ):
            response = client.prediction.Predict(ask, timeout=30, metadata=[shown])
            assert tf.make_ndarray(response.outputs["y"]).tolist() == [[2.0, 4.0]]
        for wrong in ([], [("authorization", "second")], [("x-api-key", "")], [("x-api-key", "third")]):
            assert failure(client.prediction.Predict, ask, metadata=wrong) == ("UNAUTHENTICATED", NO_KEY)
        reload = model_management_pb2.ReloadConfigRequest()
        assert failure(client.models.HandleReloadConfigRequest, reload)[0] == "UNAUTHENTICATED"
        assert failure(lambda **_: next(client.reflection.ServerReflectionInfo(iter([]))))[0] == "UNAUTHENTICATED"
        assert client.health.Check(health_pb2.HealthCheckRequest(), timeout=30).status == 1
        with stubs(rest.grpc_port) as plain:
            assert failure(plain.prediction.Predict, ask, metadata=[("x-api-key", "second")])[0] == "UNAVAILABLE"
