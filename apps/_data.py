"""The data of a run: read again, held to what the run was trained on, and batches that fit it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apps import _settings
from apps._contract import Application, Splits
from kerasdl.errors import UserError
from kerasdl.training import run


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
    if "fingerprint" not in before:
        known = any(name.startswith("training_") and name in now for name in before)  # by a checksum of their own
        if own and not known:
            raise UserError(
                f"{folder / run.RUN} has no fingerprint of the data; own data is divided in another way since, so that "
                "examples that this run learned from would be among those to test by; train again"
            )
        now.pop("fingerprint")
        before = {key: value for key, value in before.items() if key in now}
        if before == now and not known and not now.get("tiny"):
            print(
                f"warning: {folder / run.RUN} has no fingerprint of the data, so that it cannot be checked",
                file=sys.stderr,
            )
    if before != now:
        changed = [key for key in {*before, *now} if before.get(key) != now.get(key)]
        raise UserError(
            f"the data is not what {folder} was trained on: {', '.join(sorted(changed))} changed; restore the data, "
            "give its place by --data if it was moved, or train again"
        )


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
    check_data(recorded, data, folder, own=getattr(config, "data", None) is not None)
    return data


def tiny_data(module: Application, config: Any, arguments: Sequence[str] = (), file: str | None = None) -> Splits:
    """The synthetic data of `--tiny` for a configuration.

    Args:
        module: the application.
        config: its configuration.
        arguments: words of the command line.
        file: where the fields stand that are not among them.

    Raises:
        UserError: a field would act on data that are read, which these are not.
    """
    usual, data = module.tiny()
    if config == usual:
        return data

    def named(name: str) -> str:
        flags = [f"--{prefix}{name.replace('_', '-')}" for prefix in ("", "no-")]
        is_given = any(word.partition("=")[0].replace("_", "-") in flags for word in arguments)
        return flags[0] if is_given or file is None else f"{name} of {file}"

    idle = [
        named(name)
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


def num_examples(module: Application, config: Any, data: Splits) -> int:
    """Training examples as the steps of an application take them."""
    return module.num_examples(config, data) if hasattr(module, "num_examples") else len(data.train)


def fitting_batch_size(module: Application, config: Any, data: Splits) -> Any:
    """The configuration, with its batch size lowered to what leaves ten steps an epoch, if the data is small.

    Args:
        module: the application.
        config: its configuration, whose batch size is a default.
        data: its data.

    Returns:
        The configuration. Batches of fewer than eight examples are never its choice.
    """
    count = num_examples(module, config, data)
    fitting = min(count, max(8, count // FEW_STEPS))
    fitting -= fitting % config.devices
    if fitting >= config.batch_size:
        return config
    print(f"batch size {fitting}, not {config.batch_size:,}: there are {count:,} training examples", flush=True)
    return dataclasses.replace(config, batch_size=fitting)


def say_few_steps(module: Application, config: Any, data: Splits) -> None:
    """Says in a line on standard error that an epoch has few steps, and what would leave more, if that is so."""
    count = num_examples(module, config, data)
    steps = max(1, count // config.batch_size)
    if steps < FEW_STEPS:
        better = max(1, count // FEW_STEPS)
        more = f"--batch-size {better}" if better < config.batch_size else "more examples"
        print(
            f"few steps an epoch: {count:,} training examples make {steps} of --batch-size {config.batch_size}; "
            f"{more} would give more",
            file=sys.stderr,
        )
