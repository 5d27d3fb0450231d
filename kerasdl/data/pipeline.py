"""tf.data pipelines whose batches depend on (seed, epoch) alone, so that training resumes exactly."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kerasdl.errors import UserError
from kerasdl.training.progress import bar

Transform = Callable[..., tuple[tf.Tensor, ...]]


def num_steps(num_examples: int, batch_size: int) -> int:
    """Batches an epoch: full ones only, at least one."""
    return max(1, num_examples // batch_size)


def steps_per_execution(num_steps: int) -> int:
    """How many steps `fit` is to take at a time, for short ones: at most ten, and such that an epoch ends with them.

    Between them it takes a millisecond. Keras 3.15 does whole executions alone, so that other numbers make an epoch
    longer than its `steps_per_epoch`. On several devices it can take one alone: more fail in TensorFlow 2.21.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        return 1
    return next(steps for steps in range(10, 0, -1) if num_steps % steps == 0)


def training_batches(
    arrays: Sequence[np.ndarray],
    batch_size: int,
    *,
    initial_epoch: int = 0,
    seed: int,
    transform: Transform | None = None,
    steps: int | None = None,
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
        steps: batches an epoch; None for all that are full. Of more examples an epoch has others each time; of fewer
            the batches are smaller.

    Returns:
        Dataset of tuples, one tensor an array.

    Raises:
        UserError: there are fewer examples than steps.

    Source: own.
    """
    tensors = [tf.constant(array) for array in arrays]
    num_examples = len(arrays[0])
    batch_size = min(batch_size, num_examples if steps is None else num_examples // steps)
    if batch_size < 1:
        raise UserError(f"{num_examples:,} examples are fewer than the {steps:,} steps of an epoch; add others")
    steps = steps or num_steps(num_examples, batch_size)
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


def in_turn(datasets: Sequence[tf.data.Dataset]) -> tf.data.Dataset:
    """An element of each dataset, again and again; what shapes differ in is unknown in those of the result.

    Args:
        datasets: endless, of equal structure.
    """
    if len(datasets) == 1:
        return datasets[0]
    choice = tf.data.Dataset.range(len(datasets)).repeat()
    return _without_autotune(tf.data.Dataset.choose_from_datasets(list(datasets), choice, stop_on_empty_dataset=False))


def evaluation_batches(arrays: Sequence[np.ndarray], batch_size: int, *, devices: int = 1) -> tf.data.Dataset:
    """All examples once, in order; the last batch may be smaller.

    Args:
        arrays: arrays of equal length.
        batch_size: examples a batch; a few more where the last one would have fewer than devices.
        devices: among which a batch is divided: the mean loss of one without an example would be no number.
    """
    count = len(arrays[0])
    sizes = itertools.count(batch_size)
    batch_size = next(size for size in sizes if size >= count or count % size == 0 or count % size >= devices)
    return _without_autotune(tf.data.Dataset.from_tensor_slices(tuple(arrays)).batch(batch_size).prefetch(1))


def slices(num_examples: int, batch_size: int, name: str = "") -> Iterator[slice]:
    """Consecutive slices that cover `num_examples`, for loops over numpy arrays.

    Args:
        num_examples: how many.
        batch_size: of a slice; the last one may be smaller.
        name: of the work; if it takes long, its progress is shown, see `kerasdl.training.progress.bar`.
    """
    with bar(num_examples, name, shown=bool(name)) as advance:
        for start in range(0, num_examples, batch_size):
            part = slice(start, min(start + batch_size, num_examples))
            yield part
            advance(part.stop - part.start)


def _without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options: Any = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    return dataset.with_options(options)


def bucketed_batches(
    sequences: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
    batch_size: int,
    *,
    initial_epoch: int = 0,
    seed: int,
    pool: int = 50,
) -> tf.data.Dataset:
    """Endless shuffled batches of sequences that are about equally long, so that little is padding.

    Give it to `fit` like `training_batches`: the order of epoch e follows from (seed, e). Each epoch is a new
    permutation, cut in pools; a pool is sorted by length and cut in batches; the batches of all pools are shuffled.
    The last, incomplete batch of the permutation is left out.

    Args:
        sequences: one an example, int[length]; 0 is kept for padding.
        others: arrays of as many examples, such as labels.
        batch_size: examples a batch, capped at the number of examples.
        initial_epoch: first epoch.
        seed: any integer.
        pool: batches a pool. More leave less padding and make batches less random; 1 is plain shuffling.

    Returns:
        Dataset of (tokens, *others), with tokens int32[batch, longest of the batch, at least 1], padded at the end.

    Source: own.
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    flat = np.concatenate(sequences).astype(np.int32, copy=False)
    ragged = tf.RaggedTensor.from_row_lengths(flat, lengths, validate=False)
    tensors = [tf.constant(array) for array in others]
    num_examples = len(lengths)
    batch_size = min(batch_size, num_examples)
    steps = num_steps(num_examples, batch_size)
    pools = np.arange(steps * batch_size) // (pool * batch_size)
    # Sorting by this number plus the length sorts by length within each pool.
    first_of_pool = tf.constant(pools * (lengths.max() + 1), tf.int64)

    def batches_of(epoch: tf.Tensor) -> tf.data.Dataset:
        epoch_seed = _epoch_seed(seed, epoch)
        shuffle = tf.random.experimental.stateless_shuffle
        order = shuffle(tf.range(num_examples), epoch_seed)[: steps * batch_size]
        order = tf.gather(order, tf.argsort(first_of_pool + tf.gather(lengths, order), stable=True))
        return tf.data.Dataset.from_tensor_slices(
            shuffle(tf.reshape(order, [steps, batch_size]), tf.random.fold_in(epoch_seed, 1))
        )

    def batch(index: tf.Tensor) -> tuple[tf.Tensor, ...]:
        rows = tf.gather(ragged, index)
        tokens = rows.to_tensor(shape=[batch_size, tf.maximum(tf.reduce_max(rows.row_lengths()), 1)])
        return tokens, *(tf.gather(tensor, index) for tensor in tensors)

    epochs = tf.data.Dataset.range(initial_epoch, np.iinfo(np.int32).max)
    return _without_autotune(epochs.flat_map(batches_of).map(batch).prefetch(2))


def padded_batches(
    sequences: Sequence[np.ndarray], others: Sequence[np.ndarray], batch_size: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """Every sequence once, shortest first, padded at the end with 0.

    Args:
        sequences: one an example, int[length].
        others: arrays of as many examples, such as labels.
        batch_size: examples a batch; the last one may be smaller.

    Returns:
        Tuples of int32[batch, longest of the batch, at least 1] and the others' parts.
    """
    for part in sorted_slices([len(sequence) for sequence in sequences], batch_size):
        rows = np.zeros([len(part), max(1, *(len(sequences[i]) for i in part))], np.int32)
        for row, i in zip(rows, part, strict=True):
            row[: len(sequences[i])] = sequences[i]
        yield rows, *(other[part] for other in others)


def sorted_slices(lengths: Sequence[int] | np.ndarray, batch_size: int, name: str = "") -> Iterator[np.ndarray]:
    """Every example once, shortest first: int64[at most batch_size] positions, to evaluate with little padding.

    Args:
        lengths: int[examples].
        batch_size: examples a slice; the last one may be smaller.
        name: see `slices`.
    """
    order = np.argsort(lengths, kind="stable")
    for part in slices(len(order), batch_size, name):
        yield order[part]


def num_windows(length: int, batch_size: int, window: int) -> int:
    """Steps an epoch of `continuous_batches`, the same for each epoch.

    Args:
        length: symbols of the text.
        batch_size: parallel streams.
        window: symbols a step and stream.

    Raises:
        UserError: if the text is too short for one step.
    """
    # One window is kept for the offset; the last target needs no room of its own, as an offset is below a window.
    steps = (length - window) // (batch_size * window)
    if steps < 1:
        raise UserError(
            f"The text has {length} symbols; expected at least {(batch_size + 1) * window} for {batch_size} streams"
            f" with windows of {window} symbols; take a longer text, a smaller batch or shorter windows."
        )
    return steps


def continuous_batches(
    ids: np.ndarray, batch_size: int, window: int, *, initial_epoch: int = 0, seed: int
) -> tf.data.Dataset:
    """Endless windows of a text in reading order, for a recurrent model whose state is carried from step to step.

    The text is cut in `batch_size` streams of equal length, and step s gives window s of each: row b of a batch goes
    on where row b of the batch before ended. Give it to `fit` with `steps_per_epoch=num_windows(...)` and the same
    `initial_epoch`, and reset the state when an epoch begins. Each epoch begins at an offset below `window` that
    follows from (seed, epoch), so that windows are cut elsewhere and the few symbols left over change.

    Args:
        ids: int[length], a symbol each.
        batch_size: parallel streams.
        window: symbols a step and stream.
        initial_epoch: first epoch.
        seed: any integer.

    Returns:
        Dataset of (inputs, targets), int32[batch_size, window] each; targets are inputs one symbol later.

    Raises:
        UserError: if the text is too short for one step.

    Source: own.
    """
    steps = num_windows(len(ids), batch_size, window)
    symbols = tf.constant(np.asarray(ids, np.int32))
    # Streams as long as the text allows spread the symbols left over; else they would be the text's end, never seen.
    starts = tf.range(batch_size) * ((len(ids) - window) // batch_size)
    index = starts[:, None] + tf.range(window + 1)

    def positions_of(epoch: tf.Tensor) -> tf.data.Dataset:
        offset = tf.random.stateless_uniform([], _epoch_seed(seed, epoch), 0, window, tf.int32)
        return tf.data.Dataset.from_tensor_slices(offset + tf.range(steps) * window)

    def batch(position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        taken = tf.gather(symbols, position + index)
        return taken[:, :-1], taken[:, 1:]

    epochs = tf.data.Dataset.range(initial_epoch, np.iinfo(np.int32).max)
    return _without_autotune(epochs.flat_map(positions_of).map(batch).prefetch(2))


def streams(ids: np.ndarray, rows: int, window: int) -> tf.data.Dataset:
    """A text in reading order for validation: row i of a batch goes on where row i of the one before ended.

    Args:
        ids: int[characters].
        rows: parts of the text that are read side by side.
        window: columns of a batch; fewer if a part is shorter. What does not fill a window is left out at the end.

    Returns:
        Dataset of (characters, each next one), int32[rows, window].

    Raises:
        UserError: the text has fewer characters than rows.
    """
    length = (len(ids) - 1) // rows
    if length < 1:
        raise UserError(
            f"the validation text has {len(ids)} characters; expected more than --batch-size {rows}; give a longer "
            "text, a smaller batch, or a higher --held-out-ratio"
        )
    window = min(window, length)
    length -= length % window
    parts = (ids[begin : begin + rows * length].reshape(rows, -1, window) for begin in (0, 1))
    return evaluation_batches([part.swapaxes(0, 1).reshape(-1, window) for part in parts], rows)


def _epoch_seed(seed: int, epoch: tf.Tensor) -> tf.Tensor:
    return tf.random.fold_in(tf.constant([seed & 0x7FFFFFFF, 0x5EED], tf.int32), tf.cast(epoch, tf.int32))
