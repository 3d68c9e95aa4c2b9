"""Kill -9: in a save, in an evaluation or the start-up, and at any moment; the run then ends as if nothing had been."""

import random
import shutil
import signal
import time
from pathlib import Path

from tests.faults.driving import (
    BUSY,
    Child,
    command,
    digest,
    only_run,
    require_clean,
    start,
    starts_cold,
    undisturbed,
    wait_for,
)

FULL, SHORT = 20, 1  # trials; each kills a run three times
CONFIGURATIONS = [
    ["normalization=spectral"],
    ["normalization=both/batch", "ema=standard"],
    ["normalization=both/weight", "optimizer=rmsprop", "train.discriminator_steps=2"],
    ["normalization=instance", "loss=hinge", "optimizer.schedule=cosine"],
]


def trial(number: int, folder: Path) -> dict[str, int]:
    """Kill a run three times, each time otherwise, and let it end."""
    rng = random.Random(number)
    words = [*BUSY, *CONFIGURATIONS[number % len(CONFIGURATIONS)], f"seed={number}"]
    expected = undisturbed(folder / "undisturbed", *words)
    disturbed = folder / "disturbed"
    kills = 0
    moments = [in_a_save, in_an_evaluation, at_any_moment]
    rng.shuffle(moments)
    for moment in moments:
        child = start(disturbed, "train", *words, cold=starts_cold(number, FULL))
        moment(child, disturbed, rng)
        if child.alive():
            child.signal(signal.SIGKILL)
            kills += 1
        child.wait()
    ended = command(disturbed, "train", *words)
    assert ended.exit_code == 0, ended.stderr
    run = only_run(disturbed)
    require_clean(run)
    assert digest(run) == expected
    shutil.rmtree(folder)
    return {"kills": kills}


def in_a_save(child: Child, folder: Path, rng: random.Random) -> None:
    """Return while a checkpoint is being written, after a few that were."""
    for _ in range(rng.randint(1, 4)):
        wait_for(lambda: _partials(folder) > 0, child)
        if not wait_for(lambda: _partials(folder) == 0, child):
            return
    wait_for(lambda: _partials(folder) > 0, child)


def in_an_evaluation(child: Child, folder: Path, rng: random.Random) -> None:
    """Return some time after the checkpoint that comes before an evaluation; or, now and then, in the start-up."""
    if rng.random() < 0.3:
        time.sleep(rng.uniform(0, 1))
        return
    step = rng.choice([0, 16, 32])
    wait_for(lambda: any((folder / "outputs").glob(f"*/*/checkpoints/step_{step:08d}.pt.json")), child)
    time.sleep(rng.uniform(0, 0.1))


def at_any_moment(child: Child, folder: Path, rng: random.Random) -> None:
    """Return at a random time, as a rule before the run is over."""
    time.sleep(rng.uniform(0.05, 3))


def _partials(folder: Path) -> int:
    return sum(1 for _ in (folder / "outputs").glob("*/*/checkpoints/*.partial"))
