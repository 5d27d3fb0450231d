"""Convolution with normalization, squeeze-and-excitation, and the parts of the fast network.

A block's main layer, where it has one, carries the block's `name`; the others are `<name>_norm` and so on.
"""

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from kerasdl.blocks.activation import ActivationKind
from kerasdl.blocks.activation import activation as activate
from kerasdl.blocks.symbolic import require_symbolic
from kerasdl.fast.batch_normalization import FusedBatchNormalization
from kerasdl.fast.kernel_gradient import QuickGradientConv2D


def convolution(
    x: keras.KerasTensor,
    filters: int,
    *,
    kernel_size: int = 3,
    strides: int = 1,
    normalization: bool = True,
    activation: ActivationKind = "relu",
    name: str,
) -> keras.KerasTensor:
    """Convolution, batch normalization, nonlinearity.

    A strided convolution is padded alike on both sides, as in the papers' own code. TensorFlow's "same" would
    pad the right and the bottom only, which shifts the result by half a pixel against a subsampled shortcut.

    Args:
        x: float32[batch, height, width, channels].
        filters: channels of the result.
        kernel_size: height and width of the kernel, in pixels.
        strides: distance between neighbouring outputs, in pixels.
        normalization: False adds a `Bias` in its place.
        activation: see `kerasdl.blocks.activation.activation`.
        name: name of the convolution, prefix of `_pad`, `_norm` or `_bias`, and `_activation`.

    Returns:
        float32[batch, ceil(height / strides), ceil(width / strides), filters].

    Raises:
        ValueError: x is not symbolic, or the activation is unknown.
    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, section 3.2; initial kernel: He et al. 2015a,
        arXiv:1502.01852, section 2.2.
    """
    require_symbolic(x, "convolution")
    padding = "same"
    if strides > 1 and kernel_size > 1:
        border = ((kernel_size - 1) // 2, kernel_size // 2)
        x = keras.layers.ZeroPadding2D((border, border), name=f"{name}_pad")(x)
        padding = "valid"
    x = QuickGradientConv2D(
        filters,
        kernel_size,
        strides,
        padding,
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)
    if normalization:
        # Keras' momentum of 0.99 lags behind in short runs; 0.9 and 1e-5 are Torch's, as in fb.resnet.torch.
        x = FusedBatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)
    else:
        x = Bias(name=f"{name}_bias")(x)
    return activate(x, activation, name=f"{name}_activation")


@keras.saving.register_keras_serializable(package="kerasdl")
class Bias(keras.layers.Layer):
    """Adds a trained number to each channel.

    Keras' own layers add theirs by TensorFlow's BiasAdd, whose gradient is accumulated in bfloat16 under mixed
    precision: for 64 maps of 32x32 pixels it is wrong by half, for a dense layer and 2,000 examples by a tenth.

    Args:
        **kwargs: those of `keras.layers.Layer`.
    Source: own.
    """

    def build(self, x_shape: tuple[int | None, ...]) -> None:
        """Makes bias float32[channels]."""
        self.bias = self.add_weight(shape=(x_shape[-1],), initializer="zeros", name="bias")

    def call(self, x: Any) -> Any:
        """Maps float[..., channels] to the same shape."""
        return x + self.bias  # not `ops.add`, which is BiasAdd


