"""Scores of restored pictures, and the classical filters as peers of a denoiser.

    noisy = noise.add_noise(pictures, seed, kind="gaussian", strength=25).numpy()
    for name, restore in FILTERS.items():
        settings = best_settings(name, validation_pictures, noisy_validation_pictures)
        scores[name] = psnr_and_ssim(pictures, restore(noisy, **settings))

Pictures are float32[n, height, width, channels] in 0..255. Noisy ones leave this range, since noise is neither clipped
nor rounded, and the filters get them so, as a network does. Only what is scored is clipped.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from scipy import ndimage
from sklearn.model_selection import ParameterGrid

from kerasdl.errors import UserError

_SSIM_WINDOW = 11  # pixels, the side of the Gaussian window of Wang et al. 2004
_BLOCK = 1000  # pictures scored at once: bounds the memory of the local statistics

Settings = Mapping[str, float]
"""The keyword arguments of a filter."""


def psnr_and_ssim(clean: np.ndarray, restored: np.ndarray) -> dict[str, float]:
    """Scores restored pictures against the clean ones: each picture on its own, then the mean over pictures.

    Restored pictures are clipped to 0..255 first, as they would be shown; they are not rounded. (DnCNN's published
    code does both; rounding costs less than 0.02 dB below 35 dB.) So noisy pictures that are scored as the baseline
    gain from clipping, most on pictures with much black or white: unclipped Gaussian noise of standard deviation s
    has 20 log10(255 / s) dB on any picture, 20.2 at s = 25.

    Args:
        clean: [n, height, width, channels] in 0..255, at least 11 pixels high and wide.
        restored: of the same shape, of any range.

    Returns:
        `psnr_db`, 10 log10(255² / mean squared error), infinite if a picture is restored exactly; `ssim`, at most 1:
        of each channel, with an 11 x 11 Gaussian window (standard deviation 1.5) that stays inside the picture,
        K1 = 0.01, K2 = 0.03, L = 255, and the mean over channels.

    Raises:
        ValueError: if the shapes differ, there is no picture, or pictures are too small.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity",
    section III, by TensorFlow; clipping as in Zhang et al. 2017, arXiv:1608.03981, in their code.
    """
    _check(clean, restored)
    if min(clean.shape[1:3]) < _SSIM_WINDOW:
        raise ValueError(
            f"Pictures are {clean.shape[1]} x {clean.shape[2]}; expected at least {_SSIM_WINDOW} pixels on each side,"
            " the window of the SSIM; score larger ones."
        )
    psnr, ssim = [], []
    for start in range(0, len(clean), _BLOCK):
        pair = [np.asarray(x[start : start + _BLOCK], np.float32) for x in (clean, np.clip(restored, 0, 255))]
        psnr.append(tf.image.psnr(*pair, max_val=255))
        ssim.append(tf.image.ssim(*pair, max_val=255, filter_size=_SSIM_WINDOW))
    scores = {"psnr_db": psnr, "ssim": ssim}
    return {name: float(np.mean(np.concatenate(parts), dtype=np.float64)) for name, parts in scores.items()}


def gaussian_filter(noisy: np.ndarray, *, width: float) -> np.ndarray:
    """Smooths pictures by a Gaussian.

    Args:
        noisy: float32[n, height, width, channels].
        width: standard deviation of the Gaussian in pixels.

    Returns:
        float32 of the same shape.

    Source: scipy.ndimage.
    """
    return ndimage.gaussian_filter(noisy, (0, width, width, 0))


def median_filter(noisy: np.ndarray, *, radius: float) -> np.ndarray:
    """Takes the median of the pixels around each pixel, channel by channel.

    Args:
        noisy: float32[n, height, width, channels].
        radius: pixels whose centres are at most so many pixels away count: 1 is a cross of 5 pixels, 1.5 the square
            of 9, 2 a diamond of 13.

    Returns:
        float32 of the same shape.

    Source: scipy.ndimage.
    """
    offset = np.arange(-int(radius), int(radius) + 1)
    disc = offset[:, None] ** 2 + offset**2 <= radius**2
    return ndimage.median_filter(noisy, footprint=disc[None, :, :, None])


def non_local_means(noisy: np.ndarray, *, h: float, sigma: float, patch_size: float) -> np.ndarray:
    """Averages each pixel with those whose surroundings look alike, in a window of 23 x 23 pixels.

    The weights are Gaussian in the distance of the patches, all channels together, less what noise alone makes of it.

    Args:
        noisy: float32[n, height, width, channels].
        h: how different patches may be, in the unit of the pixels: the larger, the smoother. Below 0.25 sigma
            scikit-image can give NaN.
        sigma: standard deviation of the noise, in the unit of the pixels.
        patch_size: side of the patches in pixels.

    Returns:
        float32 of the same shape.

    Raises:
        UserError: if scikit-image is not installed.

    Source: Buades et al. 2005, "A non-local algorithm for image denoising", CVPR, by scikit-image.
    """
    try:
        from skimage.restoration import denoise_nl_means
    except ModuleNotFoundError:
        raise UserError(
            "scikit-image is not installed; expected it for non-local means; pip install 'kerasdl[denoising]'"
        ) from None

    def restore(picture: np.ndarray) -> np.ndarray:
        return denoise_nl_means(
            picture,
            patch_size=int(patch_size),
            patch_distance=11,
            h=h,
            sigma=sigma,
            fast_mode=False,  # on 32 x 32 pixels the exact weights are up to 0.6 dB better, and quick enough
            channel_axis=-1,
        )

    return _each(restore, noisy)


def bm3d(noisy: np.ndarray, *, sigma: float) -> np.ndarray:
    """Filters stacks of similar blocks in a transform domain (block matching and 3-D filtering).

    Colour pictures are filtered in an opponent colour space, blocks being matched by luminance.

    Args:
        noisy: float32[n, height, width, channels], 1 or 3 channels, at least 8 pixels high and wide.
        sigma: standard deviation of the noise, in the unit of the pixels.

    Returns:
        float32 of the same shape.

    Raises:
        UserError: if the package bm3d is not installed. Its licence allows non-commercial use only.

    Source: Dabov et al. 2007, "Image denoising by sparse 3-D transform-domain collaborative filtering"; Mäkinen et
    al. 2020, "Collaborative filtering of correlated noise", by their package.
    """
    try:
        import bm3d as package
    except ModuleNotFoundError:
        raise UserError(
            "bm3d is not installed; expected it for BM3D; pip install bm3d, whose licence is for non-commercial use"
        ) from None
    profile = package.BM3DProfile()
    # The variances on a domain of 16 in place of 32 pixels take a quarter of the time: the PSNR is equal to 0.02 dB.
    profile.nf = 16
    profile.num_threads = 1  # several are not repeatable, and pictures run side by side anyway

    def restore(picture: np.ndarray) -> np.ndarray:
        scaled = picture.astype(np.float64) / 255  # its thresholds of similarity are for 0..1
        # The colour transform divides by the range of the chroma, which is zero in a grey picture.
        if np.all(scaled == scaled[..., :1]):
            grey = package.bm3d(scaled[..., 0], sigma / 255, profile)
            return 255 * np.broadcast_to(grey[..., None], picture.shape)
        return 255 * package.bm3d_rgb(scaled, sigma / 255, profile)

    return _each(restore, noisy)


FILTERS: dict[str, Callable[..., np.ndarray]] = {
    "gaussian_filter": gaussian_filter,
    "median_filter": median_filter,
    "non_local_means": non_local_means,
    "bm3d": bm3d,
}
"""The classical filters: each takes noisy pictures and its settings by keyword."""


def grid(name: str, sigma: float) -> list[Settings]:
    """Lists the settings that `best_settings` tries.

    Args:
        name: one of `FILTERS`.
        sigma: standard deviation of the noise, in the unit of the pixels; non-local means and BM3D are tried around it.
    """
    choices: dict[str, dict[str, list[float]]] = {
        "gaussian_filter": {"width": [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0]},
        "median_filter": {"radius": [1, 1.5, 2, 2.5, 3, 4]},
        "non_local_means": {
            "h": [ratio * sigma for ratio in (0.5, 0.7, 0.9, 1.2, 1.6, 2.0, 2.5, 3.0)],
            "sigma": [sigma],
            "patch_size": [3, 5, 7],
        },
        "bm3d": {"sigma": [ratio * sigma for ratio in (0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)]},
    }
    return list(ParameterGrid(choices[name]))


def best_settings(name: str, clean: np.ndarray, noisy: np.ndarray) -> Settings:
    """Chooses the settings of a filter by PSNR, so that it is at its best on noise of this kind and strength.

    The standard deviation of the noise is measured on the pair, whatever its kind.

    Args:
        name: one of `FILTERS`.
        clean: [n, height, width, channels] in 0..255: validation pictures, never those that are scored later. On ten
            a median filter lost 0.4 dB of its best, so take fifty; of 32 x 32 pixels BM3D then takes minutes.
        noisy: the same pictures with noise.

    Returns:
        The one of `grid` with the highest mean PSNR, as keyword arguments.

    Raises:
        ValueError: if the shapes differ or there is no picture.
        UserError: if the filter's package is not installed.

    Source: own.
    """
    _check(clean, noisy)
    candidates = grid(name, float(np.sqrt(np.mean((noisy - clean) ** 2, dtype=np.float64))))
    psnr = [psnr_and_ssim(clean, FILTERS[name](noisy, **settings))["psnr_db"] for settings in candidates]
    return candidates[int(np.argmax(psnr))]


def _each(restore: Callable[[np.ndarray], np.ndarray], noisy: np.ndarray) -> np.ndarray:
    """Applies a function to each picture, side by side: the packages leave Python while they compute."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pictures = list(pool.map(restore, noisy))
    return np.array(pictures, np.float32).reshape(noisy.shape)  # scikit-image drops a single channel


def _check(clean: np.ndarray, other: np.ndarray) -> None:
    if clean.shape != other.shape or clean.ndim != 4 or not clean.size:
        raise ValueError(
            f"Clean pictures have shape {clean.shape} and the others {other.shape}; expected the same"
            " [n, height, width, channels], at least one picture; pass as many of each."
        )
