"""`normlab report DIR...`: compare runs."""

import argparse
import math
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from normlab import config
from normlab.errors import DONE, ConfigurationError
from normlab.outputs import plain_json
from normlab.outputs.run_dir import ENDINGS
from normlab.registry import unknown
from normlab.reports import arms, convergence, files, origin, page, sections, tables
from normlab.reports.answer import answer
from normlab.reports.arms import Kind
from normlab.reports.comparison import Comparison, Ended, Result, compare, metrics
from normlab.reports.runs import Run, find_runs
from normlab.reports.statistics import Mean
from normlab.reports.tables import Table
from normlab.verbs.arguments import Arguments, existing_folders

DESCRIPTION = """\
Compare runs. Those that differ in the seed alone make an arm; of each arm it says, over its seeds: how good it is at
the end, how steadily it trained, and how soon it was as good as the baseline. Runs on other data, or scored by another
protocol, stand in tables of their own. docs/metrics.md explains each number."""
EXAMPLES = """\
examples:
  normlab report outputs/study
  normlab report outputs/study --out report
  normlab report outputs/study --metric fid --level 30
  normlab report outputs/study --baseline normalization.discriminator=spectral optimizer.lr=2e-4
  normlab report outputs/study --within optimizer.lr train.batch_size
"""


class LeftOut(NamedTuple):
    """A run that brings no value, and why."""

    run: Run
    reason: str


