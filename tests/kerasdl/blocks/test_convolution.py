import math

import block_checks
import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf

from kerasdl.blocks.convolution import (
    Bias,
    DiracUniform,
    WhiteningConvolution,
    convolution,
    coordinates,
    squeeze_excite,
    whitening_kernel,
)
from kerasdl.fast.kernel_gradient import QuickGradientConv2D, QuickGradientConv2DTranspose


def image(shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("normalization", [True, False])
@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
def test_convolution_equals_oracle(kernel_size, strides, normalization):
    inputs = keras.Input((None, None, 3))
    block = convolution(inputs, 4, kernel_size=kernel_size, strides=strides, normalization=normalization, name="block")
    model = keras.Model(inputs, block)
    block_checks.random_weights(model)
    w = block_checks.weights_of(model)
    for height, width in ((7, 8), (6, 5)):
        x = image((2, height, width, 3))
        padded = oracles.pad_even(x, kernel_size)
        y = oracles.conv2d(padded, w["block/kernel"], w.get("block_bias/bias", 0.0), strides, "valid")
        if normalization:
            statistics = w["block_norm/moving_mean"], w["block_norm/moving_variance"]
            y = oracles.batch_norm(y, *statistics, w["block_norm/gamma"], w["block_norm/beta"])
        np.testing.assert_allclose(model(x), oracles.relu(y), rtol=1e-4, atol=1e-5)
        assert y.shape == (2, math.ceil(height / strides), math.ceil(width / strides), 4)
    assert block_checks.num_trainable(model) == kernel_size**2 * 3 * 4 + (8 if normalization else 4)
    assert block_checks.dead_weights(model, image((4, 7, 8, 3))) == []


def test_empty_batch():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, convolution(WhiteningConvolution()(inputs), 4, strides=2, name="block"))
    assert block_checks.shape_for_empty_batch(model, 8, 6, 3) == (0, 4, 3, 4)


def test_unstrided_convolution_pads_like_tensorflow():
    x, kernel = image((2, 6, 7, 3)), image((4, 4, 3, 2))
    padded = oracles.conv2d(oracles.pad_even(x, 4), kernel, padding="valid")
    np.testing.assert_allclose(oracles.conv2d(x, kernel, padding="same"), padded)
    np.testing.assert_allclose(keras.ops.conv(x, kernel, padding="same"), padded, rtol=1e-4, atol=1e-5)


def test_strided_convolution_is_centred_on_the_subsampled_pixels():
    """With the identity as kernel it must return every second pixel, as the padded shortcut does."""
    inputs = keras.Input((8, 8, 3))
    block = convolution(inputs, 3, strides=2, normalization=False, activation="linear", name="block")
    model = keras.Model(inputs, block)
    kernel = np.zeros((3, 3, 3, 3))
    kernel[1, 1] = np.eye(3)
    model.get_layer("block").kernel.assign(kernel)
    x = image((2, 8, 8, 3))
    np.testing.assert_allclose(model(x), x[:, ::2, ::2], rtol=1e-6)


def test_convolution_names_and_momentum():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, convolution(inputs, 4, strides=2, activation="gelu", name="stem"))
    assert [layer.name for layer in model.layers[1:]] == ["stem_pad", "stem", "stem_norm", "stem_activation"]
    assert model.get_layer("stem_norm").momentum == 0.9


@pytest.mark.parametrize(("channels", "ratio", "squeezed"), [(32, 16, 2), (32, 4, 8), (6, 16, 1)])
def test_squeeze_excite_equals_oracle(channels, ratio, squeezed):
    inputs = keras.Input((None, None, channels))
    model = keras.Model(inputs, squeeze_excite(inputs, ratio=ratio, name="se"))
    block_checks.random_weights(model)
    w = block_checks.weights_of(model)
    x = image((2, 5, 3, channels))
    expected = oracles.squeeze_excite(
        x, w["se_squeeze/kernel"], w["se_squeeze/bias"], w["se_excite/kernel"], w["se_excite/bias"]
    )
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)
    assert model(x[:0]).shape == (0, 5, 3, channels)
    assert block_checks.num_trainable(model) == 2 * channels * squeezed + squeezed + channels
    assert block_checks.dead_weights(model, image((16, 5, 3, channels))) == []


