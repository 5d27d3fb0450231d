import itertools

import numpy as np
import pytest
import tensorflow as tf

from kerasdl.data import pipeline
from kerasdl.data.pipeline import (
    bucketed_batches,
    continuous_batches,
    evaluation_batches,
    num_steps,
    num_windows,
    padded_batches,
    slices,
    sorted_slices,
    steps_per_execution,
    training_batches,
)
from kerasdl.errors import UserError

EXAMPLES = np.arange(23), np.arange(23) * 10


def take(count, **options):
    batches = training_batches(EXAMPLES, 5, seed=3, **options)
    return [tuple(part.numpy() for part in batch) for batch in batches.take(count)]


def test_an_epoch_is_a_permutation_and_the_next_another():
    steps = num_steps(23, 5)
    assert steps == 4
    first, second = (np.concatenate([b[0] for b in part]) for part in (take(8)[:4], take(8)[4:]))
    assert len(set(first)) == len(set(second)) == 20
    assert list(first) != sorted(first)
    assert list(first) != list(second)


def test_arrays_stay_aligned():
    assert all((labels == 10 * values).all() for values, labels in take(8))


def test_epochs_do_not_depend_on_where_the_dataset_began():
    whole, resumed = take(12), take(4, initial_epoch=2)
    for a, b in zip(whole[8:], resumed, strict=True):
        np.testing.assert_array_equal(a[0], b[0])


def test_seed_decides():
    other = next(iter(training_batches(EXAMPLES, 5, seed=4)))[0].numpy()
    assert list(other) != list(take(1)[0][0])
    assert list(take(1)[0][0]) == list(take(1)[0][0])


def test_transform_gets_position_epoch_and_a_seed_of_its_own():
    def transform(values, labels, *, index, epoch, seed):
        return values, index, tf.fill([len(values)], epoch), tf.random.stateless_uniform([5], seed)

    batches = take(8, transform=transform)
    assert all((values == index).all() for values, index, _, _ in batches)
    assert [int(epoch[0]) for _, _, epoch, _ in batches] == [0] * 4 + [1] * 4
    assert len({noise.tobytes() for *_, noise in batches}) == 8
    again = take(8, transform=transform)
    assert [n.tobytes() for *_, n in batches] == [n.tobytes() for *_, n in again]


def test_fewer_examples_than_a_batch():
    batches = training_batches((np.arange(3),), 100, seed=0)
    assert num_steps(3, 100) == 1
    assert sorted(next(iter(batches))[0].numpy()) == [0, 1, 2]


def test_steps_of_a_given_number_take_others_each_epoch():
    batches = list(pipeline.training_batches([np.arange(50)], 4, seed=1, steps=5).take(10))
    first, second = (np.concatenate([batch[0] for batch in part]) for part in (batches[:5], batches[5:]))
    assert len(set(first)) == len(set(second)) == 20
    assert set(first) != set(second)
    later = next(iter(pipeline.training_batches([np.arange(50)], 4, initial_epoch=1, seed=1, steps=5)))
    np.testing.assert_array_equal(later[0], batches[5][0])
    assert len(next(iter(pipeline.training_batches([np.arange(50)], 64, seed=1, steps=20)))[0]) == 2
    with pytest.raises(UserError, match="50 examples are fewer than the 51 steps of an epoch"):
        pipeline.training_batches([np.arange(50)], 4, seed=1, steps=51)


def test_datasets_in_turn():
    both = [tf.data.Dataset.from_tensors(np.zeros((size, 2))).repeat() for size in (3, 5)]
    assert [len(batch) for batch in pipeline.in_turn(both).take(5)] == [3, 5, 3, 5, 3]
    assert pipeline.in_turn(both).element_spec.shape == [None, 2]
    assert pipeline.in_turn(both[:1]) is both[0]


