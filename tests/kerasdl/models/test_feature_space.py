import math
import random
import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from kerasdl.data import synthetic
from kerasdl.data.image_data import Images
from kerasdl.errors import UserError
from kerasdl.metrics import generated_pictures
from kerasdl.models import feature_space
from kerasdl.models.feature_space import FeatureSpace, compare, from_applications, trained

IMAGES, LABELS = synthetic.shapes(2000, size=24, num_classes=4, seed=0)
TRAINING, HELD = slice(1200), slice(1200, None)


def on_shapes(folder, images=IMAGES[TRAINING], labels=LABELS[TRAINING], **options):
    options = {"data": "drawn shapes", "epochs": 4, "progress": False} | options
    return trained(images, labels, folder=folder, **options)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder, and the space that was trained for it."""
    folder = tmp_path_factory.mktemp("features")
    return folder, on_shapes(folder)


# --- What it is good for ---------------------------------------------------------------------------------------------


def test_it_knows_the_classes_and_says_what_it_is(kept):
    _, space = kept
    seen = space.classify(IMAGES[HELD])
    assert np.mean(seen == LABELS[HELD]) > 0.75  # chance is 1/4
    features = space.features(IMAGES[:3])
    assert (features.shape, features.dtype) == ((3, 256), np.float32)
    assert space.name.startswith("fast network, 4 epochs on the classes of drawn shapes, weights ")
    assert (space.classifies, space.distance) == (True, "frechet")


def test_a_network_that_has_not_learned_the_classes_is_pointed_out(kept, capsys):
    on_shapes(kept[0])
    assert not capsys.readouterr().err
    labels = np.random.default_rng(0).permutation(LABELS[:200])
    on_shapes(None, IMAGES[:200], labels, epochs=1)
    assert "of its own training pictures; expected half" in capsys.readouterr().err


def test_the_more_pictures_are_damaged_the_farther_they_are_from_real_ones(kept):
    _, space = kept
    real, other = IMAGES[1200:1600], IMAGES[1600:]
    blurred = [np.uint8(gaussian_filter(other, (0, sigma, sigma, 0))) for sigma in (0.5, 1, 2)]
    noise = np.random.default_rng(0).integers(0, 256, other.shape, np.uint8)
    distances = [
        generated_pictures.frechet_distance(space.features(real), space.features(some))
        for some in (other, *blurred, noise)
    ]
    assert distances == sorted(distances)
    assert distances[2] > 2 * distances[0]


def test_without_labels_it_learns_by_which_angle_a_picture_is_turned():
    """Brightness that falls from top to bottom, on noise: a quarter turn to the left has it fall from left to right."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(180, 60, 16)[:, None, None]
    images = np.uint8(np.clip(ramp + 20 * rng.standard_normal((400, 16, 16, 1)), 0, 255))
    space = trained(images[:300], data="ramps", epochs=6, progress=False)
    for quarters in range(4):
        turned = np.rot90(images[300:], quarters, (1, 2))
        seen = space.network.predict_on_batch(turned)["logits"].argmax(1)
        assert np.mean(seen == quarters) > 0.9
    assert "6 epochs on the angles of ramps" in space.name
    with pytest.raises(ValueError, match="knows no classes; expected a space that was trained with labels"):
        space.classify(images)


# --- The file --------------------------------------------------------------------------------------------------------


def test_it_is_trained_once_for_these_pictures_labels_and_settings(kept, monkeypatch):
    folder, space = kept
    asked = []

    def refuse(*arguments):
        asked.append(arguments)
        raise RuntimeError("trains")

    monkeypatch.setattr(feature_space, "_train", refuse)
    again = on_shapes(folder)
    assert (again.name, again.classifies) == (space.name, True)
    np.testing.assert_array_equal(again.features(IMAGES[HELD]), space.features(IMAGES[HELD]))
    changed = IMAGES[TRAINING].copy()
    changed[5, 5, 5, 0] ^= 1
    for other in (
        {"images": changed},
        {"labels": np.roll(LABELS[TRAINING], 1)},
        {"labels": None},
        {"epochs": 5},
        {"data": "others"},
        {"folder": folder / "new"},
    ):
        with pytest.raises(RuntimeError, match="trains"):
            on_shapes(**{"folder": folder} | other)
    assert len(asked) == 6


