"""A sweep of twelve of which four fail, each in its way: eight complete, and a second call runs exactly the four."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.faults.driving import PLAIN, command, digest, undisturbed

FULL, SHORT = 3, 0  # a sweep of a few runs is in tests/sweeps
RUNS = 12
FAILING = {2: 137, 5: 1, 8: 5, 11: 3}  # the number of a run, and the exit code with which it fails
# A loss that is the usual one, but for some settings until a file says that all is well.
MODULE = '''
import os
import signal
from pathlib import Path

from normlab.errors import DataError
from normlab.losses import LOSSES, Loss

usual = LOSSES["non_saturating"]()


def fail(way):
    if Path("mended").exists():
        return
    if way == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if way == 5:
        raise RuntimeError("something nobody thought of")
    if way == 8:
        raise MemoryError("no memory left")
    if way == 11:
        raise DataError("images/0007.jpg", "cannot be decoded", "mend the file")


@LOSSES.register("faulty")
def faulty(*, way: int = 0) -> Loss:
    """The non-saturating loss, which some ways do not survive."""

    def discriminator(real, fake):
        fail(way)
        return usual.discriminator(real, fake)

    return Loss(discriminator, usual.generator)
'''


def trial(number: int, folder: Path) -> dict[str, int]:
    """Sweep twice, the second time with what was wrong mended."""
    folder.mkdir(parents=True)
    (folder / "faulty.py").write_text(MODULE)
    (folder / "own" / "loss").mkdir(parents=True)
    (folder / "own" / "loss" / "faulty.yaml").write_text("name: faulty\nway: 0\n")
    words = [*PLAIN, "train.until=4 steps", f"seed={number}", "loss=faulty", "plugins=[faulty]", "--config-dir", "own"]
    ways = f"loss.way={','.join(map(str, range(RUNS)))}"
    at_once = [[], ["hydra/launcher=joblib"], ["hydra/launcher=submitit_local"]][number % 3]

    first = command(folder, "train", "-m", *words, ways, *at_once, patience=900)
    assert first.exit_code == 8, first.stdout + first.stderr
    assert "4 of 12 runs failed" in first.stderr, first.stderr
    record = newest_record(folder)
    assert {run["job"]: run["exit_code"] for run in record["runs"] if run["state"] != "done"} == FAILING, record
    assert all(run["reason"] for run in record["runs"] if run["job"] in FAILING), record

    (folder / "mended").touch()
    second = command(folder, "train", "-m", *words, ways, *at_once, patience=900)
    assert second.exit_code == 0, second.stdout + second.stderr
    done_before = {run["job"] for run in newest_record(folder)["runs"] if run["reason"] == "already complete"}
    assert done_before == set(range(RUNS)) - set(FAILING), second.stdout

    shutil.copytree(folder / "own", folder / "undisturbed" / "own")
    shutil.copy(folder / "faulty.py", folder / "undisturbed")
    expected = undisturbed(folder / "undisturbed", *words)
    (alike,) = (Path(run["folder"]) for run in record["runs"] if run["job"] == 0)
    assert digest(alike, folder) == expected
    shutil.rmtree(folder)
    return {"failed and told so": len(FAILING), "run again": RUNS - len(done_before)}


def newest_record(folder: Path) -> dict[str, Any]:
    """Return what the last sweep's `sweep.json` holds."""
    newest = max((folder / "outputs" / ".sweep").glob("*/sweep.json"), key=lambda path: path.stat().st_mtime)
    return dict(json.loads(newest.read_text()))
