"""Data in every application: known again, kept in its parts, a person's own refused where it is too little."""

import ast
import csv
import dataclasses
import importlib
import inspect
import json

import numpy as np
import pytest
from PIL import Image

from apps import __main__ as command
from apps import _data, _settings, captioner, chargen, cifar10, denoiser, sentiment, vae
from apps._contract import Splits
from kerasdl.data import image_data
from kerasdl.errors import UserError
from kerasdl.models.caption_examples import Examples
from kerasdl.training import run

APPLICATIONS = sorted(command.applications())
PICTURES = ("captioner", "cifar10", "dcgan", "denoiser", "vae")
FIELDS = {
    "captioner": {"encoder": "cnn", "image_size": 16, "min_count": 1},
    "chargen": {"batch_size": 4, "window": 8},
    "cifar10": {"image_size": 16},
    "dcgan": {"image_size": 16, "validation_ratio": 0.2},
    "denoiser": {"patch_size": 16, "patches": 2},
    "sentiment": {},
    "vae": {"image_size": 16},
}


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_rows(path, rows):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def make(application, root, numbers):
    """Own data with an example for each number; gives the value of --data."""
    root.mkdir(parents=True, exist_ok=True)
    if application == "chargen":
        (root / "play.txt").write_text("".join(f"line {number} of a play\n" for number in numbers))
        return root / "play.txt"
    if application == "sentiment":
        half = [(f"text number {number}", "ab"[number % 2]) for number in numbers]
        write_rows(root / "own.csv", [("text", "label"), *half])
        return root / "own.csv"
    if application == "captioner":
        for number in numbers:
            picture(root / "images" / f"{number}.png", number)
        rows = [(f"{number}.png", f"picture number {number}") for number in numbers]
        write_rows(root / "captions.csv", [("image", "caption"), *rows])
        return root / "captions.csv"
    for number in numbers:
        picture(root / "photos" / f"kind {number % 2}" / f"{number}.png", number)
    return root / "photos"


def opened(application, config, recorded, folder):
    return _data.open_data(importlib.import_module(f"apps.{application}"), config, recorded, folder)


@pytest.fixture(params=APPLICATIONS)
def own(request, tmp_path):
    """Application, configuration, data and the folder of a run that begins on 100 own examples."""
    module = importlib.import_module(f"apps.{request.param}")
    data = make(request.param, tmp_path / "A", range(100))
    config = module.Config(data=data, **FIELDS[request.param])
    splits = module.load_data(config)
    folder = run.create(tmp_path / "runs", request.param, command.jsonable(config), dict(splits.info))
    return request.param, config, splits, folder


def test_data_that_moved_is_known_again_and_exchanged_data_refused(own, tmp_path):
    """P8, P9."""
    application, config, _, folder = own
    recorded = run.read(folder, application)[1]
    opened(application, config, recorded, folder)
    (tmp_path / "A").rename(tmp_path / "B")
    with pytest.raises(UserError, match=r"there is no .*A.*; give its new place by --data, or restore it"):
        opened(application, config, recorded, folder)
    place = tmp_path / "B" / config.data.relative_to(tmp_path / "A")
    moved = dataclasses.replace(config, data=place)
    opened(application, moved, recorded, folder)
    make(application, tmp_path / "B", range(100, 200))
    with pytest.raises(UserError, match=r"the data is not what .* was trained on: .*fingerprint.* changed"):
        opened(application, moved, recorded, folder)


def test_folds_validate_by_each_example_once_and_leave_the_test_as_it_is(own):
    """n-fold cross-validation of the lectures."""
    application, config, _, _ = own
    module = importlib.import_module(f"apps.{application}")
    if application == "denoiser":  # one whole picture each, so that a square tells its picture
        config = dataclasses.replace(config, patch_size=20, patches=1)
    folds = [module.load_data(dataclasses.replace(config, fold=f"{number}/3")) for number in (1, 2, 3)]
    assert len({fold.info["fingerprint"] for fold in folds}) == 3
    one, *others = ([fold.train, fold.validation] for fold in folds)
    assert {sum(len(_keys(part)) for part in parts) for parts in others} == {sum(len(_keys(part)) for part in one)}
    validation = [_keys(fold.validation) for fold in folds]
    assert max(map(len, validation)) < 1.5 * min(map(len, validation))
    if application == "chargen":
        assert "".join(validation) == folds[0].validation + folds[0].train
        assert {fold.test()[1] for fold in folds} == {folds[0].test()[1]}
        return
    assert not set.intersection(*map(set, validation))
    assert all(not {*_keys(fold.train)} & {*_keys(fold.validation)} for fold in folds)
    assert sorted(key for keys in validation for key in keys) == sorted([*_keys(one[0]), *_keys(one[1])])
    assert len({tuple(_keys(fold.test())) for fold in folds}) == 1


