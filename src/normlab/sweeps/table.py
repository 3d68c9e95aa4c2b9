"""How the runs of a sweep stand, in tables and lines for people."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normlab.outputs.run_dir import RunDir
from normlab.outputs.sinks import JsonLines, duration
from normlab.reports import tables
from normlab.reports.runs import MAIN_METRICS, in_short, read_run
from normlab.sweeps.record import Job

_MOST_TELLING = (
    "running",
    "requeued",
    "failed",
    "diverged",
    "collapsed",
    "stopped",
    "done",
    "waiting",
    "not started",
)


def closing(jobs: Sequence[Job], swept: Sequence[dict[str, str]]) -> str:
    """Return the table of a sweep that has ended, and where each run's samples are."""
    rows: list[dict[str, Any]] = []
    grids: list[str] = []
    for job, own in zip(jobs, swept, strict=True):
        run = read_run(Path(job.folder))
        told = run.summary() if run.settings is not None else {}
        ending = {"state": job.state, "seconds": job.seconds or None}
        rows.append({"run": f"#{job.job}", "exit": job.exit_code, **own, **told, **ending})
        if job.state != "done":
            rows[-1]["reason"] = job.reason
        if grid := run.grid():
            grids.append(f"#{job.job} samples: {os.path.relpath(grid)}")
    return "\n".join([tables.render(_last(rows, ("seconds", "reason"))), *grids])


def live(jobs: Sequence[Job], swept: Sequence[dict[str, str]], room: int) -> list[str]:
    """Return the lines of a table that is no higher than `room`: those that tell most, if not all fit."""
    fitting = list(range(len(jobs)))
    left_out: list[str] = []
    if len(jobs) + 2 > room:
        fitting.sort(key=lambda number: _MOST_TELLING.index(jobs[number].state))
        fitting = sorted(fitting[: max(1, room - 3)])
        left_out = [f"... and {len(jobs) - len(fitting)} more"]
    rows = [
        {"run": f"#{jobs[number].job}", **swept[number], "state": jobs[number].state, **_progress(jobs[number])}
        for number in fitting
    ]
    return [*tables.render(_last(rows, ("reason",))).splitlines(), *left_out]


def name(job: Job, own: dict[str, str]) -> str:
    """Return a run in a line: its number and what sets it apart."""
    return "  ".join([f"#{job.job}", *(f"{key}={value}" for key, value in own.items())])


def event(job: Job) -> str:
    """Return in a few words how a run stands."""
    told = _progress(job)
    if job.state == "running":
        speed = told.get("images/s")
        parts = [f"step {told['step']:,} of {told['of']:,}"] if told.get("of") else []
        parts += [f"{speed:,.0f} images/s"] if speed else []
        parts += [f"{told['left']} left"] if "left" in told else []
        return ", ".join(parts) or "starting"
    after = [f"{job.state} after {duration(job.seconds)}" if job.seconds else job.state]
    return "  ".join(filter(None, [*after, in_short(told), job.reason]))


def _progress(job: Job) -> dict[str, Any]:
    """Return what a run's folder says of a run that has begun: read every second, so only what is quick to read."""
    row: dict[str, Any] = {}
    if job.state in ("waiting", "not started"):
        return {"reason": job.reason} if job.reason else {}
    run_dir = RunDir(Path(job.folder))
    status = run_dir.read_status()
    if status is not None:
        row |= {"step": status.step, "of": status.until_step, "images/s": status.images_per_second}
        if job.state == "running" and status.eta_seconds is not None:
            row["left"] = duration(status.eta_seconds)
    scores = JsonLines(run_dir.evaluations).rows()
    row |= {key: value for key, value in (scores[-1] if scores else {}).items() if key in MAIN_METRICS}
    return row | ({"reason": job.reason} if job.reason else {})


def _last(rows: list[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows with some of their columns at the end, and without those that have no value anywhere."""
    keys = [key for row in rows for key in row if key not in columns] + list(columns)
    told = [key for key in dict.fromkeys(keys) if any(row.get(key) is not None for row in rows)]
    return [{key: row.get(key) for key in told} for row in rows]
