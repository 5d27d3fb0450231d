import sys
import types

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from kerasdl.data import noise, synthetic
from kerasdl.errors import UserError
from kerasdl.metrics import denoising
from kerasdl.metrics.denoising import FILTERS, best_settings, psnr_and_ssim

PACKAGES = {"non_local_means": "skimage", "bm3d": "bm3d"}  # optional ones
SETTINGS = {
    "gaussian_filter": {"width": 0.7},
    "median_filter": {"radius": 1},
    "non_local_means": {"h": 15.0, "sigma": 25.0, "patch_size": 5},
    "bm3d": {"sigma": 25.0},
}


def shapes(count, size=16, channels=3):
    return synthetic.shapes(count, size=size, seed=0)[0][..., :channels].astype(np.float32)


def add_noise(images, kind, strength):
    return noise.add_noise(images, [3, 7], kind=kind, strength=strength).numpy()


def filter_or_skip(name):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    return FILTERS[name]


# --- scores --------------------------------------------------------------------------------------


def ssim_oracle(a, b):
    """Wang et al. 2004, equation 13 with C3 = C2 / 2, at each window inside the picture; the mean over all."""
    offset = np.arange(11) - 5
    weight = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    weight /= weight.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for row in range(a.shape[0] - 10):
        for column in range(a.shape[1] - 10):
            for channel in range(a.shape[2]):
                x, y = (np.float64(p[row : row + 11, column : column + 11, channel]) for p in (a, b))
                mean_x, mean_y = np.sum(weight * x), np.sum(weight * y)
                variance_x, variance_y = np.sum(weight * (x - mean_x) ** 2), np.sum(weight * (y - mean_y) ** 2)
                covariance = np.sum(weight * (x - mean_x) * (y - mean_y))
                values.append(
                    (2 * mean_x * mean_y + c1)
                    * (2 * covariance + c2)
                    / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
                )
    return np.mean(values)


def test_psnr_is_the_mean_over_pictures_of_their_own():
    clean = np.full((2, 12, 12, 3), 100, np.float32)
    restored = clean + np.array([5, 20], np.float32).reshape(2, 1, 1, 1)
    expected = (20 * np.log10(255 / 5) + 20 * np.log10(255 / 20)) / 2
    assert psnr_and_ssim(clean, restored)["psnr_db"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("height", "width", "channels"), [(11, 11, 1), (14, 17, 3)])
def test_ssim_equals_the_equation(height, width, channels):
    clean = shapes(3, size=17, channels=channels)[:, :height, :width]
    noisy = np.clip(add_noise(clean, "gaussian", np.array([5, 25, 60])), 0, 255)
    expected = [ssim_oracle(*pair) for pair in zip(clean, noisy, strict=True)]
    assert max(expected) - min(expected) > 0.2
    assert psnr_and_ssim(clean, noisy)["ssim"] == pytest.approx(np.mean(expected), abs=1e-4)


def test_ssim_equals_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    clean = shapes(2, size=28)
    noisy = np.clip(add_noise(clean, "gaussian", 25), 0, 255)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [
        metrics.structural_similarity(a, b, data_range=255, channel_axis=-1, **options)
        for a, b in zip(clean, noisy, strict=True)
    ]
    assert psnr_and_ssim(clean, noisy)["ssim"] == pytest.approx(np.mean(expected), abs=1e-4)


def test_restored_pictures_are_clipped_and_not_rounded():
    clean = np.zeros((1, 12, 12, 1), np.float32)
    clean[:, 6:] = 255
    beyond = np.where(clean > 0, 300, -300).astype(np.float32)
    assert psnr_and_ssim(clean, beyond) == {"psnr_db": np.inf, "ssim": 1}
    inside = np.abs(clean - 0.4)
    assert psnr_and_ssim(clean, inside)["psnr_db"] == pytest.approx(20 * np.log10(255 / 0.4), abs=1e-3)


