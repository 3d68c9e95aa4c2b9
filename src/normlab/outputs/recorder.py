"""All that a run leaves on its way: rows, TensorBoard, grids, status and progress, through one door."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from normlab.outputs.grids import read_image, save_grid
from normlab.outputs.plots import SpectraPicture
from normlab.outputs.run_dir import RunDir, Status
from normlab.outputs.sinks import JsonLines, Progress, TensorBoard


@dataclass(frozen=True)
class Position:
    """Where a run stands: what every row begins with. `seconds` counts training alone, over all its processes."""

    step: int
    epoch: float
    images_seen: int
    seconds: float


@dataclass
class Recorder:
    """Writes to a run's folder, which it first brings back to the step that the run continues from."""

    run_dir: RunDir
    step: int
    tensorboard: TensorBoard = field(init=False)
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self._metrics, self._evaluations = JsonLines(self.run_dir.metrics), JsonLines(self.run_dir.evaluations)
        self._spectra, self._picture = JsonLines(self.run_dir.spectra), SpectraPicture(self.run_dir.spectra_picture)
        for rows in (self._metrics, self._evaluations, self._spectra):
            rows.cut(self.step)
        for grid in self.run_dir.samples.glob("step_*.png"):
            if grid > self.run_dir.sample(self.step):
                grid.unlink()
        # The view is taken back, too, and shows this step anew: a kill may have come between a row and the view of it.
        begun = self.run_dir.tensorboard.is_dir()
        self.tensorboard = TensorBoard(self.run_dir.tensorboard, purge_step=self.step if begun else None)
        for row in self._metrics.rows() + self._evaluations.rows() + self._spectra.rows():
            if row["step"] == self.step:
                self._show(row)
        if self.has_grid(self.step):
            with suppress(OSError, ValueError):  # a picture that somebody has damaged is no reason to stop
                self.tensorboard.grid("samples", read_image(self.run_dir.sample(self.step)), self.step)

    def seconds(self) -> float:
        """Return how long the run had trained when the last row was written."""
        rows = self._metrics.rows()
        seconds = rows[-1].get("seconds") if rows else None
        return float(seconds) if isinstance(seconds, (int, float)) else 0.0

    def scalars(self, position: Position, scalars: Mapping[str, float]) -> None:
        row = {**vars(position), **scalars}
        self._metrics.append(row)
        self._show(row)
        self.progress.report(position.step, scalars)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of scalars."""
        return self._metrics.rows()

    def evaluations(self) -> list[dict[str, Any]]:
        return [row for row in self._evaluations.rows() if isinstance(row.get("generator"), str)]

    def evaluation(self, position: Position, generator: str, row: Mapping[str, Any]) -> None:
        row = {**vars(position), "generator": generator, **row}
        self._evaluations.append(row)
        self._show(row)

    def spectra(self, position: Position, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add a row per network and layer, where this step has none of it, and draw them once there are lines."""
        there = {_subject(row) for row in self._spectra.rows() if row["step"] == position.step}
        for measured in rows:
            if _subject(measured) not in there:
                row = {**vars(position), **measured}
                self._spectra.append(row)
                self._show(row)
        every = self._spectra.rows()
        # One step makes no line yet, and to import what draws would keep the first step waiting.
        if len({row["step"] for row in every}) > 1:
            self._picture.draw(every)

    def has_grid(self, step: int) -> bool:
        return self.run_dir.sample(step).exists()

    def grid(self, step: int, images: Tensor) -> None:
        """Save float images [n, c, h, w] in [-1, 1] as the sample grid of a step."""
        self.tensorboard.grid("samples", save_grid(images, self.run_dir.sample(step)), step)

    def status(self, status: Status) -> None:
        self.run_dir.write_status(status)

    def sync(self) -> None:
        """Bring everything written so far to the disk."""
        for rows in (self._metrics, self._evaluations, self._spectra):
            if rows.path.exists():
                rows.sync()
        self.tensorboard.flush()

    def _show(self, row: Mapping[str, Any]) -> None:
        """Bring the numbers of a row to TensorBoard."""
        places = {entry.name for entry in fields(Position)}
        numbers = {key: value for key, value in row.items() if isinstance(value, float) and key not in places}
        self.tensorboard.scalars({_tag(row, key): value for key, value in numbers.items()}, row["step"])

    def close(self) -> None:
        self.progress.close()
        self.tensorboard.close()


def _subject(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return which network and layer a row of spectra is of."""
    return str(row.get("network")), str(row.get("layer"))


def _tag(row: Mapping[str, Any], key: str) -> str:
    """Return the name under which TensorBoard shows a number; what stands before its first "/" is its group.

    An evaluation's is under the name of its generator. Of spectra each number of layers has a group of its own, say
    `layer_sigma`, beside the estimates of the group `sigma`, and what is of a whole network is in the group of that.
    """
    if "generator" in row:
        return f"{row['generator']}/{key}"
    if "network" not in row:
        return key
    return f"{row['network']}/{key}" if row.get("layer") is None else f"layer_{key}/{row['network']}/{row['layer']}"
