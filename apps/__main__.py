"""Command line of all applications: `python -m apps APPLICATION VERB [--field value]`."""

import sys

from kerasdl import interruptions

if __name__ == "__main__":
    interruptions.end_at_once()  # the imports that follow take a third of a second

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from apps._contract import jsonable
from apps._lazy import defer_heavy_imports, sketch, start_keras
from apps._settings import PLACES, between
from kerasdl import command_line
from kerasdl.errors import UserError
from kerasdl.files import check_output

SHARED = {
    "train": "fit the model, or go on with an interrupted run",
    "evaluate": "measure a run, or an ensemble of runs, on the test data",
    "export": "write a SavedModel with its model card",
}


def applications() -> dict[str, str]:
    """Every application and the first sentence of its docstring, without importing it."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*")):
        source = path / "__init__.py" if path.is_dir() else path
        if source.suffix == ".py" and source.is_file():
            found[path.stem] = (ast.get_docstring(ast.parse(source.read_text())) or "").split("\n")[0]
    return found


def main(arguments: Sequence[str]) -> int:
    """Runs one command of an application; see `command_line.guarded` for the exit status."""
    return command_line.guarded(_dispatch, arguments)


def _dispatch(arguments: list[str]) -> int:
    known = applications()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m apps APPLICATION VERB [--field value]\n")
        width = max(map(len, known))
        print("\n".join(f"  {name:<{width}}  {sentence}" for name, sentence in known.items()))
        print("\nverbs of one: python -m apps APPLICATION; --debug with any command shows tracebacks")
        return 0
    name = command_line.nearest(arguments[0], known, "application")
    defer_heavy_imports()
    module = sketch(name)
    own = {verb.__name__: verb for verb in module.VERBS}
    if len(arguments) == 1 or arguments[1] in ("-h", "--help"):
        print(f"{inspect.getdoc(module)}\n\nverbs:")
        sentences = SHARED | {key: (inspect.getdoc(verb) or "").split("\n")[0] for key, verb in own.items()}
        width = max(map(len, sentences))
        print("\n".join(f"  {key:<{width}}  {sentence}" for key, sentence in sentences.items()))
        return 0
    verb = command_line.nearest(arguments[1], [*SHARED, *own], f"verb of {name}")
    rest = arguments[2:]
    program = f"python -m apps {name} {verb}"
    if verb in own:
        values, named = command_line.parse_call(own[verb], rest, program)
        start_keras(inference=True)
        given = inspect.signature(own[verb]).bind(*values, **named).arguments
        if "model" in given:
            _check_application(given["model"], name)
        getattr(_real(name), verb)(*values, **named)
        return 0
    shared: dict[str, Callable[[Any, str, list[str], str], None]] = {
        "train": _train,
        "evaluate": _evaluate,
        "export": _export,
    }
    shared[verb](module, name, rest, program)
    return 0


def _check_application(model: Path, application: str) -> None:
    """Refuses an export of another application, whose signatures may have the same names.

    Raises:
        UserError: its card is that of another application.
    """
    from kerasdl import export

    try:
        card = export.version_folder(model) / "MODEL_CARD.md"
    except UserError:
        return  # there is none: the verb says so, after its settings
    words = card.read_text("utf-8", errors="replace").split(maxsplit=2) if card.is_file() else []
    if words[:1] == ["#"] and words[1] != application and words[1] in applications():
        raise UserError(
            f"{model} is an export of {words[1]}, not of {application}; see python -m apps {words[1]}, or give one of "
            f"{application}"
        )


def _real(application: str) -> Any:
    """The module of an application, once Keras is imported."""
    return importlib.import_module(f"apps.{application}")


def _train(module: Any, application: str, arguments: list[str], program: str) -> None:
    """Resolves the configuration (--resume or --config or --tiny, then flags), then trains."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Train:
        __doc__ = inspect.getdoc(module)
        config: Path | None = None
        """JSON file of fields, such as best.json of a search or config.json of a run; flags win over it."""
        resume: Path | None = None
        """Run folder to go on with, exactly where its last finished epoch ended."""
        tiny: bool = False
        """Half a minute on built-in synthetic data; no download."""
        runs: Path = Path("runs")
        """Folder in which the run's own folder is made."""

    resume, file = command_line.option(arguments, "resume"), command_line.option(arguments, "config")
    tiny = "--tiny" in arguments
    given: list[str] = []
    if resume is not None:
        from kerasdl.training import run

        _, recorded = run.read(Path(resume), application)
        given = command_line.read_words(Path(resume) / run.CONFIG, module.Config, whole=True)
    elif file is not None:
        given = command_line.read_words(Path(file), module.Config)
    elif tiny:
        start_keras()
        module = _real(application)
        usual = module.tiny()[0]
        followed = followed_fields(module.Config, usual, arguments)
        fields = {name: value for name, value in jsonable(usual).items() if name not in followed}
        given = command_line.words(fields, module.Config, "tiny")
    parsed, config = command_line.parse_with_config(Train, module.Config, [*given, *arguments], program)
    if resume is not None:
        before = command_line.parse_config(module.Config, given, program)
        names = [field.name for field in dataclasses.fields(config) if field.name not in PLACES]
        changed = [name for name in names if getattr(config, name) != getattr(before, name) and name != "patience"]
        if changed == ["epochs"] and config.epochs > before.epochs:
            if config.laid_out is not None:
                raise UserError(
                    f"{resume} cannot go on to --epochs {config.epochs}: {config.laid_out} is laid out for "
                    f"{before.epochs}; train anew with --config {resume}/config.json --epochs {config.epochs}"
                )
        elif changed:
            raise UserError(
                f"--resume goes on with the configuration of {resume}, but {', '.join(changed)} would change; "
                f"leave the flag out, or train anew with --config {resume}/config.json"
            )
    check_output(parsed.runs / application, folder=True, flag="--runs")
    start_keras()
    from apps import _data, _run

    module = _real(application)
    config = module.Config(**vars(config))
    if resume is not None:
        data = _data.open_data(module, config, recorded, Path(resume))
    else:
        data = _data.tiny_data(module, config, arguments, file) if tiny else module.load_data(config)
        if command_line.option([*given, *arguments], "batch-size") is None:
            config = _data.fitting_batch_size(module, config, data)
    _run.train(module, application, config, data, runs=parsed.runs, resume=parsed.resume)


