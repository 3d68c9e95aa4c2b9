"""Parts by name: a registry for each group, and the parameters that a part declares in its own signature."""

import difflib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from normlab.errors import Complaint
from normlab.settings import Misfit, convert, describe

Part = TypeVar("Part", bound=Callable[..., Any])


class Parameter(NamedTuple):
    """A keyword-only parameter of a part: what `configs/` may set. `default` is `inspect.Parameter.empty` if none."""

    hint: Any
    default: Any


class Registry(Generic[Part]):
    """The parts of one configuration group: keyword-only parameters are settings, positional ones come from code."""

    def __init__(self, group: str) -> None:
        self.group = group
        self._parts: dict[str, Part] = {}

    def register(self, name: str) -> Callable[[Part], Part]:
        def add(part: Part) -> Part:
            if name in self._parts:
                raise ValueError(f"{self.group} already has a part named {name!r}")
            self._parts[name] = part
            return part

        return add

    def __getitem__(self, name: str) -> Part:
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def names(self) -> list[str]:
        return sorted(self._parts)

    def parameters(self, name: str) -> dict[str, Parameter]:
        part = self._parts[name]
        hints = typing.get_type_hints(part.__init__ if inspect.isclass(part) else part, include_extras=True)
        return {
            parameter.name: Parameter(hints[parameter.name], parameter.default)
            for parameter in inspect.signature(part).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }

    def check(self, where: str, name: str, params: Mapping[str, Any]) -> list[Complaint]:
        """Return what is wrong with a choice that stands at the key `where`; nothing if all is right."""
        if name not in self._parts:
            return [unknown(where, name, self.names())]
        known = self.parameters(name)
        complaints: list[Complaint] = []
        for key, value in params.items():
            if key not in known:
                complaints.append(unknown(f"{where}.{key}", key, list(known), f"a parameter of '{name}'"))
                continue
            try:
                convert(value, known[key].hint)
            except Misfit as misfit:
                complaints.append(Complaint(f"{where}.{key}", misfit.problem, misfit.remedy))
        for key, parameter in known.items():
            if parameter.default is inspect.Parameter.empty and key not in params:
                complaints.append(Complaint(f"{where}.{key}", "is missing", f"give {describe(parameter.hint)}"))
        return complaints

    def complete(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters with the defaults of those that are not given, as plain values.

        Of a part that is not there they are returned as they are.
        """
        defaults = {
            key: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            for key, parameter in (self.parameters(name) if name in self else {}).items()
            if parameter.default is not inspect.Parameter.empty
        }
        return {**defaults, **params}

    def build(self, name: str, params: Mapping[str, Any], /, *arguments: Any) -> Any:
        """Call the part with its parameters converted to their declared types; raise `Misfit` for what does not fit."""
        known = self.parameters(name)
        return self._parts[name](*arguments, **{key: convert(value, known[key].hint) for key, value in params.items()})


def nearest(name: str, choices: list[str]) -> list[str]:
    """Return the choice that a mistyped name most likely meant, or nothing."""
    return difflib.get_close_matches(name, choices, n=1)


def unknown(where: str, name: str, choices: list[str], what: str = "known") -> Complaint:
    """Say that a name is not among the choices, and which one is nearest."""
    near = nearest(name, choices)
    listing = f"there are {', '.join(choices)}" if choices else "there are none"
    return Complaint(where, f"'{name}' is not {what}", f"did you mean '{near[0]}'? {listing}" if near else listing)
