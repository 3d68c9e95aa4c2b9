"""Sweeps: Hydra's multirun, every run in a process of its own, and a table at the end."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from normlab import composition, config
from normlab.errors import DONE, TIME_LIMIT_REACHED, SweepError
from normlab.outputs.atomic import unwritable
from normlab.reports import tables
from normlab.reports.runs import read_run

DIVERGED = 6
# How a run of a sweep, wherever a launcher starts it, knows of the sweep.
RECORD, CONFIG_DIR = "NORMLAB_SWEEP_RECORD", "NORMLAB_SWEEP_CONFIG_DIR"


def run(arguments: list[str], words: list[str], config_dir: str | None) -> int:
    """Run a sweep through Hydra and its launcher, print the closing table, and return the exit code."""
    record = config.outputs_folder() / ".sweep" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.jsonl"
    _refuse_what_no_run_can_mean(words, config_dir)
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(record.parent, error) from error
    os.environ[RECORD] = str(record.resolve())
    os.environ[CONFIG_DIR] = "" if config_dir is None else str(Path(config_dir).resolve())
    try:
        composition.hand_to_hydra(arguments, task=run_one)
    except Ended as ended:
        _tell(record, config_dir)
        return ended.exit_code
    rows = _tell(record, config_dir)
    failed = [row for row in rows if row["exit_code"] not in (DONE, DIVERGED, TIME_LIMIT_REACHED)]
    if failed:
        numbers = ", ".join(f"#{row['job']} [{row['exit_code']}]" for row in failed)
        raise SweepError(
            "sweep", f"{len(failed)} of {len(rows)} runs failed: {numbers}", "the same command runs them again"
        )
    return max((row["exit_code"] for row in rows if row["exit_code"] == TIME_LIMIT_REACHED), default=DONE)


class Ended(BaseException):
    """The sweep was told to end; no Exception, so that Hydra starts no further run."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def run_one(tree: DictConfig) -> int:
    """Train one run of a sweep in a child process and add a row to the sweep's record."""
    hydra = HydraConfig.get()
    words = list(hydra.overrides.task)
    print(f"\n#{hydra.job.num}  {' '.join(words)}", flush=True)
    began = time.time()
    command = [sys.executable, "-m", "normlab", "train", *words]
    if config_dir := os.environ[CONFIG_DIR]:
        command += ["--config-dir", config_dir]
    exit_code, told = _wait(command)
    row = {"job": hydra.job.num, "words": words, "exit_code": exit_code, "seconds": round(time.time() - began, 1)}
    with open(os.environ[RECORD], "a") as file:
        file.write(json.dumps(row) + "\n")
    if told is not None:
        raise Ended(128 + told)
    return exit_code


def _wait(command: list[str]) -> tuple[int, int | None]:
    """Run a command to its end; return its exit code (-9 becomes 137 as in a shell) and the signal that we got, if any.

    The child is in a session of its own, so that it gets each SIGINT and SIGTERM once: from us, wherever it came from.
    """
    told: list[int] = []
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=_die_with_parent)

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return (code if code >= 0 else 128 - code), told[-1] if told else None


def _die_with_parent() -> None:
    """Have the kernel end this child should its parent be killed (prctl PR_SET_PDEATHSIG; Linux alone)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _refuse_what_no_run_can_mean(words: list[str], config_dir: str | None) -> None:
    """Read every run of the sweep before the first one starts, so that a typo shows now and not on Monday.

    What only the parts can judge, such as a learning rate below 0, ends that run alone.
    """
    complaints = {
        complaint: None
        for combination in composition.combinations(words)
        for complaint in composition.configure(combination, config_dir)[1]
    }
    composition.refuse(list(complaints))


def _tell(record: Path, config_dir: str | None) -> list[dict[str, Any]]:
    """Print the closing table and where each run's samples are; return the rows of the sweep's record."""
    rows = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    table: list[dict[str, Any]] = []
    grids: list[str] = []
    for row in rows:
        run = read_run(composition.run_folder(composition.configure(row["words"], config_dir)[0]))
        cells = {"run": f"#{row['job']}", "exit": row["exit_code"], **_swept(row, rows), **run.summary()}
        table.append({**cells, "seconds": row["seconds"]})
        if grid := run.grid():
            grids.append(f"#{row['job']} samples: {grid}")
    print("\n" + "\n".join([tables.render(table), *grids]), flush=True)
    return rows


def _swept(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, str]:
    """Return what a run was given for the keys in which the runs of the sweep differ."""
    values = [dict(word.split("=", 1) for word in other["words"]) for other in rows]
    own = values[rows.index(row)]
    return {key: value for key, value in own.items() if len({other.get(key) for other in values}) > 1}
