"""Distance of digits drawn by the DCGAN to those of MNIST's test split, and how many of the ten it draws.

python -m benchmarks.dcgan_accuracy mnist --seeds 1        (about 10 minutes)
"""

from __future__ import annotations

from benchmarks import _accuracy

RECIPES = {
    "mnist": ["--dataset", "mnist", "--conditional", "--epochs", "4"],
}
METRICS = ("frechet", "frechet_floor", "precision", "recall", "modes_hit", "class_kl_nats", "class_accuracy")


if __name__ == "__main__":
    _accuracy.main(
        "dcgan",
        __doc__,
        RECIPES,
        METRICS,
        "MNIST test split, 10,000 digits, and as many drawn ones of the same classes, in the features of a classifier "
        "of the training digits",
    )
