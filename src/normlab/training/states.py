"""What has become of a run, told apart by what its rows say: pure functions of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Row = Mapping[str, Any]

DISTANCES = ("fid", "frechet_distance")
# Of the spread of the real images' features: below this samples are as good as one, if they have spread twice as far
# before. Trained generators have 0.7 to 1.1; untrained ones of images begin at 0.1 to 0.2.
GONE_SPREAD = 0.1
LOST_SPREAD = 0.5
# Of the best coverage so far: what was covered has been lost. A coverage below `LEAST_COVERAGE` was never anything.
GONE_COVERAGE = 0.1
LEAST_COVERAGE = 0.2
# Over the values at step 0: what is still at this distance or above it, and spread between these, has learned nothing.
UNMOVED_DISTANCE = 0.9
UNMOVED_SPREAD = (0.5, 2.0)

DEAD_SPREAD = 1e-6  # of the scores of a batch; below it gradients are lost beside Adam's eps of 1e-8
SCALARS = ("score/spread", "score/accuracy")
CHANCE = 0.5  # of telling which of two images is real; where all scores are equal, exactly so
LEAST_ROWS = 10  # of the log, before what never moved is called dead


def judge(row: Row, earlier: Sequence[Row]) -> Literal["untrained", "collapsed"] | None:
    """Return what an evaluation says of a generator, given those before it of the same one; None if it is well.

    untrained: it is at step 0, or its samples are as far from the images, and as spread, as at the start, and have been
    so ever since.  collapsed: its samples are all but one, or hardly cover what they covered before.
    """
    first = next((before for before in earlier if before["step"] == 0), None)
    if row["step"] == 0 or (first is not None and all(_unmoved(each, first) for each in (*earlier, row))):
        return "untrained"
    spread, widest = row.get("relative_spread", 1.0), _most("relative_spread", earlier, default=1.0)
    coverage, best = row.get("coverage", 1.0), _most("coverage", earlier, default=0.0)
    alike = spread < min(GONE_SPREAD, LOST_SPREAD * widest)
    lost = best >= LEAST_COVERAGE and coverage < GONE_COVERAGE * best
    return "collapsed" if alike or lost else None


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


def _most(name: str, rows: Sequence[Row], default: float) -> float:
    return max((row[name] for row in rows if row.get(name) is not None), default=default)


def _unmoved(row: Row, first: Row) -> bool:
    """Return whether samples are as far from the images, and as spread, as at the start; no, if no distance tells."""

    def ratio(name: str) -> float | None:
        value, start = row.get(name), first.get(name)
        return value / start if value is not None and start else None

    distance = next((found for name in DISTANCES if (found := ratio(name)) is not None), 0.0)
    spread = ratio("relative_spread")
    least, most = UNMOVED_SPREAD
    return distance > UNMOVED_DISTANCE and (spread is None or least < spread < most)
