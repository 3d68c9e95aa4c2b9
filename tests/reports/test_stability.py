"""Numbers of stability on series for which they are known."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from normlab.reports import stability
from normlab.reports.stability import LEAST_ROWS, ROLLING_ROWS, Window, last_half

COUNT = 40
ALTERNATING = np.tile([1.0, 3.0], COUNT // 2)
EVERYTHING = Window(0, math.inf)


def rows(series: Mapping[str, Sequence[float | None]]) -> list[dict[str, Any]]:
    """Return a row every five steps."""
    count = len(next(iter(series.values())))
    return [{"step": 5 * (row + 1), **{key: values[row] for key, values in series.items()}} for row in range(count)]


def numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    return {name: number.value for name, number in stability.stability(rows, [], EVERYTHING).items()}


def test_a_sine_over_the_rolling_window_has_the_spread_of_a_sine() -> None:
    sine = 0.5 * np.sin(2 * np.pi * np.arange(COUNT) / ROLLING_ROWS)

    assert stability.rolling_spread(7 + sine) == pytest.approx(0.5 * math.sqrt(5 / 9))


def test_a_known_step_has_its_height_as_total_variation() -> None:
    step = np.repeat([2.0, 5.0], COUNT // 2)

    assert stability.total_variation(step) == pytest.approx(3 / (COUNT - 1))
    assert stability.spikes(step) == 2  # the row before it and the row after are on neither side's median


def test_a_loss_that_alternates_has_its_numbers_over_level_plus_range() -> None:
    measured = numbers(rows({"loss/generator": ALTERNATING.tolist()}))

    # Its median is 2, its quartiles are 1 and 3.
    assert measured["loss/generator/spread"] == pytest.approx(math.sqrt(10 / 9) / 4)
    assert measured["loss/generator/variation"] == pytest.approx(2 / 4)
    assert measured["loss/generator/spikes"] == 0


def test_a_constant_loss_does_not_fluctuate() -> None:
    measured = numbers(rows({"loss/generator": [0.7] * COUNT}))

    assert measured == dict.fromkeys(measured, pytest.approx(0, abs=1e-12))


def test_a_loss_around_zero_is_held_against_its_range() -> None:
    assert stability.scale(ALTERNATING - 2) == pytest.approx(2)


def test_planted_spikes_are_counted_and_noise_and_slopes_are_not() -> None:
    slope = np.linspace(0, 50, 1000)
    noise = slope + np.random.default_rng(0).standard_normal(1000)
    planted = noise.copy()
    planted[[100, 101, 500, 800]] += [20, 20, 20, -20]

    assert [stability.spikes(values) for values in (slope, noise, planted)] == [0, 0, 4]


def test_a_factor_on_the_losses_and_scores_changes_nothing() -> None:
    logged = ("loss/generator", "loss/discriminator", "score/real", "score/fake", "gradient_norm/generator")
    series = {name: abs(np.random.default_rng(seed).normal(1, 1, COUNT)) for seed, name in enumerate(logged)}
    plain, scaled = (
        numbers(rows({name: (factor * values).tolist() for name, values in series.items()})) for factor in (1.0, 3.7)
    )

    assert len(plain) == 3 * 2 + 2 + 1
    assert scaled == pytest.approx(plain, rel=1e-9)


def test_the_score_gap_drifts_by_what_its_line_rises() -> None:
    # From 1 to 5: the median is 3, the quartiles are 2 and 4.
    fake = np.sin(np.arange(COUNT + 1)).tolist()
    real = (np.sin(np.arange(COUNT + 1)) + np.linspace(1, 5, COUNT + 1)).tolist()
    measured = numbers(rows({"score/real": real, "score/fake": fake}))
    # Ten values 0.1 apart have the variance 0.01 * (10^2 - 1) / 12 * 10 / 9.
    spread = 0.1 * math.sqrt(99 / 12 * 10 / 9)

    assert measured == {"score_gap/drift": pytest.approx(4 / 5), "score_gap/spread": pytest.approx(spread / 5)}


def test_gradient_norms_have_a_coefficient_of_variation() -> None:
    measured = numbers(rows({"gradient_norm/generator": ALTERNATING.tolist()}))

    assert measured == {"gradient_norm/generator/cv": pytest.approx(math.sqrt(COUNT / (COUNT - 1)) / 2)}


def spectra(*profiles: Sequence[float | None]) -> list[dict[str, Any]]:
    return [
        {"step": step, "network": "discriminator", "layer": f"layer{depth}", "gradient_norm": norm}
        for step, profile in enumerate(profiles, 1)
        for depth, norm in enumerate(profile)
    ]


def test_gradients_over_depth_are_geometric_means_over_steps() -> None:
    found = stability.stability([], spectra([8, 4, 16, 2], [2, 16, 4, 8], [3, 3, 3, 3]), EVERYTHING)

    assert {name: number.value for name, number in found.items()} == {
        "gradient_ratio/discriminator/first_to_last": pytest.approx(1),  # of 4, 1/4 and 1
        "gradient_ratio/discriminator/largest": pytest.approx(4),  # of 8, 8 and 1
    }


@pytest.mark.parametrize(
    ("profiles", "says"),
    [
        ([[1, 2], [1, 2]], "at 2 steps of the window, fewer than 3"),
        ([[1], [1], [1]], "two or more layers"),
        ([[1, 2], [1], [1, 2]], "two or more layers"),
        ([[1, 0], [1, 2], [1, 2]], "zero or not finite"),
        ([[1, None], [1, 2], [1, 2]], "zero or not finite"),
    ],
)
def test_gradients_over_depth_that_cannot_be_told_have_a_reason(profiles: Any, says: str) -> None:
    for number in stability.stability([], spectra(*profiles), EVERYTHING).values():
        assert number.value is None
        assert number.reason is not None
        assert says in number.reason


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([1.0] * (LEAST_ROWS - 1), f"fewer than {LEAST_ROWS}"),
        ([1.0, None] * LEAST_ROWS, "missing or not finite"),
        ([0.0] * COUNT, "zero in nearly every row"),
    ],
)
def test_where_there_is_no_number_there_is_a_reason(losses: list[float | None], says: str) -> None:
    number = stability.stability(rows({"loss/generator": losses}), [], EVERYTHING)["loss/generator/spread"]

    assert number.value is None
    assert number.reason is not None
    assert says in number.reason


def test_the_first_half_of_the_steps_does_not_count() -> None:
    steady, wild = [2.0] * COUNT, (100 * ALTERNATING).tolist()
    logged = rows({"loss/generator": wild + steady})
    measured = stability.stability(logged, [], last_half(logged))

    assert last_half(logged) == (5 * COUNT, 10 * COUNT)
    assert measured["loss/generator/variation"].value == 0


def test_the_log_interval_is_the_usual_one() -> None:
    assert stability.log_interval([{"step": step} for step in (50, 100, 150, 163)]) == 50
    assert stability.log_interval([{"step": 50}]) is None