def test_dirac_uniform_passes_channels_on():
    kernel = np.asarray(DiracUniform(seed=0)((3, 3, 5, 8)))
    x = image((2, 6, 6, 5))
    np.testing.assert_allclose(oracles.conv2d(x, kernel)[..., :5], x, atol=1e-12)
    random, bound = kernel[..., 5:], 1 / math.sqrt(3 * 3 * 5)
    assert 0.9 * bound < np.abs(random).max() <= bound
    assert abs(random.std() * math.sqrt(3) / bound - 1) < 0.15  # uniform: bound / sqrt(3)
    narrow = np.asarray(DiracUniform(seed=0)((3, 3, 5, 2)))
    np.testing.assert_allclose(oracles.conv2d(x, narrow), x[..., :2], atol=1e-12)


def test_dirac_uniform_reloads_with_its_seed():
    initializer = DiracUniform(seed=3)
    reloaded = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(initializer))
    shape = (3, 3, 2, 6)
    np.testing.assert_array_equal(reloaded(shape), initializer(shape))
    assert np.any(np.asarray(DiracUniform(seed=4)(shape)) != np.asarray(initializer(shape)))


@pytest.mark.parametrize(("kernel_size", "channels"), [(2, 3), (3, 1)])
def test_whitening_kernel_whitens(kernel_size, channels):
    """Over the images' patches, outputs have second moment eigenvalue / (eigenvalue + epsilon), else zero."""
    rng = np.random.default_rng(0)
    # Neighbours and channels hang together, as in photographs.
    images = np.cumsum(rng.normal(size=(40, 9, 9, channels)), axis=1).cumsum(axis=3).astype("float32")
    images -= images.mean()
    kernel = whitening_kernel(images, kernel_size=kernel_size)
    half = kernel_size**2 * channels
    assert kernel.shape == (kernel_size, kernel_size, channels, 2 * half)
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel[..., half:], -kernel[..., :half])
    outputs = oracles.conv2d(images, kernel[..., :half], padding="valid").reshape(-1, half)
    patches = oracles.windows(np.float64(images), kernel_size, 1).reshape(-1, half)
    eigenvalues = np.linalg.eigvalsh(patches.T @ patches / len(patches))[::-1]
    moment = outputs.T @ outputs / len(outputs)
    np.testing.assert_allclose(moment, np.diag(eigenvalues / (eigenvalues + 5e-4)), atol=2e-3)


def test_whitening_kernel_repeats_what_the_images_have_in_place_of_what_they_do_not():
    """Grey images, a channel that is constant but for rounding, one that is, and images that are all alike."""
    rng = np.random.default_rng(0)
    grey = rng.normal(size=(50, 9, 9, 1)).cumsum(1).cumsum(2).astype("float32")
    grey = (grey - grey.mean()) / grey.std()
    rounding = rng.uniform(-0.5 / 60, 0.5 / 60, grey.shape)
    kinds = {
        "grey": np.concatenate([grey, grey, grey], -1),
        "almost": np.concatenate([rounding, grey, 0 * grey], -1).astype("float32"),
        "green": np.concatenate([0 * grey, grey, 0 * grey], -1),
    }
    colour = rng.normal(size=(1, 9, 9, 3)).astype("float32") * 4
    for name, images in kinds.items():
        kernel = whitening_kernel(images)
        columns = kernel[..., :12].reshape(12, 12).T
        assert np.abs(columns).max(1).min() > 0, name
        np.testing.assert_array_equal(columns, columns[[0, 1, 2, 3] * 3], err_msg=name)
        assert len(np.unique(columns, axis=0)) == 4
        assert np.abs(oracles.conv2d(colour, kernel, padding="valid")).max() < 150, name
    assert not whitening_kernel(np.zeros((5, 9, 9, 3))).any()


