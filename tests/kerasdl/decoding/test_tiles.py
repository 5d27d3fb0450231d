"""Tiles give what the whole picture gives."""

import block_checks
import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasdl.blocks import autoencoding
from kerasdl.decoding import tiles


@pytest.fixture(scope="module")
def network():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, autoencoding.unet(image, (3, 4), 3, name="unet"))
    block_checks.random_weights(model)
    return lambda image: model(image, training=False)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (32, 32), (33, 70), (90, 17)])
def test_tiles_equal_the_whole(network, height, width):
    image = tf.random.stateless_normal([height, width, 3], [0, 1])
    graph = tf.function(lambda image: tiles.in_tiles(network, image, size=32, border=16))
    np.testing.assert_allclose(graph(image), network(image[None])[0], atol=1e-4, rtol=1e-4)


def test_without_a_border_the_seams_show(network):
    image = tf.random.stateless_normal([64, 64, 3], [0, 1])
    difference = np.abs(tiles.in_tiles(network, image, size=32, border=0) - network(image[None])[0]).max(-1)
    assert difference[:16, :16].max() < 1e-4
    assert difference[31:33].min() > 1e-3


def test_a_tile_is_all_that_the_network_sees():
    seen = []

    def network(image):
        seen.append(tuple(image.shape[1:3]))
        return image

    image = tf.random.stateless_normal([100, 40, 1], [0, 1])
    np.testing.assert_array_equal(tiles.in_tiles(network, image, size=32, border=8), image)
    assert max(max(shape) for shape in seen) == 48
    assert len(seen) == 8
