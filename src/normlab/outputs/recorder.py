"""All that a run leaves on its way: rows, TensorBoard, grids, status and progress, through one door."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from normlab.outputs.grids import save_grid
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
        for rows in (self._metrics, self._evaluations):
            rows.cut(self.step)
        for grid in self.run_dir.samples.glob("step_*.png"):
            if grid > self.run_dir.sample(self.step):
                grid.unlink()
        # Whatever an earlier process wrote beyond this step is taken back in the view, too.
        begun = self.run_dir.tensorboard.is_dir()
        self.tensorboard = TensorBoard(self.run_dir.tensorboard, purge_step=self.step + 1 if begun else None)

    def seconds(self) -> float:
        """Return how long the run had trained when the last row was written."""
        rows = self._metrics.rows()
        return float(rows[-1].get("seconds") or 0) if rows else 0.0

    def scalars(self, position: Position, scalars: Mapping[str, float]) -> None:
        self._metrics.append({**vars(position), **scalars})
        self.tensorboard.scalars(scalars, position.step)
        self.progress.report(position.step, scalars)

    def evaluations(self) -> list[dict[str, Any]]:
        return self._evaluations.rows()

    def evaluation(self, position: Position, generator: str, row: Mapping[str, Any]) -> None:
        self._evaluations.append({**vars(position), "generator": generator, **row})
        numbers = {f"{generator}/{key}": float(value) for key, value in row.items() if isinstance(value, float)}
        self.tensorboard.scalars(numbers, position.step)

    def has_grid(self, step: int) -> bool:
        return self.run_dir.sample(step).exists()

    def grid(self, step: int, images: Tensor) -> None:
        """Save float images [n, c, h, w] in [-1, 1] as the sample grid of a step."""
        self.tensorboard.grid("samples", save_grid(images, self.run_dir.sample(step)), step)

    def status(self, status: Status) -> None:
        self.run_dir.write_status(status)

    def sync(self) -> None:
        """Bring everything written so far to the disk."""
        for rows in (self._metrics, self._evaluations):
            if rows.path.exists():
                rows.sync()
        self.tensorboard.flush()

    def close(self) -> None:
        self.progress.close()
        self.tensorboard.close()
