"""`python -m apps`: lists from docstrings alone, parses before it imports, says mistakes in one line."""

import ast
import dataclasses
import errno
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import pytest
import tensorflow as tf
import tyro
from PIL import Image

from apps import __main__ as command
from apps import _data, _run, _settings, _weights, chargen, cifar10
from kerasdl import command_line, files, processor
from kerasdl.errors import UserError
from kerasdl.training import checkpoint, run

ROOT = Path(__file__).parent.parent.parent


def fails(capsys, *words, status=2):
    assert command.main(list(words)) == status
    printed = capsys.readouterr()
    assert len(printed.err.strip().splitlines()) == 1, printed.err
    assert "Traceback" not in printed.err
    return printed.err.strip()


@pytest.fixture
def heard():
    """Ctrl-C as on a terminal: what runs in the background is deaf to it, and so are its child processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("package", ["apps", "tuning"])
def test_interrupted_at_the_start_it_ends_in_one_line(package, number, status, tmp_path):
    (tmp_path / "tyro.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command_words = [sys.executable, "-m", package, "cifar10", "--trials", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command_words, cwd=ROOT, env=environment, text=True, **pipes) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        error = process.communicate()[1]
    assert (process.returncode, error) == (status, "interrupted; nothing was lost: run the command again\n")


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_says_what_can_be_done_next(number, status, monkeypatch, capsys):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(command, "_evaluate", lambda *_: signal.raise_signal(number))
    assert fails(capsys, "vae", "evaluate", "run", status=status) == (
        "interrupted; nothing was lost: run the command again"
    )
    monkeypatch.setattr(_run, "_train", lambda *_, **__: signal.raise_signal(number))
    with tempfile.TemporaryDirectory() as folder:
        error = fails(capsys, "vae", "train", "--tiny", "--runs", folder, status=status)
        (begun,) = Path(folder).glob("vae/*")
    assert error == f"interrupted; go on with: python -m apps vae train --resume {begun}"
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_lists_applications_from_their_docstrings_without_importing_them(tmp_path, monkeypatch, capsys):
    (tmp_path / "vae.py").write_text('"""Draws digits."""\nraise RuntimeError("imported")\n')
    (tmp_path / "_private.py").write_text('"""Not an application."""\n')
    (tmp_path / "dcgan").mkdir()
    (tmp_path / "dcgan" / "__init__.py").write_text('"""Draws pictures.\n\nMore."""\n')
    monkeypatch.setattr(command, "__file__", str(tmp_path / "__main__.py"))
    assert command.applications() == {"dcgan": "Draws pictures.", "vae": "Draws digits."}
    assert command.main([]) == 0
    assert "vae    Draws digits." in capsys.readouterr().out


@pytest.mark.parametrize("application", sorted(command.applications()))
def test_help_comes_before_keras(application):
    code = (
        "import sys; from apps.__main__ import main\n"
        f"try: main(['{application}', 'train', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = [name for name in ('keras.src', 'tensorflow.python', 'numpy._core') if name in sys.modules]\n"
        "print('HEAVY', heavy)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    assert "--batch-size" in done.stdout
    assert time.monotonic() - start < 20


def test_a_user_sees_nothing_of_tensorflow_on_stderr(tmp_path):
    words = ["cifar10", "train", "--tiny", "--architecture", "lenet", "--epochs", "1", "--runs", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "apps", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "next: python -m apps cifar10 evaluate" in done.stdout


def test_mistakes_are_one_line_with_the_nearest_name(capsys, tmp_path):
    assert "did you mean cifar10?" in fails(capsys, "cifar11")
    assert "did you mean train?" in fails(capsys, "cifar10", "trian")
    assert "did you mean --learning-rate?" in fails(capsys, "cifar10", "train", "--learning-rat", "1")
    assert "--epochs is x; expected" in fails(capsys, "cifar10", "train", "--epochs", "x")
    assert "--batch-size is 0" in fails(capsys, "cifar10", "train", "--batch-size", "0")
    assert "Expected one of" in fails(capsys, "cifar10", "train", "--architecture", "fats")
    assert "is not a run folder" in fails(capsys, "cifar10", "evaluate", str(tmp_path))
    assert "no run folder given" in fails(capsys, "cifar10", "evaluate")
    assert "holds no exported model" in fails(capsys, "cifar10", "classify", str(tmp_path), "x.jpg")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not readable JSON"),
        ("[1]", "holds a list"),
        ('{"epoch": 3}', "epoch is no field of this application; did you mean epochs?"),
        ('{"epochs": [1, 2]}', "epochs is a list; expected one value"),
        ('{"augment": "yes"}', "augment is 'yes'; expected true or false"),
        ('{"epochs": "many"}', "--epochs is many; expected"),
        ('{"epochs": 0}', "--epochs is 0"),
    ],
)
def test_unreadable_configurations(content, message, tmp_path, capsys):
    path = tmp_path / "best.json"
    path.write_text(content)
    error = fails(capsys, "cifar10", "train", "--config", str(path))
    assert message in error
    assert str(path) in error


def test_a_configuration_survives_its_file_and_flags_win(tmp_path):
    config = cifar10.Config(architecture="resnet20", epochs=7, augment=False, data=Path("my pictures"), patience=3)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(command.jsonable(config)))
    assert command_line.read_config(path, cifar10.Config) == config
    words = command_line.read_words(path, cifar10.Config)
    assert command_line.parse_config(cifar10.Config, [*words, "--epochs", "9"], "train").epochs == 9


def recorded(tmp_path, **changes):
    config = command.jsonable(cifar10.Config(architecture="lenet", epochs=2))
    return run.create(tmp_path, changes.get("application", "cifar10"), config, {"tiny": True})


def test_resume_refuses_a_changed_configuration_and_another_application(tmp_path, capsys):
    folder = recorded(tmp_path)
    error = fails(capsys, "cifar10", "train", "--resume", str(folder), "--epochs", "5", "--seed", "4")
    assert "epochs, seed would change" in error
    other = recorded(tmp_path, application="vae")
    assert "is a run of vae, not of cifar10" in fails(capsys, "cifar10", "train", "--resume", str(other))


@pytest.mark.parametrize(
    ("application", "settings", "reason"),
    [
        ("cifar10", {"architecture": "lenet", "schedule": "cosine"}, "--schedule cosine is laid out for 2"),
        ("cifar10", {"architecture": "fast", "schedule": "constant"}, "--progressive resize is laid out for 2"),
        ("vae", {"schedule": "constant"}, "--kl-warmup-ratio 0.1 is laid out for 2"),
        ("captioner", {"schedule": "constant"}, "--tune-epochs 2 is laid out for 2"),
    ],
)
def test_a_run_whose_course_is_laid_out_for_its_epochs_goes_on_for_no_more(
    application, settings, reason, tmp_path, capsys
):
    config = importlib.import_module(f"apps.{application}").Config(epochs=2, **settings)
    folder = run.create(tmp_path, application, command.jsonable(config), {"tiny": True})
    error = fails(capsys, application, "train", "--resume", str(folder), "--epochs", "5")
    assert error == (
        f"error: {folder} cannot go on to --epochs 5: {reason}; train anew with --config {folder}/config.json "
        "--epochs 5"
    )
    assert "epochs would change" in fails(capsys, application, "train", "--resume", str(folder), "--epochs", "1")


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path, capsys):
    """The line before says that the machine is another one."""
    folder = recorded(tmp_path)
    content = json.loads((folder / "run.json").read_text())
    content |= {"data": dict(cifar10.tiny()[1].info), "machine": {"processor": "abacus", "threads": 1}}
    (folder / "run.json").write_text(json.dumps(content))
    with files.claim(folder / run.RUNNING):
        assert command.main(["cifar10", "train", "--resume", str(folder), "--patience", "3"]) == 2
    elsewhere, refused = capsys.readouterr().err.splitlines()
    assert f"{folder} began with processor abacus (here " in elsewhere
    assert "will not be equal bit for bit" in elsewhere
    assert refused == f"error: {folder} is being trained by another process; wait for its end, or stop it"


def test_evaluating_before_the_first_epoch_says_so(tmp_path, capsys):
    folder = recorded(tmp_path)
    data = cifar10.tiny()[1]
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(content | {"data": dict(data.info)}))
    assert "no epoch was finished" in fails(capsys, "cifar10", "evaluate", str(folder))


def test_other_data_than_the_run_had_is_refused(tmp_path, capsys):
    folder = recorded(tmp_path)  # its run.json names no classes
    assert "the data is not what" in fails(capsys, "cifar10", "evaluate", str(folder))


@pytest.mark.parametrize("application", sorted(command.applications()))
def test_a_fresh_process_opens_a_run(application, tmp_path):
    """Where flags are parsed before Keras is there, unlike in this process. Two of them go on to their data."""
    config = command.jsonable(importlib.import_module(f"apps.{application}").Config())
    folder = run.create(tmp_path, application, config, {"tiny": True})
    asked = [(["train", "--resume", str(folder), "--seed", "4"], "seed would change")]
    if application in ("captioner", "cifar10"):
        asked.append((["evaluate", str(folder)], "the data is not what"))
    for words, message in asked:
        command_words = [sys.executable, "-m", "apps", application, *words]
        done = subprocess.run(command_words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert message in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cifar10 train --seed -1", "--seed is -1; expected 0 to 4294967295"),
        ("chargen train --seed 4294967296", "--seed is 4294967296; expected 0 to 4294967295"),
        ("cifar10 train --learning-rate inf", "--learning-rate is inf; expected a finite number"),
        ("vae train --warmup-epochs inf", "--warmup-epochs is inf; expected a finite number"),
        ("denoiser train --strength nan", "--strength is nan; expected a finite number"),
        ("captioner train --length-penalty 1e39", "--length-penalty is 1e+39; expected a finite number, of float32"),
        (
            "dcgan generate saved_models/dcgan --output new.png --truncation -inf",
            "--truncation is -inf; expected a fin",
        ),
        ("chargen generate saved_models/chargen --temperature nan", "--temperature is nan; expected a finite number"),
        ("chargen generate saved_models/chargen --top-k 2147483648", "--top-k is 2147483648; expected 0 to 2147483647"),
        ("cifar10 train --color-jitter 1.5", "--color-jitter is 1.5; expected 0 to 1"),
        ("cifar10 train --padding 40", "--padding is 40; expected 0 to 31"),
        ("cifar10 train --padding 28 --progressive crop", "--padding is 28; expected 0 to 27"),
        (f"vae train --units {10**21}", f"--units is {10**21}; expected 1 to 2147483647"),
        (f"vae train --bound-samples {10**21}", f"--bound-samples is {10**21}; expected 100 to 2147483647"),
        (f"sentiment train --max-words {10**400}", "expected 1 to 2147483647"),
        (f"cifar10 train --cutout-size {10**21}", f"--cutout-size is {10**21}; expected 0 to 2147483647"),
        (f"denoiser train --depth {10**21}", f"--depth is {10**21}; expected 2 to 10"),
        ("vae train --epochs 3 --warmup-epochs 3", "--warmup-epochs is 3; expected less than 3"),
        ("denoiser train --epochs 4 --warmup-epochs 2 --schedule step", "--warmup-epochs is 2; expected less than 2"),
        (
            "sentiment train --pretrain-epochs 1 --warmup-epochs 1",
            "in 1 epochs; give less, or more by --pretrain-epochs",
        ),
        ("cifar10 train --architecture backbone --warmup-epochs 4", "give less, or more by --head-epochs"),
        ("cifar10 train --tiny --architecture vgg16 --image-size 31", "--image-size is 31; expected 32 or more"),
        ("cifar10 train --architecture lenet --data x --image-size 15", "--image-size is 15; expected 16 or more"),
        ("cifar10 train --data x --image-size 11", "--image-size is 11; expected 12 or more"),
        ("cifar10 train --architecture lenet --progressive resize", "--progressive is for networks of any size"),
        ("cifar10 export runs/x --version -5", "--version is -5; expected 1 to 9223372036854775807"),
        ("cifar10 export runs/x --version 0", "--version is 0; expected 1"),
        ("cifar10 export runs/x --version 9223372036854775808", "--version is 9223372036854775808; expected 1"),
    ],
)
def test_a_wrong_value_is_one_line_and_nothing_is_written(words, message, tmp_path, monkeypatch, capsys):
    exports = ROOT / "saved_models"
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *words.replace("saved_models", str(exports)).split())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_refusal_before_the_first_epoch_leaves_no_folder(tmp_path, monkeypatch, capsys):
    def refuse(config, model, data, callbacks):
        raise UserError("no text has two words")

    (tmp_path / "short.txt").write_text("To be. " * 20)
    assert command.main(["chargen", "train", "--data", str(tmp_path / "short.txt"), "--runs", str(tmp_path)]) == 2
    assert "take a longer text, a smaller batch or shorter windows" in capsys.readouterr().err
    monkeypatch.setattr(chargen, "train", refuse)
    assert "no text has two words" in fails(capsys, "chargen", "train", "--tiny", "--runs", str(tmp_path))
    assert list(tmp_path.glob("chargen/*")) == []


def test_a_size_that_the_pictures_do_not_have_is_refused():
    with pytest.raises(UserError, match="--image-size is 48; pictures that are not of --data have 32"):
        cifar10.build_model(cifar10.Config(architecture="resnet20", image_size=48), cifar10.tiny()[1])


def test_the_largest_seed_is_one(tmp_path):
    flags = ["--tiny", "--seed", str(2**32 - 1), "--epochs", "1", "--runs", str(tmp_path)]
    for application, small in (("chargen", ["--units", "8"]), ("cifar10", ["--architecture", "lenet"])):
        assert command.main([application, "train", *flags, *small]) == 0


def test_two_runs_in_one_second_get_two_folders(tmp_path):
    assert len({recorded(tmp_path) for _ in range(3)}) == 3


def test_unexpected_failures_have_status_1_and_debug_shows_where(monkeypatch, capsys):
    def explode(arguments):
        raise ZeroDivisionError("a\nb")

    assert command_line.guarded(explode, []) == 1
    assert capsys.readouterr().err.strip() == "failed: a b (ZeroDivisionError; --debug shows where)"
    assert command_line.guarded(explode, ["--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err

    def interrupt(arguments):
        raise KeyboardInterrupt

    assert command_line.guarded(interrupt, []) == 130


def test_commands_in_documents_exist():
    """Every `python -m apps ... --flag` of README and docstrings names fields that are there."""
    fields = {"--" + name.replace("_", "-") for name in cifar10.Config.__dataclass_fields__}
    shared = {"--tiny", "--config", "--resume", "--runs", "--help", "--debug", "--saved-models", "--version"}
    own = {"--format", "--top", "--explain"}
    text = (ROOT / "README.md").read_text() + ast.get_docstring(ast.parse((ROOT / "apps/cifar10.py").read_text()))
    lines = [line for line in text.splitlines() if "python -m apps cifar10" in line]
    assert lines
    for line in lines:
        used = {word.strip("`.,") for word in line.split() if word.startswith("--")}
        negated = {flag.replace("--no-", "--") for flag in used}
        assert negated <= fields | shared | own, line


def test_the_precision_is_chosen_once_and_kept_on_another_machine(tmp_path, monkeypatch, capsys):
    """The other machine has no instructions for bfloat16: `auto` would be float32 there."""
    monkeypatch.setattr(processor, "instructions", lambda: frozenset({"avx512_bf16"}))
    flags = ["--tiny", "--architecture", "lenet", "--epochs", "1", "--runs", str(tmp_path)]
    assert command.main(["cifar10", "train", *flags]) == 0
    assert "precision bfloat16: AVX-512 bf16 computes it" in capsys.readouterr().out
    (folder,) = (tmp_path / "cifar10").iterdir()
    kept = command_line.read_config(folder / run.CONFIG, cifar10.Config)
    monkeypatch.setattr(processor, "instructions", lambda: frozenset({"avx2"}))
    assert _run.with_precision(kept).precision == kept.precision == "bfloat16"
    assert "warning: precision bfloat16, as asked, but the processor (AVX2)" in capsys.readouterr().err
    assert _run.with_precision(cifar10.Config()).precision == "float32"
    assert "precision float32: the processor (AVX2) has no instructions" in capsys.readouterr().out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounded(_settings.Settings):
    """Fields with bounds."""

    units: _settings.AtLeast[int, 2] = 2
    clip_norm: _settings.AtLeast[float | None, 1e-12] = None
    dropout: _settings.Between[float, 0, 0.9] = 0.0
    validation_ratio: float = 0.1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"units": 1}, "--units is 1; expected 2 or more"),
        ({"clip_norm": 0.0}, "--clip-norm is 0.0; expected 1e-12 or more"),
        ({"dropout": 1.0}, "--dropout is 1.0; expected 0 to 0.9"),
        ({"dropout": float("nan")}, "--dropout is nan; expected 0 to 0.9"),
        ({"patience": 1, "validation_ratio": 0}, "--patience needs validation data"),
    ],
)
def test_a_field_says_its_bounds(fields, message):
    with pytest.raises(UserError, match=message):
        Bounded(**fields)


def test_values_within_their_bounds_pass():
    Bounded(units=2, clip_norm=1.0, dropout=0.9, patience=1)
    Bounded(validation_ratio=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resized(_settings.Training, _settings.PictureData, epochs=_settings.RECIPE, seed=7):
    """Own; with a recipe."""

    kind: Literal["small", "large"] = "small"
    """Kind of network."""
    size: _settings.AtLeast[int, 8] = _settings.RECIPE
    """Side in pixels."""

    @staticmethod
    def recipe(kind: str) -> dict[str, int]:
        return {"epochs": {"small": 3, "large": 30}[kind], "size": 16}


def test_defaults_follow_from_other_fields_and_given_values_win():
    assert (Resized().epochs, Resized().size, Resized().seed, Resized().batch_size) == (3, 16, 7, 64)
    assert Resized(kind="large").epochs == 30
    assert Resized(kind="large", epochs=2).epochs == 2
    assert _settings.Settings().seed == 0
    with pytest.raises(UserError, match="--size is 4; expected 8 or more"):
        Resized(size=4)
    with pytest.raises(UserError, match="--schedule plateau needs validation data"):
        Resized(schedule="plateau", validation_ratio=0)


def test_help_shows_real_defaults_under_headings(capsys):
    with pytest.raises(SystemExit):
        command_line.parse_config(Resized, ["--kind", "large", "--help"], "train")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--epochs INT Passes over the training examples. (default: 30)" in shown
    assert "--size INT Side in pixels. (default: 16)" in shown
    for heading in ("training options", "optimizer options", "data options", "own options"):
        assert heading in shown
    assert shown.count("(default: None)") == shown.count("{None}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "many"], "--epochs is many; expected int"),
        (["--learning-rate", "fast"], "--learning-rate is fast; expected float"),
        (["--kind", "huge"], "huge"),
        (["--knid", "large"], "did you mean --kind?"),
    ],
)
def test_mistakes_beside_a_recipe_are_one_line(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        command_line.parse_config(Resized, words, "train")


@pytest.mark.parametrize("application", sorted(command.applications()))
def test_no_default_of_a_field_is_missing(application):
    """None is the default of fields that may be None, and of no other."""
    config = importlib.import_module(f"apps.{application}").Config
    hints = get_type_hints(config)
    filled = config()
    wrong = [name for name, hint in hints.items() if getattr(filled, name) is None and type(None) not in get_args(hint)]
    assert wrong == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch, of a network that trains in a second."""
    config, data = chargen.tiny()
    config = dataclasses.replace(config, epochs=1, units=8, precision="float32")
    data = chargen.splits_of(
        [data.train[:5000], data.validation, data.test()[1]], "characters", "bookkeeping", tiny=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chargen, "tiny", lambda *_: (config, data))
        folder = _run.train(chargen, "chargen", config, data, runs=tmp_path_factory.mktemp("runs"))
        yield folder


