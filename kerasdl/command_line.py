"""What every command line of the project shares: one parser, and mistakes in one line."""

import ast
import contextlib
import dataclasses
import difflib
import errno
import functools
import inspect
import io
import itertools
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from kerasdl import interruptions
from kerasdl.errors import UserError
from kerasdl.files import is_full, read_json

T = TypeVar("T")
Repeated = tyro.conf.UseAppendAction[T]
"""Annotates a tuple whose elements each have a flag of their own: `--text a --text b`."""

_LARGEST = 3.4028234e38  # of float32
_WRONG_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS)


def guarded(dispatch: Callable[[list[str]], int], arguments: Sequence[str]) -> int:
    """Runs a command line so that every failure is one line on stderr.

    Args:
        dispatch: runs the arguments and returns an exit status.
        arguments: words of the command line; `--debug` is taken out and shows tracebacks.

    Returns:
        Exit status: that of `dispatch`, 1 for a failure, 2 for a mistake of the user, 130 for Ctrl-C, 143 for SIGTERM.
        What can be done after an interruption is the message of a KeyboardInterrupt that has one.
    """
    debug = "--debug" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files may be any bytes
    try:
        with interruptions.raised():
            return dispatch([word for word in arguments if word != "--debug"])
    except KeyboardInterrupt as stop:
        print(f"interrupted; {str(stop) or interruptions.AGAIN}", file=sys.stderr)
        return interruptions.status(stop)
    except Exception as error:
        if debug:
            traceback.print_exc()
        message = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.errno in _WRONG_PATH and error.filename is not None:
            error = UserError(message := f"{error.filename}: {error.strerror}; give another path, or check this one")
        if isinstance(error, UserError):
            print(f"error: {message}", file=sys.stderr)
            return 2
        if is_full(error):
            words = str(error.strerror) if isinstance(error, OSError) else os.strerror(errno.ENOSPC)
            hint = "" if "; " in words else "; free some space, then run the command again"
            print(f"failed: {words}{hint}", file=sys.stderr)
            return 1
        print(
            f"failed: {message}{'' if debug else f' ({type(error).__name__}; --debug shows where)'}",
            file=sys.stderr,
        )
        return 1


def nearest(word: str, known: Iterable[str], kind: str) -> str:
    """The word itself if it is known.

    Raises:
        UserError: it is not; names the nearest known one.
    """
    if word in known:
        return word
    close = difflib.get_close_matches(word, list(known), 1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    raise UserError(f"{word} is no {kind}; {hint}")


def positions(words: Sequence[str], known: Sequence[str], kind: str, flag: str) -> list[int]:
    """Where in a list the things stand that a person named.

    Args:
        words: names or positions, or `all` alone.
        known: the names, in their order.
        kind: what they are, for the message.
        flag: the words' own, for the message.

    Raises:
        UserError: there is none of that name, which names the nearest, or at that position.
    """
    if list(words) == ["all"]:
        return [*range(len(known))]

    def position(word: str) -> int:
        if not word.isdecimal() or word in known:
            return known.index(nearest(word, known, kind))
        if int(word) >= len(known):
            raise UserError(f"--{flag} is {word}; expected 0 to {len(known) - 1}")
        return int(word)

    return [position(word) for word in words]


def parse(target: Any, arguments: Sequence[str], program: str) -> Any:
    """Parses arguments into a dataclass; mistakes become one line.

    Args:
        target: dataclass; its docstrings are the help.
        arguments: words of the command line.
        program: how the command is called, for the help.

    Raises:
        UserError: an unknown flag (names the nearest), a value that does not fit, a number that is inf or nan.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed = tyro.cli(target, args=list(arguments), prog=program)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_one_line(errors.getvalue(), program)) from None
    _check_finite(parsed)
    return parsed


def _check_finite(value: Any, name: str = "") -> None:
    """Refuses inf and nan, which no number of a command line may be, also once it is stored in float32."""
    if isinstance(value, float) and not abs(value) <= _LARGEST:
        raise UserError(f"--{name.replace('_', '-')} is {value}; expected a finite number, of float32")
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, str(key))
    elif isinstance(value, (tuple, list)):
        for item in value:
            _check_finite(item, name)


def parse_call(
    function: Callable[..., None], arguments: Sequence[str], program: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Parses arguments into positional and named ones of a function, without the call; else as `parse`.

    Parameters before the `*` are positional words.
    """
    return parse(_defer(function), arguments, program)


def parse_with_config(
    options: type[Any], config_class: type[Any], arguments: Sequence[str], program: str
) -> tuple[Any, Any]:
    """Parses the options of a command, and the fields of a configuration beside them.

    `--help` shows the fields under the headings of the classes that they come from, with the defaults that hold for
    the other arguments.

    Args:
        options: dataclass of the command's own options.
        config_class: dataclass; if it has a static method `recipe`, its defaults follow from that one's parameters.
        arguments: words of the command line.
        program: how the command is called, for the help.

    Returns:
        An instance of `options` and one of `config_class`.

    Raises:
        UserError: as `parse`; or the configuration refuses its values.
    """
    # Classes and configurations are hashable, which mypy does not see.
    whole, headings = _whole(options, config_class, _defaults(config_class, arguments))  # type: ignore[arg-type]
    parsed = parse(whole, arguments, program)
    own = options(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(options)})
    values = {name: value for heading in headings for name, value in vars(getattr(parsed, heading)).items()}
    return own, config_class(**values)


