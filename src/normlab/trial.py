"""A run's training step alone, beside others of its kind: `python -m normlab.trial CONFIG.yaml THREADS SECONDS`.

It has no folder, evaluates nothing and keeps nothing. On stdout it says `ready`, waits for a line on stdin so that all
begin together, trains for so many seconds, and answers in a line of JSON; it lives on until stdin is closed, so that
none of the others gets more of the machine meanwhile.
"""

import contextlib
import json
import resource
import sys
import time
from pathlib import Path

import torch

from normlab import assemble, config, following, launching
from normlab.config import RunConfig
from normlab.errors import DONE, NormlabError
from normlab.footprint import free_memory
from normlab.training.step import Step

_WARM_STEPS = 3
_WARM_SECONDS = 1.0  # so that steps that are rarer are captured too
_LOOK_SECONDS = 0.1  # between two looks at the clock, for which a GPU is waited for
_CONTEXT_BYTES = 600_000_000  # of a GPU's memory, that CUDA takes for each process beside what torch counts: about
_SHARE_OF_FREE = 0.8  # that steps may fill, since evaluations come on top
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def main(path: str, threads: str, seconds: str) -> int:
    """Answer with the speed of a run's steps, what memory they take, and how many like them would have room where."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        try:
            settings = launching.checked(config.load(Path(path)), [])
            device = following.prepare(settings, int(threads))
            free = _free(device)
            step = _step(settings, device)
            _train(step, _WARM_SECONDS, _WARM_STEPS)
            print("ready", file=answers, flush=True)
            sys.stdin.readline()
            speed = _train(step, float(seconds), 1)
        except NormlabError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        used = _used(device)
        fit = {where: int(_SHARE_OF_FREE * free[where] / used[where]) for where in free}
        answer = {"images_per_second": speed, "memory_bytes": used[device.type], "fit": fit}
        print(json.dumps(answer), file=answers, flush=True)
        sys.stdin.read()
    return DONE


def _step(settings: RunConfig, device: torch.device) -> Step:
    dataset = assemble.open_dataset(settings)
    return assemble.build_step(settings, dataset, assemble.open_batches(settings, dataset, device), device)


def _train(step: Step, seconds: float, least_steps: int) -> float:
    """Train for at least so long and so many steps; return the real images that the discriminator saw per second."""
    between, steps = 1, 0
    images, began = step.state.images_seen, time.monotonic()
    while True:
        for _ in range(between):
            step.take()
        if step.device.type == "cuda":
            torch.cuda.synchronize(step.device)
        steps += between
        passed = time.monotonic() - began
        if passed >= seconds and steps >= least_steps:
            return (step.state.images_seen - images) / passed
        between = max(1, int(_LOOK_SECONDS * steps / passed))


def _free(device: torch.device) -> dict[str, int]:
    """Return the memory that is free where a run needs some: on the machine, and on its GPU."""
    places = {"cpu": torch.device("cpu"), device.type: device}
    told = {name: free_memory(place) for name, place in places.items()}
    return {name: free for name, free in told.items() if free is not None}


def _used(device: torch.device) -> dict[str, int]:
    """Return the most memory that this process has taken, of the machine's and of its GPU's."""
    used = {"cpu": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT}
    if device.type == "cuda":
        used["cuda"] = torch.cuda.max_memory_reserved(device) + _CONTEXT_BYTES
    return used


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
