"""Nothing that one client sends, or leaves undone, ends the server, blocks it or starves others."""

import base64
import http.client
import io
import json
import math
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import rest_client
import tensorflow as tf
import uvloop
from PIL import Image
from tensorflow_serving.apis import prediction_log_pb2
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kerasdl import processor
from kerasdl.serving import http as http_server
from kerasdl.serving import pictures
from kerasdl.serving.lane import NICE
from kerasdl.serving.limits import Limits
from kerasdl.serving.predictor import LongCalls
from kerasdl.serving.repository import ModelRepository
from kerasdl.serving.servable import BATCHED, WARMUP, Servable

ENDLESS = json.dumps({"instances": [2_000_000_000]}).encode()


@pytest.fixture(scope="module")
def repository(slow):
    repository = ModelRepository(slow)
    repository.poll()
    assert repository.unavailable() == {}
    return repository


def beside():
    """The processes that the server has begun."""
    return [one for one in psutil.Process().children() if one.is_running() and "spawn_main" in " ".join(one.cmdline())]


def test_work_ends_when_its_time_is_over(serve, repository):
    with serve(repository, timeout_seconds=0.5) as client:
        assert client.predict("count", {"instances": [3]}).json == {"predictions": [3]}
        assert client.predict("count", ENDLESS).status == 504
        assert rest_client.idle()
        assert client.predict("count", {"instances": [3]}).status == 200


def test_work_ends_when_its_client_leaves(serve, repository):
    with serve(repository, timeout_seconds=300) as client:
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            head = f"POST /v1/models/count:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(ENDLESS)}\r\n\r\n"
            connection.sendall(head.encode() + ENDLESS)
            time.sleep(0.5)
        assert rest_client.idle()


def test_the_load_of_one_model_is_refused_and_leaves_the_others_answering(serve, repository):
    most = processor.num_cores() + 1
    with serve(repository, timeout_seconds=6, max_waiting=1) as client, ThreadPoolExecutor(most) as threads:
        asked = [threads.submit(client.predict, "count", ENDLESS) for _ in range(most)]
        until = time.monotonic() + 5
        while (ready := client("GET", "/readyz")).status == 200 and time.monotonic() < until:
            time.sleep(0.05)
        assert ready.json == {"ready": False, "unavailable": {"count": f"{most} requests run or wait"}}
        refused = client.predict("count", {"instances": [1]})
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert refused.json == {"error": f"{most} requests of count run or wait; try again later"}
        assert client.predict("pair", {"instances": [[1, 2]]}).status == 200
        assert client("GET", "/v1/models/count").status == 200
        assert [reply.result().status for reply in asked] == [504] * most
        assert rest_client.idle()
        assert client("GET", "/readyz").status == 200
        assert client.predict("count", {"instances": [1]}).status == 200


def png(width, height):
    """The head of a file, which says its size, and no pixels."""
    head = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I4sI", 0, b"IDAT", zlib.crc32(b"IDAT"))


def encoded(kind, width, height):
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (png(20_000, 20_000), None),
        (png(1_001, 1_000), "a picture of 1,001 x 1,000 pixels is too large; this server takes 1,000,000 at most"),
        *((encoded(kind, 1_100, 1_000), "1,100 x 1,000") for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP")),
    ],
)
def test_a_large_picture_is_refused_by_its_header(picture, words, serve, root):
    repository = ModelRepository(root)
    repository.poll()
    with serve(repository, max_megapixels=1.0) as client:
        for some in ([picture], [b"BMW is a text", picture]):
            body = {"instances": [{"b64": base64.b64encode(one).decode()} for one in some]}
            reply = client.predict("text", body)
            assert reply.status == 400
            assert "pixels is too large; this server takes 1,000,000 at most" in reply.json["error"]
            assert words is None or words in reply.json["error"]


