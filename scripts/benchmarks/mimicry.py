"""The trainer against torch-mimicry's (Lee & Town 2020), on its own SNGAN for 32 px at equal widths."""

import argparse
import site
import statistics
import subprocess
import sys
import sysconfig
import venv
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import normlab
from benchmarks.gpu import random_colours
from benchmarks.report import Report
from benchmarks.runs import CPU, WARM_UP, Windows, run_settings, scratch_folder, without_extras
from benchmarks.timing import Seconds, ratio_of, time_rounds
from benchmarks.work import UnequalWork, counted_after_warm_up, table
from benchmarks.workers import Worker
from normlab import assemble
from normlab.assemble import Materials
from normlab.config import RunConfig
from normlab.data.packing import cache_folder
from normlab.errors import DataError
from normlab.outputs.environment import describe_environment

VERSION = "0.1.16"
DISCRIMINATOR_STEPS = 5  # of its recipe, as of the paper's
BF16_UNITS = ("amx_bf16", "avx512_bf16")
DIFFERENCES = [
    "torch-mimicry reads each image by torchvision's CIFAR10 through a DataLoader in the same process, normlab and the "
    "loop by hand gather a batch from memory",
    "torch-mimicry computes gradients of the discriminator's weights in the generator's update, and throws them away",
    "torch-mimicry keeps the generator's activations while it makes the discriminator's images",
    "torch-mimicry waits for three numbers of each discriminator update and prints a line every step",
    "torch-mimicry's spectral normalization is torch's hook, a power iteration before every pass; so is normlab's with "
    "the same numerics, and one an update with the best settings",
    "torch-mimicry enlarges maps by bilinear interpolation, normlab repeats pixels",
    "normlab writes rows, status and TensorBoard every 50 steps with sigma and norms of every layer, torch-mimicry its "
    "losses to TensorBoard",
]


def against_mimicry(arguments: argparse.Namespace) -> Report:
    """Time normlab, again, and at its best settings, torch-mimicry's trainer, and a loop by hand on its networks.

    Neither draws, saves or evaluates. Raises UnequalWork where their convolutions differ in shape or number, DataError
    where torch-mimicry cannot be had.
    """
    python = python_with_mimicry()
    dataset = random_colours(32)
    best = best_settings()
    with scratch_folder() as folder:
        np.save(folder / "pixels.npy", dataset.train.pixels[:])

        def ours(name: str, words: list[str]) -> Windows:
            settings = mimicry_settings(arguments, words)
            real = assemble.open_batches(settings, dataset, CPU)
            return Windows(without_extras(settings), Materials(dataset, real, None), folder / name)

        def theirs(loop: str) -> Worker:
            words = [loop, str(folder), f"--width={arguments.width}", f"--batch={arguments.batch}"]
            words += [f"--discriminator-steps={DISCRIMINATOR_STEPS}", f"--threads={arguments.threads}"]
            return Worker("mimicry_worker", words, python)

        same = ["normalization.discriminator.advance=forward"]
        with (
            closing(ours("normlab", same)) as plain,
            closing(ours("again", same)) as again,
            closing(ours("best", best)) as at_best,
            closing(theirs("trainer")) as mimicry,
            closing(theirs("by_hand")) as bare,
        ):
            work = compared(counted_after_warm_up(plain.train, WARM_UP).heavy, counted(mimicry))
            for train in (again.train, at_best.train, bare.train):
                train(WARM_UP)
            arms = {"normlab": plain, "again": again, "best": at_best, "torch-mimicry": mimicry, "by hand": bare}
            windows = {name: partial(arm.train, arguments.steps) for name, arm in arms.items()}
            seconds = time_rounds(windows, arguments.rounds)
    return _report(arguments, best, seconds, work)


def python_with_mimicry() -> str:
    """Return an interpreter of an environment that has torch-mimicry beside all that this one has.

    Made once, in the cache folder. Raises DataError where pip cannot install it.
    """
    folder = cache_folder() / "benchmarks" / f"torch-mimicry-{VERSION}-python{sysconfig.get_python_version()}"
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    if not (purelib / "torch_mimicry").is_dir():
        venv.create(folder, clear=True, with_pip=False)
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
        result = subprocess.run([*command, f"torch-mimicry=={VERSION}"], capture_output=True, text=True)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or [f"it ended with {result.returncode}"])[-1]
            problem = f"pip cannot install it: {reason.removeprefix('ERROR: ')}"
            raise DataError(f"torch-mimicry {VERSION}", problem, "give pip a package index, or leave --mimicry out")
    shared = [*site.getsitepackages(), str(Path(normlab.__file__).parents[1])]
    lines = [f"import site; site.addsitedir({path!r})" for path in shared]
    (purelib / "shared.pth").write_text("\n".join(lines) + "\n")
    return str(python)


