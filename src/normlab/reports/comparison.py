"""Arms side by side: how good, how steady and how fast, in numbers over their seeds."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

from normlab.outputs import plain_json
from normlab.outputs.run_dir import ENDINGS, RunDir
from normlab.outputs.sinks import JsonLines
from normlab.reports import arms as grouping
from normlab.reports import convergence
from normlab.reports.arms import Arm, Kind
from normlab.reports.convergence import UNITS, Point, Speedup
from normlab.reports.measured import Measured, Unmeasurable, is_finite, measured
from normlab.reports.runs import Run
from normlab.reports.series import Array, Layers, layers_of, scalars_of
from normlab.reports.stability import last_half, log_interval, stability
from normlab.reports.statistics import Contrast, Mean, adjusted, by_seed, contrast, is_testable, mean

# Numbers of stability that depend on which function the loss is, and on how often it was logged.
OF_THE_LOSS = ("loss/", "score_gap/", "gradient_norm/")
NON_FINITE = ("non_finite", "non_finite_features")  # flags of an evaluation


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a run that has ended brings to a comparison; one that diverged, or that its collapse ended, points alone.

    final: the metric at the last
    evaluation.  best: that of the best checkpoint, scored again from other latents.  noise: deviation of one
    evaluation over sets of latents.  scores: every metric at the last evaluation.  images_per_second,
    step_milliseconds: of training alone.  scalars, layers: what is drawn of its rows.  last_step, log_interval: of its
    logged rows.  machine: where it trained, None where nothing tells.
    """

    run: Run
    seed: int
    points: list[Point]
    final: Measured
    best: float | None
    noise: float | None
    scores: dict[str, float]
    images_per_second: float | None
    step_milliseconds: float | None
    scalars: dict[str, Array]
    layers: dict[str, Layers]
    stability: dict[str, Measured]
    last_step: int
    log_interval: float | None
    machine: str | None

    @property
    def is_done(self) -> bool:
        return self.run.state == "done"

    @property
    def found(self) -> dict[str, int]:
        """At which step the run was first found `collapsed` or `dead`, whether that ended it or not."""
        return {} if self.run.status is None else self.run.status.states

    @property
    def has_values(self) -> bool:
        return any(point.value is not None for point in self.points)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What all arms of a comparison are measured by.

    level: that the metric is to reach, or None; unless `level_is_given`, the median of the baseline's final values.
    horizon: up to where every run that is done and has values was evaluated, by unit.  stretch: between how many images
    seen each of them has values.
    """

    metric: str
    level: float | None
    level_is_given: bool
    horizon: dict[str, float]
    stretch: tuple[float, float]

    def times(self, runs: Iterable[Ended], unit: str) -> dict[int, float | None]:
        """Return when each seed reached the level, None where none of its runs did.

        Of several runs of a seed it is the mean, restricted to the horizon.
        """
        gathered: dict[int, list[float | None]] = {}
        for run in runs:
            gathered.setdefault(run.seed, []).append(self.time(run, unit))
        return {
            seed: None if {*own} == {None} else convergence.restricted_mean(own, self.horizon[unit])
            for seed, own in gathered.items()
        }

    def time(self, run: Ended, unit: str) -> float | None:
        """Return when a run reached the level, None if it diverged, or did not within the horizon.

        One that a collapse ended was there if it was before, as it would have been had it gone on.
        """
        if self.level is None or run.run.state == "diverged":
            return None
        point = convergence.reached(run.points, self.level, self.metric)
        return None if point is None or point.at[unit] > self.horizon[unit] else point.at[unit]

    def area(self, run: Ended) -> Measured:
        return measured(partial(convergence.log_area, run.points, *self.stretch))


@dataclass(frozen=True, kw_only=True)
class Result:
    """An arm in a comparison: means over its runs that are done, and times over all that have ended.

    values: the final value of each seed that was to have one, None where it did not survive; of several runs of a seed
    in a pooled arm the mean, if all of them did.  quality: the mean of those that survived.  contrast: with the
    baseline, None of itself; `p` is the one of it that decides, corrected for the number of arms.  best, scores, speed,
    step_milliseconds: means of what seeds have.  noise: of evaluations, the root of the mean variance.  reached: how
    many of the `timed` runs reached the level.  times: restricted means of theirs, by unit.
    """

    arm: Arm
    ended: list[Ended]
    values: dict[int, float | None]
    quality: Mean | None
    contrast: Contrast | None
    p: float | None
    best: Mean | None
    noise: float | None
    scores: dict[str, Mean]
    speed: Mean | None
    step_milliseconds: Mean | None
    stability: dict[str, float | None]
    area: float | None
    timed: int
    reached: int
    times: dict[str, float]
    speedup: dict[str, Speedup]

    def count(self, *states: str) -> int:
        return sum(run.state in states for run in self.arm.runs)

    @property
    def survived(self) -> int:
        return sum(value is not None for value in self.values.values())

    def found(self, state: str) -> int:
        """Return how many of the runs that are done were found in a state on their way: `collapsed`, `dead`."""
        return sum(run.is_done and state in run.found for run in self.ended)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Arms whose numbers may stand side by side, the baseline first; `notes` say what a reader must know of them.

    floor: what the real images themselves have of the metric, where runs tell of it.
    """

    kind: Kind
    terms: Terms
    floor: float | None
    results: list[Result]
    notes: list[str]


