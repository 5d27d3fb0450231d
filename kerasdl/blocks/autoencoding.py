"""Pictures and vectors to codes and back: encoders, decoders, the U-Net, and a penalty that keeps codes sparse.

An encoder ends in features: its user puts a Dense layer behind it for a code, two for a Gaussian one. What a decoder
or the U-Net returns is float32 under every dtype policy, as a loss needs it: logits, or values of any sign.
"""

import math
import typing
from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import ops

from kerasdl.blocks.activation import ActivationKind
from kerasdl.blocks.activation import activation as activate
from kerasdl.blocks.convolution import Bias, convolution
from kerasdl.blocks.symbolic import require_symbolic
from kerasdl.fast.batch_normalization import FusedBatchNormalization

UpsamplingKind = Literal["transposed", "resize"]
SparsityKind = Literal["l1", "kl"]


def dense_encoder(
    x: keras.KerasTensor, units: Sequence[int], *, activation: ActivationKind = "relu", name: str
) -> keras.KerasTensor:
    """Flattens, then a dense layer and a nonlinearity for each entry of units.

    Args:
        x: float32[batch, ...], its size known but for the batch.
        units: widths of the layers; with one, and activation="linear", a linear code.
        activation: see `kerasdl.blocks.activation.activation`.
        name: prefix of `_flatten`, `_dense0`, `_dense0_activation` and so on.

    Returns:
        float32[batch, units[-1]].

    Raises:
        ValueError: x is not symbolic, or the activation is unknown.
    Source: Hinton and Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks", figure 1.
    """
    require_symbolic(x, "dense_encoder")
    x = keras.layers.Flatten(name=f"{name}_flatten")(x)
    return _dense_stack(x, units, activation, name)


def dense_decoder(
    x: keras.KerasTensor,
    units: Sequence[int],
    shape: Sequence[int],
    *,
    activation: ActivationKind = "relu",
    name: str,
) -> keras.KerasTensor:
    """A dense layer and a nonlinearity for each entry of units, then a linear layer to the wanted shape.

    Args:
        x: float32[batch, latents].
        units: widths of the hidden layers; without any the decoder is linear.
        shape: of one example of the result.
        activation: of the hidden layers, see `kerasdl.blocks.activation.activation`.
        name: prefix of `_dense0`, `_dense0_activation` and so on, `_output` (the linear layer) and `_reshape`.

    Returns:
        float32[batch, *shape].

    Raises:
        ValueError: x is not symbolic, or the activation is unknown.
    Source: Hinton and Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks", figure 1.
    """
    require_symbolic(x, "dense_decoder")
    x = _dense_stack(x, units, activation, name)
    x = keras.layers.Dense(math.prod(shape), dtype="float32", name=f"{name}_output")(x)
    return keras.layers.Reshape(tuple(shape), dtype="float32", name=f"{name}_reshape")(x)


def convolutional_encoder(
    x: keras.KerasTensor,
    filters: Sequence[int],
    *,
    normalization: bool = True,
    activation: ActivationKind = "relu",
    name: str,
) -> keras.KerasTensor:
    """A 3x3 convolution of stride 2 for each entry of filters.

    Args:
        x: float32[batch, height, width, channels].
        filters: channels of each stage; a stage halves height and width, and rounds up.
        normalization: see `kerasdl.blocks.convolution.convolution`.
        activation: see `kerasdl.blocks.activation.activation`.
        name: prefix of the layer names.

    Returns:
        float32[batch, ceil(height / stride), ceil(width / stride), filters[-1]], stride = 2^len(filters).

    Raises:
        ValueError: x is not symbolic, or the activation is unknown.
    Source: Radford et al. 2015, arXiv:1511.06434, section 3 (strided convolutions in place of pooling).
    """
    require_symbolic(x, "convolutional_encoder")
    for stage, width in enumerate(filters):
        x = convolution(
            x, width, strides=2, normalization=normalization, activation=activation, name=f"{name}_stage{stage}_conv"
        )
    return x


