"""Samples of arms side by side: the same latents in every cell, a row for each arm, a column for each step."""

import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from normlab.outputs.grid_layout import COLUMNS, PADDING, SIDE
from normlab.outputs.plots import spread
from normlab.outputs.run_dir import RunDir
from normlab.reports.comparison import Comparison, Ended

MOST_STEPS = 5
SHOWN = 4  # rows and columns of a run's grid
ENLARGED = 2


class Sheet(NamedTuple):
    """Pieces of sample grids as PNGs, None where there is none: a row for each arm, a column for each step."""

    seed: int
    steps: list[int]
    arms: list[str]
    cells: list[list[bytes | None]]


def sheet(comparison: Comparison) -> Sheet | None:
    """Return the samples of the first seed that most arms have; None where runs have kept none."""
    runs = {result.arm.label: {run.seed: run for run in result.ended if _steps(run)} for result in comparison.results}
    seeds = sorted({seed for own in runs.values() for seed in own})
    if not seeds:
        return None
    seed = max(seeds, key=lambda seed: (sum(seed in own for own in runs.values()), -seed))
    chosen = {label: own[seed] for label, own in runs.items() if seed in own}
    whole = [run for run in chosen.values() if run.is_done] or [*chosen.values()]  # others may end before the first
    shared = sorted(set.intersection(*({*_steps(run)} for run in whole)))
    steps = spread(shared or sorted({step for run in chosen.values() for step in _steps(run)}), MOST_STEPS)
    cells = [[_piece(RunDir(run.run.path).sample(step)) for step in steps] for run in chosen.values()]
    return Sheet(seed, steps, [*chosen], cells)


def _steps(run: Ended) -> list[int]:
    names = [path.stem.partition("_")[2] for path in sorted(RunDir(run.run.path).samples.glob("step_*.png"))]
    return [int(name) for name in names if name.isdecimal()]


def _piece(path: Path) -> bytes | None:
    """Return the upper left part of a grid; all of a plot of points."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what damaged files give
        return None
    if image.size != (SIDE, SIDE):
        side = (image.width - PADDING) // COLUMNS
        edge = min(SHOWN * side + PADDING, image.width, image.height)
        image = image.crop((0, 0, edge, edge))
    scale = ENLARGED if image.width < SIDE else 1
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()
