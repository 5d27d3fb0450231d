"""Parameters are counted as torchvision counts: kernels, biases, gamma and beta; no moving averages."""

import block_checks
import keras
import numpy as np
import oracles
import pytest

from kerasdl.blocks import image_classifier
from kerasdl.blocks.convolution import whitening_kernel


def image(shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def build(network, shape, num_classes=10, **options):
    inputs = keras.Input(shape)
    return keras.Model(inputs, network(inputs, num_classes, name="net", **options))


PARAMETERS = [
    ("lenet5", {}, (32, 32, 1), 10, 61_706),
    ("lenet5", {}, (32, 32, 3), 10, 61_706 + 2 * 5 * 5 * 6),
    ("alexnet", {}, (227, 227, 3), 1000, 62_378_344),
    ("alexnet_cifar", {}, (28, 28, 3), 10, 1_387_786),  # Zhang et al. 2016, table 1
    ("vgg_imagenet", {}, (224, 224, 3), 1000, 138_357_544),
    ("vgg_imagenet", {"depth": 19}, (224, 224, 3), 1000, 143_667_240),
    # VGG-16's convolutions have 14,710,464 kernel weights on 4,224 channels.
    ("vgg_cifar", {}, (32, 32, 3), 10, 14_710_464 + 2 * 4_224 + 512 * 10 + 10),
    ("vgg_cifar", {"depth": 19}, (32, 32, 3), 10, 20_018_880 + 2 * 5_504 + 512 * 10 + 10),
    ("resnet_imagenet", {"depth": 18}, (224, 224, 3), 1000, 11_689_512),
    ("resnet_imagenet", {"depth": 34}, (224, 224, 3), 1000, 21_797_672),
    ("resnet_imagenet", {"depth": 50}, (224, 224, 3), 1000, 25_557_032),
    ("resnet_imagenet", {"depth": 101}, (224, 224, 3), 1000, 44_549_160),
    ("resnet_imagenet", {"depth": 152}, (224, 224, 3), 1000, 60_192_808),
    ("fast_network", {}, (32, 32, 3), 10, 1_971_352),
]


@pytest.mark.parametrize(("network", "options", "shape", "num_classes", "count"), PARAMETERS)
def test_parameters_are_the_papers(network, options, shape, num_classes, count):
    with block_checks.unallocated():
        model = build(getattr(image_classifier, network), shape, num_classes, **options)
        assert block_checks.num_trainable(model) == count
        assert model.output_shape == (None, num_classes)


@pytest.mark.parametrize(
    ("architecture", "size", "count"),
    [
        ("alexnet", 227, 58_322_314),  # the paper's 62,378,344 with ten classes in place of 1,000
        ("vgg16", 128, 65_095_498),  # 14,714,688 in convolutions, then 4 * 4 * 512 and 4,096 features
        ("vgg19", 32, 20_035_018),
        ("resnet18", 128, 11_181_642),
        ("resnet50", 64, 23_528_522),
        ("preresnet56", 32, 853_050),
    ],
)
def test_names_lead_to_the_networks_of_the_papers(architecture, size, count):
    with block_checks.unallocated():
        inputs = keras.Input((size, size, 3))
        model = keras.Model(inputs, image_classifier.by_name(architecture, large=size >= 128)(inputs, 10))
        assert block_checks.num_trainable(model) == count


def test_a_name_that_no_network_has_is_refused():
    with pytest.raises(ValueError, match="there is no architecture densenet121; expected fast, lenet"):
        image_classifier.by_name("densenet121")


def resnet_cifar_parameters(depth):
    """He et al. 2015, section 4.2: n blocks of two 3x3 convolutions in each of three stages, option A."""
    n = (depth - 2) // 6
    kernels = 3 * 9 * 16 + 9 * (2 * n * 16 * 16 + 16 * 32 + (2 * n - 1) * 32 * 32 + 32 * 64 + (2 * n - 1) * 64 * 64)
    normalization = 2 * (16 + 2 * n * (16 + 32 + 64))
    return kernels + normalization + 64 * 10 + 10


@pytest.mark.parametrize("shortcut", ["pad", None])
@pytest.mark.parametrize(
    ("depth", "count"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_resnet_cifar_parameters_with_and_without_shortcuts(depth, count, shortcut):
    with block_checks.unallocated():
        model = build(image_classifier.resnet_cifar, (32, 32, 3), depth=depth, shortcut=shortcut)
        assert block_checks.num_trainable(model) == count == resnet_cifar_parameters(depth)


def test_resnet_cifar_projections_add_two_kernels():
    with block_checks.unallocated():
        model = build(image_classifier.resnet_cifar, (32, 32, 3), shortcut="projection")
        assert block_checks.num_trainable(model) == 269_722 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def test_squeezing_adds_two_dense_layers_a_block_and_preactivation_one_normalization():
    with block_checks.unallocated():
        squeezed = build(image_classifier.resnet_cifar, (32, 32, 3), block="squeeze")
        added = sum(3 * (2 * filters * filters // 4 + filters + filters // 4) for filters in (16, 32, 64))
        assert block_checks.num_trainable(squeezed) == 269_722 + added
        # A block normalizes its input in place of what its second convolution gives; at the end there is one more.
        before = build(image_classifier.resnet_cifar, (32, 32, 3), block="preactivation")
        assert block_checks.num_trainable(before) == 269_722 + 2 * (16 - 32 + 32 - 64 + 64)


# Small pictures where the network allows them: the dense layers shrink, everything else is as it is.
SMALL = [
    ("lenet5", {}, (20, 17, 1)),
    ("alexnet", {}, (67, 67, 3)),
    ("alexnet_cifar", {}, (9, 11, 3)),
    ("vgg_imagenet", {}, (32, 32, 3)),
    ("vgg_cifar", {}, (32, 32, 3)),
    ("resnet_cifar", {"depth": 8, "block": "squeeze"}, (9, 11, 3)),
    ("resnet_cifar", {"depth": 8, "block": "preactivation"}, (9, 11, 3)),
    ("resnet_imagenet", {"depth": 18}, (33, 47, 3)),
    ("resnet_imagenet", {"depth": 50}, (33, 47, 3)),
    ("resnet_cifar", {"depth": 8}, (9, 11, 3)),
    ("resnet_cifar", {"depth": 8, "shortcut": None}, (9, 11, 3)),
    ("fast_network", {"widths": (8, 12, 16)}, (13, 10, 3)),
]


@pytest.mark.parametrize(("network", "options", "shape"), SMALL)
def test_every_weight_learns(network, options, shape):
    keras.utils.set_random_seed(0)
    model = build(getattr(image_classifier, network), shape, 5, **options)
    assert block_checks.dead_weights(model, image((4, *shape))) == []
    logits = model(image((2, *shape)))
    assert np.ptp(logits) > 1e-4
    np.testing.assert_allclose(model(image((2, *shape))[:1]), logits[:1], rtol=1e-3, atol=1e-4)
    assert all(layer.name.startswith("net_") for layer in model.layers[1:])
    assert model.layers[-1].name == "net_logits"


@pytest.mark.parametrize(
    ("network", "options"),
    [("lenet5", {}), ("alexnet_cifar", {}), ("resnet_cifar", {"depth": 8}), ("fast_network", {"widths": (4, 4, 4)})],
)
def test_empty_batch(network, options):
    model = build(getattr(image_classifier, network), (20, 17, 3), 5, **options)
    assert block_checks.shape_for_empty_batch(model, 20, 17, 3) == (0, 5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize(
    ("network", "options"), [("resnet_cifar", {"depth": 8}), ("fast_network", {"widths": (8, 8, 8)})]
)
def test_logits_are_float32_under_half_precision(network, options, policy):
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = build(getattr(image_classifier, network), (16, 16, 3), **options)
    finally:
        keras.config.set_dtype_policy(previous)
    assert model(image((2, 16, 16, 3))).dtype == "float32"
    assert model.get_layer(index=2).compute_dtype == policy.removeprefix("mixed_")


def test_resnet_names_are_stable():
    with block_checks.unallocated():
        model = build(image_classifier.resnet_cifar, (32, 32, 3))
        names = [layer.name for layer in model.layers]
    assert {"net_stem_conv", "net_stage0_block1_conv1", "net_stage1_block0_pad", "net_stage2_block2_add"} <= set(names)


def test_plain_network_differs_from_the_residual_one():
    residual = build(image_classifier.resnet_cifar, (9, 9, 3), depth=8)
    plain = build(image_classifier.resnet_cifar, (9, 9, 3), depth=8, shortcut=None)
    plain.set_weights(residual.get_weights())
    x = image((2, 9, 9, 3))
    assert np.abs(np.asarray(residual(x)) - plain(x)).max() > 0.1


@pytest.mark.parametrize(
    ("network", "depth", "message"),
    [
        ("resnet_imagenet", 20, "expected one of 18, 34"),
        ("resnet_cifar", 21, r"expected 6n \+ 2"),
        ("vgg_imagenet", 13, "expected one of 16, 19"),
    ],
)
def test_depth_that_does_not_exist_is_refused(network, depth, message):
    with pytest.raises(ValueError, match=f"depth={depth}, {message}"):
        build(getattr(image_classifier, network), (32, 32, 3), depth=depth)


def test_lenet5_equals_oracle():
    model = build(image_classifier.lenet5, (32, 32, 3))
    block_checks.random_weights(model)
    w = block_checks.weights_of(model)
    x = image((2, 32, 32, 3))
    y = x
    for stage in range(2):
        name = f"net_stage{stage}_conv"
        y = np.tanh(oracles.conv2d(y, w[f"{name}/kernel"], w[f"{name}/bias"], padding="valid"))
        y = oracles.average_pool2d(y, 2, 2)
    y = y.reshape(2, -1)
    for layer in ("net_dense0", "net_dense1"):
        y = np.tanh(oracles.dense(y, w[f"{layer}/kernel"], w[f"{layer}/bias"]))
    expected = oracles.dense(y, w["net_logits/kernel"], w["net_logits/bias"])
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(13, 10), (9, 18)])
def test_fast_network_equals_oracle_at_any_size(size):
    model = build(image_classifier.fast_network, (None, None, 3), widths=(4, 6, 8))
    block_checks.random_weights(model)
    w = block_checks.weights_of(model)
    x = image((2, *size, 3))
    y = oracles.conv2d(x, w["net_whiten/kernel"], w["net_whiten/bias"], padding="valid")
    y = oracles.gelu_tanh(y)
    for group in range(3):
        for index in range(2):
            y = oracles.conv2d(y, w[f"net_group{group}_conv{index}/kernel"])
            y = oracles.max_pool2d(y, 2, 2) if index == 0 else y
            norm = f"net_group{group}_norm{index}"
            statistics = w[f"{norm}/moving_mean"], w[f"{norm}/moving_variance"]
            y = oracles.batch_norm(y, *statistics, beta=w[f"{norm}/beta"], epsilon=1e-7)
            y = oracles.gelu_tanh(y)
    expected = oracles.dense(y.max(axis=(1, 2)), w["net_head/kernel"]) / 8
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


def test_fast_network_starts_as_its_source():
    keras.utils.set_random_seed(0)
    model = build(image_classifier.fast_network, (32, 32, 3))
    assert abs(np.std(model.get_layer("net_head").kernel) - 1) < 0.05
    kernel = np.asarray(model.get_layer("net_group0_conv0").kernel)
    x = image((1, 5, 5, 24))
    np.testing.assert_allclose(oracles.conv2d(x, kernel)[..., :24], x, atol=1e-12)
    assert all(
        layer.momentum == 0.6 and not layer.scale for layer in model.layers if layer.name.rstrip("01").endswith("_norm")
    )
    first, second = (np.asarray(model.get_layer(f"net_group{group}_conv0").kernel) for group in (1, 2))
    assert np.any(first[..., 64:] != second[..., :64, 64:])  # every kernel has its own random filters


def test_fast_network_takes_the_whitening_kernel_and_survives_saving(tmp_path):
    model = build(image_classifier.fast_network, (None, None, 3), widths=(8, 8, 8))
    kernel = whitening_kernel(image((20, 8, 8, 3)))
    model.get_layer("net_whiten").kernel.assign(kernel)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    x = image((8, 16, 16, 3))
    model.fit(x, np.arange(8), batch_size=8, verbose=0)
    np.testing.assert_array_equal(model.get_layer("net_whiten").kernel, kernel)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
