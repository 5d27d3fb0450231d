"""The one way to write a SavedModel: signatures, warm-up file, configuration, metrics and model card, atomically.

An export is `saved_models/<application>/<version>/`. It loads in stock TensorFlow Serving and with
`tf.saved_model.load`, without this repository and without Keras.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from kerasdl import frozen
from kerasdl.data import picture_decoding
from kerasdl.errors import UserError
from kerasdl.files import atomic_path, claim, tidy

ENCODED = f"encoded {picture_decoding.NAMED} pictures of any size"
"""What signatures of encoded pictures take, for their meaning on the model card."""

WARMUP = "assets.extra/tf_serving_warmup_requests"
BATCHED = "assets.extra/batched_signatures.json"


@dataclass(frozen=True)
class Endpoint:
    """One signature of an export.

    Attributes:
        function: takes tensors by the names of `inputs`, returns a dict of float32, integer or string tensors.
        inputs: shape and dtype of each input; the batch dimension is None.
        example: one small real request, by input name; it goes into the warm-up file.
        meaning: one sentence for the model card.
        resources: lookup tables that the function uses, or layers that own them.
        alike: declares that no row of the outputs depends on another row of the inputs, nor on how many there are, so
            that a server may compute those of several requests together; names inputs in which they must agree then.
            None declares nothing.
    """

    function: Callable[..., dict[str, tf.Tensor]]
    inputs: Mapping[str, tf.TensorSpec]
    example: Mapping[str, np.ndarray]
    meaning: str
    resources: tuple[Any, ...] = ()
    alike: tuple[str, ...] | None = None


def by_example(
    function: Callable[..., dict[str, tf.Tensor]], meaning: str, *resources: Any, **example: Any
) -> Endpoint:
    """An `Endpoint` whose inputs have the dtypes and shapes of one real request, in batches of any size.

    The request is one row of each input by name, arrays or lists; whole numbers become int32, others float32, but
    bytes of pixels stay. Texts stay `str`: the model card shows the request as JSON.
    """
    dtypes = {"i": tf.int32, "f": tf.float32}
    rows = {
        name: tf.convert_to_tensor(value, dtypes.get(np.asarray(value).dtype.kind)) for name, value in example.items()
    }
    inputs = {name: tf.TensorSpec([None, *row.shape[1:]], row.dtype) for name, row in rows.items()}
    given = {
        name: np.array(example[name], object) if row.dtype == tf.string else row.numpy() for name, row in rows.items()
    }
    return Endpoint(function, inputs, given, meaning, resources)


def row_by_row(endpoint: Endpoint, *alike: str) -> Endpoint:
    """An endpoint whose rows do not depend on each other; `alike` as there."""
    return replace(endpoint, alike=alike)


def by_rows(function: Callable[..., dict[str, tf.Tensor]], meaning: str, *resources: Any, **example: Any) -> Endpoint:
    """`by_example` of a function that answers row by row."""
    return row_by_row(by_example(function, meaning, *resources, **example))


def next_version(folder: Path) -> int:
    """One above the highest version in `saved_models/<application>`; 1 when there is none."""
    versions = [int(path.name) for path in folder.glob("*") if path.is_dir() and path.name.isdecimal()]
    return max(versions, default=0) + 1


@contextmanager
def reserved(folder: Path, version: int | None) -> Iterator[Path]:
    """Gives the path of a new version, which no other export takes until the block ends.

    Args:
        folder: `saved_models/<application>`.
        version: its number; the next free one when None.

    Raises:
        UserError: another export is writing this version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tidy(folder)
    for number in [version] if version else itertools.count(next_version(folder)):
        with claim(folder / f".{number}.lock") as mine:
            if mine and (version or not (folder / str(number)).exists()):
                yield folder / str(number)
                return
    raise UserError(f"{folder / str(version)} is being written by another export; give another --version, or wait")


