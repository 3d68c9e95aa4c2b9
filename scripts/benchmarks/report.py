"""What a benchmark found."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
    """What a benchmark found: `values` for machines, which hold `control`, and `lines` for people."""

    values: dict[str, Any]
    lines: list[str]
