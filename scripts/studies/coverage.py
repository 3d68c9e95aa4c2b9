"""How often the intervals of `normlab report` hold the truth, and how often it finds a difference where there is none.

    python scripts/studies/coverage.py

Studies are made up: seeds of an arm are log-normal with a spread (the deviation of the logarithm), and some of its runs
diverge, either whichever they are or those that would have been the worst. Prints a Markdown table.
"""

import argparse
import math

import numpy as np
from numpy.typing import NDArray

from normlab.reports import statistics
from normlab.reports.statistics import LEAST_SEEDS, Values
from normlab.reports.tables import SIGNIFICANT

Array = NDArray[np.float64]

SEEDS = (3, LEAST_SEEDS)
SPREADS = (0.1, 0.2, 0.3, 0.5)
LOST = {"none": 0.0, "any": 0.1, "worst": 0.1}  # which runs diverge, and what part of all


def study(rng: np.random.Generator, spread: float, seeds: int, which: str) -> Values:
    """Return the final values of an arm, None of a run that diverged."""
    values = rng.lognormal(0, spread, seeds)
    part = LOST[which]
    # The worst are those above the value that so large a part of all seeds is above.
    lost = values > math.exp(spread * 1.2815515655446004) if which == "worst" else rng.random(seeds) < part
    return {seed: None if gone else float(value) for seed, (value, gone) in enumerate(zip(values, lost, strict=True))}


def holds(values: Values, truth: float) -> bool | None:
    """Return whether the interval of the mean holds the truth; None where there is no interval."""
    found = statistics.mean([value for value in values.values() if value is not None])
    return None if found is None or found.low is None or found.high is None else found.low <= truth <= found.high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    arguments = parser.parse_args()
    print("| seeds | spread | diverged | interval holds the mean | a difference where there is none |")
    print("| ---: | ---: | --- | ---: | ---: |")
    for seeds in SEEDS:
        for spread in SPREADS:
            for which in LOST:
                rng = np.random.default_rng([seeds, round(10 * spread), [*LOST].index(which)])
                arms = [[study(rng, spread, seeds, which) for _ in range(2)] for _ in range(arguments.studies)]
                held = [kept for arm, _ in arms if (kept := holds(arm, math.exp(spread**2 / 2))) is not None]
                ps = [statistics.contrast(*pair, higher_is_better=False).p for pair in arms]
                false = np.mean([p is not None and p < SIGNIFICANT for p in ps])
                lost = "none" if which == "none" else f"10 %, {which}"
                print(
                    f"| {seeds} | {spread} | {lost} | {100 * np.mean(held):.1f} % | {100 * false:.1f} % |", flush=True
                )


if __name__ == "__main__":
    main()
