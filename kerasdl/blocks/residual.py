"""Residual blocks and, with `shortcut=None`, their plain twins."""

from typing import Literal

import keras

from kerasdl.blocks.activation import activation
from kerasdl.blocks.convolution import convolution, squeeze_excite
from kerasdl.blocks.symbolic import require_symbolic
from kerasdl.fast.batch_normalization import FusedBatchNormalization
from kerasdl.fast.kernel_gradient import QuickGradientConv2D

Shortcut = Literal["identity", "projection", "pad"] | None


def basic_block(
    x: keras.KerasTensor,
    filters: int,
    *,
    strides: int = 1,
    shortcut: Shortcut = "identity",
    squeeze: bool = False,
    name: str,
) -> keras.KerasTensor:
    """Two 3x3 convolutions, added to the shortcut.

    Args:
        x: float32[batch, height, width, channels].
        filters: channels of the result.
        strides: of the first convolution and of the shortcut.
        shortcut: "identity" adds x, which needs strides=1 and channels == filters; "projection" adds a
            normalized 1x1 convolution of x (option B); "pad" adds every strides-th pixel of x with zeros for
            the new channels (option A); None adds nothing: the plain twin.
        squeeze: reweight the channels before the sum, see `kerasdl.blocks.convolution.squeeze_excite`.
        name: prefix of the layer names.

    Returns:
        float32[batch, ceil(height / strides), ceil(width / strides), filters].

    Raises:
        ValueError: x is not symbolic, or the shortcut does not fit.
    Source: He et al. 2015, arXiv:1512.03385, sections 3.2 and 3.3, figure 5 left; squeeze: Hu et al. 2017,
        arXiv:1709.01507, figure 3.
    """
    require_symbolic(x, "basic_block")
    y = convolution(x, filters, strides=strides, name=f"{name}_conv1")
    y = convolution(y, filters, activation="linear", name=f"{name}_conv2")
    if squeeze:
        y = squeeze_excite(y, ratio=4, name=f"{name}_se")  # the paper's 16 would leave one unit of 16 channels
    y = _add(y, _shortcut(x, filters, strides, shortcut, name), name)
    return activation(y, "relu", name=f"{name}_activation")


def bottleneck_block(
    x: keras.KerasTensor, filters: int, *, strides: int = 1, shortcut: Shortcut = "identity", name: str
) -> keras.KerasTensor:
    """1x1 convolution to few channels, 3x3 there, 1x1 to four times as many; added to the shortcut.

    Args:
        x: float32[batch, height, width, channels].
        filters: channels of the 3x3 convolution; the result has four times as many.
        strides: of the 3x3 convolution and of the shortcut.
        shortcut: as for `basic_block`, with 4 * filters for filters.
        name: prefix of the layer names.

    Returns:
        float32[batch, ceil(height / strides), ceil(width / strides), 4 * filters].

    Raises:
        ValueError: x is not symbolic, or the shortcut does not fit.
    Source: He et al. 2015, arXiv:1512.03385, section 4.1 "Deeper Bottleneck Architectures", figure 5 right.
    """
    require_symbolic(x, "bottleneck_block")
    y = convolution(x, filters, kernel_size=1, name=f"{name}_conv1")
    # The paper strides the first 1x1, which drops three pixels of four unseen; fb.resnet.torch moved it here.
    y = convolution(y, filters, strides=strides, name=f"{name}_conv2")
    y = convolution(y, 4 * filters, kernel_size=1, activation="linear", name=f"{name}_conv3")
    y = _add(y, _shortcut(x, 4 * filters, strides, shortcut, name), name)
    return activation(y, "relu", name=f"{name}_activation")


def preactivation_block(
    x: keras.KerasTensor, filters: int, *, strides: int = 1, shortcut: Shortcut = "identity", name: str
) -> keras.KerasTensor:
    """Twice normalization, nonlinearity, 3x3 convolution; added to a shortcut that nothing follows.

    After the last such block a network needs one more normalization and nonlinearity.

    Args:
        x: float32[batch, height, width, channels].
        filters: channels of the result.
        strides: of the first convolution and of the shortcut.
        shortcut: as for `basic_block`; a "projection" takes x normalized and activated, and is not normalized again.
        name: prefix of the layer names.

    Returns:
        float32[batch, ceil(height / strides), ceil(width / strides), filters].

    Raises:
        ValueError: x is not symbolic, or the shortcut does not fit.
    Source: He et al. 2016, arXiv:1603.05027, section 3, figure 4e, and appendix.
    """
    require_symbolic(x, "preactivation_block")
    y = FusedBatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)  # as in `convolution`
    y = activation(y, "relu", name=f"{name}_activation")
    if shortcut == "projection":
        skip = _bare_convolution(y, filters, 1, strides, f"{name}_projection")
    else:
        skip = _shortcut(x, filters, strides, shortcut, name)
    y = convolution(y, filters, strides=strides, name=f"{name}_conv1")
    y = _bare_convolution(y, filters, 3, 1, f"{name}_conv2")
    return _add(y, skip, name)


def _shortcut(x: keras.KerasTensor, filters: int, strides: int, kind: Shortcut, name: str) -> keras.KerasTensor | None:
    """What is added to a block's last convolution, or None."""
    channels = x.shape[-1]
    if kind is None:
        return None
    if kind == "identity" and strides == 1 and channels == filters:
        return x
    if kind == "projection":
        return convolution(x, filters, kernel_size=1, strides=strides, activation="linear", name=f"{name}_projection")
    if kind == "pad" and channels <= filters:
        if strides > 1:  # a 1x1 mean picks every strides-th pixel
            x = keras.layers.AveragePooling2D(1, strides, name=f"{name}_subsample")(x)
        # On [batch, height, width, channels], "channels_first" makes the layer pad the last two axes.
        return keras.layers.ZeroPadding2D(
            ((0, 0), (0, filters - channels)), data_format="channels_first", name=f"{name}_pad"
        )(x)
    raise ValueError(
        f"{name!r}: shortcut {kind!r} from {channels} to {filters} channels with strides={strides}, expected "
        '"identity" (same channels, strides=1), "pad" (no fewer channels), "projection" (anything) or None'
    )


def _add(y: keras.KerasTensor, skip: keras.KerasTensor | None, name: str) -> keras.KerasTensor:
    return y if skip is None else keras.layers.Add(name=f"{name}_add")([y, skip])


def _bare_convolution(
    x: keras.KerasTensor, filters: int, kernel_size: int, strides: int, name: str
) -> keras.KerasTensor:
    return QuickGradientConv2D(
        filters,
        kernel_size,
        strides,
        "same",
        use_bias=False,  # the next normalization removes or replaces it
        kernel_initializer="he_normal",
        name=name,
    )(x)