@pytest.mark.parametrize(
    "body", ['{"inputs": [' + "0.123456," * 1_000_000 + "1]}", "[" * 8_000_000], ids=["numbers", "depth"]
)
def test_a_large_body_leaves_the_server_answering(body, serve, root):
    repository = ModelRepository(root)
    repository.poll()
    with serve(repository) as client, ThreadPoolExecutor(1) as threads:
        asked, slowest = threads.submit(client.predict, "pair", body), 0.0
        while not asked.done():
            began = time.monotonic()
            assert client("GET", "/healthz").status == 200
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 1
        assert asked.result().status == 400
        words = "has shape [1000001]" if body.endswith("}") else "Nested too deeply"
        assert words in asked.result().json["error"]


def test_the_end_of_the_process_that_reads_large_bodies_is_told_and_mended(serve, root):
    repository = ModelRepository(root)
    repository.poll()
    body = '{"inputs": [' + "0.123456," * 1_000_000 + "1]}"
    with serve(repository) as client, ThreadPoolExecutor(1) as threads:
        before = beside()  # of other tests
        asked = threads.submit(client.predict, "pair", body)
        until = time.monotonic() + 20
        while not (reading := [one for one in beside() if one not in before]):
            assert time.monotonic() < until
            time.sleep(0.01)
        for process in reading:
            process.kill()
        assert asked.result().status == 429
        assert "was ended, perhaps for want of memory" in asked.result().json["error"]
        assert "has shape [1000001]" in client.predict("pair", body).json["error"]


def test_more_examples_than_memory_bears_are_refused(serve, repository):
    with serve(repository, max_examples=3) as client:
        assert client.predict("pair", {"instances": [[1, 2]] * 3}).status == 200
        reply = client.predict("pair", {"instances": [[1, 2]] * 4})
        assert (reply.status, reply.json) == (
            400,
            {"error": 'Input "x" holds 4 examples; this server takes 3 in a request at most'},
        )


