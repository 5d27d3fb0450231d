import io
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import prediction_log_pb2

from kerasdl import export
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
    np.testing.assert_allclose(signatures["serving_default"](x=tf.constant(x))["y"], model(x), rtol=1e-6)


def test_weights_are_written_once_and_the_optimizer_is_not(tmp_path):
    make(tmp_path / "toy" / "1")
    shapes = [shape for name, shape in tf.train.list_variables(str(tmp_path / "toy/1/variables/variables")) if shape]
    assert sorted(shapes) == [[2], [3, 2]]


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
        export._refuse_gpu_operations(tmp_path)
    make(tmp_path / "toy" / "1")
    export._refuse_gpu_operations(tmp_path / "toy" / "1")


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


def test_the_request_example_is_the_json_of_a_server(tmp_path):
    _, endpoint = make(tmp_path / "toy" / "1")
    assert json.loads(export.predict_request(endpoint)) == {"instances": [{"x": [1.0] * 3}] * 2}