def test_many_pictures_score_as_the_mean_of_a_few(monkeypatch):
    clean = shapes(5)
    noisy = add_noise(clean, "gaussian", np.linspace(5, 60, 5))
    whole = psnr_and_ssim(clean, noisy)
    monkeypatch.setattr(denoising, "_BLOCK", 2)
    assert psnr_and_ssim(clean, noisy) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("clean", "restored", "message"),
    [
        ((2, 16, 16, 3), (2, 16, 16, 1), "expected the same"),
        ((0, 16, 16, 3), (0, 16, 16, 3), "at least one picture"),
        ((16, 16, 3), (16, 16, 3), r"expected the same \[n, height"),
        ((2, 16, 10, 3), (2, 16, 10, 3), "16 x 10; expected at least 11 pixels"),
    ],
)
def test_pictures_that_cannot_be_scored_are_refused(clean, restored, message):
    with pytest.raises(ValueError, match=message):
        psnr_and_ssim(np.zeros(clean), np.zeros(restored))


# --- filters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_takes_noise_away_from_each_picture_alone(name, channels):
    restore = filter_or_skip(name)
    clean = shapes(2, channels=channels)
    noisy = add_noise(clean, "gaussian", 25)
    restored = restore(noisy, **SETTINGS[name])
    assert (restored.shape, restored.dtype) == (noisy.shape, np.float32)
    gain = psnr_and_ssim(clean, restored)["psnr_db"] - psnr_and_ssim(clean, noisy)["psnr_db"]
    assert gain > (3 if name == "bm3d" else 1)
    np.testing.assert_array_equal(restore(noisy[1:], **SETTINGS[name]), restored[1:])


@pytest.mark.parametrize("name", FILTERS)
def test_flat_pictures_stay_as_they_are_in_their_range(name):
    restore = filter_or_skip(name)
    flat = np.full((1, 16, 16, 3), 200, np.float32)
    np.testing.assert_allclose(restore(flat, **SETTINGS[name]), flat, rtol=1e-3)


def test_gaussian_filter_spreads_a_point_over_its_own_channel():
    point = np.zeros((2, 15, 15, 2), np.float32)
    point[0, 7, 7, 1] = 1
    spread = FILTERS["gaussian_filter"](point, width=1.5)
    assert np.all(spread[1] == 0)
    assert np.all(spread[0, ..., 0] == 0)
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    centre = spread[0, 7, 7, 1]
    assert spread[0, 8, 7, 1] / centre == pytest.approx(np.exp(-1 / (2 * 1.5**2)), rel=1e-4)
    assert spread[0, 9, 9, 1] / centre == pytest.approx(np.exp(-8 / (2 * 1.5**2)), rel=1e-4)


@pytest.mark.parametrize(("radius", "pixels"), [(1, 5), (1.5, 9), (2, 13)])
def test_median_filter_takes_the_pixels_in_its_disc(radius, pixels):
    noisy = add_noise(np.zeros((2, 9, 9, 2)), "gaussian", 50)
    rows, columns = np.mgrid[:9, :9]
    disc = np.hypot(rows - 4, columns - 4) <= radius
    assert disc.sum() == pixels
    restored = FILTERS["median_filter"](noisy, radius=radius)
    np.testing.assert_array_equal(restored[:, 4, 4], np.median(noisy[:, disc], axis=1))


def test_median_filter_removes_specks_that_a_gaussian_smears():
    clean = np.broadcast_to(gaussian_filter(shapes(4, size=32), (0, 2, 2, 0)), (4, 32, 32, 3))
    noisy = add_noise(clean, "salt_and_pepper", 0.1)
    psnr = {
        name: psnr_and_ssim(clean, FILTERS[name](noisy, **best_settings(name, clean, noisy)))["psnr_db"]
        for name in ("gaussian_filter", "median_filter")
    }
    assert psnr["median_filter"] > psnr["gaussian_filter"] + 3


# --- BM3D's package ------------------------------------------------------------------------------


