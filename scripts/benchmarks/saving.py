"""A checkpoint against the training between two of them."""

import argparse
from contextlib import closing
from pathlib import Path

from benchmarks.options import add_common, positive
from benchmarks.report import Report
from benchmarks.runs import CPU, WARM_UP, Windows, run_settings, scratch_folder, without_extras
from benchmarks.timing import Seconds, medians_of, ratio_of, time_rounds, window_of
from normlab import assemble
from normlab.errors import ConfigurationError
from normlab.outputs.environment import describe_environment
from normlab.training.pace import pace_of


def saving(arguments: argparse.Namespace) -> Report:
    """Time `Trainer.save` against the training of as many steps as lie between two checkpoints by default.

    What the disk takes to hold a checkpoint for good shows in the wall time alone.
    """
    settings = run_settings(arguments.changes)
    materials = assemble.gather(settings, CPU)
    interval = settings.every.checkpoint
    if interval is None or interval.unit == "minutes":
        raise ConfigurationError(
            "every.checkpoint", f"is {interval}, no number of steps", "give steps, epochs or images"
        )
    steps = pace_of(settings, len(materials.dataset.train)).steps(interval)
    plain = without_extras(settings)
    with (
        scratch_folder(arguments.folder) as folder,
        closing(Windows(plain, materials, folder / "run")) as run,
        closing(Windows(plain, materials, folder / "again")) as again,
    ):
        run.train(WARM_UP)
        again.train(WARM_UP)
        seconds = time_rounds(
            {
                "training": window_of(run.train, steps),
                "saving": lambda: run.trainer.save(must=True),
                "again": window_of(again.train, steps),
            },
            arguments.rounds,
        )
        size = max(path.stat().st_size for path in run.trainer.checkpoints.folder.glob("*.pt"))
    medians = {name: medians_of(windows) for name, windows in seconds.items()}
    share, wall_share = (
        getattr(medians["saving"], kind) / (getattr(medians["saving"], kind) + getattr(medians["training"], kind))
        for kind in Seconds._fields
    )
    control = ratio_of([window.cpu for window in seconds["again"]], [window.cpu for window in seconds["training"]])
    values = {
        "benchmark": "saving",
        **{"share": share, "wall_share": wall_share},
        **{"control": control.median, "control_low": control.low, "control_high": control.high},
        "rounds": arguments.rounds,
        "steps_between": steps,
        "checkpoint_bytes": size,
        "seconds": {name: each._asdict() for name, each in medians.items()},
        "environment": describe_environment(CPU, settings.precision),
    }
    lines = [
        "what saving takes of a run's time, with a checkpoint every so many steps",
        f"  {settings.label}, {steps} steps between two checkpoints of {size / 1e6:.1f} MB, {arguments.rounds} rounds",
        f"  CPU time       {medians['saving'].cpu:.3f} s against {medians['training'].cpu:.3f} s: {share:.2%}",
        f"  wall time      {medians['saving'].wall:.3f} s against {medians['training'].wall:.3f} s: {wall_share:.2%}",
        f"  noise control  {control}  (the training against itself, CPU time)",
    ]
    return Report(values, lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_common(parser, saving)
    parser.add_argument("--rounds", type=positive, default=9)
    parser.add_argument("--folder", type=Path, default=None, help="where the checkpoints go, on the disk in question")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="settings of the run, by default the defaults")
