"""How many threads of the CPU a run computes with: the same from its first step to its last, as sums depend on it."""

import os

from normlab.config import RunConfig
from normlab.outputs import plain_json
from normlab.outputs.run_dir import RunDir


def threads_of(settings: RunConfig, run_dir: RunDir, share: int | None = None) -> int:
    """Return the number that the settings give, else what the run began with, else `share`, else all cores."""
    begun = plain_json.read(run_dir.environment).get("threads")
    if not isinstance(begun, int) or not 1 <= begun <= 1024:
        begun = None
    # Started over, it begins anew.
    return settings.threads or (None if settings.fresh else begun) or share or cores()


def cores() -> int:
    """Return how many cores this process may use: $OMP_NUM_THREADS, else what the system gives it."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdecimal() and int(limit) > 0:
        return int(limit)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