def _keys(examples):
    """What tells each example from others."""
    if isinstance(examples, str):
        return examples
    if isinstance(examples, Examples):
        return [str(path) for path in examples.pictures]
    if isinstance(examples, list):  # of a size each
        return [key for part in examples for key in _keys(part)]
    texts = getattr(examples, "texts", None)
    return texts if texts is not None else [image.tobytes() for image in getattr(examples, "images", examples)]


@pytest.mark.parametrize("application", APPLICATIONS)
def test_what_is_no_fold_is_refused(application, capsys):
    assert command.main([application, "train", "--fold", "6/5"]) == 2
    assert "--fold is 6/5; expected one of two parts or more, such as 1/2" in capsys.readouterr().err
    assert command.main([application, "train", "--tiny", "--fold", "1/5"]) == 2
    assert "--tiny has data of its own, on which --fold would not act" in capsys.readouterr().err


def test_the_command_line_takes_the_new_place(own, tmp_path, capsys):
    application, config, _, folder = own
    (tmp_path / "A").rename(tmp_path / "B")
    place = tmp_path / "B" / config.data.relative_to(tmp_path / "A")
    for verb in ("evaluate", "export"):
        assert command.main([application, verb, str(folder)]) == 2
        assert "give its new place by --data" in capsys.readouterr().err
        assert command.main([application, verb, str(folder), "--data", str(place)]) == 2
        assert "no epoch was finished" in capsys.readouterr().err  # the data was accepted


def test_a_run_from_before_fingerprints_is_refused_on_own_data_alone(own, capsys):
    application, config, splits, folder = own
    recorded = {"data": {key: value for key, value in splits.info.items() if key != "fingerprint"}}
    recorded["data"]["no_longer_written"] = "as it was"
    if any(name.startswith("training_") for name in splits.info):  # a checksum of what it learned from
        opened(application, config, recorded, folder)
        assert "fingerprint" not in capsys.readouterr().err
    else:
        with pytest.raises(UserError, match="has no fingerprint of the data; own data is divided in another way"):
            opened(application, config, recorded, folder)
        _data.check_data(recorded, splits, folder)
        assert "so that it cannot be checked" in capsys.readouterr().err
    with pytest.raises(UserError, match="changed"):
        _data.check_data({"data": {**recorded["data"], **dict.fromkeys(splits.info)}}, splits, folder)


def contents(part):
    if isinstance(part, Examples):
        return {" ".join(said) for several in part.captions for said in several}
    if hasattr(part, "texts"):
        return {*part.texts}
    sizes = part if isinstance(part, list) else [getattr(part, "images", part)]
    return {image.tobytes() for images in sizes for image in images}


def test_what_is_added_moves_nothing_between_training_and_test(own, tmp_path):
    """P10."""
    application, config, before, _ = own
    if application == "chargen":
        return  # a text is cut in its order; the fingerprint refuses a longer one
    make(application, tmp_path / "A", range(130))
    after = importlib.import_module(f"apps.{application}").load_data(config)
    old = [contents(part) for part in (before.train, before.validation, before.test())]
    new = [contents(part) for part in (after.train, after.validation, after.test())]
    assert all(old)
    for kept, found in zip(old, new, strict=True):
        assert kept <= found
    assert not new[0] & new[1] | new[1] & new[2] | new[0] & new[2]


