"""How many threads a run computes with: recorded, and not changed silently when it goes on."""

import json
import os
from pathlib import Path

import pytest

from normlab import threads

from .conftest import Command

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