def compare(
    runs: Sequence[Run],
    kind: Kind,
    *,
    metric: str | None = None,
    level: float | None = None,
    baseline: Mapping[str, str] | None = None,
    by: Sequence[str] = (),
) -> Comparison:
    """Compare the arms that runs of one kind make, no two of them with the same settings and seed.

    metric: by default the first of `convergence.METRICS` that the runs have.  level: by default the baseline's median
    final value.  baseline, by: as `arms.baseline` and `arms.arms` take them, whose errors this raises.
    """
    protocol = kind.protocol
    metric = metric or next(iter(metrics(runs, protocol)), convergence.METRICS[0])
    arms = grouping.arms(runs, by)
    first = grouping.baseline(arms, baseline or {})
    arms = [first, *(arm for arm in arms if arm is not first)]
    ended = [[_read(run, metric, protocol) for run in arm.runs if run.state in ENDINGS] for arm in arms]
    terms = _terms(ended, metric, level)
    interval = next((run.log_interval for own in ended for run in own if run.is_done), None)
    results = [
        _result(arm, [_beside(run, arm, first, interval) for run in own], terms)
        for arm, own in zip(arms, ended, strict=True)
    ]
    results = _contrasted(results, terms)
    return Comparison(
        kind=kind,
        terms=terms,
        floor=_floor(runs, metric, protocol),
        results=results,
        notes=list(_notes(results, protocol, terms)),
    )


def best_first(results: Iterable[Result], metric: str) -> list[Result]:
    """Return results by their quality, those without any last."""
    sign = convergence.direction(metric)
    return sorted(
        results, key=lambda each: (each.quality is None, -sign * (each.quality.value if each.quality else 0.0))
    )


def metrics(runs: Iterable[Run], protocol: str | None) -> list[str]:
    """Return which metrics runs have by a protocol."""
    rows = [row for run in runs for row in run.evaluations if row.get("protocol") == protocol]
    return [name for name in convergence.METRICS if any(row.get(name) is not None for row in rows)]


def _read(run: Run, metric: str, protocol: str | None) -> Ended:
    assert run.settings is not None
    run_dir = RunDir(run.path)
    rows, spectra = JsonLines(run_dir.metrics).rows(), JsonLines(run_dir.spectra).rows()
    points = convergence.curve(run.evaluations, metric, protocol)
    return Ended(
        run=run,
        seed=run.settings.seed,
        points=points,
        final=measured(partial(_final, run, points, metric)),
        best=_best(run_dir, metric, protocol) if run.state == "done" else None,
        noise=_noise(run, metric, protocol),
        scores=convergence.last_scores(run.evaluations, protocol) if _is_evaluated(run, points) else {},
        images_per_second=_median(row.get("images_per_second") for row in rows),
        step_milliseconds=_step_milliseconds(run, rows),
        scalars=scalars_of(rows),
        layers=layers_of(spectra),
        stability=stability(rows, spectra, last_half(rows)) if run.state == "done" else {},
        last_step=rows[-1]["step"] if rows else 0,
        log_interval=log_interval(rows),
        machine=_machine(run_dir),
    )


