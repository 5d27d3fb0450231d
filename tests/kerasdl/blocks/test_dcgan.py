import math

import block_checks
import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf

from kerasdl.blocks import dcgan
from kerasdl.fast.batch_normalization import FusedBatchNormalization
from kerasdl.training.precision import precision

RNG = np.random.default_rng(0)
LATENT, CLASSES = 6, 3
LABEL = np.array([2, 0, 2, 1, 0], np.int32)


@pytest.fixture(autouse=True)
def _same_initial_weights():
    keras.utils.set_random_seed(0)


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def generator(size=16, filters=2, *, conditional=False, latent=LATENT, **options):
    x, label = keras.Input((latent,)), keras.Input((), dtype="int32")
    if conditional:
        options |= {"label": label, "num_classes": CLASSES}
    return keras.Model([x, label] if conditional else x, dcgan.dcgan_generator(x, size, filters, name="g", **options))


def discriminator(size=16, filters=2, *, conditional=False, channels=3, **options):
    x, label = keras.Input((size, size, channels)), keras.Input((), dtype="int32")
    if conditional:
        options |= {"label": label, "num_classes": CLASSES}
    return keras.Model([x, label] if conditional else x, dcgan.dcgan_discriminator(x, filters, name="d", **options))


def batch_norm(w, name, x):
    statistics = w[f"{name}/moving_mean"], w[f"{name}/moving_variance"]
    return oracles.batch_norm(x, *statistics, w[f"{name}/gamma"], w[f"{name}/beta"])


