"""The trainer against the loop that one would write by hand."""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from unittest.mock import patch

import torch

from benchmarks.bare import PLAIN_TECHNIQUES, plain_loop
from benchmarks.mimicry import against_mimicry
from benchmarks.options import add_common, positive, whole_intervals
from benchmarks.report import Report
from benchmarks.runs import CPU, LOG_EVERY, WARM_UP, Windows, scratch_folder
from benchmarks.timing import Seconds, ratio_of, time_rounds, window_of
from benchmarks.work import UnequalWork, Work, counted_after_warm_up, require_same_work
from normlab import assemble, launching
from normlab.assemble import Materials
from normlab.composition import configure
from normlab.config import RunConfig
from normlab.errors import ConfigurationError
from normlab.outputs.environment import describe_environment
from normlab.training.capture import Scalars

AGREEING_STEPS = 5
TOLERANCE = 1e-4  # relative, between losses: rounding, amplified over the steps by Adam


def trainer(arguments: argparse.Namespace) -> Report:
    """Time `Trainer.train` as `normlab train` runs it, rows, status, log and TensorBoard included, against a bare loop.

    Grids, checkpoints, evaluations and exact spectra, which the bare loop has none of, are never due. Raises
    UnequalWork where the two differ in their convolutions, their gradients or their optimizer steps, or in their losses
    from one and the same start over the first steps.
    """
    if arguments.mimicry:
        if arguments.technique != "none":
            raise ConfigurationError("--technique", "goes with the loop by hand alone", "leave it out, or --mimicry")
        return against_mimicry(arguments)
    settings = trainer_settings(arguments)
    materials = assemble.gather(settings, CPU)
    torch.manual_seed(settings.seed)
    difference = largest_difference(settings, materials)
    with (
        scratch_folder() as folder,
        closing(Windows(settings, materials, folder / "normlab")) as normlab,
        closing(Windows(settings, materials, folder / "again")) as again,
    ):
        bare = plain_loop(settings, normlab.trainer.step)
        loops: dict[str, Callable[[int], None]] = {"normlab": normlab.train, "bare": bare.train, "again": again.train}
        work = {name: counted_after_warm_up(train, WARM_UP) for name, train in loops.items()}
        require_same_work(work["normlab"], work["bare"])
        windows = {name: window_of(train, arguments.steps) for name, train in loops.items()}
        seconds = time_rounds(windows, arguments.rounds)
        outside = share_outside(normlab, arguments.steps)
    return _trainer_report(arguments, settings, seconds, work, difference, outside)


def share_outside(run: Windows, steps: int) -> float:
    """Return what part of a window's CPU time a trainer spends outside of steps: on rows, status and TensorBoard.

    Both are of the same seconds, so that a machine that is busy slows both.
    """
    take, inside = run.trainer.step.take, 0.0

    def timed() -> Scalars:
        nonlocal inside
        began = time.process_time()
        scalars = take()
        inside += time.process_time() - began
        return scalars

    with patch.object(run.trainer.step, "take", timed):
        began = time.process_time()
        run.train(steps)
        return 1 - inside / (time.process_time() - began)


def trainer_settings(arguments: argparse.Namespace) -> RunConfig:
    """Return the configuration of the run; raise ConfigurationError where it does not hold."""
    settings, complaints = configure(
        [
            *("dataset=digits", "architecture=dcgan", f"normalization={arguments.technique}", "device=cpu"),
            *(f"architecture.width={arguments.width}", f"train.batch_size={arguments.batch}"),
            *("train.until=1000000000 steps", "every.sample=null", "every.checkpoint=null", "every.evaluate=null"),
            *("evaluation.features=none", "every.spectra=null", f"every.log={LOG_EVERY} steps"),
        ]
    )
    return launching.checked(settings, complaints)