@pytest.mark.parametrize("shape", [(9, 9, 3), (0, 9, 9, 3), (4, 1, 9, 3)])
def test_whitening_kernel_refuses_what_has_no_patch(shape):
    with pytest.raises(ValueError, match=r"got images of shape .*, expected \[num_images, height"):
        whitening_kernel(np.zeros(shape))


def test_whitening_convolution_equals_oracle_and_trains_its_bias_only(tmp_path):
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, WhiteningConvolution(name="whiten")(inputs))
    layer = model.get_layer("whiten")
    x = image((2, 6, 5, 3))
    # As built: each pixel of the 2x2 patch, then its negative.
    np.testing.assert_allclose(model(x)[:, 0, 0, :3], x[:, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(model(x)[:, 0, 0, -3:], -x[:, 1, 1], rtol=1e-6)
    block_checks.random_weights(model)
    w = block_checks.weights_of(model)
    expected = oracles.conv2d(x, w["whiten/kernel"], w["whiten/bias"], padding="valid")
    assert expected.shape == (2, 5, 4, 24)
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)
    assert [weight.name for weight in layer.trainable_weights] == ["bias"]
    assert [weight.name for weight in layer.non_trainable_weights] == ["kernel"]
    assert block_checks.dead_weights(model, x) == []
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(x), model(x))


def test_whitening_bias_gradient_survives_bfloat16():
    """Summed in bfloat16 over a batch of pictures, the gradient of a bias would be off by half."""
    layer = WhiteningConvolution(dtype="mixed_bfloat16")
    x = image((64, 32, 32, 3))
    with tf.GradientTape() as tape:
        y = layer(x)
    gradient = tape.gradient(y, layer.bias.value)
    np.testing.assert_allclose(gradient, np.full(24, 64 * 31 * 31), rtol=0.01)


def test_bias_is_added_and_its_gradient_survives_bfloat16(tmp_path):
    """Keras' own would be off by half."""
    inputs = keras.Input((32, 32, 8), dtype="bfloat16")
    model = keras.Model(inputs, Bias(dtype="mixed_bfloat16", name="bias")(inputs))
    layer = model.get_layer("bias")
    layer.bias.assign(np.arange(8))
    x = tf.cast(image((64, 32, 32, 8)), tf.bfloat16)
    upstream = tf.cast(image(x.shape, seed=2) + 0.1, tf.bfloat16)
    with tf.GradientTape() as tape:
        y = model(x)
    np.testing.assert_array_equal(tf.cast(y, tf.float32), tf.cast(x + tf.range(8, dtype=tf.bfloat16), tf.float32))
    gradient = tape.gradient(y, layer.bias.value, upstream)
    np.testing.assert_allclose(gradient, np.sum(tf.cast(upstream, tf.float64), axis=(0, 1, 2)), rtol=0.01)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras").get_weights()[0], np.arange(8))


def assert_same_gradients(ours, theirs, x, filters):
    """Of two models with one kernel each; of pictures and kernel, in training."""
    ours.set_weights(theirs.get_weights())

    def gradients(model):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.function(model)(x, training=True)
        upstream = tf.cast(image((*y.shape[:3], filters), seed=2), y.dtype)
        return y, tape.gradient(y, [x, model.trainable_variables[0].value], upstream)

    (y, (dx, dw)), (expected, (expected_dx, expected_dw)) = gradients(ours), gradients(theirs)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(dw, expected_dw, rtol=1e-3, atol=5e-3)
    assert np.abs(expected_dw).max() > 1


