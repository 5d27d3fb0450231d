"""The two networks of DCGAN, and spectral normalization.

`kerasdl.models.gan` trains them.
"""

import math
from typing import Any, Literal

import keras
from keras import ops

from kerasdl.blocks.activation import activation
from kerasdl.blocks.convolution import Bias
from kerasdl.blocks.symbolic import require_symbolic
from kerasdl.fast.batch_normalization import FusedBatchNormalization
from kerasdl.fast.kernel_gradient import QuickGradientConv2D, QuickGradientConv2DTranspose

# A multiple of the stride, so that every pixel is made of equally many others: no checkerboard (Odena et al. 2016,
# distill.pub/2016/deconv-checkerboard). As in the authors' Torch code; the paper's figure 1 has 5.
_KERNEL_SIZE = 4
_SMALLEST_MAP = 4  # pixels; the side of the first map of the generator and of the last of the discriminator
_WIDEST = 8  # filters; deeper stages than those of 64 pixels, the paper's size, are not widened further


def dcgan_generator(
    x: keras.KerasTensor,
    size: int,
    filters: int,
    *,
    channels: int = 3,
    label: keras.KerasTensor | None = None,
    num_classes: int = 0,
    name: str,
) -> keras.KerasTensor:
    """Makes pictures of noise: a 4x4 map that transposed convolutions of stride 2 enlarge; batch norm and ReLU.

    Args:
        x: the latent float32[batch, latent_dim]; 100 standard normal numbers in the authors' code.
        size: side of the pictures in pixels, a power of two from 16; 64 in the paper.
        filters: channels of the last hidden map, of size / 2 pixels; each smaller map has twice as many, up to
            8 * filters. 128 in the paper.
        channels: of the pictures.
        label: the classes int32[batch] of a conditional generator, appended to the latent as one-hot vectors.
        num_classes: labels are below it.
        name: prefix of the layer names.

    Returns:
        float32[batch, size, size, channels] in -1..1.

    Raises:
        ValueError: x is not symbolic, the size is not possible, or only one of label and num_classes is given.
    Source: Radford et al. 2015, arXiv:1511.06434, section 3, figure 1; initial weights: section 4; condition:
        Mirza and Osindero 2014, arXiv:1411.1784, section 3.2.
    """
    require_symbolic(x, "dcgan_generator")
    first, *others = reversed(_widths(size, filters, name))
    one_hot = _one_hot(label, num_classes, name)
    if one_hot is not None:
        # A long trained vector of the class is learned so much faster than the noise that each class becomes one
        # picture: after 2,000 steps on MNIST, `kerasdl.models.gan.diversity` was 0.05 with it and is 0.96.
        x = keras.layers.Concatenate(name=f"{name}_conditioned")([x, one_hot])
    x = keras.layers.Dense(
        _SMALLEST_MAP**2 * first, use_bias=False, kernel_initializer=_normal(), name=f"{name}_project"
    )(x)
    x = keras.layers.Reshape((_SMALLEST_MAP, _SMALLEST_MAP, first), name=f"{name}_map")(x)
    x = activation(_batch_norm(x, f"{name}_project_norm"), "relu", name=f"{name}_project_activation")
    for stage, width in enumerate(others):
        prefix = f"{name}_stage{stage}"
        x = _transposed(width, f"{prefix}_conv")(x)
        x = activation(_batch_norm(x, f"{prefix}_norm"), "relu", name=f"{prefix}_activation")
    x = Bias(name=f"{name}_picture_bias")(_transposed(channels, f"{name}_picture")(x))
    return keras.layers.Activation("tanh", dtype="float32", name=f"{name}_tanh")(x)


def dcgan_discriminator(
    x: keras.KerasTensor,
    filters: int,
    *,
    normalization: Literal["batch", "spectral"] = "batch",
    minibatch_deviation: bool = False,
    label: keras.KerasTensor | None = None,
    num_classes: int = 0,
    name: str,
) -> keras.KerasTensor:
    """Judges pictures: convolutions of stride 2 down to a 4x4 map, leaky ReLU, one linear layer.

    A conditional discriminator adds to its logit the inner product of the last map, flattened, with a vector of the
    class.

    Args:
        x: pictures float32[batch, size, size, channels] in -1..1, size a power of two from 16.
        filters: channels of the first map, of size / 2 pixels; each smaller map has twice as many, up to 8 * filters.
        normalization: "batch" after each convolution but the first; "spectral" of every kernel instead.
        minibatch_deviation: shows the last convolution how much the pictures of the batch differ, see
            `minibatch_standard_deviation`.
        label: the classes int32[batch] of a conditional discriminator.
        num_classes: labels are below it.
        name: prefix of the layer names.

    Returns:
        logits float32[batch, 1], above zero for real.

    Raises:
        ValueError: x is not symbolic, its size is not possible, or only one of label and num_classes is given.
    Source: Radford et al. 2015, arXiv:1511.06434, section 3; spectral normalization: Miyato et al. 2018,
        arXiv:1802.05957, section 2.1; condition by projection: Miyato and Koyama 2018, arXiv:1802.05637, figure 1d.
    """
    require_symbolic(x, "dcgan_discriminator")
    if x.shape[1] != x.shape[2]:
        raise ValueError(f"{name!r}: pictures are {x.shape[1]}x{x.shape[2]}, expected squares: crop or scale them")
    widths = _widths(x.shape[1], filters, name)
    spectral = normalization == "spectral"

    def layer(plain: keras.layers.Layer) -> keras.layers.Layer:
        return SpectralNormalization(plain, name=f"{plain.name}_spectral") if spectral else plain

    for stage, width in enumerate(widths):
        prefix = f"{name}_stage{stage}"
        if minibatch_deviation and stage == len(widths) - 1:
            x = minibatch_standard_deviation(x, name=f"{name}_deviation")
        convolution = QuickGradientConv2D(
            width, _KERNEL_SIZE, 2, "same", use_bias=False, kernel_initializer=_normal(), name=f"{prefix}_conv"
        )
        x = layer(convolution)(x)
        x = Bias(name=f"{prefix}_bias")(x) if spectral or stage == 0 else _batch_norm(x, f"{prefix}_norm")
        x = activation(x, "leaky_relu", name=f"{prefix}_activation")
    x = keras.layers.Flatten(name=f"{name}_flatten")(x)
    final: dict[str, Any] = {"kernel_initializer": _normal(), "dtype": "float32"}
    logits = layer(keras.layers.Dense(1, name=f"{name}_logits", **final))(x)
    one_hot = _one_hot(label, num_classes, name)
    if one_hot is None:
        return logits
    products = layer(keras.layers.Dense(num_classes, use_bias=False, name=f"{name}_projection", **final))(x)
    product = keras.layers.Dot(1, dtype="float32", name=f"{name}_product")([products, one_hot])
    return keras.layers.Add(dtype="float32", name=f"{name}_conditioned")([logits, product])


