import keras
import numpy as np
import pytest
from keras import ops

from kerasdl.errors import UserError
from kerasdl.figures import saliency


def corner_model(*, activation=None, dtype="float32", weight=1.0):
    """Logit of class 1: `weight` times the summed channel means of the upper left 4 x 4 pixels."""
    image = keras.Input((16, 16, 3), dtype=dtype)
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Cropping2D(((0, 12), (0, 12)), name="crop")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    kernel = np.array([[0, weight]] * 3, np.float32)
    dense = keras.layers.Dense(
        2, activation=activation, kernel_initializer=keras.initializers.Constant(kernel), name="head"
    )
    return keras.Model(image, dense(x), name="corner")


def occlusion(model, image, class_index, **options):
    return saliency.occlusion_saliency(model.predict_on_batch, image, class_index, **options)


def white_corner():
    image = np.zeros((16, 16, 3), np.uint8)
    image[:4, :4] = 255
    return image


def softmax(logits):
    exponents = np.exp(logits)
    return exponents / exponents.sum()


# --- activation maps ---


def test_activation_maps_of_a_known_convolution():
    image = keras.Input((6, 5, 1))
    x = keras.layers.Conv2D(2, 2, use_bias=False, name="conv")(image)
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(x))
    kernel = np.zeros((2, 2, 1, 2), np.float32)
    kernel[0, 0, 0, 0] = 1  # channel 0: the pixel itself
    kernel[1, 1, 0, 1] = -2  # channel 1: the pixel below on the right, times -2
    model.get_layer("conv").set_weights([kernel])
    picture = np.random.default_rng(0).normal(size=(6, 5, 1)).astype(np.float32)
    maps = saliency.activation_maps(model, picture, "conv")
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps[..., 0], picture[:-1, :-1, 0], rtol=1e-6)
    np.testing.assert_allclose(maps[..., 1], -2 * picture[1:, 1:, 0], rtol=1e-6)


def test_activation_maps_are_those_of_inference():
    image = keras.Input((4, 4, 1))
    model = keras.Model(image, keras.layers.Dropout(0.9, name="drop")(image))
    picture = np.ones((4, 4, 1), np.float32)
    np.testing.assert_array_equal(saliency.activation_maps(model, picture, "drop"), picture)


def test_activation_maps_of_the_first_layer_of_a_sequential_model():
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Rescaling(2.0, name="double")])
    maps = saliency.activation_maps(model, np.full((4, 4, 1), 3.0, np.float32), "double")
    np.testing.assert_array_equal(maps, np.full((4, 4, 1), 6.0))


def test_layer_that_is_a_model_of_its_own_is_refused():
    inner = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Rescaling(2.0)], name="inner")
    image = keras.Input((4, 4, 1))
    model = keras.Model(image, keras.layers.Rescaling(1.0, name="outer")(inner(image)))
    with pytest.raises(UserError, match=r"'inner' has no activation maps.*expected one of outer;"):
        saliency.activation_maps(model, np.zeros((4, 4, 1), np.float32), "inner")


@pytest.mark.parametrize("layer", ["head", "nothing"])
def test_layer_without_maps_names_those_with(layer):
    with pytest.raises(UserError, match=rf"'{layer}' has no activation maps.*expected one of .*crop; "):
        saliency.activation_maps(corner_model(), white_corner(), layer)


@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (16, 12, 3), (16, 16, 1)])
def test_image_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(16, 16, 3\)"):
        saliency.activation_maps(corner_model(), np.zeros(shape, np.float32), "crop")


# --- occlusion ---


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_occlusion_peaks_where_the_model_looks_and_is_zero_elsewhere(activation):
    image = white_corner()
    drop = occlusion(corner_model(activation=activation, weight=2.0), image, 1, window=4, stride=4)
    # With window = stride each pixel is hidden once. Hidden, the corner is grey: 255 / 16, the image's mean.
    expected = softmax([0, 3 * 2.0])[1] - softmax([0, 3 * 2.0 / 16])[1]
    np.testing.assert_allclose(drop[:4, :4], expected, rtol=1e-4)
    drop[:4, :4] = 0
    np.testing.assert_allclose(drop, 0, atol=1e-6)


