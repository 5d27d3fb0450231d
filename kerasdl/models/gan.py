"""A generative adversarial network: its losses, and two networks with an optimizer each, watched for collapse."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from kerasdl.figures import plots
from kerasdl.training import devices

Loss = Literal["minimax", "non-saturating", "hinge"]


def logistic_discriminator_loss(real_logits: Any, generated_logits: Any, *, label_smoothing: float = 0.0) -> Any:
    """Cross-entropy of both kinds of pictures, of the minimax and of the non-saturating game.

    Args:
        real_logits: float[batch, 1].
        generated_logits: float[batch, 1].
        label_smoothing: the target of real pictures is 1 - label_smoothing; that of generated ones stays 0.

    Returns:
        nats, float32[]: mean of the real plus mean of the generated pictures.

    Source: Goodfellow et al. 2014, arXiv:1406.2661, equation 1; one-sided smoothing: Salimans et al. 2016,
        arXiv:1606.03498, section 3.4.
    """
    real = _wide(real_logits)
    return ops.mean(ops.softplus(-real) + label_smoothing * real) + ops.mean(ops.softplus(_wide(generated_logits)))


def minimax_generator_loss(generated_logits: Any) -> Any:
    """Mean log-probability that the discriminator is right; flat where it surely is.

    Args:
        generated_logits: float[batch, 1].

    Returns:
        nats, float32[].

    Source: Goodfellow et al. 2014, arXiv:1406.2661, equation 1.
    """
    return -ops.mean(ops.softplus(_wide(generated_logits)))


def non_saturating_generator_loss(generated_logits: Any) -> Any:
    """Minus the mean log-probability that the discriminator is wrong; steep where it is right.

    Args:
        generated_logits: float[batch, 1].

    Returns:
        nats, float32[].

    Source: Goodfellow et al. 2014, arXiv:1406.2661, section 3, last paragraph.
    """
    return ops.mean(ops.softplus(-_wide(generated_logits)))


def hinge_discriminator_loss(real_logits: Any, generated_logits: Any) -> Any:
    """Mean of what real logits lack to 1, plus mean of what generated ones exceed -1 by.

    Args:
        real_logits: float[batch, 1].
        generated_logits: float[batch, 1].

    Returns:
        float32[].

    Source: Lim and Ye 2017, arXiv:1705.02894, section 3.
    """
    return ops.mean(ops.relu(1 - _wide(real_logits))) + ops.mean(ops.relu(1 + _wide(generated_logits)))


def hinge_generator_loss(generated_logits: Any) -> Any:
    """Minus the mean logit.

    Args:
        generated_logits: float[batch, 1].

    Returns:
        float32[].

    Source: Lim and Ye 2017, arXiv:1705.02894, section 3.
    """
    return -ops.mean(_wide(generated_logits))


LOSSES: dict[Loss, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "minimax": (logistic_discriminator_loss, minimax_generator_loss),
    "non-saturating": (logistic_discriminator_loss, non_saturating_generator_loss),
    "hinge": (hinge_discriminator_loss, hinge_generator_loss),
}
"""Of the discriminator and of the generator, by the name of the game."""


def _wide(logits: Any) -> Any:
    return ops.cast(logits, "float32")


def scaled(images: Any, *labels: Any) -> tuple[Any, ...]:
    """Pictures uint8[batch, ...] as the networks take them, float32 in -1..1; labels stay as they are."""
    return ops.cast(images, "float32") / 127.5 - 1, *labels


_MEASURED = ("discriminator_loss", "generator_loss", "real_accuracy", "generated_accuracy", "diversity")
_NORMS = ("discriminator_gradient_norm", "generator_gradient_norm")


class AdversarialNetworks(keras.Model):
    """A generator and a discriminator, with one optimizer each, and the running average of the generator's weights.

    A subclass has the training step: `GAN` of apps/dcgan.py. `fit` takes float32 pictures in -1..1, alone or with
    labels; unconditional networks ignore labels.

    Logged are means over the epoch so far: `discriminator_loss`, `generator_loss`, their sum `loss` (which is not
    finite as soon as one of them or of the gradients is not), `real_accuracy` and `generated_accuracy` (share
    judged right: 0.5 each if the discriminator guesses, 1 and 1 if the generator has lost),
    `discriminator_gradient_norm` and `generator_gradient_norm` (of all weights together), and `diversity`, see
    `diversity`. Validation makes its pictures by the average and has no gradients.

    Calling the model, and `predict`, makes pictures by the average: of a latent, or of [latent, label].

    `optimizer` is the generator's; `variables` include those of the discriminator's optimizer, so that whoever saves
    `model.variables` and `model.optimizer.variables` saves the whole state of the training.

    Args:
        generator: latent float32[batch, latent_dim], or [latent, label int32[batch]] -> pictures float32[batch, ...].
        discriminator: pictures, or [pictures, label] -> logits float[batch, 1].
        loss: the game, a key of `kerasdl.models.gan.LOSSES`.
        label_smoothing: see `kerasdl.models.gan.logistic_discriminator_loss`.
        discriminator_steps: steps of the discriminator for each of the generator, 1 or more (k in algorithm 1); a
            batch has at least as many pictures.
        ema_momentum: of the average; early steps use (1 + step) / (10 + step), where that is less.
        seed: of the latents; drawn from Keras' global seed if None.
        **kwargs: those of `keras.Model`.

    Raises:
        ValueError: an unknown loss, label smoothing of another game than the logistic ones, or a number out of range.
    Source: Goodfellow et al. 2014, arXiv:1406.2661, algorithm 1; average: Yazıcı et al. 2018,
        arXiv:1806.04498; its momentum: Karras et al. 2017, arXiv:1710.10196, appendix A.1.
    """

    def __init__(
        self,
        generator: keras.Model,
        discriminator: keras.Model,
        *,
        loss: Loss = "non-saturating",
        label_smoothing: float = 0.0,
        discriminator_steps: int = 1,
        ema_momentum: float = 0.999,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if loss not in LOSSES:
            raise ValueError(f"loss is {loss!r}, expected one of: {', '.join(LOSSES)}")
        if not 0 <= label_smoothing < 1 or (label_smoothing and loss == "hinge"):
            raise ValueError(f"label_smoothing is {label_smoothing}, expected 0 or more, below 1, and 0 for hinge")
        if discriminator_steps < 1:
            raise ValueError(f"discriminator_steps is {discriminator_steps}, expected 1 or more")
        if not 0 <= ema_momentum < 1:
            raise ValueError(f"ema_momentum is {ema_momentum}, expected 0 or more, below 1")
        self.generator = generator
        self.discriminator = discriminator
        self.game = loss
        self.label_smoothing = label_smoothing
        self.discriminator_steps = discriminator_steps
        self.ema_momentum = ema_momentum
        self.seed = seed
        self.conditional = len(generator.inputs) == 2
        self.latent_dim = generator.inputs[0].shape[-1]
        self.average = keras.models.clone_model(generator)
        self.average.set_weights(generator.get_weights())
        self.average.trainable = False
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.discriminator_optimizer: Any = None
        self._means = {name: keras.metrics.Mean(name) for name in (*_MEASURED, *_NORMS)}
        self.built = True

    @property
    def variables(self) -> list[Any]:
        """All state but the metrics and the generator's optimizer."""
        optimizer = self.discriminator_optimizer
        return [*super().variables, *(optimizer.variables if optimizer else [])]

    @property
    def metrics(self) -> list[Any]:
        """The logged means; Keras' own mean of a loss stays out, since nobody would feed it."""
        return list(self._means.values())

    def compile(
        self, generator_optimizer: Any, discriminator_optimizer: Any, *, jit_compile: bool = False, **kwargs: Any
    ) -> None:
        """Sets both optimizers; Radford et al. take Adam(2e-4, beta_1=0.5) for both.

        Args:
            generator_optimizer: what `keras.Model.compile` takes.
            discriminator_optimizer: another one.
            jit_compile: whether XLA compiles the step, which makes it slower on a CPU.
            **kwargs: those of `keras.Model.compile`.

        Raises:
            ValueError: both are one object.
        """
        if generator_optimizer is discriminator_optimizer and not isinstance(generator_optimizer, str):
            raise ValueError("both networks have the same optimizer object, expected two: it holds one's moments")
        super().compile(optimizer=generator_optimizer, jit_compile=jit_compile, **kwargs)
        self.discriminator_optimizer = keras.optimizers.get(discriminator_optimizer)
        # Now, so that both sets of variables are there when a file or a checkpoint is loaded.
        self.optimizer.build(self.generator.trainable_variables)
        self.discriminator_optimizer.build(self.discriminator.trainable_variables)

    def call(self, inputs: Any) -> Any:
        """Pictures of a latent, or of [latent, label], by the average."""
        return self.average(inputs, training=False)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Losses, accuracies and diversity of the average's pictures beside these ones."""
        pictures, label = self.unpack(data)
        generated = self.generate(self.average, pictures, label, training=False)
        logits = [self.judge(kind, label, training=False) for kind in (pictures, generated)]
        self.discriminator_loss(*logits)
        self.generator_loss(logits[1])
        self.record(diversity=diversity(generated, pictures))
        return self.results(training=False)

    def unpack(self, data: Any) -> tuple[Any, Any]:
        """Pictures and labels of a batch of `fit`; labels are None if the networks take none.

        Raises:
            ValueError: pictures are no floats, or labels are missing.
        """
        pictures, label, _ = keras.utils.unpack_x_y_sample_weight(data)
        if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(pictures.dtype)):
            raise ValueError(f"pictures are {pictures.dtype}, expected float32 in -1..1: give pictures / 127.5 - 1")
        if self.conditional and label is None:
            raise ValueError("the generator takes a label and the data have none, expected (pictures, labels)")
        return ops.convert_to_tensor(pictures), ops.convert_to_tensor(label) if self.conditional else None

    def generate(self, generator: keras.Model, real: Any, label: Any, *, training: bool) -> Any:
        """As many pictures as real ones, of their classes."""
        latent = keras.random.normal((ops.shape(real)[0], self.latent_dim), seed=self.seed_generator)
        return generator(latent if label is None else [latent, label], training=training)

    def judge(self, pictures: Any, label: Any, *, training: bool) -> Any:
        """Logits float[batch, 1] of the discriminator: above 0 it takes a picture for a real one."""
        return self.discriminator(pictures if label is None else [pictures, label], training=training)

    def discriminator_loss(self, real: Any, generated: Any) -> Any:
        """Loss of the logits of real and of generated pictures, to differentiate; the whole goes into the log."""
        options = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        loss = LOSSES[self.game][0](real, generated, **options)
        self.record(discriminator_loss=loss, real_accuracy=real > 0, generated_accuracy=generated <= 0)
        return devices.share(loss)

    def generator_loss(self, generated: Any) -> Any:
        """Loss of the logits of generated pictures, likewise."""
        loss = LOSSES[self.game][1](generated)
        self.record(generator_loss=loss)
        return devices.share(loss)

    def update_average(self) -> None:
        """One step of the exponential moving average of the generator's weights."""
        step = ops.cast(self.optimizer.iterations, "float32")
        kept = ops.minimum(self.ema_momentum, (1 + step) / (10 + step))
        for average, weight in zip(self.average.weights, self.generator.weights, strict=True):
            average.assign_add((1 - kept) * (weight - average))

    def record(self, **values: Any) -> None:
        """Adds values to the means of the epoch."""
        for name, value in values.items():
            self._means[name].update_state(value)

    def results(self, *, training: bool) -> dict[str, Any]:
        """The means of the epoch so far; those of gradients only in training."""
        results = {name: self._means[name].result() for name in (*_MEASURED, *(_NORMS if training else ()))}
        # A weight that is no number can be swallowed by the generator's ReLUs; the norm of its gradient shows it.
        broken = sum(0 * results[name] for name in results if name in _NORMS)
        return {"loss": results["discriminator_loss"] + results["generator_loss"] + broken, **results}

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "generator": serialize(self.generator),
            "discriminator": serialize(self.discriminator),
            "loss": self.game,
            "label_smoothing": self.label_smoothing,
            "discriminator_steps": self.discriminator_steps,
            "ema_momentum": self.ema_momentum,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> AdversarialNetworks:
        """From `get_config`."""
        networks = {
            part: keras.saving.deserialize_keras_object(config.pop(part), custom_objects=custom_objects)
            for part in ("generator", "discriminator")
        }
        return cls(**networks, **config)

    def get_compile_config(self) -> dict[str, Any]:
        """Both optimizers."""
        if not self.compiled:
            return {}
        return keras.saving.serialize_keras_object(
            {
                "generator_optimizer": self.optimizer,
                "discriminator_optimizer": self.discriminator_optimizer,
                "jit_compile": self.jit_compile,
            }
        )

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """From `get_compile_config`."""
        self.compile(**keras.saving.deserialize_keras_object(config))


