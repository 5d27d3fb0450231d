"""Compute precision of a model that is being built."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import keras

Precision = Literal["float32", "bfloat16"]


@contextmanager
def precision(kind: Precision) -> Iterator[None]:
    """Builds layers that compute in `kind` and keep float32 weights.

    bfloat16 has float32's range, so that it needs no loss scaling; float16 is not offered for that reason.

    Args:
        kind: `float32` or `bfloat16`.

    Source: Kalamkar et al. 2019, arXiv:1905.12322.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if kind == "bfloat16" else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
