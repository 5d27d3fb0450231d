"""README.md and benchmarks/README.md say what was measured, each kind of processor for itself."""

import os

import pytest

from benchmarks import _contest, _results, readme
from kerasdl import processor


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """`machine(kind, **environment)` stands for another one; results go to an empty folder."""
    monkeypatch.setattr(_results, "RESULTS", tmp_path)

    def pretend(kind, **environment):
        monkeypatch.setattr(processor, "kind", lambda: kind)
        monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"], **environment})

    return pretend


def row(**speeds):
    facts = {name: {"precision": name.rpartition("_")[2], "onednn": name != "keras_float32"} for name in speeds}
    return {
        "work": "training",
        "contenders": facts,
        "per_second": speeds,
        "peak_memory_gib": dict.fromkeys(speeds, 1.0),
        "all": {name: [speed] for name, speed in speeds.items()},
    }


@pytest.mark.parametrize("name", readme.parts())
def test_a_table_is_that_of_the_results(name):
    path = readme.document(name)
    text = path.read_text(encoding="utf-8")
    assert readme.replace(text, name, readme.parts()[name]) == text, f"{path} is out of date; run `make results`"


def test_a_part_without_markers_is_named():
    with pytest.raises(ValueError, match="no markers <!-- speed: written by make results -->"):
        readme.replace("nothing", "speed", "")


def test_a_kind_has_its_own_block_and_its_own_table(machine):
    machine("AVX2", KERASDL_PROCESSOR="avx2")
    _results.write_of_kind("x_training", "simulated", [row(ours_float32=9.0)], unit="images")
    machine("AVX2")
    slow = row(ours_float32=20.0, keras_float32=10.0, torch_float32=16.0)
    _results.write_of_kind("x_training", "slow", [slow], unit="images", set_by_user={"TF_ENABLE_ONEDNN_OPTS": "1"})
    machine("AVX-512 bf16")
    fast = {"ours_bfloat16": 80.0, "ours_float32": 40.0, "torch_bfloat16": 50.0, "torch_compile_float32": 10.0}
    for _ in range(2):
        _results.write_of_kind("x_training", "fast", [row(**fast, keras_float32=20.0)], unit="images")
    assert list(_results.read_kinds("x_training")) == ["AVX2, set by KERASDL_PROCESSOR=avx2", "AVX2", "AVX-512 bf16"]
    of_avx2, of_avx512, simulated = readme.speed("x", ["training"]).split("**On ")[1:]
    assert simulated.startswith("AVX2, set by KERASDL_PROCESSOR=avx2**")
    assert "| plain Keras `fit`, float32, oneDNN off | 10 | 20 | 2.00" in of_avx2
    assert "| PyTorch, float32 | 16 | 20 | 1.25" in of_avx2
    assert "AVX2; slow; TF_ENABLE_ONEDNN_OPTS=1 set by the user." in of_avx2
    assert "| plain Keras `fit`, float32, oneDNN off | 20 | 80 | 4.00" in of_avx512
    assert "| PyTorch, bfloat16 | 50 | 80 | 1.60" in of_avx512
    assert "| PyTorch torch.compile, float32 | 10 | 40 | 4.00" in of_avx512


def test_figures_under_another_kind_are_refused(machine):
    machine("AVX2")
    path = _results.write_of_kind("x", "", [])
    path.write_text(path.read_text().replace('"AVX2": {', '"AVX-512": {'))
    with pytest.raises(SystemExit, match=r"^x\.json has figures of AVX2 under AVX-512; move them, or measure anew$"):
        _results.write_of_kind("x", "", [])


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"])
def test_a_limit_that_makes_another_kind_is_refused(machine, monkeypatch, name):
    machine("AVX-512", **{name: "avx2"})
    monkeypatch.setattr("sys.argv", ["x"])
    with pytest.raises(SystemExit, match=f"^{name}=avx2 would put figures of another processor under AVX-512; unset"):
        _contest.main("x", None, {}, unit="", protocol="")


@pytest.mark.parametrize(
    ("contender", "environment", "onednn"),
    [
        ("ours_float32", {}, "1"),
        ("keras_float32", {}, None),
        ("keras_float32", {"KERASDL_PROCESSOR": "avx2"}, "0"),
        ("ours_float32", {"TF_ENABLE_ONEDNN_OPTS": "0"}, "0"),
        ("keras_float32", {"TF_ENABLE_ONEDNN_OPTS": "1", "KERASDL_PROCESSOR": "avx2"}, "1"),
    ],
)
def test_a_contender_runs_in_the_environment_it_stands_for(machine, contender, environment, onednn):
    machine("AVX2", **environment)
    _contest.set_environment(contender)
    assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == onednn
    narrowed = "--xla_cpu_max_isa=AVX2" if "KERASDL_PROCESSOR" in environment else None
    assert os.environ.get("XLA_FLAGS") == narrowed