def diversity(generated: Any, real: Any) -> Any:
    """How far generated pictures lie from their nearest neighbours in the batch, in units of how far real ones do.

    1 for pictures drawn like the real ones, 0 if each has a twin: one picture for all latents, or fewer different ones
    than half the batch. Pixels are compared; so it does not see that a mode is missing as long as the others vary.

    Args:
        generated: float[batch, ...].
        real: as many, of the same shape.

    Returns:
        float32[], the ratio of the mean distances; 1 for a batch of one.

    Source: own; that near duplicates betray a small support: Arora and Zhang 2017, arXiv:1706.08224, section 1.
    """
    tiny = 1e-6
    return (_nearest(generated) + tiny) / (_nearest(real) + tiny)


def _nearest(pictures: Any) -> Any:
    """Mean Euclidean distance to the nearest other one."""
    rows = ops.shape(pictures)[0]
    flat = ops.cast(ops.reshape(pictures, (rows, -1)), "float32")
    flat -= ops.mean(flat, 0)  # else rounding drowns the distances of pictures that are almost the same
    squares = ops.sum(ops.square(flat), 1)
    distances = squares[:, None] + squares - 2 * ops.matmul(flat, ops.transpose(flat))
    nearest = ops.min(distances + 1e12 * ops.eye(rows), 1)  # nobody is one's own neighbour
    return ops.mean(ops.sqrt(ops.maximum(nearest, 0)))


