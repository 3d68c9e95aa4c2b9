"""Measure normlab against what it is held against: `python scripts/benchmark.py NAME [--json]`.

    trainer    the trainer against the loop that one would write by hand, in the same numerics on the CPU: with the
               techniques that torch has in the same arithmetic, which weight and spectral normalization are not
    saving     a checkpoint against the training between two of them
    monitors   training with all that is measured on the way against training with nothing of it
    memory     what a run holds in memory over its steps
    normalizations
               each technique in the discriminator against none, per full step
    evaluation every score together against one bare pass of Inception over the samples
    gpu        on a GPU: steps that are replayed against steps that are computed anew, and each technique against none

A benchmark that compares times its arms in rounds, in another order every round, and one arm twice: the ratio of an arm
to itself is the noise control. The headline is CPU time, which other programs on the machine disturb less than wall
time. Exit codes: 0, 1 where the arms do not do the same work (no ratio is printed then), 5 where the control is outside
0.97 to 1.03, and those of normlab for what it refuses.
"""

import argparse
import gc
import json
import math
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from normlab import assemble, launching
from normlab.assemble import Materials
from normlab.composition import configure
from normlab.config import RunConfig
from normlab.data.images import Dataset, Images
from normlab.errors import DONE, ConfigurationError, NormlabError
from normlab.evaluation.classes import classifier_score
from normlab.evaluation.frechet import Moments, frechet_distance
from normlab.evaluation.inception import InceptionFeatures
from normlab.evaluation.kernel import kernel_distance
from normlab.evaluation.manifold import overlap
from normlab.evaluation.statistics import Pass, RealStatistics, pass_over, scores
from normlab.normalizations import TECHNIQUES
from normlab.outputs.environment import describe_environment
from normlab.outputs.run_dir import RunDir
from normlab.outputs.sinks import open_log
from normlab.settings import Length
from normlab.training.pace import pace_of
from normlab.training.step import Step
from normlab.training.stopping import Stop
from normlab.training.trainer import Trainer

UNEQUAL_WORK = 1
NOISY = 5
QUIET = (0.97, 1.03)
CPU = torch.device("cpu")

# --- Timing ---------------------------------------------------------------------------------------------------------


class Seconds(NamedTuple):
    """How long a window took: CPU time over all threads of the process, and wall time."""

    cpu: float
    wall: float


class Ratio(NamedTuple):
    """The median of the rounds' ratios and its interval, of at least 95 % where there are 6 rounds or more."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f}  [{self.low:.3f}, {self.high:.3f}]"


def in_turn(names: list[str], round_number: int) -> list[str]:
    """Return the order of a round: rotated by one each time and flipped every other time.

    Over 6 rounds each of three arms stands twice in every place, and each order occurs once.
    """
    shift = round_number % len(names)
    order = names[shift:] + names[:shift]
    return order[::-1] if round_number % 2 else order


def time_rounds(arms: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[Seconds]]:
    """Return the seconds of each arm in each round."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in arms}
    for round_number in range(rounds):
        for name in in_turn(list(arms), round_number):
            gc.collect()  # what the arm before has left is not this one's to clear away
            cpu, wall = time.process_time(), time.perf_counter()
            arms[name]()
            seconds[name].append(Seconds(time.process_time() - cpu, time.perf_counter() - wall))
    return seconds


def ratio_of(numerators: list[float], denominators: list[float]) -> Ratio:
    """Return the median of the ratios and the interval between the order statistics that enclose it."""
    ratios = sorted(a / b for a, b in zip(numerators, denominators, strict=True))
    count = len(ratios)
    # The true median lies below the k-th smallest ratio with the probability of fewer than k heads in as many throws.
    tails = [2 * sum(math.comb(count, heads) for heads in range(k)) / 2**count for k in range(1, count + 1)]
    dropped = max(sum(tail <= 0.05 for tail in tails) - 1, 0)
    return Ratio(statistics.median(ratios), ratios[dropped], ratios[count - 1 - dropped])


def is_quiet(control: float) -> bool:
    """Return whether an arm took as long as itself, near enough for its ratios to be believed."""
    return QUIET[0] <= control <= QUIET[1]


# --- Work -----------------------------------------------------------------------------------------------------------