def transposed_conv(x, kernel, bias=0.0):
    """Each pixel paints its kernel, 4x4 [height, width, out, in], at twice its place; a border of one is cut off."""
    batch, height, width, _ = x.shape
    painted = np.zeros((batch, 2 * height + 2, 2 * width + 2, kernel.shape[2]))
    for i in range(height):
        for j in range(width):
            painted[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum("nc,abfc->nabf", x[:, i, j], kernel)
    return painted[:, 1:-1, 1:-1] + bias


def generator_oracle(w, x, stages):
    x = (x @ w["g_project/kernel"]).reshape(len(x), 4, 4, -1)
    x = oracles.relu(batch_norm(w, "g_project_norm", x))
    for stage in range(stages):
        x = transposed_conv(x, w[f"g_stage{stage}_conv/kernel"])
        x = oracles.relu(batch_norm(w, f"g_stage{stage}_norm", x))
    return np.tanh(transposed_conv(x, w["g_picture/kernel"], w["g_picture_bias/bias"]))


def append_deviation(x):
    value = np.sqrt(x.var(axis=0) + 1e-8).mean()
    return np.concatenate([x, np.full_like(x[..., :1], value)], -1)


def features_oracle(w, x, stages, deviation):
    for stage in range(stages):
        if deviation and stage == stages - 1:
            x = append_deviation(x)
        name = f"d_stage{stage}"
        x = oracles.conv2d(x, w[f"{name}_conv/kernel"], w.get(f"{name}_bias/bias", 0.0), 2)
        if stage:
            x = batch_norm(w, f"{name}_norm", x)
        x = np.where(x > 0, x, 0.2 * x)
    return x.reshape(len(x), -1)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(("size", "stages"), [(16, 1), (32, 2)])
def test_generator_equals_oracle(size, stages, conditional):
    model = generator(size, conditional=conditional, channels=2)
    block_checks.random_weights(model)
    latent = normal(5, LATENT)
    inputs, seen = latent, latent
    if conditional:
        inputs, seen = [latent, LABEL], np.concatenate([latent, np.eye(CLASSES)[LABEL]], -1)
    picture = model(inputs)
    assert picture.shape == (5, size, size, 2)
    np.testing.assert_allclose(
        picture, generator_oracle(block_checks.weights_of(model), seen, stages), rtol=1e-4, atol=1e-5
    )
    assert block_checks.dead_weights(model, inputs) == []
    assert all(layer.name.startswith("g_") for layer in model.layers if layer.weights)


@pytest.mark.parametrize("deviation", [False, True])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(("size", "stages"), [(16, 2), (32, 3)])
def test_discriminator_equals_oracle(size, stages, conditional, deviation):
    model = discriminator(size, conditional=conditional, minibatch_deviation=deviation)
    block_checks.random_weights(model)
    w = block_checks.weights_of(model)
    pictures = normal(5, size, size, 3)
    features = features_oracle(w, np.float64(pictures), stages, deviation)
    expected = features @ w["d_logits/kernel"] + w["d_logits/bias"]
    if conditional:
        # y^T V phi(x), with the vectors of the classes for columns
        expected[:, 0] += np.sum(w["d_projection/kernel"][:, LABEL].T * features, -1)
    inputs = [pictures, LABEL] if conditional else pictures
    logits = model(inputs)
    assert logits.shape == (5, 1)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert block_checks.dead_weights(model, inputs) == []


def test_a_spectral_discriminator_is_the_plain_one_with_divided_kernels():
    model = discriminator(16, conditional=True, normalization="spectral", minibatch_deviation=True)
    block_checks.random_weights(model)
    pictures = normal(5, 16, 16, 3)
    assert block_checks.dead_weights(model, [pictures, LABEL]) == []
    for _ in range(200):  # until the power iterations have ended
        model([pictures, LABEL], training=True)
    w = {
        f"{getattr(layer, 'layer', layer).name}/{weight.name}": np.asarray(weight, np.float64)
        for layer in model.layers
        for weight in layer.weights
    }
    assert {name for name in w if name.endswith("kernel")} == {
        f"d_{part}/kernel" for part in ("stage0_conv", "stage1_conv", "logits", "projection")
    }
    assert not any(isinstance(layer, FusedBatchNormalization) for layer in model.layers)
    for name, value in w.items():
        if name.endswith("kernel"):
            w[name] = value / np.linalg.svd(value.reshape(-1, value.shape[-1]), compute_uv=False)[0]
    x = np.float64(pictures)
    for stage in range(2):
        x = append_deviation(x) if stage else x
        x = oracles.conv2d(x, w[f"d_stage{stage}_conv/kernel"], w[f"d_stage{stage}_bias/bias"], 2)
        x = np.where(x > 0, x, 0.2 * x)
    features = x.reshape(5, -1)
    expected = features @ w["d_logits/kernel"] + w["d_logits/bias"]
    expected[:, 0] += np.sum(w["d_projection/kernel"][:, LABEL].T * features, -1)
    np.testing.assert_allclose(model([pictures, LABEL]), expected, rtol=1e-3, atol=1e-4)


def test_empty_batch():
    assert block_checks.shape_for_empty_batch(generator(), LATENT) == (0, 16, 16, 3)
    assert block_checks.shape_for_empty_batch(discriminator(minibatch_deviation=True), 16, 16, 3) == (0, 1)


@pytest.mark.parametrize("build", [generator, discriminator])
def test_the_class_matters(build):
    model = build(conditional=True)
    block_checks.random_weights(model)
    x = normal(*model.inputs[0].shape[1:])[None].repeat(CLASSES, 0)
    outputs = np.asarray(model([x, np.arange(CLASSES)])).reshape(CLASSES, -1)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(outputs[i] - outputs[j]).max() > 0.01
    np.testing.assert_array_equal(model([x, np.ones(CLASSES, np.int32)]).numpy()[1].ravel(), outputs[1])


def test_parameters_are_those_of_the_64_pixel_networks():
    """PyTorch's DCGAN example, 64 filters: 3,576,704 and 2,765,568; it has no bias where no batch norm follows."""
    with block_checks.unallocated():
        small, judge = generator(64, 64, latent=100), discriminator(64, 64)
        assert block_checks.num_trainable(small) == 3_576_704 + 3
        assert block_checks.num_trainable(judge) == 2_765_568 + 64 + 1
        paper = generator(64, 128, latent=100)
        widths = [1024, 512, 256, 128]  # figure 1
        kernels = 100 * 16 * 1024 + sum(16 * a * b for a, b in zip(widths, [*widths[1:], 3], strict=True))
        assert block_checks.num_trainable(paper) == kernels + 2 * sum(widths) + 3
        assert [layer.filters for layer in paper.layers if "conv" in layer.name] == widths[1:]


def test_larger_pictures_add_stages_no_wider_than_eight_times():
    with block_checks.unallocated():
        paint, judge = generator(256, 2), discriminator(256, 2)
        assert paint.output.shape == (None, 256, 256, 3)
        assert paint.get_layer("g_map").target_shape == (4, 4, 16)
        filters = [layer.filters for layer in judge.layers if layer.name.endswith("_conv")]
    assert filters == [2, 4, 8, 16, 16, 16]


def test_initial_weights_are_normal_with_deviation_two_hundredths():
    for model in (generator(32, 16, conditional=True), discriminator(32, 16, conditional=True)):
        kernels = [weight for weight in model.weights if weight.name == "kernel"]
        for kernel in kernels:
            value = np.asarray(kernel)
            error = 0.02 / math.sqrt(value.size)
            assert abs(value.mean()) < 5 * error
            assert abs(value.std() - 0.02) < 5 * error


@pytest.mark.parametrize("size", [8, 24, 33])
def test_sizes_that_are_no_power_of_two_from_16_are_refused(size):
    with pytest.raises(ValueError, match=rf"'g': pictures of {size} pixels, expected 16, 32, 64"):
        generator(size)
    with pytest.raises(ValueError, match=rf"'d': pictures of {size} pixels, expected 16, 32, 64"):
        discriminator(size)


def test_pictures_of_unknown_size_or_not_square_are_refused():
    with pytest.raises(ValueError, match="'d': pictures of None pixels, expected"):
        dcgan.dcgan_discriminator(keras.Input((None, None, 3)), 2, name="d")
    with pytest.raises(ValueError, match="'d': pictures are 32x16, expected squares"):
        dcgan.dcgan_discriminator(keras.Input((32, 16, 3)), 2, name="d")


@pytest.mark.parametrize("options", [{"num_classes": 3}, {"label": keras.Input((), dtype="int32")}])
@pytest.mark.parametrize("build", [generator, discriminator])
def test_a_label_needs_its_number_of_classes(build, options):
    with pytest.raises(ValueError, match=r"label is .* and num_classes is .*, expected both or none"):
        build(**options)


@pytest.mark.parametrize("conditional", [False, True])
def test_bfloat16_ends_in_float32(conditional):
    with precision("bfloat16"):
        paint = generator(conditional=conditional)
        judge = discriminator(conditional=conditional, normalization="spectral", minibatch_deviation=True)
    latent = [normal(5, LATENT), LABEL] if conditional else normal(5, LATENT)
    picture = paint(latent)
    shown = [picture, tf.constant(LABEL)] if conditional else picture
    logits = judge(shown)
    assert picture.dtype == logits.dtype == "float32"
    final = [layer for layer in judge.layers if layer.name.startswith(("d_logits", "d_product", "d_conditioned"))]
    assert {layer.compute_dtype for layer in final} == {"float32"}
    assert len(final) == (3 if conditional else 1)
    assert paint.get_layer("g_picture").compute_dtype == "bfloat16"
    assert judge.get_layer("d_stage0_activation").compute_dtype == "bfloat16"
    assert {weight.dtype for model in (paint, judge) for weight in model.weights} == {"float32"}
    assert block_checks.dead_weights(paint, latent) == []
    assert block_checks.dead_weights(judge, shown) == []


# --- Minibatch standard deviation ------------------------------------------------------------------------------------


def deviation_model(**options):
    x = keras.Input((3, 2, 4), **options)
    return keras.Model(x, dcgan.minibatch_standard_deviation(x, name="deviation"))


def test_deviation_equals_oracle_and_worked_example():
    x = normal(5, 3, 2, 4)
    np.testing.assert_allclose(deviation_model()(x), append_deviation(np.float64(x)), rtol=1e-5)
    pair = np.zeros((2, 3, 2, 4), "float32")
    pair[1, ..., 0] = 4  # deviation 2 in one of four channels
    np.testing.assert_allclose(deviation_model()(pair)[..., -1], 0.5, rtol=1e-3)


def test_deviation_of_equal_maps_is_nearly_zero_with_a_finite_gradient():
    x = tf.ones((3, 3, 2, 4))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = deviation_model()(x)
    assert np.abs(y[..., -1]).max() < 1e-3
    assert np.isfinite(tape.gradient(y, x)).all()


def test_deviation_of_bfloat16_is_precise():
    """Values near 100, all equal in bfloat16 arithmetic of squares."""
    x = (100 + RNG.integers(-2, 3, (64, 3, 2, 4))).astype("float32")
    y = deviation_model(dtype="bfloat16")(tf.cast(x, tf.bfloat16))
    np.testing.assert_allclose(tf.cast(y, tf.float32)[..., -1], append_deviation(x)[..., -1], rtol=0.01)


# --- Spectral normalization ------------------------------------------------------------------------------------------

PLAIN = [keras.layers.Dense(4, name="plain"), keras.layers.Conv2D(4, 3, 2, "same", name="plain")]


def spectral(plain, **options):
    layer = dcgan.SpectralNormalization(plain.__class__.from_config(plain.get_config() | options))
    layer.build((None, 6, 6, 5))
    layer.layer.kernel.assign(normal(*layer.layer.kernel.shape))
    layer.layer.bias.assign(normal(4))
    return layer


def largest(kernel):
    return np.linalg.svd(np.float64(kernel).reshape(-1, kernel.shape[-1]), compute_uv=False)[0]


@pytest.mark.parametrize("plain", PLAIN, ids=["dense", "conv"])
def test_kernel_is_divided_by_its_largest_singular_value(plain):
    layer, x = spectral(plain), normal(2, 6, 6, 5)
    kernel, bias = np.asarray(layer.layer.kernel), np.asarray(layer.layer.bias)
    for _ in range(100):
        trained = layer(x, training=True)
    np.testing.assert_allclose(layer(x), trained, rtol=1e-4, atol=1e-5)
    expected = plain.__class__.from_config(plain.get_config())
    expected.build(x.shape)
    expected.set_weights([kernel / largest(kernel), bias])
    np.testing.assert_allclose(trained, expected(x), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(layer.layer.kernel, kernel)
    assert np.abs(trained - layer.layer(x)).max() > 0.5  # the plain layer is left as it was


def test_each_call_in_training_is_one_power_iteration():
    layer, x = spectral(PLAIN[0]), normal(2, 6, 6, 5)
    kernel, u = np.float64(layer.layer.kernel), np.float64(layer.u)
    layer(x)
    np.testing.assert_array_equal(layer.u, np.float32(u))
    for _ in range(2):
        layer(x, training=True)
        v = kernel @ u / np.linalg.norm(kernel @ u)
        u = v @ kernel / np.linalg.norm(v @ kernel)
        np.testing.assert_allclose(layer.u, u, rtol=1e-4, atol=1e-6)


def test_gradient_flows_through_the_singular_value():
    layer, x = spectral(PLAIN[0]), normal(2, 6, 6, 5)
    for _ in range(100):
        layer(x, training=True)
    upstream = normal(2, 6, 6, 4, seed=3)
    with tf.GradientTape() as tape:
        y = layer(x, training=True)
    gradient = tape.gradient(y, layer.layer.kernel.value, upstream)
    kernel = np.float64(layer.layer.kernel)
    left, values, right = np.linalg.svd(kernel)
    plain = np.einsum("nijc,nijf->cf", x, upstream)
    along = np.sum(plain * kernel) / values[0]
    expected = (plain - along * np.outer(left[:, 0], right[0])) / values[0]
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3)
    assert abs(along) > 1  # what Keras' layer leaves out


def test_keras_layer_still_changes_its_kernel():
    """When this fails, Keras is mended: use its layer in place of ours."""
    layer = keras.layers.SpectralNormalization(keras.layers.Dense(4))
    x = normal(2, 5)
    layer(x)
    before = np.asarray(layer.layer.kernel)
    layer(x, training=True)
    assert np.abs(np.asarray(layer.layer.kernel) - before).max() > 0.01


def test_a_kernel_of_zeros_stays_one():
    layer = spectral(PLAIN[0])
    layer.layer.kernel.assign(np.zeros((5, 4)))
    y = layer(normal(2, 6, 6, 5), training=True)
    np.testing.assert_array_equal(y, np.broadcast_to(layer.layer.bias, y.shape))


def test_the_singular_value_is_computed_in_float32_and_the_layer_in_its_own_precision():
    wide = spectral(PLAIN[1])
    with precision("bfloat16"):
        narrow = spectral(PLAIN[1], dtype="mixed_bfloat16")
    narrow.u.assign(wide.u)
    x = normal(2, 6, 6, 5)
    expected, y = wide(x, training=True), narrow(x, training=True)
    assert y.dtype == "bfloat16"
    np.testing.assert_array_equal(narrow.u, wide.u)
    np.testing.assert_allclose(tf.cast(y, tf.float32), expected, rtol=0.05, atol=0.05)


def test_spectral_normalization_is_saved_with_its_vector(tmp_path):
    model = discriminator(normalization="spectral")
    model(normal(2, 16, 16, 3), training=True)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert sum(weight.name == "u" for weight in model.weights) == 3
    for one, other in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(model(normal(2, 16, 16, 3)), again(normal(2, 16, 16, 3)))
