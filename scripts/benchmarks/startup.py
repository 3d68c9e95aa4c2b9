"""How long a person waits: for help, and for the first step of a run on cached data."""

import argparse
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.options import add_common, positive
from benchmarks.report import Report
from benchmarks.runs import CPU
from benchmarks.timing import Ratio, Seconds, ratio_of, time_rounds
from normlab.outputs.environment import describe_environment

CLAIMS = {"help": 0.5, "train": 5.0}  # seconds: of the whole command, and from torch's import to the first step
# Imports torch first, so that what follows can be told from it, and ends the process behind its first step.
PROBE = """
import os, sys, time
import torch
imported = time.process_time(), time.perf_counter()
from normlab import cli
from normlab.training.step import Step
take = Step.take
def first(step):
    take(step)
    print(time.process_time() - imported[0], time.perf_counter() - imported[1], flush=True)
    os._exit(0)
Step.take = first
cli.main(["train", *sys.argv[1:]])
"""


def startup(arguments: argparse.Namespace) -> Report:
    """Time cold processes in alternation: what Python and torch take to start, help, and runs up to their first step.

    A run on the digits with every default scores and measures step 0 first; one without evaluation only measures.
    Seconds of runs are those since torch was imported. What a run caches is there.
    """
    commands = {
        "python": ["-c", "pass"],
        "torch": ["-c", "import torch"],
        "again": ["-c", "import torch"],
        "help": ["-m", "normlab", "--help"],
        "train": ["-c", PROBE, *arguments.changes],
        "train, evaluation=none": ["-c", PROBE, "evaluation=none", *arguments.changes],
    }
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    arms = {
        name: partial(_probed if PROBE in words else _timed, words, environment) for name, words in commands.items()
    }
    arms["train"]()  # which fills the caches for all that follow
    seconds = time_rounds(arms, arguments.rounds)
    wall = {name: [window.wall for window in windows] for name, windows in seconds.items()}
    cpu = {name: [window.cpu for window in windows] for name, windows in seconds.items()}
    control = ratio_of(cpu["again"], cpu["torch"])
    taken = {name: _interval(times) for name, times in wall.items() if name != "again"}
    values: dict[str, Any] = {
        "benchmark": "startup",
        **taken["train"].over(CLAIMS["train"]).headline(),
        **{"control": control.median, "control_low": control.low, "control_high": control.high},
        "rounds": arguments.rounds,
        "wall_seconds": {name: each._asdict() for name, each in taken.items()},
        "cpu_seconds": {name: _interval(times)._asdict() for name, times in cpu.items() if name != "again"},
        "claims": CLAIMS,
        "environment": describe_environment(CPU, "fp32"),
    }
    lines = [
        f"seconds to start, of {arguments.rounds} cold processes each; of runs from torch's import to the first step",
        *(
            f"  {name:<22}  {each}  (CPU {statistics.median(cpu[name]):.2f} s"
            + (f"; claimed: {CLAIMS[name]:g} s)" if name in CLAIMS else ")")
            for name, each in taken.items()
        ),
        f"  noise control  {control}  (CPU time of `import torch` against itself)",
    ]
    return Report(values, lines)


def _interval(times: list[float]) -> Ratio:
    return ratio_of(times, [1.0] * len(times))


def _timed(words: list[str], environment: dict[str, str]) -> Seconds:
    """Return what a process takes from its start to its end."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env=environment)
    wall, after = time.perf_counter() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Seconds(cpu, wall)


def _probed(words: list[str], environment: dict[str, str]) -> Seconds:
    """Return what a run takes from torch's import to the end of its first step."""
    with TemporaryDirectory() as folder:
        result = subprocess.run(
            [sys.executable, *words],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**environment, "NORMLAB_OUTPUTS": folder},
        )
    cpu, wall = result.stdout.split()[-2:]
    return Seconds(float(cpu), float(wall))


def add_options(parser: argparse.ArgumentParser) -> None:
    add_common(parser, startup)
    parser.add_argument("--rounds", type=positive, default=9)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="settings of the runs, by default the defaults")