def squeeze_excite(x: keras.KerasTensor, *, ratio: int = 16, name: str) -> keras.KerasTensor:
    """Reweights channels by a gate computed from their global means.

    Args:
        x: float32[batch, height, width, channels].
        ratio: channels are squeezed to channels // ratio, at least 1.
        name: prefix of the layer names.

    Returns:
        float32[batch, height, width, channels].

    Raises:
        ValueError: x is not symbolic.
    Source: Hu et al. 2017, arXiv:1709.01507, section 3, figure 3.
    """
    require_symbolic(x, "squeeze_excite")
    channels = x.shape[-1]
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_mean")(x)
    gate = keras.layers.Dense(
        max(1, channels // ratio), "relu", kernel_initializer="he_normal", name=f"{name}_squeeze"
    )(gate)
    gate = keras.layers.Dense(channels, "sigmoid", name=f"{name}_excite")(gate)
    return keras.layers.Multiply(name=f"{name}_scale")([x, gate])


def coordinates(x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
    """Appends the place of each pixel, so that what looks at single pixels knows where they are.

    Args:
        x: float32[batch, height, width, channels], height and width known.
        name: name of the layer.

    Returns:
        float32[batch, height, width, channels + 2]; the last two go from -1 to 1, downwards and to the right.

    Raises:
        ValueError: x is not symbolic, or its height or width is not known.
    Source: Liu et al. 2018, arXiv:1807.03247, section 3.
    """
    require_symbolic(x, "coordinates")
    height, width = x.shape[1:3]
    if height is None or width is None:
        raise ValueError(f"coordinates {name!r} got the shape {x.shape}, expected a known height and width")
    place = np.stack(np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij"), -1)
    return keras.layers.Concatenate(name=name)([x, keras.ops.zeros_like(x[..., :1]) + place.astype("float32")])


@keras.saving.register_keras_serializable(package="kerasdl")
class DiracUniform(keras.initializers.VarianceScaling):
    """Initial kernel whose first filters pass their channel on and whose other filters are random.

    The first `channels` filters are the identity: one in the middle of the kernel for the filter's own
    channel, else zero. The others are uniform in +-1 / sqrt(fan_in), PyTorch's default.

    Args:
        seed: of the random filters; drawn anew for every initializer if None.
    Source: Zagoruyko and Komodakis 2017, arXiv:1706.00388, section 3 (Dirac); Jordan 2024, arXiv:2404.00498,
        section 3.3 (the rest random).
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(scale=1 / 3, mode="fan_in", distribution="uniform", seed=seed)

    def __call__(self, shape: tuple[int, int, int, int], dtype: str | None = None) -> Any:
        """Returns float32[height, width, channels, filters], or of the dtype asked for."""
        height, width, channels, filters = shape
        identity = np.zeros(shape, "float32")
        identity[(height - 1) // 2, (width - 1) // 2] = np.eye(channels, filters)
        random = super().__call__(shape, dtype)
        return ops.where(np.arange(filters) < channels, ops.cast(identity, random.dtype), random)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"seed": super().get_config()["seed"]}


@keras.saving.register_keras_serializable(package="kerasdl")
class WhiteningConvolution(keras.layers.Layer):
    """Convolution without padding whose frozen kernel whitens patches; its bias is trained.

    The kernel starts as the one for images that are white already (each filter one pixel of one channel, then
    the negatives); set it to that of the data before training:
    `layer.kernel.assign(whitening_kernel(images))`.

    Args:
        kernel_size: height and width of the patches, in pixels.
        **kwargs: those of `keras.layers.Layer`.
    Source: Page 2019, "How to train your ResNet 8: Bag of tricks" (input whitening); negatives and bias:
        Jordan 2024, arXiv:2404.00498, section 3.2.
    """

    def __init__(self, kernel_size: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel_size = kernel_size

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Makes kernel float32[kernel_size, kernel_size, channels, filters] and bias float32[filters]."""
        size, channels = self.kernel_size, input_shape[-1]
        patch = size * size * channels

        def white(shape: tuple[int, ...], dtype: str) -> Any:
            return ops.cast(np.concatenate([np.eye(patch), -np.eye(patch)], axis=1).reshape(shape), dtype)

        self.kernel = self.add_weight(
            shape=(size, size, channels, 2 * patch), initializer=white, trainable=False, name="kernel"
        )
        self.bias = self.add_weight(shape=(2 * patch,), initializer="zeros", name="bias")

    def call(self, x: Any) -> Any:
        """Maps float32[batch, height, width, channels] to the same without the last kernel_size - 1 pixels."""
        # A plain sum: the gradient of TensorFlow's bias_add is accumulated in bfloat16, and useless there.
        return ops.conv(x, self.kernel, padding="valid", data_format="channels_last") + self.bias

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "kernel_size": self.kernel_size}


def whitening_kernel(images: npt.ArrayLike, *, kernel_size: int = 2, epsilon: float = 5e-4) -> npt.NDArray[np.float32]:
    """Kernel whose outputs are uncorrelated and of unit variance over the patches of `images`.

    The filters are the eigenvectors v of the patches' second moment, largest eigenvalue first, divided by
    sqrt(eigenvalue + epsilon), and then their negatives. In place of directions that the images do not have, such as
    colour in grey ones, those that they have come again: a later picture that has the others would be blown up, and
    filters of zeros would leave constant channels, whose gradient each batch normalization multiplies by
    1 / sqrt(epsilon).

    Args:
        images: float32[num_images, height, width, channels], normalized to zero mean as for the network; a
            few thousand suffice (the paper takes 5,000; patches take kernel_size^2 times the memory of the images).
        kernel_size: height and width of the patches, in pixels.
        epsilon: keeps directions that hardly vary from being blown up.

    Returns:
        float32[kernel_size, kernel_size, channels, 2 * kernel_size^2 * channels].

    Raises:
        ValueError: images are not a batch of pictures of at least one patch each.
    Source: Jordan 2024, arXiv:2404.00498, section 3.2, after Page 2019.
    """
    images = np.asarray(images, np.float32)
    size = kernel_size
    if images.ndim != 4 or len(images) == 0 or min(images.shape[1:3]) < size:
        raise ValueError(
            f"whitening_kernel got images of shape {images.shape}, expected "
            f"[num_images, height, width, channels] with one or more images of {size}x{size} pixels or more"
        )
    height, width, channels = (images.shape[1] - size + 1, images.shape[2] - size + 1, images.shape[3])
    patches = np.stack(
        [images[:, row : row + height, column : column + width] for row in range(size) for column in range(size)],
        axis=3,
    ).reshape(-1, size * size * channels)
    moment = (patches.T @ patches).astype(np.float64) / len(patches)
    eigenvalues, eigenvectors = np.linalg.eigh(moment)
    there = eigenvalues > 1e-5 * eigenvalues[-1]  # the rest is rounding, of 8 bits or of the sum
    filters = (there * eigenvectors / np.sqrt(np.maximum(eigenvalues, 0) + epsilon))[:, ::-1]
    filters = filters[:, np.resize(np.arange(max(1, np.sum(there))), len(filters))]
    return np.concatenate([filters, -filters], axis=1).reshape(size, size, channels, -1).astype(np.float32)
