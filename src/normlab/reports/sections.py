"""The tables of a comparison, whatever they are shown in."""

import statistics
from collections.abc import Iterator
from typing import Any

from normlab.reports import convergence
from normlab.reports.comparison import Comparison, Result, evaluation_interval
from normlab.reports.convergence import UNITS, Speedup
from normlab.reports.statistics import LEAST_SEEDS, Difference, Mean
from normlab.reports.tables import SIGNIFICANT, Bounded, Probability, Table

SHORT = {"generator": "G", "discriminator": "D", "score_gap": "gap", "gradient_norm": "gradient"}
# What stands in one table: its name and title, and the beginnings of the numbers' names.
STABILITY = (
    (
        "losses",
        "Stability of losses, over their size: spread within 10 rows, variation from row to row; rows that are spikes",
        ("loss/",),
    ),
    (
        "gaps",
        "Stability of the score gap (real less fake), over its size; of gradient norms, deviation over mean",
        ("score_gap/", "gradient_norm/"),
    ),
    (
        "depth",
        "Gradient norms over the layers: first over last, largest over smallest; 1 is even",
        ("gradient_ratio/",),
    ),
)
REAL = "real images themselves"
NOT_SEPARABLE, TOO_FEW = "not separable", f"fewer than {LEAST_SEEDS} seeds: nothing is said"
TOO_FEW_RANKS, UNTOLD = "too few seeds for ranks", "cannot be told"
UNFINISHED = ("running", "interrupted", "stopped")
LOST = {"diverged": ("diverged",), "collapsed": ("collapsed",), "failed": ("failed",), "unfinished": UNFINISHED}
FOUND = ("collapsed", "dead")  # what may be said of a run that goes on


def heading(comparison: Comparison) -> list[str]:
    """Return what all tables of a comparison have in common."""
    kind = comparison.kind
    protocol = kind.protocol or "none, nothing was evaluated"
    return [
        *([f"Within: {kind.within}"] if kind.within else []),
        f"Data: {kind.dataset}",
        f"Protocol: {protocol}",
        f"Precision: {kind.precision}",
        f"Baseline: {comparison.results[0].arm.label}",
    ]


def sections(comparison: Comparison) -> list[Table]:
    """Return the tables of a comparison, quality before anything else."""
    tables = [_quality(comparison), _differences(comparison), _scores(comparison)]
    tables += [*_stability(comparison), _convergence(comparison), _cost(comparison)]
    return [table for table in tables if table is not None]


def tuning(comparison: Comparison) -> list[str]:
    """Return whether the arms were tuned, and alike: without it nothing can be made of a difference."""
    results = comparison.results
    if len(results) < 2 or any(result.arm.pooled for result in results):
        return []
    known = [(result, run.settings) for result in results for run in result.arm.runs if run.settings is not None]
    plans = {settings.tuning for _, settings in known}
    if len(plans) > 1:
        tuned = dict.fromkeys(result.arm.label for result, settings in known if settings.tuning.keys)
        return [
            f"Tuned: {', '.join(tuned)}; the others were not, or otherwise, which is no comparison at equal effort."
        ]
    if not (plan := plans.pop()).keys:
        return ["Every arm was trained at one setting, and not tuned for itself."]
    keys, seeds = " and ".join(plan.keys), ", ".join(map(str, plan.seeds))
    if {settings.seed for _, settings in known} <= {*plan.seeds}:
        return [f"These are settings of {keys} to choose from, on the seeds of the choice."]
    untuned = [{key: each for key, each in result.arm.settings.items() if key not in plan.keys} for result in results]
    several = any(untuned.count(each) > 1 for each in untuned)
    shown = "of some more than one setting is shown" if several else f"what was best on seeds {seeds} is shown"
    return [f"Every arm had the same grid of {keys}; {shown}."]


