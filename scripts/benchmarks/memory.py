"""What a run holds in memory over its steps."""

import argparse
import os
from pathlib import Path

from benchmarks.options import add_common, positive
from benchmarks.report import Report
from benchmarks.runs import CPU, run_settings, scratch_folder
from normlab import assemble
from normlab.outputs.environment import describe_environment
from normlab.outputs.run_dir import RunDir
from normlab.training.stopping import Stop

PARTS_OF_A_RUN = 10


def memory(arguments: argparse.Namespace) -> Report:
    """Follow the resident memory of a process that trains, logs, draws, saves, evaluates and measures over many steps.

    The growth is between the most that was held in the third tenth of the run, when all that is kept has been made, and
    the most in the last.
    """
    part = arguments.steps // PARTS_OF_A_RUN
    settings = run_settings(
        [
            *("architecture.width=8", "train.batch_size=16", f"train.until={arguments.steps} steps"),
            *(f"every.{what}={part // 4} steps" for what in ("sample", "checkpoint", "evaluate", "spectra")),
            *("evaluation.samples=500", *arguments.changes),
        ]
    )
    held: list[int] = []

    class Followed(Stop):
        def requested(self) -> bool:
            held.append(resident_bytes())
            return super().requested()

    with scratch_folder() as folder:
        run_dir = RunDir(folder / "run")
        run_dir.create()
        trainer = assemble.assemble(settings, assemble.gather(settings, CPU), run_dir, CPU, Followed())
        trainer.train()
        trainer.recorder.close()
    length = len(held) // PARTS_OF_A_RUN
    most = [max(held[place * length : (place + 1) * length]) for place in range(PARTS_OF_A_RUN)]
    growth = most[-1] - most[2]
    values = {
        "benchmark": "memory",
        "growth_bytes": growth,
        "most_bytes_by_tenths": most,
        "steps": arguments.steps,
        "environment": describe_environment(CPU, settings.precision),
    }
    lines = [
        "the most memory that a run holds, in each tenth of its steps",
        f"  {settings.label}, {arguments.steps:,} steps, with a grid, a checkpoint, spectra and an evaluation "
        f"every {part // 4}",
        f"  MB      {'  '.join(f'{value / 1e6:.0f}' for value in most)}",
        f"  growth  {growth / 1e6:+.1f} MB from the third tenth to the last",
    ]
    return Report(values, lines)


def resident_bytes() -> int:
    """Return how much memory this process holds, on Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_common(parser, memory)
    parser.add_argument("--steps", type=positive, default=10_000)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="settings of the run, by default a small one's")
