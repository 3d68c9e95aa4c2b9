"""What a few seeds say of one arm, and of two: means, differences, tests."""

import math
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from normlab.reports.tables import SIGNIFICANT

Array = NDArray[np.float64]

# SciPy takes up to a second to import, so only the functions that need it do.

CONFIDENCE = 1 - SIGNIFICANT
LEAST_SEEDS = 5  # of either arm, from which on a difference is called one
POWER = 0.8  # of a study that is to show a difference: four of five do
MOST_ARRANGEMENTS = 200_000  # of ranks that are looked at, those of ten against ten; of more so many are drawn

# By seed, of which two arms make a pair: a value, or None where it did not survive.
Values = Mapping[int, float | None]


class Mean(NamedTuple):
    """A mean with its 95 % interval; a single value has neither deviation nor bounds."""

    value: float
    seeds: int
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


class Difference(NamedTuple):
    """By how much one mean is above another, with the 95 % interval, and the two-sided p of there being none."""

    value: float
    low: float
    high: float
    p: float


class Contrast(NamedTuple):
    """An arm against the baseline, by the values of those that survived.

    welch: as two independent samples.  paired: as pairs, with `correlation` between them.  ranks: the p of a rank test
    of all seeds, in which those that did not survive share the worst rank; only where there are any, or where no value
    of an arm differs.  lost: whether any did not survive.  least: the smallest p that so many ranks have, corrected.
    detectable: the smallest true difference that four of five such studies show, corrected; from 5 seeds on.
    is_better: whether the arm is the better one by what decides.  reason: why there is not all of it.
    """

    welch: Difference | None = None
    paired: Difference | None = None
    correlation: float | None = None
    ranks: float | None = None
    lost: bool = False
    least: float | None = None
    detectable: float | None = None
    is_better: bool | None = None
    reason: str | None = None

    @property
    def p(self) -> float | None:
        """The p that decides: that of ranks where seeds did not survive, since the others would flatter their arm."""
        return self.ranks if self.ranks is not None or self.welch is None else self.welch.p


