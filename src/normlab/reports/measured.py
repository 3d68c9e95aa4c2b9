"""A number, or why there is none."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """What was measured; where it could not be, `value` is None and `reason` says why."""

    value: float | None
    reason: str | None = None


class Unmeasurable(Exception):
    """There is no such number, for the reason that is given."""


def is_finite(value: Any) -> bool:
    """Return whether what a row holds is a number, and a finite one."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def measured(compute: Callable[[], float]) -> Measured:
    """Return what `compute` returns, or the reason of the Unmeasurable that it raises."""
    try:
        return Measured(compute())
    except Unmeasurable as error:
        return Measured(None, str(error))
