"""Spaces: the starting configuration is a point, all points are counted, and a command line names any field."""

import dataclasses
import importlib
import random

import pytest

from apps import captioner, chargen, cifar10, dcgan
from kerasdl.errors import UserError
from tuning.__main__ import spaces
from tuning._space import Space, parsed

GIVEN = {
    "captioner": {"dropout": 0.35, "label_smoothing": 0.3, "units": 1, "doubly_stochastic": 2.0},
    "chargen": {"dropout": 0.33, "units": 1, "depth": 5, "window": 77},
    "cifar10": {"label_smoothing": 0.05, "padding": 3, "cutout_size": 5, "weight_decay": 0.0},
    "dcgan": {"beta_1": 0.9, "loss": "hinge", "normalization": "spectral", "minibatch_deviation": True},
    "denoiser": {"batch_size": 100, "width": 24, "depth": 5},
    "sentiment": {"dropout": 0.0, "word_dropout": 0.5, "pooling": "last", "label_smoothing": 0.2, "weight_decay": 9.0},
    "vae": {"batch_size": 100, "latents": 2, "units": 64, "filters": 8},
}


def space_of(application, **given):
    config = importlib.import_module(f"apps.{application}").Config(**given)
    return Space(importlib.import_module(f"tuning.{application}").space, config)


@pytest.mark.parametrize("application", spaces())
@pytest.mark.parametrize("given", [False, True])
def test_the_starting_configuration_is_a_point_of_every_space_whatever_was_given(application, given):
    space = space_of(application, **(GIVEN[application] if given else {}))
    assert space.config_of(space.start()) == space.config
    space.check()
    assert space.size is None
    assert space.lines()[-1].startswith("  start: ")


def test_dcgan_searches_the_loss_of_a_configuration_with_smoothed_labels():
    space = space_of("dcgan", label_smoothing=0.1, loss="minimax")
    assert space.config_of(space.start()) == space.config
    assert space.config_of({**space.start(), "loss": "hinge"}).label_smoothing == 0.0


@pytest.mark.parametrize(
    ("application", "given", "without"),
    [
        ("vae", {}, {"filters"}),
        ("sentiment", {"architecture": "cnn"}, {"pooling"}),
        ("sentiment", {"ngrams": False}, {"ngram_share", "ngram_strength"}),
        ("cifar10", {"augment": False}, {"padding", "cutout_size"}),
        ("captioner", {"attention": "none"}, {"doubly_stochastic", "attention_units"}),
    ],
)
def test_what_a_configuration_does_not_use_is_not_searched(application, given, without):
    usual = {"dataset": "cifar10"} if application == "vae" else {}
    names = {parameter.name for parameter in space_of(application, **given).parameters}
    assert {parameter.name for parameter in space_of(application, **usual).parameters} - names == without


def test_points_are_counted_and_listed_each_once():
    config = chargen.Config()
    space = Space(parsed(["units=64,128", "depth=1..3", "dropout=0.1..0.5:step=0.1"], chargen.Config), config)
    # The starting configuration's own values stand beside those that are named.
    expected = (2 + (config.units not in (64, 128))) * 3 * (5 + (config.dropout not in (0.1, 0.2, 0.3, 0.4, 0.5)))
    points = [tuple(sorted(values.items())) for values in space.points()]
    assert space.size == len(points) == len({*points}) == expected
    assert {values["dropout"] for values in space.points()} >= {0.1, 0.2, 0.3, 0.4, 0.5}


def test_conditional_parameters_count_where_they_act_alone():
    def declare(hp, config):
        optimizer = hp.Choice("optimizer", ["sgd", "adam", "muon"], default=config.optimizer)
        with hp.conditional_scope("optimizer", ["sgd", "muon"]):
            momentum = hp.Choice("momentum", [0.8, 0.9])
        assert (momentum is None) == (optimizer == "adam")
        return dataclasses.replace(config, optimizer=optimizer, padding=hp.Choice("padding", [0, 4], default=4))

    space = Space(declare, cifar10.Config(optimizer="adam", padding=4))
    assert space.size == (2 + 1 + 2) * 2
    assert len({tuple(sorted(values.items())) for values in space.points()}) == 10
    assert all(("momentum" in values) == (values["optimizer"] != "adam") for values in space.points())
    drawn = [space.draw(random.Random(seed)) for seed in range(50)]
    assert all(("momentum" in values) == (values["optimizer"] != "adam") for values in drawn)


