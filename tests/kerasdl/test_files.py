import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from kerasdl.errors import UserError
from kerasdl.files import (
    as_csv,
    as_json,
    atomic_path,
    check_output,
    claim,
    separate,
    write_bytes,
    write_json,
    write_text,
)  # fmt: skip
from kerasdl.training.run import new_folder


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
    assert path.read_text() == "old"


WRITER = (
    "import sys, time; from pathlib import Path; from kerasdl.files import atomic_path\n"
    "with atomic_path(Path(sys.argv[1])) as t:\n"
    "    t.mkdir(); (t / 'a').write_text('half'); print('writing', flush=True); time.sleep(60)"
)


@pytest.fixture
def writers(tmp_path):
    """Two processes that write folders, of which the first was killed in the middle."""
    started = []
    for name in ("1", "2"):
        command = [sys.executable, "-c", WRITER, str(tmp_path / name)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        started[-1].stdout.readline()
    started[0].kill()
    started[0].wait()
    yield started
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path, writers):
    dead, living = (f".kerasdl-{process.pid}-{name}" for process, name in zip(writers, "12", strict=True))
    own = [".2020-mine.txt", ".2020-new.txt", ".hidden", "123-4"]
    for name in own:
        (tmp_path / name).touch()
    assert {dead, dead + ".lock", living, living + ".lock"} < {*os.listdir(tmp_path)}
    write_text(tmp_path / "new.txt", "")
    assert {*os.listdir(tmp_path)} == {living, living + ".lock", "new.txt", *own}


def test_left_overs_of_a_process_of_the_same_number(tmp_path):
    (tmp_path / f".kerasdl-{os.getpid()}-3").mkdir()
    (tmp_path / f".kerasdl-{os.getpid()}-3" / "part").touch()
    with atomic_path(tmp_path / "3") as temporary:
        temporary.mkdir()
    assert os.listdir(tmp_path) == ["3"]
    assert os.listdir(tmp_path / "3") == []


def test_json_holds_plain_values(tmp_path):
    assert as_json({"a": np.float32(0.5), "b": tmp_path, "c": np.nan}) == json.dumps(
        {"a": 0.5, "b": str(tmp_path), "c": None}
    )
    with pytest.raises(TypeError, match="object is no JSON value"):
        as_json(object())


def test_a_link_to_nowhere_is_no_folder(tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match="is no folder"):
        check_output(tmp_path / "runs" / "cifar10", folder=True, flag="--runs")
    with pytest.raises(FileExistsError):
        new_folder(tmp_path / "runs")


def test_a_claim_is_to_be_had_once_and_again_when_it_was_given_back(tmp_path):
    path = tmp_path / "lock"
    with claim(path) as mine, claim(path) as other:
        assert (mine, other) == (True, False)
        assert path.exists()
    with claim(path) as again:
        assert again
    assert not path.exists()


def test_a_claim_is_given_back_where_a_file_that_is_locked_cannot_be_removed(tmp_path, monkeypatch):
    """As Windows has it."""

    def refused(path, missing_ok=False):
        raise PermissionError(13, "in use")

    monkeypatch.setattr("pathlib.Path.unlink", refused)
    for _ in range(2):
        with claim(tmp_path / "lock") as mine:
            assert mine


def test_a_claim_that_waits_says_so_and_gets_its_turn(tmp_path, capsys):
    path, turns = tmp_path / "new" / "lock", []

    def second():
        with claim(path, wait="waiting for the first") as mine:
            turns.append(mine)

    other = threading.Thread(target=second)
    with claim(path, wait="never said"):
        other.start()
        other.join(0.5)
        assert turns == []
    other.join()
    assert turns == [True]
    assert capsys.readouterr().err == "waiting for the first\n"
    assert not path.exists()


def test_equal_names_are_kept_apart_also_where_a_disk_takes_them_for_equal(tmp_path):
    names = ["a.png", "a.png", "A.png", "a-2.png", "ü.png", "u\u0308.png", "sub/a.png"]
    found = [path.relative_to(tmp_path).as_posix() for path in separate([tmp_path / name for name in names])]
    assert found == ["a.png", "a-2.png", "A-3.png", "a-2-2.png", "ü.png", "u\u0308-2.png", "sub/a.png"]


def test_what_exists_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "a.png").write_text("mine")
    (tmp_path / "link.png").symlink_to("nowhere")
    for name in ("a.png", "link.png"):
        with pytest.raises(UserError, match="exists, and nothing is overwritten; give another --explain"):
            separate([tmp_path / "b.png", tmp_path / name], flag="--explain")
    with pytest.raises(UserError, match=r"a\.png exists"):
        check_output(tmp_path / "a.png")
    with pytest.raises(UserError, match="is a folder; expected a file"):
        check_output(tmp_path)
    for path, folder in ((tmp_path / "a.png", True), (tmp_path / "a.png/b.png", False), (tmp_path / "a.png/b/c", True)):
        with pytest.raises(UserError, match=r"a\.png is no folder; expected one: give another --output"):
            check_output(path, folder=folder)
    for path, folder in ((tmp_path, True), (tmp_path / "new/b.png", False), (tmp_path / "new", True), (None, False)):
        check_output(path, folder=folder)


def test_lines_of_csv_and_json_read_back():
    rows = [["Grün.jpg", '5" pipe, old.jpg', "two\nlines", "a\rb", "0.5"], ["path", "class", "", " ", "{}"]]
    text = "\n".join(map(as_csv, rows)) + "\n"
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows
    content = {"path": 'Grün "5".jpg', "score": float("nan"), "more": [float("inf"), 0.1, -float("inf")]}
    expected = {**content, "score": None, "more": [None, 0.1, None]}
    assert json.loads(as_json(content), parse_constant=pytest.fail) == expected
