"""Whether two arms of a study are as good as each other, within a margin set beforehand.

    python scripts/studies/equivalence.py DIR SETTING METRIC MARGIN

DIR holds runs that differ in the seed and in two values of SETTING, such as precision, alone, each with the same seeds.
Prints the last METRIC of every seed, and the interval of 95 % of the ratio of the means, paired by seed (Fieller);
exits 0 if it lies within 1 - MARGIN and 1 + MARGIN, else 1.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

from normlab.reports.arms import settings_of
from normlab.reports.convergence import last_scores, protocol_of
from normlab.reports.runs import find_runs
from normlab.reports.statistics import ratio_interval


def main(folder: str, setting: str, metric: str, margin: str) -> int:
    """Print the comparison and return the exit code."""
    values: dict[str, dict[int, float]] = defaultdict(dict)
    rests: set[str] = set()
    for run in find_runs([Path(folder)]):
        protocol = protocol_of(run.evaluations)
        value = last_scores(run.evaluations, protocol).get(metric)
        if run.settings is None or run.state != "done" or value is None:
            print(f"{run.path}: {run.state}, without a final {metric} that counts")
            return 1
        told = settings_of(run)
        own = values[str(told.pop(setting, "nothing"))]
        if run.settings.seed in own:
            print(f"{run.path}: another run has its {setting} and seed")
            return 1
        own[run.settings.seed] = value
        rests.add(json.dumps([told, protocol], sort_keys=True))
    if len(values) != 2 or len(rests) != 1:
        print(f"{setting} has {len(values)} values and all else {len(rests)}, where it is to be 2 and 1")
        return 1
    (below, of_below), (above, of_above) = sorted(values.items(), reverse=True)
    if of_below.keys() != of_above.keys():
        print(f"not the same seeds: {sorted(of_below)} and {sorted(of_above)}")
        return 1
    seeds = sorted(of_below)
    for seed in seeds:
        print(f"seed {seed}: {metric} {of_below[seed]:.4g} with {setting}={below}, {of_above[seed]:.4g} with {above}")
    interval = ratio_interval([of_above[seed] for seed in seeds], [of_below[seed] for seed in seeds], paired=True)
    if interval is None:
        print("the seeds differ too much for an interval")
        return 1
    low, high = interval
    within = 1 - float(margin) < low and high < 1 + float(margin)
    print(f"{above} over {below}: [{low:.4f}, {high:.4f}], {'within' if within else 'not within'} {margin} of 1")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
