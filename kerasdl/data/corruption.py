"""What happens to pictures on their way, to measure how much of it a classifier bears."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage


def gaussian_noise(images: np.ndarray, deviation: float) -> np.ndarray:
    """Adds the same noise each time.

    Args:
        images: uint8[pictures, height, width, channels], as in all functions of this module.
        deviation: of the noise, on the scale 0..255.

    Returns:
        uint8, of the same shape, as from all functions of this module.

    Source: this one and the others: Hendrycks and Dietterich 2019, arXiv:1903.12261, section 3; strengths: own.
    """
    rng = np.random.default_rng(0)
    return np.stack([_rounded(image + deviation * rng.standard_normal(image.shape, np.float32)) for image in images])


def blur(images: np.ndarray, deviation: float) -> np.ndarray:
    """Blurs by a Gaussian of this standard deviation, in pixels; the border is reflected."""
    sides = (deviation, deviation, 0)
    return np.stack([_rounded(ndimage.gaussian_filter(image.astype(np.float32), sides)) for image in images])


def jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    """Writes pictures of three channels as JPEG of this quality, 1 to 95, and reads them."""

    def one(image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return np.stack([one(image) for image in images])


def brighter(images: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies all values; what is above 255 becomes white."""
    return np.stack([_rounded(image * np.float32(factor)) for image in images])


CORRUPTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "noise_10": lambda images: gaussian_noise(images, 10.0),
    "blur_1_pixel": lambda images: blur(images, 1.0),
    "jpeg_quality_30": lambda images: jpeg(images, 30),
    "brighter_30_percent": lambda images: brighter(images, 1.3),
}
"""By the names of their metrics: mild ones that hardly hinder a person."""


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
