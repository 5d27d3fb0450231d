"""Named image classifiers, from symbolic image to logits.

Each takes images that are normalized already and returns float32 logits under every dtype policy. Layers are
named `<name>_stage0_...`; the last one is `<name>_logits`.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import keras

from kerasdl.blocks.activation import activation
from kerasdl.blocks.convolution import DiracUniform, WhiteningConvolution, convolution
from kerasdl.blocks.residual import basic_block, bottleneck_block, preactivation_block
from kerasdl.blocks.symbolic import require_symbolic
from kerasdl.fast.batch_normalization import FusedBatchNormalization
from kerasdl.fast.kernel_gradient import QuickGradientConv2D


def by_name(architecture: str, *, large: bool = False, dropout: float = 0.0) -> Callable[..., keras.KerasTensor]:
    """The network that a person names.

    Args:
        architecture: fast, lenet, alexnet, vgg16, vgg19, resnet18, resnet34, resnet50; or resnet20, plain20,
            se-resnet20 or preresnet20, of any depth that `resnet_cifar` has.
        large: alexnet and vgg are the papers' instead of those for small pictures.
        dropout: of alexnet and vgg.

    Returns:
        A function of x and num_classes, see those below; the prefix of its layers is the architecture, or `resnet`.

    Raises:
        ValueError: there is no such architecture.
    """
    family, depth = architecture.rstrip("0123456789"), int("".join(filter(str.isdigit, architecture)) or 0)
    options: dict[str, Any] = {"name": "resnet", "depth": depth}
    if family in ("fast", "lenet"):
        return functools.partial({"fast": fast_network, "lenet": lenet5}[family], name=family)
    if family == "alexnet":
        return functools.partial(alexnet if large else alexnet_cifar, dropout=dropout, name=family)
    if family == "vgg":
        options |= {"name": architecture, "dropout": dropout}
        return functools.partial(vgg_imagenet if large else vgg_cifar, **options)
    if family == "resnet" and depth in (18, 34, 50):
        return functools.partial(resnet_imagenet, **options)
    blocks = {"resnet": "basic", "plain": "basic", "se-resnet": "squeeze", "preresnet": "preactivation"}
    if family not in blocks:
        raise ValueError(
            f"there is no architecture {architecture}; expected fast, lenet, alexnet, vgg16, resnet20, ..."
        )
    options |= {"shortcut": None if family == "plain" else "pad", "block": blocks[family]}
    return functools.partial(resnet_cifar, **options)


def lenet5(x: keras.KerasTensor, num_classes: int, *, name: str) -> keras.KerasTensor:
    """LeNet-5 in its common form: 61,706 parameters for 32x32x1 and ten classes.

    Common form: every map of the second convolution sees all six maps before it (the paper's table I leaves
    out some), pooling has no weights, and the output is linear rather than radial basis functions.

    Args:
        x: float32[batch, height, width, channels], at least 12x12; the paper's is 32x32x1.
        num_classes: size of the result.
        name: prefix of the layer names.

    Returns:
        float32[batch, num_classes], logits.

    Raises:
        ValueError: x is not symbolic.
    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", section II.B, figure 2.
    """
    require_symbolic(x, "lenet5")
    for stage, filters in enumerate((6, 16)):
        x = keras.layers.Conv2D(filters, 5, activation="tanh", name=f"{name}_stage{stage}_conv")(x)
        x = keras.layers.AveragePooling2D(2, name=f"{name}_stage{stage}_pool")(x)
    x = keras.layers.Flatten(name=f"{name}_flatten")(x)
    for index, units in enumerate((120, 84)):
        x = keras.layers.Dense(units, "tanh", name=f"{name}_dense{index}")(x)
    return _logits(x, num_classes, name)


def alexnet(x: keras.KerasTensor, num_classes: int, *, dropout: float = 0.5, name: str) -> keras.KerasTensor:
    """AlexNet in one tower: 62,378,344 parameters for 227x227x3 and 1,000 classes.

    Local response normalization is left out: Simonyan and Zisserman 2014 (table 3, A-LRN) saw no gain from it.

    Args:
        x: float32[batch, height, width, 3], at least 67x67; the paper's is 227x227 (it says 224).
        num_classes: size of the result.
        dropout: share of units dropped after each hidden dense layer.
        name: prefix of the layer names.

    Returns:
        float32[batch, num_classes], logits.

    Raises:
        ValueError: x is not symbolic.
    Source: Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks", section 3.5.
    """
    require_symbolic(x, "alexnet")
    # He's initial kernels here and below: with the paper's N(0, 0.01) deep networks hardly start.
    x = keras.layers.Conv2D(96, 11, 4, activation="relu", kernel_initializer="he_normal", name=f"{name}_stage0_conv0")(
        x
    )
    x = keras.layers.MaxPooling2D(3, 2, name=f"{name}_stage0_pool")(x)
    x = convolution(x, 256, kernel_size=5, normalization=False, name=f"{name}_stage1_conv0")
    x = keras.layers.MaxPooling2D(3, 2, name=f"{name}_stage1_pool")(x)
    for index, filters in enumerate((384, 384, 256)):
        x = convolution(x, filters, normalization=False, name=f"{name}_stage2_conv{index}")
    x = keras.layers.MaxPooling2D(3, 2, name=f"{name}_stage2_pool")(x)
    return _dense_head(x, num_classes, (4096, 4096), dropout, name)


def alexnet_cifar(x: keras.KerasTensor, num_classes: int, *, dropout: float = 0.0, name: str) -> keras.KerasTensor:
    """The "small AlexNet" for CIFAR: 1,387,786 parameters for 28x28x3 crops and ten classes.

    Local response normalization is left out, as in `alexnet`; it has no parameters.

    Args:
        x: float32[batch, height, width, channels]; the paper's is 28x28x3.
        num_classes: size of the result.
        dropout: share of units dropped after each hidden dense layer.
        name: prefix of the layer names.

    Returns:
        float32[batch, num_classes], logits.

    Raises:
        ValueError: x is not symbolic.
    Source: Zhang et al. 2016, "Understanding deep learning requires rethinking generalization",
        arXiv:1611.03530, appendix A and table 1.
    """
    require_symbolic(x, "alexnet_cifar")
    for stage in range(2):
        x = convolution(x, 64, kernel_size=5, normalization=False, name=f"{name}_stage{stage}_conv0")
        x = keras.layers.MaxPooling2D(3, 2, "same", name=f"{name}_stage{stage}_pool")(x)
    return _dense_head(x, num_classes, (384, 192), dropout, name)


def vgg_imagenet(
    x: keras.KerasTensor, num_classes: int, *, depth: Literal[16, 19] = 16, dropout: float = 0.5, name: str
) -> keras.KerasTensor:
    """VGG with 16 weight layers has 138,357,544 parameters for 224x224x3 and 1,000 classes, with 19 143,667,240.

    Args:
        x: float32[batch, height, width, channels], at least 32x32; the paper's is 224x224x3.
        num_classes: size of the result.
        depth: number of weight layers, the paper's columns D and E.
        dropout: share of units dropped after each hidden dense layer.
        name: prefix of the layer names.

    Returns:
        float32[batch, num_classes], logits.

    Raises:
        ValueError: x is not symbolic, or there is no such depth.
    Source: Simonyan and Zisserman 2014, arXiv:1409.1556, table 1.
    """
    require_symbolic(x, "vgg_imagenet")
    return _dense_head(_vgg_stages(x, depth, False, name), num_classes, (4096, 4096), dropout, name)


def vgg_cifar(
    x: keras.KerasTensor, num_classes: int, *, depth: Literal[16, 19] = 16, dropout: float = 0.5, name: str
) -> keras.KerasTensor:
    """VGG's convolutions with batch normalization, and a single dense layer, for 32x32 pictures.

    32x32 shrinks to 1x1x512, on which two dense layers of 4096 would be out of all proportion; without batch
    normalization the stack hardly starts to train.

    Args:
        x: float32[batch, height, width, channels], at least 32x32.
        num_classes: size of the result.
        depth: weight layers of the original, columns D and E.
        dropout: share of features dropped before the dense layer.
        name: prefix of the layer names.

    Returns:
        float32[batch, num_classes], logits.

    Raises:
        ValueError: x is not symbolic, or there is no such depth.
    Source: Simonyan and Zisserman 2014, arXiv:1409.1556, table 1; the adaptation follows Liu and
        Deng 2015, "Very deep convolutional neural network based image classification using small training sample size".
    """
    require_symbolic(x, "vgg_cifar")
    return _dense_head(_vgg_stages(x, depth, True, name), num_classes, (), dropout, name)


def resnet_imagenet(
    x: keras.KerasTensor, num_classes: int, *, depth: Literal[18, 34, 50, 101, 152] = 50, name: str
) -> keras.KerasTensor:
    """ResNet for large pictures; depth 50 has 25,557,032 trainable parameters for 1,000 classes.

    Shortcuts are projections where the shape changes and identities elsewhere (the paper's option B).

    Args:
        x: float32[batch, height, width, channels]; the paper's is 224x224x3.
        num_classes: size of the result.
        depth: number of weight layers; from 50 on with bottleneck blocks.
        name: prefix of the layer names.

    Returns:
        float32[batch, num_classes], logits.

    Raises:
        ValueError: x is not symbolic, or the paper has no such depth.
    Source: He et al. 2015, arXiv:1512.03385, section 3.3 and table 1.
    """
    require_symbolic(x, "resnet_imagenet")
    num_blocks = {
        18: (2, 2, 2, 2),
        34: (3, 4, 6, 3),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
    }
    if depth not in num_blocks:
        raise ValueError(f"resnet_imagenet has depth={depth}, expected one of {', '.join(map(str, num_blocks))}")
    block_function, expansion = (basic_block, 1) if depth < 50 else (bottleneck_block, 4)
    x = convolution(x, 64, kernel_size=7, strides=2, name=f"{name}_stem_conv")
    x = keras.layers.ZeroPadding2D(1, name=f"{name}_stem_pad")(x)  # zero is the least that a relu leaves
    x = keras.layers.MaxPooling2D(3, 2, name=f"{name}_stem_pool")(x)
    for stage, filters in enumerate((64, 128, 256, 512)):
        for block in range(num_blocks[depth][stage]):
            strides = 2 if stage > 0 and block == 0 else 1
            same_shape = strides == 1 and x.shape[-1] == expansion * filters
            x = block_function(
                x,
                filters,
                strides=strides,
                shortcut="identity" if same_shape else "projection",
                name=f"{name}_stage{stage}_block{block}",
            )
    x = keras.layers.GlobalAveragePooling2D(name=f"{name}_mean")(x)
    return _logits(x, num_classes, name)


def resnet_cifar(
    x: keras.KerasTensor,
    num_classes: int,
    *,
    depth: int = 20,
    shortcut: Literal["pad", "projection"] | None = "pad",
    block: Literal["basic", "squeeze", "preactivation"] = "basic",
    name: str,
) -> keras.KerasTensor:
    """ResNet for small pictures; depth 20 has 269,722 trainable parameters for 32x32x3 and ten classes.

    Args:
        x: float32[batch, height, width, channels]; the paper's is 32x32x3.
        num_classes: size of the result.
        depth: number of weight layers, 6n + 2; the paper has 20, 32, 44, 56 and 110.
        shortcut: where the shape changes: "pad" is the paper's option A, "projection" its option B. None
            leaves out every shortcut: the paper's plain network.
        block: "squeeze" reweights the channels of each block; "preactivation" normalizes and activates before each
            convolution, so that nothing stands in the way of the shortcuts.
        name: prefix of the layer names.

    Returns:
        float32[batch, num_classes], logits.

    Raises:
        ValueError: x is not symbolic, or no such depth exists.
    Source: He et al. 2015, arXiv:1512.03385, section 4.2; squeeze: Hu et al. 2017, arXiv:1709.01507, section 6.2;
        preactivation: He et al. 2016, arXiv:1603.05027, section 4.
    """
    require_symbolic(x, "resnet_cifar")
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"resnet_cifar has depth={depth}, expected 6n + 2: 8, 14, 20, 26, 32, ...")
    blocks: dict[str, Callable[..., keras.KerasTensor]] = {
        "basic": basic_block,
        "squeeze": functools.partial(basic_block, squeeze=True),
        "preactivation": preactivation_block,
    }
    make = blocks[block]
    x = convolution(x, 16, name=f"{name}_stem_conv")
    for stage, filters in enumerate((16, 32, 64)):
        for index in range((depth - 2) // 6):
            new_shape = stage > 0 and index == 0
            x = make(
                x,
                filters,
                strides=2 if new_shape else 1,
                shortcut=shortcut if new_shape or shortcut is None else "identity",
                name=f"{name}_stage{stage}_block{index}",
            )
    if block == "preactivation":
        x = FusedBatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)  # as in `convolution`
        x = activation(x, "relu", name=f"{name}_activation")
    x = keras.layers.GlobalAveragePooling2D(name=f"{name}_mean")(x)
    return _logits(x, num_classes, name)


def fast_network(
    x: keras.KerasTensor, num_classes: int, *, widths: tuple[int, ...] = (64, 256, 256), name: str
) -> keras.KerasTensor:
    """The network of airbench94, made to train in seconds: 1,971,352 trainable parameters for ten classes.

    Before training, set the frozen first kernel to the data's:
    `model.get_layer(f"{name}_whiten").kernel.assign(whitening_kernel(images))`.
    It is fully convolutional: one network takes pictures of any size, also of unknown size.

    Args:
        x: float32[batch, height, width, channels] of zero mean and unit variance; at least 9x9.
        num_classes: size of the result.
        widths: filters of each group; a group halves height and width.
        name: prefix of the layer names.

    Returns:
        float32[batch, num_classes], logits.

    Raises:
        ValueError: x is not symbolic.
    Source: Jordan 2024, arXiv:2404.00498, sections 3.1 to 3.3, and its later code (logits divided by the width).
    """
    require_symbolic(x, "fast_network")
    x = WhiteningConvolution(name=f"{name}_whiten")(x)
    x = activation(x, "gelu", name=f"{name}_whiten_activation")
    for group, filters in enumerate(widths):
        for index in range(2):
            prefix = f"{name}_group{group}"
            x = QuickGradientConv2D(
                filters,
                3,
                padding="same",
                use_bias=False,
                kernel_initializer=DiracUniform(),
                name=f"{prefix}_conv{index}",
            )(x)
            if index == 0:
                x = keras.layers.MaxPooling2D(2, name=f"{prefix}_pool")(x)
            x = FusedBatchNormalization(
                momentum=0.6,  # the source's: a run has a few hundred steps
                epsilon=1e-7,  # the source's 1e-12 would blow up the rounding of a constant channel
                scale=False,
                name=f"{prefix}_norm{index}",
            )(x)
            x = activation(x, "gelu", name=f"{prefix}_activation{index}")
    x = keras.layers.GlobalMaxPooling2D(name=f"{name}_max")(x)
    x = keras.layers.Dense(
        num_classes,
        use_bias=False,
        kernel_initializer=keras.initializers.RandomNormal(stddev=1.0),
        dtype="float32",
        name=f"{name}_head",
    )(x)
    return keras.layers.Rescaling(1 / widths[-1], dtype="float32", name=f"{name}_logits")(x)


def _vgg_stages(x: keras.KerasTensor, depth: int, normalization: bool, name: str) -> keras.KerasTensor:
    num_convolutions = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
    if depth not in num_convolutions:
        kind, known = "vgg_cifar" if normalization else "vgg_imagenet", ", ".join(map(str, num_convolutions))
        raise ValueError(f"{kind} has depth={depth}, expected one of {known}")
    for stage, (filters, count) in enumerate(zip((64, 128, 256, 512, 512), num_convolutions[depth], strict=True)):
        for index in range(count):
            x = convolution(x, filters, normalization=normalization, name=f"{name}_stage{stage}_conv{index}")
        x = keras.layers.MaxPooling2D(2, name=f"{name}_stage{stage}_pool")(x)
    return x


def _dense_head(
    x: keras.KerasTensor, num_classes: int, hidden_units: tuple[int, ...], dropout: float, name: str
) -> keras.KerasTensor:
    x = keras.layers.Flatten(name=f"{name}_flatten")(x)
    for index, units in enumerate(hidden_units):
        x = keras.layers.Dense(units, "relu", kernel_initializer="he_normal", name=f"{name}_dense{index}")(x)
        x = keras.layers.Dropout(dropout, name=f"{name}_dropout{index}")(x)
    if not hidden_units:
        x = keras.layers.Dropout(dropout, name=f"{name}_dropout")(x)
    return _logits(x, num_classes, name)


def _logits(x: keras.KerasTensor, num_classes: int, name: str) -> keras.KerasTensor:
    return keras.layers.Dense(num_classes, dtype="float32", name=f"{name}_logits")(x)
