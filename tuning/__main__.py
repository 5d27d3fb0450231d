"""Command line of the searches: `python -m tuning APPLICATION --trials 30 [--field value]`."""

import sys

from kerasdl import interruptions

if __name__ == "__main__":
    interruptions.end_at_once()  # the imports that follow take a third of a second

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from apps._contract import jsonable
from apps._lazy import defer_heavy_imports, sketch, start_keras
from kerasdl import command_line
from kerasdl.errors import UserError
from kerasdl.files import check_output


def spaces() -> list[str]:
    """Applications that have a search space."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


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

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Search:
        """Searches the space of tuning/<application>.py; scores are measured on the validation data."""

        trials: int = 10
        """Configurations to try (hyperband counts by its own rule)."""
        algorithm: Literal["random", "bayesian", "grid", "hyperband"] = "random"
        """How the next configuration is proposed."""
        config: Path | None = None
        """JSON file of fields that are not searched; flags win over it."""
        tiny: bool = False
        """Search on the application's built-in synthetic data."""
        folder: Path | None = None
        """Where the search writes; runs/tuning/<application>/<time> by default."""

    file = command_line.option(rest, "config")
    given: list[str] = []
    if file is not None:
        given = command_line.read_words(Path(file), module.Config)
    elif "--tiny" in rest:
        start_keras()
        module = importlib.import_module(f"apps.{name}")
        given = command_line.words(jsonable(module.tiny()[0]), module.Config, "tiny")
    parsed, config = command_line.parse_with_config(Search, module.Config, [*given, *rest], f"python -m tuning {name}")
    check_output(parsed.folder, folder=True, flag="--folder")
    if parsed.trials < 1:
        raise UserError(f"--trials is {parsed.trials}; expected 1 or more")
    start_keras()
    try:
        from tuning import _search
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install 'kerasdl[tuning]'") from None

    from apps import _data, _run
    from kerasdl.training import run

    module = importlib.import_module(f"apps.{name}")
    space = importlib.import_module(f"tuning.{name}").space
    config = _run.with_precision(module.Config(**vars(config)))
    data = _data.tiny_data(module, config) if parsed.tiny else module.load_data(config)
    if data.validation is None:
        raise UserError("a search needs validation data; give --validation-ratio above 0")
    if command_line.option([*given, *rest], "batch-size") is None:
        config = _data.fitting_batch_size(module, config, data)
    folder = parsed.folder or run.new_folder(Path("runs/tuning") / name)
    if (folder / "trials.csv").exists():
        raise UserError(f"{folder} holds a finished or stopped search; give another --folder")
    oracle = _search.oracle(
        parsed.algorithm, module.OBJECTIVE, trials=parsed.trials, epochs=config.epochs, seed=config.seed
    )
    print(f"search {folder}", flush=True)
    search = _search.Search(module, space, config, data, oracle, folder)
    try:
        search.search(verbose=0)
    except KeyboardInterrupt as stop:
        done = f"the finished trials, and the best of them, are in {folder}" if search.rows else "no trial was finished"
        raise type(stop)(done) from None
    _search.print_table(_search.ranking(search.rows, module.OBJECTIVE))
    if not (folder / "best.json").exists():
        raise RuntimeError(f"no trial finished; the failures stand in {folder / 'trials.csv'}")
    print(f"table in {folder / 'trials.csv'}; train the best with:")
    print(f"python -m apps {name} train --config {folder / 'best.json'}")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Runs one search; exit status as in `python -m apps`."""
    return command_line.guarded(_dispatch, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