@pytest.fixture
def pixel_by_pixel(tmp_path):
    """A folder of a model that takes some microseconds for a hundred pixels of its pictures."""

    def function(image_bytes):
        size = tf.size(tf.io.decode_image(image_bytes[0]))
        steps, _ = tf.while_loop(lambda i, _: i < size // 300, lambda i, x: (i + 1, tf.sin(x)), (0, tf.zeros([])))
        return {"steps": tf.repeat(steps, tf.size(image_bytes))}

    folder = tmp_path / "models/m/1"
    signature = tf.function(function, input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    tf.saved_model.save(tf.Module(), str(folder), signatures={"serving_default": signature})
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([picture(10, 10)]))
    (folder / WARMUP).parent.mkdir()
    with tf.io.TFRecordWriter(str(folder / WARMUP)) as writer:
        writer.write(log.SerializeToString())
    return folder.parents[1]


def picture(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_a_picture_that_takes_far_too_long_is_refused_at_once(serve, pixel_by_pixel):
    repository = ModelRepository(pixel_by_pixel)
    repository.poll()

    def ask(client, width, height):
        return client.predict("m", {"instances": [{"b64": base64.b64encode(picture(width, height)).decode()}]})

    with serve(repository) as client:
        began = time.monotonic()
        assert ask(client, 1000, 1000).json == {"predictions": [10_000]}
        seconds = time.monotonic() - began
    with serve(repository, timeout_seconds=3 * seconds) as client:
        assert ask(client, 1000, 1000).json == {"predictions": [10_000]}
        began = time.monotonic()
        reply = ask(client, 6000, 8000)  # a minute and more, if it is a second for the smaller one
        assert (reply.status, time.monotonic() - began < 2.5 * seconds + 1) == (400, True)
        assert re.fullmatch(
            r"48,000,000 pixels would take about \d+ seconds; this server answers within [\d.]+ seconds, "
            r"which is enough for [\d,]+ pixels",
            reply.json["error"],
        )


@pytest.mark.parametrize(
    "word", [png(1_000, 1_000), png(1_001, 1_000)[:20], b"BM", b"BMW", b"GIF89a", b"\xff\xd8\xff", b"RIFF of guitars"]
)
def test_what_is_no_large_picture_passes(word):
    pictures.check([word, "text"], 1_000_000)


def test_heads_are_parsed_by_compiled_code():
    """httptools and uvloop, which uvicorn takes where they are installed."""
    config = http_server.server(None, Limits()).config
    assert issubclass(config.http, HttpToolsProtocol)
    loop = config.get_loop_factory()()
    loop.close()
    assert isinstance(loop, uvloop.Loop)


@pytest.mark.parametrize("sent", ["", "POST /v1/mod", "POST /v1/models/pair:predict HTTP/1.1\r\nContent-Le"])
def test_half_a_head_does_not_hold_a_connection(sent, serve, repository):
    with (
        serve(repository, read_seconds=0.5) as client,
        socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection,
    ):
        connection.sendall(sent.encode())
        assert connection.recv(1000) == b""


def test_half_a_body_is_given_up(serve, repository):
    with (
        serve(repository, read_seconds=0.5) as client,
        socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection,
    ):
        connection.sendall(b"POST /v1/models/pair:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        reply = connection.recv(1000)
        assert reply.startswith(b"HTTP/1.1 408 ")
        assert b"Request body did not arrive within 0.5 seconds" in reply + connection.recv(1000)


def test_a_kept_connection_may_pause_between_requests(serve, repository):
    with serve(repository, read_seconds=0.5) as client:
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
        try:
            for _ in range(2):
                connection.request("POST", "/v1/models/pair:predict", b'{"instances": [[1, 2]]}')
                connected = connection.sock
                assert json.loads(connection.getresponse().read()) == {"predictions": [[2.0, 4.0]]}
                time.sleep(1)
                assert connection.sock is connected
        finally:
            connection.close()


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGTERM], [signal.SIGINT]])
def test_the_server_ends_though_work_does_not(signals, slow, tmp_path):
    command = [sys.executable, "-m", "kerasdl.serving", str(slow), "--rest-port", "0", "--grace-seconds", "1"]
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, text=True) as process:
        try:
            until = time.monotonic() + 90
            while len(re.findall(r":predict", log.read_text())) < 2:
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.05)
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())[1])
            with socket.create_connection(("127.0.0.1", port)) as connection:
                head = "POST /v1/models/count:predict HTTP/1.1\r\nHost: localhost\r\n"
                connection.sendall(f"{head}Content-Length: {len(ENDLESS)}\r\n\r\n".encode() + ENDLESS)
                time.sleep(0.5)
                began = time.monotonic()
                for number in signals:
                    process.send_signal(number)
                    time.sleep(0.3)
                _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0
    assert 0.9 < time.monotonic() - began < 20  # the time of grace, since there was work
    assert "Traceback" not in errors


def test_endless_calls_of_one_model_do_not_hold_up_the_others(slow, tmp_path):
    """In a process of its own, which has the threads of a server."""
    command = [sys.executable, "-m", "kerasdl.serving", str(slow), "--rest-port", "0", "--timeout-seconds", "20"]
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file) as process:
        try:
            until = time.monotonic() + 90
            while len(re.findall(r":predict", log.read_text())) < 2:
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.05)
            client = rest_client.Client(int(re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())[1]))
            with ThreadPoolExecutor(8) as threads:
                asked = [threads.submit(client.predict, "count", ENDLESS) for _ in range(8)]
                time.sleep(1)
                began = time.monotonic()
                assert client.predict("pair", {"instances": [[1, 2]]}).status == 200
                assert time.monotonic() - began < 5
                assert not any(one.done() for one in asked)
                process.send_signal(signal.SIGTERM)
        finally:
            process.kill()


