"""Images a second against the batch, the width, the resolution, runs at a time, and the ranks of a run."""

import argparse
import importlib.util
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from benchmarks.options import add_common, positive
from benchmarks.report import Report
from benchmarks.runs import run_settings
from benchmarks.timing import AGAIN, EQUAL, Ratio, Seconds, ratio_of, time_rounds
from benchmarks.workers import Worker
from normlab import assemble
from normlab.errors import ConfigurationError, NormlabError
from normlab.outputs.environment import describe_environment
from normlab.training.step import Step

LEAST = 0.4  # seconds of a window, so that the clock and what wakes up now and then do not show
REFERENCE = {"batch": 64, "width": 32, "resolution": 32, "runs": 1, "ranks": 1}
POINTS: dict[str, tuple[int, ...]] = {
    "batch": (8, 16, 32, 64, 128, 256),
    "width": (8, 16, 32, 64),
    "resolution": (32, 64),
    "runs": (1, 2, 4),
    "ranks": (1, 2),
}


class Arm(NamedTuple):
    """What takes a window of steps, and how many images it sees in a step."""

    train: Callable[[int], Any]
    images: int


def scaling(arguments: argparse.Namespace) -> Report:
    """Time steps at the points of each axis, which all pass through one reference, in turn with that and itself again.

    A window of any point is about as long as one of the reference. Runs at a time share the cores or the GPU, each with
    so many threads; ranks share one run's batch.
    """
    tables: dict[str, Any] = {}
    reference = reference_of(arguments)
    for axis in arguments.axis or POINTS:
        if axis == "ranks" and importlib.util.find_spec("normlab.distributed") is None:
            tables[axis] = {"skipped": "this normlab trains on one process"}
            continue
        with ARMS[axis](arguments) as arms:
            tables[axis] = measured(arms, REFERENCE[axis], arguments.rounds)
    ratios = [Ratio(**row["of_reference"]) for table in tables.values() for row in table.get("rows", [])]
    controls = [table["control"] for table in tables.values() if "control" in table]
    values: dict[str, Any] = {
        "benchmark": "scaling",
        **max(ratios, default=EQUAL).headline(),
        "control": max(controls, key=lambda ratio: abs(ratio - 1), default=1.0),
        "rounds": arguments.rounds,
        "axes": tables,
        "reference": reference,
        "settings": {key: getattr(arguments, key) for key in ("device", "threads", "changes")},
        "environment": describe_environment(
            assemble.choose_device(run_settings([f"device={arguments.device}"]).device), "fp32"
        ),
    }
    lines = ["images a second, of real images that the discriminator sees; what is not varied is as in the reference"]
    lines += [f"  reference  {', '.join(f'{axis} {value}' for axis, value in reference.items())}"]
    for axis, table in tables.items():
        lines += _lines(axis, table)
    return Report(values, lines)


def measured(arms: Mapping[int, Arm], reference: int, rounds: int) -> dict[str, Any]:
    """Return the images a second at each point, as ratios to the reference too, and which point is best."""
    steps = {point: steps_of_a_window(arm.train) for point, arm in arms.items()}
    windows = {str(point): partial(arm.train, steps[point]) for point, arm in arms.items()}
    windows[AGAIN] = windows[str(reference)]
    seconds = time_rounds(windows, rounds)
    wall = {name: [window.wall for window in taken] for name, taken in seconds.items()}
    per_image = {
        point: [window / (steps[point] * arm.images) for window in wall[str(point)]] for point, arm in arms.items()
    }
    control = ratio_of(wall[AGAIN], wall[str(reference)])
    rows: list[dict[str, Any]] = [
        {
            "point": point,
            "images_per_second": ratio_of([1.0] * rounds, times)._asdict(),
            "of_reference": ratio_of(per_image[reference], times)._asdict(),
            "milliseconds_per_step": 1000 * statistics.median(times) * arms[point].images,
        }
        for point, times in per_image.items()
    ]
    best = max(rows, key=lambda row: row["of_reference"]["median"])
    return {
        **{"rows": rows, "best": best["point"], "best_ratio": best["of_reference"]["median"]},
        **{"control": control.median, "control_low": control.low, "control_high": control.high},
    }


def steps_of_a_window(train: Callable[[int], Any]) -> int:
    """Return how many steps make a window that is long enough, after two to warm up."""
    train(2)
    began = time.perf_counter()
    told = train(1)
    taken = told.wall if isinstance(told, Seconds) else time.perf_counter() - began
    return max(1, math.ceil(LEAST / taken))


# The settings that are axes.
AXES = {"train.batch_size": "batch", "architecture.width": "width", "dataset.image_size": "resolution"}

# --- Points of the axes ---------------------------------------------------------------------------------------------


def reference_of(arguments: argparse.Namespace) -> dict[str, int]:
    """Return the reference with what the settings say of axes that are not measured.

    Raises ConfigurationError for a setting of one that is, and for those that the benchmark has options for.
    """
    given = {key: value for key, _, value in (change.partition("=") for change in arguments.changes)}
    for key in given:
        if key in ("device", "evaluation") or AXES.get(key) in (arguments.axis or POINTS):
            remedy = "leave it out, or measure another --axis"
            raise ConfigurationError(key, "is what an axis or an option of this benchmark sets", remedy)
    return REFERENCE | {AXES[key]: int(value) for key, value in given.items() if key in AXES and value.isdigit()}


