import io
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from kerasdl import export
from kerasdl.data import captioned_pictures, vocabulary
from kerasdl.errors import UserError


def make(folder, *, finish=lambda folder: None, function=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)

    def call(x):
        return {"y": model(x)}

    endpoint = export.Endpoint(
        function or call, {"x": tf.TensorSpec([None, 3], tf.float32)}, {"x": np.ones((2, 3), np.float32)}, "doubles"
    )
    export.write(folder, model, {"double": endpoint}, finish)
    return model, endpoint


def test_an_export_answers_as_the_model_and_has_a_default_signature(tmp_path):
    model, _ = make(tmp_path / "toy" / "1")
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    signatures = export.signatures(tmp_path / "toy")
    assert set(signatures) == {"double", "serving_default"}
    assert signatures["double"].inputs["x"] == tf.TensorSpec([None, 3], tf.float32, "x")
    np.testing.assert_allclose(signatures["serving_default"](x=tf.constant(x))["y"], model(x), atol=1e-3)


def test_every_call_of_a_signature_answers_the_same_within_a_graph_and_outside(tmp_path):
    """Outside of graphs the second call makes constants of the weights."""
    make(tmp_path / "toy" / "1")
    double, x = export.signatures(tmp_path / "toy")["double"], tf.ones([2, 3])
    in_graph = tf.function(lambda x: double(x=x)["y"])
    answers = [in_graph(x), *(double(x=x)["y"] for _ in range(3)), in_graph(x), tf.function(lambda: double(x=x)["y"])()]
    answers += [double(x=np.ones([2, 3]))["y"]]  # an array, and of another dtype
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], rtol=1e-6)


def test_a_signature_that_is_needed_and_missing_is_named(tmp_path):
    make(tmp_path / "toy" / "1")
    assert export.signatures(tmp_path / "toy", "double")
    with pytest.raises(UserError, match="no signature halve but double, serving_default; expected an export of this"):
        export.signatures(tmp_path / "toy", "double", "halve")


def test_weights_are_written_once_and_the_optimizer_is_not(tmp_path):
    make(tmp_path / "toy" / "1")
    shapes = [shape for name, shape in tf.train.list_variables(str(tmp_path / "toy/1/variables/variables")) if shape]
    assert sorted(shapes) == [[2], [3, 2]]


def stored(folder):
    """Every array of an export, by its shape."""
    reader = tf.train.load_checkpoint(str(folder / "variables/variables"))
    arrays = [
        reader.get_tensor(name) for name, shape in tf.train.list_variables(str(folder / "variables/variables")) if shape
    ]
    return {array.shape: array for array in arrays}


def test_arrays_of_two_dimensions_are_stored_in_half_the_bytes_and_computed_in_float32(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(400, bias_initializer="normal", name="dense")])
    dense = model.get_layer("dense")

    def call(x):
        assert dense.kernel.dtype == "float32"
        return {"y": model(x)}

    specs, example = {"x": tf.TensorSpec([None, 300])}, {"x": np.ones((1, 300), np.float32)}
    export.write(tmp_path / "1", model, {"f": export.Endpoint(call, specs, example, "")}, lambda folder: None)
    arrays = stored(tmp_path / "1")
    kernel, bias = dense.kernel.numpy(), dense.bias.numpy()
    assert arrays[300, 400].dtype == np.float16
    assert arrays[400,].dtype == np.float32
    np.testing.assert_array_equal(arrays[300, 400], kernel.astype(np.float16))
    np.testing.assert_array_equal(arrays[400,], bias)
    assert 2 * kernel.size < export.size_bytes(tmp_path / "1/variables") < 2 * kernel.size + 8_000
    # In float32 from the rounded kernel: nearer to that than float16 can be, and not from the exact one.
    x = np.random.default_rng(0).normal(size=(7, 300)).astype(np.float32)
    y = export.signatures(tmp_path / "1")["f"](x=tf.constant(x))["y"]
    assert y.dtype == tf.float32
    np.testing.assert_allclose(y, x @ kernel.astype(np.float16).astype(np.float32) + bias, atol=1e-5)
    assert np.abs(y - model(x)).max() > 1e-4
    np.testing.assert_array_equal(dense.kernel.numpy(), kernel)


