"""Deviations by which a network divides what it sees."""

import numpy as np
import pytest

from kerasdl.data.channels import usable_deviation


@pytest.mark.parametrize(
    ("deviation", "expected"),
    [
        ([62.4, 61.5, 66.0], [62.4, 61.5, 66.0]),
        ([60.0, 15.0, 30.0], [60.0, 15.0, 30.0]),
        ([0.0, 60.0, 0.0], [60.0, 60.0, 60.0]),  # one colour
        ([6.2, 60.0, 0.3], [60.0, 60.0, 60.0]),  # the same as JPEG, and with rounding alone
        ([2.0, 1.5, 2.0], [2.0, 1.5, 2.0]),  # pictures of little contrast
        ([0.4], [0.4]),  # masks of zeros and ones
        ([0.0, 0.0, 0.0], [64.0, 64.0, 64.0]),  # nothing but black, or grey
        ([0.0], [64.0]),
    ],
)
def test_no_channel_is_divided_by_the_deviation_of_its_noise(deviation, expected):
    np.testing.assert_array_equal(usable_deviation(np.array(deviation)), expected)
