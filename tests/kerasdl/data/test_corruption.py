"""Corruptions of pictures."""

import numpy as np
import pytest

from kerasdl.data import corruption, synthetic

IMAGES, _ = synthetic.shapes(6, seed=0)


@pytest.mark.parametrize("name", corruption.CORRUPTIONS)
def test_pictures_are_changed_a_little_and_the_same_each_time(name):
    changed = corruption.CORRUPTIONS[name](IMAGES)
    assert (changed.shape, changed.dtype) == (IMAGES.shape, np.uint8)
    assert 1 < np.abs(changed.astype(int) - IMAGES).mean() < 45
    np.testing.assert_array_equal(changed, corruption.CORRUPTIONS[name](IMAGES))


def test_each_corruption_is_of_its_strength():
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    assert corruption.gaussian_noise(grey, 10.0).std() == pytest.approx(10, rel=0.02)
    lit = np.zeros((1, 9, 9, 3), np.uint8)
    lit[0, 4, 4] = 255
    # exp(-x² / 2) over its sum on the grid, squared for both axes.
    weight = 1 / np.exp(-(np.arange(-4, 5) ** 2) / 2).sum()
    assert corruption.blur(lit, 1.0)[0, 4, 4, 0] == np.rint(255 * weight**2)
    np.testing.assert_array_equal(corruption.blur(grey, 1.0), grey)
    np.testing.assert_array_equal(corruption.brighter(grey, 1.3), np.full_like(grey, 166))
    assert corruption.brighter(grey * 0 + 255, 1.3).max() == 255
    np.testing.assert_array_equal(corruption.jpeg(grey, 30), grey)
