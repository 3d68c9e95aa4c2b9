"""How a run of a sweep ended."""

from pathlib import Path
from typing import Any

import pytest

from normlab.outputs.run_dir import RunDir, Status
from normlab.sweeps import job


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
