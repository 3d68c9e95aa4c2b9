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


LEVEL = 0.05


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


@pytest.mark.parametrize("contrasts", [1, 8])
def test_the_detectable_difference_is_found_in_four_of_five_studies(contrasts: int) -> None:
    """Over studies of two normal arms with equal spread, as far apart as the mean study calls detectable."""
    generator = np.random.default_rng(0)
    one, other = generator.normal(0, 1, (2, 2000, 6))
    told = [
        statistics.contrast(
            dict(enumerate(a)), dict(enumerate(b)), higher_is_better=False, contrasts=contrasts
        ).detectable
        for a, b in zip(one[:200].tolist(), other[:200].tolist(), strict=True)
    ]
    shift = float(np.sqrt(np.mean(np.square([each or 0.0 for each in told]))))
    found = stats.ttest_ind(one + shift, other, axis=1, equal_var=False).pvalue < LEVEL / contrasts

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


def test_at_the_bounds_of_pairs_the_paired_test_is_at_its_level() -> None:
    generator = np.random.default_rng(0)
    below = generator.normal(10, 1, 6)
    above = 0.7 * below + generator.normal(0, 0.5, 6)
    bounds = statistics.ratio_interval(above.tolist(), below.tolist(), paired=True)
    assert bounds is not None

    for bound in bounds:
        assert stats.ttest_1samp(above - bound * below, 0).pvalue == pytest.approx(0.05)
    assert stats.ttest_1samp(above - sum(bounds) / 2 * below, 0).pvalue > 0.05


def test_pairs_that_differ_by_a_factor_leave_no_doubt_which() -> None:
    below = [100.0, 110.0, 120.0]
    above = [0.7 * value for value in below]
    unpaired = statistics.ratio_interval(above, below, paired=False)
    assert unpaired is not None

    assert statistics.ratio_interval(above, below, paired=True) == pytest.approx((0.7, 0.7), abs=1e-6)
    assert unpaired[0] < 0.6 < 0.8 < unpaired[1]


def test_a_baseline_that_may_be_zero_bounds_nothing() -> None:
    assert statistics.ratio_interval([1.0, 2.0], [1.0, 9.0], paired=True) is None


def test_it_holds_the_ratio_of_few_seeds_where_a_bootstrap_does_not() -> None:
    trials, seeds = 800, 4
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 1, (trials, seeds))
    above, below = (
        np.exp(0.3 * (0.6 * shared + 0.8 * generator.normal(0, 1, (trials, seeds)))) * mean for mean in (14, 20)
    )
    bounds = [statistics.ratio_interval(x.tolist(), y.tolist(), paired=True) for x, y in zip(above, below, strict=True)]
    held = np.mean([bound is None or bound[0] <= 0.7 <= bound[1] for bound in bounds])
    drawn = generator.integers(0, seeds, (400, seeds))
    ratios = above[:, drawn].mean(axis=2) / below[:, drawn].mean(axis=2)
    low, high = np.quantile(ratios, [0.025, 0.975], axis=1)
    held_by_bootstrap = np.mean((low <= 0.7) & (high >= 0.7))

    # 800 trials tell 95 % to 1.5 %, at two standard errors.
    assert held >= 0.935
    assert held_by_bootstrap < 0.85


def test_arms_whose_seeds_do_not_differ_are_told_apart_by_ranks() -> None:
    three, eight = (dict.fromkeys(map(str, range(10)), count) for count in (3.0, 8.0))
    found = statistics.contrast(eight, three, higher_is_better=True)

    assert (found.welch, found.is_better) == (None, True)
    assert found.p == pytest.approx(2 / math.comb(20, 10), abs=1e-4)  # drawn, not counted: of 100,000 arrangements
    assert statistics.contrast(eight, eight, higher_is_better=True).p == 1
