"""What of the runs of a study is worth keeping with its page: all that `normlab report` reads.

    python scripts/studies/slim.py DIR OUT

Copies of every run in or below DIR its configuration, status, environment and JSON lines to OUT, of the first seed the
grids of samples, too, and what was chosen in tuning. Names and paths of the machine stay behind, and so do texts of
errors. `normlab report OUT` then gives the same tables.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from normlab import config
from normlab.outputs import plain_json
from normlab.outputs.run_dir import RunDir
from normlab.reports.origin import TUNING
from normlab.reports.runs import find_runs

KEPT = ("layers", "best", "metrics", "evaluations", "scores", "spectra", "changes")
OF_THE_MACHINE = ("host", "platform")


def main(folder: Path, out: Path) -> int:
    """Copy the runs and return how many there were."""
    runs = list(find_runs([folder]))
    first = min((run.settings.seed for run in runs if run.settings is not None), default=0)
    for run in runs:
        source, target = RunDir(run.path), RunDir(out / run.path.name)
        target.path.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (file := getattr(source, name)).exists():
                shutil.copyfile(file, getattr(target, name))
        if run.settings is not None:
            params = dict(run.settings.dataset.params)
            anywhere = replace(run.settings.dataset, params=params | ({"root": "data"} if "root" in params else {}))
            weights = run.settings.evaluation.weights
            evaluation = replace(run.settings.evaluation, weights=weights and Path(weights).name)
            target.config.write_text(config.to_yaml(replace(run.settings, dataset=anywhere, evaluation=evaluation)))
        if run.status is not None:
            target.status.write_text(replace(run.status, error=None).to_json())
        told = plain_json.read(source.environment)
        plain_json.write(target.environment, {key: value for key, value in told.items() if key not in OF_THE_MACHINE})
        if run.settings is not None and run.settings.seed == first and source.samples.is_dir():
            shutil.copytree(source.samples, target.samples, dirs_exist_ok=True)
    if (chosen := folder / TUNING).exists():
        shutil.copyfile(chosen, out / chosen.name)
    print(f"{len(runs)} runs in {out}")
    return len(runs)


if __name__ == "__main__":
    sys.exit(0 if main(*map(Path, sys.argv[1:])) else 2)
