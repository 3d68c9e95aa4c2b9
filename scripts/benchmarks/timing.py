"""Arms that are timed in alternating rounds, and the ratios between them with their intervals."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

QUIET = (0.97, 1.03)
AGAIN = "again"  # the arm that another is timed against itself by


class Seconds(NamedTuple):
    """How long a window took: CPU time over all threads of the process, and wall time."""

    cpu: float
    wall: float


class Ratio(NamedTuple):
    """The median of the rounds' ratios and its interval, of at least 95 % where there are 6 rounds or more."""

    median: float
    low: float
    high: float

    def over(self, claimed: float) -> "Ratio":
        return Ratio(*(value / claimed for value in self))

    def headline(self) -> dict[str, float]:
        """Return what a benchmark that comes to this one ratio says first."""
        return {"ratio": self.median, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.median:.3f}  [{self.low:.3f}, {self.high:.3f}]"


EQUAL = Ratio(1.0, 1.0, 1.0)  # of what has nothing to be compared with


def in_turn(names: list[str], round_number: int) -> list[str]:
    """Return the order of a round: rotated by one each time and flipped every other time.

    Over 6 rounds each of three arms stands twice in every place, and each order occurs once.
    """
    shift = round_number % len(names)
    order = names[shift:] + names[:shift]
    return order[::-1] if round_number % 2 else order


def time_rounds(arms: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[Seconds]]:
    """Return the seconds of each arm in each round; an arm that works in other processes returns its own."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in arms}
    for round_number in range(rounds):
        for name in in_turn(list(arms), round_number):
            gc.collect()  # what the arm before has left is not this one's to clear away
            cpu, wall = time.process_time(), time.perf_counter()
            told = arms[name]()
            taken = Seconds(time.process_time() - cpu, time.perf_counter() - wall)
            seconds[name].append(told if isinstance(told, Seconds) else taken)
    return seconds


def ratio_of(numerators: list[float], denominators: list[float]) -> Ratio:
    """Return the median of the ratios and the interval between the order statistics that enclose it."""
    ratios = sorted(a / b for a, b in zip(numerators, denominators, strict=True))
    count = len(ratios)
    # The true median lies below the k-th smallest ratio with the probability of fewer than k heads in as many throws.
    tails = [2 * sum(math.comb(count, heads) for heads in range(k)) / 2**count for k in range(1, count + 1)]
    dropped = max(sum(tail <= 0.05 for tail in tails) - 1, 0)
    return Ratio(statistics.median(ratios), ratios[dropped], ratios[count - 1 - dropped])


def is_quiet(control: float) -> bool:
    """Return whether an arm took as long as itself, near enough for its ratios to be believed."""
    return QUIET[0] <= control <= QUIET[1]


def medians_of(windows: list[Seconds]) -> Seconds:
    return Seconds(*(statistics.median(values) for values in zip(*windows, strict=True)))


def window_of(train: Callable[[int], None], steps: int) -> Callable[[], None]:
    return lambda: train(steps)
