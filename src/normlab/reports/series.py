"""What of a run's rows is drawn: few enough points for a page, whatever the length of the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.reports.measured import is_finite

Rows = Sequence[Mapping[str, Any]]
Array = NDArray[np.float64]

MOST_POINTS = 60
NETWORKS = ("generator", "discriminator")
# Of `metrics.jsonl`; the gap is the score of real images less that of fakes.
DRAWN = ("loss/discriminator", "loss/generator", "gradient_norm/discriminator", "gradient_norm/generator")
GAP = "score gap"


@dataclass(frozen=True)
class Layers:
    """Numbers of a network's layers, in the order of the pass, at the images seen when they were measured.

    sigma, gradient_norm: [times, layers], NaN where there is no number.
    """

    names: tuple[str, ...]
    images: Array
    sigma: Array
    gradient_norm: Array


def scalars_of(rows: Rows) -> dict[str, Array]:
    """Return what is drawn of a run's scalars as points [n, 2] of images seen and value, means over equal stretches."""
    series: dict[str, Array] = {}
    for key in DRAWN:
        series[key] = _thinned([(row["images_seen"], row[key]) for row in rows if _has(row, key)])
    both = [row for row in rows if _has(row, "score/real") and _has(row, "score/fake")]
    series[GAP] = _thinned([(row["images_seen"], row["score/real"] - row["score/fake"]) for row in both])
    return {key: points for key, points in series.items() if len(points)}


def layers_of(rows: Rows) -> dict[str, Layers]:
    """Return what is drawn of the rows of `spectra.jsonl`, by network."""
    found: dict[str, Layers] = {}
    for network in NETWORKS:
        own = [row for row in rows if row.get("network") == network and isinstance(row.get("layer"), str)]
        names = tuple(dict.fromkeys(str(row["layer"]) for row in own))
        times = sorted({row["images_seen"] for row in own if is_finite(row.get("images_seen"))})
        places = {name: place for place, name in enumerate(names)}, {time: place for place, time in enumerate(times)}
        values = np.full((2, len(times), len(names)), np.nan)
        for row in own:
            for number, key in enumerate(("sigma", "gradient_norm")):
                if is_finite(row.get(key)) and row.get("images_seen") in places[1]:
                    values[number, places[1][row["images_seen"]], places[0][row["layer"]]] = row[key]
        if names and times:
            found[network] = Layers(names, np.array(times, dtype=np.float64), *values)
    return found


def _has(row: Mapping[str, Any], key: str) -> bool:
    return is_finite(row.get(key)) and is_finite(row.get("images_seen"))


def _thinned(points: Sequence[tuple[float, float]]) -> Array:
    """Return at most `MOST_POINTS` points, each the mean of neighbours."""
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    if len(array) <= MOST_POINTS:
        return array
    each = -(-len(array) // MOST_POINTS)
    return np.array([array[start : start + each].mean(axis=0) for start in range(0, len(array), each)])