def mimicry_settings(arguments: argparse.Namespace, words: list[str]) -> RunConfig:
    """Return the settings of torch-mimicry's recipe, which is that of the paper."""
    return run_settings(
        [
            *("experiment=miyato_resnet", f"train.discriminator_steps={DISCRIMINATOR_STEPS}", "evaluation=none"),
            *(f"architecture.width={arguments.width}", f"train.batch_size={arguments.batch}", *words),
        ]
    )


def best_settings() -> list[str]:
    """Return what makes normlab fastest on this CPU: bfloat16 where it has units for it."""
    precision = "bf16" if has_bf16_units() else "fp32"
    return [f"precision={precision}", "memory_format=channels_last", "normalization.discriminator.advance=update"]


def has_bf16_units() -> bool:
    """Return whether the CPU multiplies in bfloat16, as far as Linux says so."""
    cpu = Path("/proc/cpuinfo")
    return cpu.is_file() and any(unit in cpu.read_text().split() for unit in BF16_UNITS)


def counted(worker: Worker) -> Counter[str]:
    worker.train(WARM_UP - 1)
    return worker.counted(1)


def compared(ours: Counter[str], theirs: Counter[str]) -> dict[str, Any]:
    """Return how many convolutions a step has, and which gradients of them only one of the two computes.

    Raises UnequalWork where the convolutions themselves differ.
    """
    passes, gradients = (
        [Counter({name: count for name, count in each.items() if name.startswith(kind)}) for each in (ours, theirs)]
        for kind in ("convolution", "gradient")
    )
    if passes[0] != passes[1]:
        raise UnequalWork(f"the convolutions of a step differ:\n{table(passes[0], passes[1], 'torch-mimicry')}")
    return {
        "convolutions": passes[0].total(),
        "gradients": {"normlab": gradients[0].total(), "torch-mimicry": gradients[1].total()},
        "only_normlab": dict(gradients[0] - gradients[1]),
        "only_torch_mimicry": dict(gradients[1] - gradients[0]),
        "what_differs": DIFFERENCES,
    }


def _report(
    arguments: argparse.Namespace, best: list[str], seconds: dict[str, list[Seconds]], work: dict[str, Any]
) -> Report:
    cpu = {name: [window.cpu for window in windows] for name, windows in seconds.items()}
    wall = {name: [window.wall for window in windows] for name, windows in seconds.items()}
    images = arguments.steps * arguments.batch * DISCRIMINATOR_STEPS
    speeds = {name: images / statistics.median(windows) for name, windows in wall.items()}
    ratio, control = ratio_of(cpu["normlab"], cpu["torch-mimicry"]), ratio_of(cpu["again"], cpu["normlab"])

    def against_trainer(arm: str) -> dict[str, Any]:
        speedups = {"cpu_speedup": cpu, "wall_speedup": wall}
        return {name: ratio_of(time["torch-mimicry"], time[arm])._asdict() for name, time in speedups.items()}

    arms = {
        "normlab, the same numerics": "normlab",
        f"normlab, {', '.join(best[:2])}": "best",
        "its networks in a loop by hand": "by hand",
    }
    same, at_best, by_hand = map(against_trainer, arms.values())
    values = {
        "benchmark": "trainer",
        "against": f"torch-mimicry {VERSION}",
        **ratio.headline(),
        **{"control": control.median, "control_low": control.low, "control_high": control.high},
        "rounds": arguments.rounds,
        "same_numerics": {"settings": "fp32, contiguous", **same},
        "best_settings": {"settings": best, "bf16_units": has_bf16_units(), **at_best},
        "by_hand": by_hand,
        "images_per_second": speeds,
        "work": work,
        "settings": {key: getattr(arguments, key) for key in ("width", "batch", "threads", "steps")},
        "environment": describe_environment(CPU, "fp32"),
    }
    lines = [
        f"torch-mimicry {VERSION}'s trainer on its SNGAN-32 against normlab's at equal widths, in images a second",
        f"  width {arguments.width}, batches of {arguments.batch}, {DISCRIMINATOR_STEPS} discriminator updates a step, "
        f"{arguments.threads} thread(s), {arguments.rounds} rounds of {arguments.steps} steps; "
        f"{'' if has_bf16_units() else 'no '}bf16 units",
        f"  same work   {work['convolutions']} convolutions a step; gradients {work['gradients']}",
        f"  torch-mimicry  {speeds['torch-mimicry']:.1f} images/s",
        *(
            f"  {name}  {speeds[arm]:.1f} images/s: {ratio_of(cpu['torch-mimicry'], cpu[arm])} times by CPU time, "
            f"{ratio_of(wall['torch-mimicry'], wall[arm])} by wall time"
            for name, arm in arms.items()
        ),
        f"  noise control  {control}  (normlab against itself, CPU time)",
    ]
    return Report(values, lines)
