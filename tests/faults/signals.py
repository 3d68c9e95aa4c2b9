"""SIGINT, SIGTERM, SIGUSR1: the run saves the step where it stands and ends with the right code; nothing is lost."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

from tests.faults.driving import (
    BUSY,
    command,
    digest,
    only_run,
    require_clean,
    start,
    starts_cold,
    undisturbed,
)

FULL, SHORT = 46, 1  # a few of which come when the run is over
GRACE = 10  # seconds that Slurm and its like leave a job, at the least


def trial(number: int, folder: Path) -> dict[str, float]:
    """Tell a run to end at a random moment, look what it left, and let it go on."""
    rng = random.Random(number)
    wanted, code = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)][number % 3]
    cold = starts_cold(number, FULL)
    words = [*BUSY, f"seed={number}", "every.log=1 step"]
    expected = undisturbed(folder / "undisturbed", *words)
    disturbed = folder / "disturbed"
    child = start(disturbed, "train", *words, cold=cold)
    time.sleep(rng.uniform(0.3, 8 if cold else 3))
    told, began = child.alive(), time.monotonic()
    if told:
        child.signal(wanted)
    ended = child.wait()
    seconds = time.monotonic() - began
    assert "Traceback" not in ended.stderr, ended.stderr
    if told and ended.exit_code != 0:
        _require_saved(ended.exit_code, code, ended.stderr, disturbed)
        assert seconds < GRACE, f"took {seconds:.1f} s"
    again = command(disturbed, "train", *words)
    assert again.exit_code == 0, again.stderr
    require_clean(only_run(disturbed))
    assert digest(only_run(disturbed)) == expected
    shutil.rmtree(folder)
    return {"signals heard": int(ended.exit_code == code), "longest, s": seconds}


def _require_saved(exit_code: int, code: int, stderr: str, folder: Path) -> None:
    assert exit_code == code, f"{exit_code}: {stderr}"
    runs = list((folder / "outputs").glob("*/*/config.yaml"))
    if not runs:
        return  # it was told before there was anything to save
    run = runs[0].parent
    status = json.loads((run / "status.json").read_text())
    rows = run / "metrics.jsonl"
    steps = [json.loads(line)["step"] for line in rows.read_text().splitlines()] if rows.exists() else []
    if status["state"] == "running":
        assert status["step"] == 0, status
        assert not steps, f"step {steps[-1]} was trained, none saved"
        return  # likewise: the run had only just been made
    assert (status["state"], status["exit_code"]) == ("stopped", code), status
    assert (run / "checkpoints" / f"step_{status['step']:08d}.pt.json").exists()
    assert not steps or steps[-1] == status["step"], f"step {steps[-1]} was trained, {status['step']} saved"
