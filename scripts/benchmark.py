"""Measure normlab against what it is held against: `python scripts/benchmark.py NAME [--json] [--picture FILE]`.

    trainer    the trainer against the loop that one would write by hand, in the same numerics on the CPU: with the
               techniques that torch has in the same arithmetic, which weight and spectral normalization are not
    saving     a checkpoint against the training between two of them
    monitors   training with all that is measured on the way against training with nothing of it
    memory     what a run holds in memory over its steps
    normalizations
               each technique in the discriminator against none, per full step
    evaluation every score together against one bare pass of Inception over the samples
    scaling    images a second against batch, width, resolution, runs at a time and ranks
    streaming  reading images off the disk on the way, by threads, and training on them against images in memory
    startup    cold processes: help, and the first step of a run
    reporting  the report of many runs, and their status
    gpu        on a GPU: steps that are replayed against steps that are computed anew, and each technique against none

A benchmark that compares times its arms in rounds, in another order every round, and one arm twice: the ratio of an arm
to itself is the noise control. The headline is CPU time, which other programs on the machine disturb less than wall
time. Exit codes: 0, 1 where the arms do not do the same work (no ratio is printed then), 5 where the control is outside
0.97 to 1.03, and those of normlab for what it refuses.
"""

import argparse
import importlib
import json
import sys

import torch

from benchmarks.report import Report
from benchmarks.timing import QUIET, is_quiet
from benchmarks.work import UnequalWork
from normlab.errors import DONE, NormlabError

BENCHMARKS = {
    "trainer": "the trainer against the loop that one would write by hand",
    "saving": "a checkpoint against the training between two of them",
    "monitors": "training with all that is measured against without",
    "memory": "what a run holds in memory over its steps",
    "normalizations": "each technique in the discriminator against none",
    "evaluation": "every score against one bare pass of Inception",
    "scaling": "images a second against batch, width, resolution, runs at a time, ranks",
    "streaming": "images read off the disk on the way against images in memory",
    "startup": "cold processes: help, and the first step of a run",
    "reporting": "the report of many runs, and their status",
    "gpu": "on a GPU: replayed steps against steps computed anew",
}
UNEQUAL_WORK = 1
NOISY = 5


def main(words: list[str] | None = None) -> int:
    """Run the benchmark that the command line names and return the exit code."""
    arguments = parsed(sys.argv[1:] if words is None else words)
    torch.set_num_threads(arguments.threads)
    try:
        report: Report = arguments.benchmark(arguments)
    except NormlabError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except UnequalWork as error:
        print(f"error: {error}", file=sys.stderr)
        return UNEQUAL_WORK
    print(json.dumps(report.values) if arguments.json else "\n".join(report.lines))
    if arguments.picture is not None:
        arguments.picture.write_bytes(importlib.import_module("benchmarks.pictures").picture(report.values))
    control = report.values.get("control")
    if control is not None and not is_quiet(control):
        problem = f"an arm took {control:.3f} times as long as itself, outside {QUIET[0]} to {QUIET[1]}"
        print(f"error: control: {problem} — the machine is too noisy: wait, or give more rounds", file=sys.stderr)
        return NOISY
    return DONE


def parsed(words: list[str]) -> argparse.Namespace:
    """Return the options of the benchmark that the words name; only its module is imported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = parser.add_subparsers(required=True, metavar="NAME")
    for name, about in BENCHMARKS.items():
        command = benchmarks.add_parser(name, help=about)
        if words[:1] == [name]:
            importlib.import_module(f"benchmarks.{name}").add_options(command)
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
