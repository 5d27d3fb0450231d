"""Optimizers by name with their schedule, and those that Keras lacks."""

from typing import Any, Literal, Protocol

import keras
from keras import ops

from kerasdl.fast.fused_adam import FusedAdam, RateOnce
from kerasdl.training import devices, schedule

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)

OptimizerKind = Literal["adam", "adamw", "sgd", "muon", "normalized_muon"]


class Settings(Protocol):
    """What `make` reads of a configuration."""

    @property
    def epochs(self) -> int:
        """Passes over the training examples."""

    @property
    def learning_rate(self) -> Any:
        """At its peak, a number."""

    @property
    def schedule(self) -> Any:
        """A kind of `kerasdl.training.schedule`, or plateau, which is constant here and a callback's task."""

    @property
    def warmup_epochs(self) -> float:
        """Epochs in which the learning rate rises."""

    @property
    def weight_decay(self) -> float:
        """Decoupled from the gradient."""

    @property
    def clip_norm(self) -> float | None:
        """Largest global norm of the gradient."""


def build(model: keras.Model) -> None:
    """Makes the variables of a compiled model's optimizer, unless they are there, so that `fit` begins sooner.

    Keras makes them within the first step; TensorFlow, seeing variables made, then traces the whole step again.
    """
    if not model.optimizer.built:
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)


def make(
    kind: OptimizerKind,
    settings: Settings,
    steps: int,
    *,
    epochs: int | None = None,
    scale: float = 1.0,
    **options: Any,
) -> keras.optimizers.Optimizer:
    """The optimizer that a configuration asks for.

    Args:
        kind: adam and adamw, which is adam with the weight decay of the settings: `kerasdl.fast.fused_adam.FusedAdam`;
            sgd: with Nesterov momentum of 0.9; muon and normalized_muon: those of this module.
        settings: the configuration.
        steps: of an epoch.
        epochs: length of the schedule, where it is not that of the settings.
        scale: factor of the learning rate.
        **options: more of those of `keras.optimizers.Optimizer`.

    Returns:
        The optimizer.

    Raises:
        UserError: the warm-up is longer than the schedule.

    Source: decoupled weight decay: Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2.
    """
    rate = schedule.schedule(
        "constant" if settings.schedule == "plateau" else settings.schedule,
        settings.learning_rate * scale,
        total_steps=steps * (epochs or settings.epochs),
        warmup_steps=0 if settings.schedule == "plateau" else round(steps * settings.warmup_epochs),
    )
    alone = devices.replicas() == 1
    options |= {"learning_rate": rate, "global_clipnorm": settings.clip_norm if alone else None}
    options["weight_decay"] = settings.weight_decay or None
    if kind == "sgd":
        optimizer = SGD(momentum=0.9, nesterov=True, **options)
    else:
        made = {"adam": FusedAdam, "adamw": FusedAdam, "muon": Muon, "normalized_muon": NormalizedMuon}
        optimizer = made[kind](**options)
    return optimizer if alone else devices.clipped(optimizer, settings.clip_norm)


@keras.saving.register_keras_serializable(package="kerasdl")
class SGD(RateOnce, keras.optimizers.SGD):
    """Keras' stochastic gradient descent."""


