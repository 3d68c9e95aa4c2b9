"""What a setting may be: its type, its range, its unit; and one function that holds a value against that.

The hints stand where the setting is declared: in the fields of a configuration dataclass and in the keyword-only
parameters of a part. `convert` reads them, so that both are checked, listed and explained in the same way.
"""

import math
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
        if unit not in ("steps", "epochs", "images", "minutes") or not (0 < value < math.inf):
            raise ValueError(f"must be a length with its unit, such as '10 epochs' or '500 steps', got {text!r}")
        if unit in ("steps", "images") and value != int(value):
            raise ValueError(f"must be a whole number of {unit}, got {text!r}")
        return cls(value, unit)

    def __str__(self) -> str:
        unit = self.unit[:-1] if self.value == 1 else self.unit
        return f"{self.value:.12g} {unit}"


class Unit:
    """Restricts a `Length` to some units, as in `Annotated[Length, Unit("steps", "epochs")]`."""

    def __init__(self, *units: str) -> None:
        self.units = units


def convert(value: Any, hint: Any) -> Any:
    """Return `value` as the type that `hint` names, or raise ValueError with what it must be and what it is.

    Numbers must be finite, a whole float counts as an int, text never counts as a number, and a list becomes a tuple.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _restricted(value, arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return convert(value, inner)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        return _sequence(value, arguments)
    if hint is Length:
        if not isinstance(value, (str, Length)):
            raise ValueError(f"must be a length with its unit, such as '10 epochs' or '500 steps', got {value!r}")
        return Length.parse(str(value))
    return _scalar(value, hint)


def describe(hint: Any) -> str:
    """Return in a few words what values a hint allows, for lists and messages."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        restrictions = [str(extra) for extra in arguments[1:] if isinstance(extra, Range)]
        restrictions += [" or ".join(extra.units) for extra in arguments[1:] if isinstance(extra, Unit)]
        return " ".join([describe(arguments[0]), *restrictions])
    if origin in (Union, types.UnionType):
        return " or ".join("null" if argument is type(None) else describe(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        items = arguments[:-1] if arguments[-1] is Ellipsis else arguments
        return "list of " + ", ".join(describe(item) for item in items)
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", Length: "length"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _restricted(value: Any, hint: Any, restrictions: Sequence[object]) -> Any:
    converted = convert(value, hint)
    for restriction in restrictions:
        if isinstance(restriction, Range) and converted not in restriction:
            raise ValueError(f"must be {restriction}, got {value!r}")
        if isinstance(restriction, Unit) and converted.unit not in restriction.units:
            raise ValueError(f"must be in {' or '.join(restriction.units)}, got {str(value)!r}")
    return converted


def _sequence(value: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list, got {value!r}")
    items = list(typing.cast(Sequence[Any], value))
    if arguments[-1] is Ellipsis:
        return tuple(convert(item, arguments[0]) for item in items)
    if len(items) != len(arguments):
        raise ValueError(f"must have {len(arguments)} entries, got {items!r}")
    return tuple(convert(item, hint) for item, hint in zip(items, arguments, strict=True))


def _scalar(value: Any, hint: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and number and value == value // 1:
        return int(value)
    if hint is float and number and math.isfinite(value):
        return float(value)
    if hint is str and isinstance(value, str):
        return value
    raise ValueError(f"must be a {describe(hint)}, got {value!r}".replace("a true or false", "true or false"))
