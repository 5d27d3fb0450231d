import math

import block_checks
import keras
import numpy as np
import oracles
import pytest
import scipy.linalg
import tensorflow as tf

from kerasdl.blocks.autoencoding import (
    CutTo,
    SparsityPenalty,
    convolutional_decoder,
    convolutional_encoder,
    dense_decoder,
    dense_encoder,
    resize_convolution,
    transposed_convolution,
    unet,
)
from kerasdl.training.precision import precision

UPSAMPLINGS = ["transposed", "resize"]
UP_BLOCKS = {"transposed": transposed_convolution, "resize": resize_convolution}


def image(shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def transposed_oracle(x, kernel, bias=0.0):
    """Each pixel of x adds x kernel[a, b] at its place times two; (size - 2) / 2 of the border are cut off."""
    size = len(kernel)
    batch, height, width, _ = x.shape
    y = np.zeros((batch, 2 * height + size - 2, 2 * width + size - 2, kernel.shape[2]))
    for row in range(height):
        for column in range(width):
            part = y[:, 2 * row : 2 * row + size, 2 * column : 2 * column + size]
            part += np.einsum("nc,abfc->nabf", np.float64(x[:, row, column]), kernel)
    cut = (size - 2) // 2
    return y[:, cut : cut + 2 * height, cut : cut + 2 * width] + bias


def resize_oracle(x, kernel, bias=0.0):
    return oracles.conv2d(x.repeat(2, axis=1).repeat(2, axis=2), kernel, bias)


def normalized(w, name, x):
    statistics = w[f"{name}/moving_mean"], w[f"{name}/moving_variance"]
    return oracles.batch_norm(x, *statistics, w[f"{name}/gamma"], w[f"{name}/beta"])


def activated(w, name, y):
    """What follows a block's convolution."""
    return oracles.relu(normalized(w, f"{name}_norm", y) if f"{name}_norm/gamma" in w else y)


def up_oracle(w, kind, name, x):
    convolve = {"transposed": transposed_oracle, "resize": resize_oracle}[kind]
    return activated(w, name, convolve(x, w[f"{name}/kernel"], w.get(f"{name}_bias/bias", 0.0)))


def build(block, shape, *sizes, **options):
    inputs = keras.Input(shape)
    return keras.Model(inputs, block(inputs, *sizes, name="b", **options))


@pytest.mark.parametrize("normalization", [True, False])
@pytest.mark.parametrize(
    ("kind", "kernel_size"), [("transposed", 2), ("transposed", 4), ("transposed", 6), ("resize", 3), ("resize", 5)]
)
def test_upsampling_equals_oracle(kind, kernel_size, normalization):
    model = build(UP_BLOCKS[kind], (None, None, 3), 4, kernel_size=kernel_size, normalization=normalization)
    block_checks.random_weights(model)
    x = image((2, 3, 5, 3))
    expected = up_oracle(block_checks.weights_of(model), kind, "b", x)
    assert expected.shape == (2, 6, 10, 4)
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)
    assert block_checks.shape_for_empty_batch(model, 3, 5, 3) == (0, 6, 10, 4)
    assert block_checks.num_trainable(model) == kernel_size**2 * 3 * 4 + (8 if normalization else 4)
    assert block_checks.dead_weights(model, image((4, 3, 5, 3))) == []


@pytest.mark.parametrize(("layer", "even"), [(2, True), (4, True), ("resize", True), (3, False), (5, False)])
def test_pixels_are_made_of_equally_many_terms_but_with_an_odd_transposed_kernel(layer, even):
    inputs = keras.Input((6, 6, 1))
    options = {"normalization": False, "activation": "linear", "name": "b"}
    if layer == "resize":
        output = resize_convolution(inputs, 1, **options)
    elif layer % 2 == 0:
        output = transposed_convolution(inputs, 1, kernel_size=layer, **options)
    else:
        output = keras.layers.Conv2DTranspose(1, layer, 2, "same", name="b")(inputs)
    model = keras.Model(inputs, output)
    model.get_layer("b").kernel.assign(np.ones(model.get_layer("b").kernel.shape))
    inner = model(np.ones((1, 6, 6, 1)))[0, 3:-3, 3:-3, 0].numpy()
    assert (np.ptp(inner) == 0) == even
    if isinstance(layer, int) and even:
        np.testing.assert_array_equal(inner, (layer / 2) ** 2)


