"""Small SavedModels, and a server of them."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import rest_client
import tensorflow as tf

from kerasdl.serving.repository import ModelRepository

ECHOED = [
    *(tf.float32, tf.float64, tf.int8, tf.int16, tf.int32, tf.int64),
    *(tf.uint8, tf.uint16, tf.uint32, tf.uint64, tf.bool, tf.string),
    *(tf.float16, tf.bfloat16, tf.complex64),
]


def _save(folder: Path, functions: Mapping[str, Callable[..., dict[str, tf.Tensor]]], specs: Mapping[str, Any]) -> None:
    """Writes a SavedModel with one signature per function; `specs` names the inputs of each."""
    module = tf.Module()
    signatures = {}
    for name, function in functions.items():
        inputs = [tf.TensorSpec(shape, dtype, key) for key, (shape, dtype) in specs[name].items()]
        signatures[name] = tf.function(function, input_signature=inputs)
    tf.saved_model.save(module, str(folder), signatures=signatures)


def _save_scale(folder: Path, factor: float, ballast_mib: int = 0) -> None:
    """A model with a variable, `y = factor * x`, for float32 `x` of shape [batch, 2]."""
    module = tf.Module()
    module.factor = tf.Variable(factor)
    module.ballast = tf.Variable(tf.zeros([ballast_mib, 2**18]))
    signature = tf.function(
        lambda x: {"y": module.factor * x}, input_signature=[tf.TensorSpec([None, 2], tf.float32, "x")]
    )
    tf.saved_model.save(module, str(folder), signatures={"serving_default": signature})


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    """Context manager: repository -> client of a server on a free port."""
    return rest_client.serve


@pytest.fixture(scope="session")
def scales(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Exports of `y = factor * x`, by factor; to be copied into place."""
    root = tmp_path_factory.mktemp("scales")
    for factor in (1, 2, 3):
        _save_scale(root / str(factor), float(factor))
    return {factor: root / str(factor) for factor in (1, 2, 3)}


@pytest.fixture(scope="session")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export whose variables take 16 MiB."""
    folder = tmp_path_factory.mktemp("heavy") / "1"
    _save_scale(folder, 1.0, ballast_mib=16)
    return folder


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five models."""
    root = tmp_path_factory.mktemp("models")
    _save_scale(root / "pair" / "3", 2.0)
    _save(
        root / "named" / "1",
        {"serving_default": lambda image, caption: {"label": caption + "!", "score": tf.reduce_sum(image, 1)}},
        {"serving_default": {"image": ([None, 2], tf.float32), "caption": ([None], tf.string)}},
    )
    _save(
        root / "text" / "1",
        {"serving_default": lambda text: {"out": text}, "bytes": lambda text: {"out_bytes": text}},
        {name: {"text": (None, tf.string)} for name in ("serving_default", "bytes")},
    )
    _save(
        root / "echo" / "1",
        {dtype.name: lambda x: {"y": tf.identity(x)} for dtype in ECHOED},
        {dtype.name: {"x": (None, dtype)} for dtype in ECHOED},
    )
    _save(
        root / "odd" / "1",
        {
            "scalar": lambda x: {"total": tf.reduce_sum(x)},
            "uneven": lambda x: {"a": x, "b": x[:1]},
            "half": lambda x: {"y": tf.cast(x, tf.float16)},
            "failing": lambda x: {"y": tf.gather(x, tf.cast(x[0], tf.int32))},
        },
        {name: {"x": ([None], tf.float32)} for name in ("scalar", "uneven", "half", "failing")},
    )
    return root


@pytest.fixture(scope="session")
def client(root: Path) -> Iterator[rest_client.Client]:
    """A server of all five models."""
    repository = ModelRepository(root)
    repository.poll()
    assert repository.unavailable() == {}
    with rest_client.serve(repository) as client:
        yield client


def _count(times: tf.Tensor) -> dict[str, tf.Tensor]:
    """A loop of as many steps as it is told, each of which takes microseconds."""
    begin = (tf.constant(0), tf.zeros([]))
    last, _ = tf.while_loop(lambda i, _: i < tf.reduce_max(times), lambda i, x: (i + 1, tf.sin(x) + 1), begin)
    return {"last": tf.repeat(last, tf.size(times))}


@pytest.fixture(scope="session")
def slow(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the model `count`, and of another one."""
    folder = tmp_path_factory.mktemp("slow")
    signature = tf.function(_count, input_signature=[tf.TensorSpec([None], tf.int32, "times")])
    tf.saved_model.save(tf.Module(), str(folder / "count/1"), signatures={"serving_default": signature})
    (folder / "pair").symlink_to(root / "pair")
    return folder
