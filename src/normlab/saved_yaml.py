"""YAML as a run's folder holds it, read fast: reports read hundreds of them."""

import re
from typing import Any, ClassVar

import yaml

DEEPEST = 50  # a run's settings are five deep

# The parser in C, where there is one; the one in Python takes ten times as long.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):
    """Reads what OmegaConf writes as OmegaConf reads it: 2e-4 is a number, a date is text, no key stands twice."""

    yaml_implicit_resolvers: ClassVar[Any] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in _Base.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        if twice := next((key for number, key in enumerate(keys) if key in keys[:number]), None):
            raise ValueError(f"{twice} stands there twice")
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse(text: str) -> Any:
    """Return what a text holds; raise ValueError or YAMLError for what no run has written.

    Parts that refer to others may unfold without end, and what is nested without end overflows the stack of C.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it refers to its own parts, which no run's does")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is more than {DEEPEST} deep, which no run's is")
    return yaml.load(text, Loader=_Loader)