@pytest.mark.parametrize(("kind", "kernel_size"), [("transposed", 2), ("transposed", 4), ("resize", 3)])
def test_initial_kernels_keep_the_scale_of_what_a_relu_leaves(kind, kernel_size):
    """He et al.: the mean square doubles, since the nonlinearity will halve it; whatever the widths."""
    keras.utils.set_random_seed(1)
    x = oracles.relu(image((4, 8, 8, 96)))
    model = build(UP_BLOCKS[kind], (8, 8, 96), 64, kernel_size=kernel_size, normalization=False, activation="linear")
    inner = model(x).numpy()[:, 2:-2, 2:-2]
    # A repeated pixel meets several taps at once; over random kernels that changes no mean square.
    assert np.mean(inner**2) == pytest.approx(2 * np.mean(x**2), rel=0.1)


def test_transposed_convolution_refuses_an_odd_kernel():
    with pytest.raises(ValueError, match="'b' has kernel_size=3, expected 2, 4, 6"):
        build(transposed_convolution, (4, 4, 3), 2, kernel_size=3)


def autoencoder(shape, units, latents, **options):
    inputs = keras.Input(shape)
    features = dense_encoder(inputs, units, name="encoder", **options)
    code = keras.layers.Dense(latents, name="code")(features)
    return keras.Model(inputs, dense_decoder(code, units[::-1], shape, name="decoder", **options))


def test_dense_autoencoder_equals_oracle():
    model = autoencoder((3, 4), (6, 5), 2, activation="tanh")
    block_checks.random_weights(model)
    w = block_checks.weights_of(model)
    x = image((7, 3, 4))
    y = x.reshape(7, 12)
    for layer in ("encoder_dense0", "encoder_dense1", "code", "decoder_dense0", "decoder_dense1", "decoder_output"):
        y = oracles.dense(y, w[f"{layer}/kernel"], w[f"{layer}/bias"])
        y = y if layer in ("code", "decoder_output") else np.tanh(y)
    np.testing.assert_allclose(model(x), y.reshape(7, 3, 4), rtol=1e-4, atol=1e-5)
    assert model(x[:0]).shape == (0, 3, 4)
    assert block_checks.dead_weights(model, x) == []


def test_dense_blocks_have_the_parameters_of_the_network_of_burda():
    """784 pixels, 200, 200, and back from 50 latents: Burda et al. 2015."""
    encoder = build(dense_encoder, (28, 28, 1), (200, 200), activation="tanh")
    assert encoder.output.shape == (None, 200)
    assert block_checks.num_trainable(encoder) == 784 * 200 + 200 + 200 * 200 + 200
    decoder = build(dense_decoder, (50,), (200, 200), (28, 28, 1), activation="tanh")
    assert decoder.output.shape == (None, 28, 28, 1)
    assert block_checks.num_trainable(decoder) == 50 * 200 + 200 + 200 * 200 + 200 + 200 * 784 + 784
    assert decoder.get_layer("b_output").bias.shape == (784,)  # where a VAE puts the logits of the mean picture


