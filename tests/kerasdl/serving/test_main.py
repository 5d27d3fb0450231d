"""The command line, in a process of its own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from kerasdl.serving.__main__ import main


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_it_is_told_to_stop(root, number):
    if number == signal.SIGINT and "serving" not in __name__:
        raise AssertionError
    command = [sys.executable, "-m", "kerasdl.serving", str(root), "--rest-port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        pass
