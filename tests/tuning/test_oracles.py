"""What Keras Tuner's oracles propose once they are mended; the scores are made up."""

import random
from collections import Counter

import pytest

from apps import cifar10
from tuning import _oracles
from tuning._space import Space, parsed

ALGORITHMS = ("random", "bayesian", "grid", "hyperband")
WIDE = ("learning_rate=1e-3..1e-1:log", "weight_decay=1e-4..1.0:log", "padding=0,2,4", "cutout_size=0,8")


def space_of(*words, **given):
    return Space(parsed(words, cifar10.Config), cifar10.Config(epochs=9, **given))


def oracle_of(algorithm, space, trials=12, seed=0, epochs=9):
    return _oracles.make(algorithm, space, cifar10.OBJECTIVE, trials=trials, epochs=epochs, seed=seed)


def searched(values):
    return tuple(sorted((name, value) for name, value in values.items() if not name.startswith("tuner/")))


def proposals(oracle, score=lambda values: 0.5, most=200):
    """All that an oracle proposes if each trial ends before the next is asked for; a None of `score` is a failure."""
    found = []
    while len(found) < most and (values := oracle.propose()) is not None:
        oracle.end(len(found), "val_accuracy", score(values))
        found.append(values)
    return found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_starting_configuration_comes_first_and_nothing_comes_twice(algorithm):
    space = space_of(*WIDE)
    found = proposals(oracle_of(algorithm, space))
    assert searched(found[0]) == searched(space.start())
    again = [(*searched(values), values.get("tuner/epochs"), values.get("tuner/bracket")) for values in found]
    assert len({*again}) == len(again)
    assert len(found) == 12 or algorithm == "hyperband"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_seed_decides_and_near_seeds_have_nothing_in_common(algorithm):
    """By Keras Tuner, seeds that differ by the number of parameters, four here, share nearly all trials."""
    space = space_of(*WIDE)

    def run(seed):
        found = [searched(values) for values in proposals(oracle_of(algorithm, space, trials=8, seed=seed))]
        return [values for values in found if values != searched(space.start())]

    first = run(0)
    assert run(0) == first
    for seed in (1, 4):
        other = run(seed)
        assert other != first
        assert algorithm == "grid" or {*first}.isdisjoint(other)


def test_the_grid_covers_every_value_of_every_parameter_in_a_few_trials():
    """Keras Tuner's own order varies the last ones alone: ten trials, one learning rate."""
    found = proposals(oracle_of("grid", space_of(*WIDE), trials=40))
    for name, values in (("learning_rate", 8), ("weight_decay", 8), ("padding", 3), ("cutout_size", 2)):
        assert len({one[name] for one in found}) >= values, name


@pytest.mark.parametrize("algorithm", ["random", "bayesian", "grid"])
def test_a_finite_space_is_tried_to_the_last_point_and_ends(algorithm):
    space = space_of("padding=0,2,4", "flip=none,random", "augment=true,false", padding=4, flip="random")
    assert space.size == 12
    found = proposals(oracle_of(algorithm, space, trials=99), score=lambda values: 0.5 + values["padding"] / 100)
    assert len({searched(values) for values in found}) == len(found) == 12


def test_bayesian_search_finds_an_optimum_that_random_search_does_not():
    """Of a smooth score in two parameters, whose best place is at a corner of the space."""

    def score(values):
        return 1 - abs(values["padding"] - 60) / 64 - abs(values["cutout_size"] - 58) / 64

    space = space_of("padding=0..64", "cutout_size=0..64", padding=0, cutout_size=0)
    best = {}
    for algorithm in ("random", "bayesian"):
        found = [proposals(oracle_of(algorithm, space, trials=18, seed=seed), score) for seed in range(2)]
        best[algorithm] = sum(max(map(score, values)) for values in found) / 2
    assert best["bayesian"] > best["random"]
    assert best["bayesian"] > 0.97


def test_bayesian_search_guesses_running_trials_from_those_that_ended():
    """Losses near 100: the guess of a process that has seen none is 1, by which a running trial would look best."""
    space = space_of(*WIDE)
    oracle = oracle_of("bayesian", space, trials=6)
    oracle.objective.direction = "min"
    for number in range(3):
        oracle.propose()
        oracle.end(number, "val_accuracy", 100.0 + number)
    oracle.propose()
    points, scores = oracle._vectorize_trials()
    assert len(points) == len(scores) == 4
    assert scores[-1] > 99


def test_some_trials_that_fail_do_not_stop_a_bayesian_search():
    numbers = random.Random(0)
    found = proposals(
        oracle_of("bayesian", space_of(*WIDE), trials=15), lambda values: None if numbers.random() < 0.4 else 0.5
    )
    assert len(found) == 15


def rounds(found):
    """Trials that succeeded, by epochs."""
    return Counter(values["tuner/epochs"] for values in found)


def test_hyperband_keeps_the_size_of_its_rounds_when_trials_fail():
    whole = rounds(proposals(oracle_of("hyperband", space_of(*WIDE))))
    assert whole == {1: 9, 3: 8, 9: 6}
    numbers = random.Random(1)
    kept = []

    def score(values):
        if numbers.random() < 0.3:
            return None
        kept.append(values)
        return numbers.random()

    failing = proposals(oracle_of("hyperband", space_of(*WIDE)), score)
    assert len(failing) > len(kept)
    assert all(rounds(kept)[epochs] >= count for epochs, count in whole.items())


def test_hyperband_promotes_the_best():
    def score(values):
        return 0.1 + values["padding"] / 100

    found = proposals(oracle_of("hyperband", space_of("padding=0..64", padding=0)), score)
    first = [values["padding"] for values in found if values["tuner/bracket"] == 2 and values["tuner/round"] == 0]
    second = [values["padding"] for values in found if values["tuner/bracket"] == 2 and values["tuner/round"] == 1]
    assert sorted(second) == sorted(first)[-len(second) :]


@pytest.mark.parametrize("words", [["flip=none,random"], ["padding=0,2,4", "flip=none,random"]])
def test_hyperband_goes_through_all_rounds_of_a_space_of_few_points(words):
    space = space_of(*words, padding=4, flip="random")
    found = proposals(oracle_of("hyperband", space))
    assert {values["tuner/epochs"] for values in found} == {1, 3, 9}
    assert len({searched(values) for values in found if values["tuner/epochs"] == 1}) == space.size


def test_hyperband_ends_when_every_trial_fails():
    found = proposals(oracle_of("hyperband", space_of("padding=0,2,4", padding=4)), lambda values: None, most=100)
    assert len(found) < 100
