"""Compute precision of a model that is being built."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras

from kerasdl import processor


@contextmanager
def precision(kind: processor.Precision) -> Iterator[None]:
    """Builds layers that compute in `kind` and keep float32 weights.

    bfloat16 has float32's range, so that it needs no loss scaling; float16 is not offered for that reason.

    Args:
        kind: `float32`, `bfloat16`, or `auto` for what this machine computes well, see `processor.resolve`.

    Source: Kalamkar et al. 2019, arXiv:1905.12322.
    """
    resolved, _ = processor.resolve(kind)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if resolved == "bfloat16" else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
