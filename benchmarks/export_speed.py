"""Inference of the exports in saved_models/, calls a second: TensorFlow with and without oneDNN, and ONNX Runtime.

    python -m benchmarks.export_speed             (needs the extra `benchmark`, about 30 minutes, a quiet machine)

One call has 1 or 32 examples. TensorFlow calls the loaded signature as a server does; ONNX Runtime computes the same
weights, converted by tf2onnx, on as many threads. tf2onnx has no operations on text and encoded pictures: ONNX Runtime
gives the numbers of a signature alone, where TensorFlow adds the name of the class (cifar10) or a PNG (vae decode), and
it takes no part where text or an encoded picture goes in, which leaves out the text classifier, nor in vae score, whose
random numbers it lacks. Both compute with float32 constants. Under KERASDL_PROCESSOR=avx2 it takes no part at all:
nothing keeps it from AVX-512.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _contest, _results
from kerasdl import processor

BATCHES, SECONDS = (1, 32), 2.0
SAVED_MODELS = Path(__file__).parent.parent / "saved_models"


def request(application: str, signature: str, batch: int) -> dict[str, np.ndarray]:
    """Made-up examples by input name: the speed does not depend on what they show."""
    random = np.random.default_rng(0)

    def pixels(*shape: int) -> np.ndarray:
        return random.integers(0, 256, (batch, *shape), np.uint8)

    def encoded(*shape: int) -> np.ndarray:
        import tensorflow as tf

        return np.array([tf.io.encode_png(image).numpy() for image in pixels(*shape)])

    def settings(**values: Any) -> dict[str, np.ndarray]:
        return {name: np.full(batch, value) for name, value in values.items()}

    def normal(size: int) -> np.ndarray:
        return random.standard_normal((batch, size), np.float32)

    makers: dict[str, Callable[[], dict[str, np.ndarray]]] = {
        "cifar10_pixels": lambda: {"image": pixels(32, 32, 3)},
        "denoiser_pixels": lambda: {"image": pixels(32, 32, 3).astype(np.float32)},
        "vae_decode": lambda: {"latent": normal(40)},
        "vae_encode": lambda: {"image_bytes": encoded(28, 28, 1)},
        "vae_score": lambda: {"image": pixels(28, 28, 1), "seed": np.arange(batch)},
        "dcgan_from_latent": lambda: {"latent": normal(100), "class_index": np.arange(batch) % 10},
        "sentiment_classify": lambda: {"text": np.array([" ".join(["not as dull as they say"] * 40)] * batch)},
        "chargen_generate": lambda: {
            "seed": np.arange(batch),
            **settings(prompt="ROMEO:", length=100, temperature=0.8, top_k=0, top_p=1.0),
        },
        "captioner_caption": lambda: {"image_bytes": encoded(240, 320, 3)},
    }
    return makers[f"{application}_{signature}"]()


def calls_per_second(call: Callable[[], Any]) -> float:
    """By the median of at least SECONDS of calls, and three of them, after as many of warm-up."""
    seconds: list[float] = []
    for _ in range(2):
        seconds.clear()
        while sum(seconds) < SECONDS or len(seconds) < 3:
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return 1 / statistics.median(seconds)


def loaded(application: str, signature: str, batch: int) -> tuple[Any, dict[str, Any]]:
    """The signature, and a request as tensors."""
    from kerasdl.startup import import_tensorflow

    tf = import_tensorflow(inference=True)
    from kerasdl import export

    function = export.signatures(SAVED_MODELS / application, signature)[signature]
    values = request(application, signature, batch)
    return function, {name: tf.constant(value, function.inputs[name].dtype) for name, value in values.items()}


def tensorflow(application: str, signature: str, onednn: bool, batch: int) -> float:
    """The loaded signature, its outputs as arrays."""
    os.environ[processor.ONEDNN] = str(int(onednn))
    function, given = loaded(application, signature, batch)
    return calls_per_second(lambda: [output.numpy() for output in function(**given).values()])


def onnxruntime(application: str, signature: str, batch: int) -> float:
    """ONNX Runtime on all cores; the model is converted in a process of its own."""
    import onnxruntime

    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        model, given, expected = pool.submit(converted, application, signature, batch).result()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 2
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    for ours, theirs in zip(expected, session.run(None, given), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3 * np.abs(ours).max())
    return calls_per_second(lambda: session.run(None, given))


def converted(application: str, signature: str, batch: int) -> tuple[bytes, dict[str, np.ndarray], list[np.ndarray]]:
    """An ONNX model of a signature's outputs in float32, its inputs, and what the signature says to them."""
    import tensorflow as tf
    import tf2onnx
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    from kerasdl import export

    function, given = loaded(application, signature, batch)
    expected = [output.numpy() for output in tf.nest.flatten(function(**given)) if output.dtype == tf.float32]
    model = tf.saved_model.load(str(export.version_folder(SAVED_MODELS / application)))
    frozen = convert_variables_to_constants_v2(model.signatures[signature])
    outputs = [output.name for output in frozen.outputs if output.dtype == tf.float32]
    inputs = [f"{name}:0" for name in given]
    graph = frozen.graph.as_graph_def()
    onnx, _ = tf2onnx.convert.from_graph_def(graph, input_names=inputs, output_names=outputs, opset=17)
    return onnx.SerializeToString(), {f"{name}:0": value.numpy() for name, value in given.items()}, expected


def contenders(application: str, signature: str, convertible: bool) -> dict[str, Callable[[], float]]:
    """By way and batch."""
    ways: dict[str, Callable[[int], float]] = {
        "onednn_on": functools.partial(tensorflow, application, signature, True),
        "onednn_off": functools.partial(tensorflow, application, signature, False),
    }
    if convertible and not _results.simulated():
        ways["onnxruntime"] = functools.partial(onnxruntime, application, signature)
    return {f"{way}_{batch}": functools.partial(measure, batch) for batch in BATCHES for way, measure in ways.items()}


WORKS = {
    f"{application}_{signature}": contenders(application, signature, convertible)
    for application, signature, convertible in (
        ("cifar10", "pixels", True),
        ("denoiser", "pixels", True),
        ("vae", "decode", True),
        ("vae", "encode", False),
        ("vae", "score", False),
        ("dcgan", "from_latent", True),
        ("sentiment", "classify", False),
        ("chargen", "generate", False),
        ("captioner", "caption", False),
    )
}


def main() -> None:
    """Measures and writes benchmarks/results/export_speed_<application>_<signature>.json."""
    _contest.main(
        "export_speed",
        __doc__,
        WORKS,
        unit="calls",
        protocol=f"calls with 1 or 32 examples, median of {SECONDS:g} seconds after as many of warm-up; cifar10 and "
        "denoiser: 32x32 pixels, sentiment: 240 words, chargen: 100 characters, captioner: PNGs of 320x240 pixels; vae "
        "decode by TensorFlow writes PNGs, too",
    )


if __name__ == "__main__":
    main()
