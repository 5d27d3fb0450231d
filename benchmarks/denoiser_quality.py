"""The denoiser beside classical filters, all on the same noisy test pictures: PSNR and SSIM.

    python -m benchmarks.denoiser_quality cifar10 saved_models/denoiser
    python -m benchmarks.denoiser_quality mnist runs/denoiser/2026-11-22-010527     (a run of --dataset mnist)

Needs the extra `denoising` (non-local means), and for BM3D the package bm3d, whose licence is for non-commercial use;
what is not installed is left out. About 20 minutes on two CPU cores, nearly all of them BM3D's;
with --pictures 300 ten.

The noise is Gaussian, neither clipped nor rounded; what is scored is clipped. The settings of each filter are the best
on 50 validation pictures with noise of the same strength; the test pictures choose nothing.
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
from kerasdl.errors import UserError
from kerasdl.figures import plots
from kerasdl.metrics import denoising
from kerasdl.training import run


def main() -> None:
    """Measures and writes benchmarks/results/denoiser_quality_<dataset>.json and .png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=("cifar10", "mnist"))
    parser.add_argument("model", type=Path, help="a run folder, or an export")
    parser.add_argument("--pictures", type=int, default=1000, help="of the test split, from the first (default 1000)")
    parser.add_argument("--strengths", type=float, nargs="+", default=[15, 25, 50], help="on the scale 0..255")
    parser.add_argument("--data-dir", type=Path, help="TFDS folder; else KERASDL_DATA_DIR, else TFDS' own default")
    arguments = parser.parse_args()
    config = denoiser.Config(dataset=arguments.dataset, data_dir=arguments.data_dir)
    data = denoiser.load_data(config)
    model: Any
    if (arguments.model / run.CONFIG).is_file() and (arguments.model / run.MODEL).is_file():
        trained = dataclasses.replace(read_config(arguments.model / run.CONFIG, denoiser.Config), data_dir=None)
        model = export.in_memory(denoiser.endpoints(_weights.restore(denoiser, trained, data, arguments.model), data))
    else:
        model = export.signatures(arguments.model)
    chosen, clean = data.validation[:50], data.test()[: arguments.pictures]
    rows, drawn = [], []
    for strength in arguments.strengths:
        noisy_chosen = denoiser.noisy_of(config, chosen, strength, seed=2)
        noisy = denoiser.noisy_of(config, clean, strength, seed=1)
        found: dict[str, tuple[np.ndarray, Any, float]] = {"noisy": (noisy, {}, 0.0)}
        for name, restore in denoising.FILTERS.items():
            try:
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
            scores = {key: round(value, 4) for key, value in denoising.psnr_and_ssim(clean, pictures).items()}
            row = {"strength": strength, "method": name, **scores, "seconds": round(seconds, 2)}
            rows.append(row | {"settings": dict(settings)})
            print(row, flush=True)
        if strength == 25:
            drawn = [clean[:10], *(pictures[:10] for pictures, _, _ in found.values())]
            titles = [title for name in ("clean", *found) for title in [name.replace("_", " "), *[""] * 9]]
    _results.write(
        f"denoiser_quality_{arguments.dataset}",
        f"first {len(clean):,} pictures of the {arguments.dataset} test split, Gaussian noise neither clipped nor "
        "rounded, results clipped before scoring; the filters' settings are the best on 50 validation pictures",
        rows,
        model=str(arguments.model),
    )
    if drawn:
        grid = np.clip(np.concatenate(drawn), 0, 255).astype(np.uint8)
        plots.image_grid(grid, _results.RESULTS / f"denoiser_{arguments.dataset}.png", columns=10, titles=titles)


if __name__ == "__main__":
    main()
