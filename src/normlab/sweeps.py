"""Sweeps: Hydra's multirun, every run in a process of its own, and a table at the end."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from normlab import composition, config
from normlab.errors import DONE, INTERRUPTED, TERMINATED, SweepError
from normlab.reports import tables
from normlab.reports.runs import read_run

DIVERGED = 6
# How a run of a sweep, wherever a launcher starts it, knows of the sweep.
RECORD, CONFIG_DIR = "NORMLAB_SWEEP_RECORD", "NORMLAB_SWEEP_CONFIG_DIR"


def run(arguments: list[str], words: list[str], config_dir: str | None) -> int:
    """Run a sweep through Hydra and its launcher, print the closing table, and return the exit code."""
    outputs = Path(os.environ.get("NORMLAB_OUTPUTS", "outputs"))
    record = (outputs / ".sweep" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.jsonl").resolve()
    _refuse_what_no_run_can_mean(words, config_dir)
    record.parent.mkdir(parents=True, exist_ok=True)
    os.environ[RECORD] = str(record)
    os.environ[CONFIG_DIR] = config_dir or ""
    # Hydra says an exception in its own way and exits with 1; with this it lets ours pass.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    composition.hand_to_hydra(arguments, task=run_one)
    rows = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    _tell(rows)
    failed = [row for row in rows if row["exit_code"] not in (DONE, DIVERGED)]
    if failed:
        numbers = ", ".join(f"#{row['job']} [{row['exit_code']}]" for row in failed)
        raise SweepError(
            "sweep", f"{len(failed)} of {len(rows)} runs failed: {numbers}", "the same command runs them again"
        )
    return DONE


def run_one(tree: DictConfig) -> int:
    """Train one run of a sweep in a child process and add a row to the sweep's record."""
    hydra = HydraConfig.get()
    words = list(hydra.overrides.task)
    print(f"\n#{hydra.job.num}  {' '.join(words)}", flush=True)
    began = time.time()
    command = [sys.executable, "-m", "normlab", "train", *words]
    if config_dir := os.environ[CONFIG_DIR]:
        command += ["--config-dir", config_dir]
    exit_code = _wait(subprocess.Popen(command, preexec_fn=_die_with_parent))
    row = {"job": hydra.job.num, "words": words, "exit_code": exit_code, "seconds": round(time.time() - began, 1)}
    with open(os.environ[RECORD], "a") as file:
        file.write(json.dumps(row) + "\n")
    if exit_code in (INTERRUPTED, TERMINATED):
        raise KeyboardInterrupt
    return exit_code


def _wait(child: subprocess.Popen[bytes]) -> int:
    """Wait for a child, which gets Ctrl-C from the terminal and SIGTERM from us; -9 becomes 137 as in a shell."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
    try:
        while True:
            try:
                code = child.wait()
                return code if code >= 0 else 128 - code
            except KeyboardInterrupt:
                continue
    finally:
        signal.signal(signal.SIGTERM, before)


def _die_with_parent() -> None:
    """Have the kernel end this child should its parent be killed (prctl PR_SET_PDEATHSIG; Linux alone)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _refuse_what_no_run_can_mean(words: list[str], config_dir: str | None) -> None:
    """Compose every run of the sweep before the first one starts, so that a typo shows now and not on Monday."""
    complaints = {
        complaint: None
        for combination in composition.combinations(words)
        for complaint in composition.compose(combination, config_dir)[1]
    }
    composition.refuse(list(complaints))


def _tell(rows: list[dict[str, Any]]) -> None:
    """Print the closing table and where each run's samples are."""
    table: list[dict[str, Any]] = []
    grids: list[str] = []
    for row in rows:
        tree, _ = composition.compose(row["words"])
        settings, _ = config.read(tree)
        cells: dict[str, Any] = {"run": f"#{row['job']}", "exit": row["exit_code"], **_swept(row, rows)}
        if settings is not None:
            run = read_run(config.run_folder(settings, composition.part_defaults))
            cells |= run.summary()
            grids.append(f"#{row['job']} samples: {run.grid()}")
        table.append({**cells, "seconds": row["seconds"]})
    print("\n" + tables.render(table) + "\n" + "\n".join(grids), flush=True)


def _swept(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, str]:
    """Return what a run was given for the keys in which the runs of the sweep differ."""
    values = [dict(word.split("=", 1) for word in other["words"]) for other in rows]
    own = values[rows.index(row)]
    return {key: value for key, value in own.items() if len({other.get(key) for other in values}) > 1}
