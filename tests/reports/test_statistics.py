"""Means, differences and tests against SciPy's, and what intervals hold over many studies that are made up."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from normlab.reports import statistics
from normlab.reports.statistics import Contrast, Mean

OWN = {"0": 12.0, "1": 14.5, "2": 11.0, "3": 13.0, "4": 12.5}
OTHER = {"0": 15.0, "1": 16.0, "2": 15.5, "3": 18.0, "4": 14.0}


def values(of: dict[str, float]) -> list[float]:
    return list(of.values())


def test_a_mean_has_students_interval() -> None:
    found = statistics.mean(values(OWN))
    assert found is not None
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values(OWN)), scale=stats.sem(values(OWN)))

    assert found == Mean(
        pytest.approx(12.6), 5, pytest.approx(np.std(values(OWN), ddof=1)), pytest.approx(low), pytest.approx(high)
    )
    assert statistics.mean([3.0]) == Mean(3.0, 1)
    assert statistics.mean([]) is None


def test_a_difference_is_that_of_welch_and_that_of_pairs() -> None:
    found = statistics.contrast(OWN, OTHER, higher_is_better=False)
    welch, paired = (
        stats.ttest_ind(values(OWN), values(OTHER), equal_var=False),
        stats.ttest_rel(values(OWN), values(OTHER)),
    )
    assert found.welch is not None
    assert found.paired is not None

    for ours, theirs in ((found.welch, welch), (found.paired, paired)):
        interval = theirs.confidence_interval(0.95)
        assert ours == pytest.approx((12.6 - 15.7, interval.low, interval.high, theirs.pvalue))
    assert found.correlation == pytest.approx(stats.pearsonr(values(OWN), values(OTHER)).statistic)
    assert (found.p, found.ranks, found.is_better) == (found.welch.p, None, True)
    assert statistics.contrast(OWN, OTHER, higher_is_better=True).is_better is False


def test_pairs_are_matched_by_seed_and_not_by_order() -> None:
    backwards = dict(reversed(OTHER.items()))

    assert statistics.contrast(OWN, backwards, higher_is_better=False).paired == pytest.approx(
        statistics.contrast(OWN, OTHER, higher_is_better=False).paired
    )


def test_runs_that_did_not_survive_rank_worst_and_then_ranks_decide() -> None:
    """The exact p by every arrangement of ten ranks, with a tie of the two lost ones at the worst."""
    lost: dict[str, float | None] = {**OWN, "3": None, "4": None}
    found = statistics.contrast(lost, OTHER, higher_is_better=False)
    ranks = stats.rankdata([*(value or math.inf for value in lost.values()), *values(OTHER)])
    sums = [sum(each) for each in itertools.combinations(ranks.tolist(), 5)]
    own = ranks[:5].sum()
    expected = min(1.0, 2 * min(np.mean([each <= own for each in sums]), np.mean([each >= own for each in sums])))

    assert found.ranks == pytest.approx(expected)
    assert found.p == found.ranks
    assert found.welch is not None
    assert found.welch.value == pytest.approx(12.5 - 15.7)  # of those that survived
    # Where all are lost there is no mean, and ranks still tell.
    nothing = statistics.contrast(dict.fromkeys(OWN), OTHER, higher_is_better=False)
    assert (nothing.welch, nothing.ranks, nothing.is_better) == (None, pytest.approx(2 / 252), False)


@pytest.mark.parametrize(
    ("own", "other", "says"),
    [
        ({"0": 1.0}, OTHER, "two seeds"),
        ({"0": 1.0, "1": 1.0}, {"0": 2.0, "1": 2.0}, "do not differ"),
        ({"7": 1.0, "8": 1.5}, OTHER, "no pairs"),
    ],
)
def test_what_cannot_be_told_has_a_reason(own: dict[str, float], other: dict[str, float], says: str) -> None:
    found = statistics.contrast(own, other, higher_is_better=False)

    assert says in (found.reason or "")
    assert found.paired is None


def test_holms_correction_is_step_down_and_keeps_the_order() -> None:
    assert statistics.adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.adjusted([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.adjusted([]) == []


def test_the_detectable_difference_is_found_in_four_of_five_studies() -> None:
    """Over studies of two normal arms with equal spread, as far apart as the mean study calls detectable."""
    generator = np.random.default_rng(0)
    one, other = generator.normal(0, 1, (2, 2000, 6))
    told = [
        statistics.contrast(dict(enumerate(a)), dict(enumerate(b)), higher_is_better=False).detectable
        for a, b in zip(one[:200].tolist(), other[:200].tolist(), strict=True)
    ]
    shift = float(np.sqrt(np.mean(np.square([each or 0.0 for each in told]))))
    found = stats.ttest_ind(one + shift, other, axis=1, equal_var=False).pvalue < 0.05

    assert np.mean(found) == pytest.approx(0.8, abs=0.05)  # the formula is an approximation; 2,000 studies give 0.9 %


@pytest.mark.parametrize("spread", [0.1, 0.2, 0.3])
def test_of_a_thousand_studies_of_log_normal_seeds_the_interval_holds_the_mean_in_95_per_cent(spread: float) -> None:
    generator = np.random.default_rng(1)
    truth = math.exp(spread**2 / 2)
    found = [statistics.mean(seeds) for seeds in generator.lognormal(0, spread, (1000, 5)).tolist()]
    held = np.mean([each is not None and (each.low or 0) <= truth <= (each.high or 0) for each in found])

    assert 0.93 <= held <= 0.97


def test_an_empty_contrast_decides_nothing() -> None:
    assert Contrast().p is None
