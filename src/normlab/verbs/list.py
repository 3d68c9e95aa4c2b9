"""`normlab list [GROUP [NAME]]`: every part there is, its parameters, defaults and source."""

import inspect
from types import NoneType
from typing import Any

from normlab import composition
from normlab.assemble import REGISTRIES, import_plugins
from normlab.config import RunConfig
from normlab.errors import DONE, ConfigurationError
from normlab.evaluation.features import FEATURES
from normlab.outputs import plain_json
from normlab.registry import unknown
from normlab.settings import describe
from normlab.verbs.arguments import Arguments, modules

# Of the features `evaluation.features` names one; they have no files of their own.
LISTED = {**REGISTRIES, "features": FEATURES}


def run(arguments: list[str]) -> int:
    """Print the groups, or the choices of one, or all about one choice."""
    parser = Arguments("list", "Every part there is.")
    parser.add_argument("group", nargs="?", metavar="GROUP")
    parser.add_argument("name", nargs="?", metavar="NAME")
    parser.add_argument(
        "--plugins", type=modules, default=(), metavar="MODULES", help="show the parts of these modules too"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    composition.refuse(import_plugins(RunConfig(plugins=options.plugins)))
    described = {
        group: {name: describe_part(group, name) for name in _chosen(group, options.name, choices(group))}
        for group in _chosen("GROUP", options.group, sorted({*composition.groups(), *LISTED}))
    }
    print(plain_json.dump(described) if options.json else _text(described, in_full=options.name is not None))
    return DONE


def choices(group: str) -> list[str]:
    """Return the names in a group: those of its files, and of parts that plugins have registered without one."""
    names = composition.choices(group) if group in composition.groups() else []
    return [*names, *(name for name in (LISTED[group].names() if group in LISTED else []) if name not in names)]


def _chosen(where: str, name: str | None, there: list[str]) -> list[str]:
    if name is None:
        return there
    if name not in there:
        raise ConfigurationError.of([unknown(where, name, there)])
    return [name]


def describe_part(group: str, name: str) -> dict[str, Any]:
    """Return what a choice is: the first sentence of its part's docstring, or its file's, and its parameters."""
    registry = LISTED.get(group)
    if registry is None or name not in registry:
        return {"summary": composition.header(group, name), "parameters": {}}
    text = inspect.getdoc(registry[name]) or ""
    parameters = {
        key: {"default": parameter.default, "allowed": describe(parameter.hint)}
        for key, parameter in registry.parameters(name).items()
    }
    return {"summary": text.splitlines()[0], "text": text, "parameters": parameters}


def _text(described: dict[str, dict[str, dict[str, Any]]], in_full: bool) -> str:
    lines: list[str] = []
    for group, parts in described.items():
        lines += ["", group] if len(described) > 1 else [group]
        for name, part in parts.items():
            lines.append(f"  {name:<16} {part['summary']}")
            if in_full:
                lines += [f"  {line}" for line in part.get("text", "").splitlines()[1:]]
            for key, parameter in part["parameters"].items():
                lines.append(f"      {key} = {_shown(parameter['default'])}    ({parameter['allowed']})")
    return "\n".join(lines).strip()


def _shown(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "(must be given)"
    if isinstance(default, (bool, NoneType)):
        return {None: "null", True: "true", False: "false"}[default]
    return str(list(default) if isinstance(default, tuple) else default)
