"""Where a running experiment speaks: rows of JSON (the truth), TensorBoard (a view), the log and the progress."""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tqdm import tqdm

from normlab.errors import ResourceError
from normlab.outputs import plain_json
from normlab.outputs.atomic import unwritable, write_atomically

if TYPE_CHECKING:  # a report reads rows without the seconds that importing torch takes
    from torch import Tensor

logger = logging.getLogger(__name__)


class JsonLines:
    """A file of rows, one JSON object per line; a line counts once its end is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row and hand it to the system, so that a kill does not lose it; raise ResourceError if that fails.

        Floats keep 7 significant digits, what float32 holds; those that are not finite become null.
        """
        line = plain_json.dump({key: _rounded(value) for key, value in row.items()}) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(line.encode())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def sync(self) -> None:
        """Bring the rows to the disk: what a checkpoint has seen must outlive a power cut as it does."""
        try:
            with self.path.open("ab") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def cut(self, step: int) -> None:
        """Drop, in one step, the rows beyond a step and every line that a kill left unfinished."""
        kept = b"".join(line for line, row in self._lines() if row["step"] <= step)
        if self.path.exists() and kept != self.path.read_bytes():
            write_atomically(self.path, kept)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows in order; none if there is no file. It may be written to meanwhile."""
        return [row for _, row in self._lines()] if self.path.is_file() else []

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise ResourceError(str(self.path), "is no file", "bring it back, or give fresh=true to start over")
        for line in self.path.read_bytes().splitlines(keepends=True):
            row = _parsed(line) if line.endswith(b"\n") else None
            if row is not None:
                yield line, row


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return cast(dict[str, Any], row) if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _rounded(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value


# The page "Custom scalars" of TensorBoard, by patterns of tags: what a look at a run is for, from losses to quality.
LAYOUT = {
    "Is it healthy?": {
        "losses": ["Multiline", ["loss/.*"]],
        "scores: real above fake, and neither runs away": ["Multiline", ["score/real", "score/fake"]],
        "pairs told apart: 0.5 is chance, at 1 the discriminator has won": ["Multiline", ["score/accuracy"]],
        "spread of the scores: near 0 the discriminator is dead": ["Multiline", ["score/spread"]],
        "gradient norms: neither vanishing nor exploding": ["Multiline", ["gradient_norm/.*"]],
        "distance of the samples: falls": ["Multiline", ["(live|averaged)/(fid|frechet_distance)"]],
        "recall and coverage: fall where modes are lost": ["Multiline", ["(live|averaged)/(recall|coverage)"]],
    },
    "Largest singular values": {
        "discriminator": ["Multiline", ["sigma/discriminator/.*"]],
        "generator": ["Multiline", ["sigma/generator/.*"]],
    },
}


class TensorBoard:
    """Event files for TensorBoard. A view only: if they cannot be written, it warns once and training goes on.

    `purge_step` is the first step that may be written again after a resume; what an earlier process wrote from there
    on is then not shown.
    """

    def __init__(self, path: Path, purge_step: int | None = None) -> None:
        self.path = path
        self._writer: Any = None
        with self._tolerant():
            # It takes a second to import, and only a run that trains needs it.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(path), purge_step=purge_step)
            self._writer.add_custom_scalars(LAYOUT)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        with self._tolerant():
            for tag, value in values.items():
                if self._writer is not None:
                    self._writer.add_scalar(tag, value, step)

    def grid(self, tag: str, image: "Tensor", step: int) -> None:
        """Add an image, uint8 [c, h, w]."""
        with self._tolerant():
            if self._writer is not None:
                self._writer.add_image(tag, image, step)

    def text(self, tag: str, text: str) -> None:
        with self._tolerant():
            if self._writer is not None:
                self._writer.add_text(tag, text)

    def flush(self) -> None:
        """Write what is waiting, so that a kill after a checkpoint leaves no gap before it."""
        with self._tolerant():
            if self._writer is not None:
                self._writer.flush()

    def close(self) -> None:
        with self._tolerant():
            if self._writer is not None:
                self._writer.close()
        self._writer = None

    @contextmanager
    def _tolerant(self) -> Generator[None]:
        try:
            yield
        except (OSError, ImportError) as error:
            self._writer = None
            logger.warning("TensorBoard is off for the rest of this run: %s", error)


def open_log(path: Path, debug: bool = False) -> None:
    """Send the whole log to a file, after what is there, and its messages to standard error.

    Tracebacks and debug lines reach standard error only with `debug`. A second call replaces the first. Raises
    ResourceError if the file cannot be opened.
    """
    try:
        file = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise unwritable(path, error) from error
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    console = _Console()
    console.setLevel(logging.DEBUG if debug else logging.INFO)
    console.setFormatter(logging.Formatter("%(message)s") if debug else _Plain())
    logging.basicConfig(level=logging.WARNING, handlers=[file, console], force=True)
    logging.getLogger("normlab").setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    # A full disk must not answer every line of the log with a traceback, nor the thread that writes for TensorBoard,
    # whose error comes to light when it is next given something.
    logging.raiseExceptions = debug
    threading.excepthook = _log_thread


def _log_thread(arguments: threading.ExceptHookArgs) -> None:
    kind, error, trace, thread = arguments
    name = "a thread" if thread is None else thread.name
    if error is not None:
        logger.debug("%s ended with an error", name, exc_info=(kind, error, trace))


class _Console(logging.Handler):
    """Writes lines above a progress bar where one is shown, never through it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except OSError:
            self.handleError(record)