def convolutional_decoder(
    x: keras.KerasTensor,
    filters: Sequence[int],
    channels: int,
    *,
    upsampling: UpsamplingKind = "transposed",
    normalization: bool = True,
    activation: ActivationKind = "relu",
    output_kernel: str | keras.initializers.Initializer = "glorot_uniform",
    name: str,
) -> keras.KerasTensor:
    """Doubles height and width for each entry of filters, then a linear 3x3 convolution to the wanted channels.

    Args:
        x: float32[batch, height, width, c].
        filters: channels of each stage.
        channels: of the result.
        upsampling: "transposed" for `transposed_convolution`, "resize" for `resize_convolution`, which is slower.
        normalization: of the stages, see `transposed_convolution`.
        activation: of the stages, see `kerasdl.blocks.activation.activation`.
        output_kernel: initial kernel of the linear convolution; a small one where the result is a correction.
        name: prefix of the layer names; the linear convolution is `_output`.

    Returns:
        float32[batch, stride * height, stride * width, channels], stride = 2^len(filters). What
        `convolutional_encoder` made of a picture comes back in its size if the sides are multiples of the stride.

    Raises:
        ValueError: x is not symbolic, or the upsampling or the activation is unknown.
    Source: Radford et al. 2015, arXiv:1511.06434, section 3 and figure 1; the last convolution is own: it sees whole
        neighbourhoods of the full-sized picture, as the decoder of `unet` does.
    """
    require_symbolic(x, "convolutional_decoder")
    for stage, width in enumerate(filters):
        x = _upsample(x, width, 4, upsampling, normalization, activation, f"{name}_stage{stage}_up")
    return keras.layers.Conv2D(
        channels, 3, padding="same", kernel_initializer=output_kernel, dtype="float32", name=f"{name}_output"
    )(x)


def transposed_convolution(
    x: keras.KerasTensor,
    filters: int,
    *,
    kernel_size: int = 4,
    normalization: bool = True,
    activation: ActivationKind = "relu",
    name: str,
) -> keras.KerasTensor:
    """Doubles height and width by a transposed convolution; normalization, nonlinearity.

    Every pixel of the result is made of (kernel_size / 2)^2 pixels of x. With an odd kernel some would be made of more
    than others, a pattern that a network has to unlearn.

    Args:
        x: float32[batch, height, width, channels].
        filters: channels of the result.
        kernel_size: height and width of the kernel, in pixels of the result; even.
        normalization: False adds a `kerasdl.blocks.convolution.Bias` in its place.
        activation: see `kerasdl.blocks.activation.activation`.
        name: name of the convolution, prefix of `_norm` or `_bias`, and `_activation`.

    Returns:
        float32[batch, 2 * height, 2 * width, filters].

    Raises:
        ValueError: x is not symbolic, the kernel's size is odd, or the activation is unknown.
    Source: Radford et al. 2015, arXiv:1511.06434, section 3; even kernels: Odena et al. 2016, "Deconvolution and
        checkerboard artifacts"; initial kernel: He et al. 2015a, arXiv:1502.01852, section 2.2.
    """
    require_symbolic(x, "transposed_convolution")
    if kernel_size < 2 or kernel_size % 2:
        raise ValueError(
            f"transposed_convolution {name!r} has kernel_size={kernel_size}, expected 2, 4, 6, ...: the stride is 2, "
            "and another kernel makes neighbouring pixels of different numbers of terms"
        )
    x = keras.layers.Conv2DTranspose(
        filters,
        kernel_size,
        2,
        "same",
        use_bias=False,
        # "he_normal" would count the kernel's filters for x's channels, and all taps where each pixel meets a quarter:
        # variance 2 / (channels * kernel_size^2 / 4), with "fan_out" = channels * kernel_size^2.
        kernel_initializer=keras.initializers.VarianceScaling(8.0, "fan_out"),
        name=name,
    )(x)
    if normalization:
        x = FusedBatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)  # as in `convolution`
    else:
        x = Bias(name=f"{name}_bias")(x)
    return activate(x, activation, name=f"{name}_activation")


