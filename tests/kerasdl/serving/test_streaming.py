"""Streams: equal to the whole text, from a small model of bytes and from the trained export; faults and ends."""

import base64
import http.client
import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import rest_client
import tensorflow as tf
from prometheus_client.parser import text_string_to_metric_families

from kerasdl.decoding import sampling
from kerasdl.serving import streaming_request
from kerasdl.serving.apart import Apart
from kerasdl.serving.repository import ModelRepository
from kerasdl.serving.servable import BATCHED

EXPORTS = Path(__file__).parents[3] / "saved_models"
TEXT = ("aé世🎉 \r\n\u2028".encode() + b"\xff\xe4\xb8") * 40
LONG = {"prompt": "", "length": 100, "temperature": 2e9}
"""The second piece of it takes for ever."""


def _save(folder: Path, *, rows: bool = True) -> None:
    """Writes bytes of TEXT again and again, but not from beyond `seed`, if it is not 0.

    `temperature` times `start` are the rounds that it computes for nothing.
    """

    def begin(prompt):
        return {"state": tf.cast(tf.strings.length(prompt), tf.float32)[:, None]}

    def advance(state, start, length, temperature, top_k, top_p, seed):
        rounds = tf.reduce_max(temperature * tf.cast(start, tf.float32))
        zero = tf.while_loop(lambda i: i < rounds, lambda i: [i + tf.maximum(1.0, i * 1e-6)], [0.0])[0] * 0
        end = tf.where(seed == 0, tf.int32.max, seed)
        with tf.control_dependencies([tf.debugging.assert_less(start, end, "beyond the end")]):
            place = (tf.cast(state[:, 0] + zero, tf.int32) + start) % len(TEXT)
        text = tf.strings.substr(2 * TEXT, place, length)
        return {"text": tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", "replace"), "state": state}

    scalars = {name: tf.TensorSpec([None], tf.int32) for name in ("start", "length", "top_k", "seed")}
    scalars |= {name: tf.TensorSpec([None], tf.float32) for name in ("temperature", "top_p")}
    module = tf.Module()
    signatures = {
        "begin": tf.function(begin).get_concrete_function(prompt=tf.TensorSpec([None], tf.string)),
        "advance": tf.function(advance).get_concrete_function(state=tf.TensorSpec([None, 1]), **scalars),
    }
    tf.saved_model.save(module, str(folder), signatures=signatures)
    if rows:
        (folder / BATCHED).parent.mkdir(exist_ok=True)
        (folder / BATCHED).write_text(json.dumps({"begin": [], "advance": ["length"]}))


def _save_describer(folder: Path) -> None:
    """Says of n bytes that there are n; of 255 or more, without an end; of 3, in bytes that are no UTF-8."""

    def begin(image_bytes):
        return {"state": tf.stack([tf.cast(tf.strings.length(image_bytes), tf.float32), 0 * tf.ones(1)], 1)}

    def advance(state):
        count, said = tf.unstack(tf.cast(state, tf.int32), axis=1)
        check = tf.debugging.assert_less(said, 12, "too many words")
        with tf.control_dependencies([check]):
            more = tf.where(count == 3, tf.constant(b" \xff"), tf.strings.join([" ", tf.strings.as_string(count)]))
        text = tf.where(said == 0, "there are", tf.where((said == 1) | (count > 254), more, ""))
        return {"text": text, "state": tf.add(state, [[0.0, 1.0]])}

    signatures = {
        "begin": tf.function(begin).get_concrete_function(image_bytes=tf.TensorSpec([None], tf.string)),
        "advance": tf.function(advance).get_concrete_function(state=tf.TensorSpec([None, 2])),
    }
    tf.saved_model.save(tf.Module(), str(folder), signatures=signatures)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, root) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    _save(folder / "bytes" / "1")
    _save_describer(folder / "describer" / "1")
    (folder / "pair").symlink_to(root / "pair")
    (folder / "chargen").symlink_to(EXPORTS / "chargen")
    return folder


