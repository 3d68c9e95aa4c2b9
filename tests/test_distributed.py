"""One run on several processes: the same run in one folder, whatever their number, and an end of all when one ends."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tqdm import tqdm

from normlab import distributed, following
from normlab.distributed import Team
from normlab.errors import DataError

from .conftest import Command, Result
from .ranks import as_rank, ended, run_ranks, start_ranks

TINY = [
    *("train", "architecture.width=4", "train.batch_size=16", "evaluation.samples=51", "every.log=1 step"),
    *("every.checkpoint=2 steps", "every.evaluate=4 steps", "optimizer=sgd", "optimizer.lr=0.05"),
]
ENDLESS = [*TINY, "train.until=100000 steps", "evaluation=none"]
MOST_SECONDS = 30.0  # for all to end once one has


def only_run(outputs: Path) -> Path:
    (run,) = (path.parent for path in outputs.glob("*/*/config.yaml"))
    return run


def rows(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def errors(results: list[Result]) -> list[str]:
    return [line for each in results for line in each.stderr.splitlines() if line.startswith("error: ")]


def numbers(run: Path, name: str) -> list[dict[str, object]]:
    """Return the rows of a file without what tells of the time."""
    hidden = ("seconds", "images_per_second")
    return [{key: value for key, value in row.items() if key not in hidden} for row in rows(run / name)]


def close(row: dict[str, object], other: dict[str, object]) -> bool:
    """Return whether rows are the same but for the rounding of float32 over a few steps."""
    return row.keys() == other.keys() and all(
        value == pytest.approx(other[key], rel=2e-3, abs=1e-5) if isinstance(value, float) else value == other[key]
        for key, value in row.items()
    )


def wait_for_steps(outputs: Path, count: int) -> Path:
    """Wait until a run has logged so many steps, and return its folder."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for file in outputs.glob("*/*/metrics.jsonl"):
            if file.read_text().count("\n") >= count:
                return file.parent
        time.sleep(0.02)
    raise AssertionError("the run has not begun")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks_and_is_that_of_one_process_to_rounding(
    normlab: Command, outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for until, count in (("3 steps", 2), ("6 steps", 1), ("8 steps", 3)):
        words = [*TINY, "train.batch_size=24", "ema.decay=0.9", f"train.until={until}"]
        results = run_ranks(tmp_path, *words, count=count) if count > 1 else [normlab(*words)]
        assert [each.exit_code for each in results] == [0] * count, results[0].stderr
        assert [(each.stdout, each.stderr) for each in results[1:]] == [("", "")] * (count - 1)
    run = only_run(outputs)
    assert [row["step"] for row in rows(run / "metrics.jsonl")] == [*range(1, 9)]
    assert json.loads((run / "environment.json").read_text())["ranks"] == 3

    monkeypatch.setenv("NORMLAB_OUTPUTS", str(tmp_path / "alone"))
    for until in ("3 steps", "6 steps", "8 steps"):
        assert normlab(*TINY, "train.batch_size=24", "ema.decay=0.9", f"train.until={until}").exit_code == 0
    alone = only_run(tmp_path / "alone")
    assert alone.name == run.name
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        ours, theirs = numbers(run, name), numbers(alone, name)
        assert len(ours) == len(theirs)
        assert all(map(close, ours, theirs))


@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_a_rank_ends_the_others_and_the_same_command_goes_on(
    normlab: Command, outputs: Path, tmp_path: Path, victim: int
) -> None:
    children = start_ranks(tmp_path, *ENDLESS)
    run = wait_for_steps(outputs, 3)
    os.kill(children[victim], signal.SIGKILL)
    began = time.monotonic()
    results = ended(tmp_path, children)

    assert time.monotonic() - began < MOST_SECONDS
    assert [each.exit_code for each in results] == [-9 if rank == victim else 5 for rank in range(2)]
    (line,) = errors(results)
    assert line.startswith(f"error: rank {victim}: is gone")
    if victim:
        assert json.loads((run / "status.json").read_text())["state"] == "failed"
    saved = max(int(file.stem.removeprefix("step_")) for file in (run / "checkpoints").glob("*.pt"))
    again = normlab(*ENDLESS, f"train.until={saved + 2} steps")
    assert again.exit_code == 0, again.stderr


def test_the_loss_of_a_machine_ends_all_in_as_little_time_by_what_its_socket_is_told() -> None:
    """Only the kernel's own clock is not waited for: this holds what it is told, and how long the first then takes."""
    with socket.create_server(("localhost", 0)) as server, socket.create_connection(server.getsockname()) as one:
        watched = distributed.watched(one)
        assert watched.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, between, questions = (
            watched.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{option}"))
            for option in ("IDLE", "INTVL", "CNT")
        )
    assert idle + questions * between + distributed.GRACE + distributed.SETTLING < MOST_SECONDS


@pytest.mark.slow
def test_the_death_of_a_rank_is_noticed_while_the_first_is_busy_with_something_else(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from normlab.training.trainer import Trainer

    monkeypatch.setattr(Trainer, "measure", lambda self: time.sleep(100))
    children = start_ranks(tmp_path, *ENDLESS)
    deadline = time.monotonic() + 60
    while not list(outputs.glob("*/*/samples/*.png")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    os.kill(children[1], signal.SIGKILL)
    began = time.monotonic()
    results = ended(tmp_path, children)

    assert time.monotonic() - began < MOST_SECONDS
    assert [each.exit_code for each in results] == [5, -9]
    assert len(errors(results)) == 1
    assert json.loads((only_run(outputs) / "status.json").read_text())["exit_code"] == 5


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)])
def test_a_signal_to_all_ranks_has_the_first_save_and_all_end_with_its_code(
    outputs: Path, tmp_path: Path, number: int, code: int
) -> None:
    children = start_ranks(tmp_path, *ENDLESS)
    run = wait_for_steps(outputs, 2)
    for child in reversed(children):
        os.kill(child, number)
    results = ended(tmp_path, children)

    assert [each.exit_code for each in results] == [code, code]
    assert errors(results) == []
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", code)
    assert (run / "checkpoints" / f"step_{status['step']:08d}.pt").exists()


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (
            ["train.batch_size=15"],
            2,
            r"train.batch_size: is 15, which 2 processes cannot share equally — .* such as 14",
        ),
        (["train.steps=3"], 2, r"train.steps: .*"),
        (["dataset=mnist", "dataset.root=nowhere", "dataset.download=false"], 3, r".*nowhere.*"),
        (["-m", "seed=0,1"], 2, r"-m: sweeps over runs that are processes of their own, .*tasks_per_node=N .*"),
    ],
    ids=["batch size", "configuration", "data", "sweep"],
)
def test_what_is_refused_is_so_in_one_line_and_ends_all_ranks_with_its_code(
    outputs: Path, tmp_path: Path, words: list[str], code: int, line: str
) -> None:
    results = run_ranks(tmp_path, *TINY, *words)

    assert [each.exit_code for each in results] == [code, code]
    assert "".join(each.stderr for each in results).count("\n") == 1
    assert re.fullmatch(f"error: {line}", errors(results)[0])
    assert not list(outputs.glob("*/*/config.yaml"))


