"""tf.data pipelines whose batches depend on (seed, epoch) alone, so that training resumes exactly."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Transform = Callable[..., tuple[tf.Tensor, ...]]


def num_steps(num_examples: int, batch_size: int) -> int:
    """Batches an epoch: full ones only, at least one."""
    return max(1, num_examples // batch_size)


def training_batches(
    arrays: Sequence[np.ndarray],
    batch_size: int,
    *,
    initial_epoch: int = 0,
    seed: int,
    transform: Transform | None = None,
) -> tf.data.Dataset:
    """Endless shuffled batches of in-memory examples.

    Give it to `fit` with `steps_per_epoch=num_steps(...)` and the same `initial_epoch`. The order of epoch e and
    all randomness in it follow from (seed, e), whatever epoch the dataset began with. Each epoch is a new
    permutation; its last, incomplete batch is left out.

    tf.data's autotuner is off: at the end of an epoch it lets `fit` wait up to ten seconds with idle cores.

    Args:
        arrays: arrays of equal length, such as images and labels.
        batch_size: examples a batch, capped at the number of examples.
        initial_epoch: first epoch.
        seed: any integer.
        transform: `transform(*batch, index, epoch, seed) -> batch` inside the graph, with the examples' positions
            `index: int64[batch]`, the scalar `epoch: int64` and a stateless `seed: int32[2]` of this batch.

    Returns:
        Dataset of tuples, one tensor an array.

    Source: own.
    """
    tensors = [tf.constant(array) for array in arrays]
    num_examples = len(arrays[0])
    batch_size = min(batch_size, num_examples)
    steps = num_steps(num_examples, batch_size)
    root = tf.constant([seed & 0x7FFFFFFF, 0x5EED], tf.int32)

    def batches_of(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(
            tf.range(num_examples, dtype=tf.int64), tf.random.fold_in(root, tf.cast(epoch, tf.int32))
        )
        rows = tf.reshape(order[: steps * batch_size], [steps, batch_size])
        return tf.data.Dataset.from_tensor_slices((rows, tf.repeat(epoch, steps), tf.range(steps, dtype=tf.int64)))

    def batch(index: tf.Tensor, epoch: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, ...]:
        examples = tuple(tf.gather(tensor, index) for tensor in tensors)
        if transform is None:
            return examples
        batch_seed = tf.random.fold_in(root, tf.cast(epoch * steps + step, tf.int32) + (1 << 30))
        return transform(*examples, index=index, epoch=epoch, seed=batch_seed)

    epochs = tf.data.Dataset.range(initial_epoch, np.iinfo(np.int32).max)
    return _without_autotune(epochs.flat_map(batches_of).map(batch).prefetch(2))


def evaluation_batches(arrays: Sequence[np.ndarray], batch_size: int) -> tf.data.Dataset:
    """All examples once, in order; the last batch may be smaller.

    Args:
        arrays: arrays of equal length.
        batch_size: examples a batch.
    """
    return _without_autotune(tf.data.Dataset.from_tensor_slices(tuple(arrays)).batch(batch_size).prefetch(1))


def slices(num_examples: int, batch_size: int) -> Iterator[slice]:
    """Consecutive slices that cover `num_examples`, for loops over numpy arrays."""
    for start in range(0, num_examples, batch_size):
        yield slice(start, min(start + batch_size, num_examples))


def _without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options: Any = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    return dataset.with_options(options)
