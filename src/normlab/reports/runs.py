"""A run as its folder tells it."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normlab import config
from normlab.config import RunConfig
from normlab.errors import ConfigurationError
from normlab.outputs.run_dir import RunDir, Status
from normlab.outputs.sinks import JsonLines, duration

# What tells in a line how good a generator is.
MAIN_METRICS = ("fid", "inception_score", "frechet_distance", "classifier_score")


def in_short(row: Mapping[str, Any]) -> str:
    """Return the main metrics that a row has, in a line."""
    return "  ".join(f"{name} {row[name]:.4g}" for name in MAIN_METRICS if row.get(name) is not None)


@dataclass(frozen=True)
class Run:
    """What a folder says of its run; `settings` and `status` are None where they are missing or cannot be read.

    state: as in `status.json`, but `interrupted` for a run that says `running` while no process holds its folder,
    `collapsed` for one that on_collapse=stop ended, and `broken` for one that cannot be read.
    """

    path: Path
    settings: RunConfig | None
    status: Status | None
    state: str
    evaluations: list[dict[str, Any]]

    def last_evaluation(self) -> dict[str, Any]:
        """Return the newest row, of the averaged generator where there is one; empty if there is none."""
        if not self.evaluations:
            return {}
        newest = [row for row in self.evaluations if row["step"] == self.evaluations[-1]["step"]]
        return newest[-1]

    def grid(self) -> Path | None:
        """Return the newest grid of samples."""
        return max(RunDir(self.path).samples.glob("step_*.png"), default=None)

    def summary(self) -> dict[str, Any]:
        """Return the row of the run in a table."""
        row: dict[str, Any] = {"state": self.state}
        last, marks = self.last_evaluation(), list[str]()
        if self.settings is not None:
            row |= {"data": self.settings.dataset.name, "arm": self.settings.label, "seed": self.settings.seed}
        if self.status is not None:
            row |= {"step": self.status.step, "of": self.status.until_step, "epoch": self.status.epoch}
            row["images/s"] = self.status.images_per_second
            if self.state == "running" and self.status.eta_seconds is not None:
                row["left"] = duration(self.status.eta_seconds)
            marks = [*self.status.flags, *(f"{state} at {step:,}" for state, step in self.status.states.items())]
        marks += last.get("flags") or ()  # of the scores that stand in the row
        if marks:
            row["marks"] = ", ".join(marks)
        return {**row, **{name: last[name] for name in MAIN_METRICS if name in last}}


def read_run(path: Path) -> Run:
    """Read a run's folder, whatever state it is in."""
    run_dir = RunDir(path)
    try:
        settings = config.load(run_dir.config)
    except ConfigurationError:
        settings = None
    status = run_dir.read_status()
    state = "broken" if settings is None or status is None else status.state
    if state == "running" and not run_dir.is_locked():
        state = "interrupted"
    elif status is not None and state != "broken" and status.is_ended_by_collapse:
        state = "collapsed"
    evaluations = [row for row in JsonLines(run_dir.evaluations).rows() if isinstance(row.get("flags") or [], list)]
    return Run(path, settings, status, state, evaluations)


def find_runs(folders: list[Path]) -> Iterator[Run]:
    """Yield every run in or below the folders, by path; a run is a folder with a `config.yaml` or a `status.json`."""
    seen: set[Path] = set()
    for folder in folders:
        for parent, inner, files in os.walk(folder):
            inner.sort()
            if {"config.yaml", "status.json"} & set(files):
                inner.clear()
                path = Path(parent)
                if path.resolve() not in seen:
                    seen.add(path.resolve())
                    yield read_run(path)
