"""How many threads of the CPU a run computes with: the same from its first step to its last, as sums depend on it.

Of several processes each has as many; with another number of processes sums are others in any case, and a run takes
what a new one would.
"""

import os

from normlab import ranks
from normlab.config import RunConfig
from normlab.outputs import plain_json
from normlab.outputs.run_dir import RunDir


def threads_of(settings: RunConfig, run_dir: RunDir, count: int, share: int | None = None) -> int:
    """Return the number for each of `count` processes: what the settings give, else what the run began with.

    Where it is new, or had another number of processes, `share`, else all cores.
    """
    begun = plain_json.read(run_dir.environment).get("threads")
    if not isinstance(begun, int) or not 1 <= begun <= 1024:
        begun = None
    # Started over, it begins anew.
    keeps = not settings.fresh and run_dir.read_ranks() == count
    return settings.threads or (begun if keeps else None) or share or cores()


def cores() -> int:
    """Return how many cores this process may use: $OMP_NUM_THREADS, else its share of what the system gives it."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdecimal() and int(limit) > 0:
        return int(limit)
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // ranks.beside())
