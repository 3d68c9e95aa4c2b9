"""What has become of a run, told apart by what its rows say: pure functions of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Row = Mapping[str, Any]

DISTANCES = ("fid", "frechet_distance")
UNMOVED_DISTANCE = 0.9  # of the distance at step 0: what was never nearer has learned nothing
# Of the spread of the real images' features. Trained generators have 0.7 to 1.1; untrained ones of images begin at 0.1
# to 0.2 with batch normalization, and at 0.004 without: below `GONE_SPREAD` samples are as good as one only if they
# have spread further before, and below a tenth of the spread at step 0 if they have not.
GONE_SPREAD = 0.1
LOST_SPREAD = 0.5  # of the most so far
SHRUNK_SPREAD = 0.1  # of that at step 0
NO_SPREAD = 1e-4
# Of the best coverage so far: what was covered has been lost. A coverage below `LEAST_COVERAGE` was never anything.
GONE_COVERAGE = 0.25
LEAST_COVERAGE = 0.2

DEAD_SPREAD = 1e-6  # of the scores of a batch; below it gradients are lost beside Adam's eps of 1e-8
SCALARS = ("score/spread", "score/accuracy")
CHANCE = 0.5  # of telling which of two images is real; where all scores are equal, exactly so
LEAST_ROWS = 10  # of the log, before what never moved is called dead


def judge(row: Row, earlier: Sequence[Row]) -> Literal["untrained", "collapsed"] | None:
    """Return what an evaluation says of a generator, given those before it of the same one; None if it is well.

    untrained: it is at step 0, or was never nearer to the images than then.  collapsed: its samples are all but one, or
    hardly cover what they covered before. Evaluations by another protocol, or with flags, are no measure of this one.
    """
    before = [each for each in earlier if each.get("protocol") == row.get("protocol") and not each.get("flags")]
    first = next((each for each in before if each["step"] == 0), None)
    if row["step"] == 0:
        return "untrained"
    spread = row.get("relative_spread", 1.0)
    if first is not None and all(_as_far(each, first) for each in (*before, row)):
        return "collapsed" if spread < SHRUNK_SPREAD * first.get("relative_spread", 0.0) else "untrained"
    return "collapsed" if spread < _least_spread(before) or _has_lost_coverage(row, before) else None


def is_dead(rows: Sequence[Row]) -> bool:
    """Return whether a discriminator has never told two images apart since the run began, by its rows of scalars."""
    return len(rows) >= LEAST_ROWS and not has_moved(rows)


def has_moved(rows: Sequence[Row]) -> bool:
    """Return whether scores have spread, and pairs were told apart better or worse than by chance, in rows of scalars.

    Rows of older runs, which tell of neither, are taken to have moved.
    """
    spreads, accuracies = ([row[name] for row in rows if row.get(name) is not None] for name in SCALARS)
    if rows and not spreads:
        return True
    return max(spreads, default=0.0) >= DEAD_SPREAD and any(accuracy != CHANCE for accuracy in accuracies)


def _as_far(row: Row, first: Row) -> bool:
    """Return whether samples are as far from the images as at the start; no, if no distance tells."""
    ratios = [row[name] / first[name] for name in DISTANCES if row.get(name) is not None and first.get(name)]
    return bool(ratios) and ratios[0] > UNMOVED_DISTANCE


def _least_spread(before: Sequence[Row]) -> float:
    """Return below which spread samples are as good as one, given how far they have spread before."""
    spreads = _values("relative_spread", before) or [1.0]
    if max(spreads) < GONE_SPREAD:
        return max(SHRUNK_SPREAD * spreads[0], NO_SPREAD)
    return min(GONE_SPREAD, LOST_SPREAD * max(spreads))


def _has_lost_coverage(row: Row, before: Sequence[Row]) -> bool:
    best = max(_values("coverage", before), default=0.0)
    coverage = row.get("coverage")
    if coverage is None or row.get("flags") or best < LEAST_COVERAGE:  # of few samples it is low by itself
        return False
    return coverage < GONE_COVERAGE * best


def _values(name: str, rows: Sequence[Row]) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]
