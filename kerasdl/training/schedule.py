"""Learning-rate schedules, by optimizer step.

`schedule` turns an application's config into what a Keras optimizer takes as `learning_rate`. Dividing the
rate when the validation score stalls is not a schedule but a part of `kerasdl.training.checkpoint`; it needs the
kind "constant" without warm-up, since Keras lets a callback set a plain number only.

A warm-up rises on a straight line from peak / (warmup_steps + 1), not from 0, so that the first step counts.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import keras
from keras import ops

from kerasdl.errors import UserError

Kind: TypeAlias = Literal["constant", "step", "cosine", "one-cycle", "linear"]


@keras.saving.register_keras_serializable(package="kerasdl")
class PiecewiseLinear(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate on straight lines between points; constant before the first and after the last.

    Two points at the same step make a jump: the first value holds up to and including that step, as in Keras'
    PiecewiseConstantDecay. The rate is a weighted mean of the values, so rounding cannot make it negative.

    Args:
        steps: the optimizer step of each point, not decreasing.
        values: the learning rate at each point.

    Raises:
        ValueError: if the two differ in length, are empty, or the steps decrease.

    Source: own.
    """

    def __init__(self, steps: Sequence[float], values: Sequence[float]) -> None:
        super().__init__()
        if len(steps) != len(values) or not steps or list(steps) != sorted(steps):
            raise ValueError(
                f"PiecewiseLinear got steps {list(steps)} and values {list(values)}; it needs a value for "
                "each step and steps that do not decrease: sort the points by step."
            )
        self.steps = list(steps)
        self.values = list(values)

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate, float32[], at an optimizer step, int[]."""
        point = ops.array(self.steps, "float32")
        length = ops.maximum(point[1:] - point[:-1], 1e-6)  # a jump is a very short line
        passed = ops.clip((ops.cast(step, "float32") - point[:-1]) / length, 0.0, 1.0)
        weight = ops.concatenate([ops.ones_like(point[:1]), passed]) - ops.concatenate(
            [passed, ops.zeros_like(point[:1])]
        )
        return ops.sum(weight * ops.array(self.values, "float32"))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"steps": self.steps, "values": self.values}


def step_decay(
    peak: float, total_steps: int, *, warmup_steps: int = 0, at: Sequence[float] = (0.5, 0.75)
) -> PiecewiseLinear:
    """Divides the learning rate by 10 at given fractions of the training.

    Args:
        peak: the highest learning rate.
        total_steps: optimizer steps of the whole training, warm-up included.
        warmup_steps: steps of linear rise to the peak, before the first division.
        at: increasing fractions of `total_steps`.

    Raises:
        ValueError: if the warm-up does not end before the first division, or `at` decreases.

    Source: He et al. 2015, arXiv:1512.03385, section 4.2: after 32k and 48k of 64k steps.
    """
    points = _warmup(peak, warmup_steps)
    for count, fraction in enumerate(at):
        boundary = fraction * total_steps
        points += [(boundary, peak / 10**count), (boundary, peak / 10 ** (count + 1))]
    return _through(points)


def linear_decay(peak: float, total_steps: int, *, warmup_steps: int = 0) -> PiecewiseLinear:
    """Falls on a straight line to 0; with a warm-up, a triangle.

    Args:
        peak: the highest learning rate.
        total_steps: optimizer steps of the whole training, warm-up included.
        warmup_steps: steps of linear rise to the peak.

    Raises:
        ValueError: if the warm-up is longer than the training.

    Source: Devlin et al. 2018, arXiv:1810.04805, appendix A.2.
    """
    return _through([*_warmup(peak, warmup_steps), (total_steps, 0.0)])


def cosine(peak: float, total_steps: int, *, warmup_steps: int = 0) -> keras.optimizers.schedules.CosineDecay:
    """Falls on half a cosine wave to 0: Keras' CosineDecay, with the warm-up counted into the total.

    Args:
        peak: the highest learning rate.
        total_steps: optimizer steps of the whole training, warm-up included.
        warmup_steps: steps of linear rise to the peak.

    Raises:
        ValueError: if the warm-up is as long as the training.

    Source: Loshchilov and Hutter 2016, arXiv:1608.03983, section 3, without restarts.
    """
    return keras.optimizers.schedules.CosineDecay(
        peak / (warmup_steps + 1), total_steps - warmup_steps, warmup_target=peak, warmup_steps=warmup_steps
    )


def one_cycle(peak: float, total_steps: int, *, warmup_ratio: float = 0.45) -> PiecewiseLinear:
    """Rises from a tenth of the peak, falls back to it, then to a thousandth in the last tenth of training.

    Args:
        peak: the highest learning rate.
        total_steps: optimizer steps of the whole training.
        warmup_ratio: the rise as a fraction of the training, at most 0.9; at 0.45 it is as long as the fall.

    Raises:
        ValueError: if `warmup_ratio` is above 0.9.

    Source: Smith 2018, arXiv:1803.09820, section 4.1 (1cycle).
    """
    points = [(0.0, peak / 10), (warmup_ratio, peak), (0.9, peak / 10), (1.0, peak / 1000)]
    return _through([(fraction * total_steps, value) for fraction, value in points])


def schedule(
    kind: Kind, peak: float, total_steps: int, *, warmup_steps: int = 0
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Returns the learning rate that a config asks for.

    Args:
        kind: "constant", or one of this module's functions: step_decay, cosine, one_cycle, linear_decay.
        peak: the config's learning rate; no schedule goes above it.
        total_steps: optimizer steps of the whole training, warm-up included.
        warmup_steps: steps of linear rise to the peak. A one-cycle without a rise would be none: for 0 it
            keeps `one_cycle`'s own default.

    Returns:
        A plain number for "constant" without warm-up, else a schedule, which stays at its last value after
        `total_steps`.

    Raises:
        UserError: if the warm-up leaves no room for what follows it.

    Source: own.
    """
    latest = {"step": 0.5, "one-cycle": 0.9}.get(kind, 1.0) * total_steps
    if not 0 <= warmup_steps < latest:
        raise UserError(
            f"A warm-up of {warmup_steps} steps does not fit the {kind} schedule of {total_steps} steps, "
            f"where it must end before step {latest:g}; warm up for fewer epochs or train for more."
        )
    match kind:
        case "constant":
            return _through(_warmup(peak, warmup_steps)) if warmup_steps else peak
        case "step":
            return step_decay(peak, total_steps, warmup_steps=warmup_steps)
        case "cosine":
            return cosine(peak, total_steps, warmup_steps=warmup_steps)
        case "one-cycle" if warmup_steps:
            return one_cycle(peak, total_steps, warmup_ratio=warmup_steps / total_steps)
        case "one-cycle":
            return one_cycle(peak, total_steps)
        case "linear":
            return linear_decay(peak, total_steps, warmup_steps=warmup_steps)


def _warmup(peak: float, warmup_steps: int) -> list[tuple[float, float]]:
    return [(0, peak / (warmup_steps + 1)), (warmup_steps, peak)] if warmup_steps else [(0, peak)]


def _through(points: Sequence[tuple[float, float]]) -> PiecewiseLinear:
    return PiecewiseLinear(*zip(*points, strict=True))