def test_a_complete_run_is_told_once_and_check_starts_nothing(outputs: Path, tmp_path: Path) -> None:
    words = [*TINY, "train.until=1 step", "evaluation=none"]
    checked, first, again = (run_ranks(tmp_path, *words, *more) for more in (["--check"], [], []))

    assert [each.exit_code for results in (checked, first, again) for each in results] == [0] * 6
    assert "would train in" in checked[0].stdout
    assert again[0].stdout.startswith("already complete")
    assert [each.stdout + each.stderr for results in (checked, first, again) for each in results[1:]] == [""] * 3


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MemoryError(), 5, "out of memory — try a smaller train.batch_size or architecture.width"),
        (TypeError("a plugin's\nown"), 1, "TypeError: a plugin's — a bug; run.log shows where"),
        (DataError("images/3.png", "is torn", "fetch it again"), 3, "images/3.png is torn — fetch it again"),
    ],
    ids=["memory", "bug", "data"],
)
def test_what_goes_wrong_on_another_rank_is_said_by_the_first(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, line: str
) -> None:
    from normlab.training.step import Step

    take = Step.take

    def fails(step: Step) -> object:
        if step.ranks.rank == 1 and step.state.step == 2:
            raise error
        return take(step)

    monkeypatch.setattr(Step, "take", fails)
    results = run_ranks(tmp_path, *ENDLESS)

    assert [each.exit_code for each in results] == [code, code]
    assert errors(results) == [f"error: rank 1: {line}"]
    run = only_run(outputs)
    assert json.loads((run / "status.json").read_text())["error"] == f"error: rank 1: {line}"
    assert "    raise error\n" in (run / "run.log").read_text()  # of the traceback of the other


