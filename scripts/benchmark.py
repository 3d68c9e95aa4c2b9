"""Measure normlab against what it is held against: `python scripts/benchmark.py NAME [--json]`.

    trainer    the trainer against the loop that one would write by hand, in the same numerics on the CPU

Each benchmark times its arms in rounds, in another order every round, and one arm twice: the ratio of an arm to itself
is the noise control. The headline is CPU time, which other programs on the machine disturb less than wall time.
Exit codes: 0, 1 where the arms do not do the same work (no ratio is printed then), 5 where the control is outside
0.97 to 1.03, and those of normlab for what it refuses.
"""

import argparse
import gc
import json
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from normlab import assemble, launching
from normlab.config import EveryConfig, RunConfig
from normlab.data.images import Dataset
from normlab.errors import DONE, NormlabError
from normlab.outputs.environment import describe_environment
from normlab.outputs.run_dir import RunDir
from normlab.outputs.sinks import open_log
from normlab.settings import NonNegativeInt, PositiveInt
from normlab.training.state import TrainState
from normlab.training.stopping import Stop
from normlab.training.trainer import Trainer
from normlab.verbs.train import configure

UNEQUAL_WORK = 1
NOISY = 5
QUIET = (0.97, 1.03)

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


def time_rounds(arms: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[Seconds]]:
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

LOG_EVERY = EveryConfig().log
LEAD = 25  # so many steps after a row of metrics.jsonl a window begins and ends: it holds every row that is due in it
AGREEING_STEPS = 5
TOLERANCE = 1e-4  # relative, between losses: rounding, amplified over the steps by Adam


def trainer(arguments: argparse.Namespace) -> Report:
    """Time `Trainer.train` as `normlab train` runs it, rows, status, log and TensorBoard included, against `BareLoop`.

    Grids, checkpoints and evaluations, which the bare loop has none of, are never due. Raises UnequalWork where the two
    differ in their convolutions, their gradients or their optimizer steps, or in their losses from one and the same
    start over the first steps.
    """
    settings = trainer_settings(arguments)
    dataset = assemble.open_dataset(settings)
    torch.manual_seed(settings.seed)
    difference = largest_difference(settings, dataset, arguments.technique)
    with TemporaryDirectory() as folder, quietly(Path(folder) / "stderr"):
        open_log(Path(folder) / "run.log")
        normlab, again = (Windows(settings, dataset, Path(folder) / name) for name in ("normlab", "again"))
        bare = BareLoop(dataset, normlab.trainer.state, arguments.technique)
        loops: dict[str, Callable[[int], None]] = {"normlab": normlab.train, "bare": bare.train, "again": again.train}
        work = {name: counted_after_warm_up(train) for name, train in loops.items()}
        require_same_work(work["normlab"], work["bare"])
        windows = {name: _window(train, arguments.steps) for name, train in loops.items()}
        seconds = time_rounds(windows, arguments.rounds)
        for arm in (normlab, again):
            arm.trainer.recorder.close()
    return _trainer_report(arguments, settings, seconds, work, difference)


def trainer_settings(arguments: argparse.Namespace) -> RunConfig:
    """Return the configuration of the run; raise ConfigurationError where it does not hold."""
    settings = configure(
        [
            *("dataset=digits", "architecture=dcgan", f"normalization={arguments.technique}", "device=cpu"),
            *(f"architecture.width={arguments.width}", f"train.batch_size={arguments.batch}"),
            *("train.until=1000000000 steps", "every.sample=null", "every.checkpoint=null", "every.evaluate=null"),
            "evaluation.features=none",
        ]
    )
    launching.check(settings)
    return settings


class WindowEnd(Exception):
    """A window of steps is over."""


class Windows(Stop):
    """A run of normlab that is left after so many steps, and entered again, where it asks whether to stop."""

    def __init__(self, settings: RunConfig, dataset: Dataset, folder: Path) -> None:
        super().__init__()
        run_dir = RunDir(folder)
        run_dir.create()
        self.end: NonNegativeInt | None = None
        self.trainer: Trainer = assemble.assemble(settings, dataset, None, run_dir, torch.device("cpu"), self).trainer

    def train(self, steps: PositiveInt) -> None:
        self.end = self.trainer.state.step + steps
        try:
            self.trainer.train()
        except WindowEnd:
            return
        raise ValueError(f"the run ended before step {self.end}")

    def requested(self) -> bool:
        if self.trainer.state.step == self.end:
            raise WindowEnd
        return super().requested()


class BareLoop:
    """The loop that one writes by hand: plain layers, two optimizers, images in memory, and nothing that looks on.

    It begins with the weights of `state`, its optimizers fresh.
    """

    def __init__(self, dataset: Dataset, state: TrainState, technique: str, batch_size: int = 0) -> None:
        raise NotImplementedError