def _is_evaluated(run: Run, points: Sequence[Point]) -> bool:
    """Whether a run is done and was evaluated at its last step."""
    last = 0 if run.status is None else run.status.step
    return run.state == "done" and bool(points) and points[-1].at["step"] >= last


def _final(run: Run, points: Sequence[Point], metric: str) -> float:
    if run.state != "done":
        raise Unmeasurable(run.state)
    if not _is_evaluated(run, points):
        raise Unmeasurable("not evaluated at the last step" if points else "not evaluated")
    if (value := points[-1].value) is None:
        raise Unmeasurable(f"the last evaluation is flagged or has no {metric}, so there is no final value")
    return value


def _floor(runs: Iterable[Run], metric: str, protocol: str | None) -> float | None:
    for run in runs:
        told = plain_json.read(RunDir(run.path).environment).get("floor")
        if isinstance(told, dict) and told.get("protocol") == protocol and is_finite(told.get(metric)):
            return told[metric]
    return None


def _best(run_dir: RunDir, metric: str, protocol: str | None) -> float | None:
    row = plain_json.read(run_dir.best)
    value = row.get(metric)
    return value if row.get("protocol") == protocol and not row.get("flags") and is_finite(value) else None


def _noise(run: Run, metric: str, protocol: str | None) -> float | None:
    """Return the deviation of the newest evaluation that was repeated, in training or later, None where none was."""
    for row in reversed([*run.evaluations, *JsonLines(RunDir(run.path).scores).rows()]):
        repeats = row.get("repeats")
        values = repeats.get(metric) if isinstance(repeats, dict) else None
        known = [value for value in values if is_finite(value)] if isinstance(values, list) else []
        if row.get("protocol") == protocol and len(known) > 1:
            return statistics.stdev(known)
    return None


def _median(values: Iterable[Any]) -> float | None:
    known = [value for value in values if is_finite(value)]
    return statistics.median(known) if known else None


