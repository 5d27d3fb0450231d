"""Figures of a run: each function writes one PNG, `animation` a GIF, and returns its path.

Drawn with matplotlib's object interface, so that nothing is global, no display is needed and figures may be
drawn from several threads. Colour maps and line colours stay apart for colour-blind readers.

Images are uint8 in 0..255 or float in 0..1, [examples, height, width, channels] with 1 or 3 channels, or
[examples, height, width]. Files are written atomically and missing folders are made.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from PIL import Image

from kerasdl.errors import UserError
from kerasdl.files import atomic_path
from kerasdl.metrics import classification

# A power of two, so that pixels / _DPI * _DPI is exact: matplotlib would round a width of 432.999 down.
_DPI = 128
# Okabe and Ito's palette, made to be told apart with any colour vision.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#666666"
_COLORMAP = matplotlib.colormaps["viridis"]


def learning_curves(
    log: str | Path | Mapping[str, Sequence[float]],
    path: str | Path,
    *,
    monitor: str = "val_loss",
    mode: Literal["min", "max"] = "min",
    best: int | None = None,
) -> Path:
    """Draws each metric over the epochs, training and validation together, and marks the best epoch.

    Args:
        log: a CSV file as `keras.callbacks.CSVLogger` writes it, or the `history` of a
            `keras.callbacks.History`. Epochs are numbered as in the column `epoch`, without it from 0, as
            CSVLogger does. Cells that are no finite number, such as CSVLogger's `NA`, are left out.
        path: the PNG to write.
        monitor: the metric whose best epoch is marked; a log without it gets no mark.
        mode: whether the best is the smallest ("min") or the largest ("max").
        best: place of the best epoch, from 1 on, where it does not follow from the metric alone.

    Returns:
        The path of the PNG.

    Raises:
        UserError: if the log holds no epoch or no metric.
        ValueError: if the metrics of a history have different lengths.
    """
    columns = log if isinstance(log, Mapping) else _read_csv(Path(log))
    curves = {
        name: np.asarray(values, np.float64) for name, values in columns.items() if name not in ("epoch", "seconds")
    }
    if not curves or not all(values.size for values in curves.values()):
        raise UserError(
            f"{'The history' if isinstance(log, Mapping) else log} holds no epoch; expected a row for each"
            " epoch and a column for each metric; train for at least one epoch first."
        )
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"The metrics have different lengths, {lengths}; expected a value for each epoch;"
            " pass the file of a CSVLogger, which marks the epochs without validation."
        )
    count = len(next(iter(curves.values())))
    epochs = np.asarray(columns.get("epoch", range(count)), np.float64)
    metrics = list(dict.fromkeys(name.removeprefix("val_") for name in curves))
    wide = len(metrics) if len(metrics) <= 3 else math.ceil(math.sqrt(len(metrics)))
    high = math.ceil(len(metrics) / wide)
    figure = _figure(4.0 * wide, 3.0 * high)
    marker = "o" if count <= 25 else None
    if monitor in curves and np.isfinite(curves[monitor]).any():
        loss = curves[monitor] if mode == "min" else -curves[monitor]
        best = best - 1 if best else int(np.argmin(np.where(np.isfinite(loss), loss, np.inf)))
        value = f"{curves[monitor][best]:.4g}"
        figure.suptitle(f"best epoch {epochs[best]:.0f}: {_literal(monitor)} {value}", fontsize=10)
    else:
        best = None
    for place, metric in enumerate(metrics, start=1):
        axes = figure.add_subplot(high, wide, place)
        for name, label, color in ((metric, "training", _BLUE), (f"val_{metric}", "validation", _ORANGE)):
            if name in curves:
                known = np.isfinite(curves[name])
                axes.plot(epochs[known], curves[name][known], marker=marker, markersize=3, color=color, label=label)
        if best is not None:
            axes.axvline(epochs[best], color=_GREY, linestyle=":", linewidth=1)
        axes.set_title(_literal(metric), fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _plain(axes)
        axes.grid(alpha=0.3)
        if metric in curves and f"val_{metric}" in curves:
            axes.legend(fontsize=8, frameon=False)
    return save(figure, path)


def confusion_matrix(matrix: np.ndarray, class_names: Sequence[str], path: str | Path) -> Path:
    """Draws a confusion matrix, coloured by the share of each true class.

    Args:
        matrix: int[classes, classes], row = true class, column = predicted class. The counts are
            written into the cells of up to 20 classes.
        class_names: one name a class; long ones are shortened in the middle.
        path: the PNG to write.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: if the matrix is not square or does not fit the names.
    """
    matrix = np.asarray(matrix)
    classes = len(class_names)
    if matrix.shape != (classes, classes):
        raise ValueError(
            f"The matrix has shape {matrix.shape} and there are {classes} class names; expected"
            f" ({classes}, {classes}); pass one name for each row and column."
        )
    totals = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(totals, 1)
    names = [_literal(_shorten(name, 22)) for name in class_names]
    cell = min(0.55, max(11.0 / classes, 0.1))
    side = max(cell * classes, 2.2)
    figure = _figure(side + 2.9, side + 2.0)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap=_COLORMAP, vmin=0, vmax=1, interpolation="nearest")
    label_size = min(9.0, 72 * side / classes * 0.8)
    slanted = classes <= 20
    axes.set_xticks(
        range(classes),
        names,
        rotation=45 if slanted else 90,
        ha="right" if slanted else "center",
        va="center" if slanted else "top",
        rotation_mode="anchor" if slanted else "default",
        fontsize=label_size,
    )
    axes.set_yticks(range(classes), names, fontsize=label_size)
    axes.tick_params(length=2)
    axes.set_xlabel("predicted class", fontsize=10)
    axes.set_ylabel("true class", fontsize=10)
    if classes <= 20:
        digits = len(str(matrix.max()))
        count_size = min(9.0, 72 * side / classes / (0.75 * digits))
        for row, column in np.ndindex(matrix.shape):
            color = "black" if shares[row, column] > 0.6 else "white"
            text = str(matrix[row, column])
            axes.text(column, row, text, ha="center", va="center", fontsize=count_size, color=color)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 3 / side), aspect=18, pad=0.02)
    bar.set_label("share of the true class", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    axes.spines[:].set_visible(False)
    return save(figure, path)


def calibration(probabilities: np.ndarray, labels: np.ndarray, path: str | Path) -> Path:
    """Draws a reliability diagram: accuracy over confidence, and how many predictions have which confidence.

    Args:
        probabilities: float[examples, classes], rows summing to 1.
        labels: int[examples], the true classes.
        path: the PNG to write.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: see `kerasdl.metrics.classification`.

    Source: Guo et al. 2017, arXiv:1706.04599, figure 1.
    """
    bins = classification.calibration_bins(probabilities, labels)
    error = classification.calibration_error(probabilities, labels)
    width = 1 / len(bins.count)
    left = np.arange(len(bins.count)) * width
    figure = _figure(4.4, 5.2)
    histogram, diagram = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3])
    bar_style = {"width": width, "align": "edge", "edgecolor": "white", "linewidth": 0.5}
    histogram.bar(left, bins.count / bins.count.sum(), color=_GREY, **bar_style)
    histogram.set_ylabel("share of\npredictions", fontsize=9)
    diagram.bar(left, np.nan_to_num(bins.accuracy), color=_BLUE, label="accuracy", **bar_style)
    diagram.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
    diagram.plot(bins.confidence, bins.accuracy, "o", color=_ORANGE, markersize=4, label="mean of the bin")
    diagram.set(xlim=(0, 1), ylim=(0, 1))
    diagram.set_xlabel("confidence (probability of the predicted class)", fontsize=9)
    diagram.set_ylabel("accuracy", fontsize=9)
    diagram.legend(fontsize=8, frameon=False, loc="upper left")
    histogram.set_title(f"expected calibration error {error:.3f}", fontsize=10)
    for axes in (histogram, diagram):
        _plain(axes)
    return save(figure, path)


def paired_rows(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Arranges pictures for an `image_grid` of 8 columns: a row of the first, under it those of the second, and so on.

    Args:
        above: [pictures, height, width, channels].
        below: as many, of the same shape.

    Returns:
        float32, all of them, and empty ones where a row is not full.
    """
    blank = np.zeros((-len(above) % 8 if len(above) > 8 else 0, *above.shape[1:]), np.float32)
    pairs = [np.concatenate([part, blank]).astype(np.float32) for part in (above, below)]
    starts = range(0, len(pairs[0]), 8)
    return np.concatenate([part[start : start + 8] for start in starts for part in pairs])