def _quality(comparison: Comparison) -> Table:
    terms, results = comparison.terms, comparison.results
    better = "higher" if convergence.direction(terms.metric) > 0 else "lower"
    told = [state for state in FOUND if any(result.found(state) for result in results)]
    lost = {name: states for name, states in LOST.items() if any(result.count(*states) for result in results)}
    floor = [] if comparison.floor is None else [{"arm": REAL, terms.metric: Bounded(comparison.floor)}]
    noise = [result.noise for result in results if result.noise is not None]
    lines = ["Seeds: how many survived, of how many."]
    if not lost and all(result.survived == len(result.values) for result in results):
        lines = ["Seeds: how many survived; none diverged, collapsed or failed, and none is unfinished."]
    if any(result.arm.pooled for result in results):
        lines += ["A seed with several runs has their mean, and has survived if all of them have."]
    if any(result.best for result in results):
        known = (name for name in convergence.METRICS if any(name in result.scores for result in results))
        chosen_by = next(known, terms.metric)
        by = "" if chosen_by == terms.metric else f" by {chosen_by}"
        lines += [f"Best: of the best checkpoint{by}, scored again from other latents."]
    lines += [
        "Noise: deviation of one evaluation over sets of latents."
        if noise
        else "How noisy one evaluation is was not measured: `normlab evaluate RUN evaluation.repeats=5` does."
    ]
    lines = [*tuning(comparison), *lines]
    return Table(
        name="quality",
        title=f"Quality: {terms.metric} at the last evaluation, mean with 95 % interval over seeds; {better} is better",
        lines=lines,
        rows=[
            {
                "arm": result.arm.label,
                terms.metric: _bounded(result.quality),
                "sd": None if result.quality is None else result.quality.deviation,
                "seeds": f"{result.survived} of {len(result.values)}",
                **({"best": _bounded(result.best)} if any(each.best for each in results) else {}),
                **({"noise": result.noise} if noise else {}),
                **{f"called {state}": result.found(state) for state in told},
                **{state: result.count(*states) for state, states in lost.items()},
            }
            for result in results
        ]
        + floor,
    )


def _differences(comparison: Comparison) -> Table | None:
    """Return each arm's difference to the baseline; None where it stands alone."""
    baseline, *others = comparison.results
    if not others:
        return None
    ranked = any(result.contrast and result.contrast.ranks is not None for result in others)
    rows = [
        {
            "arm": result.arm.label,
            "difference": _bounded(contrast.welch),
            "verdict": verdict(result, baseline),
            "p corrected": _probability(result.p),
            "p": _probability(contrast.welch and contrast.welch.p),
            **({"p ranks": _probability(contrast.ranks)} if ranked else {}),
            "detectable": contrast.detectable,
            "paired by seed": _bounded(contrast.paired),
            "p paired": _probability(contrast.paired and contrast.paired.p),
            "correlation": contrast.correlation,
        }
        for result in others
        if (contrast := result.contrast) is not None
    ]
    tested = sum(result.p is not None for result in others)
    out_of_reach = any(row["verdict"] == TOO_FEW_RANKS for row in rows)
    return Table(
        name="differences",
        title=f"Difference to the baseline in {comparison.terms.metric}, with 95 % intervals",
        rows=rows,
        lines=[
            *tuning(comparison),
            "Difference: by Welch's test. Where seeds did not survive, ranks decide, in which they come last; "
            "and where those of an arm do not differ.",
            f"Corrected: by Holm's method for {_arms(tested)}. "
            f"Detectable, from {LEAST_SEEDS} seeds on: the smallest difference that four of five such studies show.",
            *(
                [f"{TOO_FEW_RANKS.capitalize()}: with so many arms no ranks of so few could tell; more seeds can."]
                if out_of_reach
                else []
            ),
        ],
    )


def verdict(result: Result, baseline: Result) -> str:
    """Return what may be said of an arm beside the baseline: `better` or `worse` only from 5 seeds of both on."""
    if min(len(result.values), len(baseline.values)) < LEAST_SEEDS:
        return TOO_FEW
    if result.p is None or result.contrast is None:
        return UNTOLD
    if result.p >= SIGNIFICANT:
        least = result.contrast.least
        return NOT_SEPARABLE if least is None or least < SIGNIFICANT else TOO_FEW_RANKS
    return "better" if result.contrast.is_better else "worse"


def _arms(count: int) -> str:
    return f"{count} arm{'' if count == 1 else 's'}"


def _scores(comparison: Comparison) -> Table | None:
    """Return every other metric of the last evaluations; None where there is none."""
    names = dict.fromkeys(name for result in comparison.results for name in result.scores)
    others = [name for name in names if name != comparison.terms.metric]
    rows = [
        {"arm": result.arm.label, **{name: _bounded(result.scores.get(name)) for name in others}}
        for result in comparison.results
    ]
    return Table(name="scores", title="Other metrics at the last evaluation", rows=rows) if others else None


