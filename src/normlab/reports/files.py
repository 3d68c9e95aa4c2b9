"""A report as files: one page with all in it, and tables and figures for a paper."""

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from normlab.outputs import plain_json
from normlab.outputs.atomic import unwritable, write_atomically
from normlab.reports import figures, formats, sections
from normlab.reports.comparison import Comparison
from normlab.reports.origin import SETTINGS, in_words
from normlab.reports.page import page
from normlab.reports.tables import Table

FORMATS = {"csv": formats.as_csv, "md": formats.as_markdown, "tex": formats.as_latex}
WRITTEN = "files.json"  # what a report has written, for the next one to remove


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
    contents: dict[str, bytes] = {}
    for (name, comparison), place in zip(comparisons.items(), _places(comparisons), strict=True):
        for table in sections.sections(comparison):
            for ending, form in FORMATS.items():
                contents[f"tables/{place}{table.name}.{ending}"] = form(table).encode()
        for picture in pictures[name]:
            contents[f"figures/{place}{picture.name}.svg"] = picture.svg
            contents[f"figures/{place}{picture.name}.png"] = picture.png
    contents |= {f"tables/{table.name}.csv": formats.as_csv(table).encode() for table in origin}
    contents["report.json"] = f"{plain_json.dump(values)}\n".encode()
    shown = [in_words(table) if table.name == SETTINGS else table for table in origin]
    html = page(comparisons, title=_title(comparisons.values()), command=command, origin=shown, pictures=pictures)
    contents["report.html"] = html.encode()

    _remove_an_earlier(folder)
    _write(folder / WRITTEN, f"{plain_json.dump({'files': [*contents]}, indent=2)}\n".encode())
    for name, content in contents.items():
        _write(folder / name, content)
    return folder / "report.html"


def _remove_an_earlier(folder: Path) -> None:
    """Remove the report that is there, and nothing else: of other runs there may be other tables and figures.

    A folder may be somebody else's: what its list names outside of it, or what is no file, stays.
    """
    names = plain_json.read(folder / WRITTEN).get("files")
    paths = [folder / name for name in (names if isinstance(names, list) else ()) if isinstance(name, str)]
    for path in paths:
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            path.unlink()


def _title(comparisons: Iterable[Comparison]) -> str:
    data = " and ".join(dict.fromkeys(comparison.kind.dataset for comparison in comparisons))
    return f"Normalizations compared on {data}"


def _places(names: Collection[str]) -> list[str]:
    """Return the folder of each of several names, `name/`, no two the same; one alone needs none."""
    if len(names) < 2:
        return [""] * len(names)
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "comparison"
        possible = itertools.chain([f"{plain}/"], (f"{plain}-{number}/" for number in itertools.count(2)))
        found.append(next(place for place in possible if place not in found))
    return found


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path.parent, error) from error
    write_atomically(path, content)