def test_kernels_in_eight_bits_have_a_scale_for_each_channel(tmp_path):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(5, 3, name="full"), keras.layers.DepthwiseConv2D(2, name="deep")]
    model = keras.Sequential([keras.Input((8, 8, 4)), *layers])
    for layer, channel_axis in zip(layers, (3, 2), strict=True):
        kernel = layer.kernel.numpy()
        kernel *= np.moveaxis(10.0 ** np.arange(kernel.shape[channel_axis]).reshape(-1, 1, 1, 1), 0, channel_axis)
        layer.kernel.assign(kernel)
    specs, example = {"x": tf.TensorSpec([None, 8, 8, 4])}, {"x": np.ones((1, 8, 8, 4), np.float32)}
    endpoints = {"f": export.Endpoint(lambda x: {"y": model(x)}, specs, example, "")}
    kernels = [layer.kernel for layer in layers]
    export.write(tmp_path / "1", model, endpoints, lambda folder: None, eight_bit=kernels)
    arrays = stored(tmp_path / "1")
    for kernel, channel_axis in zip(kernels, (3, 2), strict=True):
        exact = kernel.numpy()
        axes = tuple({0, 1, 2, 3} - {channel_axis})
        largest = np.abs(exact).max(axes, keepdims=True)
        narrow = arrays[exact.shape]
        assert narrow.dtype == np.int8
        assert (np.abs(narrow).max(axes) == 127).all()
        scale = arrays[largest.shape]
        np.testing.assert_allclose(scale, largest / 127, rtol=1e-6)
        assert (np.abs(narrow * scale - exact) <= largest / 250).all()
        kernel.assign(narrow * scale)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    y = export.signatures(tmp_path / "1")["f"](x=tf.constant(x))["y"]
    np.testing.assert_allclose(y, model(x), rtol=1e-4, atol=1e-3)


def test_what_half_precision_cannot_hold_stays_float32(tmp_path):
    """A table of which one number is above 65,504, and integers."""
    wide = np.array([[7e4, 1.0], [1e-3, -2.0]], np.float32)
    large = np.arange(9).reshape(3, 3) + 100_000

    class Tables(keras.layers.Layer):
        def build(self, _):
            self.narrow = self.add_weight(shape=(2, 1))
            self.wide = self.add_weight(shape=(2, 2), initializer=lambda *_, **__: wide)
            self.large = self.add_weight(shape=(3, 3), dtype="int32", initializer=lambda *_, **__: large)

        def call(self, x):
            return {
                "y": x @ self.narrow,
                "wide": x @ self.wide,
                "large": x[:1, :1] + keras.ops.cast(self.large, "float32"),
            }

    model = keras.Sequential([keras.Input((2,)), Tables()])
    specs, example = {"x": tf.TensorSpec([None, 2])}, {"x": np.ones((1, 2), np.float32)}
    export.write(
        tmp_path / "1", model, {"f": export.Endpoint(lambda x: model(x), specs, example, "")}, lambda folder: None
    )
    arrays = stored(tmp_path / "1")
    assert {shape: array.dtype.name for shape, array in arrays.items()} == {
        (2, 2): "float32", (3, 3): "int32", (2, 1): "float16",
    }  # fmt: skip
    answer = export.signatures(tmp_path / "1")["f"](x=tf.ones([1, 2]))
    np.testing.assert_array_equal(answer["wide"], [wide.sum(0)])
    np.testing.assert_array_equal(answer["large"], large + 1)


def test_what_no_endpoint_reads_is_not_stored(tmp_path):
    """A second head, and the seed of a dropout layer."""
    x = keras.Input((3,))
    shared = keras.layers.Dropout(0.5)(keras.layers.Dense(4)(x))
    used, unused = keras.layers.Dense(5)(shared), keras.layers.Dense(6)(shared)
    model, part = keras.Model(x, [used, unused]), keras.Model(x, used)
    specs, example = {"x": tf.TensorSpec([None, 3])}, {"x": np.ones((1, 3), np.float32)}
    endpoint = export.Endpoint(lambda x: {"y": part(x)}, specs, example, "")
    export.write(tmp_path / "1", model, {"f": endpoint}, lambda folder: None)
    assert set(stored(tmp_path / "1")) == {(3, 4), (4,), (4, 5), (5,)}
    given = tf.constant(example["x"])
    answer = export.signatures(tmp_path / "1")["f"](x=given)["y"]
    np.testing.assert_allclose(answer, part(given), atol=1e-3)