def resize_convolution(
    x: keras.KerasTensor,
    filters: int,
    *,
    kernel_size: int = 3,
    normalization: bool = True,
    activation: ActivationKind = "relu",
    name: str,
) -> keras.KerasTensor:
    """Doubles height and width by repeating pixels; convolution, normalization, nonlinearity.

    Args:
        x: float32[batch, height, width, channels].
        filters: channels of the result.
        kernel_size: height and width of the kernel, in pixels of the result.
        normalization: False adds a bias in its place.
        activation: see `kerasdl.blocks.activation.activation`.
        name: name of the convolution, prefix of `_resize`, `_norm` and `_activation`.

    Returns:
        float32[batch, 2 * height, 2 * width, filters].

    Raises:
        ValueError: x is not symbolic, or the activation is unknown.
    Source: Odena et al. 2016, "Deconvolution and checkerboard artifacts", section "Better Upsampling" (nearest
        neighbours, then a convolution).
    """
    require_symbolic(x, "resize_convolution")
    x = keras.layers.UpSampling2D(2, name=f"{name}_resize")(x)
    return convolution(
        x, filters, kernel_size=kernel_size, normalization=normalization, activation=activation, name=name
    )


def unet(
    x: keras.KerasTensor,
    filters: Sequence[int],
    channels: int,
    *,
    upsampling: UpsamplingKind = "transposed",
    normalization: bool = True,
    activation: ActivationKind = "relu",
    output_kernel: str | keras.initializers.Initializer = "glorot_uniform",
    name: str,
) -> keras.KerasTensor:
    """U-Net: down to a small map of many channels and up again, each size joined to the one it came from.

    A size has two 3x3 convolutions on the way down and two on the way up, max pooling leads down, a transposed
    convolution up, and a linear 1x1 convolution closes it.

    One network takes pictures of any size, also of unknown and of odd size: where a side cannot be halved, pooling
    rounds up, and the way up drops the row too many. Sides that are multiples of 2^(len(filters) - 1) lose nothing.

    Here convolutions are padded, so that the result has the picture's size; the paper's are not, and lose a border.
    The paper has no normalization; without it deep denoisers train slowly (Zhang et al. 2016, arXiv:1608.03981,
    section III.C). Dropout is left out.

    Args:
        x: float32[batch, height, width, c].
        filters: channels at each size, from the picture's size to the smallest, at least two; the paper's are 64, 128,
            256, 512, 1024.
        channels: of the result.
        upsampling: "transposed" is the paper's, with a 2x2 kernel; "resize" takes `resize_convolution`.
        normalization: False adds biases in its place.
        activation: behind every convolution but the last, see `kerasdl.blocks.activation.activation`.
        output_kernel: initial kernel of the last convolution; a small one where the result is a correction.
        name: prefix of the layer names: `_down0_conv0`, `_up0`, `_up0_cut`, `_up0_skip`, `_up0_conv0` and so on, where
            0 is the picture's size; `_output`.

    Returns:
        float32[batch, height, width, channels].

    Raises:
        ValueError: x is not symbolic, there are fewer than two filters, or the upsampling or the activation is unknown.
    Source: Ronneberger et al. 2015, arXiv:1505.04597, section 2, figure 1; the nonlinearity after a transposed
        convolution is in the authors' code.
    """
    require_symbolic(x, "unet")
    if len(filters) < 2:
        raise ValueError(
            f"unet {name!r} has filters {tuple(filters)}, expected two or more: with one nothing is joined"
        )

    def two_convolutions(x: keras.KerasTensor, width: int, stage: str) -> keras.KerasTensor:
        for index in range(2):
            x = convolution(
                x, width, normalization=normalization, activation=activation, name=f"{name}_{stage}_conv{index}"
            )
        return x

    skips = []
    for level, width in enumerate(filters):
        if level:
            skips.append(x)
            x = keras.layers.MaxPooling2D(2, padding="same", name=f"{name}_down{level}_pool")(x)
        x = two_convolutions(x, width, f"down{level}")
    for level in reversed(range(len(skips))):
        x = _upsample(x, filters[level], 2, upsampling, normalization, activation, f"{name}_up{level}")
        x = CutTo(name=f"{name}_up{level}_cut")(x, skips[level])
        x = keras.layers.Concatenate(name=f"{name}_up{level}_skip")([skips[level], x])
        x = two_convolutions(x, filters[level], f"up{level}")
    return keras.layers.Conv2D(channels, 1, kernel_initializer=output_kernel, dtype="float32", name=f"{name}_output")(x)