def minibatch_standard_deviation(x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
    """Appends a channel that says how much the maps of the batch differ: what gives a collapsed generator away.

    Its one value is the standard deviation over the batch, averaged over places and channels.

    Args:
        x: float32[batch, height, width, channels].
        name: name of the layer.

    Returns:
        float32[batch, height, width, channels + 1].

    Raises:
        ValueError: x is not symbolic.
    Source: Karras et al. 2017, arXiv:1710.10196, section 3; one group, the whole batch, as written there.
    """
    require_symbolic(x, "minibatch_standard_deviation")
    # The small number keeps the gradient finite where all are equal; as in the authors' code.
    channel = ops.zeros_like(x[..., :1]) + ops.mean(ops.sqrt(ops.var(x, 0) + 1e-8))
    return keras.layers.Concatenate(name=name)([x, channel])


@keras.saving.register_keras_serializable(package="kerasdl")
class SpectralNormalization(keras.layers.Wrapper):
    """A layer whose kernel is divided by its largest singular value, which makes the layer 1-Lipschitz.

    The value is estimated by one step of power iteration a call in training, from where the last call ended.

    `keras.layers.SpectralNormalization` of Keras 3.15 overwrites the kernel at each call in training. So the gradient
    lacks the part that flows through the singular value (section 2.3 of the paper), the generator's step changes the
    discriminator, and a kernel is not normalized in inference after the optimizer has moved it. Here the kernel is
    the optimizer's alone. Singular value and division are computed in float32, the layer in its own precision.

    Args:
        layer: has a `kernel` float32[..., outputs] that it does not transpose, such as Dense or Conv2D.
        **kwargs: those of `keras.layers.Wrapper`.
    Source: Miyato et al. 2018, arXiv:1802.05957, sections 2.1 and 2.2, algorithm 1.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any) -> None:
        super().__init__(layer, **{**kwargs, "dtype": "float32", "autocast": False})

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the layer, and u float32[outputs], an estimate of the first singular vector."""
        super().build(input_shape)
        self.u = self.add_weight(
            shape=(self.layer.kernel.shape[-1],), initializer="random_normal", trainable=False, name="u"
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """What the layer gives with its kernel divided by the spectral norm."""
        kernel = self.layer.kernel
        matrix = ops.reshape(kernel, (-1, kernel.shape[-1]))
        u = ops.convert_to_tensor(self.u)
        v = _unit(ops.matmul(matrix, u))
        if training:
            u = _unit(ops.matmul(v, matrix))
            self.u.assign(u)
        u, v = ops.stop_gradient(u), ops.stop_gradient(v)
        norm = ops.maximum(ops.sum(v * ops.matmul(matrix, u)), 1e-12)  # a kernel of zeros stays one
        with keras.StatelessScope([(kernel, kernel / norm)]):
            return self.layer(inputs)


def _widths(size: int | None, filters: int, name: str) -> list[int]:
    """Channels of the maps of size / 2, size / 4, ... 4 pixels."""
    if size is None or size < 16 or size & (size - 1):
        raise ValueError(f"{name!r}: pictures of {size} pixels, expected 16, 32, 64, 128 ...: crop or scale them")
    return [filters * min(2**stage, _WIDEST) for stage in range(int(math.log2(size // _SMALLEST_MAP)))]


def _one_hot(label: keras.KerasTensor | None, num_classes: int, name: str) -> keras.KerasTensor | None:
    if (label is None) != (num_classes == 0):
        raise ValueError(
            f"{name!r}: label is {label} and num_classes is {num_classes}, expected both or none: give the label's "
            "keras.Input and how many classes there are"
        )
    return None if label is None else ops.one_hot(label, num_classes)


def _normal() -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=0.02)


def _transposed(filters: int, name: str) -> keras.layers.Layer:
    return QuickGradientConv2DTranspose(
        filters, _KERNEL_SIZE, 2, "same", use_bias=False, kernel_initializer=_normal(), name=name
    )


def _batch_norm(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    # 0.9 and 1e-5 are Torch's; Keras' momentum of 0.99 lags behind in short runs.
    return FusedBatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def _unit(vector: Any) -> Any:
    return vector / (ops.norm(vector) + 1e-12)