def write(
    folder: Path,
    model: keras.Model,
    endpoints: Mapping[str, Endpoint],
    finish: Callable[[Path], None],
    *,
    eight_bit: Sequence[keras.Variable] = (),
) -> None:
    """Writes a version folder; it appears under its name only when everything in it is complete.

    Kernels and other arrays of two or more dimensions are stored in half precision (float16) and widened at each call:
    half the size; the model card's metrics are those of the stored weights. Everything is computed in float32. What no
    endpoint reads is not stored.

    Args:
        folder: `saved_models/<application>/<version>`, must not exist.
        model: owns the variables that the endpoints use; float32.
        endpoints: by signature name; the first is also `serving_default`.
        finish: receives the temporary folder with the loadable SavedModel, to measure it and to add files.
        eight_bit: kernels that are stored in 8 bits with a scale for each output channel, a quarter of the size.

    Raises:
        UserError: the version exists.
        RuntimeError: the graph holds an operation that needs a GPU.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; exports are never overwritten, give another --version or remove it")
    with atomic_path(folder) as temporary:
        # Keras' ExportArchive writes every weight twice, and in full precision.
        narrow = {id(variable) for variable in eight_bit}
        stored = {id(variable): _Stored(variable.value, id(variable) in narrow) for variable in model.variables}

        def traced(endpoint: Endpoint) -> Any:
            @tf.function(autograph=False)
            def function(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
                with _StoredWeights(stored):
                    return endpoint.function(**inputs)

            specs = {key: tf.TensorSpec(spec.shape, spec.dtype, key) for key, spec in endpoint.inputs.items()}
            return function.get_concrete_function(**specs)

        functions = {name: traced(endpoint) for name, endpoint in endpoints.items()}
        module = tf.Module()
        used = {variable.ref() for function in functions.values() for variable in function.variables}
        copies = [copy for value in stored.values() for copy in value.copies]
        module.weights = [copy for copy in copies if copy.ref() in used]
        module.resources = [resource for endpoint in endpoints.values() for resource in endpoint.resources]
        functions[tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY] = next(iter(functions.values()))
        tf.saved_model.save(module, str(temporary), functions)
        refuse_gpu_operations(temporary)
        _write_warmup(temporary, endpoints)
        _write_batched(temporary, endpoints)
        finish(temporary)


class _Stored:
    """The narrow copies of a weight, of which `wide` makes the weight again.

    In 8 bits the quantization is symmetric, int8, per output channel: -127 to 127 stand for minus to plus the largest
    magnitude of the channel. The channels of a kernel are its last axis, of a depthwise one, whose last axis is one
    wide, the one before.
    """

    def __init__(self, value: tf.Tensor, eight_bit: bool) -> None:
        value = tf.convert_to_tensor(value)
        self.copies = [tf.Variable(value)]
        if value.dtype != tf.float32 or value.shape.rank < 2:
            return
        if eight_bit:
            axes = [axis for axis in range(value.shape.rank) if axis != value.shape.rank - 1 - (value.shape[-1] == 1)]
            scale = tf.maximum(tf.reduce_max(tf.abs(value), axes, keepdims=True), 1e-12) / 127
            self.copies = [tf.Variable(tf.cast(tf.round(value / scale), tf.int8)), tf.Variable(scale)]
        elif tf.reduce_max(tf.abs(value)) <= tf.float16.max:
            self.copies = [tf.Variable(tf.cast(value, tf.float16))]

    def wide(self, dtype: str) -> tf.Tensor:
        """The weight."""
        value = tf.cast(self.copies[0], dtype)
        return value * self.copies[1] if len(self.copies) == 2 else value


class _StoredWeights(keras.StatelessScope):
    """Gives the model its weights' stored copies, each widened once a call, and only if the model reads it."""

    entered: ClassVar[list["_StoredWeights"]] = []

    def __init__(self, stored: Mapping[int, _Stored]) -> None:
        super().__init__()
        self.stored = stored
        self.graph = tf.compat.v1.get_default_graph()

    def __enter__(self) -> Any:
        self.entered.append(self)
        return super().__enter__()

    def __exit__(self, *arguments: Any) -> None:
        self.entered.pop()
        super().__exit__(*arguments)

    def get_current_value(self, variable: keras.Variable) -> Any:
        """The tensor to compute with; None leaves the variable's own value."""
        key = id(variable)
        if key in self.stored and key not in self.state_mapping:
            # In the function's own graph: in the body of a loop it would be widened at each step.
            with self.graph.as_default(), tf.control_dependencies(None):
                self.state_mapping[key] = self.stored[key].wide(variable.dtype)
        return super().get_current_value(variable)


