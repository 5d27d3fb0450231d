"""Searches over simulated trials: what is remembered, what a kill costs, where they end, what they write."""

import csv
import dataclasses
import errno
import json
import random

import pytest
from simulated import Silent, Simulated

from apps import captioner, cifar10
from kerasdl.errors import UserError
from kerasdl.files import is_full
from tuning import __main__ as command
from tuning import _again, _report, _search, _worker
from tuning._journal import Journal, Trial, changed
from tuning._space import Space, parsed

WORDS = ("learning_rate=1e-3..1e-1:log", "padding=0..8", "flip=none,random")
CONFIG = cifar10.Config(epochs=9, padding=2, flip="random", learning_rate=0.01)


def score(config, epoch):
    """Best at a learning rate of 0.03 and a padding of 6, better with every epoch."""
    distance = abs(config["learning_rate"] - 0.03) + abs(config["padding"] - 6) / 50
    return round(1 - distance - 0.3 / epoch - 0.01 * (config["flip"] == "none"), 6)


def search(folder, engine=None, *, algorithm="random", trials=10, rule="none", words=WORDS, config=CONFIG, **budget):
    return _search.Search(
        folder,
        {"application": "cifar10", "algorithm": algorithm, "set": list(words)},
        Space(parsed(words, cifar10.Config), config),
        cifar10.OBJECTIVE,
        algorithm=algorithm,
        seed=0,
        budget=_search.Budget(trials, **budget),
        rule=rule,
        engine=engine or Simulated(score),
        watcher=Silent(),
    )


def table(folder):
    with (folder / "trials.csv").open() as stream:
        return list(csv.DictReader(stream))


def outcome(job):
    return [(trial.number, trial.values, trial.status, trial.score, trial.epochs) for trial in job.trials]


def test_a_search_ranks_by_validation_and_hands_back_the_best_configuration(tmp_path):
    job = search(tmp_path)
    assert job.run() == "10 trials are done"
    rows = table(tmp_path)
    scores = [float(row["val_accuracy"]) for row in rows]
    assert len(rows) == 10
    assert scores == sorted(scores, reverse=True)
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["learning_rate"] == float(rows[0]["learning_rate"])
    assert cifar10.Config(**{**vars(CONFIG), **best}) == job.space.config_of(job.best.values)
    assert job.engine.closed
    [start] = [row for row in rows if row["trial"] == "0"]
    assert (float(start["learning_rate"]), start["padding"], start["flip"]) == (0.01, "2", "random")


class Killed(BaseException):
    """A kill."""


@pytest.mark.parametrize(
    ("algorithm", "rule"),
    [("random", "none"), ("random", "median"), ("bayesian", "none"), ("grid", "halving"), ("hyperband", "none")],
)
def test_a_search_that_is_killed_at_any_moment_goes_on_as_if_it_had_not_been(algorithm, rule, tmp_path, monkeypatch):
    """Between any two things that it writes or hears, again and again; nothing that is done is done twice."""
    whole = search(tmp_path / "whole", algorithm=algorithm, rule=rule, trials=8)
    whole.run()
    numbers = random.Random(algorithm)
    folder, epochs, kills = tmp_path / "killed", 0, 0
    for _ in range(60):
        left = [numbers.randint(1, 40)]
        engine = Simulated(score)

        def tick(function, left=left):
            def ticking(*arguments, **options):
                left[0] -= 1
                if left[0] == 0:
                    raise Killed
                return function(*arguments, **options)

            return ticking

        job = search(folder, engine, algorithm=algorithm, rule=rule, trials=8)
        engine.start, engine.wait, engine.answer = tick(engine.start), tick(engine.wait), tick(engine.answer)
        monkeypatch.setattr(job.journal, "add", tick(job.journal.add))
        before = job.epochs
        try:
            job.run()
        except Killed:
            kills += 1
        epochs += sum(len(trial.rows) for trial in job.trials if trial.same_as is None) - before
        if not job.engine.running and job._over() is None and all(trial.ended for trial in job.trials):
            again = search(folder, algorithm=algorithm, rule=rule, trials=8)
            again.run()
            break
    assert kills > 3
    assert outcome(again) == outcome(whole)
    assert epochs == whole.epochs


