"""Likelihood of the MNIST test split, in nats a picture, of the variational autoencoder by its objective.

python -m benchmarks.vae_accuracy iwae --seeds 1
"""

from __future__ import annotations

from benchmarks import _accuracy

RECIPES = {
    "elbo": [],
    "iwae": ["--objective", "iwae", "--samples", "5", "--epochs", "350"],
}


if __name__ == "__main__":
    _accuracy.main(
        "vae",
        __doc__,
        RECIPES,
        ("nll_nats", "elbo_nats", "kl_nats", "active_latents"),
        "MNIST test split, 10,000 pictures, pixels drawn once by their brightness, importance-weighted bound of 5,000 "
        "samples; the epoch of the best validation bound",
    )
