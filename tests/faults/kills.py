"""Kill -9: in a save, in an evaluation or the start-up, and at any moment; the run then ends as if nothing had been."""

import random
import shutil
import signal
import time
from pathlib import Path

from tests.faults.driving import (
    BUSY,
    Child,
    Ended,
    command,
    continued_from,
    digest,
    newest_step,
    only_run,
    require_clean,
    start,
    starts_cold,
    undisturbed,
    wait_for,
)

# Trials; each kills a run up to three times: some runs end before their kill, and some saves before theirs.
FULL, SHORT = 32, 1
EVALUATED = [0, 16, 32, 40]  # the steps at which a run is, as `BUSY` has it
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
    kills = within_saves = within_evaluations = 0
    moments = [in_a_save, in_an_evaluation, at_any_moment]
    rng.shuffle(moments)
    for moment in moments:
        before, left_before = newest_step(disturbed), _partials(disturbed)
        child = start(disturbed, "train", *words, cold=starts_cold(number, FULL))
        moment(child, disturbed, rng)
        if child.alive():
            child.signal(signal.SIGKILL)
        ended = child.wait()
        if ended.exit_code == -signal.SIGKILL:
            kills += 1
            within_saves += not _partials(disturbed) <= left_before
            within_evaluations += moment is in_an_evaluation
        # One that was killed in its start-up has said nothing, and has saved nothing either.
        if continued_from(ended.stderr) is not None or newest_step(disturbed) != before:
            require_continued(ended, before)
    before = newest_step(disturbed)
    ended = command(disturbed, "train", *words)
    assert ended.exit_code == 0, ended.stderr
    require_continued(ended, before)
    run = only_run(disturbed)
    require_clean(run)
    assert digest(run) == expected
    shutil.rmtree(folder)
    evaluations = "of them in an evaluation or the start-up"
    return {"kills": kills, "of them in a save": within_saves, evaluations: within_evaluations}


def require_continued(ended: Ended, newest: int) -> None:
    """Raise AssertionError unless a run went on from the newest step that was saved, or began anew without one."""
    if "already complete" in ended.stdout:
        assert newest == EVALUATED[-1], f"complete at step {newest}"
        return
    expected = newest if newest > 0 else None
    assert continued_from(ended.stderr) == expected, f"step {newest} was saved: {ended.stderr}"


def in_a_save(child: Child, folder: Path, rng: random.Random) -> None:
    """Return while a checkpoint is being written, after a few that were."""
    for _ in range(rng.randint(1, 4)):
        wait_for(lambda: bool(_partials(folder)), child)
        if not wait_for(lambda: not _partials(folder), child):
            return
    wait_for(lambda: bool(_partials(folder)), child)


def in_an_evaluation(child: Child, folder: Path, rng: random.Random) -> None:
    """Return some time after the checkpoint that comes before an evaluation; or, now and then, in the start-up."""
    if rng.random() < 0.3:
        time.sleep(rng.uniform(0, 1))
        return
    before = newest_step(folder)
    to_come = [step for step in EVALUATED if step > before]
    if to_come:
        step = rng.choice(to_come)
        wait_for(lambda: newest_step(folder) >= step, child)
    time.sleep(rng.uniform(0, 0.1))


def at_any_moment(child: Child, folder: Path, rng: random.Random) -> None:
    """Return at a random time, as a rule before the run is over."""
    time.sleep(rng.uniform(0.05, 3))


def _partials(folder: Path) -> set[Path]:
    return set((folder / "outputs").glob("*/*/checkpoints/*.partial"))
