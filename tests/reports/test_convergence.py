"""Times to a level, their means and what they say, on curves that are known."""

from collections.abc import Sequence
from typing import Any

import pytest

from normlab.reports import convergence
from normlab.reports.convergence import Point, Speedup
from normlab.reports.measured import Unmeasurable


def points(values: Sequence[float | None], every: int = 100) -> list[Point]:
    """Return an evaluation every so many images, 64 of them a step and 1000 a second."""
    return [
        Point({"step": every * number / 64, "images_seen": every * number, "seconds": every * number / 1000}, value)
        for number, value in enumerate(values)
    ]


def row(step: int, **values: Any) -> dict[str, Any]:
    given = {"step": step, "images_seen": 64 * step, "seconds": float(step), "generator": "live", "protocol": "a"}
    return {**given, "flags": [], **values}


@pytest.mark.parametrize(
    ("metric", "values", "level", "images"),
    [
        ("fid", [90, 60, 30, 40], 60, 100),
        ("fid", [90, 60, 30, 40], 59, 200),
        ("fid", [90, None, 30, 40], 60, 200),
        ("fid", [90, 60, 30, 40], 29, None),
        ("inception_score", [1, 2, 3], 2.5, 200),
        ("inception_score", [1, 2, 3], 3.5, None),
        ("recall", [0.5, 0.1], 0.4, 0),
    ],
)
def test_the_first_evaluation_at_the_level_or_better_is_the_time(
    metric: str, values: list[float | None], level: float, images: int | None
) -> None:
    point = convergence.reached(points(values), level, metric)

    assert (None if point is None else point.at["images_seen"]) == images


def test_flagged_rows_other_protocols_and_other_generators_do_not_count() -> None:
    rows = [
        row(1, fid=9.0, flags=["few_samples"]),
        row(2, fid=8.0, protocol="b"),
        row(3, fid=7.0, generator="averaged"),
        row(3, fid=1.0),
        row(4, generator="averaged", fid=None),
        row(5, generator="averaged", fid=5.0),
        row(6, generator="averaged", fid=4.0, flags=["non_finite"]),
    ]
    curve = convergence.curve(rows, "fid", "a")

    assert convergence.protocol_of(rows) == "a"
    assert [(point.at["step"], point.value) for point in curve] == [(3, 7.0), (4, None), (5, 5.0), (6, None)]
    assert [point.value for point in convergence.curve(rows[:2], "fid", "a")] == [None]
    assert convergence.curve(rows, "fid", None) == []


def test_a_censored_time_counts_with_the_horizon() -> None:
    assert convergence.restricted_mean([10, None, 30], 20) == pytest.approx((10 + 20 + 20) / 3)


def test_an_arm_that_takes_70_per_cent_of_the_time_is_30_per_cent_faster() -> None:
    faster = convergence.speedup({0: 70.0, 1: 77.0, 2: 84.0}, {0: 100.0, 1: 110.0, 2: 120.0}, 500)

    assert faster == Speedup(pytest.approx(30), pytest.approx(30, abs=1e-4), pytest.approx(30, abs=1e-4), paired=True)


def test_other_seeds_are_no_pairs() -> None:
    arm, baseline = [70.0, 77.0, 84.0], [100.0, 110.0, 120.0]
    pairs = convergence.speedup(dict(enumerate(arm)), dict(enumerate(baseline)), 500)
    others = convergence.speedup(dict(enumerate(arm)), dict(enumerate(baseline, 7)), 500)

    assert (pairs.paired, others.paired) == (True, False)
    assert others.percent == pairs.percent
    assert others.low is not None
    assert pairs.low is not None
    assert others.low < pairs.low - 5


def test_seeds_are_matched_by_their_number_and_not_by_their_order() -> None:
    straight = convergence.speedup({0: 70.0, 1: 80.0, 2: 85.0}, {0: 100.0, 1: 110.0, 2: 125.0}, 500)
    shuffled = convergence.speedup({2: 85.0, 0: 70.0, 1: 80.0}, {1: 110.0, 2: 125.0, 0: 100.0}, 500)

    assert shuffled == straight


def test_an_arm_that_never_gets_there_is_as_slow_as_the_horizon() -> None:
    slower = convergence.speedup({0: None, 1: None}, {0: 50.0, 1: 50.0}, 100)

    assert slower.percent == pytest.approx(-100)
    assert slower.low is None


@pytest.mark.parametrize(
    ("arm", "baseline", "says"),
    [
        ({0: None}, {0: 300.0}, "no run of either arm"),
        ({0: 10.0}, {0: 0.0}, "before the first step"),
        ({0: 10.0}, {}, "could be timed"),
        ({0: 10.0}, {0: 20.0}, "two seeds"),
        ({0: 10.0, 1: 10.0}, {0: 20.0, 1: 20.0}, "at the same evaluation"),
        ({0: 10.0, 1: 15.0}, {0: 1.0, 1: 90.0}, "differ too much"),
    ],
)
def test_what_cannot_be_told_has_a_reason(
    arm: dict[int, float | None], baseline: dict[int, float | None], says: str
) -> None:
    told = convergence.speedup(arm, baseline, 100)

    assert told.low is None
    assert told.reason is not None
    assert says in told.reason


def test_the_area_of_an_exponential_is_that_of_its_line() -> None:
    curve = points([100 * 10 ** (-images / 1000) for images in range(0, 2001, 100)])

    assert convergence.log_area(curve, 0, 2000) == pytest.approx(2 - 1)
    assert convergence.log_area(curve, 0, 1050) == pytest.approx(2 - 0.525)
    assert convergence.log_area([curve[0], Point(curve[7].at, None), curve[20]], 0, 2000) == pytest.approx(2 - 1)


@pytest.mark.parametrize(
    ("values", "end", "says"),
    [
        ([3.0, 2.0, 1.0], 300, "whole stretch"),
        ([3.0, None, None], 200, "whole stretch"),
        ([3.0, -1.0, 1.0], 200, "no logarithm"),
        ([], 200, "whole stretch"),
    ],
)
def test_an_area_that_there_is_not_has_a_reason(values: list[float | None], end: int, says: str) -> None:
    with pytest.raises(Unmeasurable, match=says):
        convergence.log_area(points(values), 0, end)
