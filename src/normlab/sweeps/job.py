"""One run of a sweep: what a launcher calls, in a process and on a machine of its choice."""

import ctypes
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from normlab.errors import DONE, INTERRUPTED, TERMINATED, TIME_LIMIT_REACHED, CollapseError, NumericalError
from normlab.outputs.run_dir import RunDir
from normlab.sweeps.record import Job, Record, State, Sweep, Wish

_STATES: dict[int, State] = {
    DONE: "done",
    NumericalError.exit_code: "diverged",
    TIME_LIMIT_REACHED: "stopped",
    INTERRUPTED: "stopped",
    TERMINATED: "stopped",
}
_LOOK_SECONDS = 0.5  # between two looks whether the run is to stop
_REPEAT_SECONDS = 2.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def run(tree: Any) -> None:
    """Train one run of a sweep in a child process and report how it went; Hydra gives the number and the folder."""
    record = Record(Path(tree.sweep.folder))
    sweep = record.read()
    job = record.standing(sweep.runs[int(tree.sweep.job)])
    ranks = ranks_of_task()
    if int(ranks.get("RANK", 0)):
        _follow(job, sweep, record, ranks)
        return
    if _is_over(record, sweep):
        record.report(replace(job, state="not started", reason=why_not_started(record.wish())))
        return
    job = replace(job, host=platform.node(), pid=os.getpid(), queue_id=_queue_id())
    began = time.monotonic()
    told: list[int] = []

    def wish() -> Wish | None:
        if told:
            return Wish(told[-1], told.count(told[-1]))
        return record.wish() or (Wish(signal.SIGTERM) if _is_over(record, sweep) else None)

    with _noting(told) as handlers, record.log(job.job).open("ab") as log:
        first_byte = log.tell()
        # Started over once: a job that comes back from the queue goes on with what it has done.
        words = [word for word in job.overrides if first_byte == 0 or not word.startswith("fresh=")]
        child = _start(replace(job, overrides=tuple(words)), sweep, log, ranks)
        record.report(replace(job, state="running", exit_code=None, reason=None))
        code = _wait(child, wish)
    exit_code = code if code >= 0 else 128 - code
    run_dir = RunDir(Path(job.folder))
    job = replace(
        job,
        state=ending(exit_code, run_dir),
        exit_code=exit_code,
        reason=None if exit_code == DONE else _reason(code, record.log(job.job), first_byte, run_dir),
        seconds=round(job.seconds + time.monotonic() - began, 1),
    )
    if job.state == "failed" and sweep.on_error == "stop" and record.wish() is None:
        record.stop(Wish(None))
    record.report(job)
    # With this signal Slurm says that the job's time is nearly up; submitit knows how to have the job run again.
    if exit_code == TIME_LIMIT_REACHED and signal.SIGUSR1 in told and callable(handlers[signal.SIGUSR1]):
        _requeue(record, job, handlers[signal.SIGUSR1])


def _follow(job: Job, sweep: Sweep, record: Record, ranks: dict[str, str]) -> None:
    """Be another rank of a run, which ends with the first: that one hears what is wished, decides, and reports."""

    def wish() -> Wish | None:
        return Wish(signal.SIGTERM) if record.standing(job).state == "not started" else None

    with _noting([]), record.log(job.job, int(ranks["RANK"])).open("ab") as log:
        _wait(_start(job, sweep, log, ranks), wish)


def why_not_started(wish: Wish | None) -> str:
    return "a run has failed" if wish is not None and wish.signal is None else "the sweep was told to stop"


def _is_over(record: Record, sweep: Sweep) -> bool:
    return record.wish() is not None or not (sweep.queued or record.is_alive())