@functools.lru_cache(maxsize=16)
def _whole(options: type[Any], config_class: type[Any], defaults: Any) -> tuple[type[Any], list[str]]:
    """A dataclass of the options, and in it one for each heading of the fields; made once, since tyro keeps it."""
    hints = get_type_hints(config_class, include_extras=True)
    documented = _documented(config_class)  # type: ignore[arg-type]  # classes are hashable
    groups: dict[str, list[Any]] = {}
    for field in dataclasses.fields(config_class):
        heading, text = documented[field.name]
        value = dataclasses.field(default=getattr(defaults, field.name))
        group = groups.setdefault(heading, [])
        group.append((field.name, Annotated[hints[field.name], tyro.conf.arg(help=text)], value))
    views = {
        heading: Annotated[dataclasses.make_dataclass(heading, fields, kw_only=True), tyro.conf.OmitArgPrefixes]
        for heading, fields in groups.items()
    }
    whole = dataclasses.make_dataclass("Whole", list(views.items()), bases=(options,), frozen=True, kw_only=True)
    whole.__doc__ = options.__doc__
    return whole, list(views)


def parse_config(config_class: type[Any], arguments: Sequence[str], program: str) -> Any:
    """A configuration from the words of a command line; see `parse_with_config`."""
    return parse_with_config(_NoOptions, config_class, arguments, program)[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _NoOptions:
    """A configuration."""


def _defaults(config_class: type[Any], arguments: Sequence[str]) -> Any:
    """The configuration without the given arguments, but for those that decide the defaults of others."""
    recipe = getattr(config_class, "recipe", None)
    if recipe is None:
        return config_class()
    hints = get_type_hints(config_class)
    deciding = [
        (name, hints[name], dataclasses.field(default=getattr(config_class, name)))
        for name in inspect.signature(recipe).parameters
    ]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            given: Any = tyro.cli(
                dataclasses.make_dataclass("Deciding", deciding, kw_only=True),
                args=[word for word in arguments if word not in ("-h", "--help")],
                return_unknown_args=True,
            )[0]
    except SystemExit:  # a mistake, of which the parsing of everything will tell
        return config_class()
    return config_class(**vars(given))


@functools.cache
def _documented(config_class: Any) -> dict[str, tuple[str, str]]:
    """Of each field the first words of the docstring of the class that it comes from, and its own docstring."""
    found: dict[str, tuple[str, str]] = {}
    for owner in config_class.__mro__[-2::-1]:  # the farthest ancestor first
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        heading = re.sub(r"\W", "_", re.split("[.;]", owner.__doc__ or "")[0].strip().lower())
        for field, following in itertools.pairwise(body.body):
            if isinstance(field, ast.AnnAssign) and isinstance(following, ast.Expr):
                assert isinstance(following.value, ast.Constant)
                name, text = ast.unparse(field.target), " ".join(str(following.value.value).split())
                found[name] = found.get(name, (heading, ""))[0], text
    return found


def words(content: dict[str, Any], config_class: type[Any], origin: str) -> list[str]:
    """A configuration in JSON values as words of a command line, so that one parser checks both.

    Raises:
        UserError: a name that is no field; names the nearest.
    """
    fields = {field.name: field.type for field in dataclasses.fields(config_class)}
    found: list[str] = []
    for name, value in content.items():
        if name not in fields:
            close = difflib.get_close_matches(name, list(fields), 1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(fields))}"
            raise UserError(f"{origin}: {name} is no field of this application; {hint}")
        flag = name.replace("_", "-")
        if isinstance(value, list) and not re.search("tuple|list|Sequence", str(fields[name])):
            raise UserError(f"{origin}: {name} is a list; expected one value")
        if fields[name] in (bool, "bool"):
            if not isinstance(value, bool):
                raise UserError(f"{origin}: {name} is {value!r}; expected true or false")
            found.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            found += [f"--{flag}", *(str(item) for item in (value if isinstance(value, list) else [value]))]
    return found


