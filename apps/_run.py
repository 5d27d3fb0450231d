"""The shared verbs: train, evaluate, export. They know the contract and no application."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import h5py
import keras

from apps import _settings
from apps._contract import Application, Classifier, Splits, jsonable
from kerasdl import export, model_card, processor
from kerasdl.errors import UserError
from kerasdl.figures import plots
from kerasdl.files import claim, tidy, write_json
from kerasdl.metrics import classification
from kerasdl.training import checkpoint, run


def train(
    module: Application,
    application: str,
    config: Any,
    data: Splits,
    *,
    runs: Path,
    resume: Path | None = None,
) -> Path:
    """Trains in a new run folder, or goes on in an old one, and writes what validation said.

    Args:
        module: the application.
        application: its name.
        config: its configuration.
        data: its data.
        runs: root of the run folders.
        resume: a run folder to go on with.

    Returns:
        The run folder.

    Raises:
        UserError: the run to resume had other data; or what `module` refuses: nothing is left of a run without an
            epoch then.
    """
    config = with_precision(config)
    model = None
    if resume is None:
        # Before the folder, so that a mistake leaves none behind.
        model = _built(module, config, data)
        folder = run.create(runs, application, jsonable(config), dict(data.info))
    else:
        folder = resume
        recorded = run.read(folder, application)[1]
        check_data(recorded, data, folder, own=_is_own(config))
        if elsewhere := run.elsewhere(recorded):
            print(f"{folder} began with {elsewhere}: what follows will not be equal bit for bit", file=sys.stderr)
    print(f"{'run' if resume is None else 'resuming'} {folder}", flush=True)
    try:
        with claim(folder / run.RUNNING) as mine:
            if not mine:
                raise UserError(f"{folder} is being trained by another process; wait for its end, or stop it")
            saver = _train(module, config, data, folder, model)
    except KeyboardInterrupt as stop:
        raise type(stop)(f"go on with: python -m apps {application} train --resume {folder}") from None
    except UserError:
        if resume is None and not (folder / run.LOG).exists():
            shutil.rmtree(folder)
        raise
    print(f"trained {saver.initial_epoch} epochs; log, checkpoint and model in {folder}")
    print(f"next: python -m apps {application} evaluate {folder}")
    return folder


def _built(module: Application, config: Any, data: Splits) -> keras.Model:
    """The model of a run, with the seed set from which its training goes on."""
    keras.utils.set_random_seed(config.seed)
    return module.build_model(config, data)


def _train(
    module: Application, config: Any, data: Splits, folder: Path, model: keras.Model | None
) -> checkpoint.Checkpoint:
    """Trains in a new run with its model, or goes on in one without."""
    resume = model is None
    objective = module.OBJECTIVE
    saver = checkpoint.Checkpoint(
        folder, monitor=objective.metric, maximize=objective.direction == "max", resume=resume
    )
    saver.patience = config.patience
    if resume:
        tidy(folder)
        write_json(folder / run.CONFIG, jsonable(config))  # it may allow more epochs, or more patience
    if saver.initial_epoch >= config.last_epoch:
        print(f"all {saver.initial_epoch} epochs are done")
    elif not saver.stopped:
        module.train(config, model or _built(module, config, data), data, [saver])
    if saver.stopped:
        print(f"stopped by --patience {saver.patience}: no epoch after {saver.best_epoch} was better; more goes on")
    plots.learning_curves(
        folder / run.LOG,
        folder / run.FIGURES / "learning_curves.png",
        monitor=objective.metric,
        mode=objective.direction,
        best=saver.best_epoch,
    )
    return saver


def with_precision(config: Any) -> Any:
    """The configuration with the precision that `auto` stands for on this machine; says which and why."""
    precision, line = processor.resolve(config.precision)
    print(line, file=sys.stderr if line.startswith("warning") else sys.stdout, flush=True)
    return dataclasses.replace(config, precision=precision)


def check_data(recorded: Mapping[str, Any], data: Splits, folder: Path, *, own: bool = False) -> None:
    """Refuses data that is not what a run was trained on.

    Args:
        recorded: the run's run.json.
        data: what was read now.
        folder: the run.
        own: whether the data is a person's own. Such data was divided by file names before there were fingerprints.

    Raises:
        UserError: class names, vocabulary, examples or the like differ; or a run on own data has no fingerprint.
    """
    before, now = dict(recorded["data"]), json.loads(json.dumps(dict(data.info)))
    if "fingerprint" not in before and not now.get("tiny"):
        if own:
            raise UserError(
                f"{folder} is from before own data was divided by its content: examples that it learned from would be "
                "among those to test by; train again"
            )
        now.pop("fingerprint")
        before = {key: value for key, value in before.items() if key in now}
        if before == now:
            print(f"{folder} is from before runs knew their data: take care that it is the same", file=sys.stderr)
    if before != now:
        changed = [key for key in {*before, *now} if before.get(key) != now.get(key)]
        raise UserError(
            f"the data is not what {folder} was trained on: {', '.join(sorted(changed))} changed; restore the data, "
            "give its place by --data if it was moved, or train again"
        )


def _is_own(config: Any) -> bool:
    return getattr(config, "data", None) is not None


def open_data(module: Application, config: Any, recorded: Mapping[str, Any], folder: Path) -> Splits:
    """Reads the data of a run again.

    Args:
        module: the application.
        config: the configuration of the run, with the places of the data as they are now.
        recorded: the run's run.json.
        folder: the run.

    Raises:
        UserError: the data is not there, or not what the run was trained on.
    """
    tiny = recorded["data"].get("tiny", False)
    for name in _settings.PLACES:
        place, flag = getattr(config, name, None), f"--{name.replace('_', '-')}"
        if place is not None and tiny:
            raise UserError(f"{folder} was trained on the data of --tiny, which lie nowhere; leave {flag} out")
        if place is not None and not place.exists():
            raise UserError(
                f"there is no {place}, which {folder} was trained with; give its new place by {flag}, or restore it"
            )
    data = module.tiny(config)[1] if tiny else module.load_data(config)
    check_data(recorded, data, folder, own=_is_own(config))
    return data


def tiny_data(module: Application, config: Any) -> Splits:
    """The synthetic data of `--tiny` for a configuration.

    Raises:
        UserError: a field would act on data that are read, which these are not.
    """
    usual, data = module.tiny()
    if config == usual:
        return data
    idle = [
        f"--{name.replace('_', '-')}"
        for name in _settings.OF_DATA
        if hasattr(config, name) and getattr(config, name) != getattr(usual, name)
    ]
    if idle:
        raise UserError(
            f"--tiny has data of its own, on which {', '.join(idle)} would not act; leave one or the other out"
        )
    return module.tiny(config)[1]


FEW_STEPS = 10
"""Steps an epoch below which a line says so: there is little to learn from a pass over the data."""


def with_batch_size(module: Application, config: Any, data: Splits, *, given: bool) -> Any:
    """The configuration, with a default batch size lowered to what leaves ten steps an epoch, if the data is small.

    Args:
        module: the application.
        config: its configuration.
        data: its data.
        given: the batch size is what a person asked for, and stays; a line says what would leave more steps.

    Returns:
        The configuration. Batches of fewer than eight examples are never its choice.
    """
    count = module.num_examples(config, data) if hasattr(module, "num_examples") else len(data.train)
    fitting = min(count, max(8, count // FEW_STEPS))
    if count // config.batch_size >= FEW_STEPS or fitting == config.batch_size:
        return config
    if not given and fitting < config.batch_size:
        print(f"batch size {fitting}, not {config.batch_size:,}: there are {count:,} training examples", flush=True)
        return dataclasses.replace(config, batch_size=fitting)
    steps = max(1, count // config.batch_size)
    better = f"--batch-size {fitting}" if fitting < config.batch_size else "more examples, or --epochs"
    print(
        f"few steps an epoch: {count:,} training examples make {steps} of --batch-size {config.batch_size}; "
        f"{better} would give more",
        file=sys.stderr,
    )
    return config


def restore(module: Application, config: Any, data: Splits, folder: Path) -> keras.Model:
    """Builds the model of a run in float32 and loads its weights.

    Raises:
        UserError: nothing trained yet, or the file is damaged.
    """
    path = folder / run.MODEL
    if not path.is_file():
        raise UserError(f"{folder} has no {run.MODEL}: no epoch was finished; go on with train --resume {folder}")
    # Half precision is for training: measured and exported models compute in float32.
    model = module.build_model(dataclasses.replace(config, precision="float32"), data)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # the optimizer is not wanted, and of all else the error says enough
            model.load_weights(path)
            unread = _stored_arrays(path) - _own_arrays(model)
            if unread:
                raise ValueError(f"{len(unread)} of its arrays have no place in the model")
    except Exception as error:  # Keras raises whatever a cut archive or a shape leads to
        reason = str(error).splitlines()[0].partition(" Example error")[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be loaded ({reason[:200]}); it is damaged, or its weights are those of another model than "
            f"{run.CONFIG} describes; restore it, or train anew"
        ) from None
    return model


def _stored_arrays(path: Path) -> set[str]:
    """Names of the arrays of a saved model; what Keras does not look for it passes over."""
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as stream:
        return _names(stream)


def _own_arrays(model: keras.Model) -> set[str]:
    """Names under which Keras saves the arrays of a model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.weights.h5"
        model.save_weights(path)
        return _names(path)


