import numpy as np
import pytest
import tensorflow as tf

from kerasdl.data.pipeline import evaluation_batches, num_steps, slices, training_batches

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


@pytest.mark.parametrize("size", [1, 5, 23, 100])
def test_evaluation_and_slices_cover_everything_once_in_order(size):
    seen = np.concatenate([values.numpy() for values, _ in evaluation_batches(EXAMPLES, size)])
    np.testing.assert_array_equal(seen, EXAMPLES[0])
    np.testing.assert_array_equal(np.concatenate([EXAMPLES[0][part] for part in slices(23, size)]), EXAMPLES[0])
