"""Sweeps: every run in a process of its own, one that fails stops no other, and a table at the end."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Command, result, start

# Every run that a sweep starts imports torch anew, some seconds; so runs are short, and as few as each claim needs.
QUICK = ["architecture.width=4", "train.batch_size=16", "train.until=2 steps", "evaluation=none"]


def states(outputs: Path) -> dict[str, str]:
    """Return the state of every run by the name of its folder."""
    return {path.parent.name: json.loads(path.read_text())["state"] for path in outputs.glob("*/*/status.json")}


@pytest.mark.slow
def test_a_sweep_over_techniques_trains_each_in_the_discriminator_and_in_both_networks(
    normlab: Command, outputs: Path
) -> None:
    alone = normlab("train", "normalization=batch", *QUICK)
    swept = normlab("train", "-m", "normalization=both/batch,spectral,both/spectral", *QUICK)

    assert (alone.exit_code, swept.exit_code) == (0, 0), alone.stderr + swept.stderr
    assert all(label in swept.stdout for label in ("G:batch D:batch", "G:batch D:spectral", "G:spectral D:spectral"))
    assert list(states(outputs).values()) == ["done"] * 3
    # The generator has batch normalization anyway, so the first is the same run in either name.
    assert [run["pid"] is None for run in records(outputs)[0]["runs"]] == [True, False, False]


def records(outputs: Path) -> list[dict[str, Any]]:
    """Return what every sweep has recorded, the oldest first."""
    return [json.loads(path.read_text()) for path in sorted(outputs.glob(".sweep/*/sweep.json"))]


def wait_for(condition: Callable[[], Any], seconds: float = 600) -> Any:
    """Return what a condition gives as soon as that is true; fail the test if it takes too long."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)
    return value


