"""`normlab evaluate RUN...`: score the checkpoints of runs again, by their own protocol or another."""

from pathlib import Path
from statistics import stdev
from typing import Any

import torch

from normlab import composition, launching, rescoring
from normlab.config import RunConfig
from normlab.errors import DONE, Complaint, ConfigurationError
from normlab.outputs import plain_json
from normlab.outputs.run_dir import RunDir
from normlab.reports import tables
from normlab.reports.runs import MAIN_METRICS
from normlab.verbs.arguments import Arguments, other_keys

CHECKPOINT = "checkpoint"
PICTURES = ("neighbours", "reconstructions")
WORDS = "folders of runs; checkpoint=best|last|all|STEP (default last); settings such as evaluation.repeats=5"
TAKEN = ("evaluation", "dataset.root", "dataset.download", "device", "threads", "plugins", "debug")


def run(arguments: list[str]) -> int:
    """Score what the words name, print a table, and keep the rows in each run's `scores.jsonl`."""
    parser = Arguments("evaluate", "Score the checkpoints of runs again; the rows are kept in their scores.jsonl.")
    parser.add_argument("words", metavar="RUN|KEY=VALUE", nargs="+", help=WORDS)
    help = "also write samples beside their nearest training images, and held-out images beside what comes closest"
    parser.add_argument("--pictures", action="store_true", help=help)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_intermixed_args(arguments)
    given = [word for word in options.words if "=" in word and not Path(word).exists()]
    folders = [Path(word) for word in options.words if word not in given]
    if not folders:
        raise ConfigurationError("RUN", "is missing", "name the folder of a run")
    which = next((word.partition("=")[2] for word in reversed(given) if word.startswith(f"{CHECKPOINT}=")), "last")
    overrides = [word for word in given if not word.startswith(f"{CHECKPOINT}=")]
    plans = [_planned(folder, overrides, which) for folder in folders]
    results: list[dict[str, Any]] = []
    for settings, run_dir, steps in plans:
        rows = _scored(settings, run_dir, steps, options.pictures)
        results.append({"run": str(run_dir.path), "rows": rows})
    print(plain_json.dump({"runs": results}) if options.json else _table(results))
    return DONE


def _planned(folder: Path, overrides: list[str], which: str) -> tuple[RunConfig, RunDir, list[int]]:
    """Return a run's settings with the overrides, and the steps to score, before any work starts."""
    run_dir = RunDir(folder)
    if not run_dir.exists():
        raise ConfigurationError(str(folder), "is not the folder of a run", "name a folder that holds a config.yaml")
    settings, complaints = composition.configure([f"resume={folder}", *overrides])
    for key in other_keys(overrides, TAKEN):
        complaints.append(Complaint(key, "cannot change a run that is scored", f"{', '.join(TAKEN)} may be given"))
    if settings.evaluation.features == "none":
        complaints.append(Complaint("evaluation.features", "is none in this run", "give evaluation.features=auto"))
    return launching.checked(settings, complaints), run_dir, rescoring.steps_to_score(run_dir, which)


def _scored(settings: RunConfig, run_dir: RunDir, steps: list[int], pictures: bool) -> list[dict[str, Any]]:
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return list(rescoring.score_again(settings, run_dir, steps, pictures))


SHOWN = (
    *("step", "generator", *MAIN_METRICS, "kid", "kernel_distance", "precision", "recall", "density", "coverage"),
    *(
        "relative_spread",
        "modes",
        "good_share",
        "kl_to_uniform",
        "reconstruction_error",
        "authenticity",
        "noise",
        "flags",
    ),
)


def _table(results: list[dict[str, Any]]) -> str:
    """Return a table for each protocol, as values of two are not to be compared, and where pictures lie."""
    tables_of: dict[str, list[dict[str, Any]]] = {}
    pictures: list[str] = []
    for result in results:
        for row in result["rows"]:
            told = row | _noise(row)
            shown = {"run": Path(result["run"]).name, **{key: told[key] for key in SHOWN if key in told}}
            tables_of.setdefault(row["protocol"], []).append(shown)
            pictures += [row[name] for name in PICTURES if name in row]
    lines = [
        line for protocol, rows in tables_of.items() for line in (f"protocol: {protocol}", tables.render(rows), "")
    ]
    return "\n".join([*lines[:-1], *pictures])


def _noise(row: dict[str, Any]) -> dict[str, float]:
    """Return the standard deviation over repeats of the first of the main metrics that a row has, if it has any."""
    repeats = row.get("repeats", {})
    return next(({"noise": stdev(repeats[name])} for name in MAIN_METRICS if len(repeats.get(name, ())) > 1), {})