def test_linear_autoencoder_spans_the_principal_subspace():
    """Baldi and Hornik 1989: trained to convergence, code and output lie in the span of the largest components."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    deviations = np.array([3.0, 2.5, 2.0, 1.1, 1.1, 1.0, 1.0, 0.9, 0.9, 0.8])  # a gap after three
    x = (rng.normal(size=(300, 10)) * deviations @ directions + rng.normal(size=10)).astype("float32")
    inputs = keras.Input((10,))
    code = dense_encoder(inputs, (3,), activation="linear", name="encoder")
    model = keras.Model(inputs, dense_decoder(code, (), (10,), name="decoder"))
    rate = keras.optimizers.schedules.CosineDecay(0.03, 1200)
    model.compile(keras.optimizers.Adam(rate), "mse", jit_compile=False)
    principal = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:3].T

    def angle(layer):
        kernel = model.get_layer(layer).kernel.numpy()
        return scipy.linalg.subspace_angles(kernel if layer.startswith("e") else kernel.T, principal).max()

    layers = ("encoder_dense0", "decoder_output")
    assert min(map(angle, layers)) > 0.5  # of at most 1.57
    model.fit(tf.data.Dataset.from_tensors((x, x)).cache().repeat(), steps_per_epoch=1200, shuffle=False, verbose=0)
    assert max(map(angle, layers)) < 0.01
    # The best that any rank 3 can do.
    residual = np.linalg.svd(x - x.mean(0), compute_uv=False)[3:] ** 2
    assert np.mean((model(x) - x) ** 2) == pytest.approx(residual.sum() / x.size, rel=1e-3)


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (1, 5)])
def test_convolutional_encoder_halves_and_rounds_up(size):
    model = build(convolutional_encoder, (None, None, 3), (4, 6))
    y = model(image((2, *size, 3)))
    assert y.shape == (2, math.ceil(size[0] / 4), math.ceil(size[1] / 4), 6)
    assert block_checks.shape_for_empty_batch(model, *size, 3) == (0, *y.shape[1:])


def test_convolutional_encoder_is_strided_convolutions():
    model = build(convolutional_encoder, (6, 8, 3), (4, 5))
    block_checks.random_weights(model)
    w = block_checks.weights_of(model)
    x = y = image((2, 6, 8, 3))
    for stage in range(2):
        name = f"b_stage{stage}_conv"
        y = oracles.conv2d(oracles.pad_even(y, 3), w[f"{name}/kernel"], 0.0, 2, "valid")
        y = activated(w, name, y)
    np.testing.assert_allclose(model(x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalization", [True, False])
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_convolutional_decoder_equals_oracle(upsampling, normalization):
    model = build(convolutional_decoder, (None, None, 3), (5, 4), 2, upsampling=upsampling, normalization=normalization)
    block_checks.random_weights(model)
    w = block_checks.weights_of(model)
    x = y = image((2, 3, 2, 3))
    for stage in range(2):
        y = up_oracle(w, upsampling, f"b_stage{stage}_up", y)
    expected = oracles.conv2d(y, w["b_output/kernel"], w["b_output/bias"])
    assert expected.shape == (2, 12, 8, 2)
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)
    assert block_checks.shape_for_empty_batch(model, 3, 2, 3) == (0, 12, 8, 2)
    taps = {"transposed": 16, "resize": 9}[upsampling]
    kernels = taps * (3 * 5 + 5 * 4) + 9 * 4 * 2
    assert block_checks.num_trainable(model) == kernels + (5 + 4) * (2 if normalization else 1) + 2
    assert block_checks.dead_weights(model, image((4, 3, 2, 3))) == []


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_convolutional_autoencoder_returns_the_size_and_trains_every_weight(upsampling):
    inputs = keras.Input((12, 8, 3))
    code = convolutional_encoder(inputs, (4, 6), name="encoder")
    assert code.shape == (None, 3, 2, 6)
    model = keras.Model(inputs, convolutional_decoder(code, (6, 4), 3, upsampling=upsampling, name="decoder"))
    assert model.output.shape == (None, 12, 8, 3)
    assert block_checks.dead_weights(model, image((8, 12, 8, 3))) == []


def unet_oracle(w, kind, x, levels):
    def convolutions(x, stage):
        for index in range(2):
            name = f"b_{stage}_conv{index}"
            x = activated(w, name, oracles.conv2d(x, w[f"{name}/kernel"], w.get(f"{name}_bias/bias", 0.0)))
        return x

    def pooled(x):
        _, height, width, _ = x.shape
        x = np.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), constant_values=-np.inf)
        return oracles.max_pool2d(x, 2, 2)

    x = convolutions(x, "down0")
    skips = []
    for level in range(1, levels):
        skips.append(x)
        x = convolutions(pooled(x), f"down{level}")
    for level in reversed(range(levels - 1)):
        _, height, width, _ = skips[level].shape
        x = up_oracle(w, kind, f"b_up{level}", x)[:, :height, :width]
        x = convolutions(np.concatenate([skips[level], x], axis=3), f"up{level}")
    return oracles.conv2d(x, w["b_output/kernel"], w["b_output/bias"])


@pytest.mark.parametrize("normalization", [True, False])
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_unet_equals_oracle_at_any_size(upsampling, normalization):
    model = build(unet, (None, None, 2), (3, 4, 5), 1, upsampling=upsampling, normalization=normalization)
    assert model.output.shape == (None, None, None, 1)
    block_checks.random_weights(model)
    w = block_checks.weights_of(model)
    for size in ((8, 4), (7, 5), (6, 9), (1, 2)):
        x = image((2, *size, 2))
        expected = unet_oracle(w, upsampling, x, 3)
        assert expected.shape == (2, *size, 1)
        np.testing.assert_allclose(model(x), expected, rtol=1e-3, atol=1e-4)
        assert block_checks.shape_for_empty_batch(model, *size, 2) == (0, *size, 1)
    assert block_checks.dead_weights(model, image((4, 7, 9, 2))) == []


def test_unet_of_known_size_knows_its_result():
    assert build(unet, (7, 5, 3), (2, 3), 4).output.shape == (None, 7, 5, 4)


def test_unet_has_the_layers_of_the_paper():
    """Section 2: "In total the network has 23 convolutional layers"; grey pictures, two classes."""
    with block_checks.unallocated():
        model = build(unet, (None, None, 1), (64, 128, 256, 512, 1024), 2, normalization=False)
        convolutions = [layer for layer in model.layers if hasattr(layer, "kernel")]
        assert len(convolutions) == 23
        down = sum(9 * a * b + b for a, b in [(1, 64), (64, 128), (128, 256), (256, 512), (512, 1024)])
        again = sum(9 * b * b + b for b in (64, 128, 256, 512, 1024))
        up = sum(4 * 2 * b * b + b + 9 * 2 * b * b + b + 9 * b * b + b for b in (64, 128, 256, 512))
        assert block_checks.num_trainable(model) == down + again + up + 64 * 2 + 2


def test_unet_names_its_layers_by_size():
    names = [layer.name for layer in build(unet, (8, 8, 1), (2, 3), 1, normalization=False).layers]
    assert names[1:] == [
        "b_down0_conv0",
        "b_down0_conv0_bias",
        "b_down0_conv0_activation",
        "b_down0_conv1",
        "b_down0_conv1_bias",
        "b_down0_conv1_activation",
        "b_down1_pool",
        "b_down1_conv0",
        "b_down1_conv0_bias",
        "b_down1_conv0_activation",
        "b_down1_conv1",
        "b_down1_conv1_bias",
        "b_down1_conv1_activation",
        "b_up0",
        "b_up0_bias",
        "b_up0_activation",
        "b_up0_cut",
        "b_up0_skip",
        "b_up0_conv0",
        "b_up0_conv0_bias",
        "b_up0_conv0_activation",
        "b_up0_conv1",
        "b_up0_conv1_bias",
        "b_up0_conv1_activation",
        "b_output",
    ]


def test_unet_reloads(tmp_path):
    model = build(unet, (None, None, 1), (2, 3), 1)
    model.save(tmp_path / "model.keras")
    x = image((2, 5, 6, 1))
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(x), model(x))


def test_a_map_is_cut_to_the_size_of_another():
    x, other = image((2, 4, 6, 3)), image((2, 3, 5, 2), seed=1)
    np.testing.assert_array_equal(CutTo()(x, other), x[:, :3, :5])
    maps = keras.Input((None, None, 3)), keras.Input((None, None, 2))
    assert CutTo()(*maps).shape == (None, None, None, 3)


HALF_PRECISION = {
    "dense": lambda: build(dense_decoder, (5,), (6,), (4, 4, 1)),
    "transposed": lambda: build(convolutional_decoder, (None, None, 3), (4,), 2),
    "resize": lambda: build(convolutional_decoder, (None, None, 3), (4,), 2, upsampling="resize"),
    "unet": lambda: build(unet, (None, None, 3), (4, 6), 2),
    "unet-biases": lambda: build(unet, (None, None, 3), (4, 6), 2, normalization=False),
}


@pytest.mark.parametrize("kind", HALF_PRECISION)
def test_outputs_are_float32_in_half_precision_and_close(kind):
    single = HALF_PRECISION[kind]()
    with precision("bfloat16"):
        half = HALF_PRECISION[kind]()
    block_checks.random_weights(single)
    half.set_weights(single.get_weights())
    assert half.layers[1].compute_dtype == "bfloat16"
    x = image((8, 5)) if kind == "dense" else image((8, 7, 6, 3))
    y, expected = half(x), single(x)
    assert y.dtype == tf.float32
    assert np.any(y != tf.cast(tf.cast(y, tf.bfloat16), tf.float32))  # and never was rounded to it
    assert np.abs(y - expected).mean() < 0.03 * np.std(expected)
    assert block_checks.dead_weights(half, x) == []


@pytest.mark.parametrize("kind", UPSAMPLINGS)
def test_bias_gradients_survive_bfloat16(kind):
    """Summed in bfloat16 over a batch of maps, as Keras' own layers do, they would be off by half."""
    x = image((64, 16, 16, 3))
    gradients = []
    for number in ("float32", "bfloat16"):
        keras.utils.set_random_seed(0)
        with precision(number):
            model = build(UP_BLOCKS[kind], (16, 16, 3), 8, normalization=False)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.cast(model(x), tf.float32) - 1))
        gradients.append(tape.gradient(loss, model.get_layer("b_bias").bias.value))
    # Sums of 16,384 terms, each rounded by up to 2^-9 of itself: small ones are the rest of large ones.
    np.testing.assert_allclose(*gradients, rtol=0, atol=2**-6 * np.abs(gradients[0]).max())