def read_words(path: Path, config_class: type[Any], *, whole: bool = False) -> list[str]:
    """The fields of a JSON file as words of a command line, each checked.

    Args:
        path: of the file.
        config_class: dataclass.
        whole: whether it is the file of a run: those fields that every configuration shares stand in it, and of others
            that it lacks, being from before they were there, a line on standard error says so.

    Raises:
        UserError: unreadable, unknown field, value that does not fit; under `whole` a shared field that is missing.
    """
    return _read(path, config_class, whole=whole)[0]


def read_config(path: Path, config_class: type[Any]) -> Any:
    """The configuration of a run from its JSON file; see `read_words`."""
    return _read(path, config_class, whole=True)[1]


def _read(path: Path, config_class: type[Any], *, whole: bool) -> tuple[list[str], Any]:
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a JSON file of configuration fields") from None
    missing = [field.name for field in dataclasses.fields(config_class) if field.name not in content]
    if whole and missing:
        shared = [field.name for field in dataclasses.fields(config_class.__mro__[-2])]
        if any(name in shared for name in missing):
            raise UserError(f"{path} lacks {', '.join(missing)}: it is damaged; restore it")
        print(f"{path} is from before there was {', '.join(missing)}: the defaults are taken", file=sys.stderr)
    found = words(content, config_class, str(path))
    try:
        return found, parse_config(config_class, found, "train")
    except UserError as error:
        raise UserError(f"{path}: {str(error).removesuffix('; see train --help')}") from None


def option(arguments: Sequence[str], name: str) -> str | None:
    """The value of one option before the real parsing, because it decides the defaults of the others."""
    for i, word in enumerate(arguments):
        flag, separator, value = word.partition("=")
        if flag.replace("_", "-") == f"--{name}":  # the parser takes both
            if separator:
                return value
            if i + 1 < len(arguments):
                return arguments[i + 1]
    return None


def _defer(function: Callable[..., None]) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """A function with the same help that gives back its arguments."""
    signature = inspect.signature(function, eval_str=True)
    parameters = [
        parameter.replace(annotation=Annotated[parameter.annotation, tyro.conf.Positional])
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        else parameter
        for parameter in signature.parameters.values()
    ]

    @functools.wraps(function)
    def bind(*values: Any, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return values, named

    del bind.__wrapped__  # tyro would look at the original signature
    bind.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # read by inspect
    bind.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return bind


def _one_line(box: str, program: str) -> str:
    """Tyro draws a box; its text, without the frame and without the help of the argument."""
    frame = "│╭╮╰╯─|+-"  # the second half where the output is no terminal
    lines = [line.strip().strip("│|").strip() for line in box.splitlines()]
    lines = [re.sub(r"^[╭+]─*-* | [─-]*[╮+]$", "", line) for line in lines]
    text = " ".join(line for line in lines if line.strip(frame + " "))
    text = re.sub(r"^(Unrecognized options|Value error|Parsing error|Required options|Invalid choice) ", "", text)
    text, _, tail = re.sub(r"\s*For full helptext.*", "", text).partition(" Perhaps you meant: ")
    text = text.split(" Argument helptext:")[0].strip().rstrip(".")
    text = re.sub(
        r"^Error parsing (\S+): no type matching (\S+) .* from \['(.*?)'\]\. .*", r"\1 is \3; expected \2", text
    )
    text = re.sub(
        r"^Error parsing (\S+): (?:invalid literal|could not convert).*?(int|float)\b.*: '(.*)'$",
        r"\1 is \3; expected \2",
        text,
    )
    text = re.sub(r"^Error parsing \w+: (?=--)", "", text)  # what a class says of its own values
    close = re.match(r"(--[\w-]+)", tail)
    return f"{text}; did you mean {close[1]}?" if close else f"{text}; see {program} --help"
