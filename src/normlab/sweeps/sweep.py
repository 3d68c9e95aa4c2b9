"""A sweep from its command line to its closing table."""

import getpass
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from normlab import config
from normlab.config import RunConfig
from normlab.errors import DONE, TIME_LIMIT_REACHED, SweepError
from normlab.outputs.run_dir import ENDINGS
from normlab.reports.screen import Screen
from normlab.sweeps import planning, table, throughput
from normlab.sweeps.job import die_with_parent, why_not_started
from normlab.sweeps.record import Job, Record, Sweep, Wish, is_running

_LOOK_SECONDS = 0.3
_DRAW_SECONDS = 1.0
_TELL_SECONDS = 60.0
_ASK_QUEUE_SECONDS = 5.0
_GRACE_SECONDS = 10.0


def run(words: list[str], config_dir: str | None, keep: Callable[[RunConfig], bool] | None = None) -> int:
    """Run what is missing of a sweep, or of the runs to keep, print the closing table, and return the exit code."""
    plan = planning.plan(words, config_dir, keep)
    if any(run.ended is None for run in plan.runs):
        planning.require_launcher(plan.launcher)
    plan, rows = throughput.settle(plan)
    jobs = planning.jobs(plan)  # before the record, since it may refuse the launcher's settings
    outputs = config.outputs_folder().resolve()
    record = Record(outputs / ".sweep" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    record.create()
    sweep = Sweep(
        words=tuple(words),
        hydra_words=tuple(plan.hydra_words),
        config_dir=None if config_dir is None else str(Path(config_dir).resolve()),
        working_folder=os.getcwd(),
        outputs=str(outputs),
        on_error=plan.on_error,
        launcher=plan.launcher,
        throughput=tuple(map(asdict, rows)),
        started=_now(),
        host=platform.node(),
        pid=os.getpid(),
        runs=jobs,
    )
    with record.alive():
        watch = _Watch(record, sweep, planning.swept([run.words for run in plan.runs]))
        told = watch.watch()
        return watch.conclude(told)


class _Watch:
    """Starts the launcher, keeps `sweep.json` current, tells how the runs stand, and passes on the wish to stop."""

    def __init__(self, record: Record, sweep: Sweep, swept: list[dict[str, str]]) -> None:
        self.record, self.sweep, self.swept = record, sweep, swept
        self.screen = Screen()
        self.missing = [job.job for job in sweep.runs if not job.has_ended]
        self.queue = _Queue(record, self.missing) if sweep.queued else None
        self.lost_launcher = False
        self._told_at: dict[int, float] = {}
        self._drawn_at = 0.0

    def watch(self) -> int | None:
        """See the missing runs through to their ends; return the signal that we were told to stop with, if any."""
        self.record.write(self.sweep)
        for job in self.sweep.runs:
            if job.reason == "already complete":
                print(f"{table.name(job, self.swept[job.job])}  already complete: {os.path.relpath(job.folder)}")
        if not self.missing:
            return None
        with _noting() as told:
            launcher = self._start_launcher()
            try:
                self._follow(launcher, told)
            finally:
                self._end(launcher)
                if self.screen.is_terminal:
                    self.screen.clear()
        return told[-1] if told else None

    def conclude(self, told: int | None) -> int:
        """Print the closing table; return the exit code, or raise SweepError if runs have failed."""
        jobs = self.sweep.runs
        failed = [job for job in jobs if job.state == "failed"]
        unfinished = [job for job in jobs if job.state not in ENDINGS]
        state = "failed" if failed else "stopped" if unfinished else "done"
        self._keep(jobs, state=state, ended=_now())
        print(f"\n{table.closing(jobs, self.swept)}\nrecord: {os.path.relpath(self.record.file)}", flush=True)
        again = "the same command runs them again"
        if failed:
            numbers = ", ".join(f"#{job.job} [{job.exit_code}]" for job in failed)
            raise SweepError("sweep", f"{len(failed)} of {len(jobs)} runs failed: {numbers}", again)
        if told is not None:
            return TIME_LIMIT_REACHED if told == signal.SIGUSR1 else 128 + told
        if self.lost_launcher:
            problem = f"'{self.sweep.launcher['name']}' ended before all runs ({_last_line(self.record.launcher_log)})"
            raise SweepError("hydra/launcher", problem, f"see {self.record.launcher_log}")
        if unfinished:
            print(f"{len(unfinished)} of {len(jobs)} runs have not ended: the same command goes on with them")
        return TIME_LIMIT_REACHED if unfinished else DONE

    def _start_launcher(self) -> "subprocess.Popen[bytes]":
        numbers = ",".join(map(str, self.missing))
        command = [sys.executable, "-m", "normlab.sweeps.launcher", str(self.record.folder), numbers]
        with self.record.launcher_log.open("wb") as log:
            return subprocess.Popen(
                command,
                # The signal with which Slurm says that a job's time is nearly up is the one that a run knows.
                env={**os.environ, "SUBMITIT_PREEMPT_SIGNAL": "USR1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _follow(self, launcher: "subprocess.Popen[bytes]", told: list[int]) -> None:
        passed_on = 0
        # The third signal is for those who cannot wait.
        while len(told) < 3:
            if len(told) > passed_on:
                passed_on = len(told)
                self.record.stop(Wish(told[-1], told.count(told[-1])))
                if not self.screen.is_terminal:
                    print("told to stop: the runs save first", flush=True)
            if self.queue is not None:
                self.queue.ask(cancel=self.record.wish() is not None)
            launched = launcher.poll() is not None
            self._look()
            if launched and self._will_not_start() and self.record.wish() is None:
                self.lost_launcher = True
                self.record.stop(Wish(None))  # so that nothing starts once we have gone
            self._draw(stopping=bool(told))
            if not any(self._goes_on(job, launched) for job in self.sweep.runs):
                break
            time.sleep(_LOOK_SECONDS)
        self._keep([self._accounted(job) for job in self.sweep.runs])

    def _look(self) -> None:
        """Take over what the runs have reported, and tell what is new."""
        before = self.sweep.runs
        now = tuple(self.record.standing(job) if job.job in self.missing else job for job in before)
        if now != before:
            self._keep(now)
        if self.screen.is_terminal:
            return
        clock = time.monotonic()
        for job, old in zip(now, before, strict=True):
            if job.state != old.state:
                text = f"started, log {os.path.relpath(self.record.log(job.job))}"
                self._tell(job, text if job.state == "running" else table.event(job))
            elif job.state == "running" and clock - self._told_at.get(job.job, clock) >= _TELL_SECONDS:
                self._tell(job, table.event(job))

    def _tell(self, job: Job, text: str) -> None:
        print(f"{table.name(job, self.swept[job.job])}: {text}", flush=True)
        self._told_at[job.job] = time.monotonic()

    def _draw(self, stopping: bool) -> None:
        if self.screen.is_terminal and time.monotonic() - self._drawn_at >= _DRAW_SECONDS:
            footer = ["stopping: the runs save first; Ctrl-C again ends them at once"] if stopping else []
            self.screen.draw([*table.live(self.sweep.runs, self.swept, self.screen.room() - len(footer)), *footer])
            self._drawn_at = time.monotonic()

    def _will_not_start(self) -> bool:
        """Return whether runs are waiting that the launcher, which has ended, has handed to nobody."""
        handed = self.queue is not None and bool(self.record.queue_ids())
        return not handed and any(job.state == "waiting" for job in self.sweep.runs)

    def _goes_on(self, job: Job, launched: bool) -> bool:
        """Return whether there is more to come from a run, although it may have reported an end."""
        if self.queue is not None:
            return job.state not in (*ENDINGS, "failed") and not self.queue.has_left(job, launched)
        if not launched or job.has_ended:
            return not job.has_ended
        return job.host == platform.node() and job.pid is not None and is_running(job.pid)

    def _accounted(self, job: Job) -> Job:
        """Return how a run ended of which nothing more will be heard."""
        if job.has_ended:
            return job
        if job.state == "waiting":
            why = why_not_started(wish) if (wish := self.record.wish()) else "its job left the queue before it began"
            return replace(job, state="not started", reason="the launcher has ended" if self.lost_launcher else why)
        if self.queue is not None and self.record.wish() is None:
            return replace(job, state="stopped", reason="its job left the queue: cancelled, or its node failed")
        if self.queue is not None or job.state == "requeued":
            return replace(job, state="stopped")
        return replace(job, state="failed", exit_code=128 + signal.SIGKILL, reason="what watched it was killed")

    def _keep(self, jobs: Sequence[Job], **values: Any) -> None:
        self.sweep = replace(self.sweep, runs=tuple(jobs), **values)
        self.record.write(self.sweep)

    def _end(self, launcher: "subprocess.Popen[bytes]") -> None:
        """Leave no launcher behind; it has nothing to do once every run has ended, but may not know it."""
        if any(not job.has_ended for job in self.sweep.runs) and self.queue is None:
            self.record.stop(Wish(signal.SIGTERM))
        for wait_seconds, end in ((_GRACE_SECONDS, launcher.terminate), (_GRACE_SECONDS, launcher.kill)):
            try:
                launcher.wait(0 if self.queue is not None else wait_seconds)
                return
            except subprocess.TimeoutExpired:
                end()
        launcher.wait()


class _Queue:
    """The sweep's jobs in Slurm's queue, as `squeue` lists them; asked now and then."""

    def __init__(self, record: Record, missing: list[int]) -> None:
        self.record, self.missing = record, missing
        self._asked_at = -_ASK_QUEUE_SECONDS
        self._absent: dict[str, int] = {}

    def ask(self, cancel: bool) -> None:
        """Look what is in the queue; with `cancel` take away what has not begun."""
        if time.monotonic() - self._asked_at < _ASK_QUEUE_SECONDS:
            return
        self._asked_at = time.monotonic()
        ids = self.record.queue_ids()
        command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}"]
        try:
            if cancel and ids:
                subprocess.run(["scancel", "--state=PENDING", *ids], capture_output=True, timeout=60, check=False)
            there = set(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split())
        except (OSError, subprocess.SubprocessError):
            return  # the controller is down, say: that tells nothing of the jobs
        self._absent = {id: 0 if id in there else self._absent.get(id, 0) + 1 for id in ids}

    def has_left(self, job: Job, launched: bool) -> bool:
        """Return whether a run's job is no longer in the queue: twice, since its last report may be on its way."""
        ids = self.record.queue_ids()
        if len(ids) != len(self.missing):
            return launched  # nothing was handed to Slurm
        return job.job not in self.missing or self._absent.get(ids[self.missing.index(job.job)], 0) >= 2


@contextmanager
def _noting() -> Generator[list[int]]:
    """Note during the block the signals that ask for an end."""
    told: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