@pytest.mark.parametrize("block", [convolutional_decoder, unet])
def test_unknown_upsampling_names_the_known_ones(block):
    with pytest.raises(ValueError, match=r"unknown upsampling 'bilinear' in 'b_.*up.*, expected one of: transposed, r"):
        build(block, (8, 8, 1), (2, 3), 1, upsampling="bilinear")


def test_unet_needs_something_to_join():
    with pytest.raises(ValueError, match=r"'b' has filters \(4,\), expected two or more"):
        build(unet, (8, 8, 1), (4,), 1)


def sparsity_oracle(kind, x, target):
    flat = np.float64(x).reshape(-1, x.shape[-1])
    if kind == "l1":
        return np.abs(flat).mean(0).sum()
    rate = flat.mean(0)
    return np.sum(target * np.log(target / rate) + (1 - target) * np.log((1 - target) / (1 - rate)))


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("shape", [(6, 3), (2, 4, 5, 3)])
@pytest.mark.parametrize("kind", ["l1", "kl"])
def test_sparsity_penalty_equals_oracle(kind, shape, dtype):
    x = image(shape) if kind == "l1" else oracles.sigmoid(image(shape)).astype("float32")
    x = tf.cast(x, dtype.removeprefix("mixed_"))
    layer = SparsityPenalty(kind, 0.5, target=0.1, dtype=dtype)
    y = layer(x)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(tf.cast(y, tf.float32), tf.cast(x, tf.float32))
    (loss,) = layer.losses
    assert loss.dtype == tf.float32
    expected = 0.5 * sparsity_oracle(kind, tf.cast(x, tf.float64).numpy(), 0.1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_sparsity_penalty_by_hand():
    """Two units, active at 1/2 and at the target of 1/4: log(2 / sqrt(3)) / 2 + log(3 / 2) / 2, and nothing."""
    x = np.array([[0.75, 0.25], [0.25, 0.25]])
    layer = SparsityPenalty("kl", 1.0, target=0.25)
    layer(x)
    assert float(layer.losses[0]) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    layer = SparsityPenalty("l1", 2.0)
    layer(-x)
    assert float(layer.losses[0]) == pytest.approx(2 * (0.5 + 0.25))


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_unit_that_is_always_or_never_active_has_a_finite_penalty(rate):
    layer = SparsityPenalty("kl", 1.0)
    layer(np.full((4, 2), rate))
    assert 0.1 < float(layer.losses[0]) < 50


@pytest.mark.parametrize(("weight", "reached"), [(1.0, True), (0.0, False)])
def test_units_reach_the_rate_they_are_given(weight, reached):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    code = dense_encoder(inputs, (4,), activation="sigmoid", name="encoder")
    model = keras.Model(inputs, SparsityPenalty("kl", weight, target=0.2, name="sparsity")(code))
    model.compile(keras.optimizers.Adam(0.1), loss=None, jit_compile=False)
    x = image((64, 5))
    model.fit(tf.data.Dataset.from_tensors(x).repeat(), steps_per_epoch=100, shuffle=False, verbose=0)
    rates = model(x).numpy().mean(0)
    assert (np.abs(rates - 0.2).max() < 0.01) == reached


def test_sparsity_penalty_reloads(tmp_path):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, SparsityPenalty("kl", 0.3, target=0.2, name="sparsity")(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("sparsity").get_config() == model.get_layer("sparsity").get_config()
    x = oracles.sigmoid(image((4, 3)))
    model(x), loaded(x)
    assert float(loaded.losses[0]) == float(model.losses[0]) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "l2"}, "unknown sparsity 'l2' in 'b', expected one of: l1, kl"),
        ({"kind": "kl", "target": 0.0}, "'b' has target=0.0, expected a rate: give one between 0 and 1"),
        ({"kind": "kl", "target": 1.0}, "'b' has target=1.0, expected a rate"),
    ],
)
def test_sparsity_penalty_says_what_it_expects(options, message):
    with pytest.raises(ValueError, match=message):
        SparsityPenalty(weight=1.0, name="b", **options)
