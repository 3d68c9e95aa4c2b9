"""How a run of a sweep ended."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from normlab.outputs.run_dir import RunDir, Status
from normlab.sweeps import job
from normlab.sweeps.record import Job, Record, Sweep, Wish


@pytest.mark.parametrize(
    ("exit_code", "state", "expected"),
    [
        (6, "diverged", "diverged"),
        (6, "stopped", "collapsed"),
        (130, "stopped", "stopped"),
        (1, "failed", "failed"),
    ],
)
def test_what_shares_an_exit_code_is_told_apart(tmp_path: Path, exit_code: int, state: Any, expected: str) -> None:
    run = RunDir(tmp_path)
    run.write_status(Status(state=state, exit_code=exit_code, states={"collapsed": 100}))

    assert job.ending(exit_code, run) == expected


def test_a_run_that_left_no_folder_is_told_by_its_exit_code(tmp_path: Path) -> None:
    assert job.ending(6, RunDir(tmp_path / "nowhere")) == "diverged"
    assert job.ending(2, RunDir(tmp_path / "nowhere")) == "failed"


def test_another_task_of_a_job_leaves_it_to_the_first_whether_the_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop that comes before the other task looks, but after the first did, does not keep it from its run."""
    record = Record(tmp_path)
    launcher = {"name": "submitit_slurm", "settings": {"_target_": "SlurmLauncher"}}
    own = Job(job=0, overrides=(), folder=str(tmp_path))
    record.write(
        Sweep(
            words=(),
            hydra_words=(),
            config_dir=None,
            working_folder=str(tmp_path),
            outputs=str(tmp_path),
            on_error="stop",
            launcher=launcher,
            runs=(own,),
        )
    )
    words: list[str] = []
    monkeypatch.setattr(job, "command", lambda job, sweep: [sys.executable, "-c", *words])
    monkeypatch.setattr(job, "ranks_of_task", lambda: {"RANK": "1"})
    tree = SimpleNamespace(sweep=SimpleNamespace(folder=str(tmp_path), job=0))
    record.stop(Wish(None))

    record.report(replace(own, state="running"))
    words[:] = ["open('started', 'w')"]
    job.run(tree)
    assert (tmp_path / "started").exists()

    record.report(replace(own, state="not started"))
    words[:] = ["import time; time.sleep(60)"]
    began = time.monotonic()
    job.run(tree)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("visible", "local_rank", "beside"),
    [("3", "0", "1"), ("3,5", "1", "4"), ("0,1,2,3", "1", "4"), ("", "1", "4")],
)
def test_a_task_has_its_gpu_to_itself_only_where_it_sees_just_one(
    monkeypatch: pytest.MonkeyPatch, visible: str, local_rank: str, beside: str
) -> None:
    helpers = pytest.importorskip("submitit.helpers", reason="the launchers are the extra 'cluster'")
    task = SimpleNamespace(rank=5, world_size=8, local_rank=1, local_world_size=4, master_addr="one", master_port=29500)
    monkeypatch.setattr(helpers, "TorchDistributedEnvironment", lambda: task)
    monkeypatch.setattr("submitit.JobEnvironment", lambda: SimpleNamespace(num_tasks=8))
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    ranks = job.ranks_of_task()

    assert (ranks["RANK"], ranks["LOCAL_RANK"], ranks["LOCAL_WORLD_SIZE"]) == ("5", local_rank, beside)
