"""A sweep in which every arm gets the same grid: the best of it is chosen on some seeds, and trained on others.

An arm's mean at the setting that was best of many on the same seeds is too good by luck. So the grid is trained on
seeds of its own, in a study of its own, whose runs are no part of the one that is reported.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from normlab import config
from normlab.config import RunConfig
from normlab.errors import ConfigurationError
from normlab.outputs import plain_json
from normlab.registry import unknown
from normlab.reports import arms, convergence, tables
from normlab.reports.convergence import protocol_of
from normlab.reports.measured import is_finite
from normlab.reports.origin import TUNING
from normlab.reports.runs import find_runs, read_run
from normlab.sweeps import planning, sweep
from normlab.sweeps.planning import Planned

STUDY = "_tuning"  # behind the name of the study


class Setting(NamedTuple):
    """A point of an arm's grid, with the final values of the runs there; infinite for one that did not survive."""

    values: dict[str, Any]
    finals: list[float]

    @property
    def survived(self) -> list[float]:
        return [value for value in self.finals if math.isfinite(value)]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.survived) if self.survived else math.inf


def best(points: Iterable[Setting]) -> Setting:
    """Return the setting of which the fewest runs were lost, of equals the one with the lowest mean."""
    return min(points, key=lambda point: (len(point.finals) - len(point.survived), point.mean))


def run(words: list[str], config_dir: str | None) -> int:
    """Train the grid on the tuning seeds, choose, and train the chosen setting of each arm on the sweep's own seeds."""
    plan = planning.plan(words, config_dir)
    settings = plan.runs[0].settings
    _require(plan.runs)
    name, seeds = settings.name, settings.tuning.seeds
    print(f"tuning: every arm at every setting of {', '.join(settings.tuning.keys)}, on seeds {_listed(seeds)}")
    if code := sweep.run(of_grid(words, name, seeds), config_dir):
        return code
    metric, grid = results(planning.plan(of_grid(words, name, seeds), config_dir).runs)
    chosen = {arm: best(points) for arm, points in grid.items()}
    told = {arm_of(run.settings): _untuned(run.settings) for run in plan.runs}
    labels = dict(zip(grid, arms.labels([told[arm] for arm in grid]), strict=True))
    values = values_of([point for points in grid.values() for point in points], settings.tuning.keys)
    rows = [
        {
            "arm": labels[arm],
            **chosen[arm].values,
            metric: _shown(metric, chosen[arm].mean),
            **({"survived": f"{len(chosen[arm].survived)} of {len(seeds)}"} if _any_lost(chosen.values()) else {}),
            "at the edge of": edges(chosen[arm].values, values),
        }
        for arm in grid
    ]
    print(f"\nchosen on seeds {_listed(seeds)}, by the mean final {metric}:\n{tables.render(rows)}\n")
    record = {"metric": metric, "seeds": list(seeds), "grid": values, "arms": rows}
    folder = config.outputs_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    plain_json.write(folder / TUNING, record)

    def is_chosen(settings: RunConfig) -> bool:
        return point_of(settings) == chosen[arm_of(settings)].values

    code = sweep.run(words, config_dir, keep=is_chosen)
    known = [run for run in find_runs([folder]) if run.settings is not None and arm_of(run.settings) in chosen]
    if earlier := [run.path.name for run in known if run.settings is not None and not is_chosen(run.settings)]:
        print(f"\nof another choice, which a report takes for arms of their own: {', '.join(earlier)}")
    return code


def of_grid(words: Sequence[str], name: str, seeds: Sequence[int]) -> list[str]:
    """Return the words of the sweep over the grid: those of the whole, on other seeds and in another study."""
    others = [word for word in words if word.partition("=")[0] not in ("seed", "name")]
    return [*others, f"seed={_listed(seeds)}", f"name={name}{STUDY}"]


def results(runs: Sequence[Planned]) -> tuple[str, dict[str, list[Setting]]]:
    """Return the metric that tells how good runs are, and of each arm the points of its grid.

    Raises ConfigurationError if nothing was evaluated. Of a metric that is better high the values are negated.
    """
    found = [read_run(run.folder) for run in runs]
    protocol = protocol_of([row for run in found for row in run.evaluations])
    scores = [
        convergence.last_scores(run.evaluations, protocol) if run.state == "done" else dict[str, float]()
        for run in found
    ]
    metric = next((name for name in convergence.METRICS if any(name in each for each in scores)), None)
    if metric is None:
        remedy = "let evaluation and every.evaluate have scores"
        raise ConfigurationError("tuning", "no run has a score to choose by", remedy)
    sign = -convergence.direction(metric)
    points: dict[str, dict[str, Setting]] = {}
    for run, score in zip(runs, scores, strict=True):
        values = point_of(run.settings)
        own = points.setdefault(arm_of(run.settings), {})
        point = own.setdefault(json.dumps(values), Setting(values, []))
        point.finals.append(sign * score[metric] if metric in score else math.inf)
    return metric, {arm: [*own.values()] for arm, own in points.items()}


def values_of(points: Iterable[Setting], keys: Iterable[str]) -> dict[str, list[Any]]:
    """Return the values that each tuned setting has in a grid, numbers in their order."""
    every = [point.values for point in points]
    return {key: sorted({json.dumps(own[key]): own[key] for own in every}.values(), key=_order) for key in keys}


def arm_of(settings: RunConfig) -> str:
    """Return what an arm has in common: everything that determines the result but the seed and the tuned settings."""
    return json.dumps(_untuned(settings), sort_keys=True)


def _untuned(settings: RunConfig) -> dict[str, Any]:
    left_out = ("seed", *settings.tuning.keys)
    return {key: value for key, value in config.identity(settings).items() if key not in left_out}


def point_of(settings: RunConfig) -> dict[str, Any]:
    """Return the values of the tuned settings."""
    known = config.identity(settings)
    return {key: known.get(key) for key in settings.tuning.keys}


def _require(runs: Sequence[Planned]) -> None:
    """Raise ConfigurationError for keys that are none, for no tuning seeds, and for seeds that are in both parts."""
    settings = runs[0].settings
    known = {key for run in runs for key in config.identity(run.settings)}
    for key in settings.tuning.keys:
        if key not in known or key == "seed":
            raise ConfigurationError.of([unknown("tuning.keys", key, sorted(known - {"seed"}), "a setting")])
    seeds = {run.settings.seed for run in runs}
    if not settings.tuning.seeds:
        raise ConfigurationError("tuning.seeds", "is empty", "give seeds that the study itself does not have")
    if both := sorted(seeds & {*settings.tuning.seeds}):
        problem = f"{_listed(both)} would be chosen on and reported, too"
        raise ConfigurationError("tuning.seeds", problem, "give seeds that the study itself does not have")


def edges(point: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return in which settings a point is at the edge of values enough to have a middle: a better may lie beyond."""
    return [
        key
        for key, values in grid.items()
        if len(values) > 2 and is_finite(values[0]) and point[key] in (values[0], values[-1])
    ]


def _any_lost(points: Iterable[Setting]) -> bool:
    return any(len(point.survived) < len(point.finals) for point in points)


def _order(value: Any) -> tuple[bool, Any]:
    return (not is_finite(value), value if is_finite(value) else str(value))


def _shown(metric: str, mean: float) -> float | None:
    sign = -convergence.direction(metric)
    return sign * mean if math.isfinite(mean) else None


def _listed(seeds: Sequence[int]) -> str:
    return ",".join(map(str, seeds))