def _names(weights: Any) -> set[str]:
    """Names of the arrays in a file of weights, but for those of optimizers."""
    names: list[str] = []
    with h5py.File(weights) as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return {name for name in names if "optimizer" not in name.split("/")[0]}


def evaluate(module: Application, opened: list[tuple[Any, Splits]], folders: list[Path]) -> dict[str, float]:
    """Measures one run, or the ensemble of several, on the test split; writes metrics.json and figures.

    Args:
        module: the application.
        opened: configuration and data of each run.
        folders: the run folders.

    Raises:
        UserError: several runs of an application that cannot be averaged, or of different data.
    """
    config, data = opened[0]
    if any(other.info != data.info for _, other in opened):
        raise UserError("the runs were trained on different data; an ensemble needs the same classes and picture size")
    models = [restore(module, own, data, folder) for (own, _), folder in zip(opened, folders, strict=True)]
    if len(models) == 1:
        model, folder = models[0], folders[0]
    else:
        if not hasattr(module, "ensemble"):
            raise UserError(f"evaluate takes one run here, got {len(folders)}; models of this kind are not averaged")
        model, folder = module.ensemble(models), folders[0] / "ensemble"
    settings, note = calibration(module, model, data)
    if note is not None:
        print(note)
    print(f"measuring on {data.description}", flush=True)
    metrics = measure(module, config, model, data, folder / run.FIGURES, **settings)
    if hasattr(module, "figures"):
        module.figures(model, data, folder / run.FIGURES)
    runs = {"runs": [str(path) for path in folders]} if len(folders) > 1 else {}
    write_json(folder / run.METRICS, {**runs, "split": data.description, **metrics})
    print_metrics(metrics)
    print_verdict(module, metrics)
    print(f"metrics.json and figures in {folder}")
    return metrics