@pytest.mark.parametrize("broken", ["damaged", "foreign"])
def test_a_damaged_or_foreign_file_is_made_anew_and_equals_the_first_one(kept, broken, tmp_path, capsys, monkeypatch):
    """So training again gives the same network, bit for bit, whatever other generators were at."""
    folder, space = kept
    (path,) = folder.glob("*.npz")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    copy = tmp_path / path.name
    if broken == "damaged":
        content = bytearray(copy.read_bytes())
        content[len(content) // 2] ^= 1
        copy.write_bytes(content)
    else:
        with np.load(path) as file:
            np.savez(copy, **{**file, "identity": np.array("another")})
    random.seed(123)
    before = random.getstate()
    again = on_shapes(tmp_path)
    assert random.getstate() == before
    np.testing.assert_array_equal(again.features(IMAGES[HELD]), space.features(IMAGES[HELD]))
    assert f"The feature network {copy} is damaged, or another one; training it anew." in capsys.readouterr().err
    monkeypatch.setattr(feature_space, "_train", None)
    assert on_shapes(tmp_path).name == space.name


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/.*\.npz cannot be written \(.*\); expected room and permission there"):
        on_shapes(tmp_path / "file")


# --- Networks of keras.applications ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "side", "distance"), [("InceptionV3", 299, "fid"), ("MobileNetV2", 224, "frechet")])
def test_only_inception_gives_what_is_called_fid(name, side, distance, monkeypatch):
    """The network gives the mean of each colour, times a weight of two."""
    asked = []

    def network(*arguments):
        asked.append(arguments)
        scale = keras.layers.Conv2D(3, 1, use_bias=False)
        model = keras.Sequential([keras.Input((side, side, 3)), scale])
        scale.kernel.assign(np.reshape(2 * np.eye(3), (1, 1, 3, 3)))
        return model, lambda x: x / 127.5 - 1

    monkeypatch.setattr(feature_space.pretrained, "network", network)
    space = from_applications(name, "some/file.weights.h5")
    assert asked == [(name, "some/file.weights.h5", side)]
    assert space.distance == distance
    assert space.name.startswith(f"{name} of keras.applications at {side} pixels, weights ")
    assert not space.classifies
    colors = np.broadcast_to(np.uint8([0, 51, 255]), (2, 8, 8, 3))
    np.testing.assert_allclose(space.features(colors), [[-2, -1.2, 2]] * 2, rtol=2e-3)
    grey = np.full((1, 8, 8, 1), 51, np.uint8)
    np.testing.assert_allclose(space.features(grey), [[-1.2] * 3], rtol=2e-3)


# --- Comparing -------------------------------------------------------------------------------------------------------


def of_brightness(**options):
    """Two features, the mean of each half; class 1 is bright on the left."""
    image = keras.Input((2, 2, 1))
    means = keras.ops.mean(image, (1, 3))
    logits = keras.ops.concatenate([100 - means[:, :1], means[:, :1] - 100], 1)
    network = keras.Model(image, {"features": means, "logits": logits})
    return FeatureSpace("brightness", network, 2, classifies=True, **options)


def drawn(count, seed):
    """Noise; labels are right."""
    images = np.random.default_rng(seed).integers(0, 200, (count, 2, 2, 1), np.uint8)
    return images, (images[:, :, 0].mean((1, 2)) > 100).astype(int)


def test_generated_pictures_are_measured_beside_real_ones():
    space = of_brightness()
    (training, training_labels), (test, test_labels), (made, _) = drawn(60, 0), drawn(20, 1), drawn(20, 2)
    known = space.features(training)
    asked = 1 - space.classify(made)
    asked[:5] = 1 - asked[:5]
    found = compare(space, made, Images(test, test_labels), known, asked=asked, training_labels=training_labels)
    real, generated = space.features(test), space.features(made)
    expected = {
        "feature_space": "brightness",
        "frechet": generated_pictures.frechet_distance(real, generated),
        **generated_pictures.precision_and_recall(real, generated),
        "nearest_distance": np.mean([np.linalg.norm(known - one, axis=1).min() for one in generated]),
        "nearest_distance_test": np.mean([np.linalg.norm(known - one, axis=1).min() for one in real]),
        **generated_pictures.modes_hit(space.classify(made), training_labels),
        "classifier_accuracy": 1,
        "class_accuracy": 5 / 20,
    }
    floor = found.pop("frechet_floor")
    name = found.pop("feature_space")
    assert (name, found) == (expected.pop("feature_space"), pytest.approx(expected, rel=1e-5))
    assert 0 < floor < generated_pictures.frechet_distance(real, 0.2 * real)


def test_copies_are_nearer_than_new_pictures_and_labels_are_not_needed():
    (training, labels), (test, _) = drawn(60, 0), drawn(20, 1)
    space = of_brightness(distance="fid")
    known, held_out = space.features(training), Images(test, labels[:20])
    copied = compare(space, training[:20], held_out, known, training_labels=labels)
    assert copied["nearest_distance"] == pytest.approx(0, abs=1e-3)
    assert copied["nearest_distance_test"] > 1
    assert {"fid", "fid_floor", "modes_hit"} <= set(copied)
    assert not {"frechet", "class_accuracy"} & set(copied)
    plain = FeatureSpace("plain", space.network, 2)
    metrics = compare(plain, training[:20], Images(test), known)
    assert not {"modes_hit", "classifier_accuracy", "class_accuracy"} & set(metrics)
    assert metrics["frechet"] == pytest.approx(copied["fid"])


@pytest.mark.parametrize(("count", "defined"), [(1, False), (2, True)])
def test_the_distance_to_one_picture_is_undefined(count, defined):
    pictures = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 1), np.uint8)
    space = SimpleNamespace(features=lambda images: images.reshape(len(images), -1) / 255)
    logs = {}
    feature_space.FrechetDistance(space, pictures, lambda: 255 - pictures).on_epoch_end(0, logs)
    assert math.isfinite(logs["val_frechet"]) == defined
