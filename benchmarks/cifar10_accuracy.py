"""Accuracy on the CIFAR-10 test split, mean of several seeds, with the training time on this machine.

    python -m benchmarks.cifar10_accuracy fast-13 --seeds 3

Settings were chosen on the held-out 10 % of the training split; the runs here train on all 50,000 pictures, so that
nothing can be chosen on the test split.
"""

from __future__ import annotations

from benchmarks import _accuracy

WHOLE = ("--validation-ratio", "0")
RECIPES = {
    "fast-13": ["--epochs", "13", *WHOLE],
    "fast-21": ["--epochs", "21", "--padding", "4", "--cutout-size", "8", *WHOLE],
    "resnet20": ["--architecture", "resnet20", "--epochs", "12", *WHOLE],
}


if __name__ == "__main__":
    _accuracy.main(
        "cifar10",
        __doc__,
        RECIPES,
        ("accuracy", "flip_average_accuracy"),
        "CIFAR-10 test split, 10,000 pictures, float32 evaluation of the last epoch; flip average reported apart",
    )
