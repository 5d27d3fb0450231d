"""Searches whose trials are trained by worker processes: what a crash costs, what a limit does, what is handed back."""

import csv
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from apps import cifar10
from apps.__main__ import main as apps_main
from kerasdl.files import write_json
from kerasdl.training import checkpoint
from tuning import _local, _worker
from tuning.__main__ import main, seconds_of, spaces
from tuning._trial import Limits, Trials
from tuning._worker import Task

SMALL = ["--tiny", "--architecture", "lenet", "--precision", "float32", "--batch-size", "250"]


def run_to_the_end(engine, seconds=120):
    """All events of what runs; every epoch is told to go on."""
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        for event in engine.wait(1.0):
            found.append(event)
            if event.kind == "epoch":
                engine.answer(event.number, True)
            else:
                return found
    raise AssertionError("no end")


def config(**fields):
    usual = {"architecture": "lenet", "precision": "float32", "epochs": 3, "batch_size": 250}
    return dataclasses.asdict(cifar10.Config(**{**usual, **fields}))


@pytest.fixture(scope="module")
def engine():
    """A worker that stays warm for all tests."""
    engine = _local.Local(Task("cifar10", True, {}), 1)
    yield engine
    engine.close()


def trained(engine, number, folder, **fields):
    write_json(folder / "config.json", config(**fields))
    engine.start(number, folder)
    return run_to_the_end(engine)


def test_a_trial_whose_worker_is_killed_goes_on_from_its_last_epoch_bit_for_bit(engine, tmp_path):
    events = trained(engine, 0, tmp_path / "whole")
    assert [event.kind for event in events] == ["epoch"] * 3 + ["ended"]
    assert events[-1].content["status"] == "finished"
    assert events[-1].content["score"] == max(event.content["val_accuracy"] for event in events[:-1])

    write_json(tmp_path / "killed" / "config.json", config())
    engine.start(1, tmp_path / "killed")
    while not any(event.kind == "epoch" for event in engine.wait(1.0)):
        pass
    process = engine.processes[0].process
    os.kill(process.pid, signal.SIGKILL)
    [death] = engine.wait(30)
    assert (death.number, death.kind, death.content["kind"]) == (1, "died", "killed")
    assert death.content["reason"].startswith("the worker was ended by signal 9")
    assert engine.free == 1

    engine.start(1, tmp_path / "killed")  # in a process of its own
    events = run_to_the_end(engine)
    assert [event.kind for event in events] == ["epoch"] * 2 + ["ended"]
    with np.load(tmp_path / "killed/checkpoint.npz") as file:
        seconds = [row["seconds"] for row in json.loads(str(file["state"]))["history"]]
    ended = events[-1].content
    assert ended["seconds"] > ended["fit_seconds"] >= sum(seconds) > 0  # also of the epoch before the kill
    assert "earlier_seconds" not in ended
    with np.load(tmp_path / "whole/checkpoint.npz") as one, np.load(tmp_path / "killed/checkpoint.npz") as other:
        for name in set(one.files) - {"state"}:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_worker_that_is_killed_while_it_waits_costs_no_trial(engine, tmp_path):
    trained(engine, 20, tmp_path / "one", epochs=1)
    os.kill(engine.processes[0].process.pid, signal.SIGKILL)
    engine.processes[0].process.join()
    assert [event.kind for event in trained(engine, 21, tmp_path / "other", epochs=1)] == ["epoch", "ended"]


def test_a_worker_that_is_killed_before_it_hears_the_answer_is_lost(engine, tmp_path):
    write_json(tmp_path / "config.json", config())
    engine.start(22, tmp_path)
    while not any(event.kind == "epoch" for event in engine.wait(1.0)):
        pass
    os.kill(engine.processes[0].process.pid, signal.SIGKILL)
    engine.processes[0].process.join()
    engine.answer(22, True)
    assert [event.kind for event in engine.wait(30)] == ["died"]


@pytest.mark.parametrize(
    ("fields", "kind", "reason"),
    [
        ({"learning_rate": 1e30, "optimizer": "sgd", "schedule": "constant"}, "diverged", "the loss became"),
        ({"crop": "no such field"}, "refused", "crop is no field"),
    ],
)
def test_a_trial_that_fails_says_why_and_its_worker_stays(engine, tmp_path, fields, kind, reason):
    write_json(tmp_path / "config.json", {**config(), **fields})
    engine.start(7, tmp_path)
    before = engine.processes[0]
    end = run_to_the_end(engine)[-1]
    assert (end.content["status"], end.content["kind"]) == ("failed", kind)
    assert reason in end.content["reason"]
    assert "\n" not in end.content["reason"]
    assert "Traceback" in (tmp_path / "traceback.txt").read_text()
    assert engine.processes[0] is before


