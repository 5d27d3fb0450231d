"""Command line of the searches: `python -m tuning APPLICATION --trials 30 [--field value]`."""

import os
import sys

from kerasdl import interruptions

if __name__ == "__main__":
    interruptions.end_at_once()  # the imports that follow take a third of a second
    # A proposal's matrix products are small: beside trainings on all cores, threads that wait make it several times as
    # slow. NumPy reads this when it is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import dataclasses
import importlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from apps._contract import jsonable
from apps._lazy import defer_heavy_imports, sketch, start_keras
from apps._settings import PLACES, at_least
from kerasdl import command_line
from kerasdl.errors import UserError
from kerasdl.files import check_output, claim, is_full, write_json

RUNNING, START = ".running", "start.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Searches hyperparameters of an application; scores are measured on the validation data, the test is not opened.

    The first trial is the starting configuration. The same command goes on with a search that was interrupted.
    """

    trials: int = 20
    """Configurations to try (hyperband counts by its own rule)."""
    algorithm: Literal["random", "bayesian", "grid", "hyperband"] = "random"
    """How the next configuration is proposed."""
    set: tuple[str, ...] = ()
    """What to search in place of the application's own space: learning_rate=1e-4..1e-2:log filters=16,32,64
    dropout=0.1..0.5:step=0.1"""
    prune: Literal["none", "median", "halving"] = "median"
    """End hopeless trials early: below the median of the others at the same epoch, or by successive halving."""
    budget: str | None = None
    """Time after which the search ends, such as 90s, 30m, 2h or 1h30m."""
    total_epochs: int | None = None
    """Epochs of all trials together after which the search ends."""
    workers: int = 1
    """Trials at the same time, each in a process with its share of the cores, or a graphics card."""
    engine: Literal["local", "ray"] = "local"
    """Where the workers are: on this machine, or on those of a Ray cluster, which must all see --folder."""
    address: str = "auto"
    """Of the Ray cluster."""
    worker_cores: int = 1
    """Cores of each worker of a Ray cluster."""
    worker_graphics_cards: float = 0.0
    """Graphics cards of each worker of a Ray cluster; 0.5: two share one."""
    memory_limit: int | None = None
    """Memory a worker may take, in MiB; a trial that takes more fails."""
    max_parameters: int | None = None
    """Largest number of parameters of a model; a trial with more fails before it is trained."""
    max_latency_ms: float | None = None
    """Longest time of one example through the export's first signature, in milliseconds, on this machine."""
    max_export_mib: float | None = None
    """Largest export, in MiB."""
    folds: int = 0
    """n-fold cross-validation: train each trial on this many divisions of the training data, 2 or more; its score is
    the mean. It takes as many times as long."""
    retrain: int = 0
    """Train the best and the starting configuration from this many new seeds each, 2 or more, and compare them."""
    config: Path | None = None
    """JSON file of fields to start from; flags win over it."""
    tiny: bool = False
    """Search on the application's built-in synthetic data."""
    folder: Path | None = None
    """Where the search writes, or goes on; runs/tuning/<application>/<time> by default."""


