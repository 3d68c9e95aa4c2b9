"""How fast a run gets good: the time it takes a metric to reach a level, and the area under the metric's curve."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from normlab.reports.measured import Unmeasurable, is_finite
from normlab.reports.statistics import ratio_interval

Rows = Sequence[Mapping[str, Any]]

LOWER_IS_BETTER = ("fid", "frechet_distance", "kid", "kernel_distance", "reconstruction_error", "kl_to_uniform")
HIGHER_IS_BETTER = (
    *("inception_score", "classifier_score", "precision", "recall", "density", "coverage"),
    *("modes", "good_share"),
)
METRICS = (*LOWER_IS_BETTER, *HIGHER_IS_BETTER)
# What time is counted in: the names that rows have for it, and their words.
UNITS = {"step": "steps", "images_seen": "images", "seconds": "seconds"}


class Point(NamedTuple):
    """An evaluation: `at` in each of `UNITS`, and the metric's value, None where it was flagged or has none."""

    at: dict[str, float]
    value: float | None


class Speedup(NamedTuple):
    """By how many per cent an arm is faster than the baseline, from what to what; if not told, `reason` says why.

    paired: whether the seeds of both are the same, so that the interval is that of pairs.
    """

    percent: float | None
    low: float | None = None
    high: float | None = None
    paired: bool = False
    reason: str | None = None


def direction(metric: str) -> int:
    """Return 1 for a metric that is better high, -1 for one that is better low."""
    return 1 if metric in HIGHER_IS_BETTER else -1


def protocol_of(rows: Rows) -> str | None:
    """Return the protocol of the last row of `evaluations.jsonl`, which a final value is of; None if none tells one."""
    return next((row["protocol"] for row in reversed(rows) if isinstance(row.get("protocol"), str)), None)


def curve(rows: Rows, metric: str, protocol: str | None) -> list[Point]:
    """Return the evaluations by one protocol, of the averaged generator where there is one, else of the live one."""
    own = [row for row in rows if row.get("protocol") == protocol and all(is_finite(row.get(unit)) for unit in UNITS)]
    name = "averaged" if any(row.get("generator") == "averaged" for row in own) else "live"
    return [
        Point({unit: row[unit] for unit in UNITS}, _value(row, metric)) for row in own if row.get("generator") == name
    ]


def last_scores(rows: Rows, protocol: str | None) -> dict[str, float]:
    """Return every metric of the last evaluation by one protocol, of the same generator as `curve`; flagged, none."""
    own = [row for row in rows if row.get("protocol") == protocol]
    name = "averaged" if any(row.get("generator") == "averaged" for row in own) else "live"
    last = next((row for row in reversed(own) if row.get("generator") == name), {})
    return {metric: value for metric in METRICS if (value := _value(last, metric)) is not None}


def reached(points: Sequence[Point], level: float, metric: str) -> Point | None:
    """Return the first evaluation whose value is at the level or better."""
    sign = direction(metric)
    return next((point for point in points if point.value is not None and sign * (point.value - level) >= 0), None)


def restricted_mean(times: Sequence[float | None], horizon: float) -> float:
    """Return the mean of times, each at most the horizon; None stands for a time beyond it (a censored one).

    The mean time itself cannot be known where a run has not reached the level; the mean within a horizon that every run
    was followed to can (Royston & Parmar 2013).
    """
    return statistics.fmean(horizon if time is None else min(time, horizon) for time in times)


def speedup(arm: Mapping[Any, float | None], baseline: Mapping[Any, float | None], horizon: float) -> Speedup:
    """Return 1 less the ratio of restricted mean times, in per cent: 30 means that it takes 30 % less time.

    arm, baseline: the time of each seed, None where the level was not reached. The interval is Fieller's for a ratio of
    means, of pairs if both have the same seeds, which begin from the same weights and see the same images. Of 3 to 10
    seeds it holds the true ratio as often as it says; the percentiles of a bootstrap do so far too rarely.
    """
    own, other = ({seed: restricted_mean([time], horizon) for seed, time in times.items()} for times in (arm, baseline))
    mean, base = (statistics.fmean(times.values()) if times else 0.0 for times in (own, other))
    if not own or not other:
        return Speedup(None, reason="an arm has no run that could be timed")
    if all(time is None or time > horizon for time in (*arm.values(), *baseline.values())):
        return Speedup(None, reason="no run of either arm reaches the level before the shortest run ends")
    if base == 0:
        return Speedup(None, reason="the baseline is at the level before the first step")
    percent = 100 * (1 - mean / base)
    paired = own.keys() == other.keys()
    if min(len(own), len(other)) < 2:
        return Speedup(percent, reason="an interval needs two seeds of both arms")
    if len({*own.values()}) == len({*other.values()}) == 1:
        return Speedup(percent, reason="the seeds of an arm reach the level at the same evaluation: no interval")
    bounds = ratio_interval([own[seed] for seed in sorted(own)], [other[seed] for seed in sorted(other)], paired=paired)
    if bounds is None:
        return Speedup(percent, reason="the baseline's seeds are too few and differ too much for an interval")
    return Speedup(percent, 100 * (1 - bounds[1]), 100 * (1 - bounds[0]), paired)


def log_area(points: Sequence[Point], start: float, end: float) -> float:
    """Return the mean of the metric's base-10 logarithm over images seen, from `start` to `end` (trapezoids).

    Evaluations without a value are bridged. Raises Unmeasurable if the curve does not span that stretch, or a value is
    not positive.
    """
    known = [point for point in points if point.value is not None]
    values, images = [point.value or 0.0 for point in known], [point.at["images_seen"] for point in known]
    if len(known) < 2 or not images[0] <= start < end <= images[-1]:
        raise Unmeasurable("the metric was not evaluated over the whole stretch, or only once")
    if min(values) <= 0:
        raise Unmeasurable("a value that is not positive has no logarithm")
    inner = [start, *(count for count in images if start < count < end), end]
    logarithms = np.interp(inner, images, np.log10(values))
    widths = np.diff(inner)
    return float((logarithms[1:] + logarithms[:-1]) @ widths / 2 / (end - start))


def _value(row: Mapping[str, Any], metric: str) -> float | None:
    value = row.get(metric)
    return value if is_finite(value) and not row.get("flags") else None