@pytest.fixture
def package(monkeypatch):
    """Stands for the package, whose licence keeps it out of the usual installation: notes calls, halves pictures."""
    calls = []

    def restore(name):
        def run(picture, sigma, profile):
            calls.append((name, picture, sigma, profile))
            return picture / 2

        return run

    stand_in = types.SimpleNamespace(
        BM3DProfile=types.SimpleNamespace, bm3d=restore("grey"), bm3d_rgb=restore("colour"), calls=calls
    )
    monkeypatch.setitem(sys.modules, "bm3d", stand_in)
    return stand_in


def test_bm3d_gets_each_picture_in_0_to_1_and_colour_by_its_own_function(package):
    for channels, name in ((1, "grey"), (3, "colour")):
        package.calls.clear()
        noisy = shapes(1, channels=channels) * 1.5 - 50
        np.testing.assert_allclose(FILTERS["bm3d"](noisy, sigma=25), noisy / 2, rtol=1e-6)
        ((called, picture, sigma, profile),) = package.calls
        assert called == name
        np.testing.assert_allclose(picture, (noisy[0, ..., 0] if channels == 1 else noisy[0]) / 255, rtol=1e-6)
        assert sigma == pytest.approx(25 / 255)
        assert profile.num_threads == 1


def test_bm3d_filters_a_grey_picture_of_three_channels_as_grey(package):
    grey = np.repeat(shapes(1, channels=1), 3, axis=-1)
    np.testing.assert_allclose(FILTERS["bm3d"](grey, sigma=25), grey / 2, rtol=1e-6)
    assert [(name, picture.shape) for name, picture, *_ in package.calls] == [("grey", (16, 16))]


def test_bm3d_of_grey_equals_that_of_one_channel():
    pytest.importorskip("bm3d")
    one = add_noise(shapes(1, channels=1), "masking", 0.2)
    three = FILTERS["bm3d"](np.repeat(one, 3, axis=-1), sigma=25)
    np.testing.assert_array_equal(three, np.repeat(FILTERS["bm3d"](one, sigma=25), 3, axis=-1))


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("non_local_means", "skimage.restoration", r"^scikit-image is not .*pip install 'kerasdl\[denoising\]'$"),
        ("bm3d", "bm3d", r"^bm3d is not installed; .*pip install bm3d, .*non-commercial use$"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, name, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=message):
        FILTERS[name](shapes(1), **SETTINGS[name])


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gaussian_filter", "median_filter"])
def test_the_settings_chosen_are_those_of_the_highest_psnr(name):
    clean = shapes(4)
    chosen = []
    for sigma in (10, 80):
        noisy = add_noise(clean, "gaussian", sigma)
        settings = best_settings(name, clean, noisy)
        psnr = {
            tuple(tried.values()): psnr_and_ssim(clean, FILTERS[name](noisy, **tried))["psnr_db"]
            for tried in denoising.grid(name, sigma)
        }
        assert tuple(settings.values()) == max(psnr, key=psnr.get)
        chosen.append(*settings.values())
    assert chosen[0] < chosen[1]


def test_filters_that_know_the_noise_are_tried_around_what_it_measures(monkeypatch):
    tried = []
    clean = shapes(2)
    for name in ("non_local_means", "bm3d"):
        monkeypatch.setitem(FILTERS, name, lambda noisy, **settings: tried.append(settings) or noisy)
        for kind, strength in (("gaussian", 30), ("masking", 0.25)):
            tried.clear()
            noisy = add_noise(clean, kind, strength)
            best_settings(name, clean, noisy)
            measured = np.sqrt(np.mean((noisy - clean) ** 2))
            expected = denoising.grid(name, measured)
            assert len(tried) == len(expected) > 1
            for settings, wanted in zip(tried, expected, strict=True):
                assert settings == pytest.approx(wanted, rel=1e-4)
            assert any(settings["sigma"] == pytest.approx(measured) for settings in tried)


def test_settings_need_pairs():
    with pytest.raises(ValueError, match="expected the same"):
        best_settings("median_filter", shapes(2), shapes(3))
