"""What of the runs of a study is worth keeping with its page: all that `normlab report` reads, and one picture.

    python scripts/studies/slim.py DIR OUT

Copies of every run in or below DIR its configuration, status, environment, JSON lines and newest grid of samples to
OUT; the names of the machine and of folders on it stay behind. `normlab report OUT` then gives the same tables.
"""

import shutil
import sys
from pathlib import Path

from normlab.outputs import plain_json
from normlab.outputs.run_dir import RunDir
from normlab.reports.runs import find_runs

KEPT = ("config", "status", "layers", "best", "metrics", "evaluations", "spectra", "changes")
OF_THE_MACHINE = ("host", "platform")


def main(folder: Path, out: Path) -> int:
    """Copy the runs and return how many there were."""
    runs = list(find_runs([folder]))
    for run in runs:
        source, target = RunDir(run.path), RunDir(out / run.path.name)
        target.samples.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (file := getattr(source, name)).exists():
                shutil.copyfile(file, getattr(target, name))
        told = plain_json.read(source.environment)
        plain_json.write(target.environment, {key: value for key, value in told.items() if key not in OF_THE_MACHINE})
        if (grid := run.grid()) is not None:
            shutil.copyfile(grid, target.samples / grid.name)
    print(f"{len(runs)} runs in {out}")
    return len(runs)


if __name__ == "__main__":
    sys.exit(0 if main(*map(Path, sys.argv[1:])) else 2)
