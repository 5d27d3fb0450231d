import contextlib

import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf

from kerasdl.fast import winograd
from kerasdl.fast.kernel_gradient import QuickGradientConv2D, QuickGradientConv2DTranspose


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Also for little work."""
    monkeypatch.setattr(winograd, "MIN_MULTIPLICATIONS", 0)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (9, 12)])
def test_convolution_equals_the_sum_over_the_kernel(size):
    x, kernel = numbers(2, *size, 3), numbers(3, 3, 3, 4, seed=1)
    np.testing.assert_allclose(
        winograd.convolution(x, kernel, 1), oracles.conv2d(x, kernel, padding="same"), rtol=0, atol=1e-4
    )


KINDS = {
    "3x3": (winograd.convolution, lambda *given: tf.nn.conv2d(*given, "SAME"), (3, 3, 3, 4), 1, (7, 6), (7, 6)),
    "4x4": (winograd.convolution, lambda *given: tf.nn.conv2d(*given, "SAME"), (4, 4, 3, 4), 2, (14, 8), (7, 4)),
    "4x4, transposed": (
        winograd.transposed_convolution,
        lambda x, kernel, stride: tf.nn.conv2d_transpose(
            x, kernel, [tf.shape(x)[0], stride * tf.shape(x)[1], stride * tf.shape(x)[2], 4], stride
        ),
        (4, 4, 4, 3),
        2,
        (7, 5),
        (14, 10),
    ),
}


@pytest.mark.parametrize(("known", "pictures_a_chunk"), [(True, 100), (True, 1), (False, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_those_of_tensorflow(monkeypatch, kind, known, pictures_a_chunk):
    """In a graph whose sizes are known or not, in one chunk or in several, of which the last is shorter."""
    ours, theirs, kernel_shape, stride, size, result = KINDS[kind]
    x, kernel = numbers(5, *size, 3), numbers(*kernel_shape, seed=1)
    upstream = numbers(5, *result, 4, seed=2)
    monkeypatch.setattr(winograd, "CHUNK_BYTES", pictures_a_chunk * 4 * upstream[0].size)
    shape = x.shape if known else (None, None, None, 3)

    def of(convolve):
        @tf.function(autograph=False, input_signature=[tf.TensorSpec(shape), tf.TensorSpec(kernel.shape)])
        def values(x, kernel):
            with tf.GradientTape() as tape:
                tape.watch([x, kernel])
                y = convolve(x, kernel, stride)
            return y, *tape.gradient(y, [x, kernel], upstream)

        return values(x, kernel)

    for one, other in zip(of(ours), of(theirs), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-5 * np.abs(other).max())


@pytest.mark.parametrize("kind", KINDS)
def test_little_work_is_left_to_tensorflow_with_equal_results(monkeypatch, kind):
    """No map is compiled; 1e-6 tells the direct sum from the formula."""
    monkeypatch.setattr(winograd, "MIN_MULTIPLICATIONS", 1e9)
    ours, theirs, kernel_shape, stride, size, result = KINDS[kind]
    x, kernel, upstream = numbers(2, *size, 3), numbers(*kernel_shape, seed=1), numbers(2, *result, 4, seed=2)

    def of(convolve):
        @tf.function(autograph=False)
        def values(x, kernel):
            with tf.GradientTape() as tape:
                tape.watch([x, kernel])
                y = convolve(x, kernel, stride)
            return y, *tape.gradient(y, [x, kernel], upstream)

        return values(tf.constant(x), tf.constant(kernel))

    for one, other in zip(of(ours), of(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(other).max())


def test_the_layers_take_it_in_float32_while_training_and_only_there(monkeypatch):
    """Counted by calls, which end there: results alone would not tell, and cost a compilation each."""

    class Called(Exception):
        pass

    calls = []

    def counted(name):
        def call(*_):
            calls.append(name)
            raise Called

        monkeypatch.setattr(winograd, name, call)

    counted("convolution")
    counted("transposed_convolution")
    x = numbers(2, 8, 8, 64)

    def called(kind=QuickGradientConv2D, training=True, channels=64, **options):
        calls.clear()
        options = {"filters": 64, "kernel_size": 3, "padding": "same", "use_bias": False} | options
        with contextlib.suppress(Called):
            kind(**options)(x[..., :channels], training=training)
        return tuple(calls)

    assert called() == called(kernel_size=4, strides=2) == ("convolution",)
    assert called(QuickGradientConv2DTranspose, kernel_size=4, strides=2) == ("transposed_convolution",)
    assert called(training=False) == called(dtype="mixed_bfloat16") == called(channels=32) == ()
    assert called(strides=2) == called(kernel_size=4) == called(padding="valid") == ()
    assert called(QuickGradientConv2DTranspose, kernel_size=3, strides=1) == ()


def test_a_model_learns_the_same_with_it(monkeypatch):
    x, y = numbers(8, 6, 6, 64), numbers(8, 6, 6, 64, seed=1)

    def weights_after_steps(pays):
        monkeypatch.setattr(winograd, "pays", lambda *_: pays)
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6, 6, 64))
        layer = QuickGradientConv2D(64, 3, padding="same", use_bias=False)
        model = keras.Model(inputs, layer(inputs))
        model.compile("sgd", "mse", jit_compile=False)
        model.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0)
        return layer.kernel.numpy()

    np.testing.assert_allclose(weights_after_steps(True), weights_after_steps(False), atol=1e-6)
