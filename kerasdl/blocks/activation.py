"""Elementwise nonlinearities, and maxout."""

import typing
from typing import Literal

import keras

from kerasdl.blocks.symbolic import require_symbolic
from kerasdl.fast.fused_gelu import FusedGelu

ActivationKind = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "linear"]


def activation(x: keras.KerasTensor, kind: ActivationKind, *, name: str) -> keras.KerasTensor:
    """Applies an elementwise nonlinearity that a configuration can name.

    Args:
        x: float32[...].
        kind: "leaky_relu" has slope 0.2 below zero (Radford et al. 2015); "gelu" is the tanh form, see
            `FusedGelu`; "linear" returns x itself and adds no layer.
        name: name of the layer.

    Returns:
        float32[...], the shape of x.

    Raises:
        ValueError: x is not symbolic, or kind is unknown.
    Source: Maas et al. 2013 (leaky_relu); Clevert et al. 2015, arXiv:1511.07289 (elu); Hendrycks and Gimpel
        2016, arXiv:1606.08415 (gelu); Elfwing et al. 2017, arXiv:1702.03118 (silu).
    """
    require_symbolic(x, "activation")
    kinds = typing.get_args(ActivationKind)
    if kind not in kinds:
        raise ValueError(f"unknown activation {kind!r} in {name!r}, expected one of: {', '.join(kinds)}")
    if kind == "linear":
        return x
    if kind == "gelu":
        return FusedGelu(name=name)(x)
    return keras.layers.Activation(kind, name=name)(x)


def maxout(x: keras.KerasTensor, units: int, *, pieces: int = 2, name: str) -> keras.KerasTensor:
    """Takes the largest of several linear maps of the last axis; on an image this is a 1x1 convolution.

    Args:
        x: float32[..., channels].
        units: size of the last axis of the result.
        pieces: linear maps that each unit chooses from, at least 2.
        name: prefix of the layer names.

    Returns:
        float32[..., units].

    Raises:
        ValueError: x is not symbolic, or there are fewer than two pieces.
    Source: Goodfellow et al. 2013, arXiv:1302.4389, section 3.
    """
    require_symbolic(x, "maxout")
    if pieces < 2:
        raise ValueError(f"maxout {name!r} has pieces={pieces}, expected 2 or more: with one it is a Dense layer")
    maps = [keras.layers.Dense(units, name=f"{name}_piece{index}")(x) for index in range(pieces)]
    return keras.layers.Maximum(name=f"{name}_max")(maps)
