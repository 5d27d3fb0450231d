import os
import subprocess
import sys

import pytest

from kerasdl.startup import silenced


def test_import_is_silent():
    code = "from kerasdl.startup import import_tensorflow; print(import_tensorflow().__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout[0].isdigit()


def test_what_is_asked_for_in_vain_is_said_once():
    code = "from kerasdl.startup import import_keras; import_keras(); import_keras(inference=True)"
    told = os.environ | {"CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=told)
    (line,) = done.stderr.splitlines()
    assert line.startswith("CUDA_VISIBLE_DEVICES=0 asks for a GPU")


def test_what_was_caught_appears_when_the_block_raises(capfd):
    with silenced():
        os.write(2, b"greeting")
    assert capfd.readouterr().err == ""
    with pytest.raises(RuntimeError), silenced():
        os.write(2, b"cause")
        raise RuntimeError
    assert capfd.readouterr().err == "cause"
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"
