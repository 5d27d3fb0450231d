"""Search spaces: what an application declares or a command line names, how many points it has, how it is printed."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, get_args, get_origin, get_type_hints

import keras_tuner

from apps._settings import OF_DATA
from kerasdl import command_line
from kerasdl.errors import UserError

Declaration = Callable[[keras_tuner.HyperParameters, Any], Any]
"""`space(hp, config)` of `tuning/<application>.py`: the configuration with values drawn from `hp` in some fields."""


def around(values: Iterable[Any], given: Any) -> dict[str, Any]:
    """The values of a choice with the one that the configuration has, which is tried first.

    Args:
        values: numbers or words.
        given: that of the configuration, one of them or not.

    Returns:
        Arguments for `hp.Choice`.
    """
    return {"values": sorted({*values, given}), "default": given}


def near(hp: keras_tuner.HyperParameters, config: Any, name: str, factor: float) -> float:
    """A number that is at most so many times smaller or larger than the configuration's, its logarithm drawn.

    Args:
        hp: where values are drawn from.
        config: the starting configuration. 0, which has no logarithm, stands beside seven values from 1e-5 to 0.1.
        name: of the field.
        factor: above 1.
    """
    given = getattr(config, name)
    if given:
        return hp.Float(name, given / factor, factor * given, sampling="log", default=given)
    return hp.Choice(name, **around([float(f"{10 ** (-5 + step * 2 / 3):.2g}") for step in range(7)], given))


@dataclasses.dataclass(frozen=True)
class Space:
    """A space around a configuration.

    Attributes:
        declare: gives the configuration of a point.
        config: the starting configuration, a point of the space.
    """

    declare: Declaration
    config: Any

    @functools.cached_property
    def parameters(self) -> list[Any]:
        """What is searched: Keras Tuner's parameters, those on which others depend before them."""
        hp = keras_tuner.HyperParameters()
        self.declare(hp, self.config)
        return hp.space

    def config_of(self, values: Mapping[str, Any]) -> Any:
        """The configuration of a point.

        Raises:
            UserError: the configuration refuses it.
        """
        hp = keras_tuner.HyperParameters()
        hp.values = dict(values)
        return self.declare(hp, self.config)

    def start(self) -> dict[str, Any]:
        """The point of the starting configuration."""
        return self._point(lambda hp: hp.default)

    def draw(self, numbers: random.Random) -> dict[str, Any]:
        """A random point."""
        return self._point(lambda hp: hp.random_sample(numbers.getrandbits(64)))

    def _point(self, value: Callable[[Any], Any]) -> dict[str, Any]:
        hp = keras_tuner.HyperParameters()
        for parameter in self.parameters:
            hp.merge([parameter])
            if hp.is_active(parameter):
                hp.values[parameter.name] = value(parameter)
        return hp.values

    @functools.cached_property
    def size(self) -> int | None:
        """Number of points; None if a parameter is a range without steps."""
        if any(_values(parameter) is None for parameter in self.parameters):
            return None
        return self.grid_size

    def points(self) -> Iterator[dict[str, Any]]:
        """All points of the grid."""
        return (self.grid_point(index) for index in range(self.grid_size))

    @functools.cached_property
    def grid_size(self) -> int:
        """Number of points, where a range without steps counts as ten values and the starting one."""
        return self._count(0, {})

    def grid_point(self, index: int) -> dict[str, Any]:
        """The point with this index, from 0 to `grid_size` - 1."""
        values: dict[str, Any] = {}
        for number, parameter in enumerate(self.parameters):
            if not self._active(parameter, values):
                continue
            for value in _grid(parameter):
                count = self._count(number + 1, {**values, parameter.name: value})
                if index < count:
                    values[parameter.name] = value
                    break
                index -= count
        return values

    def _count(self, number: int, values: Mapping[str, Any]) -> int:
        """Points whose first parameters have these values."""
        parameters = self.parameters[number:]
        if not parameters:
            return 1
        first, *others = parameters
        if not self._active(first, values):
            return self._count(number + 1, values)
        choices = _grid(first)
        if any(condition.name == first.name for other in others for condition in other.conditions):
            return sum(self._count(number + 1, {**values, first.name: value}) for value in choices)
        return len(choices) * self._count(number + 1, {**values, first.name: first.default})

    @staticmethod
    def _active(parameter: Any, values: Mapping[str, Any]) -> bool:
        return all(condition.is_active(values) for condition in parameter.conditions)

    def lines(self) -> list[str]:
        """A line for each parameter, and one for their number of points."""
        parameters = self.parameters
        width = max(len(parameter.name) for parameter in parameters)
        found = [f"  {parameter.name:<{width}}  {_words(parameter)}" for parameter in parameters]
        size = self.size
        return [*found, f"  {'' if size is None else f'{size:,} points; '}start: {_point_words(self.start())}"]

    def check(self) -> None:
        """Tries every value of every choice, and the ends of every range, one at a time.

        Raises:
            UserError: nothing is searched, the starting configuration is no point of the space, or the configuration
                refuses a value.
        """
        parameters = self.parameters
        if not parameters:
            raise UserError("there is nothing to search; name fields and their values by --set")
        if self.config_of(self.start()) != self.config:
            raise UserError("the starting configuration is no point of the space; see `space` of the application")
        for parameter in parameters:
            values = _values(parameter)
            is_range = values is None or isinstance(values, range)
            for value in (parameter.min_value, parameter.max_value) if is_range else _grid(parameter):
                try:
                    self.config_of({**self.start(), parameter.name: value})
                except UserError as error:
                    raise UserError(f"{parameter.name}={value} cannot be searched: {error}") from None


