"""The loop: train a step, then attend to what is due."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normlab.config import EveryConfig
from normlab.errors import CollapseError, NumericalError, ResourceError
from normlab.outputs.checkpoints import Checkpoints, require_finite
from normlab.outputs.recorder import Position, Recorder
from normlab.outputs.run_dir import Status
from normlab.randomness import stream
from normlab.ranks import Order
from normlab.training import spectra
from normlab.training.capture import Scalars
from normlab.training.pace import Pace
from normlab.training.states import DISTANCES, has_moved, is_dead, judge
from normlab.training.step import Step
from normlab.training.stopping import Stop, Stopped

log = logging.getLogger(__name__)

# Scores a generator, asking now and then whether to stop; None if it did stop.
Score = Callable[[nn.Module, Callable[[], bool]], Mapping[str, Any] | None]

GRID_SIZE = 64
CLOUD_SIZE = 2500  # where images are points
MOST_FAILED_SAVES = 3  # in a row; a disk that was full for a moment costs nothing but a checkpoint


@dataclass(kw_only=True)
class Trainer:
    """Trains a run from where its state stands to its last step, and leaves in its folder what is due on the way.

    Everything due is a function of the step alone, but for checkpoints every so many minutes. A checkpoint is written
    before the evaluation of the same step, so that a kill in between costs the evaluation alone, which is then made up;
    and so it is with spectra, where a checkpoint is due.
    """

    step: Step
    pace: Pace
    last_step: int
    every: EveryConfig
    score: Score | None
    checkpoints: Checkpoints
    recorder: Recorder
    stop: Stop
    of_points: bool = False
    stop_on_collapse: bool = False
    flags: tuple[str, ...] = ()
    states: dict[str, int] = field(default_factory=dict)
    resumes: int = 0
    seconds: float = field(init=False)

    def __post_init__(self) -> None:
        self.state = self.step.state
        self.seconds = self.recorder.seconds()
        self._logged = (self.state.step, self.seconds)
        self._saved_at = self._clock = time.monotonic()
        self._failed_saves = 0
        self._moved = has_moved(self.recorder.rows())

    def train(self) -> None:
        """Train to the last step; raise Stopped if told to stop before, NumericalError if a loss is not finite."""
        self.recorder.progress.start(self.state.step, self.last_step, self.pace.images_per_step)
        self.attend(None)
        while self.state.step < self.last_step:
            self.step.ranks.lead(Order.STEP)
            scalars = self.step.take()
            self.recorder.progress.advance()
            self.attend(scalars)

    def attend(self, scalars: Scalars | None) -> None:
        """Do what is due at the step where the run stands; `scalars` are None before the first step of a process."""
        step, every = self.state.step, self.every
        ends = step in (0, self.last_step)
        logging_ = scalars is not None and (step == self.last_step or self.pace.due(every.log, step))
        sampling = (ends or self.pace.due(every.sample, step)) and not self.recorder.has_grid(step)
        measuring = ends or self.pace.due(every.spectra, step)
        evaluating = self.score is not None and (ends or self.pace.due(every.evaluate, step))
        saving = ends or evaluating or self.pace.due(every.checkpoint, step) or self.minutes_have_passed()
        stopping = self.stop.requested()
        if not (logging_ or sampling or measuring or saving or stopping):
            return

        self.seconds += time.monotonic() - self._clock
        self.require_finite_losses(scalars)
        if logging_ and scalars is not None:
            self.log(scalars | spectra.estimate(self.step))
        if sampling:
            self.recorder.grid(step, self.sample())
        # Asked once more: only a step that is saved may be called so, and a signal may have come meanwhile.
        exit_code = self.stop.exit_code
        self.step.ranks.require_all()  # what started them tells the others to stop, too, when one has died
        saved = saving or exit_code is not None
        if saved and step not in self.checkpoints.steps():
            self.save(must=exit_code is not None or ends)
        if measuring and exit_code is None:
            self.measure()
        if evaluating and exit_code is None:
            self.evaluate()
            exit_code = self.stop.exit_code
        if exit_code is not None:
            raise Stopped(exit_code)
        self._clock = time.monotonic()

    def require_finite_losses(self, scalars: Scalars | None) -> None:
        """Look whether a loss or a gradient has been non-finite since the last look: the one wait for the device."""
        if self.step.non_finite.item() == 0:
            return
        values = {name: float(value) for name, value in (scalars or {}).items()}
        wrong = [name for name, value in values.items() if not torch.isfinite(torch.tensor(value))]
        raise NumericalError(
            wrong[0] if wrong else "loss",
            f"became non-finite after step {self._logged[0]}, at step {self.state.step} at the latest",
            "the run has diverged; try a smaller optimizer.lr or another normalization",
        )

    def log(self, scalars: Scalars) -> None:
        step, seconds = self._logged
        images = (self.state.step - step) * self.pace.images_per_step
        speed = images / (self.seconds - seconds) if self.seconds > seconds else 0.0
        values = {name: float(value) for name, value in scalars.items()}
        self.recorder.scalars(self.position(), {**values, "images_per_second": speed})
        self._logged = (self.state.step, self.seconds)
        if not self._moved:
            self._moved = has_moved(rows := self.recorder.rows())
            if is_dead(rows):
                self.note("dead", "the discriminator has not told two images apart since the run began")
        self.report("running")

    def note(self, state: str, what: str) -> None:
        """Record that the run was found in a state, when it is so found for the first time."""
        if state not in self.states:
            self.states[state] = self.state.step
            log.warning("%s at step %s: %s", state, f"{self.state.step:,}", what)
            self.report("running")

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Return images of the same latents every time, in every run, normalized by the statistics of this batch."""
        averaged = self.state.averaged
        generator = self.state.generator if averaged is None else averaged.module
        count = CLOUD_SIZE if self.of_points else GRID_SIZE
        latents = torch.randn(count, generator.latent_size, generator=stream(0, "samples"))
        training = generator.training
        generator.train()
        with generator.frozen_statistics():
            images = generator(latents.to(self.step.device))
        generator.train(training)
        return images

    def save(self, must: bool) -> None:
        """Write a checkpoint; if the disk refuses one that need not be, go on to the next, but not for ever."""
        state = self.state.state_dict()
        require_finite(state)
        self.recorder.sync()
        self._saved_at = time.monotonic()  # tried, at least: minutes between checkpoints pass between attempts, too
        try:
            self.checkpoints.save(self.state.step, state)
        except ResourceError as error:
            self._failed_saves += 1
            if must or self._failed_saves == MOST_FAILED_SAVES:
                raise
            log.error("step %s is not saved, training goes on to the next checkpoint: %s", self.state.step, error)
            return
        self._failed_saves = 0
        if self.state.step == 0:
            # What cannot be read back should show now, not after a night of training.
            self.checkpoints.load(0)
        best = self.best()
        self.checkpoints.prune(set() if best is None else {best["step"]})
        self.report("running")

    def measure(self) -> None:
        """Record the spectra of both networks, but for rows of this step that are there already."""
        self.recorder.spectra(self.position(), spectra.measure(self.step))

    def evaluate(self) -> None:
        """Score the live generator, and the averaged one where there is one, unless the row is there already.

        Raises CollapseError if it is found collapsed and that is to stop the run.
        """
        assert self.score is not None
        step = self.state.step
        scored = {row["generator"] for row in self.recorder.evaluations() if row["step"] == step}
        generators: dict[str, nn.Module] = {"live": self.state.generator}
        if self.state.averaged is not None:
            generators["averaged"] = self.state.averaged.module
        for name, generator in generators.items():
            if name in scored:
                continue
            row = self.score(generator, self.stop.requested)
            if row is None:
                return
            earlier = [before for before in self.recorder.evaluations() if before["generator"] == name]
            row = {**row, "state": judge({"step": step, **row}, earlier)}
            self.recorder.evaluation(self.position(), name, row)
            metrics = [f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float)]
            flags = [f"[{', '.join(row['flags'])}]"] if row["flags"] else []
            log.info("  ".join([f"evaluation at step {step:,} ({name})", *metrics, *flags]))
        self.attend_to_collapse()

    def attend_to_collapse(self) -> None:
        step = self.state.step
        rows = [row for row in self.recorder.evaluations() if row["step"] == step and row["generator"] == self.judged]
        if not any(row.get("state") == "collapsed" for row in rows):
            return
        self.note("collapsed", "the generator's samples are all but alike, or have lost what they covered")
        if self.stop_on_collapse:
            problem = f"has collapsed at step {self.state.step}"
            raise CollapseError("generator", problem, "on_collapse=record goes on; try another normalization")

    @property
    def judged(self) -> str:
        """Which generator the run is judged by: the averaged one where there is one."""
        return "live" if self.state.averaged is None else "averaged"

    def best(self) -> dict[str, Any] | None:
        """Return the evaluation of the lowest Fréchet distance so far, if there is any.

        Of those without flags, and by the protocol of the last: a distance by another is another quantity.
        """
        rows = [row for row in self.recorder.evaluations() if row["generator"] == self.judged]
        distances = [
            (distance, row)
            for row in rows
            if not row["flags"] and row["protocol"] == rows[-1]["protocol"]
            for distance in (row[name] for name in DISTANCES if row.get(name) is not None)
        ]
        return min(distances, key=lambda pair: pair[0], default=(0, None))[1]

    def position(self) -> Position:
        seen = self.state.images_seen
        return Position(self.state.step, self.pace.epochs(seen), seen, self.seconds)

    def report(self, state: Any, exit_code: int | None = None, error: str | None = None) -> None:
        """Write the run's status."""
        progress = self.recorder.progress
        self.recorder.status(
            Status(
                state=state,
                step=self.state.step,
                epoch=self.pace.epochs(self.state.images_seen),
                images_seen=self.state.images_seen,
                until_step=self.last_step,
                exit_code=exit_code,
                error=error,
                resumes=self.resumes,
                flags=list(self.flags),
                states=self.states,
                images_per_second=progress.images_per_second,
                eta_seconds=progress.eta_seconds,
            )
        )

    def minutes_have_passed(self) -> bool:
        length = self.every.checkpoint
        return length is not None and length.unit == "minutes" and time.monotonic() - self._saved_at > 60 * length.value