def test_a_search_ends_a_trial_early(engine, tmp_path):
    write_json(tmp_path / "config.json", config(epochs=30))
    engine.start(8, tmp_path)
    while not any(event.kind == "epoch" for event in engine.wait(1.0)):
        pass
    engine.answer(8, False)
    end = run_to_the_end(engine)[-1]
    assert end.content["status"] == "pruned"
    assert end.content["best_epoch"] == 1


def test_what_a_training_prints_stands_in_the_trials_folder(engine, tmp_path, capfd):
    trained(engine, 9, tmp_path, epochs=1)
    assert "val_accuracy" in (tmp_path / "output.txt").read_text()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"parameters": 100}, "parameters 61,836 is more than 100"),
        ({"latency_ms": 1e-3}, "latency_ms"),
        ({"export_mib": 1e-3}, "export_mib"),
    ],
)
def test_a_model_that_costs_too_much_is_not_trained(limits, reason, tmp_path):
    write_json(tmp_path / "config.json", config(epochs=1))
    epochs = []
    end = Trials.of(Task("cifar10", True, limits)).run(tmp_path, epochs.append)
    assert (end["status"], end["kind"]) == ("failed", "limit")
    assert reason in end["reason"]
    assert epochs == []


def test_a_trial_that_meets_a_full_disk_is_not_at_fault_and_goes_on_when_there_is_room(tmp_path, monkeypatch):
    trials, save = Trials.of(Task("cifar10", True, {})), checkpoint.Checkpoint._save_state
    write_json(tmp_path / "config.json", config())

    def full(saver):
        if saver.initial_epoch == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(saver)

    rows = []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "_save_state", full)
        found = _worker.run_trial(trials, tmp_path, lambda row: not rows.append(row), evaluate=False)
    assert found == {"status": "failed", "kind": _worker.FULL, "reason": "No space left on device"}
    assert not (tmp_path / "traceback.txt").exists()
    found = _worker.run_trial(trials, tmp_path, lambda row: not rows.append(row), evaluate=False)
    assert found["status"] == "finished"
    assert [row["epoch"] for row in rows] == [1, 2, 3]


def test_a_trial_that_takes_too_much_memory_is_ended(tmp_path):
    engine = _local.Local(Task("cifar10", True, {}), 1, memory_mib=200)
    try:
        end = trained(engine, 0, tmp_path, epochs=1)[-1].content
        assert (end["status"], end["kind"]) == ("failed", "memory")
        assert "more than 200" in end["reason"]
    finally:
        engine.close()


