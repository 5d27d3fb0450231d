"""Numpy re-implementations from the papers' equations, in float64 and without Keras: what the blocks must equal.

Images are [batch, height, width, channels], kernels [height, width, channels, filters].
"""

import math

import numpy as np


def windows(x, size, strides):
    """Every window of the picture: [batch, out_height, out_width, size, size, channels]."""
    _, height, width, _ = x.shape
    rows = range(0, height - size + 1, strides)
    columns = range(0, width - size + 1, strides)
    return np.stack([np.stack([x[:, r : r + size, c : c + size] for c in columns], axis=1) for r in rows], axis=1)


def pad_same(x, size, strides):
    """TensorFlow's "same": ceil(n / strides) windows, the odd pixel of padding at the end."""
    pads = []
    for n in x.shape[1:3]:
        total = max((math.ceil(n / strides) - 1) * strides + size - n, 0)
        pads.append((total // 2, total - total // 2))
    return np.pad(x, ((0, 0), *pads, (0, 0)))


def pad_even(x, size):
    """(size - 1) // 2 pixels before and size // 2 behind: both sides alike for odd sizes."""
    pad = ((size - 1) // 2, size // 2)
    return np.pad(x, ((0, 0), pad, pad, (0, 0)))


def conv2d(x, kernel, bias=0.0, strides=1, padding="same"):
    """y[i, j, f] = bias[f] + sum over a, b, c of x[strides i + a, strides j + b, c] kernel[a, b, c, f]."""
    x = np.asarray(x, np.float64)
    if padding == "same":
        x = pad_same(x, len(kernel), strides)
    return np.einsum("nijabc,abcf->nijf", windows(x, len(kernel), strides), kernel) + bias


def max_pool2d(x, size, strides):
    """Largest value of each window, without padding."""
    return windows(np.asarray(x, np.float64), size, strides).max(axis=(3, 4))


def average_pool2d(x, size, strides):
    """Mean of each window, without padding."""
    return windows(np.asarray(x, np.float64), size, strides).mean(axis=(3, 4))


def batch_norm(x, mean, variance, gamma=1.0, beta=0.0, epsilon=1e-5):
    """Inference (Ioffe and Szegedy 2015, algorithm 2, line 11), over the last axis."""
    return gamma * (np.asarray(x, np.float64) - mean) / np.sqrt(variance + epsilon) + beta


def batch_norm_training(x, moving_mean, moving_variance, momentum, gamma=1.0, beta=0.0, epsilon=1e-5):
    """Training (algorithm 1): the result, and both moving averages after the step (biased variance, as Keras)."""
    x = np.asarray(x, np.float64)
    flat = x.reshape(-1, x.shape[-1])
    mean = flat.mean(axis=0)
    variance = ((flat - mean) ** 2).mean(axis=0)
    new_mean = momentum * moving_mean + (1 - momentum) * mean
    new_variance = momentum * moving_variance + (1 - momentum) * variance
    return batch_norm(x, mean, variance, gamma, beta, epsilon), new_mean, new_variance


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def relu(x):
    return np.maximum(np.asarray(x, np.float64), 0)


def gelu_erf(x):
    """x times the probability that a standard normal variable is below x."""
    x = np.asarray(x, np.float64)
    return x * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2))) / 2


def gelu_tanh(x):
    """Hendrycks and Gimpel 2016, section 2: the approximation."""
    x = np.asarray(x, np.float64)
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "relu": relu,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "gelu": gelu_tanh,
    "silu": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "linear": lambda x: x,
}


def dense(x, kernel, bias=0.0):
    return np.asarray(x, np.float64) @ kernel + bias


def maxout(x, kernels, biases):
    """max over pieces of x kernel + bias (Goodfellow et al. 2013, section 3)."""
    return np.max([dense(x, kernel, bias) for kernel, bias in zip(kernels, biases, strict=True)], axis=0)


def pad_shortcut(x, filters, strides):
    """He et al. 2015, option A: every strides-th pixel, zeros for the new channels."""
    x = np.asarray(x, np.float64)[:, ::strides, ::strides]
    return np.concatenate([x, np.zeros((*x.shape[:3], filters - x.shape[3]))], axis=3)


def squeeze_excite(x, squeeze, squeeze_bias, excite, excite_bias):
    """Hu et al. 2017, equations 2 to 4."""
    x = np.asarray(x, np.float64)
    gate = sigmoid(dense(relu(dense(x.mean(axis=(1, 2)), squeeze, squeeze_bias)), excite, excite_bias))
    return x * gate[:, None, None, :]