def largest_difference(settings: RunConfig, materials: Materials) -> float:
    """Return by how much, relative to their size, the two loops' losses differ over the first steps.

    Both begin with the same weights and see the same images and latents. Raises UnequalWork beyond rounding.
    """
    step = assemble.build_step(settings, materials.dataset, materials.real, CPU)
    bare = plain_loop(settings, step)
    largest = 0.0
    for _ in range(AGREEING_STEPS):
        real = step.real.batch(step.state.images_seen)
        theirs = (
            bare.update_discriminator(real, step.latents("discriminator 0")),
            bare.update_generator(step.latents("generator")),
        )
        scalars = step.take()
        for name, loss in zip(("loss/discriminator", "loss/generator"), map(float, theirs), strict=True):
            largest = max(largest, abs(float(scalars[name]) - loss) / abs(loss))
    if not largest <= TOLERANCE:
        raise UnequalWork(f"the losses differ by {largest:.1e} of their size within {AGREEING_STEPS} steps")
    return largest


def _trainer_report(
    arguments: argparse.Namespace,
    settings: RunConfig,
    seconds: dict[str, list[Seconds]],
    work: dict[str, Work],
    difference: float,
    outside: float,
) -> Report:
    cpu = {name: [window.cpu for window in windows] for name, windows in seconds.items()}
    wall = {name: [window.wall for window in windows] for name, windows in seconds.items()}
    ratio, wall_ratio = ratio_of(cpu["normlab"], cpu["bare"]), ratio_of(wall["normlab"], wall["bare"])
    control, wall_control = ratio_of(cpu["again"], cpu["normlab"]), ratio_of(wall["again"], wall["normlab"])
    milliseconds = {name: 1000 * statistics.median(cpu[name]) / arguments.steps for name in ("normlab", "bare")}
    operations = {name: work[name].operations for name in ("normlab", "bare")}
    chosen = {key: getattr(arguments, key) for key in ("technique", "width", "batch", "threads", "steps")}
    values = {
        "benchmark": "trainer",
        **ratio.headline(),
        **{"control": control.median, "control_low": control.low, "control_high": control.high},
        "rounds": arguments.rounds,
        **{"wall_ratio": wall_ratio.median, "wall_low": wall_ratio.low, "wall_high": wall_ratio.high},
        "wall_control": wall_control.median,
        "cpu_milliseconds_per_step": milliseconds,
        "operations_per_step": operations,
        "convolutions_and_optimizer_steps": dict(work["bare"].heavy),
        "largest_loss_difference": difference,
        "outside_of_steps": outside,
        "settings": chosen,
        "environment": describe_environment(CPU, settings.precision),
    }
    lines = [
        "normlab's trainer against the loop that one would write by hand, same numerics",
        f"  digits, dcgan of width {arguments.width}, {settings.label}, batches of {arguments.batch}, fp32, "
        f"{arguments.threads} thread(s), {arguments.rounds} rounds of {arguments.steps} steps",
        f"  same work           {work['bare'].heavy.total()} convolutions, their gradients and optimizer steps",
        f"  same losses         within {difference:.1e} over {AGREEING_STEPS} steps",
        f"  all operations      {operations['normlab']} against {operations['bare']} a step",
        f"  CPU time of a step  {milliseconds['normlab']:.2f} ms against {milliseconds['bare']:.2f} ms",
        f"  CPU time, ratio     {ratio}",
        f"  wall time, ratio    {wall_ratio}",
        f"  outside of steps    {100 * outside:.2f} % of the trainer's CPU time, measured within",
        f"  noise control       {control}  (normlab against itself, CPU time; wall {wall_control.median:.3f})",
    ]
    return Report(values, lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_common(parser, trainer)
    parser.add_argument("--rounds", type=positive, default=9)
    parser.add_argument("--steps", type=whole_intervals, default=50, help="steps of a window, whole intervals of rows")
    parser.add_argument("--technique", choices=PLAIN_TECHNIQUES, default="none", help="of the discriminator")
    parser.add_argument(
        "--mimicry", action="store_true", help="against torch-mimicry's trainer instead, both with its SNGAN-32"
    )
    parser.add_argument("--width", type=positive, default=32)
    parser.add_argument("--batch", type=positive, default=64)
