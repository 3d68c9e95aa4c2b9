"""How steadily a run trained, in numbers of its rows; none changes when what it measures is multiplied by a constant.

Each stands under the name of what it measures: `loss/NAME/spread`, `loss/NAME/variation` and `loss/NAME/spikes` for
each loss that was logged; `score_gap/spread` and `score_gap/drift` for the score of real images less that of fakes;
`gradient_norm/NETWORK/cv`; `gradient_ratio/NETWORK/first_to_last` and `gradient_ratio/NETWORK/largest` where gradients
were recorded per layer. They do not compare different losses, nor runs that were logged unequally often.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from normlab.reports.measured import Measured, Unmeasurable, is_finite, measured

Rows = Sequence[Mapping[str, Any]]
Series = NDArray[np.float64]

ROLLING_ROWS = 10
LEAST_ROWS = 2 * ROLLING_ROWS
SPIKE_DEVIATIONS = 5.0  # of normal noise one row in two million lies further out
MAD_TO_DEVIATION = 1.4826  # of a normal distribution
ROUNDING = 1e-6  # rows hold seven digits
LEAST_SPECTRA = 3


class Window(NamedTuple):
    """The steps above `first`, up to `last`."""

    first: float
    last: float

    def rows(self, rows: Rows) -> Rows:
        return [row for row in rows if self.first < row["step"] <= self.last]


def last_half(rows: Rows) -> Window:
    """Return the second half of a run's steps: the first holds the fall of the losses, which is speed, not unrest."""
    last = rows[-1]["step"] if rows else 0
    return Window(last / 2, last)


def log_interval(rows: Rows) -> float | None:
    """Return how many steps apart the rows are, as a median; None for fewer than two rows."""
    steps = [row["step"] for row in rows]
    gaps = [after - before for before, after in pairwise(steps)]
    return statistics.median(gaps) if gaps else None


def stability(rows: Rows, spectra: Rows, window: Window) -> dict[str, Measured]:
    """Return every number of stability over a window of steps, by its name.

    rows: of `metrics.jsonl`.  spectra: of `spectra.jsonl`, the layers of a step in order of depth; may be empty.
    """
    rows, numbers = window.rows(rows), dict[str, Callable[[], float]]()
    logged = list(dict.fromkeys(key for row in rows for key in row))
    for key in logged:
        if key.startswith("loss/"):
            numbers[f"{key}/spread"] = partial(_relative, rolling_spread, rows, key)
            numbers[f"{key}/variation"] = partial(_relative, total_variation, rows, key)
            numbers[f"{key}/spikes"] = partial(_spikes, rows, key)
        if key.startswith("gradient_norm/"):
            numbers[f"{key}/cv"] = partial(_coefficient_of_variation, rows, key)
    if {"score/real", "score/fake"} <= set(logged):
        numbers["score_gap/spread"] = partial(_gap_spread, rows)
        numbers["score_gap/drift"] = partial(_gap_drift, rows)
    for network, profiles in _gradient_profiles(window.rows(spectra)).items():
        numbers[f"gradient_ratio/{network}/first_to_last"] = partial(first_to_last, profiles)
        numbers[f"gradient_ratio/{network}/largest"] = partial(largest_ratio, profiles)
    return {name: measured(compute) for name, compute in numbers.items()}


def scale(values: Series) -> float:
    """Return the size that fluctuations are held against: the median's absolute value plus the interquartile range.

    The level alone is near zero where a loss changes its sign, and the ratio then says nothing; the range alone grows
    with the very fluctuations that are to be measured. The sum is near the level of a steady loss, and of the size of
    the movement of one that has no level. Raises Unmeasurable if it is zero.
    """
    low, median, high = np.percentile(values, [25, 50, 75])
    if not (size := float(abs(median) + high - low)):
        raise Unmeasurable("a loss or the score gap is zero in nearly every row")
    return size


def rolling_spread(values: Series) -> float:
    """Return the standard deviation within a rolling window of `ROLLING_ROWS` rows, averaged over all windows."""
    return float(np.lib.stride_tricks.sliding_window_view(values, ROLLING_ROWS).std(axis=1, ddof=1).mean())


def total_variation(values: Series) -> float:
    """Return the mean absolute difference between a row and the next."""
    return float(np.abs(np.diff(values)).mean())


