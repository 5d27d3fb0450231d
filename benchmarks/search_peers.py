"""Searches side by side: this project, Keras Tuner alone, Optuna and Ray Tune, on one space, budget and model.

    python -m benchmarks.search_peers          (needs the extras `tuning`, `ray`, `benchmark`; about 25 minutes, quiet)

All search the training of the VAE on the drawn shapes of `--tiny`, whose trials take seconds, so that what is around
them shows: learning rate, weight decay, and warm-up and free bits of the divergence, none of which changes the time of
a step; 30 random configurations of 6 epochs each. The peers get the application's model
and batches, and `fit` as people write it; Keras Tuner keeps the best weights of each trial, as it does by default; ours
keeps after each epoch what a trial goes on from after a kill. Ray Tune has two processes of one thread each, and so has
`ours_two_workers`; all others have one process with both cores. Ours alone tries the default configuration, too.

The overhead of a trial is what a contender takes from the beginning of its first trial to the end of its last, without
the time in which models are built and in `fit`, but for that in the contender's own callbacks. Start-up stands by
itself. `bare` trains configurations one after the other with nothing around, `bare_ours` by the application's `train`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import _results

TRIALS, EPOCHS, SEED = 30, 6, 0
BARE_TRIALS = 10
SPACE = [
    "learning_rate=5e-4..5e-2:log",
    "weight_decay=1e-6..1e-1:log",
    "kl_warmup_ratio=0.0..0.5",
    "free_bits=0.0..0.2",
]
METRIC = "val_loss"
TRAINING: list[float] = []
"""Seconds of building and of fitting in this process, without those of a contender's callbacks."""


def drawn(uniform: Callable[[str, float, float, bool], float]) -> dict[str, float]:
    """A point of the space; `uniform` draws a value: its name, the lowest, the highest, and whether as logarithms."""
    return {
        "learning_rate": uniform("learning_rate", 5e-4, 5e-2, True),
        "weight_decay": uniform("weight_decay", 1e-6, 1e-1, True),
        "kl_warmup_ratio": uniform("kl_warmup_ratio", 0.0, 0.5, False),
        "free_bits": uniform("free_bits", 0.0, 0.2, False),
    }


def config_of(values: dict[str, float]) -> Any:
    from apps import vae

    return dataclasses.replace(vae.tiny()[0], epochs=EPOCHS, **values)


def fit(config: Any, model: Any, data: Any, callbacks: list[Any]) -> list[float]:
    """The application's batches and Keras' `fit`; gives the metric of each epoch."""
    from kerasdl.data import pipeline
    from kerasdl.models import vae

    def observed(images: Any, *, seed: Any, **_: Any) -> Any:
        return (vae.observed(config.likelihood, images, seed),)

    batches = pipeline.training_batches([data.train], config.batch_size, initial_epoch=0, seed=0, transform=observed)
    held = pipeline.evaluation_batches(observed(data.validation, seed=[0, 0]), 100)
    steps = pipeline.num_steps(len(data.train), config.batch_size)
    timed = [_timed(callback) for callback in callbacks]
    began = time.perf_counter()
    history = model.fit(batches, epochs=EPOCHS, steps_per_epoch=steps, validation_data=held, callbacks=timed, verbose=0)
    TRAINING.append(time.perf_counter() - began - sum(callback.seconds for callback in timed))
    return history.history[METRIC]


def _timed(callback: Any) -> Any:
    """A callback that does the same and knows how long it took."""
    import keras

    class Timed(keras.callbacks.Callback):
        seconds = 0.0

        def set_model(self, model: Any) -> None:
            super().set_model(model)
            callback.set_model(model)

    def passed_on(name: str) -> Callable[..., None]:
        def hook(self: Any, *arguments: Any, **options: Any) -> None:
            began = time.perf_counter()
            getattr(callback, name)(*arguments, **options)
            self.seconds += time.perf_counter() - began

        return hook

    for name in ("train_begin", "train_end", "epoch_begin", "epoch_end", "test_begin", "test_end"):
        setattr(Timed, f"on_{name}", passed_on(f"on_{name}"))
    return Timed()


def build(config: Any, data: Any) -> Any:
    """The application's model."""
    from apps import vae

    began = time.perf_counter()
    model = vae.build_model(config, data)
    TRAINING.append(time.perf_counter() - began)
    return model


def memory_mib() -> int:
    import psutil

    return psutil.Process().memory_info().rss >> 20


