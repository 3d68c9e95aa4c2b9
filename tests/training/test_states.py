from typing import Any

import pytest

from normlab.training.states import has_moved, is_dead, judge

START = {"step": 0, "frechet_distance": 1800.0, "relative_spread": 0.14, "coverage": 0.0}
LEARNING = {"step": 50, "frechet_distance": 900.0, "relative_spread": 0.5, "coverage": 0.05}
GOOD = {"step": 100, "frechet_distance": 20.0, "relative_spread": 0.9, "coverage": 0.7}


def row(**values: Any) -> dict[str, Any]:
    return {"step": 150, "frechet_distance": 300.0, "relative_spread": 0.8, "coverage": 0.5, **values}


def test_a_generator_at_the_start_is_untrained_and_not_collapsed():
    assert judge(START, []) == "untrained"


@pytest.mark.parametrize("distance", ["fid", "frechet_distance"])
def test_a_generator_that_was_never_nearer_than_at_the_start_is_untrained(distance: str):
    start = {"step": 0, distance: 1800.0, "relative_spread": 0.14}
    far = {"step": 9, distance: 1700.0, "relative_spread": 0.1}
    assert judge(far, [start]) == "untrained"
    assert judge({**far, distance: 1500.0}, [start]) is None
    assert judge({**far, "step": 18}, [start, {**far, distance: 1500.0}]) is None  # it has been nearer


def test_a_generator_without_batch_norm_is_not_collapsed_where_its_little_spread_goes_up_and_down():
    """As measured with weight normalization in the generator, on digits, before it learned."""
    measured = ((0, 2632, 0.0039), (23, 2944, 0.0114), (45, 2290, 0.0288), (68, 2706, 0.0049))
    rows = [
        {"step": step, "frechet_distance": distance, "relative_spread": spread, "coverage": 0.0}
        for step, distance, spread in measured
    ]
    assert [judge(row, rows[:place]) for place, row in enumerate(rows)] == ["untrained", "untrained", None, None]
    assert judge({**rows[-1], "step": 90, "relative_spread": 1e-4}, rows) == "collapsed"


def test_one_sample_that_comes_nearer_is_collapsed_though_there_never_were_two():
    start = {"step": 0, "frechet_distance": 2600.0, "relative_spread": 0.0}
    assert judge({**start, "step": 9}, [start]) == "untrained"
    assert judge({**start, "step": 9, "frechet_distance": 2000.0}, [start]) == "collapsed"


def test_evaluations_by_another_protocol_or_with_flags_are_no_measure():
    few = row(coverage=0.02, flags=["few_samples"], protocol="20")
    good = {**GOOD, "protocol": "2000", "coverage": 0.86}
    assert judge(few, [good]) is None
    assert judge({**few, "protocol": "2000"}, [good]) is None
    assert judge(row(coverage=0.02, protocol="2000"), [{**good, "flags": ["few_samples"]}]) is None
    assert judge(row(coverage=0.02, protocol="2000"), [good]) == "collapsed"


def test_a_generator_whose_samples_have_become_alike_is_collapsed():
    assert judge(row(relative_spread=0.02), [START, LEARNING, GOOD]) == "collapsed"


def test_a_generator_that_collapses_from_the_start_is_collapsed():
    """Even if its one sample is as far away as those at the start, and nothing was better before."""
    assert judge(row(frechet_distance=1800.0, relative_spread=0.001, coverage=0.0), [START]) == "collapsed"


def test_a_generator_that_begins_with_little_spread_is_not_collapsed():
    """That of images is a tenth of the real one's at the start, and dips before it grows."""
    assert judge(row(frechet_distance=1400.0, relative_spread=0.08, coverage=0.0), [START]) is None


def test_a_generator_that_has_lost_what_it_covered_is_collapsed():
    assert judge(row(coverage=0.11), [START, LEARNING, GOOD]) == "collapsed"  # one digit of ten covers a sixth or so
    assert judge(row(coverage=0.2), [START, LEARNING, GOOD]) is None
    assert judge(row(coverage=0.0), [START, LEARNING]) is None  # there was nothing to lose


def test_a_generator_that_is_well_is_neither():
    assert judge(GOOD, [START, LEARNING]) is None


def test_a_row_without_scores_says_nothing():
    assert judge({"step": 9, "flags": ["non_finite"]}, [START, GOOD]) is None


def scalars(spread: float, accuracy: float) -> dict[str, float]:
    return {"score/spread": spread, "score/accuracy": accuracy}


def test_a_discriminator_whose_scores_never_spread_is_dead():
    rows = [scalars(1e-7, accuracy) for accuracy in (0.4, 0.5, 0.6) * 4]
    assert is_dead(rows)
    assert not is_dead([*rows[:-1], scalars(1e-3, 0.5)])


def test_a_discriminator_that_never_tells_apart_more_than_chance_is_dead():
    assert is_dead([scalars(0.1, 0.5)] * 10)
    assert not is_dead([scalars(0.1, 0.5)] * 9)  # too early to say
    assert not is_dead([*[scalars(0.1, 0.5)] * 9, scalars(0.1, 0.52)])


def test_a_discriminator_that_always_wins_is_not_dead():
    assert not is_dead([scalars(2.0, 1.0)] * 50)


def test_rows_that_tell_nothing_of_scores_are_not_dead():
    assert has_moved([{"step": 1}] * 20)
    assert not has_moved([])