class CollapseWarning(keras.callbacks.Callback):
    """Says on standard error that the generator has collapsed, if an epoch's mean `diversity` is so low; trains on.

    Args:
        threshold: least mean without a warning. DCGANs on MNIST, batches of 64: 0.03 to 0.06 where all pictures of a
            class had become one, 0.13 or more in any 300 steps of those where they had not.
        warmup_steps: generator steps without a warning, since the pictures of untrained weights are much alike.

    Source: own.
    """

    def __init__(self, *, threshold: float = 0.1, warmup_steps: int = 300) -> None:
        super().__init__()
        self.threshold = threshold
        self.warmup_steps = warmup_steps

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Looks at the epoch's mean."""
        value = (logs or {})["diversity"]
        if value < self.threshold and int(self.model.optimizer.iterations) > self.warmup_steps:
            print(
                f"epoch {epoch + 1}: the generator collapsed, diversity is {value:.2g}, expected {self.threshold:g} or "
                "more; lower the learning rates, or let the discriminator see the minibatch's deviation",
                file=sys.stderr,
            )


class ProgressGrids(keras.callbacks.Callback):
    """Draws the same pictures after each epoch, and at the end joins the drawings to an animation.

    Args:
        draw: gives pictures uint8[pictures, height, width, channels], shown eight in a row.
        figures: folder that receives samples/0001.png ... and training.gif.
        every: epochs between two drawings.
    """

    def __init__(self, draw: Callable[[], np.ndarray], figures: Path, *, every: int = 1) -> None:
        super().__init__()
        self.draw, self.figures, self.every = draw, figures, every

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Draws."""
        if (epoch + 1) % self.every == 0:
            plots.image_grid(self.draw(), self.figures / f"samples/{epoch + 1:04}.png", columns=8)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Joins what was drawn, also before a resumption."""
        grids = sorted((self.figures / "samples").glob("*.png"))
        if grids:
            plots.animation(grids, self.figures / "training.gif")
