import re

import keras
import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from kerasdl.data.synthetic import SHAPE_NAMES, bookkeeping, shapes


@pytest.fixture(scope="module")
def four_classes():
    images, labels = shapes(3_000, seed=1)
    return (images[:2_000], labels[:2_000]), (images[2_000:], labels[2_000:])


@pytest.mark.parametrize(("num_examples", "size", "num_classes"), [(0, 32, 4), (1, 16, 2), (23, 20, 10)])
def test_shapes_dtypes_and_balance(num_examples, size, num_classes):
    images, labels = shapes(num_examples, size=size, num_classes=num_classes, seed=0)
    assert images.shape == (num_examples, size, size, 3)
    assert labels.shape == (num_examples,)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    counts = np.bincount(labels, minlength=num_classes)
    assert len(counts) == num_classes
    assert counts.max() - counts.min() <= 1


def test_default_classes_are_the_first_four():
    assert SHAPE_NAMES[:4] == ("circle", "square", "triangle", "cross")
    assert set(shapes(40, seed=0)[1]) == {0, 1, 2, 3}


def test_same_seed_gives_the_same_and_another_seed_other_images():
    first, again, other = (shapes(20, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert np.any(first[0] != other[0])
    assert np.any(first[1] != other[1])


@pytest.mark.parametrize("num_classes", [1, 11])
def test_impossible_number_of_classes_raises(num_classes):
    with pytest.raises(ValueError, match=f"2 to 10 shapes; got num_classes={num_classes}"):
        shapes(5, num_classes=num_classes, seed=0)


def test_each_name_has_the_geometry_it_promises():
    """Holes, convexity and elongation of the drawn shapes, measured on the pixels."""
    images, labels = shapes(200, size=64, num_classes=10, seed=3)
    measured = {name: [] for name in SHAPE_NAMES}
    for image, label in zip(images.astype(int), labels, strict=True):
        contrast = np.abs(image - image[[0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=0)).mean(axis=-1)
        mask = contrast > np.quantile(contrast, 0.99) / 2
        parts, _ = ndimage.label(mask)
        assert np.bincount(parts[mask]).max() > 0.95 * mask.sum()  # the tip of a star may come off
        filled = ndimage.binary_fill_holes(mask)
        row, column = np.nonzero(mask)
        axes = np.sqrt(np.linalg.eigvalsh(np.cov(np.stack([row, column]))))
        # Of a convex shape, the point halfway between any two of its pixels belongs to it too.
        half = np.random.default_rng(0).permutation(len(row))
        middle = filled[(row + row[half]) // 2, (column + column[half]) // 2].mean()
        measured[SHAPE_NAMES[label]].append([filled.sum() / mask.sum() - 1, middle, axes[1] / axes[0]])
    hole, convexity, elongation = (
        {name: np.array(values)[:, column] for name, values in measured.items()} for column in range(3)
    )
    for name in SHAPE_NAMES:
        assert np.all((hole[name] > 0.2) == (name in {"ring", "frame"})), name
        assert np.all((convexity[name] < 0.95) == (name in {"cross", "star", "crescent"})), name
        assert np.all((elongation[name] > 1.1) == (name in {"crescent", "bar", "half disc"})), name
    assert np.all(elongation["bar"] > 3)


def test_foreground_contrasts_with_background():
    images, _ = shapes(100, size=48, seed=2)
    corner = images[:, :2, :2].reshape(100, 4, 3).mean(axis=1)
    difference = np.abs(images - corner[:, None, None]).max(axis=(1, 2))
    assert np.all(difference > 80)


@pytest.mark.parametrize(
    "model", [LogisticRegression(C=0.01, tol=0.01), NearestCentroid()], ids=lambda model: type(model).__name__
)
def test_linear_models_on_pixels_stay_near_chance(four_classes, model):
    (images, labels), (test_images, test_labels) = (
        (images.reshape(len(images), -1).astype(np.float32) / 255 - 0.5, labels) for images, labels in four_classes
    )
    model.fit(images, labels)
    assert model.score(test_images, test_labels) < 0.35  # chance is 0.25


def test_colour_statistics_tell_nothing(four_classes):
    """Mean and spread of each channel, which a network could use instead of the shape."""
    (images, labels), (test_images, test_labels) = (
        (np.concatenate([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1) / 64, labels)
        for images, labels in four_classes
    )
    score = LogisticRegression().fit(images, labels).score(test_images, test_labels)
    assert score < 0.45


def test_small_convolutional_network_learns_them(four_classes):
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(x)
    for filters in (16, 32, 64):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.8)(x)
        x = keras.layers.ReLU()(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Dense(4)(keras.layers.GlobalMaxPooling2D()(x))
    model = keras.Model(inputs, x)
    model.compile(
        keras.optimizers.Adam(3e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    train, test = four_classes
    model.fit(*train, epochs=6, batch_size=64, verbose=0)
    assert model.evaluate(*test, verbose=0, return_dict=True)["accuracy"] > 0.8


# --- Bookkeeping ---------------------------------------------------------------------------------

LINE = re.compile(r'(anna|bruno|clara|dmitri|elena) (pays|owes|lends) "([a-z ]+)" \((\d)\+(\d)\)=(\d);')


def test_every_line_is_well_formed_and_its_sum_is_right():
    lines = bookkeeping(20_000, seed=0).split("\n")
    found = [LINE.fullmatch(line) for line in lines[:-1]]  # the last one is cut off
    assert all(found)
    assert all(int(match[4]) + int(match[5]) == int(match[6]) for match in found)
    # Everything is drawn at random and independently: no name tells the item or the amount.
    assert {match[3] for match in found} == {"bread", "copper wire", "honey", "ink and paper", "salt"}
    assert len({match.group(1, 2) for match in found}) == 15
    assert len({match.group(1, 3) for match in found}) == 25
    assert len({match.group(4, 5) for match in found}) == 25
    counts = np.unique([match[3] for match in found], return_counts=True)[1]
    assert counts.min() > 0.7 * counts.mean()


@pytest.mark.parametrize("length", [0, 1, 29, 30, 1_000])
def test_the_length_is_exact_and_a_longer_text_begins_as_a_shorter_one(length):
    assert bookkeeping(length, seed=3) == bookkeeping(5_000, seed=3)[:length]
    assert len(bookkeeping(length, seed=3)) == length


def test_the_seed_decides_the_text():
    assert bookkeeping(500, seed=1) == bookkeeping(500, seed=1)
    assert bookkeeping(500, seed=1) != bookkeeping(500, seed=2)
