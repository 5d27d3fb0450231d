"""The shared verbs: train, evaluate, export. They know the contract and no application."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from apps import _calibration, _data, _weights
from apps._contract import Application, Splits, jsonable
from kerasdl import export, model_card, processor
from kerasdl.errors import UserError
from kerasdl.figures import plots
from kerasdl.files import claim, is_full, tidy, write_json
from kerasdl.training import checkpoint, devices, run


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
        data: its data; those of the run to resume are what `_data.open_data` gives, which compares them.
        runs: root of the run folders.
        resume: a run folder to go on with.

    Returns:
        The run folder.

    Raises:
        UserError: what `module` refuses: nothing is left of a run without an epoch then.
    """
    config = with_precision(config)
    model = None
    if resume is None:
        # Before the folder, so that a mistake leaves none behind.
        model = built(module, config, data)
        _data.say_few_steps(module, config, data)
        folder = run.create(runs, application, jsonable(config), dict(data.info))
    else:
        folder = resume
        if elsewhere := run.elsewhere(run.read(folder, application)[1]):
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
    except Exception as error:
        if is_full(error):
            words = f"go on with: python -m apps {application} train --resume {folder}"
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}; free some space, then {words}") from None
        raise
    print(f"trained {saver.initial_epoch} epochs; log, checkpoint and model in {folder}")
    print(f"next: python -m apps {application} evaluate {folder}")
    return folder


def built(module: Application, config: Any, data: Splits) -> keras.Model:
    """The model of a run, with the seed set from which its training goes on."""
    if config.devices > 1:
        if _data.num_examples(module, config, data) < config.batch_size:
            raise UserError("--devices divides whole batches, of which there is none; give a smaller --batch-size")
        if data.validation is not None and len(data.validation) < config.devices:
            raise UserError(f"--devices is {config.devices}, and {len(data.validation)} example validates; give more")
    keras.utils.set_random_seed(config.seed)
    with devices.scope(config.devices):
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
        module.train(config, model or built(module, config, data), data, [saver])
    if saver.stopped:
        print(
            f"stopped by --patience {saver.patience}: no epoch after {saver.best_epoch} was better; "
            "a larger --patience goes on"
        )
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
    models = [_weights.restore(module, own, data, folder) for (own, _), folder in zip(opened, folders, strict=True)]
    if len(models) == 1:
        model, folder = models[0], folders[0]
    else:
        if not hasattr(module, "ensemble"):
            raise UserError(f"evaluate takes one run here, got {len(folders)}; models of this kind are not averaged")
        members = "+".join(folder.name for folder in folders[1:])
        model, folder = module.ensemble(models), folders[0] / f"ensemble+{members}"[:200]
    settings, note = _calibration.calibration(module, model, data)
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
    model = _weights.restore(module, config, data, folder)
    settings, note = (
        _calibration.calibration(module, model, data)
        if calibrate_on is None
        else _calibration.calibration_of_another(module, config, data, calibrate_on)
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
