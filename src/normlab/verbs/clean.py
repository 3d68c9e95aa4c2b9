"""`normlab clean RUN...`: take from finished runs what only further training would need."""

from pathlib import Path
from typing import Any

from normlab import assemble, config
from normlab.errors import DONE, CheckpointError, ConfigurationError
from normlab.outputs import plain_json
from normlab.outputs.checkpoints import Checkpoints
from normlab.outputs.run_dir import RunDir
from normlab.reports import tables
from normlab.reports.runs import read_run
from normlab.training.state import OPTIMIZERS, TrainState
from normlab.verbs.arguments import Arguments


def run(arguments: list[str]) -> int:
    """Drop the optimizers' moments from the checkpoints of finished runs, which then cannot be extended any more."""
    parser = Arguments("clean", "Drop optimizer state from finished runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    folders = [RunDir(Path(run)) for run in options.runs]
    for folder in folders:
        state = read_run(folder.path).state
        if state not in ("done", "diverged"):
            remedy = "clean runs that are done or diverged; others still need it to go on"
            raise ConfigurationError(str(folder.path), f"the run is {state}", remedy)
    rows: list[dict[str, Any]] = []
    for folder in folders:
        with folder.lock():
            rows.append({"run": str(folder.path), "freed_bytes": clean(folder)})
    if options.json:
        print(plain_json.dump({"runs": rows}))
    else:
        print(tables.render([{"run": row["run"], "freed, MB": row["freed_bytes"] / 1e6} for row in rows]))
    return DONE


def clean(folder: RunDir) -> int:
    """Write each checkpoint anew without the optimizers and return how many bytes that freed.

    Raises CheckpointError if one is damaged, or is no state of the run; all are then left as they are.
    """
    own, checkpoints = assemble.saved_state(config.load(folder.config), folder), Checkpoints(folder.checkpoints)
    if own is None:
        problem = "holds checkpoints that cannot be judged: environment.json does not tell the images' shape"
        raise CheckpointError(str(folder.path), problem, "bring the file back from a copy")
    freed = 0
    for step in _uncleaned(checkpoints, own):
        state, before = checkpoints.load(step, own.most_bytes()), checkpoints.file(step).stat().st_size
        checkpoints.save(step, {**state, **dict.fromkeys(OPTIMIZERS)})
        freed += before - checkpoints.file(step).stat().st_size
    return freed


def _uncleaned(checkpoints: Checkpoints, own: TrainState) -> list[int]:
    """Return the steps whose checkpoints hold optimizers, having looked at every checkpoint there is."""
    steps: list[int] = []
    for step in checkpoints.steps():
        state = checkpoints.load(step, own.most_bytes())
        if misfits := list(own.misfits(state)):
            raise checkpoints.misfit(step, misfits[0], "`normlab verify` looks at all of them")
        if any(state[name] is not None for name in OPTIMIZERS):
            steps.append(step)
    return steps
