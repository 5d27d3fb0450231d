import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf

from kerasdl.fast.batch_normalization import FusedBatchNormalization

OPTIONS = [{}, {"scale": False}, {"center": False}, {"scale": False, "center": False}]
IDS = ["both", "no-scale", "no-center", "neither"]


def pair(channels=3, rank=4, **options):
    """The fused layer and Keras' own, with the same random weights."""
    rng = np.random.default_rng(0)
    layers = FusedBatchNormalization(**options), keras.layers.BatchNormalization(**options)
    for layer in layers:
        layer.build((None,) * (rank - 1) + (channels,))
    for fused, reference in zip(layers[0].weights, layers[1].weights, strict=True):
        value = rng.uniform(0.5, 1.5, channels)
        fused.assign(value)
        reference.assign(value)
    return layers


def image(shape=(4, 5, 3, 3), seed=1):
    return np.random.default_rng(seed).normal(2, 3, shape).astype("float32")


def uses_kernel(layer, shape, dtype="float32", training=True):
    function = tf.function(lambda x: layer(x, training=training), autograph=False)
    graph = function.get_concrete_function(tf.TensorSpec(shape, dtype)).graph
    return any(node.type == "FusedBatchNormV3" for node in graph.get_operations())


def moving(layer):
    return {weight.name: np.asarray(weight) for weight in layer.non_trainable_weights}


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_training_equals_oracle(options):
    layer, _ = pair(momentum=0.7, epsilon=1e-2, **options)
    weights = {weight.name: np.asarray(weight) for weight in layer.weights}
    x = image()
    expected, mean, variance = oracles.batch_norm_training(
        x,
        weights["moving_mean"],
        weights["moving_variance"],
        0.7,
        weights.get("gamma", 1.0),
        weights.get("beta", 0.0),
        1e-2,
    )
    np.testing.assert_allclose(layer(x, training=True), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_inference_equals_oracle_and_leaves_the_averages(options):
    layer, _ = pair(epsilon=1e-2, **options)
    weights = {weight.name: np.asarray(weight) for weight in layer.weights}
    expected = oracles.batch_norm(
        image(),
        weights["moving_mean"],
        weights["moving_variance"],
        weights.get("gamma", 1.0),
        weights.get("beta", 0.0),
        1e-2,
    )
    np.testing.assert_allclose(layer(image(), training=False), expected, rtol=1e-4, atol=1e-5)
    for name, value in moving(layer).items():
        np.testing.assert_array_equal(value, weights[name])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_gradients_and_averages_equal_keras(options, trainable, training):
    layers = pair(momentum=0.8, trainable=trainable, **options)
    upstream = image(seed=2)
    results = []
    for layer in layers:
        x = tf.constant(image())
        variables = [w.value for w in layer.weights if w.name in ("gamma", "beta")]
        with tf.GradientTape() as tape:
            tape.watch([x, *variables])
            y = layer(x, training=training)
        gradients = tape.gradient(y, [x, *variables], upstream)
        results.append([y, *gradients, *moving(layer).values()])
    for ours, keras_own in zip(*results, strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=1e-4, atol=1e-4)


def test_frozen_layer_uses_the_moving_averages():
    layer, _ = pair(trainable=False)
    before = moving(layer)
    np.testing.assert_array_equal(layer(image(), training=True), layer(image(), training=False))
    for name, value in moving(layer).items():
        np.testing.assert_array_equal(value, before[name])


def test_single_pixel_batch_has_zero_variance():
    """One value a channel: the kernel's Bessel correction would divide by zero."""
    ours, keras_own = pair(momentum=0.5)
    x = image((1, 1, 1, 3))
    np.testing.assert_allclose(ours(x, training=True), keras_own(x, training=True), atol=1e-5)
    for name, value in moving(ours).items():
        np.testing.assert_allclose(value, moving(keras_own)[name], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_keeps_float32_weights_and_statistics(dtype):
    ours, keras_own = pair(dtype=dtype, momentum=0.5)
    # Exact in half precision; the mean is large, so that statistics in bfloat16 would be off by percents.
    x = np.random.default_rng(3).integers(95, 106, (8, 6, 6, 3)).astype("float32")
    y = ours(x, training=True)
    assert y.dtype == ours.compute_dtype
    assert {weight.dtype for weight in ours.weights} == {"float32"}
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    start = {name: np.asarray(value) for name, value in moving(keras_own).items()}
    np.testing.assert_allclose(ours.moving_mean, 0.5 * start["moving_mean"] + 0.5 * mean, rtol=1e-5)
    np.testing.assert_allclose(ours.moving_variance, 0.5 * start["moving_variance"] + 0.5 * variance, rtol=1e-3)
    np.testing.assert_allclose(
        tf.cast(y, tf.float32), tf.cast(keras_own(x, training=True), tf.float32), rtol=2e-2, atol=2e-2
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("training", [True, False])
def test_images_take_the_fused_kernel(dtype, training):
    policy = "float32" if dtype == "float32" else f"mixed_{dtype}"
    layer, _ = pair(dtype=policy)
    assert uses_kernel(layer, (None, None, None, 3), dtype, training)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (6, 3)),
        ({}, (2, 5, 3)),
        ({"axis": 1}, (2, 3, 4, 5)),
        ({"dtype": "float64"}, (2, 4, 5, 3)),
        ({"renorm": True}, (2, 4, 5, 3)),
    ],
    ids=["dense", "sequence", "channels-first", "float64", "renorm"],
)
def test_everything_else_is_left_to_keras(options, shape):
    layers = FusedBatchNormalization(**options), keras.layers.BatchNormalization(**options)
    x = image(shape)
    ours, keras_own = (layer(x, training=True) for layer in layers)
    assert not uses_kernel(layers[0], shape, layers[0].compute_dtype)
    np.testing.assert_array_equal(ours, keras_own)
    for name, value in moving(layers[0]).items():
        np.testing.assert_array_equal(value, moving(layers[1])[name])


def test_mask_is_left_to_keras():
    layers = pair()
    x = image()
    mask = np.random.default_rng(4).random(x.shape[:3]) < 0.5
    ours, keras_own = (np.asarray(layer(x, training=True, mask=mask)) for layer in layers)
    np.testing.assert_array_equal(ours, keras_own)
    assert np.abs(ours - pair()[0](x, training=True)).max() > 0.01  # the mask does matter


def test_empty_batch_in_inference():
    layer, _ = pair()
    assert layer(np.zeros((0, 5, 3, 3), "float32"), training=False).shape == (0, 5, 3, 3)


def test_config_and_weights_are_those_of_keras():
    layer, _ = pair(momentum=0.6, scale=False, name="norm")
    layer(image(), training=True)
    keras_own = keras.layers.BatchNormalization.from_config(layer.get_config())
    keras_own.build((None, None, None, 3))
    assert [w.path for w in layer.weights] == [w.path for w in keras_own.weights]
    keras_own.set_weights(layer.get_weights())
    np.testing.assert_allclose(keras_own(image()), layer(image()), rtol=1e-4, atol=1e-5)


def test_saved_model_reloads(tmp_path):
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, FusedBatchNormalization(momentum=0.6, scale=False, name="norm")(inputs))
    model(image(), training=True)
    expected = model(image(), training=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.get_layer("norm")) is FusedBatchNormalization
    np.testing.assert_array_equal(loaded(image(), training=False), expected)
