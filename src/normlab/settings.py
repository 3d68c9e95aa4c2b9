"""What a setting may be: its type, its range, its unit; and one function that holds a value against that.

The hints stand where the setting is declared: in the fields of a configuration dataclass and in the keyword-only
parameters of a part. `convert` reads them, so that both are checked, listed and explained in the same way.
"""

import math
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """An interval of numbers; `above` and `below` exclude their ends, `least` and `most` include them."""

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        parts = [
            (f"at least {self.least:g}", self.least > -math.inf),
            (f"above {self.above:g}", self.above > -math.inf),
            (f"at most {self.most:g}", self.most < math.inf),
            (f"below {self.below:g}", self.below < math.inf),
        ]
        return " and ".join(text for text, bounded in parts if bounded)


PositiveInt = Annotated[int, Range(least=1)]
PowerIterations = Annotated[int, Range(least=1, most=1000)]
NonNegativeInt = Annotated[int, Range(least=0)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(least=0)]
Fraction = Annotated[float, Range(least=0, below=1)]


@dataclass(frozen=True)
class Length:
    """A length of training with its unit: `100 steps`, `2.5 epochs`, `50000 images` or, where allowed, `10 minutes`."""

    value: float
    unit: Literal["steps", "epochs", "images", "minutes"]

    @classmethod
    def parse(cls, text: str) -> "Length":
        number, _, unit = text.strip().partition(" ")
        unit = {"step": "steps", "epoch": "epochs", "image": "images", "minute": "minutes"}.get(unit, unit)
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if unit not in ("steps", "epochs", "images", "minutes") or not (1e-6 <= value <= 1e15):
            raise ValueError(f"{text!r} is not a length with its unit")
        if unit in ("steps", "images") and value != int(value):
            raise ValueError(f"{text!r} is not a whole number of {unit}")
        return cls(value, unit)

    def __str__(self) -> str:
        unit = self.unit[:-1] if self.value == 1 else self.unit
        return f"{self.value:.12g} {unit}"


@dataclass(frozen=True)
class Pattern:
    """Restricts a text to a regular expression, which `words` describes."""

    expression: str
    words: str

    def __contains__(self, text: str) -> bool:
        return re.fullmatch(self.expression, text) is not None

    def __str__(self) -> str:
        return self.words


class Unit:
    """Restricts a `Length` to some units, as in `Annotated[Length, Unit("steps", "epochs")]`."""

    def __init__(self, *units: str) -> None:
        self.units = units

    def __contains__(self, length: Length) -> bool:
        return length.unit in self.units

    def __str__(self) -> str:
        return "in " + " or ".join(self.units)


# Over how much of the training something changes; null is the run's whole length.
Horizon = Annotated[Length, Unit("steps", "epochs", "images")] | None


class Misfit(ValueError):
    """A value that a setting does not allow; `problem` says what it is, `remedy` what it should be."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem} — {remedy}")
        self.problem, self.remedy = problem, remedy


def convert(value: Any, hint: Any) -> Any:
    """Return `value` as the type that `hint` names, or raise `Misfit` with what it is and what it should be.

    Numbers must be finite, a whole float counts as an int, text never counts as a number, and a list becomes a tuple.
    """
    try:
        return _fit(value, hint)
    except ValueError:
        shown = str(value) if isinstance(value, Length) else repr(value)
        raise Misfit(f"got {shown}", f"give {describe(hint)}") from None


def describe(hint: Any) -> str:
    """Return in a few words what values a hint allows, for lists and messages."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([describe(arguments[0]), *map(str, arguments[1:])])
    if origin in (Union, types.UnionType):
        return " or ".join("null" if argument is type(None) else describe(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        items = arguments[:-1] if arguments[-1] is Ellipsis else arguments
        return "a list of " + ", ".join(describe(item) for item in items)
    length = "a length with its unit, such as '10 epochs' or '500 steps',"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Length: length}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _fit(value: Any, hint: Any) -> Any:
    """`convert`, but for its message: raise any ValueError where the value does not fit."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        converted = _fit(value, arguments[0])
        if not all(converted in restriction for restriction in arguments[1:]):
            raise ValueError
        return converted
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _fit(value, inner)
    if origin is Literal:
        return arguments[arguments.index(value)]
    if origin is tuple:
        return _fit_sequence(value, arguments)
    if hint is Length and isinstance(value, (str, Length)):
        return Length.parse(str(value))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int and number and value == value // 1:
        return int(value)
    if hint is float and number and math.isfinite(value):
        return float(value)
    if hint in (bool, str) and type(value) is hint:
        return value
    raise ValueError


def _fit_sequence(value: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError
    items = list(typing.cast(Sequence[Any], value))
    hints = [arguments[0]] * len(items) if arguments[-1] is Ellipsis else list(arguments)
    return tuple(_fit(item, hint) for item, hint in zip(items, hints, strict=True))
