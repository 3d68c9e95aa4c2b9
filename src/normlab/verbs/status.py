"""`normlab status DIR...`: how runs stand."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from normlab import config
from normlab.errors import DONE, ConfigurationError
from normlab.outputs import plain_json
from normlab.reports import tables
from normlab.reports.runs import Run, find_runs
from normlab.verbs.continuing import how_to_continue


def run(arguments: list[str]) -> int:
    """Print a row for each run in or below the folders."""
    parser = argparse.ArgumentParser("normlab status", description="How runs stand.")
    outputs = str(config.outputs_folder())
    help = f"a run, or a folder with runs somewhere below it (default {outputs})"
    parser.add_argument("folders", nargs="*", metavar="DIR", default=[outputs], help=help)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    for folder in options.folders:
        if not Path(folder).is_dir():
            raise ConfigurationError(folder, "is no folder", "name a run's folder, or one above it such as outputs")
    runs = list(find_runs([Path(folder) for folder in options.folders]))
    if options.json:
        print(plain_json.dump({"runs": [as_json(run) for run in runs]}))
        return DONE
    print(tables.render([{**run.summary(), "run": str(run.path)} for run in runs]))
    for run in runs:
        if command := how_to_continue(run):
            print(f"to continue: {command}")
    return DONE


def as_json(run: Run) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "state": run.state,
        "arm": None if run.settings is None else run.settings.label,
        "seed": None if run.settings is None else run.settings.seed,
        "status": None if run.status is None else asdict(run.status),
        "evaluation": run.last_evaluation(),
        "continue": how_to_continue(run),
    }
