"""Latents drawn by a seed, and ways between them."""

import numpy as np
import psutil
import pytest
import tensorflow as tf
from scipy import stats

from kerasdl.decoding import latents


def test_a_seed_decides_its_latents_whatever_stands_beside_it():
    both = latents.draw([2, 5], [7, 9], 3).numpy()
    assert both.shape == (7, 3)
    np.testing.assert_array_equal(both[:2], latents.draw([2], [7], 3))
    np.testing.assert_array_equal(both[2:5], latents.draw([3], [9], 3))
    assert not np.isin(both[:2], both[2:]).any()


@pytest.mark.parametrize("truncation", [0, 1.5, 0.3])
def test_latents_are_normal_up_to_the_truncation(truncation):
    drawn = latents.draw([4000], [1], 5, truncation).numpy().ravel()
    limit = truncation or 6
    assert np.abs(drawn).max() <= limit
    expected = stats.truncnorm(-limit, limit)
    assert stats.kstest(drawn, expected.cdf).pvalue > 0.01
    if truncation == 1.5:
        assert stats.kstest(drawn, stats.norm.cdf).pvalue < 1e-6
        each = latents.draw([2000, 2000], [1, 2], 5, [0.3, 1.5]).numpy()
        assert np.abs(each[:2000]).max() <= 0.3 < np.abs(each[2000:]).max() <= 1.5


@pytest.mark.parametrize(
    ("count", "truncation", "message"),
    [(0, 0.0, "count is out of range"), (10_001, 0.0, "count is out of range"), (1, -1.0, "truncation is below 0")],
)
def test_out_of_range_is_said_in_the_graph(count, truncation, message):
    graph = tf.function(lambda n: latents.draw(n, [0], 2, truncation))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        graph(tf.constant([count]))


@pytest.mark.parametrize("count", [[2**31 - 1], [10_001], [5001, 1], [0], [-1]])
def test_a_count_out_of_range_takes_no_memory_before_it_is_refused(count):
    specs = tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int32)
    drawn = tf.function(lambda n, seed: latents.draw(n, seed, 100), input_signature=specs)
    named = tf.function(lambda n, seed: latents.classes(tf.zeros_like(n), n, seed, 3), input_signature=specs)
    seeds = tf.range(len(count))
    before = psutil.Process().memory_info().rss
    for function in (drawn, named):
        with pytest.raises(tf.errors.InvalidArgumentError, match="count is out of range"):
            function(tf.constant(count), seeds)
    assert psutil.Process().memory_info().rss - before < 2**29


def test_the_way_between_two_latents_keeps_their_length():
    start, end = np.array([[2.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 4.0], [1.0, 1.0]])
    way = latents.interpolate(start, end, 5).numpy()
    np.testing.assert_allclose(way[:, 0], start, atol=1e-5)
    np.testing.assert_allclose(way[:, -1], end, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(way[0], axis=1), [2, 2.5, 3, 3.5, 4], rtol=1e-5)
    np.testing.assert_allclose(np.degrees(np.arctan2(way[0, :, 1], way[0, :, 0])), [0, 22.5, 45, 67.5, 90], atol=1e-3)
    np.testing.assert_allclose(way[1], np.ones((5, 2)), atol=1e-3)


def test_a_class_is_that_asked_for_or_drawn_evenly_by_the_seed():
    found = latents.classes([2, -1], [3, 4000], [5, 6], 4).numpy()
    assert found[:3].tolist() == [2, 2, 2]
    assert (np.bincount(found[3:], minlength=4) > 900).all()
    np.testing.assert_array_equal(latents.classes([-1], [10], [6], 4), found[3:13])