def image_grid(
    images: np.ndarray,
    path: str | Path,
    *,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
) -> Path:
    """Draws images side by side.

    Args:
        images: uint8 or float[examples, height, width, channels], see the module.
        path: the PNG to write.
        columns: images a row; by default about as many as rows.
        titles: one text an image, its lines separated by line breaks; long lines are shortened in the middle.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: if there is no image, the images are no images, or titles are missing.
    """
    images = _as_rgb(images)
    if titles is not None and len(titles) != len(images):
        raise ValueError(
            f"There are {len(images)} images and {len(titles)} titles; expected as many; pass one an image."
        )
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    height, width = images.shape[1:3]
    # Small images are enlarged by whole factors, so that their pixels stay squares of one size.
    least = 64 if titles is None else 132
    scale = math.ceil(least / width) if width < least else min(1.0, 160 / width)
    tile_width, tile_height = round(width * scale), round(height * scale)
    lines = max((title.count("\n") + 1 for title in titles), default=0) if titles is not None else 0
    line_height, gap = 16, 4 if titles is None else 10
    step_x, step_y = tile_width + gap, tile_height + gap + lines * line_height
    figure = Figure(figsize=((columns * step_x + gap) / _DPI, (rows * step_y + gap) / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    # Axes units are pixels of the PNG, counted from the upper left corner.
    axes.set(xlim=(0, columns * step_x + gap), ylim=(rows * step_y + gap, 0))
    axes.axis("off")
    for index, image in enumerate(images):
        left = gap + index % columns * step_x
        top = gap + index // columns * step_y + lines * line_height
        axes.imshow(image, extent=(left, left + tile_width, top + tile_height, top), aspect="auto")
        if titles is not None:
            # Line by line, so that the baselines of a row stay level whatever letters the titles have.
            for above, line in enumerate(reversed(titles[index].split("\n"))):
                text = _literal(_shorten(line, tile_width // 8))
                axes.text(left, top - 5 - above * line_height, text, fontsize=7.5)
    # imshow moves the limits of its axes to the last image.
    axes.set(xlim=(0, columns * step_x + gap), ylim=(rows * step_y + gap, 0))
    return save(figure, path)


def worst_errors(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    path: str | Path,
    *,
    count: int = 24,
) -> Path:
    """Draws the most confident mistakes: true class, predicted class and its probability.

    Args:
        images: uint8 or float[examples, height, width, channels], see the module.
        labels: int[examples], the true classes.
        probabilities: float[examples, classes], rows summing to 1.
        class_names: one name a class.
        path: the PNG to write.
        count: how many mistakes at most.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: if the arrays do not fit each other.
    """
    if not len(images) == len(labels) == len(probabilities):
        raise ValueError(
            f"There are {len(images)} images, {len(labels)} labels and {len(probabilities)} rows of"
            " probabilities; expected as many; pass the same examples."
        )
    predictions = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    mistakes = np.flatnonzero(predictions != labels)
    worst = mistakes[np.argsort(-confidence[mistakes], kind="stable")][:count]
    if not worst.size:
        figure = Figure(figsize=(4, 1), dpi=_DPI)
        figure.text(0.5, 0.5, f"no mistake among {len(labels)} examples", ha="center", va="center")
        return save(figure, path)
    titles = [
        f"{class_names[labels[index]]}\n→ {class_names[predictions[index]]} {confidence[index]:.2f}" for index in worst
    ]
    return image_grid(images[worst], path, columns=6, titles=titles)


def filters(kernel: np.ndarray, path: str | Path) -> Path:
    """Draws the filters of a first convolution, each scaled to the full range of colours by itself.

    Args:
        kernel: float32[height, width, channels, filters]; as colours if there are 3 channels, else the mean
            over the channels.
        path: the PNG to write.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: if the kernel is not one of a 2-D convolution.

    Source: Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural Networks",
    figure 3.
    """
    if kernel.ndim != 4:
        raise ValueError(
            f"The kernel has shape {kernel.shape}; expected [height, width, channels, filters];"
            " pass the kernel of a Conv2D layer."
        )
    tiles = np.moveaxis(kernel, -1, 0)
    if tiles.shape[-1] == 3:
        return image_grid(_stretch(tiles), path)
    return image_grid(_colored(_stretch(tiles.mean(axis=-1))), path)


def activation_maps(activations: np.ndarray, path: str | Path) -> Path:
    """Draws what each channel of a layer answers to one image, each scaled to the full range by itself.

    Args:
        activations: float32[height, width, channels], as `kerasdl.figures.saliency.activation_maps` returns them. A
            channel that is the same everywhere is dark.
        path: the PNG to write.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: if the activations are not those of one image.
    """
    if activations.ndim != 3:
        raise ValueError(
            f"The activations have shape {activations.shape}; expected [height, width, channels];"
            " pass those of one image."
        )
    return image_grid(_colored(_stretch(np.moveaxis(activations, -1, 0))), path)


def saliency(image: np.ndarray, saliency_map: np.ndarray, path: str | Path, *, title: str = "") -> Path:
    """Draws an image, its saliency map, and the image darkened where the map is low.

    Args:
        image: uint8 or float[height, width, channels], see the module.
        saliency_map: float32[height, width], as `kerasdl.figures.saliency` returns it.
        path: the PNG to write.
        title: a text above.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: if the map does not fit the image.
    """
    rgb = _as_rgb(np.asarray(image)[None])[0]
    if saliency_map.shape != rgb.shape[:2]:
        raise ValueError(
            f"The map has shape {saliency_map.shape} and the image {rgb.shape[:2]}; expected the same;"
            " pass the map of this image."
        )
    figure = _figure(8.4, 3.1 if title else 2.8)
    panels = figure.subplots(1, 3)
    strength = _stretch(np.maximum(saliency_map, 0)[None])[0]
    panels[0].imshow(rgb)
    drawn = panels[1].imshow(saliency_map, cmap=_COLORMAP, interpolation="nearest")
    panels[2].imshow(rgb * (0.25 + 0.75 * strength[..., None]))
    for axes, caption in zip(panels, ("image", "saliency", "image × saliency"), strict=True):
        axes.set_title(caption, fontsize=9)
        axes.axis("off")
    figure.colorbar(drawn, ax=panels[1], shrink=0.9, pad=0.02).ax.tick_params(labelsize=7)
    if title:
        figure.suptitle(_literal(_shorten(title, 90)), fontsize=10)
    return save(figure, path)


def attention_maps(image: np.ndarray, weights: np.ndarray, words: Sequence[str], path: str | Path) -> Path:
    """Draws an image, and for each word of its caption the image again, bright where the model looked.

    Args:
        image: uint8 or float[height, width, channels], see the module.
        weights: float32[words, rows, columns], not negative; each word's are scaled to its largest.
        words: a title for each.
        path: the PNG to write.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: if there are not as many weights as words.
    Source: Xu et al. 2015, arXiv:1502.03044, figure 2.
    """
    if len(weights) != len(words) or weights.ndim != 3:
        raise ValueError(
            f"The weights have shape {weights.shape} and there are {len(words)} words; expected float[words, rows,"
            " columns]; pass the weights of this caption."
        )
    rgb = _as_rgb(np.asarray(image)[None])[0]
    panels = [rgb]
    for map_ in weights:
        strength = Image.fromarray((255 * map_ / max(map_.max(), 1e-9)).astype(np.uint8)).resize(
            (rgb.shape[1], rgb.shape[0]), Image.Resampling.BICUBIC
        )
        panels.append((rgb * (0.2 + 0.8 * np.asarray(strength)[..., None] / 255)).astype(rgb.dtype))
    return image_grid(np.stack(panels), path, columns=min(len(panels), 5), titles=["", *words])


def kl_per_latent(kl: np.ndarray, path: str | Path) -> Path:
    """Draws the divergence of each latent, the largest first: what is near zero is not in use.

    Args:
        kl: float[latents], nats, each the mean over many pictures.
        path: the PNG to write.

    Returns:
        The path of the PNG.

    Source: Burda et al. 2015, arXiv:1509.00519, section 5.2 (latents that are not in use).
    """
    figure = _figure(5.2, 2.8)
    axes = figure.add_subplot()
    axes.bar(np.arange(len(kl)), np.sort(kl)[::-1], color=_BLUE, width=0.8)
    axes.set_xlabel("latent, by its divergence", fontsize=9)
    axes.set_ylabel("nats a picture", fontsize=9)
    axes.set_title(f"divergence from the prior: {np.sum(kl):.1f} nats in {len(kl)} latents", fontsize=10)
    _plain(axes)
    return save(figure, path)


def latent_map(latent: np.ndarray, labels: np.ndarray, path: str | Path) -> Path:
    """Draws where pictures lie in a space of two latents, a colour for each class.

    Args:
        latent: float[examples, 2].
        labels: int[examples].
        path: the PNG to write.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: if there are not two latents.

    Source: Kingma and Welling 2013, arXiv:1312.6114, appendix A shows the pictures of such a map.
    """
    if latent.ndim != 2 or latent.shape[1] != 2 or len(latent) != len(labels):
        raise ValueError(
            f"Latents have shape {latent.shape} and there are {len(labels)} labels; expected [examples, 2] and as many;"
            " pass two columns."
        )
    figure = _figure(5.0, 4.6)
    axes = figure.add_subplot()
    classes = np.unique(labels)
    colors = matplotlib.colormaps["tab10" if len(classes) <= 10 else "viridis"]
    for index, label in enumerate(classes):
        points = latent[labels == label]
        color = colors(index if len(classes) <= 10 else index / len(classes))
        axes.plot(points[:, 0], points[:, 1], ".", markersize=2, color=color, label=str(label))
    if 1 < len(classes) <= 20:
        axes.legend(fontsize=8, frameon=False, markerscale=4, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel("first latent", fontsize=9)
    axes.set_ylabel("second latent", fontsize=9)
    _plain(axes)
    return save(figure, path)


def animation(frames: Sequence[Path], path: str | Path, *, seconds: float = 0.4) -> Path:
    """Joins pictures to a GIF that begins anew when it has ended.

    Args:
        frames: picture files of one size, in their order.
        path: the GIF to write.
        seconds: how long a picture is shown; the last one five times as long.

    Returns:
        The path of the GIF.

    Raises:
        ValueError: if there is no picture, or their sizes differ.
    """
    images = []
    for frame in frames:
        with Image.open(frame) as image:
            images.append(image.convert("RGB"))
    if len({image.size for image in images}) != 1:
        raise ValueError(
            f"The {len(images)} frames have the sizes {sorted({image.size for image in images})}; expected at least one"
            " frame, and one size; pass pictures that were drawn alike."
        )
    path = Path(path)
    durations = [round(1000 * seconds)] * (len(images) - 1) + [round(5000 * seconds)]
    with atomic_path(path) as temporary:
        images[0].save(temporary, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return path


def _read_csv(path: Path) -> dict[str, list[float]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        names = reader.fieldnames or ()
    return {name: [_number(row[name]) for row in rows] for name in names}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=_DPI, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a figure as PNG, atomically, and gives the path."""
    path = Path(path)
    with atomic_path(path) as temporary:
        # Without the name and version of the software, the same figure is the same file.
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return path


def _as_rgb(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise ValueError(
            f"The images have shape {images.shape}; expected [examples, height, width, 1 or 3 channels], at"
            " least one; pass a batch of images."
        )
    if images.dtype == np.uint8:
        images = images / np.float32(255)
    # The tolerance is for the rounding of half precision; a NaN fails too.
    elif not (images.min() >= -0.01 and images.max() <= 1.01):
        raise ValueError(
            f"The images are {images.dtype} in {images.min():.3g}..{images.max():.3g}; expected uint8, or"
            " float in 0..1; scale or clip them first."
        )
    return np.broadcast_to(np.clip(images, 0, 1), (*images.shape[:3], 3)).astype(np.float32)


def _stretch(tiles: np.ndarray) -> np.ndarray:
    axes = tuple(range(1, tiles.ndim))
    low, high = tiles.min(axis=axes, keepdims=True), tiles.max(axis=axes, keepdims=True)
    return (tiles - low) / np.where(high > low, high - low, 1)


def _colored(tiles: np.ndarray) -> np.ndarray:
    return _COLORMAP(tiles)[..., :3]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _shorten(text: str, length: int) -> str:
    # In the middle, since names of classes often share their beginning or their end.
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def _literal(text: str) -> str:
    # matplotlib would read text between dollar signs as a formula.
    return text.replace("$", r"\$")