def words_of(arguments: argparse.Namespace, **point: int) -> list[str]:
    """Return the settings of a run at the reference, but for the axes that are named."""
    chosen = reference_of(arguments) | point
    return [
        *(f"device={arguments.device}", "evaluation=none", f"architecture.width={chosen['width']}"),
        *(f"train.batch_size={chosen['batch']}", f"dataset.image_size={chosen['resolution']}", *arguments.changes),
    ]


@contextmanager
def steps_along(axis: str, arguments: argparse.Namespace) -> Generator[dict[int, Arm]]:
    """Give steps in this process, at each point of an axis."""
    yield {
        point: Arm(partial(take, step), step.batch_size * step.discriminator_steps)
        for point in POINTS[axis]
        for step in [built(words_of(arguments, **{axis: point}))]
    }


@contextmanager
def runs_at_a_time(arguments: argparse.Namespace) -> Generator[dict[int, Arm]]:
    """Give so many processes, each with a run of its own, that take their steps at the same time."""
    words = [f"--threads={arguments.threads}", *words_of(arguments)]
    settings = run_settings(words_of(arguments))
    images = settings.train.batch_size * settings.train.discriminator_steps
    with ExitStack() as stack:
        workers = [stack.enter_context(closing(Worker("run_worker", words))) for _ in range(max(POINTS["runs"]))]
        yield {count: Arm(partial(together, workers[:count]), count * images) for count in POINTS["runs"]}


@contextmanager
def ranks_of_a_run(arguments: argparse.Namespace) -> Generator[dict[int, Arm]]:
    """Give one run on so many processes, of which each window is a start of its own."""
    settings = run_settings(words_of(arguments))
    images = settings.train.batch_size * settings.train.discriminator_steps
    words = [f"threads={arguments.threads}", *words_of(arguments)]
    yield {count: Arm(partial(torchrun, count, words), images) for count in POINTS["ranks"]}


ARMS: dict[str, Callable[[argparse.Namespace], Any]] = {
    **{axis: partial(steps_along, axis) for axis in ("batch", "width", "resolution")},
    "runs": runs_at_a_time,
    "ranks": ranks_of_a_run,
}


def built(words: list[str]) -> Step:
    settings = run_settings(words)
    device = assemble.choose_device(settings.device)
    dataset = assemble.open_dataset(settings)
    return assemble.build_step(settings, dataset, assemble.open_batches(settings, dataset, device), device)


def take(step: Step, steps: int) -> None:
    for _ in range(steps):
        step.take()
    if step.device.type == "cuda":
        torch.cuda.synchronize()


def together(workers: Sequence[Worker], steps: int) -> Seconds:
    """Let all take their steps at once; return the CPU time of all, and the wall time until the last is done."""
    began = time.perf_counter()
    for worker in workers:
        worker.begin(steps)
    cpu = sum(worker.told()["cpu"] for worker in workers)
    return Seconds(cpu, time.perf_counter() - began)


def torchrun(count: int, words: list[str], steps: int) -> Seconds:
    """Train a run on so many ranks and return what the steps of its second half took, by its own clock.

    Raises NormlabError, with what the run said last, if it did not come to its end.
    """
    with TemporaryDirectory() as folder:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        never = [f"every.{what}=null" for what in ("sample", "checkpoint", "evaluate", "spectra")]
        command = [*launcher, "-m", "normlab", "train", *words, *never]
        command += [f"every.log={steps} steps", f"train.until={2 * steps} steps", f"name={Path(folder).name}"]
        # The words may name files from where this was started, so the run starts there, too.
        environment = {**os.environ, "NORMLAB_OUTPUTS": folder}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        if result.returncode:
            problem = f"a run on {count} rank(s) ended with {result.returncode} ({last_words(result.stderr)})"
            raise NormlabError("ranks", problem, "mend that, or choose other axes by --axis")
        (metrics,) = Path(folder).glob("*/*/metrics.jsonl")
        first, second = (row["seconds"] for row in _rows(metrics))
    return Seconds(math.nan, second - first)


def last_words(told: str) -> str:
    """Return the last line that a run says is an error, else the last of all: torchrun's own words follow a run's."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return next(
        (line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), (lines or [""])[-1]
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    from normlab.outputs.sinks import JsonLines

    return JsonLines(path).rows()


def _lines(axis: str, table: dict[str, Any]) -> list[str]:
    if "skipped" in table:
        return [f"  {axis}: skipped, {table['skipped']}"]
    rows = [
        f"    {row['point']:>5}  {row['images_per_second']['median']:10,.1f} images/s  "
        f"{row['of_reference']['median']:6.3f} [{row['of_reference']['low']:.3f}, {row['of_reference']['high']:.3f}] "
        f"of the reference{'  best' if row['point'] == table['best'] else ''}"
        for row in table["rows"]
    ]
    return [f"  {axis}, noise control {table['control']:.3f}", *rows]


def add_options(parser: argparse.ArgumentParser) -> None:
    add_common(parser, scaling)
    parser.add_argument("--rounds", type=positive, default=6)
    parser.add_argument("--axis", action="append", choices=POINTS, help="may be given several times; all by default")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="settings of the runs, by default the defaults")