def test_local_statistics_keep_the_number_of_ranks_and_other_runs_tell_when_it_changes(
    copy_of: Callable[..., Path], normlab: Command
) -> None:
    """A run of one process that says that it was of two."""
    words = [*TINY, "train.batch_norm=local", "evaluation=none", "train.until=1 step"]
    for normalization, code in (("layer", 0), ("batch", 2)):
        run = copy_of(*words, f"normalization=both/{normalization}")
        environment = run / "environment.json"
        environment.write_text(environment.read_text().replace('"ranks": 1', '"ranks": 2'))
        goes_on = normlab(*words, f"normalization=both/{normalization}", "train.until=2 steps")
        assert goes_on.exit_code == code
        told = "processes: 1 from step 1 on, 2 before"
        assert (told in (run / "run.log").read_text()) == (code == 0)
        if code:
            assert goes_on.stderr == (
                "error: train.batch_norm: is local, of which 2 processes make something else than 1"
                " — start 2, or give allow_changes=[train.batch_norm]\n"
            )
            again = [*words, f"normalization=both/{normalization}", "train.until=2 steps"]
            assert normlab(*again, "--check").exit_code == 2
            assert normlab(*again, "allow_changes=[train.batch_norm]").exit_code == 0
            assert told in (run / "run.log").read_text()


def test_ranks_have_the_same_versions(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def versions() -> dict[str, str]:
        return {"normlab": "1.0", "torch": f"2.{os.environ['RANK']}"}

    monkeypatch.setattr(following, "versions", versions)
    results = run_ranks(tmp_path, *ENDLESS)

    assert [each.exit_code for each in results] == [2, 2]
    assert errors(results) == [
        "error: rank 1: versions differ from those of rank 0 (normlab 1.0, torch 2.1, not normlab 1.0, torch 2.0)"
        " — let all machines have the same installed"
    ]


def test_the_first_rank_warns_of_another_device(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "name_of", lambda device: f"GPU {os.environ['RANK']}")
    first, _ = run_ranks(tmp_path, *TINY, "train.until=1 step", "evaluation=none")

    assert "warning: rank 1 computes on GPU 1, and rank 0 on GPU 0\n" in first.stderr


def test_another_rank_draws_no_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    own, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stderr, os.fdopen(own, "rb"):
        monkeypatch.setattr(sys, "stderr", stderr)
        drawn = tqdm(disable=None)

        def looks() -> None:
            assert not drawn.disable
            assert tqdm(disable=None).disable
            raise InterruptedError

        team = SimpleNamespace(follow=looks, fail=lambda error: None)
        logger = logging.getLogger("normlab")
        level = logger.level
        with pytest.raises(InterruptedError):
            following.follow(cast(Team, team))
        logger.setLevel(level)
        drawn.close()


def test_only_several_processes_that_can_meet_are_ranks() -> None:
    from normlab.ranks import started

    with as_rank(1, 2, 29500):
        assert started() == 2
    assert started({"WORLD_SIZE": "4", "RANK": "1"}) == 1
    assert started({}) == 1


@pytest.mark.slow
def test_torchrun_starts_a_run_on_two_processes(outputs: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [*TINY, "train.until=2 steps", "evaluation=none"]
    done = subprocess.run([*command, "-m", "normlab", *words], capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: ") == 1
    assert [row["step"] for row in rows(only_run(outputs) / "metrics.jsonl")] == [1, 2]
