"""What this machine computes well: the precision of training, and whether TensorFlow uses oneDNN.

Nobody else asks. `KERASDL_PROCESSOR=avx2` makes this module take any x86 processor for one with AVX2 alone (no AVX-512,
no bfloat16), so that either choice can be seen and tested anywhere. `AVX2_ALONE` makes oneDNN, XLA and PyTorch compute
as there.
"""

import functools
import os
import platform
import sys
from types import ModuleType
from typing import Any, Literal

from archspec.cpu import detect

from kerasdl.errors import UserError

Precision = Literal["auto", "float32", "bfloat16"]
Resolved = Literal["float32", "bfloat16"]

SWITCH, ONEDNN, LIMIT = "KERASDL_PROCESSOR", "TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA"
DIVIDED = "KERASDL_CPU_DEVICES"
"""Environment variable: how many devices the processor is for TensorFlow, to try training on several without GPUs."""
NATIVE = {"avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX"}
# AVX-NE-CONVERT and Arm's bf16 are left out until someone has measured them.
SLOW = "bfloat16 can take ten to fifty times as long as float32"
AVX2_ALONE = {LIMIT: "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}


@functools.cache
def instructions() -> frozenset[str]:
    """The processor's instruction sets by their names in Linux, such as avx2, avx512_bf16."""
    # Not `archspec.cpu.host()`: that is the nearest known model, and a virtual machine that hides one instruction
    # set of its processor loses those of all later models as well.
    found = frozenset(detect.detected_info().features)
    return frozenset(name for name in found if not name.startswith(("avx512", "amx", "avx_"))) if _narrowed() else found


def kind() -> str:
    """The kind of processor that speeds are compared within: AVX-512 bf16, AVX-512, AVX2 or the machine's name."""
    sets = instructions()
    if native := [name for feature, name in NATIVE.items() if feature in sets]:
        return native[0]
    return "AVX-512" if "avx512f" in sets else "AVX2" if "avx2" in sets else platform.machine()


def machine() -> dict[str, Any]:
    """What the last bits of a result depend on: `processor` (or the GPU) and `threads` of one operation."""
    tf = sys.modules.get("tensorflow")
    name, threads = kind(), int(os.environ.get("TF_NUM_INTRAOP_THREADS") or 0)
    if tf is not None:
        threads = tf.config.threading.get_intra_op_parallelism_threads() or threads
        for device in tf.config.list_physical_devices("GPU"):
            name = tf.config.experimental.get_device_details(device).get("device_name", "GPU")
    return {"processor": name, "threads": threads or num_cores()}


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def leave_a_thread(tf: ModuleType) -> None:
    """Gives TensorFlow a thread more than cores for operations side by side; call it before the first operation.

    A loop in a graph holds such a thread until it ends. A model whose calls take as many threads as there are cores so
    leaves one to the others. It costs about 6 % (text classifier, batches of 32, AMD EPYC family 25 model 1, two
    cores); four threads on two cores cost 30 %.
    """
    if not os.environ.get("TF_NUM_INTEROP_THREADS"):
        tf.config.threading.set_inter_op_parallelism_threads(num_cores() + 1)


def configure() -> None:
    """Sets the environment that TensorFlow reads when it is imported; call it before.

    TensorFlow switches oneDNN on by itself only where the processor has instructions for short numbers (AVX-512 VNNI
    or bf16, AVX-VNNI, AMX), although float32 gains as well: on AVX2 a ResNet-20 trains 2.4 times as fast. What the
    user has set stays.

    Raises:
        UserError: a variable holds what nobody understands.
    """
    _narrowed()
    _onednn_is_off()
    os.environ.setdefault(ONEDNN, "1")


def divide(tf: ModuleType) -> None:
    """Makes as many devices of the processor as `KERASDL_CPU_DEVICES` says; call it before the first operation.

    Raises:
        UserError: it says no number from 1 to 8.
    """
    value = os.environ.get(DIVIDED) or "1"
    if value not in {*"12345678"}:
        raise UserError(f"{DIVIDED} is {value!r}; expected a number of devices from 1 to 8")
    if value != "1":
        parts = [tf.config.LogicalDeviceConfiguration() for _ in range(int(value))]
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)