def test_logits_that_sum_to_one_are_no_probabilities():
    image = keras.Input((4, 4, 1))
    logit = keras.layers.GlobalAveragePooling2D()(image)
    model = keras.Model(image, ops.concatenate([1 - logit, logit], axis=-1))
    picture = np.full((4, 4, 1), 0.5, np.float32)
    picture[:2, :2] = 4.5  # mean 1.5; hidden, the corner takes the mean, and the mean of all becomes 0.75
    drop = occlusion(model, picture, 1, window=2, stride=2)
    expected = softmax([-0.5, 1.5])[1] - softmax([0.25, 0.75])[1]
    np.testing.assert_allclose(drop[:2, :2], expected, rtol=1e-5)


def test_hiding_what_speaks_for_another_class_is_negative():
    drop = occlusion(corner_model(weight=2.0), white_corner(), 0, window=4, stride=4)
    assert drop[0, 0] < -0.3


def test_occlusion_averages_overlapping_windows():
    drop = occlusion(corner_model(weight=2.0), white_corner(), 1, window=4, stride=2)
    # The window that starts at pixel 6 and all after it leave the corner alone; nearer pixels are in between.
    assert drop[0, 0] == drop.max()
    assert 0 < drop[0, 4] < drop[0, 0]
    np.testing.assert_allclose(drop[6:], 0, atol=1e-6)
    np.testing.assert_allclose(drop[:, 6:], 0, atol=1e-6)


def test_occlusion_reaches_the_last_pixels():
    # 16 - 5 is no multiple of 3; a model that looks at the lower right corner must still be caught.
    image = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Cropping2D(((15, 0), (15, 0)))(image))
    model = keras.Model(image, ops.concatenate([ops.zeros_like(x), x], axis=-1))
    picture = np.zeros((16, 16, 3), np.float32)
    picture[15, 15] = 3.0
    drop = occlusion(model, picture, 5, window=5, stride=3)
    assert drop[15, 15] > 0.1
    assert np.abs(drop[:11, :11]).max() < 1e-6


def test_occlusion_of_a_model_that_does_not_look_is_zero():
    drop = occlusion(corner_model(weight=0.0), white_corner(), 1)
    np.testing.assert_allclose(drop, np.zeros((16, 16)), atol=1e-6)


def test_occlusion_in_many_batches_equals_one(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    model = corner_model(weight=2.0)
    expected = occlusion(model, image, 1, window=4, stride=3)
    monkeypatch.setattr(saliency, "_OCCLUSION_BATCH", 7)
    np.testing.assert_allclose(occlusion(model, image, 1, window=4, stride=3), expected, atol=1e-6)


def test_the_likeliest_class_of_a_picture_is_explained():
    model = corner_model(weight=2.0, activation="softmax")
    seen = []

    def predict(images):
        seen.append(images.dtype)
        return model.predict_on_batch(images)

    label, heat = saliency.of_likeliest(predict, white_corner())
    assert label == 1
    np.testing.assert_allclose(heat, occlusion(model, white_corner(), 1), atol=5e-3)  # the grey is rounded
    assert set(seen) == {np.dtype(np.uint8)}


@pytest.mark.parametrize(("window", "stride"), [(17, 4), (4, 5), (4, 0)])
def test_window_that_does_not_fit_is_refused(window, stride):
    with pytest.raises(ValueError, match="expected 1 <= stride <= window"):
        occlusion(corner_model(), white_corner(), 1, window=window, stride=stride)


@pytest.mark.parametrize("index", [-1, 2])
def test_class_that_does_not_exist_is_refused(index):
    with pytest.raises(UserError, match=f"no class {index}; expected 0 to 1"):
        occlusion(corner_model(), white_corner(), index)