def shared(function: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
    """A part of several endpoints, such as an encoder, whose graph an export holds once.

    Args:
        function: takes a batch of any size.
    """
    traced: dict[int, Any] = {}

    def call(x: tf.Tensor) -> tf.Tensor:
        if not _StoredWeights.entered:  # not in an export
            return function(x)
        stored = _StoredWeights.entered[-1].stored
        if id(stored) not in traced:

            def inner(x: tf.Tensor) -> tf.Tensor:
                with _StoredWeights(stored):
                    return function(x)

            with tf.init_scope():
                spec = tf.TensorSpec([None, *x.shape[1:]], x.dtype)
                traced[id(stored)] = tf.function(inner, autograph=False).get_concrete_function(spec)
        return traced[id(stored)](x)

    return call


def refuse_gpu_operations(folder: Path) -> None:
    """Checks the graph of a SavedModel.

    Raises:
        RuntimeError: it holds an operation that needs a GPU.
    """
    graph = (folder / "saved_model.pb").read_bytes()
    found = sorted({name.decode() for name in re.findall(rb"Cudnn\w+", graph)})
    if found:
        raise RuntimeError(f"the export holds {', '.join(found)}, which no CPU can run; build with use_cudnn=False")


def _write_batched(folder: Path, endpoints: Mapping[str, Endpoint]) -> None:
    """Writes which signatures answer row by row, for kerasdl.serving; others overlook it."""
    default = {tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY: next(iter(endpoints.values()))}
    alike = {name: one.alike for name, one in {**endpoints, **default}.items() if one.alike is not None}
    (folder / BATCHED).write_text(json.dumps(alike, indent=2) + "\n")


def _write_warmup(folder: Path, endpoints: Mapping[str, Endpoint]) -> None:
    """Writes one PredictionLog a signature, which a server replays before it says AVAILABLE.

    Source: TensorFlow Serving, "SavedModel Warmup".
    """
    path = folder / WARMUP
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name, endpoint in endpoints.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.name = folder.parent.name
            request.model_spec.signature_name = name
            for key, value in endpoint.example.items():
                dtype = endpoint.inputs[key].dtype
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value, dtype=dtype))
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(request)
            writer.write(log.SerializeToString())


def signatures(folder: Path, *needed: str) -> dict[str, "Signature"]:
    """Loads the signatures of an export with TensorFlow alone.

    Args:
        folder: `saved_models/<application>` (the highest version is taken) or `saved_models/<application>/<version>`.
        *needed: names of signatures that the caller will use.

    Returns:
        Signature name -> function of keyword tensors that returns a dict of tensors.

    Raises:
        UserError: no export there, a damaged one, or one without a signature that is needed.
    """
    folder = version_folder(folder)
    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:  # TensorFlow raises whatever a cut file leads to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the export {folder} is damaged ({reason}); copy it anew, or export it again") from None
    missing = sorted({*needed} - {*loaded.signatures})
    if missing:
        raise UserError(
            f"{folder} has no signature {', '.join(missing)} but {', '.join(sorted(loaded.signatures))}; "
            "expected an export of this application"
        )
    # The functions hold their variables weakly: each keeps a reference to what was loaded.
    return {name: Signature(loaded, name) for name in loaded.signatures}


