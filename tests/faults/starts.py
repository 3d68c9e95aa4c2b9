"""Eight starts of the same command at once: one trains, the others are turned away, and the folder is one run's."""

import shutil
from pathlib import Path

from tests.faults.driving import PLAIN, digest, only_run, require_clean, start, starts_cold, undisturbed

FULL, SHORT = 20, 1
STARTS = 8


def trial(number: int, folder: Path) -> dict[str, int]:
    """Start a run eight times in the same moment."""
    # Long enough for all of them to come while one trains, and without the many checkpoints that would take most of it.
    words = [*PLAIN, f"seed={number}", "train.until=200 steps", "every.log=1 step", "every.checkpoint=50 steps"]
    expected = undisturbed(folder / "undisturbed", *words)
    together = folder / "together"
    children = []
    for place in range(STARTS):
        at = together / str(place)
        child = start(at, "train", *words, cold=starts_cold(number, FULL), outputs=together / "outputs")
        children.append(child)
    ended = [child.wait() for child in children]
    codes = sorted(each.exit_code for each in ended)
    late = [each for each in ended if "already complete" in each.stdout]
    assert codes == [0] * (1 + len(late)) + [7] * (STARTS - 1 - len(late)), codes
    run = only_run(together)
    require_clean(run)
    assert digest(run) == expected
    shutil.rmtree(folder)
    return {"turned away": codes.count(7), "found it complete": len(late)}