def by_seed(values: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Return the mean of each seed's values: several runs of one seed are no independent samples."""
    gathered: dict[int, list[float]] = {}
    for seed, value in values:
        gathered.setdefault(seed, []).append(value)
    return {seed: statistics.fmean(own) for seed, own in gathered.items()}


def mean(values: Sequence[float]) -> Mean | None:
    """Return the mean with Student's interval; None of no values."""
    from scipy.stats import t

    if not values:
        return None
    middle, count = statistics.fmean(values), len(values)
    if count == 1:
        return Mean(middle, count)
    deviation = statistics.stdev(values)
    reach = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
    return Mean(middle, count, deviation, middle - reach, middle + reach)


def contrast(arm: Values, baseline: Values, *, higher_is_better: bool, contrasts: int = 1) -> Contrast:
    """Hold the values of an arm against those of the baseline.

    contrasts: how many such are made, for all of which they are corrected together.
    """
    own, other = ([value for value in values.values() if value is not None] for values in (arm, baseline))
    is_constant = len({*own}) == len({*other}) == 1
    found = Contrast(lost=len(own) + len(other) < len(arm) + len(baseline))
    if min(len(arm), len(baseline)) > 1 and (found.lost or is_constant):
        p, shift = ranked([*arm.values()], [*baseline.values()], higher_is_better)
        least = min(1.0, 2 * contrasts / math.comb(len(arm) + len(baseline), len(arm)))
        found = found._replace(ranks=p, least=least, is_better=shift > 0)
    if min(len(own), len(other)) < 2:
        return found._replace(reason="an interval needs two seeds that survived of both arms")
    if is_constant:
        return found._replace(reason="the seeds of an arm do not differ: no interval, ranks decide")
    independent, enough = _welch(own, other), min(len(own), len(other)) >= LEAST_SEEDS
    pairs = [
        (one, another) for key, one in arm.items() if one is not None and (another := baseline.get(key)) is not None
    ]
    return found._replace(
        welch=independent,
        paired=_paired(pairs),
        correlation=_correlation(pairs),
        detectable=_detectable(own, other, contrasts) if found.ranks is None and enough else None,
        is_better=(independent.value > 0) == higher_is_better if found.ranks is None else found.is_better,
        reason=None if len(pairs) > 1 else "not the baseline's seeds: no pairs",
    )


def is_testable(arm: Values, baseline: Values) -> bool:
    """Return whether the contrast of two arms has a p: two values of either, or two seeds if some did not survive."""
    own, other = (sum(value is not None for value in values.values()) for values in (arm, baseline))
    lost = own + other < len(arm) + len(baseline)
    return min(own, other) > 1 or (lost and min(len(arm), len(baseline)) > 1)


def ranked(one: Sequence[float | None], other: Sequence[float | None], higher_is_better: bool) -> tuple[float, float]:
    """Return the two-sided p of the Wilcoxon-Mann-Whitney test by permutation, and by how much better `one` ranks.

    None shares the worst rank with every other.
    """
    from scipy.stats import permutation_test, rankdata

    sign = 1 if higher_is_better else -1
    ranks = rankdata([-math.inf if value is None else sign * value for value in (*one, *other)])

    def shift(first: Array, second: Array, axis: int = -1) -> Array:
        return first.mean(axis=axis) - second.mean(axis=axis)

    samples = (ranks[: len(one)], ranks[len(one) :])
    result = permutation_test(samples, shift, n_resamples=MOST_ARRANGEMENTS, vectorized=True, rng=0)
    return float(result.pvalue), float(result.statistic)


def ratio_interval(above: Sequence[float], below: Sequence[float], *, paired: bool) -> tuple[float, float] | None:
    """Return the interval for the ratio of two means, by Fieller's theorem (Fieller 1954); None if it has no bounds.

    It holds every ratio r for which Student's test finds no difference between `above` and r times `below`. paired: the
    n-th values belong together, and what they share does not widen it, with n - 1 degrees of freedom; else one less
    than the smaller sample has, which is never too many. The samples have two values or more, `below` not all zero.
    """
    from scipy.special import stdtrit

    x, y = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    t = float(stdtrit(min(len(x), len(y)) - 1, (1 + CONFIDENCE) / 2))
    covariance = float(np.cov(x, y)[0, 1]) / len(x) if paired else 0.0
    a = y.mean() ** 2 - t**2 * y.var(ddof=1) / len(y)
    b = x.mean() * y.mean() - t**2 * covariance
    c = x.mean() ** 2 - t**2 * x.var(ddof=1) / len(x)
    if a <= 0:
        return None
    root = math.sqrt(max(b * b - a * c, 0.0))
    return float(b - root) / float(a), float(b + root) / float(a)


def adjusted(ps: Sequence[float]) -> list[float]:
    """Return p values corrected for their number by Holm's method (Holm 1979), in their order."""
    order = sorted(range(len(ps)), key=lambda number: ps[number])
    results, largest = [0.0] * len(ps), 0.0
    for place, number in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[number]))
        results[number] = largest
    return results


def _welch(above: Sequence[float], below: Sequence[float]) -> Difference:
    """Return the difference of the means of two independent samples that are not both constant (Welch 1947)."""
    from scipy.stats import ttest_ind

    with _nearly_constant():
        return _difference(above, below, ttest_ind(above, below, equal_var=False))


def _paired(pairs: Sequence[tuple[float, float]]) -> Difference | None:
    from scipy.stats import ttest_rel

    if len({one - other for one, other in pairs}) < 2:
        return None
    above, below = zip(*pairs, strict=True)
    with _nearly_constant():
        return _difference(above, below, ttest_rel(above, below))


def _nearly_constant() -> AbstractContextManager[Any]:
    """Silence SciPy's warning of values that hardly differ: the means of modes and shares often do not."""
    return warnings.catch_warnings(action="ignore", category=RuntimeWarning)


def _difference(above: Sequence[float], below: Sequence[float], test: Any) -> Difference:
    interval = test.confidence_interval(CONFIDENCE)
    difference = statistics.fmean(above) - statistics.fmean(below)
    return Difference(difference, float(interval.low), float(interval.high), float(test.pvalue))


def _correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    if len(pairs) < 3 or min(len({*values}) for values in zip(*pairs, strict=True)) < 2:
        return None
    return statistics.correlation(*zip(*pairs, strict=True))


def _detectable(above: Sequence[float], below: Sequence[float], contrasts: int) -> float:
    """Return the difference at which Welch's test has the power, by the usual sum of two quantiles of t.

    The level is that of the first step of Holm's method, which the largest of several differences must pass.
    """
    from scipy.stats import t

    one, other = (statistics.variance(values) / len(values) for values in (above, below))
    degrees = (one + other) ** 2 / (one**2 / (len(above) - 1) + other**2 / (len(below) - 1))
    reach = t.ppf(1 - (1 - CONFIDENCE) / 2 / contrasts, degrees) + t.ppf(POWER, degrees)
    return float(reach) * math.sqrt(one + other)