def test_a_full_disk_ends_the_search_and_no_trial(tmp_path, monkeypatch):
    """Whoever meets it, a worker or the search itself; the same search then goes on as if there had been room."""
    whole = search(tmp_path / "whole", trials=4)
    whole.run()
    engine = Simulated(score)
    waiting, full = engine.wait, {"status": "failed", "kind": _worker.FULL, "reason": "No space left on device"}

    def wait(seconds):
        if list(engine.running) != [1]:
            return waiting(seconds)
        return [_worker.Event(1, "ended", full)]

    engine.wait = wait
    job = search(tmp_path / "full", engine, trials=4)
    with pytest.raises(OSError, match="No space left on device") as caught:
        job.run()
    assert is_full(caught.value)
    assert job.engine.closed
    assert [trial.status for trial in job.trials] == ["finished", "running"]

    job = search(tmp_path / "full", trials=4)
    write = _search.write_text

    def write_or_not(path, text):
        if "\n2," in text:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        write(path, text)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Disk quota exceeded"):
        patch.setattr(_search, "write_text", write_or_not)
        job.run()
    job = search(tmp_path / "full", trials=4)
    job.run()
    assert outcome(job) == outcome(whole)
    assert table(tmp_path / "full") == table(tmp_path / "whole")


def test_a_line_of_the_journal_that_a_kill_has_cut_is_left_out(tmp_path):
    whole = search(tmp_path / "a", trials=4)
    whole.run()
    folder = tmp_path / "b"
    search(folder, trials=3).run()
    path = folder / "search.jsonl"
    raw = path.read_bytes()
    path.write_bytes(raw[:-7])
    job = search(folder, trials=4)
    job.run()
    assert outcome(job) == outcome(whole)
    path.write_bytes(b"not a journal\n" + raw)
    with pytest.raises(UserError, match="damaged"):
        search(folder)


def test_more_trials_go_on_where_fewer_ended(tmp_path):
    search(tmp_path / "a", trials=3).run()
    engine = Simulated(score)
    longer = search(tmp_path / "a", engine, trials=6)
    longer.run()
    assert [number for number, _ in engine.started] == [3, 4, 5]
    whole = search(tmp_path / "b", trials=6)
    whole.run()
    assert outcome(longer) == outcome(whole)


def test_a_folder_of_another_search_is_refused_with_the_difference(tmp_path):
    search(tmp_path, trials=2).run()
    with pytest.raises(UserError, match=r"holds another search: algorithm was random, is grid; give another --folder"):
        search(tmp_path, algorithm="grid")
    before = {"space": [{"name": "padding", "values": [0, 2]}], "config": {"epochs": 9, "seed": 0}}
    now = {"space": [{"name": "padding", "values": [0, 4]}], "config": {"epochs": 3, "seed": 0}}
    assert changed(before, now) == "space: padding: values was [0, 2], is [0, 4]; config: epochs was 9, is 3"
    assert changed(before, before) == ""


def test_a_trial_that_fails_is_recorded_with_its_reason_and_the_search_goes_on(tmp_path):
    def failing(config, epoch):
        if config["padding"] >= 4:
            raise ValueError("the picture is too small")
        return score(config, epoch)

    job = search(tmp_path, Simulated(failing), trials=12)
    job.run()
    failed = [row for row in table(tmp_path) if row["status"] == "failed"]
    assert 0 < len(failed) < 12
    assert {row["reason"] for row in failed} == {"the picture is too small"}
    assert {row["kind"] for row in failed} == {"ValueError"}
    assert all(int(row["padding"]) >= 4 for row in failed)
    assert [row["val_accuracy"] for row in table(tmp_path)][-len(failed) :] == [""] * len(failed)


