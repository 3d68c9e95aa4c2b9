"""Full disks: what was saved before stays whole, and with room again the run ends as if nothing had been."""

import random
import shutil
from pathlib import Path

from tests.faults.driving import PLAIN, command, digest, only_run, require_clean, starts_cold, undisturbed

FULL, SHORT = 20, 1


def trial(number: int, folder: Path) -> dict[str, int]:
    """Let a run go on where no file may grow beyond a random size, then without the limit."""
    rng = random.Random(number)
    words = [*PLAIN, f"seed={number}", "train.until=12 steps"]
    expected = undisturbed(folder / "undisturbed", *words)
    disturbed = folder / "disturbed"
    assert command(disturbed, "train", *words, "train.until=4 steps").exit_code == 0
    run = only_run(disturbed)
    largest = max(path.stat().st_size for path in (run / "checkpoints").glob("*.pt"))
    room = rng.randrange(largest)
    full = command(disturbed, "train", *words, largest_file=room, cold=starts_cold(number, FULL))
    assert full.exit_code == 5, f"{full.exit_code}: {full.stderr}"
    assert "Traceback" not in full.stderr, full.stderr
    assert command(disturbed, "verify", str(run)).exit_code == 0
    again = command(disturbed, "train", *words)
    assert again.exit_code == 0, again.stderr
    assert "fresh" not in again.stderr
    require_clean(run)
    assert digest(run) == expected
    shutil.rmtree(folder)
    return {"disks filled": 1}