def spaces() -> list[str]:
    """Applications that have a search space."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def seconds_of(text: str) -> float:
    """The seconds of 90s, 30m, 2h or 1h30m.

    Raises:
        UserError: it is none of these.
    """
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip().lower())
    if found is None or not text.strip():
        raise UserError(f"--budget is {text}; expected a time such as 90s, 30m, 2h or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    whole = 3600 * hours + 60 * minutes + seconds
    if not whole:
        raise UserError(f"--budget is {text}; expected more than no time")
    return whole


def _dispatch(arguments: list[str]) -> int:
    known = spaces()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m tuning APPLICATION [--trials N] [--field value]\n")
        print("\n".join(f"  {name}" for name in known))
        return 0
    name = command_line.nearest(arguments[0], known, "application with a search space")
    defer_heavy_imports()
    module: Any = sketch(name)
    rest = arguments[1:]
    if sum(word.partition("=")[0] == "--set" for word in rest) > 1:  # the last one alone would count
        raise UserError("--set stands twice; name all fields after one: --set padding=0,2 flip=none,random")
    file = command_line.option(rest, "config")
    given: list[str] = []
    if file is not None:
        given = command_line.read_words(Path(file), module.Config)
    elif "--tiny" in rest:
        start_keras()
        module = importlib.import_module(f"apps.{name}")
        given = command_line.words(jsonable(module.tiny()[0]), module.Config, "tiny")
    options, config = command_line.parse_with_config(
        Options, module.Config, [*given, *rest], f"python -m tuning {name}"
    )
    budget = None if options.budget is None else seconds_of(options.budget)
    _check(name, options, config)
    batch_size_given = command_line.option([*given, *rest], "batch-size") is not None
    start_keras()
    try:
        importlib.import_module("keras_tuner")
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install 'kerasdl[tuning]'") from None
    return _search(name, options, config, budget, batch_size_given)


def _check(name: str, options: Options, config: Any) -> None:
    check_output(options.folder, folder=True, flag="--folder")
    at_least(1, trials=options.trials, workers=options.workers, total_epochs=options.total_epochs)
    at_least(1, worker_cores=options.worker_cores)
    at_least(0, worker_graphics_cards=options.worker_graphics_cards)
    if options.engine == "ray" and options.memory_limit is not None:
        raise UserError("--memory-limit is for --engine local; on a cluster Ray ends workers that take too much memory")
    at_least(1, memory_limit=options.memory_limit, max_parameters=options.max_parameters)
    if config.devices > 1:
        raise UserError(
            f"--devices is {config.devices}; a trial is trained on one: workers share the graphics cards out"
        )
    if options.folds:
        at_least(2, folds=options.folds)
        if options.tiny:
            raise UserError("--tiny has a validation part of its own; leave --folds out")
        if not hasattr(config, "fold"):
            raise UserError(f"--folds: the data of {name} cannot be divided into folds; leave it out")
        if config.fold is not None:
            raise UserError(f"--fold {config.fold} is one of --folds {options.folds}; leave one or the other out")
    if options.retrain:
        at_least(2, retrain=options.retrain)
    at_least(1e-6, max_latency_ms=options.max_latency_ms, max_export_mib=options.max_export_mib)


def _search(name: str, options: Options, config: Any, budget: float | None, batch_size_given: bool) -> int:
    from apps import _run
    from kerasdl.training import run
    from tuning import _progress, _search, _space, _worker
    from tuning._journal import JOURNAL, Journal

    module: Any = importlib.import_module(f"apps.{name}")
    config = _run.with_precision(module.Config(**vars(config)))
    limits = {
        "parameters": options.max_parameters,
        "latency_ms": options.max_latency_ms,
        "export_mib": options.max_export_mib,
    }
    declare = (
        _space.parsed(options.set, module.Config) if options.set else importlib.import_module(f"tuning.{name}").space
    )
    task = _worker.Task(name, options.tiny, limits, options.folds)
    engine = _engine(task, options)
    settings = _settings(name, options, config)
    root = Path("runs/tuning") / name
    before = options.folder or _unfinished(root, settings, options.retrain)
    folder = before or run.new_folder(root)
    with claim(folder / RUNNING) as mine:
        if not mine:
            raise UserError(
                f"{folder} is being searched by another process; wait for its end, or give another --folder"
            )
        try:
            Journal(folder).check(settings)
            write_json(folder / START, jsonable(config))
            facts = engine.facts(folder / START, batch_size_given=batch_size_given)
            config = dataclasses.replace(config, batch_size=facts["batch_size"])
            space = _space.Space(declare, config)
            space.check()
            print(f"search {folder}\n" + "\n".join(space.lines()), flush=True)
            with _progress.Progress() as progress:
                search = _search.Search(
                    folder,
                    {**settings, "space": _described(space), "data": facts["fingerprint"]},
                    space,
                    module.OBJECTIVE,
                    algorithm=options.algorithm,
                    seed=config.seed,
                    budget=_search.Budget(options.trials, budget, options.total_epochs),
                    rule=options.prune,
                    engine=engine,
                    watcher=progress,
                )
                _say_beginning(search, options)
                reason = search.run()
            _conclude(name, search, reason)
            if options.retrain:
                from tuning import _again

                print(f"training anew from {options.retrain} seeds each", flush=True)
                print("\n".join(_again.retrain(search, options.retrain, lambda line: print(line, flush=True))))
                search.journal.add(compared=options.retrain)
        except (KeyboardInterrupt, UserError, OSError) as error:
            if not (folder / JOURNAL).exists():
                (folder / START).unlink(missing_ok=True)
                if before is None:
                    shutil.rmtree(folder)
            elif isinstance(error, KeyboardInterrupt):
                raise type(error)(f"go on with the same command, or with --folder {folder}") from None
            elif isinstance(error, OSError) and is_full(error):
                words = f"{error.strerror}; free some space, then go on with the same command, or with --folder"
                raise OSError(error.errno, f"{words} {folder}") from None
            raise
        finally:
            engine.close()
    return 0


def _engine(task: Any, options: Options) -> Any:
    if options.engine == "local":
        from tuning import _local

        return _local.Local(task, options.workers, memory_mib=options.memory_limit, graphics_cards=_graphics_cards())
    try:
        from tuning import _ray
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install 'kerasdl[ray]'") from None
    return _ray.Cluster(
        task,
        options.workers,
        address=options.address,
        cores=options.worker_cores,
        graphics_cards=options.worker_graphics_cards,
    )


def _settings(name: str, options: Options, config: Any) -> dict[str, Any]:
    """What makes a search this one and no other."""
    fields = {field: value for field, value in jsonable(config).items() if field not in PLACES}
    kept = ("algorithm", "set", "prune", "tiny", "max_parameters", "max_latency_ms", "max_export_mib")
    folds = {"folds": options.folds} if options.folds else {}
    return {"application": name, **{key: getattr(options, key) for key in kept}, **folds, "config": fields}


def _unfinished(root: Path, settings: dict[str, Any], retrain: int) -> Path | None:
    """The newest search of the same settings that was interrupted, or whose best trial is not yet compared."""
    from tuning._journal import JOURNAL, Journal

    for path in sorted(root.glob(f"*/{JOURNAL}"), reverse=True):
        try:
            journal = Journal(path.parent)
        except (UserError, OSError):
            continue
        before = dict(journal.settings or {})
        same = all(before.get(key) == value for key, value in json.loads(json.dumps(settings)).items())
        last = journal.lines[-1] if journal.lines else {}
        over = "failed" in last or (last.get("compared", 0) >= retrain if retrain else {"done", "compared"} & {*last})
        if same and not over:
            print(f"going on with {path.parent}", flush=True)
            return path.parent
    return None


def _described(space: Any) -> list[dict[str, Any]]:
    return [{"kind": type(hp).__name__, **hp.get_config()} for hp in space.parameters]


def _graphics_cards() -> int:
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU"))


def _say_beginning(search: Any, options: Options) -> None:
    done = sum(trial.ended for trial in search.trials)
    if search.trials:
        print(f"going on after {done} trials, {len(search.waiting)} of them interrupted", flush=True)
    if options.algorithm == "bayesian":
        from tuning._oracles import num_random

        print(f"the first {num_random(options.trials)} trials are random", flush=True)


def _conclude(name: str, search: Any, reason: str) -> None:
    """Writes the report and says what was found."""
    from tuning import _progress, _report
    from tuning._search import BEST, TABLE

    if search.best is None:
        if not any(trial.ended for trial in search.trials):
            raise UserError(f"{reason}, before a trial has ended; the same command, with more of it, goes on")
        search.journal.add(failed=reason, spent=search.seconds)
        raise RuntimeError(f"no trial has a score; the failures stand in {search.folder / TABLE}")
    search.journal.add(done=reason, spent=search.seconds)
    start, best = search.trials[0], search.best
    metric = search.objective.metric
    lines = [
        f"{reason}; {len(search.trials)} trials, {search.epochs} epochs in {search.seconds:.0f} s",
        f"start: {_start_words(start, metric)}",
        f"best: {metric} {_progress.scored(best)}, trial {best.number}, epoch {best.best_epoch} of {best.length}",
    ]
    if search.unused:
        lines.append(f"no trial has looked at {', '.join(search.unused)}: leave it out of what is searched")
    facts = {
        "application": name,
        "searched": f"{len(search.space.parameters)} parameters",
        "result": ", ".join(lines),
    }
    report = _report.write(search.folder, search.trials, search.space.parameters, search.objective, facts)
    board = _report.write_tensorboard(search.folder, search.trials, search.objective)
    print("\n".join(lines))
    print(f"table in {search.folder / TABLE}, report in {report}; tensorboard --logdir {board}")
    print("train the best with:")
    print(f"python -m apps {name} train --config {search.folder / BEST}", flush=True)


def _start_words(start: Any, metric: str) -> str:
    if not start.ended:
        return "not ended"
    if start.score is None:
        return f"failed, {start.reason}"
    from tuning import _progress

    return f"{metric} {_progress.scored(start)}, epoch {start.best_epoch} of {start.length}"


def main(arguments: Sequence[str]) -> int:
    """Runs one search; exit status as in `python -m apps`."""
    return command_line.guarded(_dispatch, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