@keras.saving.register_keras_serializable(package="kerasdl")
class CutTo(keras.layers.Layer):
    """Cuts a map to the height and width of another: what a decoder makes of rounded-up sizes is a little too large.

    Keras' Cropping2D wants sizes that are known while the network is built.

    Args:
        **kwargs: those of `keras.layers.Layer`.
    Source: own.
    """

    def call(self, x: Any, other: Any) -> Any:
        """Maps float[batch, h, w, channels] and float[batch, height, width, c] to [batch, height, width, channels]."""
        height, width = ops.shape(other)[1:3]
        return x[:, :height, :width]

    def compute_output_shape(
        self, x_shape: tuple[int | None, ...], other_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """[batch, height, width, channels]."""
        return (*other_shape[:3], x_shape[3])


@keras.saving.register_keras_serializable(package="kerasdl")
class SparsityPenalty(keras.layers.Layer):
    """Returns its input unchanged, and adds to the model's loss what makes few of the units active.

    The last axis are the units. With m_j the mean over all other axes (the batch, and the places of a map), the loss is

        "l1": weight * sum_j m_j(|activation|)
        "kl": weight * sum_j (target log(target / m_j) + (1 - target) log((1 - target) / (1 - m_j))), in nats

    The second is the divergence between two coins, one of which shows "active" at the rate `target`; it wants
    activations between 0 and 1, as sigmoid's. Like Keras' regularizers it is part of the validation loss, too.
    It is computed in float32 under every dtype policy.

    Args:
        kind: "l1" makes the activations of an example few and small; "kl" makes each unit active at a rate.
        weight: factor of the penalty.
        target: rate of "kl", between 0 and 1; "l1" has none.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        ValueError: the kind is unknown, or the target no rate.
    Source: "l1": Olshausen and Field 1996, "Emergence of simple-cell receptive field properties by learning a sparse
        code for natural images", equation 4 with S(x) = |x|; "kl": Ng 2011, "Sparse autoencoder", CS294A lecture
        notes, section 3.
    """

    def __init__(self, kind: SparsityKind, weight: float, target: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        kinds = typing.get_args(SparsityKind)
        if kind not in kinds:
            raise ValueError(f"unknown sparsity {kind!r} in {self.name!r}, expected one of: {', '.join(kinds)}")
        if not 0 < target < 1:
            raise ValueError(f"{self.name!r} has target={target}, expected a rate: give one between 0 and 1, say 0.05")
        self.kind = kind
        self.weight = weight
        self.target = target

    def call(self, x: Any) -> Any:
        """Maps float[batch, ..., units] to itself."""
        activations = ops.cast(x, "float32")
        others = tuple(range(len(x.shape) - 1))
        if self.kind == "l1":
            penalty = ops.mean(ops.abs(activations), axis=others)
        else:
            # Rounding must not make the logarithm of a unit that is always or never active infinite.
            rate = ops.clip(ops.mean(activations, axis=others), 1e-6, 1 - 1e-6)
            penalty = self.target * ops.log(self.target / rate)
            penalty += (1 - self.target) * ops.log((1 - self.target) / (1 - rate))
        self.add_loss(self.weight * ops.sum(penalty))
        return x

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "kind": self.kind, "weight": self.weight, "target": self.target}


def _dense_stack(
    x: keras.KerasTensor, units: Sequence[int], activation: ActivationKind, name: str
) -> keras.KerasTensor:
    for index, width in enumerate(units):
        x = keras.layers.Dense(width, name=f"{name}_dense{index}")(x)
        x = activate(x, activation, name=f"{name}_dense{index}_activation")
    return x


def _upsample(
    x: keras.KerasTensor,
    filters: int,
    kernel_size: int,
    kind: UpsamplingKind,
    normalization: bool,
    activation: ActivationKind,
    name: str,
) -> keras.KerasTensor:
    """Kernel size: of the transposed convolution."""
    match kind:
        case "transposed":
            return transposed_convolution(
                x,
                filters,
                kernel_size=kernel_size,
                normalization=normalization,
                activation=activation,
                name=name,
            )
        case "resize":
            return resize_convolution(x, filters, normalization=normalization, activation=activation, name=name)
    kinds = typing.get_args(UpsamplingKind)
    raise ValueError(f"unknown upsampling {kind!r} in {name!r}, expected one of: {', '.join(kinds)}")