@pytest.mark.parametrize("algorithm", ["random", "hyperband"])
def test_a_search_in_which_every_trial_fails_ends_with_the_reason(algorithm, tmp_path):
    def failing(config, epoch):
        raise ValueError("out of memory")

    with pytest.raises(UserError, match="first 5 trials failed, all for the same reason: out of memory"):
        search(tmp_path, Simulated(failing), algorithm=algorithm, trials=30).run()
    assert len(table(tmp_path)) == 5
    assert Journal(tmp_path).lines[-1]["failed"].startswith("each of the first 5")


def test_two_workers_train_two_trials_at_once(tmp_path):
    engine = Simulated(score, workers=2)
    job = search(tmp_path, engine, trials=9)
    job.run()
    assert len(job.trials) == 9
    assert {trial.status for trial in job.trials} == {"finished"}
    assert outcome(search(tmp_path, trials=9)) == outcome(job)  # read back from the journal


def test_a_trial_whose_worker_dies_goes_on_once_from_its_last_epoch(tmp_path):
    engine = Simulated(score)
    wait, deaths = engine.wait, []

    def dying(seconds):
        from tuning._worker import Event

        for number, trial in engine.running.items():
            if number in (1, 2) and trial["epoch"] == 4 and deaths.count(number) < number:
                deaths.append(number)
                del engine.running[number]
                return [Event(number, "died", {"kind": "killed", "reason": "by signal 9"})]
        return wait(seconds)

    engine.wait = dying
    job = search(tmp_path, engine, trials=4)
    job.run()
    assert [trial.status for trial in job.trials] == ["finished", "finished", "failed", "finished"]
    assert engine.started == [(0, 0), (1, 0), (1, 4), (2, 0), (2, 4), (3, 0)]
    assert job.trials[2].reason == "by signal 9"


def test_time_and_epochs_end_a_search_and_more_of_them_go_on(tmp_path):
    job = search(tmp_path, trials=50, epochs=30)
    assert job.run() == "30 epochs are trained, --total-epochs"
    assert job.epochs == 30
    assert [trial.status for trial in job.trials] == ["finished"] * 3 + ["running"]
    engine = Simulated(score)
    longer = search(tmp_path, engine, trials=50, epochs=36)
    longer.run()
    assert engine.started == [(3, 3)]
    assert "the time of --budget is over" in search(tmp_path, trials=50, seconds=0.0).run()


def test_a_finite_space_ends_with_that_reason(tmp_path):
    words = ("padding=0,2", "flip=none,random")
    assert search(tmp_path, words=words, trials=30).run() == "all 4 points of the space are tried"


def test_pruning_saves_epochs_and_keeps_the_best(tmp_path):
    found = {}
    for rule in ("none", "median", "halving"):
        job = search(tmp_path / rule, rule=rule, trials=25)
        job.run()
        found[rule] = job.epochs, job.best.score
    assert found["none"][0] == 25 * 9
    assert found["median"][0] < 0.7 * found["none"][0]
    assert found["halving"][0] < 0.5 * found["none"][0]
    assert found["median"][1] == found["halving"][1] == found["none"][1]
    pruned = [row for row in table(tmp_path / "median") if row["status"] == "pruned"]
    assert all("the median of the others is" in row["reason"] for row in pruned)
    assert all(int(row["epochs"]) < 9 for row in pruned)


def test_hyperband_scales_what_is_laid_out_in_epochs(tmp_path):
    config = dataclasses.replace(CONFIG, warmup_epochs=3.0)
    job = search(tmp_path, algorithm="hyperband", config=config)
    job.run()
    assert {trial.status for trial in job.trials} == {"finished"}
    written = [json.loads(path.read_text()) for path in sorted((tmp_path / "trials").glob("*/config.json"))]
    assert {(one["epochs"], round(one["warmup_epochs"], 3)) for one in written} == {(1, 0.333), (3, 1.0), (9, 3.0)}
    assert json.loads((tmp_path / "best.json").read_text())["epochs"] == job.best.epochs == 9
    # One configuration in two brackets, trained for as long, is not trained again.
    assert all(trial.score == job.trials[trial.same_as].score for trial in job.trials if trial.same_as is not None)


def test_phases_are_scaled_with_the_epochs():
    config = captioner.Config(epochs=9, reinforce_epochs=3, warmup_epochs=1.0)
    short = _search.shortened(config, 3)
    assert (short.epochs, short.reinforce_epochs, round(short.warmup_epochs, 3)) == (3, 1, 0.333)


