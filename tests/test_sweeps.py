"""Sweeps: every run in a process of its own, one that fails stops no other, and a table at the end."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from normlab.normalizations import TECHNIQUES

from .conftest import Command, result, start

QUICK = ["architecture.width=16", "train.batch_size=16", "train.until=4 steps", "evaluation=none"]


def states(outputs: Path) -> dict[str, str]:
    """Return the state of every run by the name of its folder."""
    return {path.parent.name: json.loads(path.read_text())["state"] for path in outputs.glob("*/*/status.json")}


@pytest.mark.slow
def test_every_technique_trains_in_the_discriminator_and_in_both_networks(normlab: Command, outputs: Path) -> None:
    names = TECHNIQUES.names()
    discriminator = normlab("train", "-m", f"normalization={','.join(names)}", *QUICK)
    both = normlab("train", "-m", f"normalization={','.join(f'both/{name}' for name in names)}", *QUICK)

    assert (discriminator.exit_code, both.exit_code) == (0, 0), discriminator.stderr + both.stderr
    assert all(f"G:batch D:{name}" in discriminator.stdout for name in names)
    assert all(f"G:{name} D:{name}" in both.stdout for name in names)
    # G:batch D:batch is the same run in both sweeps.
    assert list(states(outputs).values()) == ["done"] * (2 * len(names) - 1)


@pytest.mark.slow
def test_a_failed_run_stops_no_other_and_the_same_command_runs_it_again(normlab: Command, outputs: Path) -> None:
    command = ["train", "-m", "optimizer.lr=1e-4,-1,2e-4", *QUICK]
    first = normlab(*command)
    second = normlab(*command)

    assert first.exit_code == second.exit_code == 8
    assert "error: sweep: 1 of 3 runs failed: #1 [2]" in first.stderr
    assert list(states(outputs).values()) == ["done", "done"]
    assert second.stdout.count("already complete") == 2


@pytest.mark.slow
def test_a_diverged_run_does_not_count_as_failed(normlab: Command, outputs: Path) -> None:
    diverging = ["optimizer=sgd", "optimizer.lr=0.01,1e30", "loss=wasserstein", "normalization=both/none", *QUICK]
    result = normlab("train", "-m", *diverging)

    assert result.exit_code == 0
    assert sorted(states(outputs).values()) == ["diverged", "done"]


def test_a_name_that_no_run_can_mean_is_refused_before_the_first_one(normlab: Command, outputs: Path) -> None:
    result = normlab("train", "-m", "normalization=none,spectrl", "lr=1,2", *QUICK)

    assert result.exit_code == 2
    assert "error: normalization: 'spectrl' is not known" in result.stderr
    assert "error: lr: is no setting" in result.stderr
    assert not outputs.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_a_signal_ends_a_sweep_after_its_run_has_saved(outputs: Path, tmp_path: Path, number: int, code: int) -> None:
    words = ["architecture.width=4", "evaluation=none", "train.until=1000000 steps", "every.log=1 step", "seed=0,1"]
    child = start(tmp_path, "train", "-m", *words)
    while not list(outputs.glob("*/*/metrics.jsonl")):
        time.sleep(0.05)
    os.kill(child, number)
    ended = result(tmp_path, os.waitpid(child, 0)[1])

    assert ended.exit_code == code, ended.stderr
    assert list(states(outputs).values()) == ["stopped"]
    assert "stopped" in ended.stdout
