"""A generator by its signatures: with and without classes."""

import numpy as np
import pytest
import tensorflow as tf

from kerasdl.errors import UserError
from kerasdl.models.generator import Generator


class FromLatent:
    """Pictures of one pixel: the first number of the latent, or the class."""

    def __init__(self, conditional):
        classes = {"class_index": tf.TensorSpec([None], tf.int32)} if conditional else {}
        self.inputs = {"latent": tf.TensorSpec([None, 3], tf.float32), **classes}

    def __call__(self, latent, class_index=None):
        assert (class_index is not None) == ("class_index" in self.inputs)
        value = latent[:, 0] if class_index is None else tf.cast(class_index, tf.float32)
        return {"image": tf.reshape(value, [-1, 1, 1, 1])}


def test_it_draws_what_latents_and_labels_ask_for():
    latent = np.array([[7.4, 0, 0], [8.6, 0, 0]], np.float32)
    for conditional, expected in ((False, [7, 9]), (True, [3, 5])):
        drawn = Generator({"from_latent": FromLatent(conditional)})
        assert drawn.conditional == conditional
        images = drawn.draw(latent, np.array([3, 5]))
        assert (images.shape, images.dtype) == ((2, 1, 1, 1), np.uint8)
        assert images.ravel().tolist() == expected


def test_many_latents_go_in_parts_and_noise_follows_from_its_seed():
    drawn = Generator({"from_latent": FromLatent(False)})
    noise = drawn.noise(250, seed=4)
    assert noise.shape == (250, 3)
    np.testing.assert_allclose(drawn.noise(2, seed=4), noise[:2], rtol=1e-5)
    np.testing.assert_array_equal(drawn.draw(10 * np.abs(noise)).ravel(), np.rint(10 * np.abs(noise[:, 0])))


@pytest.mark.parametrize(("names", "rows"), [(None, 8), (list("abc"), 3), (["x"] * 40, 10)])
def test_a_sheet_is_eight_wide_and_has_a_row_a_class(names, rows):
    sheet = Generator({"from_latent": FromLatent(names is not None)}, names).sheet()
    assert len(sheet) == 8 * rows
    if names:
        assert sheet[::8].ravel().tolist() == list(range(rows))


def test_ways_have_a_class_each_in_turn():
    start = np.array([[2.0, 0, 0], [0, 3, 0], [5, 0, 0]], np.float32)
    drawn = Generator({"from_latent": FromLatent(False)})
    np.testing.assert_array_equal(drawn.ways(start, start, 2).ravel(), [2, 2, 0, 0, 5, 5])
    drawn = Generator({"from_latent": FromLatent(True)}, list("abcd"))
    np.testing.assert_array_equal(drawn.ways(start, start, 2).ravel(), [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(drawn.ways(start, start, 2, [3, 1]).ravel(), [3, 3, 1, 1, 3, 3])


def test_classes_are_named_or_numbered():
    drawn = Generator({"from_latent": FromLatent(True)}, ["cat", "dog"])
    assert [drawn.classes(words) for words in ((), ["all"], ["dog", "0"])] == [[], [0, 1], [1, 0]]
    with pytest.raises(UserError, match="dot is no class; did you mean dog"):
        drawn.classes(["dot"])
    with pytest.raises(UserError, match="this model knows no classes; leave --classes out"):
        Generator({"from_latent": FromLatent(False)}).classes(["all"])


@pytest.mark.parametrize("conditional", [True, False])
def test_files_are_named_by_class_seed_and_number(conditional):
    def generate(count, seed, truncation, class_index=None):
        index = [1] if class_index is None or class_index[0] == -1 else class_index
        answer = {"class_index": tf.repeat(index, count)} if conditional else {}
        return answer | {"image_bytes": tf.constant([f"{seed[0]} {i}" for i in range(int(count[0]))])}

    drawn = Generator({"from_latent": FromLatent(conditional), "generate": generate}, ["cat", "dog"])
    contents, names = drawn.files(2, 7, 0.0, [0, -1] if conditional else [-1])
    kinds = ["cat_", "dog_"] if conditional else [""]
    assert names == [f"{kind}7-0000{i}" for kind in kinds for i in (0, 1)]
    assert contents == [b"7 0", b"7 1"] * len(kinds)
