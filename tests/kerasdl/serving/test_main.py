"""The command line: mistakes in this process, serving in one of its own."""

import contextlib
import contextvars
import json
import logging
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme

from kerasdl.serving.__main__ import _Formatter, listen, main
from kerasdl.serving.access import request_id


def _get(
    url: str, data: bytes | None = None, context: ssl.SSLContext | None = None, **headers: str
) -> tuple[int, bytes]:
    try:
        request = urllib.request.Request(url, data, headers)
        with urllib.request.urlopen(request, timeout=30, context=context) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@contextlib.contextmanager
def _server(
    arguments: list[str], log: Path, context: ssl.SSLContext | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves, and its address, once every model is loaded."""
    command = [sys.executable, "-m", "kerasdl.serving", *arguments, "--rest-port", "0"]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 90
            while not (address := re.search(r"https?://127\.0\.0\.1:\d+", log.read_text())):
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            while _get(f"{address[0]}/readyz", None, context)[0] != 200:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield process, address[0]
        finally:
            process.kill()


def _end(process: "subprocess.Popen[str]") -> str:
    """Stops a server the way a service manager does; what it wrote to standard error."""
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    return errors


def test_serves_until_sigterm(root, tmp_path):
    log, models = tmp_path / "log", tmp_path / "models"
    models.mkdir()
    for path in root.iterdir():
        (models / path.name).symlink_to(path)
    shutil.copytree(root / "pair", models / "bare")
    (models / "bare/3/fingerprint.pb").unlink()  # of which TensorFlow tells in its log; from then on lines came twice
    with _server([str(models)], log) as (process, address):
        status, body = _get(f"{address}/v1/models/pair:predict", b'{"instances": [[1, 2]]}')
        assert _end(process) == ""
    assert (status, json.loads(body)) == (200, {"predictions": [[2.0, 4.0]]})
    lines = log.read_text().splitlines()
    assert lines[0] == f"Page: {address}/"
    assert len(lines) == 13
    for model in (
        "bare version 3",
        "echo version 1",
        "named version 1",
        "odd version 1",
        "pair version 3",
        "text version 1",
    ):
        begins, answers = f"{model}: loading", f"{model}: {address}/v1/models/{model.split()[0]}:predict"
        assert lines.index(begins) < lines.index(answers)


def test_serves_what_the_config_files_say_and_follows_them(root, tmp_path):
    path, monitoring = tmp_path / "models.config", tmp_path / "monitoring.config"
    path.write_text(CONFIG.format(path=root / "pair"))
    monitoring.write_text('prometheus_config { enable: true path: "/metrics" }')
    arguments = ["--model-config-file", str(path), "--model-config-file-poll-wait-seconds", "0.1"]
    arguments += ["--allow-version-labels-for-unavailable-models", "--monitoring-config-file", str(monitoring)]
    with _server([*arguments, "--enable-cors-support"], tmp_path / "log") as (process, address):
        body = b'{"instances": [[1, 2]]}'
        assert _get(f"{address}/v1/models/twice/labels/stable:predict", body)[0] == 200
        assert b':request_count{model_name="twice",status="OK"} 1' in _get(f"{address}/metrics")[1]
        path.write_text("models {}")
        time.sleep(0.5)
        (tmp_path / "new").write_text(
            CONFIG.format(path=root / "text").replace("twice", "words").replace("value: 3", "value: 1")
        )
        (tmp_path / "new").rename(path)
        deadline = time.monotonic() + 60
        while _get(f"{address}/v1/models/twice:predict", body)[0] == 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        while (reply := _get(f"{address}/v1/models/words/labels/stable:predict", b'{"inputs": ["a"]}'))[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        errors = _end(process)
    assert json.loads(reply[1]) == {"outputs": ["a"]}
    assert len(errors.splitlines()) == 1
    assert errors.startswith(f"{path} is not taken over: ")


def test_serves_over_https_who_shows_a_key_and_logs_it(root, tmp_path):
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    certificate, key, keys, log = (tmp_path / name for name in ("certificate", "key", "keys", "log"))
    server.cert_chain_pems[0].write_to_path(str(certificate))
    server.private_key_pem.write_to_path(str(key))
    keys.write_text("open-sesame")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    arguments = [str(root), "--api-key-file", str(keys), "--ssl-certificate", str(certificate), "--ssl-key", str(key)]
    with _server([*arguments, "--access-log", "--grpc-port", "0"], log, context) as (process, address):
        trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        port = re.search(r"gRPC: 127\.0\.0\.1:(\d+)", log.read_text())[1]
        with grpc.secure_channel(f"127.0.0.1:{port}", trusted) as channel:
            predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
            with pytest.raises(grpc.RpcError, match="Expected a key"):
                predict(b"", timeout=30)
            with pytest.raises(grpc.RpcError, match="Missing ModelSpec"):
                predict(b"", timeout=30, metadata=[("x-api-key", "open-sesame")])
        assert address.startswith("https://")
        url, body = f"{address}/v1/models/pair:predict", b'{"instances": [[1, 2]]}'
        assert _get(url, body, context)[0] == 401
        bearer = {"Authorization": "Bearer open-sesame"}
        assert _get(url, body, context, **bearer, Host="evil.example")[0] == 400
        assert _get(url, body, context, **bearer, **{"X-Request-ID": "mine"})[0] == 200
        assert b'"security": [{"key": []}]' in _get(f"{address}/openapi.json", None, context, **bearer)[1]
        assert _get(url, b"{", context, **bearer)[0] == 400
        assert _end(process) == ""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    lines = [line for line in lines if line["path"].endswith(":predict")]
    assert [line["status"] for line in lines] == [401, 400, 200, 400]
    assert lines[2]["request_id"] == "mine"


def test_trouble_is_told_with_its_request():
    record = logging.makeLogRecord({"msg": "predict m failed"})
    context = contextvars.copy_context()
    context.run(request_id.set, "mine")
    assert _Formatter().format(record) == "predict m failed"
    assert context.run(_Formatter().format, record) == "request mine: predict m failed"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["{tmp}/nope"], "is not a folder"),
        (["{tmp}"], "no model below"),
        (["{root}", "--rest-port", "{taken}"], "in use"),
        (["{root}", "--rest-port", "65536"], "--rest-port must be from 0 to 65535"),
        (["{root}", "--grpc-port", "{taken}", "--rest-port", "0"], "choose another --grpc-port"),
        (["{root}", "--grpc-port", "-1"], "--grpc-port must be from 0 to 65535, not -1"),
        (["{root}", "--host", "256.0.0.1"], "--host"),
        (["{root}", "--timeout-seconds", "0"], "--timeout-seconds must be above 0"),
        (["{root}", "--timeout-seconds", "inf"], "--timeout-seconds is inf; expected a finite number"),
        (["{root}", "--max-body-mib", "0"], "--max-body-mib must be above 0"),
        (["{root}", "--max-megapixels", "0"], "--max-megapixels must be above 0"),
        (["{root}", "--read-seconds", "-1"], "--read-seconds must be above 0"),
        ([], "expected either a folder of exported models or --model-config-file"),
        (["{root}", "--model-config-file", "x"], "expected either a folder of exported models or --model-config-file"),
        (["--model-config-file", "{tmp}/nope"], "cannot read {tmp}/nope: No such file or directory"),
        (["{root}", "--monitoring-config-file", "{tmp}/nope"], "cannot read {tmp}/nope: No such file or directory"),
        (["{root}", "--file-system-poll-wait-seconds", "-1"], "--file-system-poll-wait-seconds must be 0 or more"),
        (
            ["{root}", "--model-config-file-poll-wait-seconds", "-1"],
            "--model-config-file-poll-wait-seconds must be 0 or more, not -1.0",
        ),
        (["{root}", "--api-key-file", "{tmp}/nope"], "cannot read {tmp}/nope: No such file or directory"),
        (["{root}", "--ssl-key", "{tmp}/nope"], "--ssl-certificate and --ssl-key go together; give both or neither"),
        (["{root}", "--ssl-certificate", "x", "--ssl-key", "x"], "cannot read x: No such file or directory"),
        (["{root}", "--allowed-hosts", "a", "b:80"], "--allowed-hosts names b:80; expected a name or an address"),
        (["{root}", "--max-num-load-retries", "-1"], "--max-num-load-retries must be 0 or more, not -1"),
        (["{root}", "--max-waiting", "-1"], "error: --max-waiting must be 0 or more, not -1;"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, text, root, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        values = {"root": root, "tmp": tmp_path, "taken": taken.getsockname()[1]}
        assert main([word.format(**values) for word in arguments]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert text.format(**values) in errors


CONFIG = """model_config_list {{ config {{
  name: "twice" base_path: "{path}" model_platform: "tensorflow" version_labels {{ key: "stable" value: 3 }}
}} }}
"""


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("models {}", "is no ModelServerConfig in text format: 1:1 : Message type"),
        (CONFIG.format(path="pair"), "Expected model twice to have an absolute path; got base_path()=pair"),
        (CONFIG.format(path="/x"), "--allow-version-labels-for-unavailable-models permits them"),
    ],
)
def test_mistake_in_the_model_config_file(content, text, tmp_path, capsys):
    path = tmp_path / "models.config"
    path.write_text(content)
    assert main(["--model-config-file", str(path)]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(f"error: {path}")
    assert errors.count("\n") == 1
    assert text in errors


def test_parsing_needs_no_tensorflow():
    program = (
        "import sys, kerasdl.serving.__main__ as server\n"
        "status = server.main(['/nowhere'])\n"
        "sys.exit(10 * status + ('tensorflow' in sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert process.returncode == 20


def test_replies_are_sent_without_delay():
    with listen("127.0.0.1", 0, "--rest-port") as listener:
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