def _step_milliseconds(run: Run, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return what a step takes by the speed of the logged rows, which leaves out what stands between steps."""
    assert run.settings is not None
    train = run.settings.train
    speed = _median(row.get("images_per_second") for row in rows)
    return 1000 * train.batch_size * train.discriminator_steps / speed if speed else None


def _machine(run_dir: RunDir) -> str | None:
    told = plain_json.read(run_dir.environment)
    return f"{told['device_name']} with {told.get('threads')} threads" if told.get("device_name") else None


def _beside(run: Ended, arm: Arm, baseline: Arm, interval: float | None) -> Ended:
    """Return a run without the numbers that must not stand beside the baseline's."""
    if arm.functions() != baseline.functions():
        reason = "another loss or penalty than the baseline: numbers of loss, scores and gradient norms left blank"
    elif run.log_interval != interval:
        reason = "not logged as often as the baseline: numbers of loss, scores and gradient norms left blank"
    else:
        return run
    blanks = {key: Measured(None, reason) for key in run.stability if key.startswith(OF_THE_LOSS)}
    return replace(run, stability=run.stability | blanks)


def _terms(ended: Sequence[Sequence[Ended]], metric: str, level: float | None) -> Terms:
    """Return the terms that arms are compared on, the baseline's runs being the first."""
    followed = [run for own in ended for run in own if run.is_done and run.has_values]
    finals = [run.final.value for run in ended[0] if run.final.value is not None]
    # Seconds of two machines are not the same unit.
    machines = {run.machine for run in followed if run.machine is not None}
    units = [unit for unit in UNITS if followed and (unit != "seconds" or len(machines) < 2)]
    seen = [[point.at["images_seen"] for point in run.points if point.value is not None] for run in followed]
    return Terms(
        metric=metric,
        level=statistics.median(finals) if level is None and finals else level,
        level_is_given=level is not None,
        horizon={unit: min(run.points[-1].at[unit] for run in followed) for unit in units},
        stretch=(
            max((images[0] for images in seen if images), default=0.0),
            min((images[-1] for images in seen if images), default=0.0),
        ),
    )


def _result(arm: Arm, own: list[Ended], terms: Terms) -> Result:
    """Return what is said of an arm by itself."""
    done = [run for run in own if run.is_done]
    values = _values(arm, own)
    noises = [run.noise for run in done if run.noise is not None]
    scores = dict.fromkeys(name for run in done for name in run.scores)
    keys = dict.fromkeys(key for run in done for key in run.stability)
    units = terms.horizon if terms.level is not None else {}
    timed = _timed(own) if units else []
    return Result(
        arm=arm,
        ended=own,
        values=values,
        quality=mean([value for value in values.values() if value is not None]),
        contrast=None,
        p=None,
        best=_mean_of((run.seed, run.best) for run in done),
        noise=math.sqrt(statistics.fmean(noise**2 for noise in noises)) if noises else None,
        scores={
            name: average for name in scores if (average := _mean_of((run.seed, run.scores.get(name)) for run in done))
        },
        speed=_mean_of((run.seed, run.images_per_second) for run in done),
        step_milliseconds=_mean_of((run.seed, run.step_milliseconds) for run in done),
        stability={key: _mean(run.stability[key] for run in done if key in run.stability) for key in keys},
        area=_mean(terms.area(run) for run in done),
        timed=len(timed),
        reached=sum(terms.time(run, "step") is not None for run in timed),
        times={
            unit: convergence.restricted_mean([*terms.times(timed, unit).values()], units[unit])
            for unit in units
            if timed
        },
        speedup={},
    )


def _timed(runs: Iterable[Ended]) -> list[Ended]:
    """Return the runs that have a time: one that is done but has no values may have reached the level or not."""
    return [run for run in runs if run.has_values or not run.is_done]


def _contrasted(results: Sequence[Result], terms: Terms) -> list[Result]:
    """Return results held against the first, their p corrected for how many of them can be tested."""
    baseline, *others = results
    higher = convergence.direction(terms.metric) > 0
    contrasts = max(1, sum(is_testable(each.values, baseline.values) for each in others))
    found = [contrast(each.values, baseline.values, higher_is_better=higher, contrasts=contrasts) for each in others]
    known = {number: each.p for number, each in enumerate(found) if each.p is not None}
    corrected = dict(zip(known, adjusted([*known.values()]), strict=True))
    units = terms.horizon if terms.level is not None else {}
    times = [{unit: terms.times(_timed(each.ended), unit) for unit in units} for each in results]
    held = [
        replace(
            each,
            contrast=own,
            p=corrected.get(number),
            speedup={unit: convergence.speedup(its[unit], times[0][unit], units[unit]) for unit in units},
        )
        for number, (each, own, its) in enumerate(zip(others, found, times[1:], strict=True))
    ]
    return [baseline, *held]


def _values(arm: Arm, ended: Iterable[Ended]) -> dict[int, float | None]:
    """Return final values by seed, None if a run of it did not survive or has failed; of an unfinished one, none.

    One that is done and whose generator gives infinities at the end has not survived, either.
    """
    lost = [run.settings.seed for run in arm.runs if run.state == "failed" and run.settings is not None]
    lost += [run.seed for run in ended if run.final.value is None and (not run.is_done or _is_broken(run))]
    survived = by_seed((run.seed, run.final.value) for run in ended if run.final.value is not None)
    return {**survived, **dict.fromkeys(lost)}


def _is_broken(run: Ended) -> bool:
    return any(flag in NON_FINITE for flag in run.run.last_evaluation().get("flags") or ())


def _mean_of(values: Iterable[tuple[int, float | None]]) -> Mean | None:
    """Return the mean over seeds of what runs have."""
    return mean([*by_seed((seed, value) for seed, value in values if value is not None).values()])


def _mean(numbers: Iterable[Measured]) -> float | None:
    values = [number.value for number in numbers if number.value is not None]
    return statistics.fmean(values) if values else None


def _notes(results: Sequence[Result], protocol: str | None, terms: Terms) -> Iterator[str]:
    """Yield what the tables of a comparison cannot say, a line each."""
    done = [run for result in results for run in result.ended if run.is_done]
    yield from _missing_numbers(done, terms)
    yield from _untimed(results)
    if terms.level is None:
        yield "the baseline has no final value, so there is no level to reach: state one with --level"
    elif at_once := sum(terms.time(run, "step") == 0 for run in done if run.has_values):
        yield f"the level is no better than where {at_once} of {len(done)} runs began: a time of 0 says nothing"
    yield from _unequal(done, terms)
    yield from _unlike(results)
    if changed := sum(RunDir(run.run.path).changes.exists() for run in done):
        yield f"{changed} of {len(done)} runs had a setting changed on their way: see their changes.jsonl"
    yield from _left_out(done, protocol)


def _untimed(results: Sequence[Result]) -> Iterator[str]:
    """Yield why some arms have no speedup, or none of pairs, and which."""
    reasons: dict[str, list[str]] = {}
    for result in results:
        of_units: dict[str, list[str]] = {}
        for unit, speedup in result.speedup.items():
            if speedup.reason:
                of_units.setdefault(speedup.reason, []).append(UNITS[unit])
        for reason, units in of_units.items():
            words = reason if len(units) == len(result.speedup) else f"{reason} (in {', '.join(units)})"
            reasons.setdefault(words, []).append(result.arm.label)
        if any(speedup.low is not None and not speedup.paired for speedup in result.speedup.values()):
            unpaired = "not the baseline's seeds, so the interval of times is that of two independent samples"
            reasons.setdefault(unpaired, []).append(result.arm.label)
    for reason, labels in reasons.items():
        yield f"{reason}: {', '.join(labels)}"


def _missing_numbers(done: Sequence[Ended], terms: Terms) -> Iterator[str]:
    reasons: Counter[str] = Counter()
    for run in done:
        area = [] if run.final.value is None else [terms.area(run)]
        numbers = (run.final, *area, *run.stability.values())
        reasons.update([*dict.fromkeys(number.reason for number in numbers if number.reason)])
    for reason, count in reasons.items():
        yield f"{reason} ({count} of {len(done)} runs)"


def _unequal(done: Sequence[Ended], terms: Terms) -> Iterator[str]:
    """Yield in what runs were not measured alike."""
    lengths = [run.last_step for run in done]
    if lengths and max(lengths) > 1.01 * min(lengths):
        yield f"runs end at {min(lengths):,} to {max(lengths):,} steps: quality and stability are of each run's own end"
    intervals = {interval for run in done if (interval := evaluation_interval(run)) is not None}
    if len(intervals) > 1:
        most, least = min(intervals), max(intervals)
        yield f"evaluated every {most:g} to {least:g} steps: less often by itself makes times later"
    if terms.horizon and "seconds" not in terms.horizon:
        yield "runs of different machines: seconds are left out"


def _unlike(results: Sequence[Result]) -> Iterator[str]:
    """Yield whether pooled arms are averages over different settings, and so do not compare."""
    keys = list(dict.fromkeys(key for result in results for key in result.arm.pooled))
    averaged = [
        {repr([own.get(key) for key in keys]) for own in map(grouping.settings_of, result.arm.runs)}
        for result in results
    ]
    if any(each != averaged[0] for each in averaged):
        yield f"arms are averages over different values of {', '.join(keys)}: a difference may be one of those"


def evaluation_interval(run: Ended) -> float | None:
    """Return how many steps lie between evaluations, as a median: no time is known better than that."""
    steps = [point.at["step"] for point in run.points]
    gaps = [after - before for before, after in pairwise(steps)]
    return statistics.median_low(gaps) if gaps else None


def _left_out(done: Sequence[Ended], protocol: str | None) -> Iterator[str]:
    """Yield which evaluations do not count."""
    rows = [row for run in done for row in run.run.evaluations]
    if others := sum(row.get("protocol") != protocol for row in rows):
        yield f"{others} evaluations by another protocol are left out"
    flags = Counter(flag for row in rows if row.get("protocol") == protocol for flag in row.get("flags") or ())
    if flags:
        yield "flagged evaluations do not count: " + ", ".join(f"{count} {flag}" for flag, count in flags.items())
