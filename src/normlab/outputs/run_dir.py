"""The folder of a run: where everything in it is, who may write to it, and how the run stands."""

import fcntl
import json
import logging
import os
import platform
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, cast

from filelock import FileLock, Timeout

from normlab.errors import BusyError, CollapseError
from normlab.outputs import plain_json
from normlab.outputs.atomic import sweep, unwritable, write_atomically

logger = logging.getLogger(__name__)

# How a run ends for good, as its own settings have it; all other states leave something to do.
ENDINGS = ("done", "diverged", "collapsed")

# A lock waits this long, since somebody may be looking for a moment whether the run is alive.
_PATIENCE_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a run stands, as its `status.json` tells it; `updated` is in unix seconds and set on writing.

    flags: `dead_start` for a discriminator whose scores were all but equal before the first step.  states: the step at
    which the run was first found `collapsed`, `dead`.

    A killed run still says `running`: it lives only if its folder is locked.
    """

    state: Literal["running", "done", "failed", "diverged", "stopped"]
    step: int = 0
    epoch: float = 0.0
    images_seen: int = 0
    until_step: int | None = None
    exit_code: int | None = None
    error: str | None = None
    resumes: int = 0
    flags: list[str] = field(default_factory=list)
    states: dict[str, int] = field(default_factory=dict)
    images_per_second: float | None = None
    eta_seconds: float | None = None
    updated: float = 0.0

    @property
    def is_ended_by_collapse(self) -> bool:
        """Whether on_collapse=stop ended the run: nobody stopped it, and people are told that it is `collapsed`."""
        return self.state == "stopped" and self.exit_code == CollapseError.exit_code

    def to_json(self) -> str:
        return plain_json.dump(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Status | None":
        """Return the status that a text holds, None if it holds none; what a newer version added is left out."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(values, dict) or "state" not in values:
            return None
        names = {entry.name for entry in fields(cls)}
        known = {key: value for key, value in cast(dict[str, Any], values).items() if key in names}
        kinds = {"state": str, "step": int, "images_seen": int, "resumes": int, "flags": list, "states": dict}
        sound = all(isinstance(known[key], kind) for key, kind in kinds.items() if key in known)
        return cls(**known) if sound else None


class RunDir:
    """The folder of one run and the names of what is in it; making one touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.status = path / "status.json"
        self.environment = path / "environment.json"
        self.layers = path / "layers.json"
        self.metrics = path / "metrics.jsonl"
        self.evaluations = path / "evaluations.jsonl"
        self.best = path / "best.json"
        self.scores = path / "scores.jsonl"
        self.spectra = path / "spectra.jsonl"
        self.spectra_picture = path / "spectra.png"
        self.log = path / "run.log"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.changes = path / "changes.jsonl"
        self.generator = path / "generator.safetensors"
        self.tensorboard = path / "tensorboard"
        self._lock = path / ".lock"
        self._holder = path / ".lock.json"

    def sample(self, step: int) -> Path:
        """Return where the sample grid of a step is kept."""
        return self.samples / f"step_{step:08d}.png"

    def exists(self) -> bool:
        """Return whether a run has begun here: it has its configuration."""
        return self.config.is_file()

    def create(self) -> None:
        """Make the folder and those inside it, where they are missing; raise ResourceError if that cannot be done."""
        try:
            for folder in (self.samples, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error

    @contextmanager
    def lock(self) -> Generator[None]:
        """Keep every other process out of the folder during the block, and sweep what a killed one left half-written.

        The kernel frees the lock with the process, so nothing stays locked after a kill. Raises BusyError, which names
        the holder, and ResourceError if the folder cannot be written.
        """
        lock = FileLock(self._lock)
        try:
            lock.acquire(timeout=_PATIENCE_SECONDS, poll_interval=0.02)
        except Timeout:
            raise self._busy() from None
        except OSError as error:
            raise unwritable(self.path, error) from error
        try:
            if count := sweep(self.path):
                logger.warning("removed %d half-written file(s) in %s", count, self.path)
            started = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            plain_json.write(self._holder, {"host": platform.node(), "pid": os.getpid(), "started": started})
            yield
        finally:
            self._holder.unlink(missing_ok=True)
            lock.release()

    def is_locked(self) -> bool:
        """Return whether a live process holds the folder; needs no right to write there and keeps nobody out."""
        try:
            with self._lock.open("rb") as file:
                # Shared, so that two who look at once do not take each other for a run.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # there is no such file, or none that can be opened: whoever writes there will say so
        return False

    def refuse_if_locked(self) -> None:
        """Raise BusyError, which names the holder, if a live process holds the folder."""
        if self.is_locked():
            raise self._busy()

    def set_aside(self) -> Path:
        """Rename the folder to the first free of `<name>.old-1`, `<name>.old-2`, ... and return where it went.

        Call it under the lock; the lock then belongs to the renamed folder.
        """
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        try:
            self._holder.unlink(missing_ok=True)  # it tells who works here, which goes with nobody
            return self.path.rename(aside)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def read_ranks(self) -> int:
        """Return how many processes trained the run when it was last started; 1 if nothing tells of it."""
        count = plain_json.read(self.environment).get("ranks")
        return count if isinstance(count, int) else 1

    def read_status(self) -> Status | None:
        """Return the status that stands in the folder, or None where there is none to be read."""
        try:
            return Status.from_json(self.status.read_text())
        except (OSError, UnicodeDecodeError):
            return None

    def write_status(self, status: Status) -> None:
        write_atomically(self.status, replace(status, updated=time.time()).to_json().encode())

    def _busy(self) -> BusyError:
        try:
            holder = json.loads(self._holder.read_text())
            who = f"process {holder['pid']} on {holder['host']} since {holder['started']}"
        except (OSError, ValueError, LookupError, TypeError):
            # The holder has only just begun, or is about to end.
            who = "another process"
        return BusyError(str(self.path), f"is in use by {who}", "wait until it ends, or stop it")