@pytest.fixture(scope="module")
def repository(folder) -> ModelRepository:
    repository = ModelRepository(folder)
    repository.poll()
    assert repository.unavailable() == {}
    return repository


@pytest.fixture(scope="module")
def client(serve, repository):
    with serve(repository, metrics_path="/metrics") as client:
        yield client


def events(body: bytes) -> list[tuple[str, dict]]:
    """Name and content of each; `message` is the name of those without one."""
    assert body.endswith(b"\n\n")
    found = re.findall(r"(?:event: (.*)\n)?data: (.*)\n\n", body.decode())
    assert "".join(f"event: {name}\ndata: {data}\n\n" if name else f"data: {data}\n\n" for name, data in found) == (
        body.decode()
    )
    return [(name or "message", json.loads(data)) for name, data in found]


def ask(client, model, **asked):
    """The pieces of a text, and its last event."""
    reply = client("POST", f"/stream/{model}", json.dumps(asked))
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    *pieces, last = events(reply.body)
    assert {name for name, _ in pieces} == {"message"}
    return [content["text"] for _, content in pieces], last


@pytest.mark.parametrize("length", [1, 2, 32, 33, 34, 35, 36, 100, 333])
def test_characters_are_not_cut(client, length):
    pieces, last = ask(client, "bytes", prompt="ab", length=length)
    assert "".join(pieces) == TEXT[2 : 2 + length].decode(errors="replace")
    assert last == ("done", {"characters": len("".join(pieces))})
    assert length / 40 <= len(pieces) <= -(-length // 32)


SETTINGS = [
    {"prompt": "ROMEO:", "length": 75},
    {"prompt": "", "length": 33, "temperature": 1, "top_k": 5, "seed": -7},
    {"prompt": "Ünknown", "length": 32, "temperature": 1.5, "top_p": 0.7, "seed": 2**31 - 1},
    {"prompt": "To be", "length": 40, "temperature": 0},
]


def whole(client, settings) -> str:
    given = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 0, **settings}
    body = {"signature_name": "generate", "inputs": {name: [value] for name, value in given.items()}}
    return client.predict("chargen", body).json["outputs"][0]


@pytest.mark.parametrize("settings", SETTINGS)
def test_equals_the_text_that_is_made_at_once(client, settings):
    pieces, last = ask(client, "chargen", **settings)
    assert len(pieces) == -(-settings["length"] // 32)
    assert "".join(pieces) == whole(client, settings)
    assert last == ("done", {"characters": settings["length"]})


@pytest.mark.parametrize(("count", "expected"), [(5, ["there are", " 5"]), (3, ["there are", " \ufffd"])])
def test_a_picture_is_described_word_by_word(client, count, expected):
    encoded = base64.b64encode(b"x" * count).decode()
    pieces, last = ask(client, "describer", image_bytes={"b64": encoded})
    assert pieces == expected
    assert last == ("done", {"characters": len("".join(pieces))})


def test_a_description_that_fails_later_says_so(client):
    encoded = base64.b64encode(b"x" * 255).decode()
    pieces, last = ask(client, "describer", image_bytes={"b64": encoded})
    assert pieces == ["there are", *[" 255"] * 11]
    assert last == ("error", {"error": "too many words"})


def test_defaults(client):
    assert streaming_request.MAX_LENGTH == sampling.MAX_LENGTH
    assert len("".join(ask(client, "chargen", prompt="A")[0])) == 300
    assert ask(client, "chargen/versions/1", prompt="A") == ask(
        client, "chargen", prompt="A", length=300, temperature=0.8, top_k=0, top_p=1.0, seed=0
    )


@pytest.mark.parametrize(("prompt", "status"), [("[" * 300_000, 200), ([[]] * 300_000, 400)])
def test_large_bodies_are_read_apart(serve, repository, monkeypatch, prompt, status):
    read = []

    async def run(self, function, *arguments):
        read.append(function)
        return await apart(self, function, *arguments)

    apart = Apart.run
    monkeypatch.setattr(Apart, "run", run)
    with serve(repository) as client:
        assert client("POST", "/stream/bytes", json.dumps({"prompt": prompt})).status == status
    assert read == [streaming_request.read]


def test_streams_at_once_are_computed_together(serve, repository):
    with serve(repository, metrics_path="/metrics") as client, ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask, client, "bytes", prompt="x" * n, length=320, temperature=5.0) for n in range(8)]
        for n, one in enumerate(asked):
            pieces, _ = one.result()
            assert "".join(pieces) == TEXT[n : n + 320].decode(errors="replace")
        samples = {
            sample.name: sample.value
            for family in text_string_to_metric_families(client("GET", "/metrics").body.decode())
            for sample in family.samples
            if {"model_name": "bytes", "model": "bytes"}.items() & sample.labels.items()
        }
    submitted = samples[":tensorflow:serving:request_example_counts_count"]
    assert submitted >= 8 * 9
    assert samples[":tensorflow:serving:runtime_latency_count"] < submitted
    assert samples[":tensorflow:serving:request_latency_count"] == 8


