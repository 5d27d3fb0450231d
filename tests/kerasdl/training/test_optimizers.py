import functools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasdl.fast.fused_adam import FusedAdam
from kerasdl.training.optimizers import SGD, Muon, NormalizedMuon, make, orthogonalize


@pytest.mark.parametrize("shape", [(18, 64), (64, 18), (32, 32)])
def test_orthogonalize_brings_singular_values_near_one(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    before = np.linalg.svd(matrix, compute_uv=False)
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    result = keras.ops.convert_to_numpy(orthogonalize(matrix, 5))
    values = np.linalg.svd(result, compute_uv=False)
    assert before.max() / np.median(before) > 1.2
    assert np.all(values[before > 0.3 * before.max()] > 0.6)
    assert values.max() < 1.3
    assert np.sum(result * (u @ v)) / np.linalg.norm(result) / np.linalg.norm(u @ v) > 0.95


def kernel_step(gradient, buffer, kernel, *, rate, momentum, steps):
    """The step of a 4-d kernel in numpy, from the source's equations."""
    buffer = momentum * buffer + gradient
    matrix = (gradient + momentum * buffer).reshape(-1, kernel.shape[-1]).T
    x = matrix / (np.linalg.norm(matrix) + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    kernel = kernel * np.sqrt(kernel.shape[-1]) / np.linalg.norm(kernel)
    return kernel - rate * x.T.reshape(kernel.shape), buffer


@pytest.mark.parametrize(("batch_size", "share"), [(2000, 1), (8000, 1), (80, 0.2)])
def test_steps_equal_numpy(batch_size, share):
    random = np.random.default_rng(1)
    kernel, bias, head = (random.normal(size=s).astype(np.float32) for s in [(3, 3, 4, 6), (6,), (6, 3)])
    variables = [keras.Variable(value) for value in (kernel, bias, head)]
    optimizer = NormalizedMuon(
        0.1,
        momentum=0.6,
        vector_ratio=2.0,
        matrix_ratio=3.0,
        sgd_momentum=0.85,
        weight_decay=0.5,
        batch_size=batch_size,
    )
    kernel_buffer, bias_buffer, head_buffer = np.zeros_like(kernel), np.zeros_like(bias), np.zeros_like(head)
    for _ in range(3):
        gradients = [random.normal(size=v.shape).astype(np.float32) for v in variables]
        optimizer.apply(gradients, variables)
        kernel, kernel_buffer = kernel_step(gradients[0], kernel_buffer, kernel, rate=0.1, momentum=0.6, steps=3)
        bias, head = bias * (1 - 0.1 * 0.5), head * (1 - 0.1 * 0.5)
        bias_buffer = 0.85 * bias_buffer + gradients[1]
        head_buffer = 0.85 * head_buffer + gradients[2]
        bias = bias - 0.1 * 2 * share * (gradients[1] + 0.85 * bias_buffer)
        head = head - 0.1 * 3 * share * (gradients[2] + 0.85 * head_buffer)
        for variable, expected in zip(variables, (kernel, bias, head), strict=True):
            np.testing.assert_allclose(variable.numpy(), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["adamw", "sgd", "muon", "normalized_muon"])
def test_the_schedule_is_computed_once_a_step(kind):
    asked = []

    class Asked(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            asked.append(step)
            return 0.1 / (1.0 + tf.cast(step, tf.float32))

    settings = types.SimpleNamespace(
        epochs=1, learning_rate=0.1, schedule="constant", warmup_epochs=0, weight_decay=0.5, clip_norm=1.0
    )
    optimizer = make(kind, settings, 10)
    optimizer.learning_rate = Asked()
    variables = [keras.Variable(np.ones(shape, np.float32)) for shape in ((2, 2), (2,), (3, 3, 1, 2))]
    optimizer.build(variables)
    step = tf.function(lambda: optimizer.apply([tf.ones(one.shape) for one in variables], variables))
    asked.clear()
    step()
    assert len(asked) == 1
    optimizer.iterations.assign(4)
    assert float(optimizer.learning_rate) == pytest.approx(0.02)


def test_serialises_completely():
    optimizer = NormalizedMuon(0.3, momentum=0.5, vector_ratio=7.0, matrix_ratio=8.0, sgd_momentum=0.4, batch_size=16)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()
    assert (again.momentum, again.vector_ratio, again.matrix_ratio, again.sgd_momentum) == (0.5, 7.0, 8.0, 0.4)
    assert again.batch_size == 16


@pytest.mark.parametrize("weight_decay", [None, 0.3])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_fused_adam_equals_keras(sparse, amsgrad, weight_decay):
    """Weights and state, by a schedule, inside a graph, of several gradients clipped together."""
    random = np.random.default_rng(0)
    starts = [random.normal(size=shape).astype(np.float32) for shape in ((5, 3), (3,))]
    gradients = [[tf.constant(random.normal(size=start.shape), tf.float32) for start in starts] for _ in range(4)]
    if sparse:
        gradients = [
            [tf.IndexedSlices(matrix[1:3], tf.constant([4, 0]), tf.constant([5, 3])), b] for matrix, b in gradients
        ]
    results = []
    for kind in (FusedAdam, keras.optimizers.Adam):
        rate = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
        optimizer = kind(rate, beta_1=0.7, beta_2=0.9, amsgrad=amsgrad, weight_decay=weight_decay, global_clipnorm=1.0)
        variables = [keras.Variable(start) for start in starts]
        optimizer.build(variables)
        apply = tf.function(optimizer.apply)
        for given in gradients:
            apply(given)
        results.append([value.numpy() for value in (*variables, *optimizer.variables)])
    assert np.abs(results[1][0] - starts[0]).max() > 0.05
    for ours, keras_own in zip(*results, strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("kind", [FusedAdam, functools.partial(FusedAdam, amsgrad=True)])
def test_a_word_that_a_batch_holds_twice_has_the_step_of_its_whole_gradient(kind, clip):
    """Keras 3.15 takes the parts of a sparse gradient one by one, see findings/keras_adam_repeated_words.sh."""
    rows, places, shape = [[1.0, 1.0], [0.5, 2.0], [1.0, -0.5]], [1, 2, 1], [4, 2]
    parts = [tf.IndexedSlices(tf.constant(rows), tf.constant(places), tf.constant(shape)) for _ in range(3)]
    results = []
    for gradients in (parts, [tf.convert_to_tensor(gradient) for gradient in parts]):
        optimizer, words = (
            kind(0.1, weight_decay=0.1, global_clipnorm=clip),
            keras.Variable(np.ones((4, 2), np.float32)),
        )
        optimizer.build([words])
        step = tf.function(lambda gradient, optimizer=optimizer: optimizer.apply([gradient]))
        for gradient in gradients:
            step(gradient)
        results.append([words.numpy(), *(variable.numpy() for variable in optimizer.variables[2:])])
    for sparse, dense in zip(*results, strict=True):
        np.testing.assert_allclose(sparse, dense, rtol=1e-5, atol=1e-7)


def test_fused_adam_is_one_operation_a_weight_and_serialises():
    optimizer = FusedAdam(0.1, beta_1=0.5, weight_decay=None)
    weight = keras.Variable(np.ones((4, 4), np.float32))
    optimizer.build([weight])
    step = tf.function(lambda gradient: optimizer.apply([gradient], [weight]))
    kinds = [one.type for one in step.get_concrete_function(tf.TensorSpec([4, 4])).graph.get_operations()]
    assert kinds.count("ResourceApplyAdam") == 1
    assert not {"Sqrt", "AssignSubVariableOp"} & set(kinds)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(again, FusedAdam)
    assert again.get_config() == optimizer.get_config()


@pytest.mark.parametrize("weight_decay", [None, 0.3])
def test_muon_equals_keras_on_matrices_and_vectors(weight_decay):
    random = np.random.default_rng(0)
    starts = [random.normal(size=shape).astype(np.float32) for shape in ((5, 3), (3, 8), (3,))]
    gradients = [[random.normal(size=start.shape).astype(np.float32) for start in starts] for _ in range(4)]
    common = {"momentum": 0.9, "weight_decay": weight_decay, "global_clipnorm": 1.0}
    results = []
    for optimizer in (
        Muon(0.1, adam_ratio=0.5, newton_schulz_steps=3, **common),
        keras.optimizers.Muon(0.1, adam_lr_ratio=0.5, ns_steps=3, adam_weight_decay=weight_decay, **common),
    ):
        variables = [keras.Variable(start) for start in starts]
        for given in gradients:
            optimizer.apply(given, variables)
        results.append([variable.numpy() for variable in variables])
    for ours, keras_own, start in zip(*results, starts, strict=True):
        assert np.abs(ours - start).max() > 0.05
        np.testing.assert_allclose(ours, keras_own, rtol=2e-4, atol=1e-5)


def test_muon_takes_a_kernel_for_a_matrix_and_serialises():
    random = np.random.default_rng(0)
    start, gradient = (random.normal(size=(3, 3, 4, 6)).astype(np.float32) for _ in range(2))
    kernel, matrix = keras.Variable(start), keras.Variable(start.reshape(36, 6))
    optimizer = Muon(0.1, adam_ratio=0.5, momentum=0.8, newton_schulz_steps=4)
    for weight in (kernel, matrix):
        again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
        assert isinstance(again, Muon)
        again.apply([gradient.reshape(weight.shape)], [weight])
    np.testing.assert_allclose(kernel.numpy().reshape(36, 6), matrix.numpy(), rtol=1e-5, atol=1e-6)
    assert np.abs(kernel.numpy() - start).max() > 0.01
    assert again.get_config() == optimizer.get_config()
    assert (again.adam_ratio, again.momentum, again.newton_schulz_steps) == (0.5, 0.8, 4)


def settings(**changes):
    usual = {"epochs": 10, "learning_rate": 0.5, "schedule": "linear", "warmup_epochs": 2.0, "weight_decay": 0.1}
    return types.SimpleNamespace(**usual | {"clip_norm": 3.0} | changes)


def rate_at(optimizer, step):
    optimizer.iterations.assign(step)
    return float(optimizer.learning_rate)


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("adam", FusedAdam),
        ("adamw", FusedAdam),
        ("sgd", SGD),
        ("muon", Muon),
        ("normalized_muon", NormalizedMuon),
    ],
)
def test_an_optimizer_takes_all_that_the_settings_say(kind, made):
    optimizer = make(kind, settings(), 4, scale=0.5, use_ema=True)
    assert type(optimizer) is made
    assert (optimizer.weight_decay, optimizer.global_clipnorm, optimizer.use_ema) == (0.1, 3.0, True)
    rates = [rate_at(optimizer, step) for step in (0, 7, 8, 40)]
    np.testing.assert_allclose(rates, [0.25 / 9, 0.25 * 8 / 9, 0.25, 0], atol=1e-7)


def test_the_schedule_may_have_another_length_and_a_plateau_is_constant():
    optimizer = make("adam", settings(), 4, epochs=5)
    assert rate_at(optimizer, 20) == 0
    constant = make("sgd", settings(schedule="plateau", warmup_epochs=0.0, weight_decay=0.0), 4)
    assert constant.weight_decay is None
    assert float(constant.learning_rate) == 0.5