def run(arguments: list[str]) -> int:
    """Print the tables of each data set and protocol, or all that they are made of as JSON."""
    options = _parser().parse_args(arguments)
    folders = existing_folders(options.folders)
    _require_folder(options.out)
    runs = list(find_runs(folders))
    compared, left_out = _sorted_out(runs)
    if not any(run.state in ENDINGS for run in compared):
        states = ", ".join(f"{count} {state}" for state, count in Counter(run.state for run in runs).most_common())
        problem = f"there is nothing to compare: no run has ended, {states}" if runs else "holds no run"
        raise ConfigurationError(", ".join(map(str, folders)), problem, "`normlab status` shows how runs stand")
    groups = arms.by_kind(compared, options.within)
    comparisons = _comparisons(groups, options.metric, options.level, dict(options.baseline), options.by)
    left_out += [
        LeftOut(ended.run, f"it has no final value: {ended.final.reason}")
        for comparison in comparisons
        for result in comparison.results
        for ended in result.ended
        if ended.is_done and ended.final.value is None
    ]
    if options.out is not None:
        named = page.by_name(comparisons)
        come_from = _origin(named, compared, left_out)
        command = shlex.join(["normlab", "report", *arguments])
        written = files.write(options.out, named, come_from, as_json(comparisons, left_out), command)
        print(f"{written}", file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(plain_json.dump(as_json(comparisons, left_out)))
        return DONE
    print("\n\n\n".join("\n".join(_lines(comparison)) for comparison in comparisons))
    if left_out:
        table = _left_out_table(left_out)
        print(f"\n{table.title}\n{tables.render(table.rows)}")
    return DONE


def _require_folder(out: Path | None) -> None:
    above = [] if out is None else [path for path in (out, *out.parents) if path.exists()]
    if above and not above[0].is_dir():
        raise ConfigurationError("--out", f"{above[0]} is a file", "name a folder")


def _lines(comparison: Comparison) -> Iterator[str]:
    yield from sections.heading(comparison)
    yield from ("", *answer(comparison))
    for table in sections.sections(comparison):
        yield from ("", table.title, *table.lines, tables.render(table.rows))
    if comparison.notes:
        yield from ("", *(f"- {note}" for note in comparison.notes))


def _origin(named: Mapping[str, Comparison], runs: Sequence[Run], left_out: Sequence[LeftOut]) -> list[Table]:
    """Return the tables of where the runs of comparisons come from."""
    from normlab import composition  # whose import of Hydra only a page needs

    return [
        origin.settings_table(named),
        *origin.tuning_tables(runs),
        origin.runs_table(named),
        origin.commands_table(named, composition.words_of),
        origin.environment_table(runs),
        *([_left_out_table(left_out)] if left_out else []),
    ]


def _left_out_table(left_out: Iterable[LeftOut]) -> Table:
    rows = [{"state": each.run.state, "left out as": each.reason, "run": str(each.run.path)} for each in left_out]
    return Table(name="left_out", title="Left out", rows=rows)


def as_json(comparisons: Iterable[Comparison], left_out: Iterable[LeftOut]) -> dict[str, Any]:
    return {
        "comparisons": [_comparison_as_json(comparison) for comparison in comparisons],
        "left_out": [{"run": str(run.path), "state": run.state, "reason": reason} for run, reason in left_out],
    }


def _parser() -> Arguments:
    parser = Arguments("report", DESCRIPTION)
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    outputs = str(config.outputs_folder())
    help = f"a run, or a folder with runs somewhere below it (default {outputs})"
    parser.add_argument("folders", nargs="*", metavar="DIR", default=[outputs], help=help)
    help = f"what is compared, by default the first that the runs have of {', '.join(convergence.METRICS)}"
    parser.add_argument("--metric", type=_metric, metavar="NAME", help=help)
    help = "the value of it that is to be reached, by default the median final value of the baseline's seeds"
    parser.add_argument("--level", type=_level, metavar="VALUE", help=help)
    help = (
        "settings of the arm to hold the others against, by default one with discriminator technique none, or the first"
    )
    parser.add_argument(
        "--baseline", nargs="+", action="extend", type=_setting, default=[], metavar="KEY=VALUE", help=help
    )
    help = "settings that tell arms apart, or groups of them; what else differs is averaged over"
    parser.add_argument("--by", nargs="+", action="extend", default=[], metavar="KEY", help=help)
    help = "settings, or groups of them, of which each value is a comparison of its own, with its own baseline"
    parser.add_argument("--within", nargs="+", action="extend", default=[], metavar="KEY", help=help)
    help = "a folder for report.html, which holds all, and for tables and figures as files"
    parser.add_argument("--out", type=Path, metavar="DIR", help=help)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, with the numbers of every run")
    return parser


def _sorted_out(runs: Iterable[Run]) -> tuple[list[Run], list[LeftOut]]:
    """Return the runs that are to be compared, or at least counted, and those that give no numbers."""
    broken, sound = list[LeftOut](), list[Run]()
    for run in runs:
        if run.state == "broken":
            file = "config.yaml" if run.settings is None else "status.json"
            broken.append(LeftOut(run, f"its {file} is missing or cannot be read"))
        else:
            sound.append(run)
    compared, left_out = list[Run](), list[LeftOut]()
    for first, *twins in arms.same_settings(sound):
        compared.append(first)
        left_out += [LeftOut(twin, f"the same settings and seed as {first.path}") for twin in twins]
        if first.state == "failed":
            left_out.append(LeftOut(first, "it has failed: its seed counts as one that did not survive"))
        elif first.state not in ENDINGS:
            left_out.append(LeftOut(first, "it has not ended"))
    # Beside the runs at a choice, those that it was made by would be too good by luck.
    chosen = {
        run.settings.tuning for run in compared if run.state in ENDINGS and run.settings and not _is_to_choose(run)
    }
    to_choose = [run for run in compared if _is_to_choose(run) and run.settings and run.settings.tuning in chosen]
    reason = "it is of the grid that the setting was chosen from: report that by itself"
    left_out += [LeftOut(run, reason) for run in to_choose]
    paths = {run.path for run in to_choose}
    return [run for run in compared if run.path not in paths], broken + left_out


def _is_to_choose(run: Run) -> bool:
    return run.settings is not None and run.settings.seed in run.settings.tuning.seeds


def _comparisons(
    every: Mapping[Kind, Sequence[Run]],
    metric: str | None,
    level: float | None,
    baseline: Mapping[str, str],
    by: Sequence[str],
) -> list[Comparison]:
    """Compare the runs of each kind; where none of its arms is the baseline, by the default one."""
    groups = {kind: own for kind, own in every.items() if any(run.state in ENDINGS for run in own)}
    known = dict.fromkeys(name for kind, own in groups.items() for name in metrics(own, kind.protocol))
    if metric is not None and metric not in known:
        raise ConfigurationError("--metric", f"no run has {metric}", f"there are {', '.join(known) or 'none'}")
    comparisons: list[Comparison] = []
    errors: list[ConfigurationError] = []
    keys = arms.keys_of("--by", by, [arms.settings_of(run) for own in groups.values() for run in own])
    for kind, own in groups.items():
        try:
            comparisons.append(compare(own, kind, metric=metric, level=level, baseline=baseline, by=keys))
        except ConfigurationError as error:
            errors.append(error)
            other = compare(own, kind, metric=metric, level=level, by=keys)
            comparisons.append(
                replace(other, notes=[f"not the baseline asked for: {error.complaints[0].problem}", *other.notes])
            )
    if len(errors) == len(groups):
        raise errors[0]
    return comparisons


def _comparison_as_json(comparison: Comparison) -> dict[str, Any]:
    terms = comparison.terms
    return {
        **comparison.kind._asdict(),
        "metric": terms.metric,
        "floor": comparison.floor,
        "level": terms.level,
        "level_is_given": terms.level_is_given,
        "baseline": comparison.results[0].arm.label,
        "answer": answer(comparison),
        "tuning": sections.tuning(comparison),
        "horizon": terms.horizon,
        "arms": [
            {
                "arm": result.arm.label,
                "settings": result.arm.settings,
                "states": {state: result.count(state) for state in dict.fromkeys(run.state for run in result.arm.runs)},
                "found": {state: result.found(state) for state in sections.FOUND},
                "pooled": list(result.arm.pooled),
                "quality": _mean_as_json(result.quality),
                "survived": result.survived,
                "entered": len(result.values),
                "difference": None if result.contrast is None else _contrast_as_json(result, comparison.results[0]),
                "best": _mean_as_json(result.best),
                "noise": result.noise,
                "scores": {name: _mean_as_json(value) for name, value in result.scores.items()},
                "images_per_second": _mean_as_json(result.speed),
                "step_milliseconds": _mean_as_json(result.step_milliseconds),
                "stability": result.stability,
                "timed": result.timed,
                "reached": result.reached,
                "times": result.times,
                "speedup": {unit: speedup._asdict() for unit, speedup in result.speedup.items()},
                "log_area": result.area,
                "runs": [_run_as_json(run, comparison) for run in result.ended],
            }
            for result in comparison.results
        ],
        "notes": comparison.notes,
    }


def _mean_as_json(mean: Mean | None) -> dict[str, Any]:
    if mean is None:
        return {"mean": None, "n": 0}
    return {"mean": mean.value, "low": mean.low, "high": mean.high, "deviation": mean.deviation, "n": mean.seeds}


def _contrast_as_json(result: Result, baseline: Result) -> dict[str, Any]:
    assert result.contrast is not None
    contrast = result.contrast
    tests = {name: test and test._asdict() for name, test in (("welch", contrast.welch), ("paired", contrast.paired))}
    return contrast._asdict() | tests | {"p": result.p, "verdict": sections.verdict(result, baseline)}


def _run_as_json(run: Ended, comparison: Comparison) -> dict[str, Any]:
    terms = comparison.terms
    return {
        "run": str(run.run.path),
        "seed": run.seed,
        "state": run.run.state,
        "found": run.found,
        "final": run.final._asdict(),
        "best": run.best,
        "scores": run.scores,
        "stability": {name: number._asdict() for name, number in run.stability.items()},
        "times": {unit: terms.time(run, unit) for unit in terms.horizon if run.has_values},
        "log_area": terms.area(run)._asdict(),
    }


def _metric(text: str) -> str:
    if text not in convergence.METRICS:
        _, problem, remedy = unknown("--metric", text, list(convergence.METRICS), "a metric")
        raise argparse.ArgumentTypeError(f"{problem} ({remedy})")
    return text


def _level(text: str) -> float:
    try:
        level = float(text)
    except ValueError:
        level = math.nan
    if not math.isfinite(level):
        raise argparse.ArgumentTypeError(f"got {text!r}, no finite number")
    return level


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"got {text!r}, no KEY=VALUE; folders come before it")
    return key, value
