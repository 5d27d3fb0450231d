"""The command line: mistakes in this process, serving in one of its own."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from kerasdl.serving.__main__ import Options, listen, main


def _get(url: str, data: bytes | None = None) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, data, timeout=30) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_serves_until_sigterm(root, tmp_path):
    command = [sys.executable, "-m", "kerasdl.serving", str(root), "--rest-port", "0"]
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 90
            while not (address := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            while _get(f"{address[0]}/readyz")[0] != 200:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            status, body = _get(f"{address[0]}/v1/models/pair:predict", b'{"instances": [[1, 2]]}')
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (status, json.loads(body)) == (200, {"predictions": [[2.0, 4.0]]})
    assert process.returncode == 0
    assert errors == ""
    assert log.read_text().splitlines() == [
        line
        for model in ("echo version 1", "named version 1", "odd version 1", "pair version 3", "text version 1")
        for line in (f"{model}: loading", f"{model}: {address[0]}/v1/models/{model.split()[0]}:predict")
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["{tmp}/nope"], "is not a folder"),
        (["{tmp}"], "no model below"),
        (["{root}", "--rest-port", "{taken}"], "in use"),
        (["{root}", "--rest-port", "65536"], "--rest-port must be from 0 to 65535"),
        (["{root}", "--host", "256.0.0.1"], "--host"),
        (["{root}", "--timeout-seconds", "0"], "--timeout-seconds must be above 0"),
        (["{root}", "--timeout-seconds", "inf"], "--timeout-seconds is inf; expected a finite number"),
        (["{root}", "--max-body-mib", "0"], "--max-body-mib must be above 0"),
        (["{root}", "--max-megapixels", "0"], "--max-megapixels must be above 0"),
        (["{root}", "--read-seconds", "-1"], "--read-seconds must be above 0"),
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
    with listen(Options(models=Path("unused"), rest_port=0)) as listener:
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