def _values(parameter: Any) -> Sequence[Any] | None:
    """All values; None of a range without steps."""
    if isinstance(parameter, keras_tuner.engine.hyperparameters.Fixed):
        return [parameter.value]
    if isinstance(parameter, keras_tuner.engine.hyperparameters.Boolean):
        return [False, True]
    if isinstance(parameter, keras_tuner.engine.hyperparameters.Float) and parameter.step is None:
        return None
    if isinstance(parameter, keras_tuner.engine.hyperparameters.Int) and parameter.step in (None, 1):
        return range(parameter.min_value, parameter.max_value + 1)  # Keras Tuner lists ten of a logarithmic one
    return list(parameter.values)


def _grid(parameter: Any) -> Sequence[Any]:
    values = _values(parameter)
    return sorted({*parameter.values, parameter.default}) if values is None else values


def _words(parameter: Any) -> str:
    values = _values(parameter)
    if values is None:
        return f"{parameter.min_value:.4g} to {parameter.max_value:.4g}, {parameter.sampling}"
    if len(values) > 8:
        return f"{values[0]} to {values[-1]}, {len(values)} values"
    return ", ".join(str(value) for value in values)


def _point_words(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


# --- What a command line names ---------------------------------------------------------------------------------------


def parsed(words: Sequence[str], config_class: type[Any]) -> Declaration:
    """The space that `--set` names, such as `learning_rate=1e-4..1e-2:log`, `filters=16,32,64`, `depth=1..4`.

    Args:
        words: a field each, with values between commas, or the ends of a range with two dots between them, and then
            `:log` or `:step=0.1` if wanted.
        config_class: whose fields they are.

    Raises:
        UserError: a field that there is not, or values that do not fit it.
    """
    hints = get_type_hints(config_class)
    fields = {field.name for field in dataclasses.fields(config_class)}
    declared = []
    for word in words:
        name, separator, text = word.partition("=")
        name = command_line.nearest(name.lstrip("-").replace("-", "_"), sorted(fields), "field of this application")
        if name in OF_DATA:
            raise UserError(f"--set {name}: it says which data are read, and scores of other data cannot be compared")
        if not separator or not text:
            raise UserError(f"--set {word} has no values; write {name}=A,B,C or {name}=LOW..HIGH[:log|:step=S]")
        declared.append((name, _parameter(name, text, hints[name])))
    names = [name for name, _ in declared]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"--set names {', '.join(sorted(repeated))} twice; give all of its values in one word")

    def space(hp: keras_tuner.HyperParameters, config: Any) -> Any:
        return dataclasses.replace(config, **{name: draw(hp, getattr(config, name)) for name, draw in declared})

    return space


Draw = Callable[[keras_tuner.HyperParameters, Any], Any]


