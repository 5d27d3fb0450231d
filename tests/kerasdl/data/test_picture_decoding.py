import encoded_pictures
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from apps import captioner, cifar10, denoiser, vae
from kerasdl import export
from kerasdl.data import picture_decoding, picture_files

KINDS = encoded_pictures.every_kind()
DAMAGED = encoded_pictures.damaged()


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_any_kind_shows_what_it_holds(kind):
    content, expected = KINDS[kind]
    actual = picture_decoding.decode(tf.constant(content)).numpy()
    assert (actual.shape, actual.dtype) == (expected.shape, np.uint8)
    assert np.abs(actual.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_picture_raises_and_the_reason_is_short(kind):
    content, expected = DAMAGED[kind]
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        picture_decoding.decode(tf.constant(content))
    reason = picture_decoding.reason(caught.value)
    assert expected in reason
    assert len(reason) < 60


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_training_sees_every_kind_as_the_graph_of_an_export_does(tmp_path, fit):
    contents = [content for content, _ in KINDS.values()]
    paths = [tmp_path / str(index) for index in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    seen, kept, skipped = picture_files.decode(paths, size=16, fit=fit)
    assert skipped == []
    assert len(kept) == len(contents)
    endpoint = tf.function(lambda image_bytes: export.decode_images(image_bytes, 16, squash=fit == "squash"))
    np.testing.assert_array_equal(endpoint(tf.constant(contents)), seen)


def test_help_and_cards_name_the_formats():
    verbs = [verb for module in (captioner, cifar10, denoiser, vae) for verb in module.VERBS]
    takes_pictures = [verb for verb in verbs if "pictures" in verb.__annotations__]
    assert len(takes_pictures) == 5
    assert all(picture_decoding.NAMED in verb.__doc__ for verb in takes_pictures)
    assert picture_decoding.NAMED in export.ENCODED


def test_squares_are_scaled_as_by_pillow():
    for content, pixels in list(KINDS.values())[::7]:
        whole = picture_decoding.square(tf.constant(content), 16, squash=True).numpy()
        image = Image.fromarray(pixels.astype(np.uint8)).resize((16, 16), Image.Resampling.BILINEAR)
        assert np.abs(whole.astype(int) - np.asarray(image)).max() <= 2


def test_pictures_in_the_size_of_the_squares_keep_every_value():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    content = tf.io.encode_png(pixels)
    np.testing.assert_array_equal(picture_decoding.square(content, 24), pixels)
    np.testing.assert_array_equal(picture_decoding.square(content, 24, squash=True), pixels)


def test_grey_keeps_grey_and_weighs_colours_as_pillow_does():
    values = np.arange(256, dtype=np.uint8)[:, None]
    np.testing.assert_array_equal(picture_decoding.grey(np.repeat(values, 3, -1)), values)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    np.testing.assert_array_equal(
        picture_decoding.grey(pixels)[..., 0], np.asarray(Image.fromarray(pixels).convert("L"))
    )


def test_a_large_jpeg_is_decoded_reduced_and_looks_the_same():
    x, y = np.meshgrid(np.linspace(0, 255, 1600), np.linspace(0, 255, 1200))
    pixels = np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)
    jpeg, png = (tf.constant(encoded_pictures.encoded(Image.fromarray(pixels), form)) for form in ("JPEG", "PNG"))
    assert picture_decoding.decode(jpeg, least=150).shape == (150, 200, 3)
    assert picture_decoding.decode(jpeg, least=151).shape == (300, 400, 3)
    assert picture_decoding.decode(png, least=150).shape == (1200, 1600, 3)
    reduced, whole = (picture_decoding.square(one, 18).numpy().astype(int) for one in (jpeg, png))
    assert np.abs(reduced - whole).max() <= 2


def test_an_export_holds_the_decoder_once_and_on_the_cpu():
    @tf.function(autograph=False)
    def twice(image_bytes):
        return export.decode_images(image_bytes, 8), export.decode_images(image_bytes, 9, squash=True)

    graph = twice.get_concrete_function(tf.TensorSpec([None], tf.string)).graph.as_graph_def()
    nodes = [node for function in graph.library.function for node in function.node_def]
    decoders = [node for node in nodes if node.op.startswith("Decode")]
    assert sum(node.op == "DecodeBmp" or node.op == "DecodeWebP" for node in decoders) == 2  # still and first frame
    assert {node.device.lower().rpartition("/")[2] for node in decoders} == {"device:cpu:0"}
    assert not any("PyFunc" in node.op for node in nodes)
    assert len(graph.SerializeToString()) < 600_000
