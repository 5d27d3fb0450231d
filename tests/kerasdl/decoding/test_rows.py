"""Rows by blocks: equal to all at once."""

import numpy as np
import pytest
import tensorflow as tf

from kerasdl.decoding import rows


@pytest.mark.parametrize("count", [0, 1, 249, 250, 251, 700])
def test_blocks_give_what_the_whole_gives(count):
    latent, index = tf.random.normal([count, 3], seed=0), tf.range(count)

    @tf.function
    def words(latent, index):
        def named(latent, index):
            return tf.strings.as_string(tf.cast(index, tf.float32) + latent[:, 0])

        return rows.by_blocks(named, latent, index), named(latent, index)

    found, expected = words(latent, index)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