def processes(outputs: Path) -> list[str]:
    """Return the command lines of the processes that write below a folder of runs."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes().split(b"\0") if entry.name.isdecimal() else []
            command = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if f"NORMLAB_OUTPUTS={outputs}".encode() in environment and "normlab" in command:
            found.append(command)
    return found


@pytest.mark.slow
def test_a_failed_run_stops_no_other_and_the_same_command_runs_it_again(normlab: Command, outputs: Path) -> None:
    command = ["train", "-m", "optimizer.lr=-1,2e-4", *QUICK]
    first = normlab(*command)
    second = normlab(*command)

    assert first.exit_code == second.exit_code == 8
    assert "error: sweep: 1 of 2 runs failed: #0 [2]" in first.stderr
    assert list(states(outputs).values()) == ["done"]
    assert second.stdout.count("already complete") == 1
    before, after = records(outputs)
    assert before["state"] == "failed"
    assert [run["state"] for run in before["runs"]] == ["failed", "done"]
    assert before["runs"][0]["reason"] == "optimizer.lr: got -1 — give a number above 0"
    assert "optimizer.lr: got -1 — give a number above 0" in first.stdout
    assert "error: optimizer.lr: got -1" in next(outputs.glob(".sweep/*/job_0.log")).read_text()
    # What is complete has started no process.
    assert [run["pid"] is None for run in after["runs"]] == [False, True]


@pytest.mark.slow
def test_after_a_failure_nothing_more_is_started_if_so_wished(normlab: Command, outputs: Path) -> None:
    result = normlab("train", "-m", "optimizer.lr=-1,1e-4,2e-4", "on_error=stop", *QUICK)

    (record,) = records(outputs)
    assert result.exit_code == 8
    assert [run["state"] for run in record["runs"]] == ["failed", "not started", "not started"]
    assert states(outputs) == {}


@pytest.mark.slow
def test_a_killed_run_fails_alone_and_what_is_complete_needs_no_torch(outputs: Path, tmp_path: Path) -> None:
    words = ["train", "-m", "architecture.width=4", "evaluation=none", "train.batch_size=16", "seed=0,1"]
    child = start(tmp_path, *words, "train.until=100 steps", "every.log=1 step")
    log = wait_for(lambda: list(outputs.glob("*/*seed0*/metrics.jsonl")))[0]
    holder = json.loads((log.parent / ".lock.json").read_text())
    os.kill(holder["pid"], signal.SIGKILL)
    ended = result(tmp_path, os.waitpid(child, 0)[1])

    assert ended.exit_code == 8
    assert "killed by signal 9" in ended.stdout
    assert [run["exit_code"] for run in records(outputs)[0]["runs"]] == [137, 0]

    (log.parent / "status.json").unlink()
    shutil.rmtree(log.parent)
    code = (
        "import sys; from normlab.cli import run; code = run(sys.argv[1:]); assert 'torch' not in sys.modules; "
        "sys.exit(code)"
    )
    complete = [*words[:-1], "seed=1", "train.until=100 steps"]
    again = subprocess.run([sys.executable, "-c", code, *complete], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "already complete" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_run_a_study_and_the_same_command_does_what_is_missing(
    normlab: Command, outputs: Path, launcher: str
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the launchers are the extra 'cluster'")
    pytest.importorskip("submitit", reason="the launchers are the extra 'cluster'")
    assert normlab("train", "normalization=none", *QUICK).exit_code == 0
    command = ["train", "-m", f"hydra/launcher={launcher}", "normalization=none,layer,batch", *QUICK]
    first, second = normlab(*command), normlab(*command)

    assert (first.exit_code, second.exit_code) == (0, 0), first.stdout + first.stderr
    assert list(states(outputs).values()) == ["done"] * 3
    begun = [[run["pid"] is not None for run in record["runs"]] for record in records(outputs)]
    assert begun == [[False, True, True], [False, False, False]]
    assert [run["threads"] for run in records(outputs)[0]["runs"] if run["pid"] is not None] == [1, 1]
    assert processes(outputs) == []


@pytest.mark.slow
def test_a_terminal_shows_how_the_runs_stand_and_is_left_clean_by_ctrl_c(outputs: Path) -> None:
    words = ["architecture.width=4", "evaluation=none", "train.until=1000000 steps", "every.log=1 step", "seed=0,1"]
    command = [sys.executable, "-m", "normlab", "train", "-m", *words]
    outside, terminal = pty.openpty()
    size = {"COLUMNS": "60", "LINES": "20"}
    ends = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env={**os.environ, **size})
    os.close(terminal)
    shown = b""
    while b"images/s" not in shown:
        shown += os.read(outside, 65536)
    ends.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # what a terminal says whose last process has gone
        while more := os.read(outside, 65536):
            shown += more
    os.close(outside)

    assert ends.wait() == 130
    assert list(states(outputs).values()) == ["stopped"]
    live, _, closing = shown.decode().rpartition("\x1b[J")
    assert "waiting" in live
    assert "stopped" in closing
    assert "\x1b" not in closing
    assert max(len(line) for line in re.split(r"\r\n|\x1b\[\d+F", live)) < 60


@pytest.mark.slow
def test_a_folder_of_the_users_own_reaches_every_run(normlab: Command, outputs: Path, tmp_path: Path) -> None:
    (tmp_path / "my own" / "experiment").mkdir(parents=True)
    lines = ["# @package _global_", "hydra: {sweeper: {params: {seed: '0,1'}}}", "evaluation: {features: none}"]
    lines += ["architecture: {width: 4}", "train: {batch_size: 16, until: 2 steps}"]
    (tmp_path / "my own" / "experiment" / "study.yaml").write_text("\n".join(lines))
    words = ["experiment=study", "--config-dir", "my own"]
    alone, swept = normlab("train", *words), normlab("train", "-m", *words)

    assert (alone.exit_code, swept.exit_code) == (0, 0), alone.stderr + swept.stderr
    assert list(states(outputs).values()) == ["done", "done"]
    # The first is found to be complete, so it is the same run in the eyes of the sweep; the second is started.
    assert [run["pid"] is None for run in records(outputs)[0]["runs"]] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_no_process_is_left_when_a_sweep_is_killed(outputs: Path, tmp_path: Path, launcher: str) -> None:
    if launcher != "basic":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the launchers are the extra 'cluster'")
        pytest.importorskip("submitit", reason="the launchers are the extra 'cluster'")
    words = ["architecture.width=4", "evaluation=none", "train.until=1000000 steps", "every.log=1 step", "seed=0,1"]
    child = start(tmp_path, "train", "-m", f"hydra/launcher={launcher}", *words)
    wait_for(lambda: list(outputs.glob("*/*/metrics.jsonl")))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    wait_for(lambda: not processes(outputs))
    assert set(states(outputs).values()) == {"stopped"}


@pytest.mark.parametrize(
    ("word", "flag"), [("-m", "--cfg=job"), ("-m", "--info"), ("--check", "--cfg=job"), ("--check", "--x")]
)
def test_a_flag_that_does_nothing_there_is_refused_by_its_name(normlab: Command, word: str, flag: str) -> None:
    refused = normlab("train", word, "seed=0,1", flag)

    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"error: {flag}: is no flag that goes with {word}")


def test_a_sweep_leaves_flags_it_does_not_know_to_hydra() -> None:
    command = [sys.executable, "-m", "normlab", "train", "-m"]
    unknown, asked = (
        subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        for words in (["seed=0,1", "--dry-run"], ["--help"])
    )

    assert unknown.returncode == 2
    assert "unrecognized arguments: --dry-run" in unknown.stderr
    assert "add -m" not in unknown.stderr
    assert asked.returncode == 0


@pytest.mark.slow
def test_a_look_at_a_sweep_tells_what_is_missing_and_starts_nothing(normlab: Command, outputs: Path) -> None:
    nothing = normlab("train", "-m", "--check", "seed=0,1", *QUICK)
    assert nothing.exit_code == 0, nothing.stderr
    assert "2 of 2 runs are missing" in nothing.stdout
    assert "unknown until one has run" in nothing.stdout
    assert "by their checkpoints" in nothing.stdout
    assert not outputs.exists()

    normlab("train", "seed=0", *QUICK)
    before = sorted(outputs.rglob("*"))
    partly = normlab("train", "-m", "--check", "seed=0,1", *QUICK)
    assert "1 of 2 runs are missing" in partly.stdout
    assert "complete" in partly.stdout
    assert "of training" in partly.stdout
    assert "by runs like these" in partly.stdout
    assert sorted(outputs.rglob("*")) == before

    refused = normlab("train", "-m", "--check", "optimizer.lr=1e-4,-1", *QUICK)
    assert refused.exit_code == 2
    assert "error: optimizer.lr: got -1" in refused.stderr


@pytest.mark.slow
def test_a_diverged_run_does_not_count_as_failed(normlab: Command, outputs: Path) -> None:
    diverging = [
        "optimizer=sgd",
        "optimizer.lr=1e30",
        "loss=wasserstein",
        "force=true",
        "normalization=both/none",
        *QUICK,
    ]
    result = normlab("train", "-m", *diverging)

    assert result.exit_code == 0
    assert list(states(outputs).values()) == ["diverged"]


def test_a_name_that_no_run_can_mean_is_refused_before_the_first_one(normlab: Command, outputs: Path) -> None:
    result = normlab("train", "-m", "normalization=none,spectrl", "lr=1,2")

    assert result.exit_code == 2
    assert "error: normalization: 'spectrl' is not known" in result.stderr
    assert "error: lr: is no setting" in result.stderr
    assert not outputs.exists()


@pytest.mark.slow
def test_a_signal_ends_a_sweep_after_its_run_has_saved(outputs: Path, tmp_path: Path) -> None:
    """As Ctrl-C does, which has a test of its own, at a terminal."""
    words = ["architecture.width=4", "evaluation=none", "train.until=1000000 steps", "every.log=1 step", "seed=0,1"]
    child = start(tmp_path, "train", "-m", *words)
    while not list(outputs.glob("*/*/metrics.jsonl")):
        time.sleep(0.05)
    os.kill(child, signal.SIGTERM)
    ended = result(tmp_path, os.waitpid(child, 0)[1])

    assert ended.exit_code == 143, ended.stderr
    assert list(states(outputs).values()) == ["stopped"]
    assert "stopped" in ended.stdout


def has_slurm() -> bool:
    try:
        return subprocess.run(["sinfo", "--noheader"], capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(not has_slurm(), reason="no Slurm answers here (sinfo)")
def test_on_slurm_a_cancelled_job_stops_its_run_alone_and_the_same_command_goes_on(
    normlab: Command, outputs: Path, tmp_path: Path
) -> None:
    command = ["train", "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "seed=0,1,2"]
    command += ["architecture.width=4", "evaluation=none", "train.batch_size=16", "train.until=300 steps"]
    child = start(tmp_path, *command, "every.log=1 step")
    wait_for(lambda: list(outputs.glob("*/*seed1*/metrics.jsonl")))
    (report,) = outputs.glob(".sweep/*/job_1.json")
    subprocess.run(["scancel", json.loads(report.read_text())["queue_id"]], check=True)
    first = result(tmp_path, os.waitpid(child, 0)[1])
    second = normlab(*command)

    assert (first.exit_code, second.exit_code) == (75, 0), first.stdout + first.stderr
    assert [run["state"] for run in records(outputs)[0]["runs"]] == ["done", "stopped", "done"]
    assert [run["pid"] is None for run in records(outputs)[1]["runs"]] == [True, False, True]
    assert list(states(outputs).values()) == ["done"] * 3


@pytest.mark.slow
def test_the_tasks_of_a_job_are_the_ranks_of_one_run(normlab: Command, outputs: Path) -> None:
    tasks = ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"]
    ended = normlab("train", "-m", *tasks, *QUICK, "threads=1", "seed=0")

    assert ended.exit_code == 0, ended.stdout + ended.stderr
    assert [run["state"] for run in records(outputs)[0]["runs"]] == ["done"]
    (environment,) = outputs.glob("*/*/environment.json")
    assert json.loads(environment.read_text())["ranks"] == 2
    assert [path.read_text() for path in outputs.glob(".sweep/*/job_0.rank_1.log")] == [""]
