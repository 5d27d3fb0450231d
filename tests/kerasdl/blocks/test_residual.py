import math

import block_checks
import keras
import numpy as np
import oracles
import pytest

from kerasdl.blocks.residual import basic_block, bottleneck_block, preactivation_block


def image(shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def norm(w, name, x):
    statistics = w[f"{name}/moving_mean"], w[f"{name}/moving_variance"]
    return oracles.batch_norm(x, *statistics, w[f"{name}/gamma"], w[f"{name}/beta"])


def conv(w, name, x, strides=1):
    kernel = w[f"{name}/kernel"]
    return oracles.conv2d(oracles.pad_even(x, len(kernel)), kernel, 0.0, strides, "valid")


def conv_norm(w, name, x, strides=1):
    return norm(w, f"{name}_norm", conv(w, name, x, strides))


def shortcut_oracle(w, kind, x, filters, strides):
    match kind:
        case "identity":
            return x
        case "projection":
            return conv_norm(w, "b_projection", x, strides)
        case "pad":
            return oracles.pad_shortcut(x, filters, strides)
        case None:
            return 0.0


def basic_oracle(w, kind, x, strides):
    y = oracles.relu(conv_norm(w, "b_conv1", x, strides))
    y = conv_norm(w, "b_conv2", y)
    return oracles.relu(y + shortcut_oracle(w, kind, x, y.shape[-1], strides))


def bottleneck_oracle(w, kind, x, strides):
    y = oracles.relu(conv_norm(w, "b_conv1", x))
    y = oracles.relu(conv_norm(w, "b_conv2", y, strides))
    y = conv_norm(w, "b_conv3", y)
    return oracles.relu(y + shortcut_oracle(w, kind, x, y.shape[-1], strides))


def preactivation_oracle(w, kind, x, strides):
    y = activated = oracles.relu(norm(w, "b_norm", x))
    y = oracles.relu(conv_norm(w, "b_conv1", y, strides))
    y = conv(w, "b_conv2", y)
    if kind == "projection":
        return y + conv(w, "b_projection", activated, strides)
    return y + shortcut_oracle(w, kind, x, y.shape[-1], strides)


BLOCKS = [
    (basic_block, basic_oracle, 1),
    (bottleneck_block, bottleneck_oracle, 4),
    (preactivation_block, preactivation_oracle, 1),
]
IDS = ["basic", "bottleneck", "preactivation"]
# shortcut, strides, channels in: the result has 8
SHORTCUTS = [
    ("identity", 1, 8),
    ("projection", 1, 8),
    ("projection", 2, 5),
    ("pad", 1, 5),
    ("pad", 2, 5),
    ("pad", 3, 8),
    (None, 1, 8),
    (None, 2, 5),
]


def build(block, expansion, channels, **options):
    inputs = keras.Input((None, None, channels))
    model = keras.Model(inputs, block(inputs, 8 // expansion, name="b", **options))
    block_checks.random_weights(model)
    return model


@pytest.mark.parametrize(("kind", "strides", "channels"), SHORTCUTS)
@pytest.mark.parametrize(("block", "oracle", "expansion"), BLOCKS, ids=IDS)
def test_block_equals_oracle(block, oracle, expansion, kind, strides, channels):
    model = build(block, expansion, channels, strides=strides, shortcut=kind)
    w = block_checks.weights_of(model)
    for height, width in ((7, 8), (6, 5)):
        x = image((2, height, width, channels))
        expected = oracle(w, kind, np.float64(x), strides)
        assert expected.shape == (2, math.ceil(height / strides), math.ceil(width / strides), 8)
        np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)
    assert block_checks.dead_weights(model, image((4, 7, 8, channels))) == []
    assert all(layer.name.startswith("b_") for layer in model.layers[1:])


@pytest.mark.parametrize("kind", ["projection", "pad"])
@pytest.mark.parametrize(("block", "oracle", "expansion"), BLOCKS, ids=IDS)
def test_empty_batch(block, oracle, expansion, kind):
    model = build(block, expansion, 5, strides=2, shortcut=kind)
    assert block_checks.shape_for_empty_batch(model, 7, 8, 5) == (0, 4, 4, 8)


@pytest.mark.parametrize(("block", "oracle", "expansion"), BLOCKS, ids=IDS)
def test_plain_twin_has_the_same_weights_and_another_result(block, oracle, expansion):
    residual = build(block, expansion, 8)
    plain = build(block, expansion, 8, shortcut=None)
    assert [(w.path, w.shape) for w in residual.weights] == [(w.path, w.shape) for w in plain.weights]
    x = image((2, 6, 6, 8))
    assert np.abs(np.asarray(residual(x)) - plain(x)).max() > 0.5


@pytest.mark.parametrize(
    ("options", "channels"),
    [({"strides": 2}, 8), ({}, 5), ({"shortcut": "pad"}, 9), ({"shortcut": "sum"}, 8)],
    ids=["strided-identity", "new-channels", "fewer-channels", "unknown"],
)
@pytest.mark.parametrize(("block", "oracle", "expansion"), BLOCKS, ids=IDS)
def test_shortcut_that_does_not_fit_is_refused(block, oracle, expansion, options, channels):
    with pytest.raises(ValueError, match=rf"'b': shortcut .* from {channels} to 8 channels .*, expected"):
        build(block, expansion, channels, **options)


@pytest.mark.parametrize(
    ("block", "expansion", "count"),
    [
        (basic_block, 1, 2 * (9 * 8 * 8 + 16)),
        (bottleneck_block, 4, 8 * 2 + 9 * 2 * 2 + 2 * 8 + 2 * (2 + 2 + 8)),
        (preactivation_block, 1, 2 * (9 * 8 * 8 + 16)),
    ],
    ids=IDS,
)
def test_parameters_are_kernels_without_bias_and_two_a_normalized_channel(block, expansion, count):
    assert block_checks.num_trainable(build(block, expansion, 8)) == count