NUMBERS = [
    ("length", 0, "an integer from 1 to 100000"),
    ("length", 100_001, "an integer from 1 to 100000"),
    ("length", 1.0, "an integer"),
    ("length", True, "an integer"),
    ("length", "9", "an integer"),
    ("length", None, "an integer"),
    ("length", [9], "an integer"),
    ("temperature", -0.1, "a number from 0 to "),
    ("temperature", 10**400, "a number from 0 to "),
    ("temperature", float("nan"), "a number from 0 to "),
    ("temperature", False, "a number"),
    ("top_k", -1, "an integer from 0 to 2147483647"),
    ("top_p", 0, "a number from 1e-06 to 1"),
    ("top_p", 1.1, "a number from 1e-06 to 1"),
    ("seed", 2**31, "an integer from -2147483648 to 2147483647"),
]


@pytest.mark.parametrize(("name", "value", "words"), NUMBERS)
def test_a_setting_out_of_its_range(client, name, value, words):
    reply = client("POST", "/stream/bytes", json.dumps({"prompt": "", name: value}))
    assert reply.status == 400
    assert reply.json["error"].startswith(f'"{name}" is {json.dumps(value)[:100]}; expected {words}')


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "bytes", "", 400, "JSON Parse error: The document is empty"),
        ("POST", "bytes", "[1]", 400, "Is not object"),
        ("POST", "bytes", "{}", 400, '"prompt" is missing'),
        ("POST", "bytes", '{"prompt": 3}', 400, '"prompt" is 3; expected a text'),
        ("POST", "bytes", '{"prompt": "\\ud800"}', 400, '"prompt" holds half of a surrogate pair'),
        ("POST", "bytes", '{"prompt": "", "len": 3}', 400, '"len" is unknown; expected prompt and, if need be, length'),
        (
            "POST",
            "pair",
            '{"prompt": ""}',
            400,
            "expected signatures begin that takes prompt: string and advance that ",
        ),
        ("POST", "pair", "{}", 400, ", or begin that takes image_bytes: string and advance that takes state: float; "),
        ("POST", "describer", "{}", 400, 'The request is not a picture; expected {"image_bytes": {"b64": "..."}}'),
        ("POST", "describer", '{"image_bytes": "x"}', 400, "The request is not a picture"),
        ("POST", "describer", '{"image_bytes": {"b64": "eA=="}, "seed": 0}', 400, "and no more"),
        ("POST", "describer", '{"image_bytes": {"b64": "-"}}', 400, "base64"),
        ("POST", "describer", '{"image_bytes": {"b64": 3}}', 400, "image_bytes"),
        ("POST", "nope", '{"prompt": ""}', 404, "Servable not found for request: Latest(nope)"),
        ("POST", "bytes/versions/2", '{"prompt": ""}', 404, "Servable not found for request: Specific(bytes, 2)"),
        ("POST", "bytes/labels/a%20b", '{"prompt": ""}', 400, "Unrecognized servable version label: a b"),
        ("POST", "bytes/more", '{"prompt": ""}', 404, "No such request: POST /stream/bytes/more; expected POST"),
        ("GET", "bytes", None, 404, "No such request: GET /stream/bytes; expected POST /stream/<model>"),
    ],
)
def test_what_is_wrong_from_the_start_has_a_status(client, method, path, body, status, words):
    reply = client(method, f"/stream/{path}", body)
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
    assert words in reply.json["error"]
    assert "\n" not in reply.json["error"]


