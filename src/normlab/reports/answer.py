"""What a comparison comes to, in a few sentences."""

from collections.abc import Sequence

from normlab.reports.comparison import Comparison, Result, best_first
from normlab.reports.sections import NOT_SEPARABLE, TOO_FEW, TOO_FEW_RANKS, UNTOLD, verdict
from normlab.reports.statistics import LEAST_SEEDS, Mean
from normlab.reports.tables import Bounded, Probability, cell

MOST_NAMED = 12  # arms in a sentence
OPENINGS = (
    (NOT_SEPARABLE, "Not separable from it"),
    (TOO_FEW, f"Fewer than {LEAST_SEEDS} seeds"),
    (TOO_FEW_RANKS, "Too few seeds for a test by ranks"),
    (UNTOLD, "Nothing can be told of"),
)


def answer(comparison: Comparison) -> list[str]:
    """Return sentences, the answer first: which arms are better or worse than the baseline, if any can be told."""
    baseline, *others = comparison.results
    metric = comparison.terms.metric
    if comparison.kind.protocol is None:
        return ["Nothing was evaluated, so nothing is said of quality."]
    if not others:
        return [f"There is one arm, {_named(baseline)}: {metric} {_number(baseline.quality)}."]
    said = {result.arm.label: verdict(result, baseline) for result in others}
    better, worse = (
        best_first([each for each in others if said[each.arm.label] == word], metric) for word in ("better", "worse")
    )
    sentences = [_better(better, baseline, metric)] if better else []
    if worse:
        than = (
            "Worse" if better else f"Worse than the baseline {_named(baseline)}, {metric} {_number(baseline.quality)}"
        )
        sentences.append(f"{than}: {', '.join(f'{_named(each)} {_number(each.quality)}' for each in worse)}.")
    if not sentences:
        sentences.append(_undecided(comparison, others, {*said.values()}))
    if len({*said.values()}) > 1:
        for word, opening in OPENINGS:
            if alike := [each for each in others if said[each.arm.label] == word]:
                sentences.append(f"{opening}: {_listed(alike)}.")
    return [*sentences, *_losses(comparison.results)]


def _better(better: Sequence[Result], baseline: Result, metric: str) -> str:
    best, *more = better
    also = f" So {'is' if len(more) == 1 else 'are'} {_listed(more)}." if more else ""
    p = cell(None if best.p is None else Probability(best.p))
    return (
        f"{_named(best)} is better than the baseline {_named(baseline)}: {metric} {_number(best.quality)} against "
        f"{_number(baseline.quality)}, {_seeds(best, baseline)}, p corrected for the number of arms {p}.{also}"
    )


def _undecided(comparison: Comparison, others: Sequence[Result], said: set[str]) -> str:
    baseline, metric = comparison.results[0], comparison.terms.metric
    entered = [each for each in others if min(len(each.values), len(baseline.values)) >= LEAST_SEEDS]
    known = [each for each in comparison.results if each.quality is not None]
    if not known:
        return "No run of any arm survived to a final value."
    best = best_first(known, metric)[0]
    whose = "the baseline itself" if best is baseline else _named(best)
    leading = f"The best mean {metric} is {_number(best.quality)}, of {whose}."
    if not entered:
        return f"There are fewer than {LEAST_SEEDS} seeds, so no difference to the baseline is called one. {leading}"
    shown = [each.contrast.detectable for each in entered if each.contrast and each.contrast.detectable is not None]
    reach = (
        f"{cell(min(shown))} to {cell(max(shown))}, by arm" if len({*shown}) > 1 else cell(shown[0]) if shown else ""
    )
    seen = f" The smallest difference that four of five such studies would show is {reach}." if reach else ""
    if TOO_FEW_RANKS in said:
        lost = any(each.contrast and each.contrast.lost for each in others)
        return (
            f"{'Some seeds did not survive' if lost else 'The seeds of some arms do not differ'}, and there are too "
            f"few for a test by ranks of so many arms: no difference to the baseline {_named(baseline)} is called one. "
            f"{leading}"
        )
    return f"No arm is separable from the baseline {_named(baseline)} in {metric}. {leading}{seen}"


def _losses(results: Sequence[Result]) -> list[str]:
    lost = [(each, len(each.values) - each.survived) for each in results if each.survived < len(each.values)]
    parts = [f"{count} of {len(each.values)} of {_named(each)}" for each, count in lost]
    return [f"Did not survive: {', '.join(parts)}; they rank worst in the tests."] if parts else []


def _named(result: Result) -> str:
    return result.arm.label


def _listed(results: Sequence[Result]) -> str:
    more = [f"{len(results) - MOST_NAMED} more"] if len(results) > MOST_NAMED else []
    return ", ".join([*map(_named, results[: MOST_NAMED if more else None]), *more])


def _number(mean: Mean | None) -> str:
    return "nothing" if mean is None else cell(Bounded(mean.value, mean.low, mean.high))


def _seeds(one: Result, other: Result) -> str:
    if one.survived == other.survived:
        return f"{one.survived} seeds each"
    return f"{one.survived} and {other.survived} seeds"