def ranks_of_task() -> dict[str, str]:
    """Return what makes a process one rank of a run, as torchrun says it, in a job of several tasks; else nothing."""
    if "SUBMITIT_EXECUTOR" not in os.environ:  # a job of another kind may have tasks too, of which we are but one
        return {}
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks == 1:
        return {}
    task = TorchDistributedEnvironment()
    # Slurm may have given each task a GPU of its own, which is then all that it sees.
    alone = len([name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]) == 1
    return {
        "RANK": str(task.rank),
        "WORLD_SIZE": str(task.world_size),
        "LOCAL_RANK": "0" if alone else str(task.local_rank),
        "LOCAL_WORLD_SIZE": "1" if alone else str(task.local_world_size),
        "MASTER_ADDR": task.master_addr,
        "MASTER_PORT": str(task.master_port),
    }


def command(job: Job, sweep: Sweep) -> list[str]:
    """Return what trains a run of a sweep."""
    configs = [] if sweep.config_dir is None else ["--config-dir", sweep.config_dir]
    return [sys.executable, "-m", "normlab", "train", *job.overrides, *configs]


def _start(job: Job, sweep: Sweep, log: BinaryIO, ranks: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start the run, in a session of its own, so that it gets each signal once: from us, wherever it came from."""
    environment = {**os.environ, **ranks, "NORMLAB_OUTPUTS": sweep.outputs}
    if job.threads is not None:
        environment["OMP_NUM_THREADS"] = str(job.threads)
    if job.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = job.gpu
    return subprocess.Popen(
        command(job, sweep),
        cwd=sweep.working_folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_prepare_child,
    )


def _prepare_child() -> None:
    # Slurm sends this one to every process of a job; until the run listens to it, it must not be its end.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    die_with_parent()


def die_with_parent() -> None:
    """Have the kernel end this process should its parent be killed (prctl PR_SET_PDEATHSIG; Linux alone)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _wait(child: "subprocess.Popen[bytes]", wish: Callable[[], Wish | None]) -> int:
    """Pass on what is wished until the child has ended, and return its exit code, -9 if signal 9 killed it."""
    sent, sent_at = None, 0.0
    while True:
        try:
            return child.wait(_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            asked = wish()
        if asked is None or asked.signal is None:
            continue
        # Again and again, since a run that is only just starting does not listen yet; but SIGINT twice means at once.
        again = asked.signal != signal.SIGINT and time.monotonic() - sent_at > _REPEAT_SECONDS
        if asked != sent or again:
            child.send_signal(asked.signal)
            sent, sent_at = asked, time.monotonic()


def ending(exit_code: int, run_dir: RunDir) -> State:
    """Return how a run ended: by its exit code, which a run that has diverged and one that has collapsed share."""
    status = run_dir.read_status()
    if exit_code == CollapseError.exit_code and status is not None and status.is_ended_by_collapse:
        return "collapsed"
    return _STATES.get(exit_code, "failed")


def _reason(code: int, log: Path, first_byte: int, run_dir: RunDir) -> str | None:
    """Return in a line why a run did not end well: what killed it, or what it said last, or what its folder says."""
    with log.open("rb") as file:
        file.seek(first_byte)
        said = file.read().decode(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    if code < 0 and -code not in _SIGNALS:
        return f"killed by signal {-code}"
    status = run_dir.read_status()
    # It may have saved all the same, and got the signal once more on its way out.
    if code < 0 and (status is None or status.state != "stopped"):
        return f"ended by signal {-code} before it listened"
    if errors:
        return errors[-1]
    return None if status is None else status.error


def _requeue(record: Record, job: Job, submitits: Callable[[int, None], Any]) -> None:
    """Let submitit put the job back into the queue, which ends this process, or say that it would not."""
    record.report(replace(job, state="requeued", reason="goes on in a job of its own"))
    try:
        submitits(signal.SIGUSR1, None)
    except Exception as error:
        record.report(replace(job, reason=f"{job.reason}; {' '.join(str(error).split())}"))


def _queue_id() -> str | None:
    """Return the name of the Slurm job that this process belongs to, `12_3` in an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID")


@contextmanager
def _noting(told: list[int]) -> Generator[dict[int, Any]]:
    """Note signals during the block; yield the handlers that were there before, and put them back."""

    def note(number: int, frame: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield {int(number): handler for number, handler in before.items()}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
