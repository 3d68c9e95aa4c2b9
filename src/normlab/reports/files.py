"""A report as files: one page with all in it, and tables and figures for a paper."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from normlab.outputs import plain_json
from normlab.outputs.atomic import write_atomically
from normlab.reports import figures, formats, sections
from normlab.reports.comparison import Comparison
from normlab.reports.origin import SETTINGS, in_words
from normlab.reports.page import page
from normlab.reports.tables import Table

FORMATS = {"csv": formats.as_csv, "md": formats.as_markdown, "tex": formats.as_latex}


def write(
    folder: Path,
    comparisons: Mapping[str, Comparison],
    origin: Sequence[Table],
    values: Mapping[str, Any],
    command: str,
) -> Path:
    """Write a report into a folder, over one that is there, and return its page.

    `report.html`, `report.json` with `values`, and in `tables` and `figures` the parts of the page; of several
    comparisons each has a folder in those.  comparisons: by name.  origin: tables of where the runs come from.
    command: that makes the page.
    """
    pictures = {name: figures.pictures(comparison) for name, comparison in comparisons.items()}
    _remove_an_earlier(folder)
    for name, comparison in comparisons.items():
        place = _slug(name) if len(comparisons) > 1 else ""
        for table in sections.sections(comparison):
            for ending, form in FORMATS.items():
                _write(folder / "tables" / place / f"{table.name}.{ending}", form(table).encode())
        for picture in pictures[name]:
            _write(folder / "figures" / place / f"{picture.name}.svg", picture.svg)
            _write(folder / "figures" / place / f"{picture.name}.png", picture.png)
    for table in origin:
        _write(folder / "tables" / f"{table.name}.csv", formats.as_csv(table).encode())
    _write(folder / "report.json", f"{plain_json.dump(values)}\n".encode())
    shown = [in_words(table) if table.name == SETTINGS else table for table in origin]
    html = page(comparisons, title=_title(comparisons.values()), command=command, origin=shown, pictures=pictures)
    _write(folder / "report.html", html.encode())
    return folder / "report.html"


def _remove_an_earlier(folder: Path) -> None:
    """Remove the tables and figures of a report that is there: of other runs they may be others."""
    if (folder / "report.json").exists():
        for part, endings in (("tables", FORMATS), ("figures", ("svg", "png"))):
            for ending in endings:
                for path in (folder / part).rglob(f"*.{ending}"):
                    path.unlink()


def _title(comparisons: Iterable[Comparison]) -> str:
    data = " and ".join(dict.fromkeys(comparison.kind.dataset for comparison in comparisons))
    return f"Normalizations compared on {data}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