def test_workers_share_out_the_cores_and_end_with_the_search(tmp_path):
    engine = _local.Local(Task("cifar10", True, {}), 2)
    for number in (0, 1):
        write_json(tmp_path / str(number) / "config.json", config(epochs=50))
        engine.start(number, tmp_path / str(number))
    pids = [process.process.pid for process in engine.processes]
    cores = sorted(os.sched_getaffinity(0))
    heard = set()
    while len(heard) < 2:
        for event in engine.wait(1.0):
            assert event.kind == "epoch", event
            heard.add(event.number)
            engine.answer(event.number, True)
    shares = [os.sched_getaffinity(pid) for pid in pids]
    assert sorted(core for share in shares for core in share) == cores
    engine.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_search_that_is_killed_leaves_no_worker_and_goes_on_by_the_same_command(tmp_path):
    """The whole search by SIGKILL, in its second trial; afterwards all is as if it had not been."""
    words = [sys.executable, "-m", "tuning", "cifar10", *SMALL, "--epochs", "4", "--trials", "2", "--prune", "none"]
    whole = subprocess.run([*words, "--folder", tmp_path / "whole"], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "killed"
    process = subprocess.Popen([*words, "--folder", folder], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (folder / "trials/0001/log.csv").exists() and time.monotonic() < until:
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    again = subprocess.run([*words, "--folder", folder], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "going on after 1 trials, 1 of them interrupted" in again.stdout

    def rows(folder):
        with (folder / "trials.csv").open() as stream:
            return [
                {name: value for name, value in row.items() if "seconds" not in name and name != "memory_mib"}
                for row in csv.DictReader(stream)
            ]

    assert rows(folder) == rows(tmp_path / "whole")
    assert (folder / "best.json").read_text() == (tmp_path / "whole/best.json").read_text()


def test_the_command_line_searches_compares_and_hands_back_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    searched = ["--learning-rate", "1e-6", "--set", "learning_rate=2e-2,3e-2", "padding=0,1", "head_epochs=3,4"]
    words = ["cifar10", *SMALL, "--epochs", "2", "--trials", "3", *searched, "--algorithm", "bayesian"]
    assert main([*words, "--retrain", "2"]) == 0
    printed = capsys.readouterr().out
    assert "the first 2 trials are random" in printed
    assert "  learning_rate  1e-06, 0.02, 0.03" in printed
    assert "start: learning_rate 1e-06, padding " in printed
    assert printed.count("so far head_epochs changed nothing: no trial has looked at it") == 1  # of a backbone
    assert "no trial has looked at head_epochs: leave it out of what is searched" in printed
    [folder] = (tmp_path / "runs/tuning/cifar10").iterdir()
    assert f"train --config runs/tuning/cifar10/{folder.name}/best.json" in printed
    assert {"report.html", "trials.csv", "best.json", "tensorboard"} <= {path.name for path in folder.iterdir()}
    comparison = printed.split("95% interval\n")[1].splitlines()
    assert comparison[0].split()[0] == "val_accuracy"
    assert comparison[0].endswith("(validation)")
    assert any(line.startswith("accuracy ") and line.endswith("(test)") for line in comparison)
    with (folder / "trials.csv").open() as stream:
        best = next(csv.DictReader(stream))
    assert float(best["learning_rate"]) > 1e-6
    run = folder / "trials" / f"{int(best['trial']):04d}"
    assert apps_main(["cifar10", "evaluate", str(run)]) == 0
    assert apps_main(["cifar10", "train", "--tiny", "--config", str(folder / "best.json"), "--epochs", "1"]) == 0
    assert json.loads((folder / "best.json").read_text())["epochs"] == 2


def test_two_searches_in_one_folder_are_refused(tmp_path, capsys):
    from kerasdl.files import claim

    with claim(tmp_path / ".running"):
        assert main(["cifar10", *SMALL, "--folder", str(tmp_path)]) == 2
    assert "is being searched by another process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trials", "0"], "--trials is 0"),
        (["--budget", "soon"], "--budget is soon; expected a time such as 90s"),
        (["--budget", "0h0s"], "--budget is 0h0s; expected more than no time"),
        (["--budget=-1m"], "--budget is -1m; expected a time"),
        (["--set", "padding=0,1", "--set", "flip=none,random"], "--set stands twice"),
        (["--retrain", "1"], "--retrain is 1"),
        (["--devices", "2"], "--devices is 2; a trial is trained on one"),
        (["--set", "paddng=0,1"], "did you mean padding"),
        (["--workers", "1000"], "--workers is 1000; this machine has"),
        (["--algorithm", "anneal"], "anneal"),
        (["--validation-ratio", "0"], "on which --validation-ratio would not act"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, capsys):
    assert main(["cifar10", *SMALL, "--folder", str(tmp_path / "search"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_data_that_cannot_be_read_are_one_line(tmp_path):
    def facts(config, batch_size_given):
        raise OSError(5, "Input/output\nerror")

    write_json(tmp_path / "start.json", config())
    trials = SimpleNamespace(module=cifar10, facts=facts)
    kind, words = _worker.facts_or_refusal(trials, tmp_path / "start.json", batch_size_given=True)
    assert (kind, words) == ("refused", "the data cannot be read: [Errno 5] Input/output error (OSError)")


@pytest.mark.parametrize("words", [["--workers", "1000"], ["--set", "padding=0,-1"]])
def test_a_search_that_did_not_begin_leaves_no_folder(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    assert main(["cifar10", *SMALL, *words]) == 2
    assert not any(tmp_path.glob("runs/tuning/cifar10/*"))
    (tmp_path / "own").mkdir()
    assert main(["cifar10", *SMALL, *words, "--folder", "own"]) == 2
    assert [path.name for path in tmp_path.glob("own/[!.]*")] == []


def test_a_search_that_is_interrupted_before_it_began_leaves_no_folder(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_local.Local, "facts", interrupted)
    assert main(["cifar10", *SMALL]) == 130
    assert "run the command again" in capsys.readouterr().err
    assert not any(tmp_path.glob("runs/tuning/cifar10/*"))


def test_times_are_read():
    assert [seconds_of(text) for text in ("90s", "30m", "2h", "1h30m", "0.5h")] == [90, 1800, 7200, 5400, 1800]
    assert "cifar10" in spaces()


@pytest.mark.parametrize(
    ("visible", "cards"),
    [(None, ["0", "1", "0"]), ("2,5", ["2", "5", "2"]), ("GPU-a, GPU-b", ["GPU-a", "GPU-b", "GPU-a"])],
)
def test_workers_share_out_the_graphics_cards_that_are_visible(visible, cards, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = [_local._environment(index, 3, 2, 6) for index in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == cards


@pytest.mark.parametrize("tiny", [False, True])
def test_data_are_read_again_where_a_field_differs_that_they_depend_on(tiny):
    trials = Trials("cifar10", tiny=tiny, limits=Limits())
    trials.module = SimpleNamespace(
        load_data=lambda config: [config.padding],
        tiny=lambda config=None: (cifar10.Config(), [(config or cifar10.Config()).padding]),
    )
    first = trials.data(cifar10.Config(padding=1))
    assert trials.data(cifar10.Config(padding=1, learning_rate=0.5)) is first
    assert (first, trials.data(cifar10.Config(padding=3))) == ([1], [3])