def test_a_long_call_begins_anew_in_a_process_of_lower_priority(serve, repository):
    with serve(repository, long_seconds=0.3, timeout_seconds=120) as client:
        assert client.predict("count", {"instances": [3]}).json == {"predictions": [3]}
        assert beside() == []
        assert client.predict("count", {"instances": [500_000]}).json == {"predictions": [500_000]}
        (process,) = beside()
        assert process.nice() == psutil.Process().nice() + NICE
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(client.predict, "count", {"instances": [500_000]})
            while not asked.done():
                began = time.monotonic()
                assert client.predict("count", {"instances": [4]}).json == {"predictions": [4]}
                assert time.monotonic() - began < 1
            assert asked.result().json == {"predictions": [500_000]}
        assert beside() == [process]
    assert not process.is_running()


def test_what_is_quick_by_itself_may_wait_longer_for_others(slow):
    servable, long = Servable(slow / "count/1"), LongCalls(1.0)

    def call(*times):
        return servable, "serving_default", {"times": np.array(times, np.int32)}

    try:
        for one in (0.3, 0.1, 0.4):
            long.quickest.learn(*call(5), one)
        long.quickest.learn(*call(100), 0.3)
        found = {times: long.quickest.seconds(*call(*times)) for times in [(5,), (4,), (-7,), (8,), (5, 5), (127,)]}
        assert found == {(5,): 0.1, (4,): 0.1, (-7,): 0.1, (8,): math.inf, (5, 5): math.inf, (127,): 0.3}
        assert [long.deadlines(*call(times)).seconds for times in (6, 100, 1000)] == [5.0, 1.0, 1.0]
    finally:
        long.close()


def test_requests_that_are_computed_together_stay(serve, slow, tmp_path):
    folder = tmp_path / "models/count/1"
    shutil.copytree(slow / "count/1", folder)
    (folder / BATCHED).parent.mkdir(exist_ok=True)
    (folder / BATCHED).write_text('{"serving_default": []}')
    repository = ModelRepository(folder.parents[1])
    repository.poll()
    with serve(repository, long_seconds=0.1, timeout_seconds=120) as client:
        before = beside()
        for times in (3, 1_000_000):
            assert client.predict("count", {"instances": [times]}).json == {"predictions": [times]}
        assert beside() == before


def test_a_long_call_ends_when_its_client_leaves_and_when_its_process_ends(serve, repository):
    with serve(repository, long_seconds=0.3, timeout_seconds=120) as client:
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            head = f"POST /v1/models/count:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(ENDLESS)}\r\n\r\n"
            connection.sendall(head.encode() + ENDLESS)
            until = time.monotonic() + 60
            while not (found := beside()) or sum(found[0].cpu_times()[:2]) < 1:
                assert time.monotonic() < until
                time.sleep(0.1)
            time.sleep(8)
        assert rest_client.idle(found[0], seconds=30)
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(client.predict, "count", ENDLESS)
            time.sleep(1)
            found[0].kill()
            assert asked.result().status == 429
            assert "was ended, perhaps for want of memory" in asked.result().json["error"]
        assert client.predict("count", {"instances": [500_000]}).json == {"predictions": [500_000]}


def test_what_ends_one_call_leaves_the_others(slow):
    from kerasdl.frozen import Cancellation, frozen

    model = tf.saved_model.load(str(slow / "count/1"))
    function = frozen(model, "serving_default")
    first, second = Cancellation(), Cancellation()
    found = {}

    def run(name, times, cancellation):
        try:
            found[name] = int(function.call({"times": tf.constant([times])}, cancellation)["last"][0])
        except tf.errors.CancelledError:
            found[name] = "ended"

    threads = [
        threading.Thread(target=run, args=arguments)
        for arguments in (("first", 2_000_000_000, first), ("second", 300_000, second), ("third", 300_000, None))
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    first.cancel()
    for thread in threads:
        thread.join()
    assert found == {"first": "ended", "second": 300_000, "third": 300_000}
    run("later", 1, first)
    assert found["later"] == "ended"