class Work(TorchDispatchMode):
    """Counts the operations of a block: the heavy ones by shape, the rest by name."""

    def __init__(self) -> None:
        super().__init__()
        self.heavy: Counter[str] = Counter()
        self.light: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket).removeprefix("aten.")
        if name == "convolution":
            self.heavy[f"{name} of {_shape(args[0])} by {_shape(args[1])}"] += 1
        elif name == "convolution_backward":
            wanted = zip(("input", "weight", "bias"), args[-1], strict=True)
            gradients = "+".join(what for what, is_wanted in wanted if is_wanted)
            self.heavy[f"gradient of {_shape(args[1])} by {_shape(args[2])}: {gradients}"] += 1
        elif name == "_fused_adam_":
            self.heavy[f"Adam step of {len(args[0])} tensors"] += 1
        else:
            self.light[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def operations(self) -> int:
        return self.heavy.total() + self.light.total()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def table(ours: Counter[str], theirs: Counter[str]) -> str:
    """Return both counts of every operation, a line each."""
    names = sorted({*ours, *theirs})
    width = max(map(len, names))
    rows = [f"  {name:<{width}}  {ours[name]:>7}  {theirs[name]:>7}" for name in names]
    return "\n".join([f"  {'':<{width}}  normlab     bare", *rows])


# --- Reports --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What a benchmark found: `values` for machines, which hold `control`, and `lines` for people."""

    values: dict[str, Any]
    lines: list[str]


class UnequalWork(Exception):
    """The arms do not compute the same, so that a ratio of their times would mean nothing."""


# --- trainer --------------------------------------------------------------------------------------------------------

LOG_EVERY = 50  # steps between two rows of metrics.jsonl, as by default
# Windows begin and end between two rows, so that each of them holds all that are due in it.
WARM_UP = LOG_EVERY + LOG_EVERY // 2
AGREEING_STEPS = 5
TOLERANCE = 1e-4  # relative, between losses: rounding, amplified over the steps by Adam


def trainer(arguments: argparse.Namespace) -> Report:
    """Time `Trainer.train` as `normlab train` runs it, rows, status, log and TensorBoard included, against `BareLoop`.

    Grids, checkpoints, evaluations and exact spectra, which the bare loop has none of, are never due. Raises
    UnequalWork where the two differ in their convolutions, their gradients or their optimizer steps, or in their losses
    from one and the same start over the first steps.
    """
    settings = trainer_settings(arguments)
    materials = assemble.gather(settings, CPU)
    torch.manual_seed(settings.seed)
    difference = largest_difference(settings, materials)
    with TemporaryDirectory() as folder, quietly(Path(folder) / "stderr"):
        open_log(Path(folder) / "run.log")
        with (
            closing(Windows(settings, materials, Path(folder) / "normlab")) as normlab,
            closing(Windows(settings, materials, Path(folder) / "again")) as again,
        ):
            bare = BareLoop(settings, normlab.trainer.step)
            loops: dict[str, Callable[[int], None]] = {
                "normlab": normlab.train,
                "bare": bare.train,
                "again": again.train,
            }
            work = {name: counted_after_warm_up(train, WARM_UP) for name, train in loops.items()}
            require_same_work(work["normlab"], work["bare"])
            windows = {name: _window(train, arguments.steps) for name, train in loops.items()}
            seconds = time_rounds(windows, arguments.rounds)
    return _trainer_report(arguments, settings, seconds, work, difference)


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


class WindowEnd(Exception):
    """A window of steps is over."""


class Windows(Stop):
    """A run of normlab that is left after so many steps, and entered again, where it asks whether to stop."""

    def __init__(self, settings: RunConfig, materials: Materials, folder: Path) -> None:
        super().__init__()
        run_dir = RunDir(folder)
        run_dir.create()
        self.end: int | None = None
        self.trainer: Trainer = assemble.assemble(settings, materials, run_dir, CPU, self)

    def train(self, steps: int) -> None:
        self.end = self.trainer.state.step + steps
        try:
            self.trainer.train()
        except WindowEnd:
            return
        raise ValueError(f"the run ended before step {self.end}")

    def close(self) -> None:
        self.trainer.recorder.close()

    def requested(self) -> bool:
        if self.trainer.state.step == self.end:
            raise WindowEnd
        return super().requested()


class BareLoop:
    """The loop that one writes by hand: plain layers, two optimizers, images in memory, and nothing that looks on.

    It has the images and the weights of a step of normlab, copied, and optimizers of its own.
    """

    def __init__(self, settings: RunConfig, step: Step) -> None:
        width = int(settings.architecture.params["width"])
        self.batch_size = settings.train.batch_size
        self.pixels = torch.tensor(step.real.images.pixels[:])
        self.generator = plain_generator(width)
        self.discriminator = plain_discriminator(width, settings.normalization.discriminator.name)
        copy_weights(step.state.generator, self.generator)
        copy_weights(step.state.discriminator, self.discriminator)
        betas = (0.5, 0.999)
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), lr=2e-4, betas=betas, fused=True)
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=2e-4, betas=betas, fused=True
        )
        self.ones, self.zeros = torch.ones(self.batch_size), torch.zeros(self.batch_size)
        self.batches = self.shuffled()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step(next(self.batches), self.latents(), self.latents())

    def step(self, real: Tensor, latents: Tensor, more_latents: Tensor) -> tuple[Tensor, Tensor]:
        """Update the discriminator, then the generator, and return their losses."""
        with torch.no_grad():
            fake = self.generator(latents)
        real_scores, fake_scores = self.discriminator(real), self.discriminator(fake)
        discriminator_loss = F.binary_cross_entropy_with_logits(
            real_scores, self.ones
        ) + F.binary_cross_entropy_with_logits(fake_scores, self.zeros)
        self.discriminator_optimizer.zero_grad()
        discriminator_loss.backward()
        self.discriminator_optimizer.step()

        self.discriminator.requires_grad_(False)
        scores = self.discriminator(self.generator(more_latents))
        generator_loss = F.binary_cross_entropy_with_logits(scores, self.ones)
        self.generator_optimizer.zero_grad()
        generator_loss.backward()
        self.generator_optimizer.step()
        self.discriminator.requires_grad_(True)
        return discriminator_loss.detach(), generator_loss.detach()

    def shuffled(self) -> Iterator[Tensor]:
        while True:
            for indices in torch.randperm(len(self.pixels)).split(self.batch_size):
                if len(indices) == self.batch_size:
                    yield self.pixels[indices].float().div_(127.5).sub_(1)

    def latents(self) -> Tensor:
        return torch.randn(self.batch_size, 100)