def test_weights_are_widened_outside_of_loops(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])

    def repeat(x):
        def body(t, x):
            return t + 1, model(x)

        return {"y": tf.while_loop(lambda t, x: t < 4, body, (0, x))[1]}

    specs, example = {"x": tf.TensorSpec([None, 3])}, {"x": np.ones((1, 3), np.float32)}
    export.write(tmp_path / "1", model, {"f": export.Endpoint(repeat, specs, example, "")}, lambda folder: None)
    saved = saved_model_pb2.SavedModel.FromString((tmp_path / "1/saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    casts = {f.signature.name: [n.op for n in f.node_def].count("Cast") for f in functions}
    assert sum(casts.values()) == 1
    assert not any(count for name, count in casts.items() if "body" in name)
    given = tf.constant(example["x"])
    answer = export.signatures(tmp_path / "1")["f"](x=given)["y"]
    np.testing.assert_allclose(answer, repeat(given)["y"], atol=1e-2)


@pytest.mark.parametrize("owned", [True, False])
def test_lookup_tables_among_the_resources_survive_in_a_fresh_process(tmp_path, owned):
    """A table, or a layer that owns one."""
    words = vocabulary.WordVocabulary(["good", "bad"])
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])

    def call(review):
        return {"ids": words(review)}

    endpoint = export.Endpoint(
        call,
        {"review": tf.TensorSpec([None], tf.string)},
        {"review": np.array(["so good"], object)},
        "",
        resources=(words if owned else words.table,),
    )
    export.write(tmp_path / "1", model, {"ids": endpoint}, lambda folder: None)
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['keras', 'kerasdl']))\n"  # None: importing them fails
        "import tensorflow as tf\n"
        "model = tf.saved_model.load(sys.argv[1])\n"
        "print(model.signatures['ids'](review=tf.constant(['Bad, good!', 'good']))['ids'].numpy().tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "1")], check=True, capture_output=True)
    assert json.loads(done.stdout) == [[3, 1, 2, 1], [2, 0, 0, 0]]


def test_warmup_requests_are_what_a_server_replays(tmp_path):
    make(tmp_path / "toy" / "1")
    (record,) = tf.data.TFRecordDataset(str(tmp_path / "toy/1" / export.WARMUP)).as_numpy_iterator()
    request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
    assert (request.model_spec.name, request.model_spec.signature_name) == ("toy", "double")
    np.testing.assert_array_equal(tf.make_ndarray(request.inputs["x"]), np.ones((2, 3)))


def test_nothing_appears_when_finishing_fails(tmp_path):
    def fail(folder):
        assert (folder / "saved_model.pb").is_file()
        raise OSError("disk is full")

    with pytest.raises(OSError, match="disk is full"):
        make(tmp_path / "toy" / "1", finish=fail)
    assert list((tmp_path / "toy").iterdir()) == []


def test_an_existing_version_is_not_touched(tmp_path):
    make(tmp_path / "toy" / "1")
    before = (tmp_path / "toy/1/saved_model.pb").read_bytes()
    with pytest.raises(UserError, match="never overwritten"):
        make(tmp_path / "toy" / "1")
    assert (tmp_path / "toy/1/saved_model.pb").read_bytes() == before


def test_operations_of_a_gpu_are_refused(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"..\x0aCudnnRNNV3\x12..")
    with pytest.raises(RuntimeError, match="CudnnRNNV3"):
        export.refuse_gpu_operations(tmp_path)
    make(tmp_path / "toy" / "1")
    export.refuse_gpu_operations(tmp_path / "toy" / "1")


