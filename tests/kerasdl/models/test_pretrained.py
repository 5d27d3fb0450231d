"""Networks of keras.applications: what they give, and what is said of wrong names."""

import keras
import numpy as np
import pytest

from kerasdl.errors import UserError
from kerasdl.models import pretrained


def test_a_network_takes_what_its_preprocessing_gives():
    model, preprocess = pretrained.network("MobileNetV2", None, 64)
    assert model.output_shape == (None, 2, 2, 1280)
    np.testing.assert_allclose(preprocess(np.array([0.0, 127.5, 255.0])), [-1, 0, 1])


def test_a_classifier_scales_what_it_gets_and_ends_with_a_new_head():
    model = pretrained.classifier("MobileNetV2", None, 32, 5, dropout=0.5, name="backbone")
    assert [layer.name for layer in model.layers[-3:]] == ["pool", "dropout", "head"]
    assert model.layers[-4].name.startswith("mobilenetv2")
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 40, 3)).astype(np.float32)
    logits = model(images)
    assert (logits.shape, logits.dtype, model.name) == ((2, 5), "float32", "backbone")


def test_tuning_moves_kernels_and_leaves_batch_normalization_as_it_was():
    model = pretrained.classifier("MobileNetV2", None, 32, 5, dropout=0.0, name="backbone")
    base = model.layers[-4]
    images = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype(np.float32)
    kernel = base.get_layer("Conv1").kernel
    for tuned in (False, True):
        pretrained.tune(base, tuned, pretrained=True)
        before = {weight.path: weight.numpy() for weight in base.weights}
        model.compile("adam", "mse", jit_compile=False)
        model.fit(images, np.ones((8, 5)), epochs=2, verbose=0)
        moved = {weight.path for weight in base.weights if (weight.numpy() != before[weight.path]).any()}
        assert (kernel.path in moved) == tuned
        assert not [path for path in moved if "moving" in path or "BN" in path or "bn" in path]


def test_an_encoder_in_two_parts_equals_the_whole():
    keras.utils.set_random_seed(0)
    whole, nothing = pretrained.encoder("MobileNetV2", None, 64)
    keras.utils.set_random_seed(0)
    bottom, top = pretrained.encoder("MobileNetV2", None, 64, cut="block_12_add")
    assert nothing is None
    assert top.layers[1].name == "block_13_expand"
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    found, expected = top(bottom(images), training=False), whole(images)
    assert found.shape == (2, 2, 2, 1280)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)
    assert float(np.abs(expected).max()) > 0


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("MobileNet7", None, "MobileNet7 is not in keras.applications; choose one of .*MobileNetV2"),
        ("MobileNetV2", "nope.weights.h5", "the weights nope.weights.h5 do not exist; give"),
    ],
)
def test_wrong_names_are_said(name, weights, message):
    with pytest.raises(UserError, match=message):
        pretrained.network(name, weights, 64)


def test_weights_that_do_not_fit_are_said_in_one_line(tmp_path):
    (tmp_path / "text.weights.h5").write_text("no weights")
    with pytest.raises(UserError, match="do not load into MobileNetV2 at 64 pixels") as caught:
        pretrained.network("MobileNetV2", str(tmp_path / "text.weights.h5"), 64)
    assert "\n" not in str(caught.value)
