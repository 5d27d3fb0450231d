"""Noise: its kind, its strength, and that it follows from the seed."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from kerasdl.data.noise import add_noise

IMAGES = np.random.default_rng(0).integers(1, 255, (4, 40, 50, 3)).astype(np.uint8)
SEED = [3, 4]


@pytest.mark.parametrize("kind", ["gaussian", "salt_and_pepper", "masking"])
def test_noise_follows_from_the_seed_and_strength_zero_is_none(kind):
    first, again, other = (add_noise(IMAGES, seed, kind=kind, strength=0.3) for seed in (SEED, SEED, [3, 5]))
    assert first.dtype == tf.float32
    np.testing.assert_array_equal(first, again)
    assert (first.numpy() != other.numpy()).any()
    np.testing.assert_array_equal(add_noise(IMAGES, SEED, kind=kind, strength=0.0), IMAGES)
    in_graph = tf.function(add_noise)(tf.constant(IMAGES), tf.constant(SEED), kind=kind, strength=0.3)
    np.testing.assert_allclose(in_graph, first, atol=1e-5)


def test_gaussian_noise_is_normal_unclipped_and_of_each_pictures_strength():
    strength = np.array([5, 25, 50, 100])
    added = (add_noise(IMAGES, SEED, kind="gaussian", strength=strength) - IMAGES.astype(np.float32)).numpy()
    for one, expected in zip(added, strength, strict=True):
        assert stats.kstest(one.ravel() / expected, "norm").pvalue > 0.01
    assert (added + IMAGES).min() < 0
    assert (added + IMAGES).max() > 255
    # Every channel has noise of its own.
    assert abs(np.corrcoef(added[3, ..., 0].ravel(), added[3, ..., 1].ravel())[0, 1]) < 0.1


def test_salt_and_pepper_hits_whole_pixels_by_halves():
    noisy = add_noise(IMAGES, SEED, kind="salt_and_pepper", strength=0.4).numpy()
    black, white = (np.all(noisy == value, -1) for value in (0, 255))
    assert black.mean() == pytest.approx(0.2, abs=0.02)
    assert white.mean() == pytest.approx(0.2, abs=0.02)
    left = ~(black | white)
    np.testing.assert_array_equal(noisy[left], IMAGES[left])


def test_masking_hits_whole_pixels():
    noisy = add_noise(IMAGES, SEED, kind="masking", strength=np.array([0.1, 0.2, 0.5, 1.0])).numpy()
    black = np.all(noisy == 0, -1)
    np.testing.assert_allclose(black.mean((1, 2)), [0.1, 0.2, 0.5, 1.0], atol=0.03)
    np.testing.assert_array_equal(noisy[~black], IMAGES[~black])


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(ValueError, match="'pink', expected one of: gaussian, salt_and_pepper, masking"):
        add_noise(IMAGES, SEED, kind="pink", strength=1.0)