def _stability(comparison: Comparison) -> Iterator[Table]:
    intervals = [run.log_interval for result in comparison.results for run in result.ended if run.log_interval]
    every = f", logged every {statistics.median_low(intervals):g}" if intervals else ""
    told = (result.stability.items() for result in comparison.results)
    # What no run had enough rows for is in the notes.
    keys = list(dict.fromkeys(key for numbers in told for key, value in numbers if value is not None))
    for name, title, starts in STABILITY:
        if own := [key for start in starts for key in keys if key.startswith(start)]:
            yield Table(
                name=name,
                title=title,
                rows=[
                    {**_beginning(comparison, result), **{_column(key): result.stability.get(key) for key in own}}
                    for result in comparison.results
                ],
                lines=[f"Over the last half of each run's steps{every}; means over seeds."],
            )


def _convergence(comparison: Comparison) -> Table | None:
    terms = comparison.terms
    if terms.level is None or not terms.horizon:
        return None
    better = "more" if convergence.direction(terms.metric) > 0 else "less"
    origin = "as stated" if terms.level_is_given else "the baseline's median final value"
    limits = ", ".join(f"{value:,.0f} {UNITS[unit]}" for unit, value in terms.horizon.items())
    lines = [f"A seed that does not get there is counted as having taken {limits}."]
    if intervals := [interval for run in comparison.results[0].ended if (interval := evaluation_interval(run))]:
        lines += [
            f"Evaluated about every {statistics.median_low(intervals):g} steps: no time is known better than that."
        ]
    if any(speedup.low is not None for result in comparison.results for speedup in result.speedup.values()):
        lines += ["Faster: how much less time than the baseline takes, with 95 % intervals."]
    return Table(
        name="convergence",
        title=f"Convergence: mean time to a {terms.metric} of {terms.level:.5g} or {better} ({origin})",
        rows=[_speed(comparison, result) for result in comparison.results],
        lines=lines,
    )


def _speed(comparison: Comparison, result: Result) -> dict[str, Any]:
    row: dict[str, Any] = _beginning(comparison, result) | {"reached": f"{result.reached} of {result.timed}"}
    units = [unit for unit in comparison.terms.horizon if unit != "images_seen" or not _in_proportion(comparison)]
    row |= {UNITS[unit]: result.times.get(unit) for unit in units}
    row |= {f"faster, {UNITS[unit]}": _percent(result.speedup.get(unit)) for unit in units}
    return row | {"log area": result.area}


def _cost(comparison: Comparison) -> Table | None:
    """Return the speed of training; None where nothing tells of it."""
    first = comparison.results[0].step_milliseconds
    if not any(result.speed for result in comparison.results):
        return None
    rows = [
        {
            **_beginning(comparison, result),
            "images/s": _bounded(result.speed),
            "ms a step": _bounded(result.step_milliseconds),
            "times the baseline's": _times(result.step_milliseconds, first),
        }
        for result in comparison.results
    ]
    lines = ["By the logged rows: without evaluations, samples and checkpoints."]
    if len({run.machine for result in comparison.results for run in result.ended if run.machine is not None}) > 1:
        lines += ["Runs of different machines: their times do not compare."]
    return Table(name="cost", title="Cost: speed of training, mean over seeds", rows=rows, lines=lines)


def _times(one: Mean | None, other: Mean | None) -> float | None:
    return None if one is None or other is None else one.value / other.value


def _probability(p: float | None) -> Probability | None:
    return None if p is None else Probability(p)


def _bounded(number: Mean | Difference | None) -> Bounded | None:
    return None if number is None else Bounded(number.value, number.low, number.high)


def _in_proportion(comparison: Comparison) -> bool:
    """Whether every step of every run took the same number of images, so that time in steps is time in images."""
    points = [point for result in comparison.results for run in result.ended for point in run.points]
    return len({point.at["images_seen"] / point.at["step"] for point in points if point.at["step"]}) <= 1


def _beginning(comparison: Comparison, result: Result) -> dict[str, Any]:
    """Return the arm and its quality, which stands beside every other number."""
    return {"arm": result.arm.label, comparison.terms.metric: result.quality and result.quality.value}


def _column(key: str) -> str:
    """Return the heading of a number: 'D spread' for `loss/discriminator/spread`."""
    words = [SHORT.get(word, word) for word in key.removeprefix("loss/").removeprefix("gradient_ratio/").split("/")]
    if words[0] == "gradient":
        words[:2] = [words[1], words[0]]
    return " ".join(words).replace("_to_", "/")


def _percent(speedup: Speedup | None) -> Bounded | None:
    if speedup is None or speedup.percent is None:
        return None
    return Bounded(speedup.percent, speedup.low, speedup.high, " %")