def test_a_fault_of_the_graph_has_a_status_at_the_start_and_is_an_event_later(serve, tmp_path):
    _save(tmp_path / "bytes/1", rows=False)
    repository = ModelRepository(tmp_path)
    repository.poll()
    with serve(repository, metrics_path="/metrics", timeout_seconds=10) as client:
        reply = client("POST", "/stream/bytes", json.dumps({"prompt": "", "seed": -1}))
        assert (reply.status, reply.json) == (400, {"error": "beyond the end"})
        pieces, last = ask(client, "bytes", prompt="", length=100, seed=32)
        assert "".join(pieces) == TEXT[:32].decode(errors="replace")
        assert last == ("error", {"error": "beyond the end"})
        counted = client("GET", "/metrics").body
    assert b':request_count{model_name="bytes",status="INVALID_ARGUMENT"} 2' in counted
    assert b'status="OK"' not in counted


def test_the_time_limit_holds_for_a_piece(serve, repository):
    with serve(repository, timeout_seconds=0.5) as client:
        pieces, last = ask(client, "bytes", **LONG)
    assert "".join(pieces) == TEXT[:32].decode(errors="replace")
    assert last == ("error", {"error": "No answer within 0.5 seconds"})


@pytest.mark.parametrize("temperature", [2e9, 0.0])
def test_a_client_that_leaves_ends_the_work(temperature, serve, repository):
    """Inside of a piece, and between pieces that are quick."""
    with serve(repository, timeout_seconds=300, metrics_path="/metrics") as client:
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
        asked = {"prompt": "", "length": 100_000, "temperature": temperature}
        connection.request("POST", "/stream/bytes", json.dumps(asked))
        reply = connection.getresponse()
        assert reply.readline().startswith(b'data: {"text": "a')  # before the text is done
        assert not rest_client.idle(seconds=0.5)
        reply.close()
        connection.close()
        assert rest_client.idle()
        assert b':request_count{model_name="bytes",status="CANCELLED"} 1' in client("GET", "/metrics").body


def test_pages_of_other_hosts(serve, repository):
    asked = {"Origin": "https://a.b", "Access-Control-Request-Method": "POST"}
    for cors, status in ((True, 200), (False, 404)):
        with serve(repository, cors=cors) as client:
            reply = client("OPTIONS", "/stream/bytes", headers=asked)
            assert (reply.status, reply.headers["Access-Control-Allow-Origin"]) == (status, "*" if cors else None)
            reply = client("POST", "/stream/bytes", '{"prompt": ""}', headers={"Origin": "https://a.b"})
            assert reply.headers["Access-Control-Allow-Origin"] == ("*" if cors else None)


def test_a_stream_is_told_that_the_server_stops(tmp_path):
    _save(tmp_path / "models/bytes/1")
    command = [sys.executable, "-m", "kerasdl.serving", "models", "--rest-port", "0", "--grace-seconds", "1"]
    log = tmp_path / "log"
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process,
    ):
        try:
            until = time.monotonic() + 90
            while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/v1/models/bytes:predict", log.read_text())):
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.05)
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
            connection.request("POST", "/stream/bytes", json.dumps(LONG))
            reply = connection.getresponse()
            line = reply.readline()
            process.send_signal(signal.SIGTERM)
            found = events(line + reply.read())
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
            connection.close()
    assert [name for name, _ in found] == ["message", "error"]
    assert found[-1][1] == {"error": "The server stops"}
    assert process.returncode == 0
    assert "Traceback" not in errors