def tune_for_inference(tf: ModuleType) -> None:
    """Keeps TensorFlow from joining operations where the joined one is slow.

    On AVX2 oneDNN's convolution is slow when batch normalization is joined to it: one picture takes the denoiser 20.1
    ms with, 4.7 ms without; the image classifier 4.4 and 2.6 ms (AMD EPYC family 26 model 2 held to AVX2, two cores).
    Training joins other operations, and gains: without, the VAE takes a sixth longer.
    """
    if kind() == "AVX2" and not tf.config.list_physical_devices("GPU"):
        tf.config.optimizer.set_experimental_options({"remapping": False})


@functools.cache
def compiles_on_cpu() -> bool:
    """Whether elementwise passes of the training are compiled by XLA: TensorFlow is Keras' backend, and has no GPU."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.config.list_physical_devices("GPU")


def notes(tf: ModuleType) -> list[str]:
    """What a user has asked of the machine and will not get, or should know; a line each."""
    lines = []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    if visible and visible != "-1" and not tf.config.list_physical_devices("GPU"):
        lines.append(
            f"CUDA_VISIBLE_DEVICES={visible} asks for a GPU, but TensorFlow finds none and computes on the processor; "
            "install the extra gpu and NVIDIA's driver, or unset the variable"
        )
    if _onednn_is_off():
        lines.append(
            f"{ONEDNN}=0 switches oneDNN off: convolutions take up to 2.4 times as long; unset it to gain that"
        )
    return lines


def resolve(precision: Precision) -> tuple[Resolved, str]:
    """Chooses the compute precision of a training.

    Args:
        precision: `auto` takes bfloat16 where this machine has instructions for it that TensorFlow uses, else float32;
            the others are taken as they are.

    Returns:
        The precision, and one line that gives the reason, or warns of bfloat16 that is slow here.

    Raises:
        UserError: bfloat16 was asked for, and TensorFlow would end the process.
    """
    reason = _why_not_bfloat16()
    if precision == "float32":
        return "float32", "precision float32, as asked"
    if precision == "bfloat16":
        if reason is None:
            return "bfloat16", "precision bfloat16, as asked"
        if LIMIT in reason:  # TensorFlow asks the processor, not oneDNN, and calls a kernel that is not there
            raise UserError(f"precision bfloat16 is not to be had: {reason}; unset it, or give --precision auto")
        return "bfloat16", f"warning: precision bfloat16, as asked, but {reason}: {SLOW}; give --precision auto"
    if reason is None:
        return "bfloat16", f"precision bfloat16: {_native()} computes it"
    return "float32", f"precision float32: {reason}"


def _native() -> str | None:
    """What computes bfloat16 here."""
    tf = sys.modules.get("tensorflow")
    if tf is not None:
        for device in tf.config.list_physical_devices("GPU"):
            details = tf.config.experimental.get_device_details(device)
            capable = details.get("compute_capability", (0, 0)) >= (8, 0)
            return details.get("device_name", "the GPU") if capable else None
    return next((name for feature, name in NATIVE.items() if feature in instructions()), None)


def _why_not_bfloat16() -> str | None:
    """The reason why bfloat16 is slow here, or None."""
    tf = sys.modules.get("tensorflow")
    native = _native()
    if tf is not None and tf.config.list_physical_devices("GPU"):
        return None if native else "the GPU has no bfloat16 (compute capability below 8.0)"
    limit = os.environ.get(LIMIT, "ALL").upper()
    if "avx512f" in instructions() and not any(
        word in limit for word in ("ALL", "DEFAULT", "BF16", "FP16", "AMX", "AVX10")
    ):
        return f"{LIMIT}={limit} keeps oneDNN from it"
    if native is None:
        return f"the processor ({kind()}) has no instructions for bfloat16"
    if _onednn_is_off():
        return f"{ONEDNN}=0 switches off what computes bfloat16"
    return None


def _onednn_is_off() -> bool:
    value = os.environ.get(ONEDNN, "1").strip().lower()
    if value not in ("0", "1", "false", "true"):
        raise UserError(f"{ONEDNN} is {value!r}; TensorFlow takes 0 or 1")
    return value in ("0", "false")


def _narrowed() -> bool:
    value = os.environ.get(SWITCH, "")
    if value not in ("", "avx2"):
        raise UserError(f"{SWITCH} is {value!r}; expected avx2, or nothing for the processor as it is")
    return value == "avx2"