def followed_fields(config_class: type[Any], usual: Any, arguments: Sequence[str]) -> set[str]:
    """Fields of a configuration that have the values of its recipe, where a flag decides for another recipe."""
    recipe = getattr(config_class, "recipe", None)
    if recipe is None:
        return set()
    deciding = inspect.signature(recipe).parameters
    if all(command_line.option(arguments, name.replace("_", "-")) is None for name in deciding):
        return set()
    values = recipe(**{name: getattr(usual, name) for name in deciding})
    return {name for name, value in values.items() if getattr(usual, name) == value}


def _with_places(options: type[Any], config_class: type[Any]) -> type[Any]:
    """Options of a verb, and beside them where the data of a run lies now."""
    known = {field.name for field in dataclasses.fields(config_class)}
    text = "Where the run's --{} lies now, if it was moved; by default where it was."
    places = [
        (name, Annotated[Path | None, tyro.conf.arg(help=text.format(name.replace("_", "-")))], None)
        for name in PLACES
        if name in known
    ]
    found = dataclasses.make_dataclass(options.__name__, places, bases=(options,), frozen=True, kw_only=True)
    found.__doc__ = options.__doc__
    return found


def _opened(module: Any, application: str, folder: Path, parsed: Any) -> tuple[Any, Any, Any]:
    """The application's module, with Keras, and configuration and data of a run."""
    from apps import _data
    from kerasdl.training import run

    _, recorded = run.read(folder, application)
    config = command_line.read_config(folder / run.CONFIG, module.Config)
    start_keras(inference=True)
    module = _real(application)
    places = {name: getattr(parsed, name, None) for name in PLACES}
    config = module.Config(**vars(config) | {name: path for name, path in places.items() if path is not None})
    return module, config, _data.open_data(module, config, recorded, folder)


def _evaluate(module: Any, application: str, arguments: list[str], program: str) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Evaluate:
        """Measures a run on the test data; with several runs, their averaged predictions."""

        runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
        """Run folders."""

    parsed = command_line.parse(_with_places(Evaluate, module.Config), arguments, program)
    folders = list(parsed.runs)
    if not folders:
        raise UserError(f"no run folder given; usage: {program} RUN [RUN ...]")
    opened = [_opened(module, application, folder, parsed) for folder in folders]
    from apps import _run

    _run.evaluate(opened[0][0], [(config, data) for _, config, data in opened], folders)


def _export(module: Any, application: str, arguments: list[str], program: str) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Export:
        """Writes `saved_models/<application>/<version>/` from a run and measures the loaded export."""

        run: Annotated[Path, tyro.conf.Positional]
        """Run folder."""
        saved_models: Path = Path("saved_models")
        """Folder of all exports."""
        version: int | None = None
        """Number of the version folder, from 1 on; the next free one by default."""
        calibrate_on: Path | None = None
        """Classifiers, for a run that held nothing out: another run of the same configuration that did, whose
        temperature is taken."""

    parsed = command_line.parse(_with_places(Export, module.Config), arguments, program)
    between(1, 2**63 - 1, version=parsed.version)  # what TensorFlow Serving takes
    check_output(parsed.saved_models / application, folder=True, flag="--saved-models")
    module, config, data = _opened(module, application, parsed.run, parsed)
    from apps import _run

    other = None
    if parsed.calibrate_on is not None:
        other = (*_opened(module, application, parsed.calibrate_on, parsed)[1:], parsed.calibrate_on)
    _run.export_run(
        module,
        application,
        config,
        data,
        parsed.run,
        root=parsed.saved_models,
        version=parsed.version,
        calibrate_on=other,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