def test_weights_are_kept_of_the_best_trial_alone(tmp_path):
    engine = Simulated(score)
    wait = engine.wait

    def writing(seconds):
        events = wait(seconds)
        for event in events:
            for name in ("checkpoint.npz", "model.keras"):
                (tmp_path / "trials" / f"{event.number:04d}" / name).touch()
        return events

    engine.wait = writing
    job = search(tmp_path, engine)
    job.run()
    for name in ("checkpoint.npz", "model.keras"):
        assert [int(path.parent.name) for path in tmp_path.glob(f"trials/*/{name}")] == [job.best.number]


def test_a_full_disk_ends_the_search_and_loses_nothing(tmp_path, monkeypatch):
    job = search(tmp_path)
    add, lines = job.journal.add, []

    def full(**line):
        if len(lines) == 9:
            raise OSError(28, "No space left on device")
        lines.append(line)
        add(**line)

    monkeypatch.setattr(job.journal, "add", full)
    with pytest.raises(OSError, match="No space left"):
        job.run()
    assert job.engine.closed
    whole = search(tmp_path / "whole")
    whole.run()
    again = search(tmp_path)
    again.run()
    assert outcome(again) == outcome(whole)


def test_the_report_shows_every_trial_and_needs_no_network(tmp_path):
    def failing(config, epoch):
        if config["padding"] == 8:
            raise ValueError("<too> large")
        return score(config, epoch)

    job = search(tmp_path, Simulated(failing), trials=16, rule="median")
    job.run()
    parameters = job.space.parameters
    path = _report.write(tmp_path, job.trials, parameters, job.objective, {"application": "a & b"})
    text = path.read_text(encoding="utf-8")
    assert text.count("<h2>") == 5
    assert "a &amp; b" in text
    assert "&lt;too&gt; large" in text
    assert all(f"trial {trial.number}," in text for trial in job.trials if trial.score is not None)
    assert "src=" not in text.split("<body>")[1]
    found = _report.importances([trial for trial in job.trials if trial.score is not None], parameters)
    assert max(found, key=found.get) in ("padding", "learning_rate")
    assert found["flip"] == min(found.values())
    board = _report.write_tensorboard(tmp_path, job.trials, job.objective)
    assert len(list(board.iterdir())) == sum(trial.score is not None for trial in job.trials)


def test_the_comparison_of_two_configurations_says_what_could_be_chance():
    def rows(*values):
        return [{"val_accuracy": value, "accuracy": value - 0.01, "split": "test"} for value in values]

    lines = _again.compared(rows(0.80, 0.81, 0.79), rows(0.90, 0.91, 0.92), metric="val_accuracy")
    assert len(lines) == 3
    assert lines[1].endswith(": real (validation)")
    assert "+0.1100" in lines[1]
    assert lines[2].endswith("(test)")
    lines = _again.compared(rows(0.80, 0.90, 0.70), rows(0.81, 0.92, 0.71), metric="val_accuracy")
    assert ": could be chance" in lines[1]
    lines = _again.compared(rows(0.8, 0.8), rows(0.9, 0.9), metric="val_accuracy")
    assert "all seeds alike" in lines[1]


def test_a_journal_is_readable_by_itself(tmp_path):
    search(tmp_path, trials=2).run()
    lines = Journal(tmp_path).lines
    assert [next(iter(line)) for line in lines] == ["search", "trial", "ended", "trial", "ended"]
    assert lines[1]["values"] == {"learning_rate": 0.01, "padding": 2, "flip": "random"}


