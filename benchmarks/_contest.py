"""Contests of speed: each contender in a process of its own, in turns for several rounds, on one kind of processor.

The median of the rounds counts, since absolute times drift on shared machines; every round stands in the result.

Ours run as the applications do: `kerasdl.startup` switches oneDNN on. What stands for other people's code
(PLAIN) gets oneDNN where TensorFlow switches it on by itself. A value of TF_ENABLE_ONEDNN_OPTS that the user has set
holds for all. Contenders in bfloat16 take part where the processor computes it natively.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import _results
from kerasdl import processor
from kerasdl.startup import import_tensorflow

Contenders = Mapping[str, Callable[[], float]]

PLAIN = ("keras_float32", "predict", "predict_loop", "one_step")
# What keeps the libraries from AVX-512; the last two are for the matrix products and the compiled code of PyTorch.
AVX2_ALONE = {**processor.AVX2_ALONE, "MKL_ENABLE_INSTRUCTIONS": "AVX2", "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3"}


def main(module: str, description: str | None, works: Mapping[str, Contenders], *, unit: str, protocol: str) -> None:
    """Measures what the command line names; writes benchmarks/results/<module>_<work>.json after each round.

    Args:
        module: name of the benchmark, a module of this package.
        description: for --help.
        works: of each work the contenders, functions that return a speed. The name of one that computes in bfloat16
            ends with that word.
        unit: of the speeds, such as `images`, per second.
        protocol: what one number is, but for the rounds.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of every contender (default 3)")
    parser.add_argument("--works", nargs="+", choices=works, default=list(works), help="what to measure (default all)")
    parser.add_argument("--only", nargs=2, metavar=("WORK", "CONTENDER"), help="measure one here, print it")
    arguments = parser.parse_args()
    if arguments.only:
        work, contender = arguments.only
        set_environment(contender)
        speed = works[work][contender]()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"speed": speed, "memory_gib": memory, "facts": _facts(contender)}))
        return
    _refuse_other_limits()
    asked = {name: os.environ[name] for name in (processor.ONEDNN,) if name in os.environ}
    native, reason = processor.resolve("auto")
    print(reason)
    for work in arguments.works:
        taking_part = [name for name in works[work] if native == "bfloat16" or _precision(name) != "bfloat16"]
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in taking_part}
        for turn in range(1, arguments.rounds + 1):
            for name, values in found.items():
                values.append(_measured(module, work, name))
                print(f"{work}, round {turn}: {name} {values[-1]['speed']:,.1f}", flush=True)
            speeds = {name: [value["speed"] for value in values] for name, values in found.items()}
            row = {
                "work": work,
                "contenders": {name: values[-1]["facts"] for name, values in found.items()},
                "per_second": {name: _rounded(statistics.median(values)) for name, values in speeds.items()},
                "peak_memory_gib": {
                    name: round(max(value["memory_gib"] for value in values), 2) for name, values in found.items()
                },
                "all": {name: [_rounded(speed) for speed in values] for name, values in speeds.items()},
            }
            how = f"{protocol}; median of {turn} interleaved rounds, each contender a process of its own"
            _results.write_of_kind(f"{module}_{work}", how, [row], unit=unit, set_by_user=asked)


# --- What a benchmark's contenders share -----------------------------------------------------------------------------


def training(
    ours: Callable[[str], float], keras: Callable[[], float], torch: Callable[[str, bool], float]
) -> dict[str, Callable[[], float]]:
    """The contenders of a training.

    Args:
        ours: takes the precision.
        keras: plain Keras in float32.
        torch: takes the precision, and whether torch.compile compiles it.
    """
    return {
        "ours_bfloat16": functools.partial(ours, "bfloat16"),
        "ours_float32": functools.partial(ours, "float32"),
        "keras_float32": keras,
        "torch_bfloat16": functools.partial(torch, "bfloat16", False),
        "torch_float32": functools.partial(torch, "float32", False),
        "torch_compile_bfloat16": functools.partial(torch, "bfloat16", True),
        "torch_compile_float32": functools.partial(torch, "float32", True),
    }


