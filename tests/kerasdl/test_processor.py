import os
import subprocess
import sys
import types

import pytest

from kerasdl import processor
from kerasdl.errors import UserError


@pytest.fixture
def machine(monkeypatch):
    """`machine(*instruction sets, gpu=compute capability)` stands for another one; no variable is set there."""
    for name in (processor.SWITCH, processor.ONEDNN, processor.LIMIT, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    def pretend(*sets, gpu=None):
        monkeypatch.setattr(processor, "instructions", lambda: frozenset(sets))
        experimental = types.SimpleNamespace(
            get_device_details=lambda device: {"compute_capability": gpu, "device_name": "Some GPU"}
        )
        config = types.SimpleNamespace(
            list_physical_devices=lambda kind: [] if gpu is None else ["gpu0"], experimental=experimental
        )
        fake = types.SimpleNamespace(config=config)
        monkeypatch.setitem(sys.modules, "tensorflow", fake)
        return fake

    return pretend


@pytest.mark.parametrize(
    ("sets", "gpu", "precision", "reason"),
    [
        (["avx2", "avx512f", "avx512_bf16"], None, "bfloat16", "AVX-512 bf16 computes it"),
        (["avx2", "avx512f", "amx_bf16"], None, "bfloat16", "AMX computes it"),
        (["avx2", "avx512f"], None, "float32", "the processor (AVX-512) has no instructions for bfloat16"),
        (["avx2"], None, "float32", "the processor (AVX2) has no instructions for bfloat16"),
        (["asimd", "bf16"], None, "float32", "has no instructions for bfloat16"),
        (["avx2"], (9, 0), "bfloat16", "Some GPU computes it"),
        (["avx512f", "avx512_bf16"], (7, 5), "float32", "the GPU has no bfloat16 (compute capability below 8.0)"),
    ],
)
def test_auto_takes_bfloat16_where_the_machine_computes_it(machine, sets, gpu, precision, reason):
    machine(*sets, gpu=gpu)
    chosen, line = processor.resolve("auto")
    assert chosen == precision
    assert line.startswith(f"precision {precision}: ")
    assert reason in line


@pytest.mark.parametrize(("name", "value"), [(processor.ONEDNN, "0"), (processor.LIMIT, "avx512_core_vnni")])
def test_what_keeps_onednn_from_bfloat16_is_heeded_and_named(machine, monkeypatch, name, value):
    machine("avx2", "avx512f", "avx512_bf16")
    monkeypatch.setenv(name, value)
    chosen, line = processor.resolve("auto")
    assert chosen == "float32"
    assert name in line


@pytest.mark.parametrize("limit", ["ALL", "AVX512_CORE_BF16", "AVX512_CORE_AMX"])
def test_limits_that_leave_bfloat16_alone(machine, monkeypatch, limit):
    machine("avx512f", "avx512_bf16")
    monkeypatch.setenv(processor.LIMIT, limit)
    assert processor.resolve("auto")[0] == "bfloat16"


def test_bfloat16_that_would_end_the_process_is_refused(machine, monkeypatch):
    machine("avx2", "avx512f", "avx512_bf16")
    monkeypatch.setenv(processor.LIMIT, "AVX2")
    with pytest.raises(
        UserError, match="ONEDNN_MAX_CPU_ISA=AVX2 keeps oneDNN from it; unset it, or give --precision auto"
    ):
        processor.resolve("bfloat16")
    assert processor.resolve("auto")[0] == "float32"


def test_an_explicit_precision_stays_and_a_slow_one_is_warned_of(machine):
    machine("avx2")
    assert processor.resolve("float32") == ("float32", "precision float32, as asked")
    chosen, line = processor.resolve("bfloat16")
    assert chosen == "bfloat16"
    assert line.startswith("warning: ")
    assert "ten to fifty times" in line
    machine("avx512f", "avx512_bf16")
    assert processor.resolve("bfloat16") == ("bfloat16", "precision bfloat16, as asked")


@pytest.mark.parametrize(("name", "value"), [(processor.SWITCH, "avx3"), (processor.ONEDNN, "yes")])
def test_values_that_nobody_understands_are_refused(machine, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name} is '{value}'"):
        processor.configure()


def test_a_missing_gpu_and_onednn_switched_off_are_said(machine, monkeypatch):
    tf = machine("avx2")
    assert processor.notes(tf) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv(processor.ONEDNN, "0")
    gpu, onednn = processor.notes(tf)
    assert gpu.startswith("CUDA_VISIBLE_DEVICES=0 asks for a GPU")
    assert onednn.startswith("TF_ENABLE_ONEDNN_OPTS=0 switches oneDNN off")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert len(processor.notes(tf)) == 1


@pytest.mark.parametrize("onednn", [None, "0"])
def test_onednn_is_switched_on_where_the_user_has_not_decided(onednn):
    code = "import os; from kerasdl import processor; processor.configure(); print(os.environ[processor.ONEDNN])"
    free = {name: value for name, value in os.environ.items() if name != processor.ONEDNN}
    told = free if onednn is None else free | {processor.ONEDNN: onednn}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=told)
    assert run.stdout.strip() == (onednn or "1")


def test_the_switch_makes_any_x86_processor_one_of_avx2_alone(monkeypatch):
    found = types.SimpleNamespace(features={"avx2", "fma", "avx_vnni", "avx512f", "avx512_bf16", "amx_bf16"})
    monkeypatch.setattr(processor.detect, "detected_info", lambda: found)
    processor.instructions.cache_clear()
    monkeypatch.setenv(processor.SWITCH, "avx2")
    monkeypatch.delenv(processor.LIMIT, raising=False)
    try:
        assert processor.kind() == "AVX2"
        assert processor.resolve("auto") == (
            "float32",
            "precision float32: the processor (AVX2) has no instructions for bfloat16",
        )
    finally:
        processor.instructions.cache_clear()


@pytest.mark.parametrize(
    ("sets", "gpu", "expected"),
    [(["avx2"], None, [{"remapping": False}]), (["avx2"], (9, 0), []), (["avx2", "avx512f"], None, [])],
)
def test_joined_operations_are_switched_off_on_avx2_alone(machine, sets, gpu, expected):
    tf, asked = machine(*sets, gpu=gpu), []
    tf.config.optimizer = types.SimpleNamespace(set_experimental_options=asked.append)
    processor.tune_for_inference(tf)
    assert asked == expected
