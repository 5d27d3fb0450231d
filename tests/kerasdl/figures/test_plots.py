import itertools
import math

import numpy as np
import pytest
from PIL import Image

from kerasdl.errors import UserError
from kerasdl.figures import plots

LONG_NAMES = [f"a golden retriever that waits in front of a shop, number {index}" for index in range(100)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, for a look at what they hold."""
    figures = []
    save = plots.save

    def keep(figure, path):
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    return figures


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def flat(color, *, height=8, width=8):
    return np.full((height, width, 3), color, np.uint8)


def assert_nothing_is_cut_off(figure):
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width
    assert box.y1 <= height


# --- learning curves ---


def test_learning_curves_pair_training_with_validation_and_mark_the_best_epoch(tmp_path, drawn):
    log = tmp_path / "log.csv"
    log.write_text(
        "epoch,accuracy,loss,learning_rate,val_accuracy,val_loss\n"
        "3,0.5,2.0,0.1,0.4,2.5\n"
        "4,0.6,1.0,0.1,NA,NA\n"
        "5,0.7,0.5,0.1,0.6,1.5\n"
        "6,0.8,0.2,0.1,0.7,1.75\n"
    )
    path = plots.learning_curves(log, tmp_path / "figures" / "curves.png")
    assert pixels(path).std() > 0
    (figure,) = drawn
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == ["accuracy", "loss", "learning_rate"]
    training, validation, best = panels["loss"].lines
    assert (training.get_label(), validation.get_label()) == ("training", "validation")
    np.testing.assert_array_equal(training.get_xydata(), [[3, 2], [4, 1], [5, 0.5], [6, 0.2]])
    np.testing.assert_array_equal(validation.get_xydata(), [[3, 2.5], [5, 1.5], [6, 1.75]])
    assert set(best.get_xdata()) == {5}
    assert figure.get_suptitle() == "best epoch 5: val_loss 1.5"
    assert panels["learning_rate"].get_legend() is None
    assert_nothing_is_cut_off(figure)


def test_learning_curves_of_a_history_with_a_metric_to_maximise(tmp_path, drawn):
    history = {"val_accuracy": [0.5, math.nan, 0.9, 0.7], "val_loss": [4, 3, 2, 1]}
    plots.learning_curves(history, tmp_path / "curves.png", monitor="val_accuracy", mode="max")
    assert drawn[0].get_suptitle() == "best epoch 2: val_accuracy 0.9"


def test_learning_curves_without_the_monitored_metric_have_no_mark(tmp_path, drawn):
    plots.learning_curves({"generator_loss": [1.0], "val_loss": [math.nan]}, tmp_path / "curves.png")
    assert drawn[0].get_suptitle() == ""
    assert all(tick == round(tick) for tick in drawn[0].axes[0].get_xticks())


@pytest.mark.parametrize("content", ["", "epoch,loss\n", "epoch\n1\n"])
def test_log_without_epochs_is_the_users_mistake(tmp_path, content):
    log = tmp_path / "log.csv"
    log.write_text(content)
    with pytest.raises(UserError, match=r"log\.csv holds no epoch"):
        plots.learning_curves(log, tmp_path / "curves.png")


def test_metrics_of_different_lengths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="different lengths"):
        plots.learning_curves({"loss": [1.0, 2.0], "val_loss": [1.0]}, tmp_path / "curves.png")


# --- confusion matrix ---


def test_confusion_matrix_is_coloured_by_row_and_carries_counts(tmp_path, drawn):
    plots.confusion_matrix(np.array([[6, 2, 0], [0, 5, 0], [0, 0, 0]]), ["a$b$", "cat", "dog"], tmp_path / "m.png")
    shares = drawn[0].axes[0].images[0].get_array()
    np.testing.assert_allclose(shares, [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]])
    assert texts(drawn[0]) == ["6", "2", "0", "0", "5", "0", "0", "0", "0"]
    assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == [r"a\$b\$", "cat", "dog"]


@pytest.mark.parametrize("classes", [2, 20, 21, 100])
def test_confusion_matrix_stays_readable(tmp_path, drawn, classes):
    rng = np.random.default_rng(0)
    path = plots.confusion_matrix(rng.integers(0, 5000, (classes, classes)), LONG_NAMES[:classes], tmp_path / "m.png")
    (figure,) = drawn
    axes = figure.axes[0]
    assert len(axes.texts) == (classes**2 if classes <= 20 else 0)
    assert_nothing_is_cut_off(figure)
    labels = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(labels))
    assert min(label.get_fontsize() for label in axes.get_yticklabels()) >= 6
    cell = axes.get_window_extent().width / classes
    assert all(text.get_window_extent().width < cell for text in axes.texts)
    assert max(pixels(path).shape) < 2000


def test_shortened_names_stay_apart(tmp_path, drawn):
    plots.confusion_matrix(np.eye(100, dtype=int), LONG_NAMES, tmp_path / "m.png")
    assert len({label.get_text() for label in drawn[0].axes[0].get_xticklabels()}) == 100


def test_matrix_that_does_not_fit_the_names_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected \(3, 3\)"):
        plots.confusion_matrix(np.eye(2, dtype=int), ["a", "b", "c"], tmp_path / "m.png")


# --- calibration ---


def test_calibration_draws_the_accuracy_of_each_bin(tmp_path, drawn):
    probabilities = np.array([[1.0, 0.0]] * 30 + [[0.65, 0.35]] * 10)
    labels = np.array([0] * 15 + [1] * 15 + [0] * 8 + [1] * 2)
    plots.calibration(probabilities, labels, tmp_path / "calibration.png")
    histogram, diagram = drawn[0].axes
    accuracy = {round(bar.get_x() * 15): bar.get_height() for bar in diagram.patches}
    assert {place: height for place, height in accuracy.items() if height} == {9: 0.8, 14: 0.5}
    assert [bar.get_height() for bar in histogram.patches if bar.get_height()] == [0.25, 0.75]
    # 3/4 of the examples are off by 0.5, a quarter by 0.15.
    assert histogram.get_title() == "expected calibration error 0.412"


# --- grids of images ---


def test_image_grid_places_the_images_row_by_row_with_exact_pixels(tmp_path):
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 99, 199), (200, 100, 0)]
    path = plots.image_grid(np.stack([flat(color) for color in colors]), tmp_path / "grid.png", columns=3)
    # 8 pixels are enlarged 8 times; tiles lie 4 pixels apart, and 4 from the border.
    picture = pixels(path)
    assert picture.shape == (2 * 68 + 4, 3 * 68 + 4, 3)
    for index, color in enumerate(colors):
        top, left = 4 + 68 * (index // 3), 4 + 68 * (index % 3)
        assert (picture[top : top + 64, left : left + 64] == color).all()
    assert (picture[72:, 4 + 2 * 68 :] == 255).all()  # no sixth image


def test_image_grid_takes_grey_float_images_of_any_shape(tmp_path):
    image = np.zeros((1, 10, 20), np.float32)
    image[:, :, 10:] = 1.0
    picture = pixels(plots.image_grid(image, tmp_path / "grid.png"))
    assert picture.shape == (48, 88, 3)
    assert (picture[4:44, 4:44] == 0).all()
    assert (picture[4:44, 44:84] == 255).all()


def test_large_images_are_shrunk(tmp_path):
    picture = pixels(plots.image_grid(np.zeros((2, 300, 600, 3), np.uint8), tmp_path / "grid.png"))
    assert picture.shape == (88, 332, 3)


def test_titles_stay_over_their_images(tmp_path, drawn):
    images = np.stack([flat(0)] * 4)
    titles = ["W" * 10 + "\n$x$", LONG_NAMES[0] + "\n" + LONG_NAMES[1], "a", "b"]
    plots.image_grid(images, tmp_path / "grid.png", columns=2, titles=titles)
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.texts][:2] == [r"\$x\$", "W" * 10]
    tiles = [image.get_window_extent() for image in axes.images]
    owner = [0, 0, 1, 1, 2, 3]
    for text, tile in zip(axes.texts, owner, strict=True):
        box = text.get_window_extent()
        assert tiles[tile].x0 - 1 <= box.x0
        assert box.x1 <= tiles[tile].x1 + 10
        assert box.y0 >= tiles[tile].y1
        assert tile < 2 or box.y1 <= tiles[tile - 2].y0
    assert_nothing_is_cut_off(drawn[0])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), "at least one"),
        (np.zeros((2, 8, 8, 4), np.uint8), "1 or 3 channels"),
        (np.full((2, 8, 8, 3), 200.0), "scale or clip"),
        (np.full((2, 8, 8, 3), np.nan), "scale or clip"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, images, message):
    with pytest.raises(ValueError, match=message):
        plots.image_grid(images, tmp_path / "grid.png")


def test_a_title_for_each_image_is_required(tmp_path):
    with pytest.raises(ValueError, match="1 images and 2 titles"):
        plots.image_grid(flat(0)[None], tmp_path / "grid.png", titles=["a", "b"])


def test_worst_errors_shows_the_most_confident_mistakes_first(tmp_path, drawn):
    images = np.stack([flat(color) for color in (0, 50, 100, 150, 200)])
    labels = np.array([0, 0, 1, 1, 0])
    probabilities = np.array([[0.99, 0.01], [0.3, 0.7], [0.9, 0.1], [0.45, 0.55], [0.4, 0.6]])
    path = plots.worst_errors(images, labels, probabilities, ["cat", "dog"], tmp_path / "e.png", count=2)
    # Each title's last line is drawn first.
    assert texts(drawn[0]) == ["→ cat 0.90", "dog", "→ dog 0.70", "cat"]
    shown = [image.get_array()[0, 0, 0] * 255 for image in drawn[0].axes[0].images]
    assert shown == pytest.approx([100, 50])
    assert pixels(path).std() > 0


def test_worst_errors_keeps_the_probability_of_long_names(tmp_path, drawn):
    plots.worst_errors(flat(0)[None], np.array([1]), np.array([[0.875, 0.125]]), LONG_NAMES, tmp_path / "e.png")
    assert texts(drawn[0])[0].endswith("0.88")


def test_worst_errors_without_a_mistake_says_so(tmp_path, drawn):
    probabilities = np.array([[0.9, 0.1]])
    plots.worst_errors(flat(0)[None], np.array([0]), probabilities, ["cat", "dog"], tmp_path / "e.png")
    assert drawn[0].texts[0].get_text() == "no mistake among 1 examples"


def test_worst_errors_of_different_lengths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="pass the same examples"):
        plots.worst_errors(flat(0)[None], np.array([0, 1]), np.eye(2), ["cat", "dog"], tmp_path / "e.png")


# --- what a network sees ---


def test_filters_of_colour_images_are_drawn_in_colour(tmp_path):
    kernel = np.zeros((2, 2, 3, 2), np.float32)
    kernel[0, 0, 0, 0] = 5.0  # filter 0: red, at the upper left
    kernel[1, 1, 2, 1] = 0.1  # filter 1: blue, at the lower right, weaker but stretched too
    picture = pixels(plots.filters(kernel, tmp_path / "filters.png"))
    assert picture[4 + 10, 4 + 10].tolist() == [255, 0, 0]
    assert picture[4 + 50, 4 + 10].tolist() == [0, 0, 0]
    assert picture[4 + 50, 4 + 68 + 50].tolist() == [0, 0, 255]


def test_filters_of_other_images_are_drawn_as_their_mean_over_channels(tmp_path, drawn):
    kernel = np.zeros((1, 2, 4, 1), np.float32)
    kernel[0, 0, :, 0] = [1, 1, -1, -1]  # mean 0
    kernel[0, 1, :, 0] = [1, 0, 0, 0]  # mean 0.25
    plots.filters(kernel, tmp_path / "filters.png")
    low, high = drawn[0].axes[0].images[0].get_array()[0]
    np.testing.assert_allclose(low, plots._COLORMAP(0.0)[:3], atol=1e-6)
    np.testing.assert_allclose(high, plots._COLORMAP(1.0)[:3], atol=1e-6)


def test_activation_maps_have_one_tile_a_channel_and_dark_dead_channels(tmp_path, drawn):
    activations = np.zeros((4, 4, 3), np.float32)
    activations[1, 2, 0] = 0.01
    activations[..., 1] = 7.0
    plots.activation_maps(activations, tmp_path / "maps.png")
    tiles = [image.get_array() for image in drawn[0].axes[0].images]
    dark, bright = plots._COLORMAP(0.0)[:3], plots._COLORMAP(1.0)[:3]
    assert len(tiles) == 3
    np.testing.assert_allclose(tiles[0][1, 2], bright, atol=1e-6)
    np.testing.assert_allclose(tiles[0][2, 1], dark, atol=1e-6)
    np.testing.assert_allclose(tiles[1], np.broadcast_to(dark, (4, 4, 3)), atol=1e-6)


@pytest.mark.parametrize("function", [plots.filters, plots.activation_maps])
def test_wrong_rank_is_refused(tmp_path, function):
    with pytest.raises(ValueError, match=r"have shape|has shape"):
        function(np.zeros((3, 3)), tmp_path / "x.png")


def test_saliency_darkens_what_does_not_matter(tmp_path, drawn):
    saliency_map = np.full((8, 8), -0.5, np.float32)
    saliency_map[2, 3] = 0.25
    plots.saliency(flat(200), saliency_map, tmp_path / "saliency.png", title="for $dog$")
    image, heat, darkened = (axes.images[0].get_array() for axes in drawn[0].axes[:3])
    np.testing.assert_array_equal(heat, saliency_map)
    np.testing.assert_allclose(darkened[2, 3], image[2, 3])
    np.testing.assert_allclose(darkened[0, 0], image[0, 0] * 0.25)
    assert drawn[0].get_suptitle() == r"for \$dog\$"
    assert_nothing_is_cut_off(drawn[0])


def test_saliency_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pass the map of this image"):
        plots.saliency(flat(0), np.zeros((4, 4), np.float32), tmp_path / "saliency.png")


# --- files ---


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = plots.image_grid(flat(0)[None], tmp_path / "grid.png")
    before = path.read_bytes()

    def fail(figure, file, **options):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(plots.Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.image_grid(flat(255)[None], path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]


def test_the_same_figure_is_the_same_file(tmp_path):
    history = {"loss": [3.0, 2.0], "val_loss": [4.0, 3.0]}
    first = plots.learning_curves(history, tmp_path / "a.png").read_bytes()
    assert plots.learning_curves(history, tmp_path / "b.png").read_bytes() == first


def test_attention_maps_are_bright_where_the_weight_is(tmp_path, drawn):
    weights = np.zeros((2, 4, 4), np.float32)
    weights[0, :2, :2], weights[1, 2:, 2:] = 0.25, 0.1
    plots.attention_maps(flat(200, height=160, width=160), weights, ["dog", "grass"], tmp_path / "a.png")
    whole, dog, grass = (image.get_array() for image in drawn[0].axes[0].get_images())
    assert dog[20, 20].min() > 0.75 > 0.25 > dog[140, 140].max()
    assert grass[140, 140].min() > 0.75 > 0.25 > grass[20, 20].max()
    np.testing.assert_allclose(whole, 200 / 255, atol=1e-3)
    assert texts(drawn[0]) == ["", "dog", "grass"]


def test_attention_maps_for_other_words_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there are 2 words"):
        plots.attention_maps(flat(0), np.zeros((3, 4, 4)), ["a", "b"], tmp_path / "a.png")


def test_the_divergence_of_latents_is_drawn_largest_first(tmp_path, drawn):
    plots.kl_per_latent(np.array([0.5, 2.0, 0.0]), tmp_path / "kl.png")
    (axes,) = drawn[-1].axes
    assert [patch.get_height() for patch in axes.patches] == [2.0, 0.5, 0.0]
    assert "2.5 nats in 3 latents" in axes.get_title()


def test_the_latent_map_has_a_colour_for_each_class(tmp_path, drawn):
    latent = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    plots.latent_map(latent, np.array([7, 3, 7]), tmp_path / "map.png")
    (axes,) = drawn[-1].axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_array_equal(lines["7"].get_xydata(), latent[[0, 2]])
    assert lines["7"].get_color() != lines["3"].get_color()
    with pytest.raises(ValueError, match=r"expected \[examples, 2\]"):
        plots.latent_map(latent[:, :1], np.zeros(3), tmp_path / "map.png")


# --- animation ---


def test_animation_shows_the_frames_in_their_order_and_the_last_one_longer(tmp_path):
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    frames = [tmp_path / f"{index}.png" for index in range(3)]
    for frame, color in zip(frames, colors, strict=True):
        Image.fromarray(flat(color, height=9, width=7)).save(frame)
    path = plots.animation(frames, tmp_path / "new" / "a.gif", seconds=0.2)
    with Image.open(path) as image:
        assert (image.format, image.size, image.n_frames, image.info["loop"]) == ("GIF", (7, 9), 3, 0)
        shown = []
        for index in range(3):
            image.seek(index)
            shown.append((image.info["duration"], image.convert("RGB").getpixel((3, 3))))
    assert [duration for duration, _ in shown] == [200, 200, 1000]
    np.testing.assert_allclose([color for _, color in shown], colors, atol=2)


def test_an_animation_of_nothing_or_of_two_sizes_is_refused(tmp_path):
    for size in (8, 9):
        Image.fromarray(flat(0, width=size)).save(tmp_path / f"{size}.png")
    with pytest.raises(ValueError, match="The 0 frames have the sizes"):
        plots.animation([], tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"sizes \[\(8, 8\), \(9, 8\)\]; expected at least one frame, and one size"):
        plots.animation([tmp_path / "8.png", tmp_path / "9.png"], tmp_path / "a.gif")
    assert not (tmp_path / "a.gif").exists()


@pytest.mark.parametrize(
    ("count", "rows"), [(3, [0, 1, 2, 10, 11, 12]), (9, [*range(8), *range(10, 18), 8, *[0] * 7, 18])]
)
def test_paired_rows_stand_under_each_other(count, rows):
    above = np.arange(count, dtype=np.float32)[:, None, None, None]
    found = plots.paired_rows(above, above + 10)
    assert found[: len(rows), 0, 0, 0].tolist() == rows
    assert len(found) == (2 * count if count <= 8 else 32)
