"""`normlab verify RUN`: whether a run's folder is sound, its checkpoints above all, and the digest of the last one."""

from pathlib import Path

from normlab import assemble, config
from normlab.errors import DONE, CheckpointError, Complaint, ConfigurationError, NumericalError
from normlab.loading import load
from normlab.outputs import plain_json
from normlab.outputs.checkpoints import Checkpoints, Verification, require_finite, state_digest
from normlab.outputs.run_dir import RunDir
from normlab.outputs.sinks import JsonLines
from normlab.reports import tables
from normlab.training.state import TrainState
from normlab.verbs.arguments import Arguments


def run(arguments: list[str]) -> int:
    """Check a run's folder and print its state digest; raise CheckpointError for what is damaged."""
    parser = Arguments("verify", "Check a run's folder.")
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--digest-only", action="store_true", help="print the state digest of the newest checkpoint alone"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    run_dir = RunDir(Path(options.run))
    if not run_dir.exists():
        raise ConfigurationError(options.run, "is not the folder of a run", "name a folder that holds a config.yaml")
    checkpoints = Checkpoints(run_dir.checkpoints)
    steps = checkpoints.steps()
    if not steps:
        raise CheckpointError(str(run_dir.checkpoints), "holds no checkpoint", "train the run first")
    own = assemble.saved_state(config.load(run_dir.config), run_dir)
    largest = None if own is None else own.most_bytes()
    if options.digest_only and not options.json:
        print(state_digest(checkpoints.load(steps[-1], largest)))
        return DONE
    results = [_examined(checkpoints, result, own) for result in checkpoints.verify(largest)]
    damaged = [result for result in results if not result.ok]
    sound = [result.step for result in results if result.ok]
    digest = state_digest(checkpoints.load(sound[-1])) if sound else None
    complaints = [
        Complaint(str(checkpoints.file(step)), problem, _REMEDY if sound else "fresh=true starts over")
        for step, _, problem in damaged
    ]
    complaints += _beside(run_dir, steps[-1])
    if options.json:
        rows = [result._asdict() for result in results]
        others = [complaint._asdict() for complaint in complaints[len(damaged) :]]
        newest = sound[-1] if sound else None
        print(plain_json.dump({"checkpoints": rows, "step": newest, "digest": digest, "others": others}))
    else:
        rows = [
            {"step": step, "sound": "yes" if ok else "no", "problem": problem or None} for step, ok, problem in results
        ]
        print(tables.render(rows))
        print(f"state digest of step {sound[-1]:,}: {digest}" if sound else "no checkpoint is sound")
    if complaints:
        raise CheckpointError.of(complaints)
    return DONE


_REMEDY = "train again: the run goes on from the newest sound one"


def _examined(checkpoints: Checkpoints, result: Verification, own: TrainState | None) -> Verification:
    """Look beyond the bytes: whether the state is like the run's `own`, where that is known, and finite."""
    if not result.ok:
        return result
    state = checkpoints.load(result.step)
    misfits = [] if own is None else list(own.misfits(state))
    try:
        require_finite(state)
    except NumericalError as error:
        misfits += [f"{complaint.where} {complaint.problem}" for complaint in error.complaints]
    return result if not misfits else Verification(result.step, False, misfits[0])


def _beside(run_dir: RunDir, newest: int) -> list[Complaint]:
    """Say what is wrong beside the checkpoints: a step that none has, rows out of order, a generator of no use."""
    complaints: list[Complaint] = []
    status = run_dir.read_status()
    if status is None:
        complaints.append(Complaint(str(run_dir.status), "is missing, or cannot be read", _REMEDY))
    elif status.state in ("done", "stopped") and status.step != newest:
        problem = f"is {status.state} at step {status.step:,}, and the newest checkpoint is of step {newest:,}"
        complaints.append(Complaint(str(run_dir.status), problem, "bring the checkpoint back from a copy"))
    for path in (run_dir.metrics, run_dir.evaluations, run_dir.spectra):
        rows = JsonLines(path).rows()
        places = [(row["step"], row.get("generator"), row.get("network"), row.get("layer")) for row in rows]
        steps = [row["step"] for row in rows]
        if len(set(places)) < len(places) or steps != sorted(steps):
            remedy = "somebody has written to it; bring it back from a copy"
            complaints.append(Complaint(str(path), "has steps twice or out of order", remedy))
    if run_dir.generator.exists():
        try:
            load(run_dir.generator)
        except CheckpointError as error:
            complaints += error.complaints
    return complaints
