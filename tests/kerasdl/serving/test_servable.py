"""Loading one version: signatures and warm-up requests."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from kerasdl import frozen
from kerasdl.serving.errors import Code, ServingError
from kerasdl.serving.servable import MAX_WARMUP_RECORDS, WARMUP, Servable, _reason


@pytest.fixture
def folder(scales, tmp_path):
    """A private copy of an export, to be spoiled."""
    return Path(shutil.copytree(scales[2], tmp_path / "m" / "7"))


def _record(signature: str = "", **inputs: np.ndarray) -> bytes:
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(request)
    return log.SerializeToString()


def _write_warmup(folder: Path, records: list[bytes]) -> Path:
    path = folder / WARMUP
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


X = np.ones((1, 2), np.float32)


def test_predict(folder):
    servable = Servable(folder)
    assert servable.version == 7
    servable.check("serving_default", {"x": X})
    assert servable.run("serving_default", {"x": X})["y"].tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({}, "0!=1 len({}) != len({x}). Sent extra: {}. Missing but required: {x}."),
        ({"x": X, "z": X}, "2!=1 len({x,z}) != len({x}). Sent extra: {z}. Missing but required: {}."),
        ({"z": X}, "Sent extra: {z}. Missing but required: {x}."),
    ],
)
def test_names_that_do_not_match(folder, inputs, text):
    with pytest.raises(ServingError) as caught:
        Servable(folder).check("serving_default", inputs)
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert text in caught.value.message


def test_warmup_requests_are_replayed(folder, monkeypatch):
    seen = []
    run = Servable.run

    def spy(self, signature, inputs):
        seen.append((signature, inputs["x"].tolist()))
        return run(self, signature, inputs)

    monkeypatch.setattr(Servable, "run", spy)
    _write_warmup(folder, [_record(x=X), _record("serving_default", x=2 * X)])
    Servable(folder)
    assert seen == [("serving_default", [[1.0, 1.0]]), ("serving_default", [[2.0, 2.0]])]


@pytest.mark.parametrize(
    ("records", "code", "text"),
    [
        ([_record("nope", x=X)], Code.INVALID_ARGUMENT, '"nope" not found in signature def'),
        ([_record(x=X), _record(x=X[0])], Code.INVALID_ARGUMENT, 'Input "x" has shape'),
        ([b"\xff no protobuf"], Code.INVALID_ARGUMENT, "Failed to parse warmup record"),
        ([_record(x=X)] * (MAX_WARMUP_RECORDS + 1), Code.INVALID_ARGUMENT, "exceeds the maximum (1000)"),
        (
            [prediction_log_pb2.PredictionLog(classify_log={}).SerializeToString()],
            Code.UNIMPLEMENTED,
            "Unsupported log_type for warmup: classify_log",
        ),
    ],
    ids=["signature", "shape", "protobuf", "too many", "classify"],
)
def test_warmup_request_that_fails_stops_the_load(folder, records, code, text):
    _write_warmup(folder, records)
    with pytest.raises(ServingError) as caught:
        Servable(folder)
    assert caught.value.code == code
    assert text in caught.value.message


def test_corrupt_warmup_file_stops_the_load(folder):
    path = _write_warmup(folder, [_record(x=X)])
    path.write_bytes(path.read_bytes()[:-3] + b"???")
    with pytest.raises(ServingError) as caught:
        Servable(folder)
    assert caught.value.code == Code.DATA_LOSS
    assert caught.value.message.endswith(". Please verify your warmup data is in TFRecord format.")


def test_an_error_that_quotes_bytes_which_are_no_text_is_that_of_the_client(tmp_path):
    def third(text):
        return {"byte": tf.strings.substr(text, 2, 1)}

    signature = tf.function(third, input_signature=[tf.TensorSpec([None], tf.string, "text")])
    tf.saved_model.save(tf.Module(), str(tmp_path / "1"), signatures={"serving_default": signature})
    servable = Servable(tmp_path / "1")
    assert servable.run("serving_default", {"text": np.array([b"abc"], object)})["byte"].tolist() == [b"c"]
    for text in (b"a", b"\xff"):
        with pytest.raises(ServingError, match="out of range") as caught:
            servable.run("serving_default", {"text": np.array([text], object)}, frozen.Cancellation())
        assert caught.value.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "message",
    [
        "no picture",
        "{{function_node f}} no picture",
        "{{function_node f}} {{function_node g}} assertion failed: [no picture] [Op:x]",
        "{{function_node f}} assertion failed: [no picture]",
        "Graph execution error:\n\nDetected at node x\n{{function_node f}} assertion failed: [no picture] [[x]]",
    ],
)
def test_the_reason_is_what_the_graph_says(message):
    assert _reason(message) == "no picture"
