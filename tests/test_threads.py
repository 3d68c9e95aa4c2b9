"""How many threads a run computes with: recorded, and not changed silently when it goes on."""

import json
import os
from pathlib import Path

import pytest

from normlab import threads
from normlab.config import RunConfig
from normlab.outputs.run_dir import RunDir

from .conftest import Command
from .ranks import as_rank

QUICK = ["train", "architecture.width=4", "train.batch_size=16", "evaluation=none"]


def recorded(outputs: Path) -> int:
    (path,) = outputs.glob("*/*/environment.json")
    return json.loads(path.read_text())["threads"]


def test_a_run_goes_on_with_the_threads_that_it_began_with_unless_told_otherwise(
    normlab: Command, outputs: Path
) -> None:
    counts: list[int] = []
    for words in (["threads=2", "train.until=2 steps"], ["train.until=3 steps"], ["threads=1", "train.until=4 steps"]):
        assert normlab(*QUICK, *words).exit_code == 0
        counts.append(recorded(outputs))

    assert counts == [2, 2, 1]


def test_a_run_takes_all_cores_that_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    available = threads.cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    assert available == len(os.sched_getaffinity(0))
    assert threads.cores() == 3


def test_processes_on_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    counts: list[int] = []
    with as_rank(1, 4, 29500):
        for here in ("4", "3", "16"):
            monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
            counts.append(threads.cores())

    assert counts == [2, 2, 1]


def test_with_another_number_of_processes_a_run_takes_what_a_new_one_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run = RunDir(tmp_path)
    run.environment.write_text('{"threads": 8, "ranks": 2}')

    assert [threads.threads_of(RunConfig(), run, count) for count in (1, 2, 4)] == [3, 8, 3]
    assert threads.threads_of(RunConfig(), run, 4, share=5) == 5
    assert threads.threads_of(RunConfig(threads=7), run, 4, share=5) == 7
