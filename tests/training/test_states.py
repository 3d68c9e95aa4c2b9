import pytest

from normlab.training.states import has_moved, is_dead, judge

START = {"step": 0, "frechet_distance": 1800.0, "relative_spread": 0.14, "coverage": 0.0}
LEARNING = {"step": 50, "frechet_distance": 900.0, "relative_spread": 0.5, "coverage": 0.05}
GOOD = {"step": 100, "frechet_distance": 20.0, "relative_spread": 0.9, "coverage": 0.7}


def row(**values: float) -> dict[str, float]:
    return {"step": 150, "frechet_distance": 300.0, "relative_spread": 0.8, "coverage": 0.5, **values}


def test_a_generator_at_the_start_is_untrained_and_not_collapsed():
    assert judge(START, []) == "untrained"


@pytest.mark.parametrize("distance", ["frechet_distance", "fid"])
def test_a_generator_as_far_and_as_spread_as_at_the_start_is_untrained(distance: str):
    start = {"step": 0, distance: 1800.0, "relative_spread": 0.14}
    assert judge({"step": 9, distance: 1700.0, "relative_spread": 0.1}, [start]) == "untrained"
    assert judge({"step": 9, distance: 1500.0, "relative_spread": 0.1}, [start]) is None


def test_a_generator_that_has_moved_is_not_untrained_when_it_is_back_where_it_was():
    back = {**START, "step": 9}
    assert judge(back, [START]) == "untrained"
    assert judge(back, [START, {**START, "step": 5, "fid": 10.0, "frechet_distance": 10.0}]) is None


def test_a_generator_whose_samples_have_become_alike_is_collapsed():
    assert judge(row(relative_spread=0.02), [START, LEARNING, GOOD]) == "collapsed"


def test_a_generator_that_collapses_from_the_start_is_collapsed():
    """Even if its one sample is as far away as those at the start, and nothing was better before."""
    assert judge(row(frechet_distance=1800.0, relative_spread=0.001, coverage=0.0), [START]) == "collapsed"


def test_a_generator_that_begins_with_little_spread_is_not_collapsed():
    """That of images is a tenth of the real one's at the start, and dips before it grows."""
    assert judge(row(frechet_distance=1400.0, relative_spread=0.08, coverage=0.0), [START]) is None


def test_a_generator_that_has_lost_what_it_covered_is_collapsed():
    assert judge(row(coverage=0.06), [START, LEARNING, GOOD]) == "collapsed"
    assert judge(row(coverage=0.08), [START, LEARNING, GOOD]) is None
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