def test_versions(tmp_path):
    assert export.next_version(tmp_path) == 1
    for name in ("2", "10", "note", ".123-11"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").touch()
    assert export.next_version(tmp_path) == 11
    assert export.version_folder(tmp_path).name == "10"
    assert export.version_folder(tmp_path / "2").name == "2"
    with pytest.raises(UserError, match="holds no exported model"):
        export.version_folder(tmp_path / "nothing")


def encoded(size, mode="RGB", form="PNG"):
    left = Image.new("RGB", size, (250, 10, 10))
    left.paste((10, 10, 250), (size[0] // 2, 0, *size))
    stream = io.BytesIO()
    left.convert(mode).save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF"])
@pytest.mark.parametrize("size", [(32, 32), (64, 48), (9, 50), (1, 1)])
def test_pictures_are_decoded_scaled_and_cropped(form, size):
    images = export.decode_images(tf.constant([encoded(size, form=form)] * 2), 32).numpy()
    assert images.shape == (2, 32, 32, 3)
    assert images.dtype == np.uint8
    if size[0] > 1:
        assert images[0, :, :6, 0].min() > 180 > 60 > images[0, :, -6:, 0].max()


def test_grey_and_transparent_pictures_have_three_channels():
    images = export.decode_images(tf.constant([encoded((40, 40), "L"), encoded((40, 40), "RGBA")]), 32).numpy()
    assert (images[0][..., 0] == images[0][..., 2]).all()
    assert images[1][0, 0, 0] > 240


@pytest.mark.parametrize("size", [(50, 80), (80, 50)])
def test_whole_pictures_are_squashed_as_the_loader_of_captioned_pictures_does(tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected, _, _ = captioned_pictures.load([tmp_path / "a.png"], size=32)
    encoded = tf.constant([(tmp_path / "a.png").read_bytes()])
    actual = export.decode_images(encoded, 32, squash=True).numpy()
    assert (actual.shape, actual.dtype) == (expected.shape, np.uint8)
    np.testing.assert_array_equal(actual, expected)
    assert np.abs(export.decode_images(encoded, 32).numpy().astype(int) - expected).max() > 50


def test_endpoints_in_memory_follow_the_weights_of_the_model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    endpoint = export.Endpoint(
        lambda x: {"y": model(x)}, {"x": tf.TensorSpec([None, 3], tf.float32)}, {"x": np.ones((2, 3))}, "doubles"
    )
    signature = export.in_memory({"double": endpoint})["double"]
    assert signature.inputs == {"x": tf.TensorSpec([None, 3], tf.float32)}
    for rows in (1, 4):
        x = np.random.default_rng(rows).normal(size=(rows, 3))  # float64: cast to what the endpoint takes
        np.testing.assert_allclose(signature(x=x)["y"], model(x), rtol=1e-6)
        model.set_weights([2 * weight + 1 for weight in model.get_weights()])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_two_endpoints_of_pictures_answer_alike(channels):
    example = np.random.default_rng(0).integers(0, 256, (1, 8, 8, channels), dtype=np.uint8)
    endpoints = export.of_pictures("name", lambda image: {"sum": tf.reduce_sum(tf.cast(image, tf.int32), [1, 2, 3])},
                                   example, "sums")  # fmt: skip
    assert list(endpoints) == ["name", "pixels"]
    signatures = export.in_memory(endpoints)
    png = tf.io.encode_png(example[0]).numpy()
    by_bytes = signatures["name"](image_bytes=np.array([png, png], object))["sum"]
    by_pixels = signatures["pixels"](image=example)["sum"]
    assert by_pixels.numpy().tolist() == [example.sum()]
    assert by_bytes.numpy().tolist() == [example.sum()] * 2
    for name, endpoint in endpoints.items():
        assert signatures[name](**endpoint.example)["sum"].shape == (1,)


def test_an_endpoint_takes_what_its_example_is():
    image = np.ones((1, 4, 5, 3), np.uint8)
    made = export.by_example(len, "none", "a table", image=image, count=[2], rate=[0.5], text=["ä"],
                             code=np.ones([1, 4]))  # fmt: skip
    assert made.inputs == {
        "image": tf.TensorSpec([None, 4, 5, 3], tf.uint8),
        "count": tf.TensorSpec([None], tf.int32),
        "rate": tf.TensorSpec([None], tf.float32),
        "text": tf.TensorSpec([None], tf.string),
        "code": tf.TensorSpec([None, 4], tf.float32),
    }
    np.testing.assert_array_equal(made.example["image"], image)
    assert [made.example[name].tolist() for name in ("count", "rate", "text")] == [[2], [0.5], ["ä"]]
    assert (made.function, made.meaning, made.resources) == (len, "none", ("a table",))


def test_values_become_png_files_rounded_and_clipped():
    values = tf.constant([[[[-3.0], [0.4]], [[254.6], [300.0]]]])
    (png,) = export.with_png(values).numpy()
    assert tf.io.decode_png(png).numpy()[..., 0].tolist() == [[0, 0], [255, 255]]


@pytest.mark.parametrize("counted", [True, False])
def test_names_of_classes_are_read_back(counted):
    signatures = export.in_memory({"class_name": export.class_name(["cat", "Hund"], counted=counted)})
    assert export.class_names(signatures, None if counted else 2) == ["cat", "Hund"]
    assert export.class_names({}) == []
    assert set(signatures["class_name"](index=np.array([1]))) == {"label", *(["num_classes"] if counted else [])}


def test_exports_at_the_same_time_take_different_numbers(tmp_path):
    (tmp_path / "4").mkdir()
    with export.reserved(tmp_path, None) as one, export.reserved(tmp_path, None) as other:
        assert (one.name, other.name) == ("5", "6")
        with pytest.raises(UserError, match="5 is being written by another export"), export.reserved(tmp_path, 5):
            pass
        one.mkdir()
    with export.reserved(tmp_path, None) as next_one, export.reserved(tmp_path, 9) as given:
        assert (next_one.name, given.name) == ("6", "9")
    assert [path.name for path in tmp_path.glob(".*")] == []
