"""The denoiser beside classical filters, all on the same noisy pictures that nobody trained on: PSNR and SSIM.

    python -m benchmarks.denoiser_quality cifar10 saved_models/denoiser
    python -m benchmarks.denoiser_quality mnist runs/denoiser/2026-11-22-010527     (a run of --dataset mnist)
    python -m benchmarks.denoiser_quality photographs saved_models/denoiser

`photographs` are those of Flickr8k's validation.csv, 144 x 144 pixels; `photographs-grey` the same in grey, with the
same noise in all channels; `photographs-files` with noise clipped and rounded to 8 bits, as a file holds it.

Needs the extra `denoising` (non-local means), and for BM3D the package bm3d, whose licence is for non-commercial use;
what is not installed is left out. About 20 minutes on two CPU cores, nearly all of them BM3D's, with --pictures 300
ten; `--keep-filters` measures a new model beside the filters' last figures, in one.

The noise is Gaussian, neither clipped nor rounded but for `photographs-files`; what is scored is clipped. The settings
of each filter are the best on other pictures with noise of the same strength: 50 of the validation split, or the first
16 photographs; the pictures that are scored choose nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from apps import _weights, denoiser
from benchmarks import _results
from kerasdl import export
from kerasdl.command_line import read_config
from kerasdl.data import captioned_pictures, picture_decoding, picture_files
from kerasdl.errors import UserError
from kerasdl.figures import plots
from kerasdl.metrics import denoising
from kerasdl.training import run

PHOTOGRAPHS = {
    "photographs": "photographs of Flickr8k's validation.csv after the 16 for settings, 144 x 144 pixels",
    "photographs-grey": "photographs of Flickr8k's validation.csv after the 16 for settings, in grey",
    "photographs-files": "photographs of Flickr8k's validation.csv after the 16 for settings, 144 x 144 pixels",
}


def photographs(data_dir: Path | None, count: int, *, grey: bool) -> np.ndarray:
    """uint8[count, 144, 144, 3], the first of Flickr8k's validation.csv."""
    paths = captioned_pictures.pictures(captioned_pictures.flickr8k(data_dir) / "validation.csv")
    images, _, _ = picture_files.decode(paths[:count], size=144)
    return np.repeat(picture_decoding.grey(images).numpy(), 3, axis=-1) if grey else images


def main() -> None:
    """Measures and writes benchmarks/results/denoiser_quality_<pictures_of>.json and denoiser_<pictures_of>.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures_of", choices=("cifar10", "mnist", *PHOTOGRAPHS))
    parser.add_argument("model", type=Path, help="a run folder, or an export")
    parser.add_argument("--pictures", type=int, help="how many, from the first (default 1000 of a test split, else 60)")
    parser.add_argument("--strengths", type=float, nargs="+", default=[15, 25, 50], help="on the scale 0..255")
    parser.add_argument(
        "--keep-filters",
        action="store_true",
        help="take the filters' figures from the last measurement of these pictures",
    )
    parser.add_argument("--data-dir", type=Path, help="TFDS folder; else KERASDL_DATA_DIR, else TFDS' own default")
    arguments = parser.parse_args()
    kind = arguments.pictures_of
    config = denoiser.Config(dataset="mnist" if kind == "mnist" else "cifar10", data_dir=arguments.data_dir)
    data = denoiser.load_data(config)
    model: Any
    if (arguments.model / run.CONFIG).is_file() and (arguments.model / run.MODEL).is_file():
        trained = dataclasses.replace(read_config(arguments.model / run.CONFIG, denoiser.Config), data_dir=None)
        model = export.in_memory(denoiser.endpoints(_weights.restore(denoiser, trained, data, arguments.model), data))
    else:
        model = export.signatures(arguments.model)
    if kind in PHOTOGRAPHS:
        pictures = photographs(arguments.data_dir, 16 + (arguments.pictures or 60), grey=kind == "photographs-grey")
        chosen, clean = pictures[:16], pictures[16:]
    else:
        chosen, clean = data.validation[:50], data.test()[: arguments.pictures or 1000]

    def with_noise(pictures: np.ndarray, strength: float, seed: int) -> np.ndarray:
        found = denoiser.noisy_of(config, pictures, strength, seed=seed)
        if kind == "photographs-grey":
            found = np.repeat(found[..., :1], 3, axis=-1)
        return np.rint(np.clip(found, 0, 255)) if kind == "photographs-files" else found

    known = _results.read(f"denoiser_quality_{kind}") if arguments.keep_filters else None
    kept = {(row["strength"], row["method"]): row for row in known["rows"]} if known else {}
    rows, drawn = [], []
    for strength in arguments.strengths:
        noisy_chosen = with_noise(chosen, strength, 2)
        noisy = with_noise(clean, strength, 1)
        found: dict[str, tuple[np.ndarray, Any, float]] = {"noisy": (noisy, {}, 0.0)}
        for name, restore in denoising.FILTERS.items():
            try:
                if (strength, name) in kept:
                    settings = kept[strength, name]["settings"]
                    found[name] = (restore(noisy[:10], **settings), settings, 0.0)
                    continue
                settings = denoising.best_settings(name, chosen, noisy_chosen)
            except UserError as error:
                print(f"{name} left out: {error}")
                continue
            start = time.perf_counter()
            found[name] = (restore(noisy, **settings), settings, time.perf_counter() - start)
        denoiser.restore(model, noisy[:100])
        start = time.perf_counter()
        found["ours"] = (denoiser.restore(model, noisy), {}, time.perf_counter() - start)
        for name, (pictures, settings, seconds) in found.items():
            if len(pictures) < len(clean):
                rows.append(kept[strength, name])
                continue
            scores = {key: round(value, 4) for key, value in denoising.psnr_and_ssim(clean, pictures).items()}
            row = {"strength": strength, "method": name, **scores, "seconds": round(seconds, 2)}
            rows.append(row | {"settings": dict(settings)})
            print(row, flush=True)
        if strength == 25:
            drawn = [clean[:10], *(pictures[:10] for pictures, _, _ in found.values())]
            titles = [title for name in ("clean", *found) for title in [name.replace("_", " "), *[""] * 9]]
    if known and not known["protocol"].startswith(f"first {len(clean):,} "):
        raise SystemExit(f"the last measurement was of other pictures ({known['protocol']}); leave --keep-filters out")
    noise = "clipped and rounded" if kind == "photographs-files" else "neither clipped nor rounded"
    places = PHOTOGRAPHS.get(kind) or f"pictures of the {kind} test split"
    _results.write(
        f"denoiser_quality_{kind}",
        f"first {len(clean):,} {places}, Gaussian noise {noise}, "
        f"results clipped before scoring; the filters' settings are the best on {len(chosen)} validation pictures",
        rows,
        model=str(arguments.model),
    )
    if drawn and kind not in PHOTOGRAPHS:
        grid = np.clip(np.concatenate(drawn), 0, 255).astype(np.uint8)
        plots.image_grid(grid, _results.RESULTS / f"denoiser_{kind}.png", columns=10, titles=titles)


if __name__ == "__main__":
    main()