@keras.saving.register_keras_serializable(package="kerasdl")
class NormalizedMuon(RateOnce):
    """Muon on convolution kernels of constant norm, Nesterov SGD on everything else.

    A kernel float32[height, width, in, out] is first scaled to Frobenius norm sqrt(out). Its step is the orthogonalised
    momentum, computed on the matrix [height * width * in, out]. Keras' own Muon serves matrices only
    and gives other weights to Adam.

    All rates follow one schedule: `learning_rate` is that of the kernels, the others are stated as ratios to it.
    The defaults are those of the source, whose loss is a sum over the batch, turned into a mean over 2,000; with
    smaller batches these rates fall with the root of the size. A kernel's step has one size, whatever its gradient's.

    Args:
        learning_rate: of the 4-d kernels: the spectral norm of a step.
        momentum: of the 4-d kernels.
        vector_ratio: learning rate of vectors (biases, batch-norm shifts), in units of `learning_rate`.
        matrix_ratio: learning rate of matrices (the head), in units of `learning_rate`.
        sgd_momentum: Nesterov momentum of vectors and matrices.
        weight_decay: a step takes learning_rate * weight_decay of a vector or matrix; kernels have a fixed norm.
        newton_schulz_steps: iterations of the orthogonalisation.
        batch_size: examples of a step.
        **kwargs: as `keras.optimizers.Optimizer`.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", as used for CIFAR-10 in
    github.com/KellerJordan/cifar10-airbench, airbench94_muon; root of the size: Krizhevsky 2014, arXiv:1404.5997,
    section 5.
    """

    def __init__(
        self,
        learning_rate: Any = 0.24,
        *,
        momentum: float = 0.6,
        vector_ratio: float = 440.0,
        matrix_ratio: float = 5600.0,
        sgd_momentum: float = 0.85,
        weight_decay: float | None = 0.11,
        newton_schulz_steps: int = 3,
        batch_size: int = 2000,
        name: str = "normalized_muon",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, name=name, **kwargs)
        self.momentum = momentum
        self.vector_ratio = vector_ratio
        self.matrix_ratio = matrix_ratio
        self.sgd_momentum = sgd_momentum
        self.newton_schulz_steps = newton_schulz_steps
        self.batch_size = batch_size

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates one momentum a variable."""
        if self.built:
            return
        super().build(variables)
        self._momenta = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        """One step of one variable."""
        buffer = self._momenta[self._get_variable_index(variable)]
        learning_rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        if len(variable.shape) == 4:
            self.assign(buffer, self.momentum * buffer + gradient)
            filters = variable.shape[-1]
            matrix = ops.reshape(gradient + self.momentum * buffer, (-1, filters))
            step = ops.reshape(orthogonalize(matrix, self.newton_schulz_steps), variable.shape)
            scale = filters**0.5 / ops.sqrt(ops.sum(ops.square(variable)))
            self.assign(variable, variable * scale - learning_rate * step)
        else:
            ratio = self.matrix_ratio if len(variable.shape) == 2 else self.vector_ratio
            ratio *= min(1.0, self.batch_size / 2000) ** 0.5
            self.assign(buffer, self.sgd_momentum * buffer + gradient)
            self.assign_sub(variable, ratio * learning_rate * (gradient + self.sgd_momentum * buffer))

    def get_config(self) -> dict[str, Any]:
        """Everything that __init__ takes."""
        return super().get_config() | {
            "momentum": self.momentum,
            "vector_ratio": self.vector_ratio,
            "matrix_ratio": self.matrix_ratio,
            "sgd_momentum": self.sgd_momentum,
            "newton_schulz_steps": self.newton_schulz_steps,
            "batch_size": self.batch_size,
        }


@keras.saving.register_keras_serializable(package="kerasdl")
class Muon(FusedAdam):
    """Orthogonalised momentum for matrices and convolution kernels, Adam for all other weights.

    A step of a matrix has the root mean square that Adam's typically has, so that both take rates of the same size. A
    kernel float32[height, width, in, out] is the matrix [height * width * in, out]. Keras' own Muon, which this equals
    on matrices, gives kernels to Adam. It is not for embeddings, whose gradients are sparse.

    Args:
        learning_rate: of matrices and kernels.
        adam_ratio: learning rate of the other weights, in units of `learning_rate`.
        momentum: of matrices and kernels, Nesterov's.
        newton_schulz_steps: iterations of the orthogonalisation.
        **kwargs: those of `keras.optimizers.Adam`.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; size of a step: Liu et al.
        2025, arXiv:2502.16982, equation 4.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        *,
        adam_ratio: float = 0.25,
        momentum: float = 0.95,
        newton_schulz_steps: int = 2,
        name: str = "muon",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.adam_ratio = adam_ratio
        self.momentum = momentum
        self.newton_schulz_steps = newton_schulz_steps

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one variable."""
        if len(variable.shape) not in (2, 4):
            super().update_step(gradient, variable, learning_rate * self.adam_ratio)
            return
        buffer = self._momentums[self._get_variable_index(variable)]
        gradient = ops.cast(gradient, variable.dtype)
        self.assign(buffer, self.momentum * buffer + gradient)
        matrix = ops.reshape(gradient + self.momentum * buffer, (-1, variable.shape[-1]))
        step = ops.reshape(orthogonalize(matrix, self.newton_schulz_steps), variable.shape)
        size = 0.2 * max(matrix.shape) ** 0.5
        self.assign_sub(variable, size * ops.cast(learning_rate, variable.dtype) * step)

    def get_config(self) -> dict[str, Any]:
        """Everything that __init__ takes."""
        return super().get_config() | {
            "adam_ratio": self.adam_ratio,
            "momentum": self.momentum,
            "newton_schulz_steps": self.newton_schulz_steps,
        }


def orthogonalize(matrix: Any, steps: int) -> Any:
    """Brings all singular values of a matrix near 1 by a quintic Newton-Schulz iteration.

    With the coefficients of the source the values end between about 0.7 and 1.2, which trains as well as exactly 1.

    Args:
        matrix: float32[rows, columns].
        steps: iterations; three to five.

    Returns:
        float32[rows, columns].

    Source: Jordan et al. 2024, "Muon", section "Newton-Schulz".
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else ops.transpose(matrix)
    x = x / (ops.sqrt(ops.sum(ops.square(x))) + 1e-7)
    for _ in range(steps):
        gram = ops.matmul(x, ops.transpose(x))
        x = a * x + ops.matmul(b * gram + c * ops.matmul(gram, gram), x)
    return x if wide else ops.transpose(x)
