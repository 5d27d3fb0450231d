import itertools
import re

import keras
import numpy as np
import pytest
from matplotlib.colors import rgb_to_hsv
from scipy import ndimage, stats
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestCentroid

from kerasdl.data.synthetic import SHAPE_NAMES, bookkeeping, scenes, shapes


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


# --- Scenes --------------------------------------------------------------------------------------

ONE_SHAPE = r"a (small|large) ({}) (circle|square|triangle|cross)"
SCENE = re.compile(
    f"{ONE_SHAPE.format('red|orange|yellow')} (left of|right of|above|below) {ONE_SHAPE.format('green|blue|purple')}"
)
HUES = ((15, "red"), (43, "orange"), (90, "yellow"), (180, "green"), (255, "blue"), (320, "purple"), (361, "red"))


def slots_of(captions):
    """The seven words of each caption that are not the same in all, as numbers: int64[n, 7]."""
    words = np.array([SCENE.fullmatch(caption).groups() for caption in captions])
    return np.stack([np.unique(column, return_inverse=True)[1] for column in words.T], axis=1)


def seen_shape(image, mask):
    """Size, colour and shape by what the pixels of one part say, and its centroid and box."""
    size = len(image)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    upper, lower = mask[: rows[0] + height // 2].sum(), mask[rows[-1] + 1 - height // 2 :].sum()
    fill = mask.sum() / (height * width)
    if lower > 1.5 * upper:
        shape = "triangle"
    elif fill > 0.88:
        shape = "square"
    else:
        shape = "circle" if fill > 0.65 else "cross"
    hue = 360 * rgb_to_hsv(np.median(image[mask], axis=0) / 255)[0]
    color = next(name for limit, name in HUES if hue < limit)
    scale = "large" if max(height, width) > 0.27 * size else "small"
    return f"a {scale} {color} {shape}", np.array(ndimage.center_of_mass(mask)), np.array([rows, columns], object)


def test_captions_say_what_the_pixels_show():
    images, captions = scenes(300, size=128, seed=5)
    for image, caption in zip(images, captions, strict=True):
        is_colored = np.ptp(image.astype(int), axis=-1) > 64  # the noise of grey stays below
        parts, count = ndimage.label(is_colored, np.ones((3, 3)))
        assert count == 2
        assert not is_colored[[0, -1]].any()
        assert not is_colored[:, [0, -1]].any()
        seen = [seen_shape(image, parts == part) for part in (1, 2)]
        (first, from_center, from_box), (second, to_center, to_box) = sorted(
            seen, key=lambda shape: shape[0].split()[2] in ("green", "blue", "purple")
        )
        offset = to_center - from_center
        axis = np.argmax(np.abs(offset))
        relation = (("below", "above"), ("right of", "left of"))[axis][int(offset[axis] > 0)]
        assert caption == f"{first} {relation} {second}"
        # Clearly so: a gap between them in this direction, and not much of the other.
        before, behind = sorted((from_box[axis], to_box[axis]), key=lambda pixels: pixels[0])
        assert behind[0] - before[-1] > 7
        assert np.abs(offset[1 - axis]) < 0.55 * np.abs(offset[axis])


def test_no_word_of_a_caption_can_be_guessed():
    """Each word is uniform, and independent of every other."""
    slots = slots_of(scenes(6_000, size=8, seed=6)[1])
    for column, num_words in zip(slots.T, (2, 3, 4, 4, 2, 3, 4), strict=True):
        counts = np.bincount(column)
        assert len(counts) == num_words
        assert stats.chisquare(counts).pvalue > 1e-3
    for one, other in itertools.combinations(slots.T, 2):
        assert stats.chi2_contingency(stats.contingency.crosstab(one, other).count).pvalue > 1e-3


@pytest.mark.parametrize(("num_examples", "size"), [(0, 32), (3, 21)])
def test_scenes_dtypes_and_sizes(num_examples, size):
    images, captions = scenes(num_examples, size=size, seed=0)
    assert (images.shape, images.dtype) == ((num_examples, size, size, 3), np.uint8)
    assert len(captions) == num_examples
    assert scenes(1, seed=0)[0].shape == (1, 32, 32, 3)


def test_the_seed_decides_the_scenes():
    (images, captions), (again, same), (others, other) = (scenes(20, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(images, again)
    assert captions == same
    assert all(one != another for one, another in zip(captions, other, strict=True))
    assert np.all(np.any(images != others, axis=(1, 2, 3)))


def test_a_linear_model_does_not_caption_scenes():
    (images, captions), (test_images, test_captions) = scenes(2_000, seed=1), scenes(500, seed=2)
    pixels, test_pixels = (x.reshape(len(x), -1).astype(np.float32) / 255 - 0.5 for x in (images, test_images))
    slots, test_slots = slots_of(captions), slots_of(test_captions)
    edges = np.cumsum(slots.max(axis=0) + 1)[:-1]
    one_hot = np.concatenate([np.eye(column.max() + 1)[column] for column in slots.T], axis=1)
    scores = Ridge(alpha=100).fit(pixels, one_hot).predict(test_pixels)
    predicted = np.stack([part.argmax(axis=1) for part in np.split(scores, edges, axis=1)], axis=1)
    right = predicted == test_slots
    assert right[:, 0].mean() > 0.7  # it learns what is linear: the size of the warm shape is an amount of red
    assert right.all(axis=1).mean() < 0.1


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
