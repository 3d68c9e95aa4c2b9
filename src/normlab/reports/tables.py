"""Tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out rows under the union of their keys; numbers to the right, missing values as '-'."""
    if not rows:
        return "(nothing)"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    numeric = [all(isinstance(row.get(column), (int, float, type(None))) for row in rows) for column in columns]
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
    return "\n".join(f"{key.ljust(width)}  {_cell(value)}" for key, value in shown.items())


def size(count: float) -> str:
    """Return a number of bytes as people read it: 12.3 MB, 1.5 GB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