class Record:
    """When trials of this process began and ended, and the memory after each."""

    def __init__(self) -> None:
        self.begin: float | None = None
        self.ends: list[float] = []
        self.memory: list[int] = []
        self.epochs = 0
        self.best = float("inf")

    def began(self) -> None:
        """The first trial begins, unless it has."""
        if self.begin is None:
            TRAINING.clear()
            self.begin = time.time()

    def ended(self, scores: list[float]) -> None:
        """A trial has ended with the metric of each of its epochs."""
        self.ends.append(time.time())
        self.memory.append(memory_mib())
        self.epochs += len(scores)
        self.best = min([self.best, *scores])

    def facts(self) -> dict[str, Any]:
        """What the table needs; memory after the fifth trial and after the last."""
        assert self.begin is not None
        return {
            "begin": self.begin,
            "seconds": self.ends[-1] - self.begin,
            "training_seconds": sum(TRAINING),
            "trials": len(self.ends),
            "epochs": self.epochs,
            "best": self.best,
            "memory_mib": [self.memory[min(4, len(self.memory) - 1)], self.memory[-1]],
        }


# --- Contenders -------------------------------------------------------------------------------------------------------


def bare(folder: Path, *, own: bool) -> dict[str, Any]:
    """Keras' `fit` as people write it, or the application's `train`; nothing is saved."""
    import keras

    from apps import vae
    from benchmarks import _contest

    data, record = vae.tiny()[1], Record()
    numbers = random.Random(SEED)
    record.began()
    for _ in range(BARE_TRIALS):
        config = config_of(drawn(lambda _, low, high, log: _uniform(numbers, low, high, log)))
        model = build(config, data)
        if own:
            scores = vae.train(config, model, data, [_contest.clock()]).history[METRIC]
        else:
            scores = fit(config, model, data, [])
        record.ended(scores)
        keras.utils.clear_session()
    return record.facts()


def _uniform(numbers: random.Random, low: float, high: float, log: bool) -> float:
    return low * (high / low) ** numbers.random() if log else numbers.uniform(low, high)


def keras_tuner(folder: Path) -> dict[str, Any]:
    """RandomSearch as its guide has it."""
    import keras_tuner as kt

    from apps import vae

    data, record = vae.tiny()[1], Record()

    def config(hp: Any) -> Any:
        return config_of(
            drawn(lambda name, low, high, log: hp.Float(name, low, high, sampling="log" if log else "linear"))
        )

    class Model(kt.HyperModel):
        def build(self, hp: Any) -> Any:
            return build(config(hp), data)

        def fit(self, hp: Any, model: Any, *_: Any, callbacks: Any = (), **__: Any) -> Any:
            scores = fit(config(hp), model, data, list(callbacks))
            record.ended(scores)
            return {METRIC: min(scores)}

    tuner = kt.RandomSearch(
        Model(), objective=kt.Objective(METRIC, "min"), max_trials=TRIALS, seed=SEED, directory=folder
    )
    record.began()
    tuner.search()
    record.ends.append(time.time())  # of the last trial's files
    return record.facts() | {"trials": TRIALS}


