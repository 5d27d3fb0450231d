"""Convolutions over the words of a sentence."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasdl.blocks.symbolic import require_symbolic


@keras.saving.register_keras_serializable(package="kerasdl")
class MaxOverTimeConvolution(keras.layers.Conv1D):
    """Convolution over the words of a sentence, and of each filter the largest value.

    The windows lie inside the sentence; a sentence shorter than the kernel is lengthened by zeros. A sentence of no
    words gives zeros.

    Args:
        filters: size of the result.
        kernel_size: words in a window.
        **kwargs: those of `keras.layers.Conv1D`, but for strides, padding and dilation.
    Source: Kim 2014, arXiv:1408.5882, section 2, equations 2 and 3.
    """

    def __init__(self, filters: int, kernel_size: int, **kwargs: Any) -> None:
        super().__init__(filters, kernel_size, **kwargs)
        self.supports_masking = True  # else Keras warns at an argument called mask

    def call(self, x: Any, mask: Any = None) -> Any:
        """Maps float[batch, words, channels] and bool[batch, words], true up to the end, to float[batch, filters]."""
        (width,) = self.kernel_size
        if mask is None:
            mask = ops.ones_like(x[..., 0], "bool")
        x = ops.pad(ops.where(mask[..., None], x, 0), [[0, 0], [0, width - 1], [0, 0]])
        maps = super().call(x)
        # A window counts if its last word is one; the first counts always.
        last = ops.pad(mask, [[0, 0], [0, width - 1]])[:, width:]
        counts = ops.concatenate([mask[:, :1], last], axis=1)
        largest = ops.max(ops.where(counts[..., None], maps, -np.inf), axis=1)
        return ops.where(mask[:, :1], largest, 0)

    def compute_mask(self, *_: Any) -> None:
        """None: the words are gone."""

    def compute_output_shape(self, x_shape: Sequence[int | None]) -> tuple[int | None, int]:
        """(batch, filters)."""
        return x_shape[0], self.filters


def sentence_convolution(
    x: keras.KerasTensor,
    filters: int,
    *,
    widths: Sequence[int] = (3, 4, 5),
    activation: str = "relu",
    mask: keras.KerasTensor | None = None,
    name: str,
) -> keras.KerasTensor:
    """Convolutions over windows of several widths, each followed by the maximum over the sentence, side by side.

    Args:
        x: float32[batch, words, channels], at least one word wide.
        filters: of each width.
        widths: words in a window; a shorter sentence is lengthened by zeros.
        activation: a Keras activation, between convolution and maximum.
        mask: bool[batch, words], true up to the end of each sentence; None: all are whole.
        name: of the result, and prefix of `_width<words>`.

    Returns:
        float32[batch, len(widths) * filters]; zeros for a sentence of no words.

    Raises:
        ValueError: x is not symbolic.
    Source: Kim 2014, arXiv:1408.5882, section 2; widths, and 100 filters each: section 3.1.
    """
    require_symbolic(x, "sentence_convolution")
    maxima = [
        MaxOverTimeConvolution(filters, width, activation=activation, name=f"{name}_width{width}")(x, mask=mask)
        for width in widths
    ]
    return keras.layers.Concatenate(name=name)(maxima)