def measure(
    module: Application, config: Any, model: keras.Model, data: Splits, figures: Path | None = None, **settings: Any
) -> dict[str, float]:
    """The metrics of a model in memory on the test split, through the signatures that an export of it would have."""
    signatures = export.in_memory(module.endpoints(model, data, **settings))
    return module.evaluate(config, signatures, data, figures, **settings)


def calibration(
    module: Application, model: keras.Model, data: Splits, origin: str = "this run"
) -> tuple[dict[str, Any], str | None]:
    """Fits the temperature of a classifier to the examples that its training held out.

    Args:
        module: the application.
        model: in float32.
        data: that it was trained on.
        origin: the run that held them out, for the sentence.

    Returns:
        What `endpoints` and `evaluate` take: the temperature, or nothing; and a sentence about it, None where there
        are no probabilities.
    """
    if not hasattr(module, "predictions"):
        return {}, None
    classifier = cast(Classifier, module)
    if data.validation is None:
        return {}, f"Its probabilities are not calibrated: {origin} held no examples out."
    found = classifier.predictions(export.in_memory(module.endpoints(model, data)), data.validation)
    temperature = classification.fit_temperature(*found)
    return {"temperature": temperature}, (
        f"Its probabilities are calibrated: the logits are divided by the temperature {temperature:.3f}, fitted to "
        f"the {len(found[1]):,} validation examples of {origin}."
    )