@pytest.mark.parametrize("application", APPLICATIONS)
def test_too_little_data_is_refused_before_anything_is_trained(application, tmp_path, capsys):
    data = make(application, tmp_path / "A", [0, 1, 2, 3] if application in ("cifar10", "sentiment") else [0, 1])
    if application == "chargen":
        data.write_text("ten chars.")
    assert command.main([application, "train", "--data", str(data), "--runs", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "too few" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.real
@pytest.mark.parametrize(
    ("application", "fields", "fingerprint"),
    [
        ("captioner", {}, "b2cec92581c5cc66"),
        ("chargen", {}, "5314d60799224751"),
        ("cifar10", {}, "f6a4ff305c8ee61c"),
        ("dcgan", {"dataset": "mnist"}, "23e7c55f0e07d6a9"),
        ("denoiser", {}, "734b3c481bb1c423"),
        ("sentiment", {}, "041688f2e97cf170"),
        ("vae", {}, "6268a57015b85266"),
    ],
)
def test_the_parts_of_public_data_stay_as_exports_know_them(application, fields, fingerprint, data_dir):
    """They equal those from before there were fingerprints, by a comparison at that time."""
    module = importlib.import_module(f"apps.{application}")
    assert module.load_data(module.Config(data_dir=data_dir, **fields)).info["fingerprint"] == fingerprint


# --- Batches ---------------------------------------------------------------------------------------------------------


def pictures(count):
    part = image_data.Images(np.zeros((count, 2, 2, 3), np.uint8), np.zeros(count, np.int32))
    return Splits(part, None, lambda: part, {}, "")


@pytest.mark.parametrize(("count", "fitting"), [(45_000, 2000), (20_000, 2000), (600, 60), (12, 8), (5, 5)])
def test_a_default_batch_size_fits_the_data(count, fitting, capsys):
    """600 flowers in the default batch of 2,000 made one step an epoch, and 12 points less accuracy."""
    config = _data.fitting_batch_size(cifar10, cifar10.Config(), pictures(count))
    assert config.batch_size == fitting
    assert (f"batch size {fitting}, not 2,000" in capsys.readouterr().out) == (fitting < 2000)


@pytest.mark.parametrize(
    ("count", "batch_size", "said"),
    [
        (600, 2000, "600 training examples make 1 of --batch-size 2000; --batch-size 60 would give more"),
        (40, 8, "40 training examples make 5 of --batch-size 8; --batch-size 4 would give more"),
        (4, 1, "4 training examples make 4 of --batch-size 1; more examples would give more"),
        (600, 60, ""),
    ],
)
def test_few_steps_are_said(count, batch_size, said, capsys):
    _data.say_few_steps(cifar10, cifar10.Config(batch_size=batch_size), pictures(count))
    assert capsys.readouterr().err == (f"few steps an epoch: {said}\n" if said else "")


def test_texts_and_captions_are_counted_as_steps_take_them():
    data = chargen.tiny()[1]
    config = chargen.Config(window=100, batch_size=1000)
    assert chargen.num_examples(config, data) == 499
    assert _data.fitting_batch_size(chargen, config, data).batch_size == 49
    config, data = captioner.tiny()
    assert captioner.num_examples(config, data) == 3200
    assert captioner.num_examples(dataclasses.replace(config, flip=True), data) == 6400


# --- --tiny ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("application", APPLICATIONS)
def test_every_field_that_chooses_data_is_refused_with_tiny(application, tmp_path, capsys):
    module = importlib.import_module(f"apps.{application}")
    fields = {field.name for field in dataclasses.fields(module.Config)}
    source = ast.parse(inspect.getsource(module.load_data))
    read = {node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute) and node.attr in fields}
    # What tiny data follows, what acts on the model, and where pictures of TFDS are written to.
    assert read - {*_settings.OF_DATA} <= {"alphabet", "conditional", "cache"}
    for name in sorted(fields & {*_settings.OF_DATA} - {"dataset", "strict"}):
        value = "0.2" if "ratio" in name else {"quoting": "none", "fold": "1/2"}.get(name, "64")
        words = [application, "train", "--tiny", f"--{name.replace('_', '-')}", value, "--runs", str(tmp_path)]
        words += ["--teacher", "any", "--data", "any"] if name == "unlabeled" else []
        words += ["--data", "any"] if (application, name) == ("dcgan", "image_size") else []
        assert command.main(words) == 2
        error = capsys.readouterr().err
        assert "--tiny has data of its own, on which --" in error
        assert error.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_a_flag_brings_its_recipe_to_tiny():
    usual = cifar10.tiny()[0]
    followed = command.followed_fields(cifar10.Config, usual, ["--tiny", "--architecture", "lenet"])
    assert {"learning_rate", "optimizer", "schedule", "flip"} <= followed
    assert not {"epochs", "batch_size", "progressive", "seed"} & followed
    assert command.followed_fields(cifar10.Config, usual, ["--tiny", "--seed", "3"]) == set()
    assert command.followed_fields(denoiser.Config, denoiser.tiny()[0], ["--noise=masking"]) >= {"strength"}
    assert command.followed_fields(vae.Config, vae.tiny()[0], ["--seed", "1"]) == set()


def test_what_stands_in_a_file_alone_is_not_taken_for_a_flag(tmp_path, capsys):
    file = tmp_path / "best.json"
    file.write_text(json.dumps({"validation_ratio": 0.2, "image_size": 64}))
    words = ["cifar10", "train", "--config", str(file), "--tiny", "--runs", str(tmp_path / "runs")]
    for more, size in (([], f"image_size of {file}"), (["--image_size=64"], "--image-size")):
        assert command.main([*words, *more]) == 2
        idle = f"validation_ratio of {file}, {size} would not act; leave one or the other out"
        assert capsys.readouterr().err == f"error: --tiny has data of its own, on which {idle}\n"


def test_tiny_data_follows_the_other_flags():
    def info(module, **changes):
        return _data.tiny_data(module, dataclasses.replace(module.tiny()[0], **changes)).info

    assert info(sentiment, max_words=3, vocabulary_size=5)["max_words"] == 3
    assert len(info(sentiment, vocabulary_size=5)["words"]) == 5
    assert info(chargen, alphabet="bytes")["characters"] is None
    assert info(captioner, max_words=4, beam_width=2) == {
        **captioner.tiny()[1].info,
        "max_words": 4,
        "beam": [2, captioner.Config().length_penalty],
    }
    for application in APPLICATIONS:
        module = importlib.import_module(f"apps.{application}")
        config, data = module.tiny()
        assert json.loads(json.dumps(data.info)) == json.loads(json.dumps(_data.tiny_data(module, config).info))
        assert module.tiny(dataclasses.replace(config, seed=5))[0].seed == 5