def test_any_kind_of_field_can_be_named():
    words = [
        "learning_rate=1e-4..1e-2:log",
        "batch-size=100..500",
        "--flip=none,random",
        "augment=true,false",
        "seed=0,1",
    ]
    space = Space(parsed(words, cifar10.Config), cifar10.Config(learning_rate=0.05))
    space.check()
    kinds = {hp.name: type(hp).__name__ for hp in space.parameters}
    assert kinds == {
        "learning_rate": "Float", "batch_size": "Int", "flip": "Choice", "augment": "Boolean", "seed": "Choice"
    }  # fmt: skip
    rate = space.parameters[0]
    assert (rate.min_value, rate.max_value, rate.sampling) == (1e-4, 0.05, "log")
    assert space.config_of(space.start()) == space.config
    for seed in range(20):
        assert isinstance(space.config_of(space.draw(random.Random(seed))).augment, bool)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("learning_rte=1,2", "learning_rte is no field of this application; did you mean learning_rate"),
        ("learning_rate", "has no values"),
        ("learning_rate=0..1:log", "no logarithm"),
        ("learning_rate=2..1", "not below"),
        ("learning_rate=a,b", "a is no float"),
        ("learning_rate=1e-3,nan", "no finite number"),
        ("batch_size=1.5,2", "1.5 is no int"),
        ("padding=0..5:step=2", "do not end at 5"),
        ("padding=0..4:step=nan", "nan is no step"),
        ("padding=0..4:step=0.5", "0.5 is no step; expected a whole number above 0"),
        ("learning_rate=0.1..4:step=1e-30", "more than 10,000 steps"),
        ("padding=1..8:log", "padding is 0, which has no logarithm; give one: --padding 1"),
        ("validation_ratio=0.1,0.2", "says which data are read"),
        ("precision=auto,float32", "auto stands for one of the others"),
        ("padding=4", "one value"),
        ("flip=1..2", "no number"),
        ("flip=none,rndom", "did you mean random"),
        ("augment=yes,no", "is no value of augment"),
        ("patience=2,3", "no value to start from"),
    ],
)
def test_mistakes_in_what_is_named(word, message):
    with pytest.raises(UserError, match=message) as caught:
        Space(parsed([word], cifar10.Config), cifar10.Config(padding=0)).check()
    assert "\n" not in str(caught.value)


def test_a_value_that_the_configuration_refuses_is_said_before_anything_runs():
    with pytest.raises(UserError, match=r"warmup_epochs=50\.0 cannot be searched: --warmup-epochs is 50"):
        Space(parsed(["warmup_epochs=0,50"], cifar10.Config), cifar10.Config(epochs=5, warmup_epochs=0.0)).check()
    with pytest.raises(UserError, match="cache: only numbers, words and flags"):
        parsed(["cache=a,b"], captioner.Config)
    with pytest.raises(UserError, match="twice"):
        parsed(["padding=0,1", "padding=2,3"], cifar10.Config)
    with pytest.raises(UserError, match="nothing to search"):
        Space(lambda hp, config: config, dcgan.Config()).check()


def test_a_declaration_that_changes_the_start_is_a_mistake():
    def declare(hp, config):
        return dataclasses.replace(config, padding=hp.Choice("padding", [0, 4], default=0))

    with pytest.raises(UserError, match="no point of the space"):
        Space(declare, cifar10.Config(padding=4)).check()


def test_a_logarithmic_range_of_whole_numbers_has_all_of_them_and_a_long_one_is_checked_at_its_ends():
    space = Space(parsed(["batch_size=16..256:log"], cifar10.Config), cifar10.Config(batch_size=100))
    assert space.size == 241
    assert {"batch_size": 100} in list(space.points())
    space = Space(parsed(["seed=0..4000000000"], cifar10.Config), cifar10.Config())
    space.check()
    assert space.size == 4_000_000_001
    with pytest.raises(UserError, match="batch_size=0 cannot be searched"):
        Space(parsed(["batch_size=0..100"], cifar10.Config), cifar10.Config()).check()