class Signature:
    """A loaded signature: called with keyword tensors, returns a dict of tensors; `inputs` are its specs.

    From the second call on, outside of graphs, its weights are constants (`kerasdl.frozen`). A single call would not
    gain the time that this takes.
    """

    def __init__(self, model: Any, name: str) -> None:
        self._model, self._name, self._function, self._calls = model, name, model.signatures[name], 0
        self.inputs: dict[str, tf.TensorSpec] = self._function.structured_input_signature[1]

    def __call__(self, **inputs: Any) -> dict[str, tf.Tensor]:
        """Runs the signature; arrays are converted to tensors."""
        inputs = {name: tf.convert_to_tensor(value, self.inputs[name].dtype) for name, value in inputs.items()}
        self._calls += tf.executing_eagerly()
        if not tf.executing_eagerly():
            return self._model.signatures[self._name](**inputs)
        if self._calls == 2:
            self._function = frozen.frozen(self._model, self._name)
        return self._function(**inputs)


def in_memory(endpoints: Mapping[str, Endpoint]) -> dict[str, "SignatureInMemory"]:
    """Endpoints of a model that is not exported, as `signatures` gives those of an export."""
    return {name: SignatureInMemory(endpoint) for name, endpoint in endpoints.items()}


class SignatureInMemory:
    """An endpoint as a graph over the model's own weights; called like a `Signature`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.inputs = dict(endpoint.inputs)
        self._function = tf.function(endpoint.function, autograph=False)
        self._traced: Any = None

    def __call__(self, **inputs: Any) -> dict[str, tf.Tensor]:
        """Runs the endpoint."""
        if self._traced is None:
            self._traced = self._function.get_concrete_function(**self.inputs)
        return self._traced(
            **{name: tf.convert_to_tensor(value, self.inputs[name].dtype) for name, value in inputs.items()}
        )


def version_folder(folder: Path) -> Path:
    """The folder itself if it holds a SavedModel, else its highest version.

    Raises:
        UserError: neither.
    """
    if (folder / "saved_model.pb").is_file():
        return folder
    versions = [path for path in folder.glob("*") if path.name.isdecimal() and (path / "saved_model.pb").is_file()]
    if not versions:
        raise UserError(
            f"{folder} holds no exported model; give a folder that an export has written, such as saved_models/vae"
        )
    return max(versions, key=lambda path: int(path.name))


def decode_images(image_bytes: tf.Tensor, size: int, *, squash: bool = False) -> tf.Tensor:
    """Encoded pictures to pixels, inside the graph, as `kerasdl.data.picture_decoding.square` gives each.

    So `kerasdl.data.picture_files.decode`, which trains, sees the same to the last bit.

    Args:
        image_bytes: string[batch].
        size: side of the result in pixels.
        squash: scale the whole picture, each side on its own, rather than cut out the middle square.

    Returns:
        uint8[batch, size, size, 3].
    """

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        return picture_decoding.square(encoded, size, squash=squash)

    with tf.device("cpu:0"):  # decoding has no GPU kernel
        return tf.map_fn(decode, image_bytes, fn_output_signature=tf.TensorSpec([size, size, 3], tf.uint8))


def of_pictures(
    name: str,
    function: Callable[[tf.Tensor], dict[str, tf.Tensor]],
    example: np.ndarray,
    answer: str,
    *,
    squash: bool = False,
) -> dict[str, Endpoint]:
    """Two endpoints that answer alike, row by row: one of encoded pictures under a name, one of pixels under `pixels`.

    Of a picture in the size of the pixels that lost nothing when it was encoded they give the very same answer.

    Args:
        name: of the first one.
        function: takes pixels uint8[batch, size, size, channels].
        example: one picture uint8[1, size, size, channels], 1 or 3 channels.
        answer: what they give, for the model card.
        squash: see `decode_images`.
    """
    size, channels = example.shape[2:]

    def from_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        image = decode_images(image_bytes, size, squash=squash)
        return function(image if channels == 3 else picture_decoding.grey(image))

    def from_pixels(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return function(image)

    shown = f"{'RGB' if channels == 3 else 'grey'} pixels 0..255, {size} by {size}; {answer}"
    return {
        name: row_by_row(Endpoint(from_bytes, *encoded(example), f"{ENCODED}; {answer}")),
        "pixels": row_by_row(by_example(from_pixels, shown, image=example)),
    }


def encoded(example: np.ndarray) -> tuple[dict[str, tf.TensorSpec], dict[str, np.ndarray]]:
    """Specification and example of an input `image_bytes`, from one picture uint8[1, height, width, channels]."""
    encode = tf.io.encode_jpeg if example.shape[-1] == 3 else tf.io.encode_png
    spec = {"image_bytes": tf.TensorSpec([None], tf.string)}
    return spec, {"image_bytes": np.array([encode(example[0]).numpy()], object)}


def with_png(values: tf.Tensor) -> tf.Tensor:
    """PNG files string[batch] of pictures whose values 0..255 are rounded, float[batch, height, width, channels]."""
    pixels = tf.saturate_cast(tf.round(values), tf.uint8)
    return tf.map_fn(tf.io.encode_png, pixels, fn_output_signature=tf.string)


LARGEST = 1e6
"""Largest magnitude of a number that a network gets: the products of those beyond would leave float32."""


def finite(values: tf.Tensor, name: str) -> tf.Tensor:
    """Numbers that a network can answer by numbers.

    Args:
        values: float32[batch, ...], of an input.
        name: of the input, for the message.

    Returns:
        float32[batch, ...], those beyond `LARGEST` either way brought back to it.

    Raises:
        InvalidArgumentError: in the graph: NaN or infinity.
    """
    checked = tf.debugging.check_numerics(values, f"{name} holds NaN or infinity, expected numbers")
    return tf.clip_by_value(checked, -LARGEST, LARGEST)


def within(index: tf.Tensor, count: int, name: str) -> tf.Tensor:
    """Numbers of classes int32[batch], checked.

    Args:
        index: 0 to count - 1.
        count: of the classes.
        name: of the input, for the message.

    Raises:
        InvalidArgumentError: in the graph: there is no such class.
    """
    wrong = f"{name} is out of range, expected 0 to {count - 1}"
    low = tf.debugging.assert_non_negative(index, wrong)
    high = tf.debugging.assert_less(index, count, wrong)
    with tf.control_dependencies([check for check in (low, high) if check is not None]):
        return tf.identity(index)


def class_name(names: Sequence[str], *, counted: bool = False) -> Endpoint:
    """An endpoint that gives the names of classes, since the outputs of a SavedModel have no labels.

    Args:
        names: of the classes.
        counted: give their number, too, where no other endpoint tells it.
    """

    def function(index: tf.Tensor) -> dict[str, tf.Tensor]:
        index = within(index, len(names), "index")
        answer = {"label": tf.gather(tf.constant(names), index)}
        return answer | ({"num_classes": tf.fill(tf.shape(index), len(names))} if counted else {})

    meaning = f"name of a class, 0 to {len(names) - 1}" + (", and how many classes there are" if counted else "")
    return by_example(function, meaning, index=[0])


def class_names(signatures: Mapping[str, Any], count: int | None = None) -> list[str]:
    """Names of the classes of an export, by its `class_name`.

    Args:
        signatures: of the export.
        count: of the classes; None: the export tells it.

    Returns:
        The names; none of an export without classes.
    """
    if "class_name" not in signatures:
        return []
    ask = signatures["class_name"]
    if count is None:
        count = int(ask(index=tf.constant([0]))["num_classes"][0])
    return [name.decode() for name in ask(index=tf.range(count))["label"].numpy()]


def size_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