DAMAGED = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "text": lambda content: b"hello\n",
    "array": lambda content: b"[]",
    "object": lambda content: b"{}",
    "utf-16": lambda content: '{"epochs": 1}'.encode("utf-16"),
    "latin-1": lambda content: '{"name": "Grün"}'.encode("latin-1"),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", ["config.json", "run.json", "model.keras", "checkpoint.npz"])
def test_a_damaged_file_of_a_run_is_named(name, damage, trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / name).write_bytes(DAMAGED[damage]((folder / name).read_bytes()))
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    verbs = [["train", "--resume"]] if name == "checkpoint.npz" else [["evaluate"], ["export"]]
    verbs += [["train", "--resume"]] if name.endswith("json") else []
    for words in verbs:
        assert str(folder / name) in fails(capsys, "chargen", *words, str(folder))
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


def test_the_data_of_a_resumed_run_is_compared_once(trained, tmp_path, monkeypatch, capsys):
    folder, compared, compare = tmp_path / "run", [], _data.check_data
    shutil.copytree(trained, folder)
    monkeypatch.setattr(_data, "check_data", lambda *given, **more: compared.append(1) or compare(*given, **more))
    assert command.main(["chargen", "train", "--resume", str(folder)]) == 0
    assert "all 1 epochs are done" in capsys.readouterr().out
    content = json.loads((folder / "run.json").read_text())
    content["data"]["fingerprint"] = "another"
    (folder / "run.json").write_text(json.dumps(content))
    assert "trained on: fingerprint changed" in fails(capsys, "chargen", "train", "--resume", str(folder))
    assert len(compared) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": None}, "lacks seed: it is damaged"),
        ({"unitz": 3}, "unitz is no field of this application; did you mean units?"),
        ({"units": 9}, "model.keras cannot be loaded"),
        ({"depth": 2}, "model.keras cannot be loaded"),
        ({"seed": "many"}, "--seed is many; expected"),
        ({"dropout": float("nan")}, "--dropout is nan; expected a finite number"),
    ],
)
def test_a_changed_configuration_of_a_run_is_one_line(changes, message, trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    content = json.loads((folder / "config.json").read_text()) | changes
    content = {name: value for name, value in content.items() if value is not None or name not in changes}
    (folder / "config.json").write_text(json.dumps(content))
    error = fails(capsys, "chargen", "evaluate", str(folder))
    assert message in error
    assert str(folder) in error


def test_a_run_from_before_there_was_a_field_takes_its_default(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    content = json.loads((folder / "config.json").read_text())
    del content["cell"]
    (folder / "config.json").write_text(json.dumps(content))
    assert command.main(["chargen", "evaluate", str(folder)]) == 0
    assert "config.json is from before there was cell: the defaults are taken" in capsys.readouterr().err


def test_weights_of_a_deeper_network_are_not_taken_for_those_of_a_shallow_one(tmp_path):
    """Keras reads the layers that it looks for, and passes over the others."""
    config, data = chargen.tiny()
    config = dataclasses.replace(config, units=8, precision="float32")
    chargen.build_model(dataclasses.replace(config, depth=2), data).save(tmp_path / run.MODEL)
    with pytest.raises(UserError, match="3 of its arrays have no place in the model"):
        _weights.restore(chargen, config, data, tmp_path)


def test_facts_that_a_run_lacks_are_named(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    content = json.loads((folder / "run.json").read_text())
    for name, value in (("data", None), ("data", []), ("versions", None)):
        changed = {key: item for key, item in (content | {name: value}).items() if item is not None}
        (folder / "run.json").write_text(json.dumps(changed))
        for words in (["evaluate"], ["export"], ["train", "--resume"]):
            assert f"run.json has no {name}" in fails(capsys, "chargen", *words, str(folder))


def test_a_file_in_place_of_a_folder_and_a_folder_in_place_of_a_file(trained, tmp_path, monkeypatch, capsys):
    exports = ROOT / "saved_models"
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("folder").mkdir()
    picture = tmp_path / "a.png"
    Image.new("RGB", (16, 16)).save(picture)
    for words, message in (
        ("chargen evaluate file", "file is not a run folder but a file"),
        ("chargen train --resume file", "file is not a run folder but a file"),
        ("chargen export file", "file is not a run folder but a file"),
        ("chargen train --tiny --runs file", "file is no folder; expected one: give another --runs"),
        (f"chargen export {trained} --saved-models file", "file is no folder; expected one: give another --saved-mod"),
        ("chargen train --config folder", "folder is not readable JSON"),
        ("chargen generate file", "file holds no exported model"),
        (
            f"chargen inspect {exports}/chargen --text abc --html folder",
            "folder is a folder; expected a file: give one",
        ),
        (f"chargen inspect {exports}/chargen --text abc --html file", "file exists, and nothing is overwritten"),
        (f"sentiment classify {exports}/sentiment good --html file", "file exists, and nothing is overwritten"),
        (
            f"cifar10 classify {exports}/cifar10 a.png --explain file",
            "file is no folder; expected one: give another --e",
        ),
        (
            f"captioner caption {exports}/captioner a.png --explain file",
            "file is no folder; expected one: give another",
        ),
        (f"denoiser denoise {exports}/denoiser a.png --output file/x", "file is no folder; expected one: give another"),
        (f"vae generate {exports}/vae --output file", "file exists, and nothing is overwritten"),
        (f"vae generate {exports}/vae --output file --files", "file is no folder; expected one: give another --output"),
        (f"vae reconstruct {exports}/vae a.png --output folder", "folder is a folder; expected a file"),
        (f"vae interpolate {exports}/vae a.png a.png --output file/a.png", "file is no folder; expected one"),
        (f"dcgan generate {exports}/dcgan --output file", "file exists, and nothing is overwritten"),
        (f"dcgan interpolate {exports}/dcgan --output file", "file exists, and nothing is overwritten"),
    ):
        assert message in fails(capsys, *words.split()), words
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "folder", "a.png"}
    assert Path("file").read_text() == "mine"


def test_an_export_of_another_application_is_named(tmp_path, capsys):
    exports, output = ROOT / "saved_models", ["--output", str(tmp_path / "new.png")]
    for verb, other, more in (
        (["denoiser", "denoise"], "vae", ["a.png", *output]),
        (["vae", "generate"], "dcgan", output),
        (["vae", "generate"], "chargen", output),
        (["dcgan", "generate"], "vae", output),
        (["chargen", "generate"], "vae", []),
        (["cifar10", "classify"], "sentiment", ["a.png"]),
        (["sentiment", "classify"], "cifar10", ["a text"]),
        (["captioner", "caption"], "cifar10", ["a.png"]),
    ):
        error = fails(capsys, *verb, str(exports / other), *more)
        assert f"is an export of {other}, not of {verb[0]}" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index"])
def test_a_damaged_export_is_named(name, damage, tmp_path, capsys):
    folder = tmp_path / "denoiser" / "1"
    shutil.copytree(ROOT / "saved_models/denoiser/1", folder)
    (folder / name).write_bytes(DAMAGED[damage]((folder / name).read_bytes()))
    error = fails(capsys, "denoiser", "denoise", str(folder.parent), "a.png", "--output", str(tmp_path / "clean"))
    assert f"the export {folder} is damaged" in error
    assert not (tmp_path / "clean").exists()


def test_a_wrong_path_is_one_line_whatever_meets_it(capsys):
    for number in (errno.ENOENT, errno.EACCES, errno.EISDIR):

        def meet(arguments, number=number):
            raise OSError(number, os.strerror(number), "some/file")

        assert command_line.guarded(meet, []) == 2
        assert f"some/file: {os.strerror(number)}" in capsys.readouterr().err


def test_a_full_disk_is_one_line_that_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def meet(arguments):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "some/file")

    assert command_line.guarded(meet, []) == 1
    words = "Disk quota exceeded; free some space, then run the command again"
    assert capsys.readouterr().err == f"failed: {words}\n"

    def meet_in_tensorflow(arguments):
        raise tf.errors.ResourceExhaustedError(None, None, f"saved_model.pb; {os.strerror(errno.ENOSPC)}")

    assert command_line.guarded(meet_in_tensorflow, []) == 1
    words = "No space left on device; free some space, then run the command again"
    assert capsys.readouterr().err == f"failed: {words}\n"

    def full(saver):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.Checkpoint, "_save_state", full)
    assert command.main(["vae", "train", "--tiny", "--epochs", "1", "--runs", str(tmp_path)]) == 1
    [folder] = (tmp_path / "vae").iterdir()
    words = f"No space left on device; free some space, then go on with: python -m apps vae train --resume {folder}"
    assert capsys.readouterr().err == f"failed: {words}\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--nubmer", "3"],
            "Unrecognized options Unrecognized options: --nubmer, 3 Perhaps you meant: --number INT How many. "
            "(default: 1) For full helptext, run program --help",
        ),
        (
            ["--number", "x"],
            "Value error Error parsing --number: invalid literal for int() with base 10: 'x' Argument helptext: "
            "--number INT How many. (default: 1) For full helptext, see program --help",
        ),
    ],
)
def test_the_box_of_tyro_1_0_17_that_errors_are_read_from(words, text, capsys):
    """Another version may draw it otherwise: then see `kerasdl.command_line`, and name that version here."""
    assert importlib.metadata.version("tyro") == "1.0.17"

    @dataclasses.dataclass
    class Example:
        number: int = 1
        """How many."""

    with pytest.raises(SystemExit):
        tyro.cli(Example, args=words, prog="program")
    assert " ".join(re.sub("[╭╮╰╯─│|+]|-{3,}", " ", capsys.readouterr().err).split()) == text
