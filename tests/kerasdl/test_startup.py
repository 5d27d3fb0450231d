import json
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


SETTINGS = (
    "from kerasdl.startup import import_keras; keras = import_keras(); import numpy as np\n"
    "print(keras.config.backend(), keras.config.image_data_format(), keras.config.floatx(), keras.config.epsilon(),"
    " keras.config.dtype_policy().name, keras.layers.Conv2D(2, 3)(np.zeros((1, 5, 4, 3))).shape)"
)


@pytest.mark.parametrize(
    ("written", "backend", "lines"),
    [
        ({"backend": "jax", "image_data_format": "channels_first", "floatx": "float16", "epsilon": 1e-3}, None, 0),
        ({"backend": "torch", "floatx": "float64"}, "jax", 1),
    ],
)
def test_settings_of_keras_json_are_made_right(written, backend, lines, tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps(written))
    told = os.environ | {"KERAS_HOME": str(tmp_path)} | ({"KERAS_BACKEND": backend} if backend else {})
    done = subprocess.run([sys.executable, "-c", SETTINGS], capture_output=True, text=True, check=True, env=told)
    assert done.stdout.strip() == "tensorflow channels_last float32 1e-07 float32 (1, 3, 2, 2)"
    assert len(done.stderr.splitlines()) == lines, done.stderr
    assert f"KERAS_BACKEND={backend} asks for another backend" in done.stderr or not backend


def test_a_broken_keras_json_is_named(tmp_path):
    (tmp_path / "keras.json").write_text('{"floatx": "float8"}')
    code = "from kerasdl.startup import import_tensorflow as start; from kerasdl.command_line import guarded; "
    code += "raise SystemExit(guarded(lambda _: start() and 0, []))"
    told = os.environ | {"KERAS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=told)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert str(tmp_path / "keras.json") in done.stderr


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
