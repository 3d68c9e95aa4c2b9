"""Intervals against SciPy's tests, and how often they hold what they should."""

import numpy as np
import pytest
from scipy import stats

from normlab.reports.intervals import ratio_interval


def test_at_the_bounds_of_pairs_the_paired_test_is_at_its_level() -> None:
    generator = np.random.default_rng(0)
    below = generator.normal(10, 1, 6)
    above = 0.7 * below + generator.normal(0, 0.5, 6)
    bounds = ratio_interval(above.tolist(), below.tolist(), paired=True)
    assert bounds is not None

    for bound in bounds:
        assert stats.ttest_1samp(above - bound * below, 0).pvalue == pytest.approx(0.05)
    assert stats.ttest_1samp(above - sum(bounds) / 2 * below, 0).pvalue > 0.05


def test_pairs_that_differ_by_a_factor_leave_no_doubt_which() -> None:
    below = [100.0, 110.0, 120.0]
    above = [0.7 * value for value in below]
    unpaired = ratio_interval(above, below, paired=False)
    assert unpaired is not None

    assert ratio_interval(above, below, paired=True) == pytest.approx((0.7, 0.7), abs=1e-6)
    assert unpaired[0] < 0.6 < 0.8 < unpaired[1]


def test_a_baseline_that_may_be_zero_bounds_nothing() -> None:
    assert ratio_interval([1.0, 2.0], [1.0, 9.0], paired=True) is None


def test_it_holds_the_ratio_of_few_seeds_where_a_bootstrap_does_not() -> None:
    trials, seeds = 800, 4
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 1, (trials, seeds))
    above, below = (
        np.exp(0.3 * (0.6 * shared + 0.8 * generator.normal(0, 1, (trials, seeds)))) * mean for mean in (14, 20)
    )
    bounds = [ratio_interval(x.tolist(), y.tolist(), paired=True) for x, y in zip(above, below, strict=True)]
    held = np.mean([bound is None or bound[0] <= 0.7 <= bound[1] for bound in bounds])
    drawn = generator.integers(0, seeds, (400, seeds))
    ratios = above[:, drawn].mean(axis=2) / below[:, drawn].mean(axis=2)
    low, high = np.quantile(ratios, [0.025, 0.975], axis=1)
    held_by_bootstrap = np.mean((low <= 0.7) & (high >= 0.7))

    # 800 trials tell 95 % to 1.5 %, at two standard errors.
    assert held >= 0.935
    assert held_by_bootstrap < 0.85
