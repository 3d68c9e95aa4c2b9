"""Tables for a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Row = Mapping[str, Any]

SIGNIFICANT = 0.05  # a p below it is called a difference


class Bounded(NamedTuple):
    """A number in a table with its interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""


class Probability(float):
    """A p value, of which two digits are enough but just below the level that is asked of it."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under one heading; `lines` say below it how to read them.  name: of its file."""

    name: str
    title: str
    rows: Sequence[Row]
    lines: Sequence[str] = ()


def headings(rows: Sequence[Row]) -> list[str]:
    """Return the union of the keys of rows."""
    return list(dict.fromkeys(key for row in rows for key in row))


def is_numeric(rows: Sequence[Row], column: str) -> bool:
    """Return whether a column holds nothing but numbers."""
    return all(isinstance(row.get(column), (int, float, type(None), Bounded)) for row in rows)


def render(rows: Sequence[Row]) -> str:
    """Lay out rows under the union of their keys; numbers to the right, missing values as '-'."""
    if not rows:
        return "(nothing)"
    columns = headings(rows)
    cells = [[cell(row.get(column)) for column in columns] for row in rows]
    numeric = [is_numeric(rows, column) for column in columns]
    widths = [max(len(column), *(len(row[i]) for row in cells)) for i, column in enumerate(columns)]
    lines = [columns, ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def columns(row: Mapping[str, Any]) -> str:
    """Lay out one row with a line for each key; what is empty is left out."""
    shown = {key: value for key, value in row.items() if value not in ([], {}, None)}
    width = max(map(len, shown))
    return "\n".join(f"{key.ljust(width)}  {cell(value)}" for key, value in shown.items())


def size(count: float) -> str:
    """Return a number of bytes as people read it: 12.3 MB, 1.5 GB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def cell(value: Any) -> str:
    """Return what stands in a table for a value."""
    if value is None:
        return "-"
    if isinstance(value, Probability):
        if value < 1e-4:
            return "<0.0001"
        return f"{value:.2g}" if (value < SIGNIFICANT) == (float(f"{value:.2g}") < SIGNIFICANT) else f"{value:.4g}"
    if isinstance(value, Bounded):
        number = f"{cell(float(value.value))}{value.unit}"
        if value.low is None or value.high is None:
            return number
        return f"{number} [{cell(float(value.low))}, {cell(float(value.high))}]"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
