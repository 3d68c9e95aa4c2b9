"""Parts by name: a registry for each group, and the parameters that a part declares in its own signature."""

import difflib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from normlab.settings import convert

Part = TypeVar("Part", bound=Callable[..., Any])


class Parameter(NamedTuple):
    """A keyword-only parameter of a part: what `configs/` may set. `default` is `inspect.Parameter.empty` if none."""

    hint: Any
    default: Any


class Registry(Generic[Part]):
    """The parts of one configuration group. Keyword-only parameters are settings; positional ones come from the code."""

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

    def check(self, name: str, params: Mapping[str, Any]) -> dict[str, str]:
        """Return what is wrong with a choice, by parameter (the key "" for the name itself); empty if all is right."""
        if name not in self._parts:
            return {"": unknown(name, self.names())}
        known = self.parameters(name)
        problems: dict[str, str] = {}
        for key, value in params.items():
            if key not in known:
                problems[key] = f"'{name}' has no such parameter; {_listing(list(known))}"
                continue
            try:
                convert(value, known[key].hint)
            except ValueError as problem:
                problems[key] = str(problem)
        for key, parameter in known.items():
            if parameter.default is inspect.Parameter.empty and key not in params:
                problems[key] = f"'{name}' needs it"
        return problems

    def build(self, name: str, params: Mapping[str, Any], /, *arguments: Any) -> Any:
        """Call the part with checked parameters, converted to their declared types."""
        if problems := self.check(name, params):
            raise ValueError(f"{self.group} {name}: {problems}")
        known = self.parameters(name)
        return self._parts[name](*arguments, **{key: convert(value, known[key].hint) for key, value in params.items()})


def unknown(name: str, choices: list[str]) -> str:
    """Say that a name is not among the choices, with the nearest one first."""
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"'{name}' is not known; {hint}there are {', '.join(choices)}"


def _listing(names: list[str]) -> str:
    return f"it has {', '.join(names)}" if names else "it has none"