def test_epochs_that_are_searched_are_trained(tmp_path):
    job = search(tmp_path, trials=9, words=("epochs=3,9,12", "padding=0,2"))
    job.run()
    assert {trial.epochs for trial in job.trials} == {3, 9, 12}
    assert all(trial.epochs == len(trial.rows) == trial.values["epochs"] for trial in job.trials)
    assert json.loads((tmp_path / "best.json").read_text())["epochs"] == job.best.epochs == 12
    job = search(tmp_path / "pruned", rule="halving", trials=9, words=("epochs=9,12", "padding=0..8"))
    job.run()
    rows = table(tmp_path / "pruned")
    assert any(row["status"] == "pruned" for row in rows)
    assert all(int(row["epochs"]) == job.trials[int(row["trial"])].values["epochs"] for row in rows)
    with pytest.raises(UserError, match="hyperband itself decides"):
        search(tmp_path / "other", algorithm="hyperband", words=("epochs=3,9",))


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [*lines, '{"ended": 99}'],
        lambda lines: [*lines, '{"trial": 7}'],
        lambda lines: [*lines, '{"ended": "x", "score": 1}'],
    ],
)
@pytest.mark.parametrize("algorithm", ["random", "hyperband"])
def test_a_journal_whose_lines_do_not_fit_is_refused(damage, algorithm, tmp_path):
    search(tmp_path, algorithm=algorithm, trials=3).run()
    path = tmp_path / "search.jsonl"
    path.write_text("\n".join(damage(path.read_text().splitlines())) + "\n")
    with pytest.raises(UserError, match=r"damaged|proposed other trials"):
        search(tmp_path, algorithm=algorithm)


def test_looking_at_a_journal_leaves_it_as_it_is(tmp_path):
    search(tmp_path, trials=2).run()
    path = tmp_path / "search.jsonl"
    path.write_bytes(path.read_bytes()[:-7])  # the search that writes it may be in the middle of a line
    before = path.read_bytes()
    journal = Journal(tmp_path)
    assert path.read_bytes() == before
    journal.add(done="enough")
    assert path.read_bytes() == before[: before.rfind(b"\n") + 1] + b'{"done": "enough"}\n'


@pytest.mark.parametrize(
    ("line", "retrain", "goes_on"),
    [
        ({"trial": 1}, 0, True),
        ({"done": "enough"}, 0, False),
        ({"done": "enough"}, 2, True),  # interrupted before the comparison had begun
        ({"again": "best"}, 2, True),
        ({"compared": 2}, 2, False),
        ({"compared": 2}, 3, True),
        ({"compared": 2}, 0, False),
        ({"failed": "out of memory"}, 0, False),
    ],
)
def test_the_same_command_goes_on_with_what_is_not_over(line, retrain, goes_on, tmp_path, capsys):
    journal = Journal(tmp_path / "search")
    journal.add(search={"application": "cifar10", "data": "x"})
    journal.add(**line)
    found = command._unfinished(tmp_path, {"application": "cifar10"}, retrain)
    assert found == (tmp_path / "search" if goes_on else None)


def test_the_starting_configuration_is_not_compared_with_itself(tmp_path):
    def best_at_start(config, epoch):
        return 0.9 + epoch / 1000 if config["padding"] == 2 and config["flip"] == "random" else 0.1

    job = search(tmp_path, Simulated(best_at_start), algorithm="hyperband", words=("padding=0,2,4", "flip=none,random"))
    job.run()
    assert job.best.number > 0
    assert job.best.epochs == 9
    assert _again.retrain(job, 2, print) == [
        "the starting configuration is the best: there is nothing to compare it with"
    ]


def test_a_start_that_has_not_ended_has_not_failed():
    assert command._start_words(Trial(0, {}, 9), "val_loss") == "not ended"
    assert command._start_words(Trial(0, {}, 9, "failed", reason="too large"), "val_loss") == "failed, too large"
    ended = Trial(0, {}, 9, "pruned", score=0.5, best_epoch=2)
    assert command._start_words(ended, "val_loss") == "val_loss 0.5000, epoch 2 of 9"


def test_hyperband_of_too_few_epochs_is_refused(tmp_path):
    with pytest.raises(UserError, match="--epochs is 2; hyperband begins with fewer and needs 3"):
        search(tmp_path, algorithm="hyperband", config=dataclasses.replace(CONFIG, epochs=2))
    search(tmp_path, algorithm="hyperband", config=dataclasses.replace(CONFIG, epochs=3)).run()
    assert len(table(tmp_path)) > 3