def _parameter(name: str, text: str, hint: Any) -> Draw:
    kinds = [kind for kind in (get_args(hint) if get_origin(hint) is not Literal else [hint]) if kind is not type(None)]
    kind = kinds[0] if kinds else hint
    if kind not in (bool, int, float, str) and get_origin(kind) is not Literal:
        raise UserError(f"--set {name}: only numbers, words and flags can be searched; give {name} as a flag")
    ends = re.fullmatch(r"([^,:]+)\.\.([^,:]+)(?::(log|step=(.+)))?", text)
    if ends is None:
        values = [_value(name, word, kind) for word in text.split(",")]
        if name == "precision" and "auto" in values:
            raise UserError(f"--set {name}={text}: auto stands for one of the others; name those")
        if len({*values}) < 2:
            raise UserError(f"--set {name}={text} has one value; give two or more, or {name} as a flag")
        if kind is bool:  # Keras Tuner's choice would make 0 and 1 of them
            return lambda hp, given: hp.Boolean(name, default=given)
        return lambda hp, given: hp.Choice(name, **_choice(name, values, given))
    if kind not in (int, float):
        raise UserError(f"--set {name}={text} is a range, but {name} is no number; give its values: {name}=A,B,C")
    low, high = (_value(name, word, kind) for word in ends.groups()[:2])
    if not low < high:
        raise UserError(f"--set {name}={text}: {low} is not below {high}")
    if ends[3] == "log" and low <= 0:
        raise UserError(f"--set {name}={text}: 0 and what is below it has no logarithm; begin above it")
    if ends[4] is not None:
        values = _steps(name, text, low, high, ends[4], kind)
        return lambda hp, given: hp.Choice(name, **_choice(name, values, given))
    sampling = "log" if ends[3] == "log" else "linear"
    draw = "Int" if kind is int else "Float"

    def within(hp: keras_tuner.HyperParameters, given: Any) -> Any:
        if given is None:
            raise UserError(f"{name} has no value to start from; give one: --{name.replace('_', '-')} {low}")
        if sampling == "log" and given <= 0:
            raise UserError(f"{name} is {given}, which has no logarithm; give one: --{name.replace('_', '-')} {low}")
        return getattr(hp, draw)(name, min(low, given), max(high, given), sampling=sampling, default=given)

    return within


def _choice(name: str, values: list[Any], given: Any) -> dict[str, Any]:
    if given is None:
        raise UserError(f"{name} has no value to start from; give one: --{name.replace('_', '-')} {values[0]}")
    return around(values, given)


def _value(name: str, word: str, kind: Any) -> Any:
    allowed = get_args(kind) if get_origin(kind) is Literal else None
    if allowed is not None:
        return command_line.nearest(word, [str(value) for value in allowed], f"value of {name}")
    if kind is bool:
        return command_line.nearest(word.lower(), ["false", "true"], f"value of {name}") == "true"
    if kind in (int, float):
        try:
            value = kind(word)
        except ValueError:
            raise UserError(f"--set {name}: {word} is no {kind.__name__}") from None
        if not math.isfinite(value):
            raise UserError(f"--set {name}: {word} is no finite number")
        return value
    return kind(word)


_STEPS = {int: "a whole number above 0", float: "a number above 0"}
_MOST_STEPS = 10_000


def _steps(name: str, text: str, low: Any, high: Any, word: str, kind: Any) -> list[Any]:
    """All steps in decimal arithmetic, in which 0.1 to 0.5 by 0.1 are five."""
    try:
        step = Decimal(word)
    except InvalidOperation:
        raise UserError(f"--set {name}={text}: {word} is no number") from None
    begin, end = Decimal(str(low)), Decimal(str(high))
    if not step.is_finite() or not step > 0 or (kind is int and step % 1):
        raise UserError(f"--set {name}={text}: {word} is no step; expected {_STEPS[kind]}")
    if (end - begin) / step > _MOST_STEPS:
        raise UserError(f"--set {name}={text}: more than {_MOST_STEPS:,} steps; leave them out, or take larger ones")
    if (end - begin) % step:
        raise UserError(f"--set {name}={text}: steps of {word} from {low} do not end at {high}")
    count = itertools.count()
    return [kind(begin + index * step) for index in itertools.takewhile(lambda n: begin + n * step <= end, count)]
