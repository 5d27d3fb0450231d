import json
import os
import signal
import subprocess
import sys
import time

import pytest

from kerasdl.files import atomic_path, write_bytes, write_json, write_text


def test_writes_text_and_json(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "ä")
    write_json(tmp_path / "b.json", {"path": tmp_path, "n": 1})
    write_bytes(tmp_path / "c.png", b"\x89")
    assert (tmp_path / "c.png").read_bytes() == b"\x89"
    assert (tmp_path / "new" / "a.txt").read_text("utf-8") == "ä"
    assert json.loads((tmp_path / "b.json").read_text()) == {"path": str(tmp_path), "n": 1}


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk is full"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk is full")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "7") as temporary:
        temporary.mkdir()
        (temporary / "saved_model.pb").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_kill_during_the_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    script = (
        "import sys, time; from pathlib import Path; from kerasdl.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as t:\n"
        "    t.write_text('half'); print('writing', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        time.sleep(0)
    assert path.read_text() == "old"
