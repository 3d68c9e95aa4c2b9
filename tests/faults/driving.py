"""The command line of normlab, driven from outside: started, watched, killed, and looked at when it has ended."""

import importlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from normlab import cli, composition
from normlab.data.digits import digits

# Every command line is forked from one process that has imported all that a run imports, but for those of the trials
# that start cold.
COLD = 10  # trials of each kind, when all are made
for name in (
    *("normlab.launching", "normlab.verbs.train", "normlab.verbs.verify"),
    # What they import when it is needed; torch's compiler is what the first optimizer brings.
    *("torch._dynamo", "torch.utils.tensorboard"),
    "matplotlib.figure",
):
    importlib.import_module(name)
# What they would all make for themselves: Hydra's grammar, and the digits at the size that networks take.
composition.compose([])
digits()
torch.set_num_threads(1)

# A run of a second or two that saves, evaluates and samples often, so that there is always something to disturb.
BUSY = [
    "architecture.width=8",
    "train.batch_size=16",
    "train.until=40 steps",
    "every.log=4 steps",
    "every.sample=16 steps",
    "every.checkpoint=5 steps",
    "every.evaluate=16 steps",
    "evaluation.samples=200",
]
# The same, but nothing beside training and saving.
PLAIN = ["architecture.width=4", "train.batch_size=16", "evaluation=none", "every.checkpoint=2 steps"]


def starts_cold(number: int, trials: int) -> bool:
    """Return whether a trial starts what it disturbs cold: the first of `trials`, and the others spread over them."""
    return number % max(1, trials // COLD) == 0


@dataclass(frozen=True)
class Ended:
    """How a command line ended: its exit code (-9 if killed by signal 9), what it said, and the most memory it held."""

    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    peak_bytes: int


@dataclass
class Child:
    """A command line that runs, in a folder of its own for what it says."""

    pid: int
    folder: Path
    began: float

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, patience: float = 120) -> Ended:
        """Return how it ended; kill it and raise AssertionError if it has not within `patience` seconds."""
        deadline = time.monotonic() + patience
        while True:
            ended, status, usage = os.wait4(self.pid, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                os.wait4(self.pid, 0)
                raise AssertionError(f"still there after {patience} s: {(self.folder / 'stderr').read_text()}")
            time.sleep(0.002)
        stdout, stderr = ((self.folder / name).read_text() for name in ("stdout", "stderr"))
        seconds = time.monotonic() - self.began
        return Ended(os.waitstatus_to_exitcode(status), stdout, stderr, seconds, 1024 * usage.ru_maxrss)

    def alive(self) -> bool:
        """Return whether it has not ended; it stays to be waited for."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def start(
    folder: Path, *words: str, cold: bool = False, largest_file: int | None = None, outputs: Path | None = None
) -> Child:
    """Start a command line in a folder, with its runs below `outputs` there or elsewhere.

    `largest_file` is in bytes, and stands for a disk that is full beyond it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("stdout", "stderr"):
        (folder / name).write_text("")
    environment = {**os.environ, "NORMLAB_OUTPUTS": str(outputs or folder / "outputs"), "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    if cold:
        limit = [] if largest_file is None else ["prlimit", f"--fsize={largest_file}"]
        with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("w") as stderr:
            command = [*limit, sys.executable, "-m", "normlab", *words]
            child = subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr, cwd=folder)
        child.returncode = 0  # it is waited for here, not by subprocess
        return Child(child.pid, folder, began)
    pid = os.fork()
    if pid:
        return Child(pid, folder, began)
    exit_code = 1
    try:
        os.environ.update(environment)
        os.chdir(folder)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_TRUNC), descriptor)
        # A line at a time, as a process of its own does, so that a kill takes back nothing that was said.
        sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))
        if largest_file is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        cli.main(list(words))
    except SystemExit as ended:
        exit_code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def command(folder: Path, *words: str, patience: float = 120, **how: Any) -> Ended:
    """Run a command line to its end."""
    return start(folder, *words, **how).wait(patience)


def only_run(folder: Path) -> Path:
    """Return the one run below a folder."""
    (run,) = (path.parent for path in (folder / "outputs").glob("*/*/config.yaml"))
    return run


def digest(run: Path, folder: Path | None = None) -> str:
    """Return the state digest that `normlab verify` prints, in the folder where the run's plugins are if it has any."""
    verified = command(folder or run.parent / f".verify-{run.name}", "verify", "--digest-only", str(run))
    assert verified.exit_code == 0, verified.stderr
    return verified.stdout.strip()


def undisturbed(folder: Path, *words: str) -> str:
    """Return the digest in which a run ends that nothing happens to."""
    ended = command(folder, "train", *words)
    assert ended.exit_code == 0, ended.stderr
    return digest(only_run(folder), folder)


def newest_step(folder: Path) -> int:
    """Return the newest step of the one run below a folder that has a manifest; -1 if there is none."""
    manifests = (folder / "outputs").glob("*/*/checkpoints/step_*.pt.json")
    return max((int(path.name[len("step_") : -len(".pt.json")]) for path in manifests), default=-1)


def continued_from(stderr: str) -> int | None:
    """Return the step from which a command said that it continues; None if it said nothing of the sort."""
    said = re.findall(r"continues from step ([\d,]+) of", stderr)
    assert len(said) <= 1, stderr
    return int(said[0].replace(",", "")) if said else None


def require_clean(run: Path) -> None:
    """Raise AssertionError unless every step stands once, in order, and nothing half-written is left."""
    for name in ("metrics.jsonl", "evaluations.jsonl", "spectra.jsonl"):
        rows = [json.loads(line) for line in (run / name).read_text().splitlines()] if (run / name).exists() else []
        places = [(row["step"], row.get("generator"), row.get("network"), row.get("layer")) for row in rows]
        assert len(set(places)) == len(places), f"{name}: {places}"
        assert [row["step"] for row in rows] == sorted(row["step"] for row in rows), f"{name}: {places}"
    assert not list(run.rglob("*.partial")), list(run.rglob("*.partial"))


def wait_for(condition: Callable[[], bool], child: Child, patience: float = 60) -> bool:
    """Wait until a condition holds, as closely as can be; return False if the child ends first."""
    deadline = time.monotonic() + patience
    while not condition():
        if not child.alive() or time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    return True