def plain_generator(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (100, 1, 1)),
        nn.ConvTranspose2d(100, 4 * width, 4),
        nn.BatchNorm2d(4 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        nn.Tanh(),
    )


# Techniques that torch has in the same arithmetic; its spectral and weight norm recompute the weight in every pass.
PLAIN_TECHNIQUES: dict[str, Callable[[int], list[nn.Module]]] = {
    "none": lambda channels: [],
    "batch": lambda channels: [nn.BatchNorm2d(channels)],
    "instance": lambda channels: [nn.InstanceNorm2d(channels, affine=True)],
    "layer": lambda channels: [nn.GroupNorm(1, channels)],
    "group": lambda channels: [nn.GroupNorm(channels // 16, channels)],
}


def plain_discriminator(width: int, technique: str) -> nn.Sequential:
    norm = PLAIN_TECHNIQUES[technique]
    return nn.Sequential(
        nn.Conv2d(1, width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        *norm(2 * width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
        *norm(4 * width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(4 * width, 1, 4),
        nn.Flatten(0),
    )


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy the parameters in the order of the layers, which the two share under different names."""
    for theirs, own in zip(source.parameters(), target.parameters(), strict=True):
        own.copy_(theirs)


def largest_difference(settings: RunConfig, materials: Materials) -> float:
    """Return by how much, relative to their size, the two loops' losses differ over the first steps.

    Both begin with the same weights and see the same images and latents. Raises UnequalWork beyond rounding.
    """
    step = assemble.build_step(settings, materials.dataset, materials.real, CPU)
    bare = BareLoop(settings, step)
    largest = 0.0
    for _ in range(AGREEING_STEPS):
        real = step.real.batch(step.state.images_seen)
        losses = bare.step(real, step.latents("discriminator 0"), step.latents("generator"))
        scalars = step.take()
        for name, loss in zip(("loss/discriminator", "loss/generator"), losses, strict=True):
            ours, theirs = float(scalars[name]), float(loss)
            largest = max(largest, abs(ours - theirs) / abs(theirs))
    if not largest <= TOLERANCE:
        raise UnequalWork(f"the losses differ by {largest:.1e} of their size within {AGREEING_STEPS} steps")
    return largest


def counted_after_warm_up(train: Callable[[int], None], steps: int) -> Work:
    """Train up to where the first window begins and return the work of the last step before it."""
    train(steps - 1)
    with Work() as work:
        train(1)
    return work


def require_same_work(ours: Work, theirs: Work) -> None:
    if ours.heavy != theirs.heavy:
        raise UnequalWork(f"the operations of a step differ:\n{table(ours.heavy, theirs.heavy)}")


@contextmanager
def quietly(path: Path) -> Generator[None]:
    """Send standard error, where a run off a terminal tells its progress, to a file."""
    with path.open("w") as file, redirect_stderr(file):
        yield


def _window(train: Callable[[int], None], steps: int) -> Callable[[], None]:
    return lambda: train(steps)


def _trainer_report(
    arguments: argparse.Namespace,
    settings: RunConfig,
    seconds: dict[str, list[Seconds]],
    work: dict[str, Work],
    difference: float,
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
        **{"ratio": ratio.median, "low": ratio.low, "high": ratio.high},
        **{"control": control.median, "control_low": control.low, "control_high": control.high},
        "rounds": arguments.rounds,
        **{"wall_ratio": wall_ratio.median, "wall_low": wall_ratio.low, "wall_high": wall_ratio.high},
        "wall_control": wall_control.median,
        "cpu_milliseconds_per_step": milliseconds,
        "operations_per_step": operations,
        "convolutions_and_optimizer_steps": dict(work["bare"].heavy),
        "largest_loss_difference": difference,
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
        f"  noise control       {control}  (normlab against itself, CPU time; wall {wall_control.median:.3f})",
    ]
    return Report(values, lines)


# --- saving ---------------------------------------------------------------------------------------------------------


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
    with TemporaryDirectory(dir=arguments.folder) as folder, quietly(Path(folder) / "stderr"):
        open_log(Path(folder) / "run.log")
        with (
            closing(Windows(without_extras(settings), materials, Path(folder) / "run")) as run,
            closing(Windows(without_extras(settings), materials, Path(folder) / "again")) as again,
        ):
            run.train(WARM_UP)
            again.train(WARM_UP)
            seconds = time_rounds(
                {
                    "training": _window(run.train, steps),
                    "saving": lambda: run.trainer.save(must=True),
                    "again": _window(again.train, steps),
                },
                arguments.rounds,
            )
            size = max(path.stat().st_size for path in run.trainer.checkpoints.folder.glob("*.pt"))
    medians = {name: _medians(windows) for name, windows in seconds.items()}
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


def run_settings(changes: list[str]) -> RunConfig:
    """Return the default configuration on the CPU with some changes, as a command line gives them."""
    settings, complaints = configure(["device=cpu", *changes])
    return launching.checked(settings, complaints)


def without_extras(settings: RunConfig) -> RunConfig:
    """Return settings with which a run has rows of scalars, but nothing else besides, and does not end."""
    never = replace(settings.every, sample=None, checkpoint=None, evaluate=None, spectra=None)
    return replace(settings, every=never, train=replace(settings.train, until=Length(1e9, "steps")))


def _medians(windows: list[Seconds]) -> Seconds:
    return Seconds(*(statistics.median(values) for values in zip(*windows, strict=True)))


# --- monitors -------------------------------------------------------------------------------------------------------


def monitors(arguments: argparse.Namespace) -> Report:
    """Time training with what is measured of layers and scores, at its default rates, against training without.

    Of rows of scalars, which both have, one arm has what the other does not: estimates of sigma, accuracy and spread of
    the scores. The exact spectra, their rows and their picture are timed on their own, and count once in as many steps
    as lie between two of them.
    """
    settings = run_settings(arguments.changes)
    materials = assemble.gather(settings, CPU)
    rate = settings.every.spectra
    if rate is None:
        raise ConfigurationError(
            "every.spectra", "is null, so that nothing is measured", "give steps, epochs or images"
        )
    between = pace_of(settings, len(materials.dataset.train)).steps(rate)
    plain = without_extras(settings)
    with TemporaryDirectory() as folder, quietly(Path(folder) / "stderr"):
        open_log(Path(folder) / "run.log")
        with (
            closing(Windows(plain, materials, Path(folder) / "with")) as monitored,
            closing(Windows(plain, materials, Path(folder) / "without")) as bare,
            closing(Windows(plain, materials, Path(folder) / "again")) as again,
        ):
            arms = {
                "with": _window(monitored.train, arguments.steps),
                "without": _unmonitored(_window(bare.train, arguments.steps)),
                "again": _unmonitored(_window(again.train, arguments.steps)),
                "measuring": lambda: monitored.trainer.measure(),
            }
            for run in (monitored, bare, again):
                run.train(WARM_UP)
            seconds = time_rounds(arms, arguments.rounds)
    return _monitors_report(arguments, settings, seconds, between)


def _unmonitored(window: Callable[[], None]) -> Callable[[], None]:
    def train() -> None:
        with (
            patch("normlab.training.spectra.estimate", lambda step: {}),
            patch("normlab.training.step.describe_scores", lambda real, fake: {}),
        ):
            window()

    return train


def _monitors_report(
    arguments: argparse.Namespace, settings: RunConfig, seconds: dict[str, list[Seconds]], between: int
) -> Report:
    windows = between / arguments.steps
    cpu = {name: [window.cpu for window in rounds] for name, rounds in seconds.items()}
    wall = {name: [window.wall for window in rounds] for name, rounds in seconds.items()}

    def ratio_with(time: dict[str, list[float]]) -> Ratio:
        whole = [windows * a + b for a, b in zip(time["with"], time["measuring"], strict=True)]
        return ratio_of(whole, [windows * each for each in time["without"]])

    ratio, wall_ratio, of_rows = ratio_with(cpu), ratio_with(wall), ratio_of(cpu["with"], cpu["without"])
    control = ratio_of(cpu["again"], cpu["without"])
    medians = {name: _medians(rounds) for name, rounds in seconds.items()}
    values = {
        "benchmark": "monitors",
        **{"ratio": ratio.median, "low": ratio.low, "high": ratio.high},
        **{"control": control.median, "control_low": control.low, "control_high": control.high},
        "rounds": arguments.rounds,
        **{"wall_ratio": wall_ratio.median, "wall_low": wall_ratio.low, "wall_high": wall_ratio.high},
        **{"rows_ratio": of_rows.median, "rows_low": of_rows.low, "rows_high": of_rows.high},
        "steps_between": between,
        "seconds": {name: each._asdict() for name, each in medians.items()},
        "settings": {"changes": arguments.changes, "steps": arguments.steps, "threads": arguments.threads},
        "environment": describe_environment(CPU, settings.precision),
    }
    lines = [
        "training with all that is measured on the way, against training without",
        f"  {settings.label}, {between} steps between two measurements of {medians['measuring'].cpu:.3f} s, "
        f"{arguments.rounds} rounds of {arguments.steps} steps of {medians['without'].cpu / arguments.steps:.4f} s",
        f"  CPU time, ratio   {ratio}",
        f"  wall time, ratio  {wall_ratio}",
        f"  of rows alone     {of_rows}",
        f"  noise control     {control}  (without against itself, CPU time)",
    ]
    return Report(values, lines)


# --- memory ---------------------------------------------------------------------------------------------------------

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

    with TemporaryDirectory() as folder, quietly(Path(folder) / "stderr"):
        open_log(Path(folder) / "run.log")
        run_dir = RunDir(Path(folder) / "run")
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


# --- normalizations -------------------------------------------------------------------------------------------------

REFERENCE, AGAIN = "none", "none, again"


def normalizations(arguments: argparse.Namespace) -> Report:
    """Time a full step of a GAN under each technique in the discriminator against one under none.

    The generator has batch normalization, and the images are the digits. The operations of a step are counted, too.
    """
    techniques = [name for name in arguments.techniques if name != REFERENCE]
    steps = {name: technique_step(arguments, name.partition(",")[0]) for name in (REFERENCE, AGAIN, *techniques)}
    operations = {name: counted_after_warm_up(_takes(step), 3).operations for name, step in steps.items()}
    windows = {name: _window(_takes(step), arguments.steps) for name, step in steps.items()}
    seconds = time_rounds(windows, arguments.rounds)
    cpu = {name: [window.cpu for window in seconds[name]] for name in seconds}
    control = ratio_of(cpu[AGAIN], cpu[REFERENCE])
    ratios = {name: ratio_of(cpu[name], cpu[REFERENCE]) for name in techniques}
    chosen = {key: getattr(arguments, key) for key in ("width", "batch", "size", "threads", "steps")}
    values = {
        "benchmark": "normalizations",
        "ratio": max((ratio.median for ratio in ratios.values()), default=1.0),
        "ratios": {name: ratio._asdict() for name, ratio in ratios.items()},
        **{"control": control.median, "control_low": control.low, "control_high": control.high},
        "rounds": arguments.rounds,
        "operations_per_step": {name: operations[name] for name in (REFERENCE, *techniques)},
        "cpu_milliseconds_per_step": 1000 * statistics.median(cpu[REFERENCE]) / arguments.steps,
        "settings": chosen,
        "environment": describe_environment(CPU, "fp32"),
    }
    width = max(map(len, ratios), default=0)
    lines = [
        "a step of a GAN with a technique in the discriminator, against one without",
        f"  dcgan at {arguments.size} px of width {arguments.width}, G:batch, batches of {arguments.batch}, fp32, "
        f"{arguments.threads} thread(s), {arguments.rounds} rounds of {arguments.steps} step(s)",
        *(
            f"  {name:<{width}}  CPU time {ratio}  {operations[name]} operations against {operations[REFERENCE]}"
            for name, ratio in ratios.items()
        ),
        f"  noise control  {control}  (none against itself)",
    ]
    return Report(values, lines)


def technique_step(arguments: argparse.Namespace, name: str) -> Step:
    """Return a step with a technique in the discriminator and batch normalization in the generator."""
    settings = run_settings(
        [
            *(f"dataset.image_size={arguments.size}", f"architecture.width={arguments.width}"),
            *(f"train.batch_size={arguments.batch}", f"normalization={name}", "evaluation=none"),
        ]
    )
    dataset = assemble.open_dataset(settings)
    return assemble.build_step(settings, dataset, assemble.open_batches(settings, dataset, CPU), CPU)


def _takes(step: Step) -> Callable[[int], None]:
    def take(count: int) -> None:
        for _ in range(count):
            step.take()

    return take


# --- evaluation -----------------------------------------------------------------------------------------------------


def evaluation(arguments: argparse.Namespace) -> Report:
    """Time what an evaluation does against Inception's pass over as many samples, with the real statistics at hand.

    The pass, and what accompanies it batch by batch, are timed on a few images and scaled up, since they take the same
    for each; what follows the pass is timed whole, on features drawn at random in the numbers of an evaluation.
    """
    rng = torch.Generator().manual_seed(0)
    with TemporaryDirectory() as folder:
        weights = Path(folder) / "random.pth"
        write_random_inception(weights)
        extractor = InceptionFeatures(weights, CPU)
    images = torch.randint(256, (arguments.images, 3, 32, 32), generator=rng, dtype=torch.uint8)
    batches = images.split(arguments.batch)
    kept = torch.ones(arguments.images, dtype=torch.bool)
    real, fake = (random_pass(count, extractor.dimensions, rng) for count in (arguments.kept, arguments.samples))
    of_real = RealStatistics.of(real)

    def bare() -> None:
        for batch in batches:
            extractor.extract(batch)

    seconds = time_rounds(
        {
            "bare": bare,
            "pass": lambda: pass_over(batches, extractor, kept),
            "scores": lambda: scores(of_real, fake, published=True, splits=10),
            "again": bare,
        },
        arguments.rounds,
    )
    each = time_rounds(
        {
            "fid": lambda: frechet_distance(of_real.moments, fake.moments, of_real.factor),
            "inception_score": lambda: classifier_score(fake.logits, 10),
            "kid": lambda: kernel_distance(of_real.kept, fake.kept, of_real.within),
            "precision, recall, density, coverage": lambda: overlap(of_real.kept, fake.kept, of_real.balls),
        },
        3,
    )
    of_each = {name: statistics.median(window.cpu for window in windows) for name, windows in each.items()}
    cpu = {name: [window.cpu for window in windows] for name, windows in seconds.items()}
    share = arguments.samples / arguments.images
    together = [share * passing + scoring for passing, scoring in zip(cpu["pass"], cpu["scores"], strict=True)]
    ratio = ratio_of(together, [share * window for window in cpu["bare"]])
    control = ratio_of(cpu["again"], cpu["bare"])
    medians = {name: statistics.median(windows) for name, windows in cpu.items()}
    chosen = {key: getattr(arguments, key) for key in ("samples", "kept", "images", "batch", "threads", "rounds")}
    values = {
        "benchmark": "evaluation",
        **{"ratio": ratio.median, "low": ratio.low, "high": ratio.high},
        **{"control": control.median, "control_low": control.low, "control_high": control.high},
        **chosen,
        "seconds": medians,
        "seconds_of_each": of_each,
        "environment": describe_environment(CPU, "fp32"),
    }
    lines = [
        f"every score of {arguments.samples:,} samples against a bare pass of Inception over them, CPU time",
        f"  ratio          {ratio}",
        f"  noise control  {control}  (the pass against itself)",
        f"  a pass over {arguments.images} images {medians['bare']:.2f} s, with moments and features kept "
        f"{medians['pass']:.2f} s; all scores {medians['scores']:.2f} s",
        *(f"  {name}  {taken:.2f} s" for name, taken in of_each.items()),
    ]
    return Report(values, lines)


def random_pass(count: int, dimensions: int, rng: torch.Generator) -> Pass:
    """Return what a pass over so many images would leave, with features and logits drawn at random."""
    features = torch.randn(count, dimensions, generator=rng).relu()
    logits = torch.randn(count, 1008, generator=rng)
    moments = [Moments.of(part) for part in features.split(500)]
    total = moments[0]
    for part in moments[1:]:
        total += part
    return Pass(total, features, [logits])


def write_random_inception(path: Path) -> None:
    """Write a file of random weights in the form of the published ones, which are as fast."""
    torch.save({}, path)
    original = FeatureExtractorInceptionV3.load_state_dict
    try:
        FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None  # pyright: ignore
        network = FeatureExtractorInceptionV3("random", ["2048"], str(path))
    finally:
        FeatureExtractorInceptionV3.load_state_dict = original
    torch.save(network.state_dict(), path)


# --- gpu ------------------------------------------------------------------------------------------------------------

CASES = {
    "dcgan_32": (32, ["architecture=dcgan"]),
    "dcgan_64": (64, ["architecture=dcgan", "dataset.image_size=64"]),
    "sngan_cnn": (32, ["architecture=sngan_cnn"]),
    "sngan_resnet": (32, ["architecture=sngan_resnet"]),
    "sngan_resnet_5": (32, ["architecture=sngan_resnet", "train.discriminator_steps=5"]),
}
PRODUCT = 8192  # rows and columns of the matrices whose product shows how fast the device can be


def gpu(arguments: argparse.Namespace) -> Report:
    """Time full steps on a GPU, as they come and replayed from a captured graph, for each technique of a discriminator.

    The networks have their published widths and see random colours; the generator has batch normalization. The floor is
    the time that the step's convolutions and products would take at the rate of one large product in bfloat16.
    """
    device = assemble.choose_device(run_settings(["device=cuda"]).device)  # refused where there is none
    assemble.set_float32_precision(arguments.precision)
    techniques = [REFERENCE, *(name for name in arguments.techniques if name != REFERENCE)]
    peak = product_rate(device)
    rows: list[dict[str, Any]] = []
    controls: list[float] = []
    for case in arguments.case or CASES:
        size, words = CASES[case]
        words = [*words, f"train.batch_size={arguments.batch}", f"precision={arguments.precision}", "evaluation=none"]

        def step_of(technique: str, capture: str, size: int = size, words: list[str] = words) -> Step:
            settings = run_settings(["device=cuda", *words, f"normalization={technique}", f"train.capture={capture}"])
            images = random_colours(size)
            return assemble.build_step(settings, images, assemble.open_batches(settings, images, device), device)

        anew = {name: step_of(name, "none") for name in techniques}
        steps = {name: step_of(name, "graph") for name in techniques}
        again = step_of(REFERENCE, "graph")
        flops = {name: floating_operations(step) for name, step in anew.items()}
        launches = {name: kernel_launches(step) for name, step in anew.items()}
        arms = {f"{name}, anew": step for name, step in anew.items()} | steps | {AGAIN: again}
        windows = {name: _synchronized(_window(_takes(step), arguments.steps)) for name, step in arms.items()}
        for window in windows.values():
            window()
        seconds = time_rounds(windows, arguments.rounds)
        wall = {name: [window.wall / arguments.steps for window in seconds[name]] for name in seconds}
        controls.append(ratio_of(wall[AGAIN], wall[REFERENCE]).median)
        for name in techniques:
            step = steps[name]
            captured = statistics.median(wall[name])
            rows.append(
                {
                    **{
                        "case": case,
                        "technique": name,
                        "captured": step.capture is not None and not step.capture.impossible,
                    },
                    "anew_milliseconds": 1000 * statistics.median(wall[f"{name}, anew"]),
                    "captured_milliseconds": 1000 * captured,
                    "speedup": ratio_of(wall[f"{name}, anew"], wall[name])._asdict(),
                    "cost": ratio_of(wall[name], wall[REFERENCE])._asdict(),
                    "images_per_second": step.discriminator_steps * step.batch_size / captured,
                    "launches_per_step": launches[name],
                    "share_of_floor": flops[name] / peak / captured,
                }
            )
    control = max(controls, key=lambda ratio: abs(ratio - 1), default=1.0)
    values = {
        "benchmark": "gpu",
        "ratio": min((row["speedup"]["median"] for row in rows), default=1.0),
        **{"rows": rows, "control": control, "rounds": arguments.rounds},
        "product_teraflops": peak / 1e12,
        "settings": {key: getattr(arguments, key) for key in ("batch", "precision", "steps")},
        "environment": describe_environment(device, arguments.precision),
    }
    lines = [
        "full steps on a GPU, computed anew and replayed from a captured graph",
        f"  {torch.cuda.get_device_name(device)}, batches of {arguments.batch}, {arguments.precision}, "
        f"{arguments.rounds} rounds of {arguments.steps} steps; one large product runs at {peak / 1e12:.0f} TFLOP/s",
        *(
            f"  {row['case']:<14}  {row['technique']:<29}  {row['anew_milliseconds']:7.2f} ms anew, "
            f"{row['captured_milliseconds']:6.2f} ms captured ({row['speedup']['median']:.1f} times as fast), "
            f"{row['cost']['median']:.3f} of none, {row['images_per_second']:,.0f} images/s, "
            f"{row['launches_per_step']} launches, {100 * row['share_of_floor']:.0f} % of the floor"
            for row in rows
        ),
        f"  noise control  {control:.3f}  (none against itself, the worst of {len(controls)})",
    ]
    return Report(values, lines)


def random_colours(size: int) -> Dataset:
    rng = np.random.default_rng(0)
    train, held_out = (
        Images(rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8), rng.integers(0, 10, count))
        for count in (4096, 256)
    )
    return Dataset("random", train, held_out, tuple("0123456789"), "0" * 64, flip=False, notes=())


def product_rate(device: torch.device) -> float:
    """Return how many operations a second a device makes in a large product of random bfloat16 matrices."""
    A, B = (torch.randn(PRODUCT, PRODUCT, device=device, dtype=torch.bfloat16) for _ in range(2))
    window = _synchronized(lambda: [A @ B for _ in range(10)])
    window()
    seconds = time_rounds({"product": window}, 5)["product"]
    return 10 * 2 * PRODUCT**3 / statistics.median(window.wall for window in seconds)


class Flops(TorchDispatchMode):
    """Counts what convolutions and products compute in a block; torch's own counter cannot follow `autograd.grad`."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def floating_operations(step: Step) -> int:
    """Return how many operations the convolutions and products of a step make, forward and backward."""
    with Flops() as flops:
        step.take()
    return flops.total


def kernel_launches(step: Step) -> int:
    """Return how many kernels a step launches; it takes two."""
    step.take()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step.take()
        torch.cuda.synchronize()
    events = profile.events() or []
    return sum(_is_kernel(event.name) for event in events if event.device_type.name == "CUDA")


def _is_kernel(name: str) -> bool:
    return not name.startswith(("Memcpy", "Memset"))


def _synchronized(window: Callable[[], object]) -> Callable[[], None]:
    """Return a window that lasts until the device has done its work."""

    def synchronized() -> None:
        window()
        torch.cuda.synchronize()

    return synchronized


# --- Command line ---------------------------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> int:
    """Run the benchmark that the command line names and return the exit code."""
    arguments = _parser().parse_args(words)
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
    control = report.values.get("control")
    if control is not None and not is_quiet(control):
        problem = f"an arm took {control:.3f} times as long as itself, outside {QUIET[0]} to {QUIET[1]}"
        print(f"error: control: {problem} — the machine is too noisy: wait, or give more rounds", file=sys.stderr)
        return NOISY
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = parser.add_subparsers(required=True, metavar="NAME")
    _add_trainer(benchmarks.add_parser("trainer", help="the trainer against the loop that one would write by hand"))
    _add_saving(benchmarks.add_parser("saving", help="a checkpoint against the training between two of them"))
    _add_monitors(benchmarks.add_parser("monitors", help="training with all that is measured against without"))
    _add_memory(benchmarks.add_parser("memory", help="what a run holds in memory over its steps"))
    _add_normalizations(
        benchmarks.add_parser("normalizations", help="each technique in the discriminator against none")
    )
    _add_evaluation(benchmarks.add_parser("evaluation", help="every score against one bare pass of Inception"))
    _add_gpu(benchmarks.add_parser("gpu", help="on a GPU: replayed steps against steps computed anew"))
    return parser


def _add_gpu(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, gpu)
    parser.add_argument("--rounds", type=_positive, default=6)
    parser.add_argument("--steps", type=_positive, default=20, help="steps of a window")
    parser.add_argument("--batch", type=_positive, default=64)
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="bf16")
    parser.add_argument("--case", action="append", choices=CASES, help="may be given several times; all by default")
    parser.add_argument("techniques", nargs="*", metavar="TECHNIQUE", default=["spectral"], help="beside none")


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, evaluation)
    parser.add_argument("--rounds", type=_positive, default=6)
    parser.add_argument("--samples", type=_positive, default=5000, help="of an evaluation")
    parser.add_argument("--kept", type=_positive, default=10_000, help="real images whose features are kept")
    parser.add_argument("--images", type=_positive, default=64, help="that passes are timed on")
    parser.add_argument("--batch", type=_positive, default=32)


def _add_normalizations(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, normalizations)
    parser.add_argument("--rounds", type=_positive, default=9)
    parser.add_argument("--steps", type=_positive, default=1, help="steps of a window")
    parser.add_argument("--size", type=_positive, default=64, help="pixels of the images")
    parser.add_argument("--width", type=_positive, default=64)
    parser.add_argument("--batch", type=_positive, default=64)
    usual = [name for name in TECHNIQUES.names() if name != "conditional_batch"]
    parser.add_argument("techniques", nargs="*", metavar="TECHNIQUE", default=usual, help="all by default")


def _add_saving(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, saving)
    parser.add_argument("--rounds", type=_positive, default=9)
    parser.add_argument("--folder", type=Path, default=None, help="where the checkpoints go, on the disk in question")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="settings of the run, by default the defaults")


def _add_monitors(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, monitors)
    parser.add_argument("--rounds", type=_positive, default=9)
    parser.add_argument("--steps", type=_whole_intervals, default=50, help="steps of a window, whole intervals of rows")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="settings of the run, by default the defaults")


def _add_memory(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, memory)
    parser.add_argument("--steps", type=_positive, default=10_000)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="settings of the run, by default a small one's")


def _add_common(parser: argparse.ArgumentParser, benchmark: Callable[[argparse.Namespace], Report]) -> None:
    parser.set_defaults(benchmark=benchmark)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--threads", type=_positive, default=1, help="more than 1 count what they spend waiting as well"
    )


def _add_trainer(parser: argparse.ArgumentParser) -> None:
    _add_common(parser, trainer)
    parser.add_argument("--rounds", type=_positive, default=9)
    parser.add_argument("--steps", type=_whole_intervals, default=50, help="steps of a window, whole intervals of rows")
    parser.add_argument("--technique", choices=PLAIN_TECHNIQUES, default="none", help="of the discriminator")
    parser.add_argument("--width", type=_positive, default=32)
    parser.add_argument("--batch", type=_positive, default=64)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _whole_intervals(text: str) -> int:
    steps = _positive(text)
    if steps % LOG_EVERY:
        raise argparse.ArgumentTypeError(f"{text} is no multiple of {LOG_EVERY}, the steps between two rows")
    return steps


if __name__ == "__main__":
    sys.exit(main())
