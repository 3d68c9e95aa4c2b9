"""The folder of a sweep: what its runs are, how each stands, and whether they are to stop.

Launchers start runs in other processes and on other machines, so these and the sweep know of each other through files:
`sweep.json` is written by the sweep, `job_N.json` by what runs number N, `job_N.log` holds what its process said.
"""

import fcntl
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from normlab.outputs import plain_json
from normlab.outputs.atomic import unwritable, write_atomically
from normlab.outputs.run_dir import ENDINGS

State = Literal["waiting", "running", "requeued", "done", "diverged", "collapsed", "stopped", "failed", "not started"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run of a sweep: what it is, and how it stands or ended.

    gpu: what the run, or each of its tasks, gets as $CUDA_VISIBLE_DEVICES.  threads, gpu: null leaves
    them to the machine that it runs on.  seconds: of the run's processes, over all attempts in this sweep.
    queue_id: its job's name at Slurm.
    """

    job: int
    overrides: tuple[str, ...]
    folder: str
    threads: int | None = None
    gpu: str | None = None
    state: State = "waiting"
    exit_code: int | None = None
    reason: str | None = None
    seconds: float = 0.0
    log: str | None = None
    host: str | None = None
    pid: int | None = None
    queue_id: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in (*ENDINGS, "stopped", "failed", "not started")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What `sweep.json` holds. `launcher` has the launcher's `name` and its `settings`.

    throughput: the table by which the number of runs at a time was chosen, if it was.
    """

    words: tuple[str, ...]
    hydra_words: tuple[str, ...]
    config_dir: str | None
    working_folder: str
    outputs: str
    on_error: Literal["continue", "stop"]
    launcher: dict[str, Any]
    throughput: tuple[dict[str, Any], ...] = ()
    state: Literal["running", "done", "stopped", "failed"] = "running"
    started: str = ""
    ended: str | None = None
    host: str = ""
    pid: int = 0
    runs: tuple[Job, ...] = field(default=())

    @property
    def queued(self) -> bool:
        """Whether Slurm has the runs, so that they outlive the sweep's own process."""
        return str(self.launcher["settings"]["_target_"]).endswith("SlurmLauncher")


class Wish(NamedTuple):
    """That no further run be started and, with a signal, that those that run be sent it so many times in all."""

    signal: int | None
    times: int = 1


class Record:
    """The files in a sweep's folder; making one touches nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "sweep.json"
        self.launcher_log = folder / "launcher.log"
        self._wish = folder / "stop.json"
        self._alive = folder / ".alive"

    def log(self, number: int, rank: int = 0) -> Path:
        """Return where a run says all that it says, and each of its other ranks what they do, which is little."""
        return self.folder / (f"job_{number}.rank_{rank}.log" if rank else f"job_{number}.log")

    def create(self) -> None:
        """Make the folder; raise ResourceError if that cannot be done."""
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def write(self, sweep: Sweep) -> None:
        write_atomically(self.file, (plain_json.dump(asdict(sweep), indent=2) + "\n").encode())

    def read(self) -> Sweep:
        values: dict[str, Any] = json.loads(self.file.read_text())
        jobs: list[dict[str, Any]] = values.pop("runs")
        runs = tuple(Job(overrides=tuple(job.pop("overrides")), **job) for job in jobs)
        words, hydra_words = (tuple(values.pop(key)) for key in ("words", "hydra_words"))
        return Sweep(words=words, hydra_words=hydra_words, runs=runs, **values)

    def report(self, job: Job) -> None:
        """Say how a run stands: for what runs it alone."""
        write_atomically(self._report(job.job), plain_json.dump(asdict(job)).encode())

    def standing(self, job: Job) -> Job:
        """Return a run as it stands by what its own process last said, if it has said anything."""
        told = _read(self._report(job.job))
        names = {entry.name for entry in fields(Job)} - {"overrides"}
        return job if told is None else replace(job, **{key: value for key, value in told.items() if key in names})

    def stop(self, wish: Wish) -> None:
        """Ask for an end, here and on every machine that a run of the sweep is on."""
        write_atomically(self._wish, plain_json.dump(wish._asdict()).encode())

    def wish(self) -> Wish | None:
        """Return what has been asked for by `stop`."""
        told = _read(self._wish)
        return None if told is None else Wish(**told)

    @contextmanager
    def alive(self) -> Generator[None]:
        """Show during the block that the sweep's own process lives: the kernel takes the lock back with the process."""
        with self._alive.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def is_alive(self) -> bool:
        """Return whether the sweep's own process lives; to be asked on its machine alone."""
        try:
            with self._alive.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except BlockingIOError:
            return True
        return False

    def queue_ids(self) -> list[str]:
        """Return the names that Slurm gave the jobs of the sweep, in the order in which they were handed to it."""
        names = [path.name.removesuffix("_submitted.pkl") for path in self.folder.rglob("*_submitted.pkl")]
        return sorted(names, key=lambda name: [int(part) for part in name.split("_") if part.isdecimal()])

    def _report(self, number: int) -> Path:
        return self.folder / f"job_{number}.json"


def is_sweeping(folder: Path) -> bool:
    """Return whether a sweep is under way into a folder of runs, or one above it."""
    places = [place / ".sweep" for place in (folder, *folder.resolve().parents)]
    return any(Record(path).is_alive() for place in places if place.is_dir() for path in place.iterdir())


def is_running(pid: int) -> bool:
    """Return whether a process of this machine lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return cast(dict[str, Any], json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError):
        return None
