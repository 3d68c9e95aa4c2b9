"""Intervals for what is estimated from a few seeds."""

import math
from collections.abc import Sequence

import numpy as np

# SciPy takes a third of a second to import, so only the function that needs it does.

CONFIDENCE = 0.95


def ratio_interval(above: Sequence[float], below: Sequence[float], *, paired: bool) -> tuple[float, float] | None:
    """Return the interval for the ratio of two means, by Fieller's theorem (Fieller 1954); None if it has no bounds.

    It holds every ratio r for which Student's test finds no difference between `above` and r times `below`. paired: the
    n-th values belong together, and what they share does not widen it, with n - 1 degrees of freedom; else one less
    than the smaller sample has, which is never too many. The samples have two values or more, `below` not all zero.
    """
    from scipy.special import stdtrit

    x, y = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    t = float(stdtrit(min(len(x), len(y)) - 1, (1 + CONFIDENCE) / 2))
    covariance = float(np.cov(x, y)[0, 1]) / len(x) if paired else 0.0
    a = y.mean() ** 2 - t**2 * y.var(ddof=1) / len(y)
    b = x.mean() * y.mean() - t**2 * covariance
    c = x.mean() ** 2 - t**2 * x.var(ddof=1) / len(x)
    if a <= 0:
        return None
    root = math.sqrt(max(b * b - a * c, 0.0))
    return float(b - root) / float(a), float(b + root) / float(a)
