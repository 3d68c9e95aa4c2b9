"""Intervals for what is estimated from a few seeds."""

import math
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95


def student_quantile(degrees: int) -> float:
    """Return the t beyond whose absolute value a share of 1 - `CONFIDENCE` of Student's distribution lies.

    By bisection of its distribution function, a finite sum for whole degrees of freedom (Abramowitz & Stegun 1972,
    26.7.3 and 26.7.4).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _share_within(angle, degrees) < CONFIDENCE else (low, angle)
    return math.sqrt(degrees) * math.tan(low)


def ratio_interval(above: Sequence[float], below: Sequence[float], *, paired: bool) -> tuple[float, float] | None:
    """Return the interval for the ratio of two means, by Fieller's theorem (Fieller 1954); None if it has no bounds.

    It holds every ratio r for which Student's test finds no difference between `above` and r times `below`. paired: the
    n-th values belong together, and what they share does not widen it, with n - 1 degrees of freedom; else one less
    than the smaller sample has, which is never too many. The samples have two values or more, `below` not all zero.
    """
    x, y = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    t = student_quantile(min(len(x), len(y)) - 1)
    covariance = float(np.cov(x, y)[0, 1]) / len(x) if paired else 0.0
    a = y.mean() ** 2 - t**2 * y.var(ddof=1) / len(y)
    b = x.mean() * y.mean() - t**2 * covariance
    c = x.mean() ** 2 - t**2 * x.var(ddof=1) / len(x)
    if a <= 0:
        return None
    root = math.sqrt(max(b * b - a * c, 0.0))
    return float(b - root) / float(a), float(b + root) / float(a)


def _share_within(angle: float, degrees: int) -> float:
    """Return the share of Student's distribution within sqrt(degrees) * tan(angle) of zero."""
    term, total = (math.cos(angle), 0.0) if degrees % 2 else (1.0, 0.0)
    for power in range(degrees % 2, degrees - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if degrees % 2 else total
