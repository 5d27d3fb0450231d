"""What every command line of the project shares: one parser, and mistakes in one line."""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from kerasdl.errors import UserError


def guarded(dispatch: Callable[[list[str]], int], arguments: Sequence[str]) -> int:
    """Runs a command line so that every failure is one line on stderr.

    Args:
        dispatch: runs the arguments and returns an exit status.
        arguments: words of the command line; `--debug` is taken out and shows tracebacks.

    Returns:
        Exit status: that of `dispatch`, 1 for a failure, 2 for a mistake of the user, 130 for Ctrl-C.
    """
    debug = "--debug" in arguments
    try:
        return dispatch([word for word in arguments if word != "--debug"])
    except KeyboardInterrupt:
        print("interrupted; finished epochs are on disk, see train --resume", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        message = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UserError):
            print(f"error: {message}", file=sys.stderr)
            return 2
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


def parse(target: Any, arguments: Sequence[str], program: str, *, deferred: bool = False) -> Any:
    """Parses arguments into a dataclass, or into a call of a function; mistakes become one line.

    Args:
        target: dataclass or function; its docstrings are the help.
        arguments: words of the command line.
        program: how the command is called, for the help.
        deferred: return a function that makes the call instead of making it.

    Raises:
        UserError: an unknown flag (names the nearest), a value that does not fit.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(_defer(target) if deferred else target, args=list(arguments), prog=program)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_one_line(errors.getvalue(), program)) from None


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
        if fields[name] in (bool, "bool"):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            found += [f"--{flag}", *(str(item) for item in (value if isinstance(value, list) else [value]))]
    return found


def read_words(path: Path, config_class: type[Any]) -> list[str]:
    """The fields of a JSON file as words of a command line, each checked.

    Raises:
        UserError: unreadable, unknown field, value that does not fit.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a JSON file of configuration fields") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); expected an object of configuration fields") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected an object of configuration fields")
    found = words(content, config_class, str(path))
    try:
        parse(config_class, found, "train")
    except UserError as error:
        raise UserError(f"{path}: {str(error).removesuffix('; see train --help')}") from None
    return found


def read_config(path: Path, config_class: type[Any]) -> Any:
    """A configuration from a JSON file; see `read_words`."""
    return parse(config_class, read_words(path, config_class), str(path))


def option(arguments: Sequence[str], name: str) -> str | None:
    """The value of one option before the real parsing, because it decides the defaults of the others."""
    for i, word in enumerate(arguments):
        if word == f"--{name}" and i + 1 < len(arguments):
            return arguments[i + 1]
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None


def _defer(function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The same help, but calling it only binds the arguments; those before the `*` are positional words."""
    signature = inspect.signature(function, eval_str=True)
    parameters = [
        parameter.replace(annotation=Annotated[parameter.annotation, tyro.conf.Positional])
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        else parameter
        for parameter in signature.parameters.values()
    ]

    @functools.wraps(function)
    def bind(*values: Any, **named: Any) -> Callable[[], None]:
        return lambda: function(*values, **named)

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
    text = text.split(" Argument helptext:")[0].strip().rstrip(".").removeprefix("Error parsing settings: ")
    text = re.sub(
        r"^Error parsing (\S+): no type matching (\S+) .* from \['(.*?)'\]\. .*", r"\1 is \3; expected \2", text
    )
    close = re.match(r"(--[\w-]+)", tail)
    return f"{text}; did you mean {close[1]}?" if close else f"{text}; see {program} --help"