@pytest.mark.parametrize("size", [1, 5, 23, 100])
def test_evaluation_and_slices_cover_everything_once_in_order(size):
    seen = np.concatenate([values.numpy() for values, _ in evaluation_batches(EXAMPLES, size)])
    np.testing.assert_array_equal(seen, EXAMPLES[0])
    np.testing.assert_array_equal(np.concatenate([EXAMPLES[0][part] for part in slices(23, size)]), EXAMPLES[0])


# --- bucketed_batches ---

LENGTHS = np.random.default_rng(0).integers(0, 60, 103)
SEQUENCES = [np.full(length, number + 1) for number, length in enumerate(LENGTHS)]


def take_bucketed(count, batch_size=5, seed=3, **options):
    batches = bucketed_batches(SEQUENCES, (np.arange(103), -LENGTHS), batch_size, seed=seed, **options)
    return [tuple(part.numpy() for part in batch) for batch in batches.take(count)]


def test_sequences_are_whole_padded_to_the_longest_and_aligned_with_the_others():
    for tokens, numbers, negative in take_bucketed(20, pool=2):
        assert tokens.dtype == np.int32
        assert tokens.shape == (5, max(1, LENGTHS[numbers].max()))
        assert (negative == -LENGTHS[numbers]).all()
        for row, number in zip(tokens, numbers, strict=True):
            assert row[: LENGTHS[number]].tolist() == SEQUENCES[number].tolist()
            assert not row[LENGTHS[number] :].any()


def test_a_batch_of_empty_sequences_is_one_wide():
    tokens, _ = next(iter(bucketed_batches([np.array([], np.int32)] * 3, (np.arange(3),), 2, seed=0)))
    assert tokens.numpy().tolist() == [[0], [0]]


def test_an_epoch_of_buckets_is_a_permutation_and_the_next_another():
    assert num_steps(103, 5) == 20
    batches = [numbers.tolist() for _, numbers, _ in take_bucketed(40, pool=3)]
    first, second = batches[:20], batches[20:]
    used = [set(itertools.chain(*epoch)) for epoch in (first, second)]
    assert [len(numbers) for numbers in used] == [100, 100]
    assert used[0] != used[1]  # which three are left out changes
    # Other examples meet each time, not only the same batches in another order.
    assert not {frozenset(batch) for batch in first} & {frozenset(batch) for batch in second}


def test_batches_of_a_pool_follow_each_other_in_length_but_not_in_time():
    # One pool is the whole epoch: sorted, the batches' ranges of length do not overlap.
    ranges = [(LENGTHS[numbers].min(), LENGTHS[numbers].max()) for _, numbers, _ in take_bucketed(20, pool=20)]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(sorted(ranges)))
    assert ranges != sorted(ranges)


def test_larger_pools_leave_less_padding():
    padding = [np.mean([(tokens == 0).mean() for tokens, _, _ in take_bucketed(20, pool=pool)]) for pool in (1, 4, 20)]
    assert padding[0] > 1.5 * padding[1]
    assert padding[1] > 1.5 * padding[2]