class _Plain(logging.Formatter):
    """The message alone, without the traceback that the formatter of the log file left on the record."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        return f"warning: {message}" if record.levelno == logging.WARNING else message


class Progress:
    """How far a run is: a bar on a terminal, plain lines of the log elsewhere.

    `images_per_second` is measured between two reports, `eta_seconds` over all since `start`, pauses included.
    """

    def __init__(self) -> None:
        self.images_per_second: float | None = None
        self.eta_seconds: float | None = None
        self._bar: tqdm[Any] | None = None

    def start(self, step: int, total_steps: int, images_per_step: int) -> None:
        """Begin at a step, which is not 0 after a resume."""
        self._first = self._reported = self._step = step
        self._total = total_steps
        self._images_per_step = images_per_step
        self._began = self._reported_at = time.monotonic()
        if sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True, file=sys.stderr)

    def advance(self) -> None:
        """Count one step."""
        self._step += 1
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, scalars: Mapping[str, float]) -> None:
        """Tell the speed, the time that is left and, of the scalars, the losses."""
        self._measure(step)
        losses = [f"{key} {value:.4g}" for key, value in scalars.items() if key.startswith("loss/")]
        speed = [f"{self.images_per_second:,.0f} images/s"] if self.images_per_second is not None else []
        left = [f"{duration(self.eta_seconds)} left"] if self.eta_seconds is not None else []
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(speed + losses))
        # Beside a bar the line goes to the log file alone.
        level = logging.INFO if self._bar is None else logging.DEBUG
        percent = 100 * step // max(self._total, 1)
        logger.log(level, "  ".join([f"step {step:,} of {self._total:,} ({percent} %)", *speed, *left, *losses]))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _measure(self, step: int) -> None:
        now = time.monotonic()
        if step > self._reported and now > self._reported_at:
            self.images_per_second = (step - self._reported) * self._images_per_step / (now - self._reported_at)
            self.eta_seconds = (self._total - step) * (now - self._began) / (step - self._first)
        self._reported, self._reported_at = step, now


def duration(seconds: float) -> str:
    """Return a length of time as people read it: 45s, 3m 20s, 2h 05m, 3d 04h."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}h"
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {rest:02}s" if minutes else f"{rest}s"
