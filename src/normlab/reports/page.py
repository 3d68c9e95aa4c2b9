"""A comparison as one web page that needs nothing else: no network, no other file."""

import base64
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from normlab.reports import sections, sheets
from normlab.reports.answer import answer
from normlab.reports.comparison import Comparison
from normlab.reports.figures import Picture
from normlab.reports.tables import Bounded, Table, cell, headings, is_numeric

FIRST_TABLES = ("quality", "differences")
FIRST_PICTURES = ("finals",)
SAMPLES = "samples"  # which a page lays out itself


def page(
    comparisons: Mapping[str, Comparison],
    *,
    title: str,
    command: str,
    origin: Sequence[Table],
    pictures: Mapping[str, Sequence[Picture]],
) -> str:
    """Return the HTML of comparisons, by name.

    command: that made the page.  origin: the tables at its end, of where the runs come from.  pictures: those of each
    comparison.
    """
    from jinja2 import Environment, StrictUndefined  # whose import only a page needs

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["breakable"] = _breakable
    template = environment.from_string(resources.files("normlab.reports").joinpath("page.html").read_text())
    parts = [_part(number, *named, pictures[named[0]]) for number, named in enumerate(comparisons.items())]
    tables = [_table(table, "origin") for table in origin]
    return template.render(title=title, command=command, origin=tables, parts=parts) + "\n"


def by_name(comparisons: Sequence[Comparison]) -> dict[str, Comparison]:
    """Return comparisons by what tells each from the others in a report: a number, where only the protocol does.

    One by itself is called by all of it.
    """
    every = [(each.kind.dataset, each.terms.metric, each.kind.precision, each.kind.within) for each in comparisons]
    columns = [*zip(*every, strict=True)]
    telling = [place for place, column in enumerate(columns) if len({*column}) > 1] or range(len(columns))
    own = [", ".join(filter(None, (parts[place] for place in telling))) or "others" for parts in every]
    return {
        f"{name}, protocol {own[:number].count(name) + 1}" if own.count(name) > 1 else name: comparison
        for number, (name, comparison) in enumerate(zip(own, comparisons, strict=True))
    }


def _part(number: int, name: str, comparison: Comparison, pictures: Sequence[Picture]) -> dict[str, Any]:
    own = f"part-{number}"
    tables = [_table(table, own, comparison) for table in sections.sections(comparison)]
    shown = [_picture(picture, own) for picture in pictures if picture.name != SAMPLES]
    first = [table for table in tables if table["name"] in FIRST_TABLES]
    contents = [{"id": each["id"], "name": each["word"]} for each in (*first, *shown)]
    sheet = _sheet(comparison)
    contents += [] if sheet is None else [{"id": f"{own}-samples", "name": "samples"}]
    contents += [{"id": each["id"], "name": each["word"]} for each in tables if each not in first]
    contents += [{"id": f"{own}-notes", "name": "notes"}] if comparison.notes else []
    contents += [{"id": "origin", "name": "where it comes from"}]
    return {
        "id": own,
        "name": name,
        "answer": answer(comparison),
        "heading": sections.heading(comparison),
        "contents": contents,
        "first_tables": first,
        "first_pictures": [each for each in shown if each["name"] in FIRST_PICTURES],
        "pictures": [each for each in shown if each["name"] not in FIRST_PICTURES],
        "sheet": sheet,
        "tables": [table for table in tables if table not in first],
        "notes": comparison.notes,
    }


def _table(table: Table, prefix: str, comparison: Comparison | None = None) -> dict[str, Any]:
    columns = headings(table.rows)
    baseline = None if comparison is None else comparison.results[0].arm.label
    return {
        "id": f"{prefix}-{table.name}",
        "name": table.name,
        "word": table.name.replace("_", " "),
        "title": table.title,
        "lines": table.lines,
        "columns": [{"name": column, "numeric": is_numeric(table.rows, column)} for column in columns],
        "rows": [
            {
                "baseline": baseline is not None and row.get("arm") == baseline,
                "cells": [_cell(row.get(column), is_numeric(table.rows, column)) for column in columns],
            }
            for row in table.rows
        ],
    }


def _breakable(text: str) -> Any:
    """Return a text as HTML in which a name too long for its column goes on in the next line behind a `_`."""
    from markupsafe import Markup, escape

    return Markup(escape(text).replace("_", Markup("_<wbr>")))


def _cell(value: Any, numeric: bool) -> dict[str, Any]:
    text, interval = cell(value), ""
    if isinstance(value, Bounded) and value.low is not None:
        text, _, rest = text.partition(" [")
        interval = f"[{rest}"
    key = value.value if isinstance(value, Bounded) else value
    if isinstance(value, str) and (counted := re.fullmatch(r"(\d+) of \d+", value)):
        key = counted[1]
    kind = "number" if numeric else value if value in ("better", "worse") else "wrap" if len(text) > 36 else ""
    return {"text": text, "interval": interval, "key": "" if key is None else str(key), "kind": kind}


def _picture(picture: Picture, prefix: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{picture.name}",
        "name": picture.name,
        "word": picture.word,
        "wide": picture.name not in FIRST_PICTURES,
        "caption": picture.caption,
        "source": _data("image/svg+xml", picture.for_a_page()),
    }


def _sheet(comparison: Comparison) -> dict[str, Any] | None:
    sheet = sheets.sheet(comparison)
    if sheet is None:
        return None
    cells = [[None if piece is None else _data("image/png", piece) for piece in row] for row in sheet.cells]
    return {"seed": sheet.seed, "steps": sheet.steps, "rows": [*zip(sheet.arms, cells, strict=True)]}


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