def optuna(folder: Path, *, pruned: bool) -> dict[str, Any]:
    """A study with a random sampler, on disk, with the median rule or without."""
    import keras
    import optuna as library

    from apps import vae

    library.logging.set_verbosity(library.logging.WARNING)
    data, record = vae.tiny()[1], Record()

    def objective(trial: Any) -> float:
        keras.backend.clear_session()
        config = config_of(drawn(lambda name, low, high, log: trial.suggest_float(name, low, high, log=log)))
        scores: list[float] = []

        class Report(keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                scores.append(logs[METRIC])
                trial.report(scores[-1], epoch)
                if pruned and trial.should_prune():
                    self.model.stop_training = True

        fit(config, build(config, data), data, [Report()])
        record.ended(scores)
        if len(scores) < EPOCHS:
            raise library.TrialPruned
        return min(scores)

    study = library.create_study(
        direction="minimize",
        sampler=library.samplers.RandomSampler(seed=SEED),
        pruner=library.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        storage=f"sqlite:///{folder}/study.db",
    )
    record.began()
    study.optimize(objective, n_trials=TRIALS)
    return record.facts()


def ray_asha(folder: Path) -> dict[str, Any]:
    """Two processes at a time, and asynchronous successive halving."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    from apps import vae

    data = vae.tiny()[1]
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)

    def trainable(values: dict[str, float], train: Any, validation: Any, info: Any) -> None:
        from kerasdl.startup import import_tensorflow

        import_tensorflow()
        import keras
        import tensorflow as tf

        from apps._contract import Splits

        tf.config.threading.set_intra_op_parallelism_threads(1)
        splits = Splits(train, validation, lambda: None, info, "shapes")
        config = config_of(values)

        class Report(keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                tune.report({METRIC: float(logs[METRIC]), "memory_mib": memory_mib()})

        fit(config, build(config, splits), splits, [Report()])

    def sampled(_: str, low: float, high: float, log: bool) -> Any:
        return tune.loguniform(low, high) if log else tune.uniform(low, high)

    parameters: Any = drawn(sampled)
    whole = tune.with_parameters(trainable, train=data.train, validation=data.validation, info=dict(data.info))
    tuner = tune.Tuner(
        tune.with_resources(whole, {"cpu": 1}),
        param_space=parameters,
        tune_config=tune.TuneConfig(
            num_samples=TRIALS,
            scheduler=ASHAScheduler(metric=METRIC, mode="min", max_t=EPOCHS, grace_period=1, reduction_factor=3),
        ),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    )
    begin = time.time()
    results = tuner.fit()
    seconds = time.time() - begin
    rows = [result.metrics_dataframe for result in results if result.metrics_dataframe is not None]
    return {
        "begin": begin,
        "seconds": seconds,
        "trials": len(rows),
        "epochs": sum(map(len, rows)),
        "best": float(min(row[METRIC].min() for row in rows)),
        "memory_mib": [int(row["memory_mib"].iloc[-1]) for row in (rows[min(4, len(rows) - 1)], rows[-1])],
    }


def ours(folder: Path, *words: str) -> dict[str, Any]:
    """`python -m tuning`, as a user gives it."""
    command = [
        sys.executable,
        "-m",
        "tuning",
        "vae",
        "--tiny",
        "--weight-decay",
        "1e-6",
        "--epochs",
        str(EPOCHS),
        "--trials",
        str(TRIALS),
    ]
    command += ["--seed", str(SEED), "--set", *SPACE, "--folder", str(folder / "search"), *words]
    began = time.time()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole = time.time() - began
    lines = [json.loads(line) for line in (folder / "search/search.jsonl").read_text().splitlines()]
    first, last = (next(line["spent"] for line in order if mark in line)
                   for order, mark in ((lines, "trial"), (lines[::-1], "ended")))  # fmt: skip
    with (folder / "search/trials.csv").open(encoding="utf-8") as stream:
        rows = sorted(csv.DictReader(stream), key=lambda row: int(row["trial"]))
    return {
        "begin": began + whole - last,  # about: the report comes after the last trial
        "seconds": last - first,
        "training_seconds": sum(
            float(row["build_seconds"]) + float(row["fit_seconds"]) - float(row["saving_seconds"]) for row in rows
        ),
        "startup_seconds": whole - (last - first),
        "trials": len(rows),
        "epochs": sum(int(row["epochs"]) for row in rows),
        "best": min(float(row[METRIC]) for row in rows if row[METRIC]),
        "memory_mib": [int(float(rows[index]["memory_mib"])) for index in (4, -1)],
    }


CONTENDERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "bare": lambda folder: bare(folder, own=False),
    "bare_ours": lambda folder: bare(folder, own=True),
    "ours": lambda folder: ours(folder, "--prune", "none"),
    "keras_tuner": keras_tuner,
    "optuna": lambda folder: optuna(folder, pruned=False),
    "ours_two_workers": lambda folder: ours(folder, "--prune", "none", "--workers", "2"),
    "ours_median": lambda folder: ours(folder, "--prune", "median"),
    "ours_halving": lambda folder: ours(folder, "--prune", "halving"),
    "optuna_median": lambda folder: optuna(folder, pruned=True),
    "ray_asha": ray_asha,
}


def main() -> None:
    """Measures and writes benchmarks/results/search_peers.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="default all")
    parser.add_argument("--only", choices=CONTENDERS, help="measure one here, print it")
    arguments = parser.parse_args()
    if arguments.only:
        if not arguments.only.startswith("ours"):
            from kerasdl.startup import import_tensorflow

            import_tensorflow()
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(CONTENDERS[arguments.only](Path(folder))))
        return
    before = _results.read("search_peers")
    found: dict[str, dict[str, Any]] = {row.pop("contender"): row for row in (before or {"rows": []})["rows"]}
    for name in arguments.contenders:
        began = time.time()
        command = [sys.executable, "-m", "benchmarks.search_peers", "--only", name]
        run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
        if run.returncode:
            raise SystemExit(f"{name} failed:\n{run.stderr[-3000:]}")
        row = json.loads(run.stdout.splitlines()[-1])
        row = {"startup_seconds": row.pop("begin") - began} | row
        found[name] = {"wall_seconds": time.time() - began} | row
        print(name, {key: round(value, 2) if isinstance(value, float) else value for key, value in found[name].items()},
              flush=True)  # fmt: skip
        rows = [
            {"contender": key, **{field: _rounded(value) for field, value in facts.items()}}
            for key, facts in found.items()
        ]
        _results.write(
            "search_peers",
            f"{TRIALS} trials of {EPOCHS} epochs of the VAE on drawn shapes, 4 parameters",
            rows,
            epochs=EPOCHS,
        )


def _rounded(value: Any) -> Any:
    return round(value, 2) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
