import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf

from kerasdl import winograd
from kerasdl.convolution import QuickGradientConv2D


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (4, 5), (7, 7), (9, 12), (16, 2)])
def test_convolution_equals_the_sum_over_the_kernel(size):
    x, kernel = numbers(2, *size, 3), numbers(3, 3, 3, 4, seed=1)
    np.testing.assert_allclose(
        winograd.convolution(x, kernel), oracles.conv2d(x, kernel, padding="same"), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("chunk_bytes", [1, 2**22])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("known", [True, False])
def test_values_and_gradients_equal_those_of_tensorflow(monkeypatch, batch, chunk_bytes, known):
    """In a graph whose batch, height and width are known or not, in one chunk or in several, the last one shorter."""
    monkeypatch.setattr(winograd, "CHUNK_BYTES", chunk_bytes if chunk_bytes > 1 else 2 * 4 * 7 * 6 * 3)
    x, kernel, upstream = numbers(batch, 7, 6, 3), numbers(3, 3, 3, 4, seed=1), numbers(batch, 7, 6, 4, seed=2)
    shape = x.shape if known else (None, None, None, 3)

    def of(convolve):
        @tf.function(autograph=False, input_signature=[tf.TensorSpec(shape), tf.TensorSpec(kernel.shape)])
        def values(x, kernel):
            with tf.GradientTape() as tape:
                tape.watch([x, kernel])
                y = convolve(x, kernel)
            return y, *tape.gradient(y, [x, kernel], upstream)

        return values(x, kernel)

    expected = of(lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "SAME"))
    for one, other in zip(of(winograd.convolution), expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-5 * np.abs(other).max())


def test_the_layer_takes_it_in_float32_while_training_and_only_there(monkeypatch):
    """Counted by calls: results alone would not tell."""
    calls = []
    convolution = winograd.convolution
    monkeypatch.setattr(winograd, "convolution", lambda x, kernel: calls.append(1) or convolution(x, kernel))
    x = numbers(2, 8, 8, 64)

    def called(training=True, dtype="float32", channels=64, **options):
        calls.clear()
        options = {"filters": 64, "kernel_size": 3, "padding": "same", "use_bias": False} | options
        QuickGradientConv2D(**options, dtype=dtype)(x[..., :channels], training=training)
        return len(calls)

    assert called() == 1
    assert called(training=False) == called(dtype="mixed_bfloat16") == called(channels=32) == 0
    assert called(strides=2) == called(kernel_size=4) == called(padding="valid") == 0


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