def test_epochs_of_buckets_do_not_depend_on_where_the_dataset_began_and_the_seed_decides():
    whole, resumed = take_bucketed(60), take_bucketed(20, initial_epoch=2)
    for a, b in zip(whole[40:], resumed, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
    assert [b[1].tolist() for b in take_bucketed(20, seed=4)] != [b[1].tolist() for b in whole[:20]]


def test_fewer_sequences_than_a_batch():
    tokens, numbers, _ = take_bucketed(1, batch_size=500)[0]
    assert tokens.shape == (103, 59)
    assert sorted(numbers) == list(range(103))


def test_batches_of_buckets_have_a_static_size():
    assert bucketed_batches(SEQUENCES, (), 5, seed=0).element_spec[0].shape.as_list() == [5, None]


@pytest.mark.parametrize("size", [1, 5, 103, 500])
def test_sorted_slices_cover_everything_once_in_order_of_length(size):
    parts = list(sorted_slices(LENGTHS, size))
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
    order = np.concatenate(parts)
    assert sorted(order) == list(range(103))
    assert (np.diff(LENGTHS[order]) >= 0).all()


# --- continuous_batches ---

TEXT = np.arange(1000, dtype=np.int64)


def take_windows(count, batch_size=4, window=7, seed=3, **options):
    batches = continuous_batches(TEXT, batch_size, window, seed=seed, **options)
    return [(inputs.numpy(), targets.numpy()) for inputs, targets in batches.take(count)]


def test_each_row_goes_on_where_it_ended_and_targets_are_the_next_symbols():
    steps = num_windows(1000, 4, 7)
    assert steps == 35
    batches = take_windows(2 * steps)
    for inputs, targets in batches:
        assert inputs.dtype == targets.dtype == np.int32
        assert inputs.shape == targets.shape == (4, 7)
        assert (targets == inputs + 1).all()
        assert (np.diff(inputs, axis=1) == 1).all()
    for epoch in (batches[:steps], batches[steps:]):
        for (_, before), (after, _) in itertools.pairwise(epoch):
            assert (after[:, 0] == before[:, -1]).all()
        streams = np.concatenate([inputs for inputs, _ in epoch], axis=1)
        assert len(np.unique(streams)) == 4 * 7 * steps  # no symbol is read twice
    assert batches[steps][0][0, 0] < 7


def test_epochs_begin_at_other_offsets_below_a_window_and_the_seed_decides():
    steps = num_windows(1000, 4, 7)
    starts = [inputs[0, 0] for inputs, _ in take_windows(40 * steps)[::steps]]
    assert set(starts) == set(range(7))
    assert starts != [inputs[0, 0] for inputs, _ in take_windows(40 * steps, seed=4)[::steps]]


def test_windows_do_not_depend_on_where_the_dataset_began():
    steps = num_windows(1000, 4, 7)
    whole, resumed = take_windows(3 * steps + 2), take_windows(steps + 2, initial_epoch=2)
    for a, b in zip(whole[2 * steps :], resumed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nearly_all_of_the_text_is_read_over_the_epochs():
    steps = num_windows(1000, 4, 7)
    seen = {symbol for inputs, _ in take_windows(30 * steps) for symbol in inputs.ravel().tolist()}
    assert len(seen) >= 990


@pytest.mark.parametrize(("batch_size", "window"), [(1, 1), (1, 10), (5, 3), (19, 1), (3, 5)])
def test_the_shortest_text_gives_one_step_at_any_offset_and_a_shorter_one_says_what_it_takes(batch_size, window):
    length = (batch_size + 1) * window
    assert num_windows(length, batch_size, window) == 1
    for inputs, targets in continuous_batches(np.arange(length), batch_size, window, seed=0).take(20):
        assert len(np.unique(inputs)) == batch_size * window
        assert (targets.numpy() == inputs.numpy() + 1).all()
        assert targets.numpy().max() < length
    message = (
        f"has {length - 1} symbols; expected at least {length} for {batch_size} streams with windows of {window} sym"
    )
    with pytest.raises(UserError, match=message):
        num_windows(length - 1, batch_size, window)
    with pytest.raises(UserError, match=message):
        continuous_batches(np.arange(length - 1), batch_size, window, seed=0)


def test_windows_have_a_static_shape():
    spec = continuous_batches(TEXT, 4, 7, seed=0).element_spec
    assert [part.shape.as_list() for part in spec] == [[4, 7], [4, 7]]


@pytest.mark.parametrize(("steps", "expected"), [(450, 10), (468, 9), (7, 7), (1, 1), (11, 1), (22, 2)])
def test_an_epoch_ends_with_its_last_execution(steps, expected):
    assert steps_per_execution(steps) == expected


def test_padded_batches_hold_every_sequence_once_shortest_first():
    sequences = [np.array([5, 6, 7]), np.array([], np.int32), np.array([8]), np.array([9, 9])]
    batches = list(padded_batches(sequences, [np.array([30, 0, 10, 20])], 3))
    assert [rows.tolist() for rows, _ in batches] == [[[0, 0], [8, 0], [9, 9]], [[5, 6, 7]]]
    assert [other.tolist() for _, other in batches] == [[0, 10, 20], [30]]
