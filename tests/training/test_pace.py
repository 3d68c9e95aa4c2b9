import pytest

from normlab.settings import Length
from normlab.training.optimizers import SCHEDULES
from normlab.training.pace import Pace

DIGITS = Pace(images_per_epoch=1437, images_per_step=96)  # 14.97 steps to an epoch


@pytest.mark.parametrize(
    ("length", "steps"), [("7 steps", 7), ("96 images", 1), ("97 images", 2), ("1 epoch", 15), ("100 epochs", 1497)]
)
def test_a_length_ends_at_the_first_step_that_reaches_it(length: str, steps: int) -> None:
    assert DIGITS.steps(Length.parse(length)) == steps


@pytest.mark.parametrize("length", ["1 epoch", "0.5 epochs", "3 epochs", "1000 images", "7 steps"])
def test_the_jth_multiple_is_due_at_the_first_step_that_reaches_it(length: str) -> None:
    parsed = Length.parse(length)
    due = [step for step in range(500) if DIGITS.due(parsed, step)]
    images = {"epochs": 1437, "images": 1, "steps": 96}[parsed.unit] * parsed.value
    first_at_or_beyond = [next(s for s in range(600) if s * 96 >= j * images) for j in range(1, len(due) + 1)]

    assert due == first_at_or_beyond
    assert len(due) > 10


def test_nothing_is_due_without_a_length_or_at_step_0() -> None:
    assert not any(DIGITS.due(None, step) for step in range(100))
    assert not DIGITS.due(Length.parse("1 step"), 0)


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("constant", {}, [1, 1, 1, 1, 1, 1]),
        ("linear", {"floor": 0.2}, [1, 0.8, 0.6, 0.4, 0.2, 0.2]),
        ("linear", {"start": 0.5}, [1, 1, 1, 0.5, 0, 0]),
        ("cosine", {}, [1, 0.8535534, 0.5, 0.1464466, 0, 0]),
        ("step", {"milestones": [0.25, 0.75], "factor": 0.1}, [1, 0.1, 0.1, 0.01, 0.01, 0.01]),
    ],
)
def test_schedules_follow_their_formulas_over_the_horizon_and_stay_behind_it(
    name: str, params: dict[str, object], expected: list[float]
) -> None:
    schedule = SCHEDULES.build(name, params, lambda length: 4)

    assert [schedule(step) for step in range(6)] == pytest.approx(expected)
