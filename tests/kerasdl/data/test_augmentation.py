import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from kerasdl.data import augmentation

SEED = tf.constant([3, 7])
CHAIN = {
    "random_flip": augmentation.random_flip,
    "alternating_flip": lambda images, seed: augmentation.alternating_flip(
        images, tf.range(tf.shape(images)[0], dtype=tf.int64), 0, seed
    ),
    "crop_reflect": augmentation.pad_and_crop,
    "crop_constant": lambda images, seed: augmentation.pad_and_crop(images, seed, mode="CONSTANT"),
    "random_affine": lambda images, seed: augmentation.random_affine(
        images, seed, rotation_degrees=20, scale_ratio=1.2
    ),
    "color_jitter": lambda images, seed: augmentation.color_jitter(
        images, seed, brightness=0.4, contrast=0.4, saturation=0.4
    ),
    "random_erasing": lambda images, seed: augmentation.random_erasing(images, seed, size=4),
}


def noise(batch, height, width, channels=3, dtype=np.uint8):
    values = np.random.default_rng(0).integers(0, 256, (batch, height, width, channels))
    return values.astype(dtype)


def ramps(batch, side):
    """float32[batch, side, side, 2]: each pixel holds its own x and y, so that a result tells where it came from."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    return np.broadcast_to(np.stack([x, y], axis=-1), (batch, side, side, 2))


@pytest.mark.parametrize("name", CHAIN)
class TestEveryFunction:
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_same_seed_gives_the_same_and_another_seed_another_result(self, name, dtype):
        images = noise(16, 12, 9, dtype=dtype)
        first, again, other = (CHAIN[name](images, tf.constant(seed)) for seed in ([1, 2], [1, 2], [1, 3]))
        assert first.dtype == dtype
        assert first.shape == images.shape
        np.testing.assert_array_equal(first, again)
        assert np.any(first != other)
        assert np.any(first != images)

    @pytest.mark.parametrize("batch", [0, 1])
    def test_batches_of_none_and_one(self, name, batch):
        images = noise(batch, 8, 8)
        assert CHAIN[name](images, SEED).shape == (batch, 8, 8, 3)

    def test_graph_with_unknown_shape_equals_eager(self, name):
        images = noise(6, 11, 8)
        traced = tf.function(
            CHAIN[name],
            input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8), tf.TensorSpec([2], tf.int32)],
        )
        np.testing.assert_array_equal(traced(images, SEED), CHAIN[name](images, SEED))

    def test_dataset_keeps_the_static_shape(self, name):
        data = tf.data.Dataset.from_tensors(noise(4, 10, 8)).map(lambda images: CHAIN[name](images, SEED))
        assert data.element_spec == tf.TensorSpec([4, 10, 8, 3], tf.uint8)

    def test_other_dtypes_and_ranks_raise(self, name):
        with pytest.raises(ValueError, match="works on uint8 or float32"):
            CHAIN[name](noise(2, 8, 8, dtype=np.float64), SEED)
        with pytest.raises(ValueError, match="batch them first"):
            CHAIN[name](noise(1, 8, 8)[0], SEED)


def test_functions_and_axes_draw_independently_from_one_seed():
    images = ramps(4_000, 9)
    flipped = augmentation.random_flip(images, SEED)[:, 4, 0, 0] > 4
    turned = augmentation.random_affine(images, SEED, rotation_degrees=20, scale_ratio=1)[:, 4, 5, 1] > 4
    shift_x, shift_y = augmentation.pad_and_crop(images, SEED, padding=2)[:, 4, 4].numpy().T
    # The correlation of independent draws is 0 with a standard deviation of 1 / sqrt(4000) = 0.016.
    for one, other in ((flipped, turned), (flipped, shift_x), (turned, shift_y), (shift_x, shift_y)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.07


class TestFlips:
    @staticmethod
    def flips(images, result):
        """bool[batch]: whether each image came back mirrored; fails where one is neither mirrored nor the same."""
        mirrored = np.all(result == images[:, :, ::-1], axis=(1, 2, 3))
        same = np.all(result == images, axis=(1, 2, 3))
        assert np.all(mirrored ^ same)
        return mirrored

    def test_random_flip_mirrors_half_of_the_images(self):
        images = noise(4_000, 2, 5)
        frequency = self.flips(images, augmentation.random_flip(images, SEED).numpy()).mean()
        assert abs(frequency - 0.5) < 0.04  # five standard deviations

    def test_alternating_flip_mirrors_every_other_epoch(self):
        images, index = noise(4_000, 2, 5), np.arange(4_000)
        first, second, third = (
            self.flips(images, augmentation.alternating_flip(images, index, epoch, SEED).numpy()) for epoch in range(3)
        )
        assert abs(first.mean() - 0.5) < 0.04
        np.testing.assert_array_equal(second, ~first)
        np.testing.assert_array_equal(third, first)

    def test_alternating_flip_follows_the_index_not_the_position(self):
        images, index = noise(64, 2, 5), np.arange(1_000, 1_064)
        order = np.random.default_rng(0).permutation(64)
        flips = self.flips(images, augmentation.alternating_flip(images, index, 0, SEED).numpy())
        shuffled = augmentation.alternating_flip(images[order], index[order], 0, SEED).numpy()
        np.testing.assert_array_equal(self.flips(images[order], shuffled), flips[order])

    def test_alternating_flip_of_neighbours_and_seeds_is_independent(self):
        images, index = noise(4_000, 1, 5), np.arange(4_000)
        bits, other = (
            self.flips(images, augmentation.alternating_flip(images, index, 0, tf.constant(seed)).numpy())
            for seed in ([0, 1], [0, 2])
        )
        assert abs(np.corrcoef(bits[:-1], bits[1:])[0, 1]) < 0.08
        assert abs(np.corrcoef(bits, other)[0, 1]) < 0.08


class TestPadAndCrop:
    @pytest.mark.parametrize(("mode", "numpy_mode"), [("REFLECT", "reflect"), ("CONSTANT", "constant")])
    def test_every_image_is_a_slice_of_its_padded_self(self, mode, numpy_mode):
        images, padding = noise(50, 8, 7), 3
        cropped = augmentation.pad_and_crop(images, SEED, padding=padding, mode=mode).numpy()
        padded = np.pad(images, [(0, 0), (padding, padding), (padding, padding), (0, 0)], numpy_mode)
        shifts = range(2 * padding + 1)
        for image, wide in zip(cropped, padded, strict=True):
            matches = [np.array_equal(image, wide[i : i + 8, j : j + 7]) for i in shifts for j in shifts]
            assert sum(matches) == 1

    def test_shifts_are_uniform(self):
        images = ramps(10_000, 9)
        shift = augmentation.pad_and_crop(images, SEED, padding=2)[:, 4, 4].numpy().astype(int) - 4
        counts = np.bincount((shift[:, 0] + 2) * 5 + shift[:, 1] + 2, minlength=25)
        assert len(counts) == 25
        # 24 degrees of freedom: chi-squared is above 52 with probability 0.001.
        assert ((counts - 400) ** 2 / 400).sum() < 52

    def test_no_padding_is_the_identity(self):
        images = noise(4, 6, 5)
        np.testing.assert_array_equal(augmentation.pad_and_crop(images, SEED, padding=0), images)

    def test_reflecting_more_than_the_image_raises(self):
        with pytest.raises(tf.errors.InvalidArgumentError, match="smaller padding"):
            augmentation.pad_and_crop(noise(2, 4, 9), SEED, padding=4)

    def test_unknown_mode_raises(self):
        with pytest.raises(ValueError, match='use "REFLECT" or "CONSTANT"'):
            augmentation.pad_and_crop(noise(2, 8, 8), SEED, mode="SYMMETRIC")


class TestAffine:
    @staticmethod
    def maps(batch, side, **options):
        """The linear part float32[batch, 2, 2] and the centre's image float32[batch, 2] of each image's map."""
        source = augmentation.random_affine(ramps(batch, side), SEED, **options).numpy()
        middle = side // 2
        step_x = source[:, middle, middle + 1] - source[:, middle, middle]
        step_y = source[:, middle + 1, middle] - source[:, middle, middle]
        return np.stack([step_x, step_y], axis=-1), source[:, middle, middle]

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_no_rotation_and_no_zoom_is_the_identity(self, dtype):
        images = noise(5, 9, 6, dtype=dtype)
        moved = augmentation.random_affine(images, SEED, rotation_degrees=0, scale_ratio=1)
        np.testing.assert_array_equal(moved, images)

    def test_angles_and_zooms_are_spread_over_their_ranges(self):
        linear, center = self.maps(4_000, 11, rotation_degrees=30, scale_ratio=1.5)
        np.testing.assert_allclose(center, 5, atol=1e-4)
        angle = np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
        zoom = 1 / np.sqrt(np.linalg.det(linear))
        np.testing.assert_allclose(linear[:, 0, 0], linear[:, 1, 1], atol=1e-4)
        np.testing.assert_allclose(linear[:, 0, 1], -linear[:, 1, 0], atol=1e-4)
        for value, bound in ((angle, 30), (np.log(zoom), math.log(1.5))):
            quantiles = np.quantile(value / bound, [0, 0.25, 0.5, 0.75, 1])
            np.testing.assert_allclose(quantiles, [-1, -0.5, 0, 0.5, 1], atol=0.06)

    def test_equals_scipy_with_the_same_map(self):
        images = noise(6, 13, 13, dtype=np.float32)
        options = {"rotation_degrees": 40, "scale_ratio": 1.3}
        moved = augmentation.random_affine(images, SEED, **options).numpy()
        linear, _ = self.maps(6, 13, **options)
        out = np.stack(np.meshgrid(np.arange(13), np.arange(13), indexing="xy")).reshape(2, -1) - 6.0
        for image, result, matrix in zip(images, moved, linear, strict=True):
            x, y = matrix @ out + 6.0
            for channel in range(3):
                expected = ndimage.map_coordinates(image[..., channel], [y, x], order=1, mode="reflect")
                np.testing.assert_allclose(result[..., channel].ravel(), expected, atol=0.1)

    def test_quarter_turn_equals_rot90(self):
        linear, _ = self.maps(4_000, 9, rotation_degrees=180, scale_ratio=1)
        angle = np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
        nearest = np.argmin(np.abs(angle - 90))
        images = np.broadcast_to(noise(1, 9, 9, dtype=np.float32), (4_000, 9, 9, 3))
        turned = augmentation.random_affine(images, SEED, rotation_degrees=180, scale_ratio=1)[nearest]
        # Among 4,000 angles one lies within 0.3 degrees of 90, which moves no pixel of the middle by more than 0.02.
        np.testing.assert_allclose(turned[2:-2, 2:-2], np.rot90(images[0])[2:-2, 2:-2], atol=8)

    def test_scale_ratio_below_one_raises(self):
        with pytest.raises(ValueError, match="at least 1"):
            augmentation.random_affine(noise(2, 8, 8), SEED, rotation_degrees=0, scale_ratio=0.8)


class TestColorJitter:
    GRAY = np.array([0.299, 0.587, 0.114])

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_no_jitter_is_the_identity(self, dtype):
        images = noise(5, 6, 4, dtype=dtype)
        result = augmentation.color_jitter(images, SEED, brightness=0, contrast=0, saturation=0)
        np.testing.assert_allclose(result, images, atol=0 if dtype == np.uint8 else 1e-3)

    def test_equals_one_by_one_in_numpy(self):
        images = 100 + noise(8, 6, 4, dtype=np.float32) / 5  # far enough from 0 and 255 that nothing is clipped
        options = {"brightness": 0.2, "contrast": 0.3, "saturation": 0.4}
        factor = {
            name: self.factor(images, name, **{key: options[key] * (key == name) for key in options})
            for name in options
        }
        x = images * factor["brightness"]
        mean = (x @ self.GRAY).mean(axis=(1, 2))[:, None, None, None]
        x = mean + (x - mean) * factor["contrast"]
        gray = (x @ self.GRAY)[..., None]
        x = gray + (x - gray) * factor["saturation"]
        np.testing.assert_allclose(augmentation.color_jitter(images, SEED, **options), x, rtol=1e-3)

    def factor(self, images, name, **options):
        """float64[batch, 1, 1, 1]: the factor drawn for each image, read off its pixels when it acts alone."""
        result = augmentation.color_jitter(images, SEED, **options).numpy()
        base = {
            "brightness": np.zeros([]),
            "contrast": (images @ self.GRAY).mean(axis=(1, 2))[:, None, None, None],
            "saturation": (images @ self.GRAY)[..., None],
        }[name]
        factor = ((result - base) * (images - base)).sum((1, 2, 3)) / ((images - base) ** 2).sum((1, 2, 3))
        return factor[:, None, None, None]

    @pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
    def test_factors_are_uniform(self, name):
        images = np.broadcast_to(80 + noise(1, 3, 3, dtype=np.float32) / 4, (2_000, 3, 3, 3))
        options = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0} | {name: 0.5}
        quantiles = np.quantile(self.factor(images, name, **options), [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quantiles, [0.5, 0.75, 1, 1.25, 1.5], atol=0.05)

    def test_clips_instead_of_wrapping_around(self):
        images = np.full((50, 2, 2, 3), 250, np.uint8)
        result = augmentation.color_jitter(images, SEED, brightness=1, contrast=0, saturation=0).numpy()
        brighter = (
            augmentation.color_jitter(
                images.astype(np.float32) / 10, SEED, brightness=1, contrast=0, saturation=0
            ).numpy()
            > 26
        )
        assert np.all(result[brighter] == 255)
        assert brighter.any()

    def test_saturation_leaves_one_channel_alone(self):
        images = noise(3, 5, 5, 1)
        result = augmentation.color_jitter(images, SEED, brightness=0, contrast=0, saturation=1)
        np.testing.assert_array_equal(result, images)

    def test_strength_outside_the_range_raises(self):
        with pytest.raises(ValueError, match=r"each lies in 0\.\.1"):
            augmentation.color_jitter(noise(2, 8, 8), SEED, brightness=0, contrast=1.5, saturation=0)


class TestErasing:
    @pytest.mark.parametrize("size", [1, 4, 5])
    def test_overwrites_one_square_cut_off_at_the_border(self, size):
        images = np.zeros((500, 10, 8, 3), np.uint8)
        erased = augmentation.random_erasing(images, SEED, size=size).numpy()
        assert set(np.unique(erased)) == {0, 128}
        areas = set()
        for mask in erased[..., 0] == 128:
            rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            areas.add((len(rows), len(columns)))
        smallest = size - size // 2  # a centre on the border
        sides = set(range(smallest, size + 1))
        assert areas == {(height, width) for height in sides for width in sides}

    def test_centers_are_uniform(self):
        erased = augmentation.random_erasing(np.zeros((6_000, 4, 3, 1), np.uint8), SEED, size=1).numpy()
        counts = (erased == 128).sum(axis=0).ravel()
        assert counts.sum() == 6_000
        # 11 degrees of freedom: chi-squared is above 32 with probability 0.001.
        assert ((counts - 500) ** 2 / 500).sum() < 32

    def test_fills_each_channel_with_its_own_value(self):
        erased = augmentation.random_erasing(noise(3, 6, 6), SEED, size=20, fill=[1, 2, 3])
        np.testing.assert_array_equal(erased, np.broadcast_to([1, 2, 3], (3, 6, 6, 3)))


class TestMixup:
    @staticmethod
    def mix(batch, alpha, seed=SEED, dtype=np.float32):
        images = noise(batch, 4, 5, dtype=dtype)
        labels = np.eye(batch, dtype=np.float32)
        mixed = augmentation.mixup(images, labels, seed, alpha=alpha)
        return images, labels, *(tensor.numpy() for tensor in mixed)

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_images_and_labels_are_the_same_blend_of_two_examples(self, dtype):
        images, _, mixed_images, mixed_labels = self.mix(12, 1.0, dtype=dtype)
        assert mixed_images.dtype == mixed_labels.dtype == np.float32
        assert np.all(mixed_labels >= 0)
        np.testing.assert_allclose(mixed_labels.sum(axis=1), 1, atol=1e-6)
        assert np.all((mixed_labels > 0).sum(axis=1) == 2)
        # With one class for each example, the labels are the weights of the examples.
        expected = np.tensordot(mixed_labels, images.astype(np.float32), axes=1)
        np.testing.assert_allclose(mixed_images, expected, atol=1e-3)
        share = np.diag(mixed_labels)
        assert len(np.unique(share)) == 12

    @pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
    def test_share_is_beta_distributed(self, alpha):
        ones = np.array([1.0, 0.0], np.float32)
        labels = np.tile(ones, (20_000, 1))[:, :1] * (np.arange(20_000) % 2)[:, None]
        _, mixed = augmentation.mixup(np.zeros((20_000, 1, 1, 1), np.uint8), labels, SEED, alpha=alpha)
        share = mixed[1::2, 0].numpy()  # a one after a zero keeps exactly its share
        variance = 1 / (4 * (2 * alpha + 1))
        assert abs(share.mean() - 0.5) < 5 * math.sqrt(variance / 10_000)
        assert abs(share.var() / variance - 1) < 0.06

    def test_same_seed_gives_the_same_and_another_seed_another_result(self):
        first, again, other = (self.mix(5, 0.4, seed=tf.constant(seed))[2] for seed in ([1, 2], [1, 2], [1, 3]))
        np.testing.assert_array_equal(first, again)
        assert np.any(first != other)

    @pytest.mark.parametrize("batch", [0, 1])
    def test_batches_of_none_and_one_stay_themselves(self, batch):
        images, labels, mixed_images, mixed_labels = self.mix(batch, 0.4)
        np.testing.assert_allclose(mixed_images, images, rtol=1e-5)
        np.testing.assert_allclose(mixed_labels, labels, rtol=1e-5)

    def test_small_alpha_leaves_most_examples_almost_whole(self):
        _, _, _, mixed = self.mix(1_000, 0.02)
        share = np.diag(mixed)
        # Beta(alpha, alpha) has about 2 alpha atanh(0.98) = 0.09 of its mass in 0.01..0.99, none of it at 1/2.
        assert 0.05 < np.mean((share > 0.01) & (share < 0.99)) < 0.13
        assert not np.any(share == 0.5)

    def test_graph_with_unknown_shape_equals_eager(self):
        images, labels, *eager = self.mix(6, 0.4)
        traced = tf.function(
            lambda images, labels, seed: augmentation.mixup(images, labels, seed, alpha=0.4),
            input_signature=[
                tf.TensorSpec([None, None, None, 3], tf.float32),
                tf.TensorSpec([None, None], tf.float32),
                tf.TensorSpec([2], tf.int32),
            ],
        )
        for one, other in zip(traced(images, labels, SEED), eager, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)

    def test_alpha_of_zero_raises(self):
        with pytest.raises(ValueError, match="above 0"):
            self.mix(2, 0.0)


class TestResize:
    @pytest.mark.parametrize("size", [(5, 7), (12, 3), (20, 9), 8])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_equals_tf_image_resize(self, size, channels):
        images = noise(3, 12, 9, channels, np.float32)
        pair = [size, size] if isinstance(size, int) else size
        expected = tf.image.resize(images, pair, antialias=True)
        np.testing.assert_allclose(augmentation.resize(images, size), expected, atol=1e-3)
        rounded = augmentation.resize(images.astype(np.uint8), size)
        assert rounded.dtype == tf.uint8
        np.testing.assert_allclose(tf.cast(rounded, tf.float32), expected, atol=0.501)

    def test_same_size_is_the_identity(self):
        images = noise(3, 8, 6)
        np.testing.assert_array_equal(augmentation.resize(images, (8, 6)), images)
        dynamic = tf.function(
            lambda images: augmentation.resize(images, (8, 6)),
            input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)],
        )
        np.testing.assert_array_equal(dynamic(images), images)

    @pytest.mark.parametrize("batch", [0, 1])
    def test_batches_of_none_and_one(self, batch):
        assert augmentation.resize(noise(batch, 8, 8), 6).shape == (batch, 6, 6, 3)

    def test_graph_with_unknown_shape_knows_the_new_size(self):
        traced = tf.function(
            lambda images: augmentation.resize(images, 6),
            input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)],
        )
        assert traced.get_concrete_function().output_shapes == tf.TensorShape([None, 6, 6, 3])
        images = noise(3, 9, 8)
        np.testing.assert_array_equal(traced(images), augmentation.resize(images, 6))


def test_corrupted_pictures_are_noisy_blurred_or_compressed_and_the_rest_is_not():
    smooth = np.stack([ndimage.gaussian_filter(image, (2, 2, 0)) for image in noise(40, 24, 20).astype(np.float32)])
    images = np.clip((smooth - 127) * 4 + 127, 0, 255).astype(np.uint8)
    traced = tf.function(lambda batch, seed: augmentation.corrupt(batch, seed, share=0.75))
    found = traced(images, SEED).numpy()
    np.testing.assert_array_equal(found, augmentation.corrupt(images, SEED, share=0.75))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[30:], images[30:])
    inside = (images[:10] > 40) & (images[:10] < 215)
    difference = np.where(inside, found[:10].astype(float) - images[:10], np.nan)
    deviations = np.nanstd(difference, (1, 2, 3))
    assert (deviations < 16).all()
    assert deviations.max() > 8
    assert np.abs(np.nanmean(difference)) < 0.5
    widths = np.arange(0.3, 1.2, 0.005)
    for before, after in zip(images[10:20], found[10:20], strict=True):
        blurred = [ndimage.gaussian_filter(before.astype(np.float32), (width, width, 0)) for width in widths]
        assert min(np.abs(one - after).max() for one in blurred) < 1.5
    assert (found[20:30] != images[20:30]).any((1, 2, 3)).all()
    assert np.abs(found[20:30].astype(float) - images[20:30]).mean() < 12
    np.testing.assert_array_equal(augmentation.corrupt(images, SEED, share=0), images)


@pytest.mark.parametrize(
    ("images", "share"), [(noise(3, 8, 8, 1), 0.5), (noise(3, 8, 8, dtype=np.float32), 0.5), (noise(3, 8, 8), 1.5)]
)
def test_what_cannot_be_corrupted_is_refused(images, share):
    with pytest.raises(ValueError, match="corrupt got"):
        augmentation.corrupt(images, SEED, share=share)
