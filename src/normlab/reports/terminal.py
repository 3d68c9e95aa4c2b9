"""A comparison in the tables of a terminal."""

import statistics
from collections.abc import Iterator
from typing import Any

from normlab.reports import convergence, tables
from normlab.reports.comparison import Comparison, Result, evaluation_interval
from normlab.reports.convergence import Speedup

SHORT = {"generator": "G", "discriminator": "D", "score_gap": "gap", "gradient_norm": "gradient"}
UNIT_NAMES = {"step": "steps", "images_seen": "images", "seconds": "seconds"}
# What stands in one table, by the beginnings of the numbers' names.
STABILITY = (
    ("Losses, over their size: spread within 10 rows, variation from row to row; how many rows are spikes", ("loss/",)),
    (
        "Score gap (real less fake), over its size; gradient norms, deviation over mean",
        ("score_gap/", "gradient_norm/"),
    ),
    ("Gradient norms over the layers: first over last, largest over smallest; 1 is even", ("gradient_ratio/",)),
)
UNFINISHED = ("running", "interrupted", "stopped")
FOUND = ("collapsed", "dead")  # what may be said of a run that goes on


def lines(comparison: Comparison) -> Iterator[str]:
    """Yield what is shown of a comparison, quality before anything else."""
    yield f"Data: {comparison.dataset}   Protocol: {comparison.protocol or 'none, nothing was evaluated'}"
    yield f"Baseline: {comparison.results[0].arm.label}"
    for part in (_quality(comparison), _stability(comparison), _convergence(comparison)):
        yield from ("", *part)
    if comparison.notes:
        yield from ("", *(f"- {note}" for note in comparison.notes))


def _quality(comparison: Comparison) -> Iterator[str]:
    terms = comparison.terms
    better = "higher" if terms.metric in convergence.HIGHER_IS_BETTER else "lower"
    told = [state for state in FOUND if any(result.found(state) for result in comparison.results)]
    yield f"Quality: {terms.metric} at the last evaluation, over n seeds; {better} is better"
    yield tables.render(
        [
            {
                **_beginning(comparison, result),
                "sd": result.deviation,
                "n": sum(run.final.value is not None for run in result.ended),
                "done": result.count("done"),
                **{f"but {state}": result.found(state) for state in told},
                "diverged": result.count("diverged"),
                "collapsed": result.count("collapsed"),
                "failed": result.count("failed"),
                "unfinished": result.count(*UNFINISHED),
            }
            for result in comparison.results
        ]
    )


def _stability(comparison: Comparison) -> Iterator[str]:
    intervals = [run.log_interval for result in comparison.results for run in result.ended if run.log_interval]
    every = f", logged every {statistics.median_low(intervals):g}" if intervals else ""
    yield f"Stability: over the last half of each run's steps{every}; means over seeds"
    keys = list(dict.fromkeys(key for result in comparison.results for key in result.stability))
    for caption, starts in STABILITY:
        if own := [key for start in starts for key in keys if key.startswith(start)]:
            yield f"\n{caption}"
            yield tables.render(
                [
                    {**_beginning(comparison, result), **{_column(key): result.stability.get(key) for key in own}}
                    for result in comparison.results
                ]
            )


def _convergence(comparison: Comparison) -> Iterator[str]:
    terms = comparison.terms
    if terms.level is None or not terms.horizon:
        yield "Convergence: no level to reach"
        return
    better = "more" if terms.metric in convergence.HIGHER_IS_BETTER else "less"
    origin = "as stated" if terms.level_is_given else "the baseline's median final value"
    limits = ", ".join(f"{value:,.0f} {UNIT_NAMES[unit]}" for unit, value in terms.horizon.items())
    yield f"Convergence: mean time to a {terms.metric} of {terms.level:.5g} or {better} ({origin})"
    yield f"A seed that does not get there counts with {limits}."
    if intervals := [interval for run in comparison.results[0].ended if (interval := evaluation_interval(run))]:
        yield f"Evaluated about every {statistics.median_low(intervals):g} steps: no time is known better than that."
    if any(speedup.low is not None for result in comparison.results for speedup in result.speedup.values()):
        yield "Faster: how much less time than the baseline takes, with 95 % intervals."
    yield tables.render([_speed(comparison, result) for result in comparison.results])


def _speed(comparison: Comparison, result: Result) -> dict[str, Any]:
    row: dict[str, Any] = _beginning(comparison, result) | {"reached": f"{result.reached} of {result.timed}"}
    units = [unit for unit in comparison.terms.horizon if unit != "images_seen" or not _in_proportion(comparison)]
    row |= {UNIT_NAMES[unit]: result.times.get(unit) for unit in units}
    row |= {f"faster, {UNIT_NAMES[unit]}": _percent(result.speedup.get(unit)) for unit in units}
    return row | {"log area": result.area}


def _in_proportion(comparison: Comparison) -> bool:
    """Whether every step of every run took the same number of images, so that time in steps is time in images."""
    points = [point for result in comparison.results for run in result.ended for point in run.points]
    return len({point.at["images_seen"] / point.at["step"] for point in points if point.at["step"]}) <= 1


def _beginning(comparison: Comparison, result: Result) -> dict[str, Any]:
    return {"arm": result.arm.label, comparison.terms.metric: result.quality}


def _column(key: str) -> str:
    """Return the heading of a number: 'D spread' for `loss/discriminator/spread`."""
    words = [SHORT.get(word, word) for word in key.removeprefix("loss/").removeprefix("gradient_ratio/").split("/")]
    if words[0] == "gradient":
        words[:2] = [words[1], words[0]]
    return " ".join(words).replace("_to_", "/")


def _percent(speedup: Speedup | None) -> str | None:
    if speedup is None or speedup.percent is None:
        return None
    within = "" if speedup.low is None else f" [{speedup.low:.0f}, {speedup.high:.0f}]"
    return f"{speedup.percent:.0f} %{within}"
