"""Loss on the last tenth of Tiny Shakespeare, with the training time on this machine.

    python -m benchmarks.chargen_accuracy three-minutes --seeds 1

`three-minutes` stands beside nanoGPT's recipe for a CPU, which reaches 1.88 nats in about that time.
"""

from __future__ import annotations

from benchmarks import _accuracy

RECIPES: dict[str, list[str]] = {
    "three-minutes": ["--units", "256", "--epochs", "5", "--dropout", "0.2"],
    "default": [],
}


if __name__ == "__main__":
    _accuracy.main(
        "chargen",
        __doc__,
        RECIPES,
        ("nats_per_character_nanogpt_protocol", "nats_per_character"),
        "Tiny Shakespeare, last tenth; by nanoGPT's protocol, and every character of the test half with carried state",
    )
