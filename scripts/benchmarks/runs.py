"""Runs and steps of normlab as benchmarks time them: in windows, with what surrounds a run kept quiet."""

from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from normlab import assemble, launching
from normlab.assemble import Materials
from normlab.composition import configure
from normlab.config import RunConfig
from normlab.outputs.run_dir import RunDir
from normlab.outputs.sinks import open_log
from normlab.settings import Length
from normlab.training.step import Step
from normlab.training.stopping import Stop
from normlab.training.trainer import Trainer

CPU = torch.device("cpu")
LOG_EVERY = 50  # steps between two rows of metrics.jsonl, as by default
# Windows begin and end between two rows, so that each of them holds all that are due in it.
WARM_UP = LOG_EVERY + LOG_EVERY // 2


def run_settings(changes: list[str]) -> RunConfig:
    """Return the default configuration on the CPU with some changes, as a command line gives them."""
    settings, complaints = configure(["device=cpu", *changes])
    return launching.checked(settings, complaints)


def without_extras(settings: RunConfig) -> RunConfig:
    """Return settings with which a run has rows of scalars, but nothing else besides, and does not end."""
    never = replace(settings.every, sample=None, checkpoint=None, evaluate=None, spectra=None)
    return replace(settings, every=never, train=replace(settings.train, until=Length(1e9, "steps")))


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


def takes(step: Step) -> Callable[[int], None]:
    def take(count: int) -> None:
        for _ in range(count):
            step.take()

    return take


@contextmanager
def scratch_folder(beside: Path | None = None) -> Generator[Path]:
    """Give a temporary folder that holds the log of runs, and what they tell on standard error off a terminal."""
    with TemporaryDirectory(dir=beside) as name, (Path(name) / "stderr").open("w") as file, redirect_stderr(file):
        open_log(Path(name) / "run.log")
        yield Path(name)