def spikes(values: Series) -> int:
    """Return how many rows lie further than `SPIKE_DEVIATIONS` deviations from the median of the ten rows around them.

    The deviation is 1.4826 times the median of all those distances: spikes do not raise it as they would a standard
    deviation. A slope is none, a jump that lasts counts twice: the row on either side of it. The five rows at either
    end, which have neighbours on one side only, are not judged.
    """
    half = ROLLING_ROWS // 2
    around = np.lib.stride_tricks.sliding_window_view(values, 2 * half + 1)
    distances = np.abs(around[:, half] - np.median(np.delete(around, half, axis=1), axis=1))
    usual = SPIKE_DEVIATIONS * MAD_TO_DEVIATION * np.median(distances)
    return int((distances > max(usual, ROUNDING * np.abs(values).max())).sum())


def drift(steps: Series, values: Series) -> float:
    """Return by how much the least-squares line through the values rises from the first step to the last."""
    centred = steps - steps.mean()
    return float(centred @ values / (centred @ centred) * (steps[-1] - steps[0]))


def first_to_last(profiles: Sequence[Sequence[Any]]) -> float:
    """Return the gradient norm at the first layer over that at the last, as the geometric mean over steps.

    profiles: of each step the norms, first layer to last. Far from 1 it explodes or vanishes on its way back, which
    Lin, Sekar & Fanti (2021) show by gradient norms per layer; to sum them up in a ratio is ours. Raises Unmeasurable
    for too few steps, a single layer, or a norm that is zero or not finite.
    """
    logarithms = _logarithms(profiles)
    return math.exp((logarithms[:, 0] - logarithms[:, -1]).mean())


def largest_ratio(profiles: Sequence[Sequence[Any]]) -> float:
    """Return the largest gradient norm of any layer over the smallest, as the geometric mean over steps; as above."""
    return math.exp(np.ptp(_logarithms(profiles), axis=1).mean())


def _relative(amount: Callable[[Series], float], rows: Rows, key: str) -> float:
    values = _series(rows, key)
    return amount(values) / scale(values)


def _spikes(rows: Rows, key: str) -> float:
    return spikes(_series(rows, key))


def _coefficient_of_variation(rows: Rows, key: str) -> float:
    values = _series(rows, key)
    if not (mean := float(values.mean())):
        raise Unmeasurable(f"{key} is zero in every row")
    return float(values.std(ddof=1)) / mean


def _gap_spread(rows: Rows) -> float:
    gap = _gap(rows)
    return rolling_spread(gap) / scale(gap)


def _gap_drift(rows: Rows) -> float:
    gap = _gap(rows)
    return drift(_series(rows, "step"), gap) / scale(gap)


def _gap(rows: Rows) -> Series:
    return _series(rows, "score/real") - _series(rows, "score/fake")


def _series(rows: Rows, key: str) -> Series:
    """Return the values of a key; raise Unmeasurable if they are too few, or one is missing or not finite."""
    if len(rows) < LEAST_ROWS:
        raise Unmeasurable(f"{len(rows)} logged rows in the window, fewer than {LEAST_ROWS}: see every.log")
    if not all(is_finite(row.get(key)) for row in rows):
        raise Unmeasurable(f"{key} is missing or not finite in some rows")
    return np.array([row[key] for row in rows], dtype=np.float64)


def _gradient_profiles(spectra: Rows) -> dict[str, list[list[Any]]]:
    """Return of each network, for each step, the gradient norms of its layers."""
    norms: dict[str, dict[int, list[Any]]] = {}
    for row in spectra:
        if "gradient_norm" in row and isinstance(row.get("network"), str):
            norms.setdefault(row["network"], {}).setdefault(row["step"], []).append(row["gradient_norm"])
    return {network: list(steps.values()) for network, steps in norms.items()}


def _logarithms(profiles: Sequence[Sequence[Any]]) -> Series:
    """Return the logarithms of gradient norms [steps, layers]."""
    if len(profiles) < LEAST_SPECTRA:
        raise Unmeasurable(f"gradients per layer at {len(profiles)} steps of the window, fewer than {LEAST_SPECTRA}")
    if {len(profile) for profile in profiles} != {len(profiles[0])} or len(profiles[0]) < 2:
        raise Unmeasurable("gradients per layer are not of the same two or more layers at every step")
    if not all(is_finite(norm) and norm > 0 for profile in profiles for norm in profile):
        raise Unmeasurable("the gradient norm of a layer is zero or not finite")
    return np.log(np.array(profiles, dtype=np.float64))
