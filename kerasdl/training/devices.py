"""Data-parallel training: each of several devices takes an equal part of every batch.

Keras does it by TensorFlow's MirroredStrategy. What it lacks is here: the gradient of the whole batch is clipped, not
that of each part (`clipped`), losses of a model's own are divided as Keras divides its own (`share`), batch
normalization takes the statistics of the whole batch (`kerasdl.fast.batch_normalization`), and random layers draw other
numbers on each device (`scope`). So weights are those of one device up to rounding, where nothing is drawn.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from kerasdl import processor
from kerasdl.errors import UserError


def replicas() -> int:
    """Devices among which the batch is divided where this is called."""
    return tf.distribute.get_strategy().num_replicas_in_sync


@contextmanager
def scope(count: int) -> Iterator[None]:
    """Models that are built in this context, and compiled in it, are trained on so many devices at once.

    Raises:
        UserError: the machine has fewer graphics cards, and its processor is not divided, either.
    """
    if count == 1:
        yield
        return
    cards, parts = (tf.config.list_logical_devices(kind) for kind in ("GPU", "CPU"))
    chosen = cards if len(cards) >= count else parts
    if len(chosen) < count:
        raise UserError(
            f"--devices is {count}; this machine has {len(cards)} graphics card{'s' * (len(cards) != 1)}; give as "
            f"many, or set {processor.DIVIDED}={count} to try it on parts of the processor, which gains no speed"
        )
    names = [device.name.removeprefix("/device:") for device in chosen[:count]]
    print(f"training on {count} devices: {', '.join(names)}", flush=True)
    with _strategy(*names).scope():
        yield


@functools.cache
def _strategy(*names: str) -> tf.distribute.Strategy:
    """One for all models of the process: the numbers of the sums of a second one would be those of the first's."""
    return tf.distribute.MirroredStrategy(names)


def prepare(model: keras.Model) -> None:
    """Makes a model that was built in `scope` ready for `fit`; one of a single device stays as it is."""
    if model.distribute_strategy.num_replicas_in_sync == 1:
        return
    # Keras would take the mean over the devices of a first batch, which fails where it cannot be divided evenly. It
    # wants shapes of it for layers that are not built; these are.
    model._maybe_symbolic_build = lambda *args, **kwargs: None
    for layer in model._flatten_layers():
        generator = getattr(layer, "seed_generator", None)
        if isinstance(generator, keras.random.SeedGenerator):
            generator.__class__ = _SeedOfReplica


class _SeedOfReplica(keras.random.SeedGenerator):
    """Gives each device seeds of its own; Keras' would have all draw the same numbers."""

    def next(self, ordered: bool = True) -> Any:
        seed = super().next(ordered)
        context = tf.distribute.get_replica_context()
        if context is None:
            return seed
        return seed + tf.cast([0, 0x9E37 * context.replica_id_in_sync_group], seed.dtype)


def share(loss: Any) -> Any:
    """A mean over the examples of a device as its share of the mean over the whole batch."""
    return loss / replicas() if replicas() > 1 else loss


def summed(gradients: list[Any]) -> list[Any]:
    """Gradients of the whole batch, from those of the shares of each device."""
    context = tf.distribute.get_replica_context()
    if replicas() == 1 or context is None:
        return gradients
    return context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)


def clipped(optimizer: keras.optimizers.Optimizer, norm: float | None) -> keras.optimizers.Optimizer:
    """Lets an optimizer clip the gradient of the whole batch to a global norm; `scope` is where it was made.

    Keras clips that of each device's part before it sums them.

    Args:
        optimizer: it clips nothing itself.
        norm: the largest; None clips nothing.

    Returns:
        The optimizer.
    """
    if norm is None:
        return optimizer
    apply = optimizer.apply

    def apply_clipped(gradients: list[Any], variables: Any = None) -> Any:
        # Dense, since TensorFlow takes an embedding's norm of its parts, also where several are one word's.
        whole = [None if one is None else tf.convert_to_tensor(one) for one in summed(list(gradients))]
        whole, _ = tf.clip_by_global_norm(whole, norm)
        return apply([None if one is None else one / replicas() for one in whole], variables)  # summed once more

    optimizer.apply = apply_clipped
    return optimizer
