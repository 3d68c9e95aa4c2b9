"""A number, or why there is none."""

from collections.abc import Callable
from typing import NamedTuple


class Measured(NamedTuple):
    """What was measured; where it could not be, `value` is None and `reason` says why."""

    value: float | None
    reason: str | None = None


class Unmeasurable(Exception):
    """There is no such number, for the reason that is given."""


def measured(compute: Callable[[], float]) -> Measured:
    """Return what `compute` returns, or the reason of the Unmeasurable that it raises."""
    try:
        return Measured(compute())
    except Unmeasurable as error:
        return Measured(None, str(error))