def torch_tools(precision: str, compiled: bool) -> tuple[Callable[[], Any], Callable[[Callable[..., Any]], Any]]:
    """Sets PyTorch up for all cores.

    A compiled function is compiled as a whole, or raises: nothing falls back to eager.

    Returns:
        A context of automatic bfloat16, without effect in float32; what compiles a function, or leaves it as it is.
    """
    import torch

    torch.set_num_threads(os.cpu_count() or 2)
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bfloat16")
    return autocast, functools.partial(torch.compile, fullgraph=True) if compiled else lambda function: function


def epoch_seconds(epoch: Callable[[], Any]) -> float:
    """The better of two epochs after one warm-up, which compiles what is to be compiled."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        epoch()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def clock() -> Any:
    """A callback in the place of an application's checkpoint that writes nothing and times the epochs: `seconds`."""
    from kerasdl.training.checkpoint import Checkpoint

    class Clock(Checkpoint):
        def __init__(self) -> None:
            super().__init__(Path("unused"), monitor="loss", maximize=False)
            self.seconds: list[float] = []

        def on_test_begin(self, logs: Any = None) -> None:
            self._end_of_training()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if len(self.seconds) == epoch:  # there was no validation
                self._end_of_training()

        def _end_of_training(self) -> None:
            self.seconds.append(time.perf_counter() - self._epoch_start)

    return Clock()


# --- One contender's process -----------------------------------------------------------------------------------------


def set_environment(contender: str) -> None:
    """Sets what TensorFlow and PyTorch read when they are imported."""
    asked = os.environ.get(processor.ONEDNN)
    processor.configure()
    if contender in PLAIN and asked is None:
        del os.environ[processor.ONEDNN]
        if _results.simulated():
            os.environ[processor.ONEDNN] = "0"  # TensorFlow looks at the real processor
    if _results.simulated():
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ.update(AVX2_ALONE | {"XLA_FLAGS": f"{flags} {AVX2_ALONE['XLA_FLAGS']}".strip()})
    if contender.startswith("ours"):
        import_tensorflow()


def _facts(contender: str) -> dict[str, Any]:
    """How a contender has computed; `onednn` says whether TensorFlow ran its operations by oneDNN."""
    facts: dict[str, Any] = {"precision": _precision(contender)}
    if "tensorflow" in sys.modules and not contender.startswith("torch"):
        from tensorflow.python.util import _pywrap_util_port

        facts["onednn"] = _pywrap_util_port.IsMklEnabled()
    peers = ("torch", "onnxruntime")
    return facts | {name: sys.modules[name].__version__ for name in peers if name in sys.modules}


def _precision(contender: str) -> str:
    return "bfloat16" if contender.endswith("bfloat16") else "float32"


def _measured(module: str, work: str, contender: str) -> dict[str, Any]:
    """What the contender's process has printed: `speed`, `memory_gib` at its peak, `facts`."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--only", work, contender]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    if run.returncode:
        raise SystemExit(f"{contender} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def _refuse_other_limits() -> None:
    """Refuses an environment that would put the figures of one kind of processor under another.

    Raises:
        SystemExit: a variable keeps a library from what the processor has.
    """
    for name in AVX2_ALONE:
        value = os.environ.get(name, "")
        if value and (name != "XLA_FLAGS" or "--xla_cpu_max_isa" in value):
            kind = _results.label(processor.kind(), _results.simulated())
            raise SystemExit(
                f"{name}={value} would put figures of another processor under {kind}; unset it "
                f"({processor.SWITCH}=avx2 alone measures as on AVX2)"
            )


def _rounded(speed: float) -> float:
    return round(speed, 1 if speed >= 100 else 3)