@pytest.mark.parametrize("kernel_size", [1, 2, 3, (3, 5)])
@pytest.mark.parametrize(
    ("batch", "size", "channels"), [(5, (7, 5), 128), (5, (9, 9), 128), (501, (3, 3), 128), (501, (4, 4), 3)]
)
def test_quick_gradient_equals_keras(batch, size, channels, kernel_size):
    """Small and large maps, one and several chunks with a remainder, many and few channels."""
    # float64, since float32 is computed in another way: tests/kerasdl/fast/test_winograd.py
    options = {"padding": "same", "use_bias": False, "activation": "relu", "dtype": "float64"}
    inputs = keras.Input((None, None, channels), dtype="float64")
    theirs = keras.Model(inputs, keras.layers.Conv2D(130, kernel_size, **options)(inputs))
    ours = keras.Model(inputs, QuickGradientConv2D(130, kernel_size, **options)(inputs))
    assert_same_gradients(ours, theirs, tf.constant(image((batch, *size, channels)), tf.float64), 130)


@pytest.mark.parametrize(("kernel_size", "strides"), [(4, 2), (3, 2), (2, 2), ((3, 5), 3), (1, 2)])
@pytest.mark.parametrize(
    ("batch", "size", "channels"), [(5, (12, 6), 64), (3, (18, 24), 64), (251, (6, 6), 64), (5, (6, 6), 3)]
)
@pytest.mark.parametrize("transposed", [False, True])
def test_quick_gradient_of_a_stride_equals_keras(transposed, batch, size, channels, kernel_size, strides):
    """As above; a kernel smaller than its stride is left to Keras."""
    options = {"strides": strides, "padding": "same", "use_bias": False, "dtype": "float64"}
    theirs, ours = keras.layers.Conv2D, QuickGradientConv2D
    if transposed:
        theirs, ours = keras.layers.Conv2DTranspose, QuickGradientConv2DTranspose
        size = tuple(side // strides for side in size)
    inputs = keras.Input((*size, channels), dtype="float64")
    models = [keras.Model(inputs, kind(66, kernel_size, **options)(inputs)) for kind in (ours, theirs)]
    assert_same_gradients(*models, tf.constant(image((batch, *size, channels)), tf.float64), 66)


def test_quick_gradient_is_used_where_it_says_and_not_in_inference():
    def operations(kind=QuickGradientConv2D, *, training=True, channels=128, size=None, batch=None, **options):
        layer = kind(128, 3, **{"padding": "same", "use_bias": False, "dtype": "mixed_bfloat16"} | options)
        layer.build((None, size, size, channels))

        @tf.function
        def step(x):
            with tf.GradientTape() as tape:
                y = layer(x, training=training)
            return tape.gradient(y, layer.kernel.value)

        graph = step.get_concrete_function(tf.TensorSpec([batch, size, size, channels])).graph
        return {operation.type.removeprefix("Stateless") for operation in graph.get_operations()}

    # A loop in each branch of a conditional would keep TensorFlow from optimizing the graph.
    assert "If" not in operations() >= {"While"}
    assert "While" in operations(channels=64)
    assert "If" not in operations(size=8)  # a map of known size needs no choice, a small batch no loop
    assert "While" in operations(channels=64, size=8, strides=2)
    assert "While" in operations(QuickGradientConv2DTranspose, channels=64, size=8, strides=2, batch=251)
    alone = operations(channels=64, size=8, strides=2, batch=250)
    assert not {"If", "While", "Conv2DBackpropFilter"} & alone
    assert "Conv2DBackpropFilter" in operations(size=16, batch=500)
    unknown_size, odd_size = operations(strides=2), operations(strides=2, size=7)
    for usual in (operations(training=False), operations(use_bias=True), unknown_size, odd_size):
        assert not {"If", "While"} & usual
        assert "Conv2DBackpropFilter" in usual


def test_coordinates_go_downwards_and_to_the_right():
    x = keras.Input((2, 3, 4))
    result = keras.Model(x, coordinates(x, name="place"))(np.ones((5, 2, 3, 4), np.float32)).numpy()
    np.testing.assert_array_equal(result[..., :4], 1)
    np.testing.assert_array_equal(result[4, ..., 4], [[-1] * 3, [1] * 3])
    np.testing.assert_array_equal(result[4, ..., 5], [[-1, 0, 1]] * 2)
    with pytest.raises(ValueError, match="known height and width"):
        coordinates(keras.Input((None, 3, 4)), name="place")
