import math

import keras
import numpy as np
import pytest

from kerasdl.errors import UserError
from kerasdl.training.schedule import (
    PiecewiseLinear,
    cosine,
    linear_decay,
    one_cycle,
    schedule,
    step_decay,
)

TOTAL = 200
KINDS = ["constant", "step", "cosine", "one-cycle", "linear"]


def rates(rate, steps):
    return np.array([float(rate(step)) for step in steps])


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (linear_decay(0.4, TOTAL), {0: 0.4, 50: 0.3, 100: 0.2, 199: 0.002, 200: 0, 10_000: 0}),
        (
            linear_decay(0.4, TOTAL, warmup_steps=40),
            {0: 0.4 / 41, 20: 0.4 * 21 / 41, 40: 0.4, 120: 0.2, 199: 0.0025, 200: 0, 300: 0},
        ),
        (step_decay(0.4, TOTAL), {0: 0.4, 100: 0.4, 101: 0.04, 150: 0.04, 151: 0.004, 199: 0.004, 999: 0.004}),
        (
            step_decay(0.4, TOTAL, warmup_steps=9, at=(0.25,)),
            {0: 0.04, 4: 0.2, 9: 0.4, 50: 0.4, 51: 0.04, 199: 0.04, 999: 0.04},
        ),
        (
            cosine(0.4, TOTAL),
            {
                0: 0.4,
                50: 0.2 + 0.2 * math.sqrt(0.5),
                100: 0.2,
                199: 0.2 * (1 - math.cos(math.pi / 200)),
                200: 0,
                999: 0,
            },
        ),
        (cosine(0.4, TOTAL, warmup_steps=40), {0: 0.4 / 41, 20: 0.4 * 21 / 41, 40: 0.4, 120: 0.2, 200: 0, 999: 0}),
        (
            one_cycle(0.4, TOTAL),
            {0: 0.04, 45: 0.22, 90: 0.4, 135: 0.22, 180: 0.04, 190: 0.0202, 199: 0.00238, 200: 0.0004, 999: 0.0004},
        ),
        (one_cycle(0.4, TOTAL, warmup_ratio=0.1), {0: 0.04, 10: 0.22, 20: 0.4, 100: 0.22, 180: 0.04, 999: 0.0004}),
    ],
)
def test_equals_the_closed_form(rate, expected):
    np.testing.assert_allclose(rates(rate, expected), list(expected.values()), rtol=2e-4, atol=1e-8)


@pytest.mark.parametrize("warmup_steps", [0, 30])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_rate_is_positive_in_training_stays_below_the_peak_and_ends(kind, warmup_steps):
    rate = schedule(kind, 0.1, TOTAL, warmup_steps=warmup_steps)
    values = rates(rate, range(TOTAL))
    assert values.min() > 0
    assert values.max() == pytest.approx(0.1)
    after = rates(rate, [TOTAL, TOTAL + 1, 100 * TOTAL])
    assert after.min() == after.max()
    assert 0 <= after[0] <= values[-1]


def test_constant_is_a_plain_number_that_callbacks_may_set():
    assert schedule("constant", 0.1, TOTAL) == 0.1
    warmed_up = schedule("constant", 0.1, TOTAL, warmup_steps=9)
    np.testing.assert_allclose(rates(warmed_up, [0, 4, 9, 199, 999]), [0.01, 0.05, 0.1, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "same"),
    [
        ("step", step_decay(0.1, TOTAL, warmup_steps=20)),
        ("cosine", cosine(0.1, TOTAL, warmup_steps=20)),
        ("one-cycle", one_cycle(0.1, TOTAL, warmup_ratio=0.1)),
        ("linear", linear_decay(0.1, TOTAL, warmup_steps=20)),
    ],
)
def test_kind_names_its_function(kind, same):
    assert schedule(kind, 0.1, TOTAL, warmup_steps=20).get_config() == same.get_config()


def test_one_cycle_without_warmup_still_rises():
    assert schedule("one-cycle", 0.1, TOTAL).get_config() == one_cycle(0.1, TOTAL).get_config()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_survives_serialisation(kind):
    rate = schedule(kind, 0.1, TOTAL, warmup_steps=20)
    restored = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(rate))
    steps = [0, 7, 20, 99, 100, 101, 199, 500]
    np.testing.assert_array_equal(rates(restored, steps), rates(rate, steps))


def test_drives_an_optimizer_and_is_saved_with_it():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(linear_decay(1.0, 4)), lambda target, output: output)
    data = np.ones((1, 1), np.float32)
    kernel = [1.0]
    for _ in range(5):  # the gradient is 1, so that each step moves the kernel by the learning rate
        model.fit(data, data, verbose=0)
        kernel.append(float(model.get_weights()[0][0, 0]))
    np.testing.assert_allclose(-np.diff(kernel), [1, 0.75, 0.5, 0.25, 0], atol=1e-6)

    restored = keras.optimizers.deserialize(keras.optimizers.serialize(model.optimizer))
    assert restored.get_config()["learning_rate"]["config"] == {"steps": [0, 4], "values": [1.0, 0.0]}


@pytest.mark.parametrize(
    ("kind", "warmup_steps"), [("linear", 200), ("cosine", 200), ("step", 100), ("one-cycle", 180), ("constant", -1)]
)
def test_warmup_without_room_raises(kind, warmup_steps):
    with pytest.raises(UserError, match=rf"warm-up of {warmup_steps} steps .* warm up for fewer epochs"):
        schedule(kind, 0.1, TOTAL, warmup_steps=warmup_steps)


@pytest.mark.parametrize(("steps", "values"), [([0, 2], [1.0]), ([], []), ([3, 1], [1.0, 2.0])])
def test_malformed_points_raise(steps, values):
    with pytest.raises(ValueError, match="sort the points by step"):
        PiecewiseLinear(steps, values)
