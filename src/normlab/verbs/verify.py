"""`normlab verify RUN`: whether every checkpoint of a run is sound, and the digest of the last one."""

from pathlib import Path

from normlab.errors import DONE, CheckpointError, ConfigurationError
from normlab.outputs import plain_json
from normlab.outputs.checkpoints import Checkpoints, state_digest
from normlab.outputs.run_dir import RunDir
from normlab.reports import tables
from normlab.verbs.arguments import Arguments


def run(arguments: list[str]) -> int:
    """Check every checkpoint and print the state digest of the newest; raise CheckpointError if one is damaged."""
    parser = Arguments("verify", "Check a run's checkpoints.")
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
    if options.digest_only and not options.json:
        print(state_digest(checkpoints.load(steps[-1])))
        return DONE
    results = checkpoints.verify()
    damaged = [result for result in results if not result.ok]
    sound = [result.step for result in results if result.ok]
    digest = state_digest(checkpoints.load(sound[-1])) if sound else None
    if options.json:
        rows = [result._asdict() for result in results]
        print(plain_json.dump({"checkpoints": rows, "step": sound[-1] if sound else None, "digest": digest}))
    else:
        rows = [
            {"step": step, "sound": "yes" if ok else "no", "problem": problem or None} for step, ok, problem in results
        ]
        print(tables.render(rows))
        print(f"state digest of step {sound[-1]:,}: {digest}" if sound else "no checkpoint is sound")
    if damaged:
        files = ", ".join(str(checkpoints.file(result.step)) for result in damaged)
        remedy = "train again: the run goes on from the newest sound one" if sound else "fresh=true starts over"
        raise CheckpointError(files, "damaged", remedy)
    return DONE