def print_verdict(module: Application, metrics: Mapping[str, Any]) -> list[str]:
    """Says in a line that a model is of no use, if it is; returns the line for its card."""
    words = module.verdict(metrics)
    if words is None:
        return []
    print(f"warning: this model is of no use: {words}", file=sys.stderr, flush=True)
    return [f"**This model is of no use: {words}.**"]


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Prints a two-column table."""
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value:.4f}" if isinstance(value, float) else f"{name:<{width}}  {value}")


def export_run(
    module: Application,
    application: str,
    config: Any,
    data: Splits,
    folder: Path,
    *,
    root: Path,
    version: int | None,
    calibrate_on: tuple[Any, Splits, Path] | None = None,
) -> Path:
    """Exports a run in float32, measures the loaded export on the test split, writes the model card.

    Args:
        module: the application.
        application: its name.
        config: the configuration of the run.
        data: its data.
        folder: the run.
        root: the folder of all exports.
        version: its number; the next free one when None.
        calibrate_on: configuration, data and folder of another run, which held examples out; its temperature is
            taken for this one.

    Returns:
        The version folder.

    Raises:
        UserError: the other run does not fit.
    """
    model = restore(module, config, data, folder)
    settings, note = (
        calibration(module, model, data)
        if calibrate_on is None
        else _calibration_of_another(module, config, data, calibrate_on)
    )
    with export.reserved(root / application, version) as target:
        _export(module, application, config, data, folder, model, target, settings, note)
    print(f"exported {target} ({export.size_bytes(target) / 2**20:.1f} MiB), card in {target / 'MODEL_CARD.md'}")
    return target


def _export(
    module: Application,
    application: str,
    config: Any,
    data: Splits,
    folder: Path,
    model: keras.Model,
    target: Path,
    settings: Mapping[str, Any],
    note: str | None,
) -> None:
    endpoints = module.endpoints(model, data, **settings)

    def finish(temporary: Path) -> None:
        print(f"measuring on {data.description}", flush=True)
        metrics = module.evaluate(config, export.signatures(temporary), data, **settings)
        print_metrics(metrics)
        notes = print_verdict(module, metrics) + ([] if note is None else [note])
        model_card.write_documents(
            temporary,
            title=f"{application} {target.name}",
            summary=module.CARD.summary,
            endpoints=endpoints,
            config=jsonable(config),
            metrics=metrics,
            split=data.description,
            notes=notes,
            facts=run.read(folder, application)[1],
            limits=module.CARD.limits,
            sources=module.CARD.sources,
            parameters=model.count_params(),
        )

    # Only where an application says so, and its card's metrics are those of what is stored.
    eight_bit = module.eight_bit(model) if hasattr(module, "eight_bit") else ()
    export.write(target, model, endpoints, finish, eight_bit=eight_bit)


# How an export was trained may differ in these from the run that it is calibrated on.
_OF_NO_CONSEQUENCE = {
    *_settings.PLACES, "validation_ratio", "seed", "precision", "strict", "teacher", "patience", "batch_size"
}  # fmt: skip


def _calibration_of_another(
    module: Application, config: Any, data: Splits, other: tuple[Any, Splits, Path]
) -> tuple[dict[str, Any], str | None]:
    """The temperature of a run of the same configuration that held examples out."""
    other_config, other_data, folder = other
    if not hasattr(module, "predictions"):
        raise UserError("--calibrate-on is for classifiers; this application has no probabilities of classes")
    own, others = jsonable(config), jsonable(other_config)
    changed = [name for name in own if name not in _OF_NO_CONSEQUENCE and own[name] != others[name]]
    if other_data.info["class_names"] != data.info["class_names"]:
        changed.append("classes")
    if changed:
        raise UserError(
            f"--calibrate-on {folder} differs in {', '.join(changed)}, so that it is sure of other things than this "
            "run; give one of the same configuration but for --validation-ratio"
        )
    if other_data.validation is None:
        raise UserError(
            f"--calibrate-on {folder} held no examples out; give a run that was trained with --validation-ratio above 0"
        )
    return calibration(module, restore(module, other_config, other_data, folder), other_data, f"the run {folder.name}")
