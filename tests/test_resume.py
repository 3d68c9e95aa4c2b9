"""The same command is the same run: stopped in any way and started again, it ends in the same state, bit for bit."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from normlab.errors import ResourceError
from normlab.evaluation.evaluator import Evaluator
from normlab.outputs import checkpoints
from normlab.outputs.checkpoints import Checkpoints, _HashingWriter
from normlab.outputs.sinks import JsonLines
from normlab.training import trainer
from normlab.training.step import Step

from .conftest import Command, result, start

ALL = ["none", "batch", "instance", "layer", "group", "weight", "spectral"]
# A run of a second that saves, evaluates and samples often: every few steps something can be interrupted.
BUSY = [
    "architecture.width=4",
    "train.batch_size=8",
    "train.until=20 steps",
    "every.log=5 steps",
    "every.sample=10 steps",
    "every.checkpoint=4 steps",
    "every.evaluate=10 steps",
    "every.spectra=10 steps",
    "evaluation.samples=50",
]
# A run of 8 steps that saves every 2.
SAVING = [
    *("train", "architecture.width=4", "train.batch_size=16", "train.until=8 steps"),
    *("evaluation=none", "every.checkpoint=2 steps", "every.log=1 step"),
]


def only_run(outputs: Path) -> Path:
    (run,) = (path.parent for path in outputs.glob("*/*/config.yaml"))
    return run


def digest(normlab: Command, run: Path) -> str:
    verified = normlab("verify", "--digest-only", str(run))
    assert verified.exit_code == 0, verified.stderr
    return verified.stdout


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def rows_without_time(path: Path) -> list[dict[str, object]]:
    without = ("seconds", "images_per_second")
    rows = map(json.loads, path.read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in without} for row in rows]


def tell_itself(number: int, times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)


def disturb_the_save_of_step_4(patch: pytest.MonkeyPatch, number: int, times: int = 1) -> None:
    """Let a process send itself a signal where a part of that checkpoint is written."""
    write = _HashingWriter.write

    def write_and_be_told(self: _HashingWriter, content: bytes) -> int:
        if self.bytes and "step_00000004" in str(self._file.name):
            tell_itself(number, times)
        return write(self, content)

    patch.setattr(_HashingWriter, "write", write_and_be_told)


def kill_beyond(step: int, seconds: float, outputs: Path, *words: str) -> int:
    """Start a command, kill it with signal 9 a while after its run has saved that step, and return how it ended."""
    child = start(outputs, *words)
    while not any(int(path.name[5:13]) >= step for path in outputs.glob("*/*/checkpoints/*.pt.json")):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return result(outputs, status).exit_code
        time.sleep(0.005)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return result(outputs, os.waitpid(child, 0)[1]).exit_code


@pytest.mark.slow
@pytest.mark.parametrize("technique", ALL)
@pytest.mark.parametrize("ema", ["none", "standard"])
def test_killed_and_started_again_a_run_ends_in_the_same_state(
    normlab: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, technique: str, ema: str
) -> None:
    words = ["train", f"normalization=both/{technique}", f"ema={ema}", *BUSY]
    if technique == "group":  # of whose channels a group has 16
        words += [f"normalization.{network}.channels_per_group=4" for network in ("generator", "discriminator")]
    monkeypatch.setenv("NORMLAB_OUTPUTS", str(tmp_path / "straight"))
    assert normlab(*words).exit_code == 0
    monkeypatch.setenv("NORMLAB_OUTPUTS", str(tmp_path / "killed"))
    (tmp_path / "killed").mkdir()
    moments = random.Random(f"{technique} {ema}")
    saved = sorted(moments.sample(range(0, 16, 4), 2))
    codes = [kill_beyond(step, moments.uniform(0, 0.1), tmp_path / "killed", *words) for step in saved]
    finished = normlab(*words)

    assert codes == [-signal.SIGKILL] * 2, (tmp_path / "killed" / "stderr").read_text()
    assert finished.exit_code == 0, finished.stderr
    straight, killed = only_run(tmp_path / "straight"), only_run(tmp_path / "killed")
    assert digest(normlab, killed) == digest(normlab, straight)
    for name in ("metrics.jsonl", "evaluations.jsonl", "spectra.jsonl"):
        assert steps(killed / name) == steps(straight / name)
        assert rows_without_time(killed / name) == rows_without_time(straight / name)
    grids = sorted(path.name for path in (straight / "samples").iterdir())
    assert grids == ["step_00000000.png", "step_00000010.png", "step_00000020.png"]
    assert all((killed / "samples" / name).read_bytes() == (straight / "samples" / name).read_bytes() for name in grids)
    assert 1 <= json.loads((killed / "status.json").read_text())["resumes"] <= 2


def test_evaluating_and_measuring_or_not_trains_the_same_bits(normlab: Command, outputs: Path) -> None:
    words = ["train", "architecture.width=4", "train.batch_size=16", "train.until=6 steps", "normalization=both/batch"]
    everything = ["every.evaluate=2 steps", "evaluation.samples=100", "evaluation.repeats=2"]
    everything += ["evaluation.reconstruction.images=2", "evaluation.reconstruction.steps=2"]
    everything += ["every.spectra=1 step", "every.log=1 step"]
    assert normlab(*words, "name=with", *everything).exit_code == 0
    assert normlab(*words, "name=without", "evaluation=none", "every.spectra=null", "every.log=null").exit_code == 0

    evaluated, plain = (only_run_of(outputs, name) for name in ("with", "without"))
    assert digest(normlab, evaluated) == digest(normlab, plain)
    assert steps(evaluated / "evaluations.jsonl") == [0, 2, 4, 6]
    assert [set(steps(run / "spectra.jsonl")) for run in (evaluated, plain)] == [set(range(7)), {0, 6}]


def only_run_of(outputs: Path, name: str) -> Path:
    (run,) = (outputs / name).iterdir()
    return run


def test_a_longer_run_extends_the_shorter_one(normlab: Command, outputs: Path) -> None:
    words = ["train", "architecture.width=4", "train.batch_size=16", "evaluation=none", "optimizer.schedule=linear"]
    horizon = "optimizer.schedule.horizon=20 steps"
    assert normlab(*words, horizon, "name=straight", "train.until=8 steps").exit_code == 0
    assert normlab(*words, horizon, "name=extended", "train.until=5 steps").exit_code == 0
    assert normlab(*words, horizon, "name=extended", "train.until=8 steps").exit_code == 0

    straight, extended = only_run_of(outputs, "straight"), only_run_of(outputs, "extended")
    assert digest(normlab, extended) == digest(normlab, straight)


def test_a_longer_until_does_not_move_the_schedules_horizon(normlab: Command, outputs: Path) -> None:
    words = ["train", "architecture.width=4", "train.batch_size=16", "evaluation=none", "optimizer.schedule=linear"]
    assert normlab(*words, "train.until=5 steps").exit_code == 0
    assert normlab(*words, "train.until=8 steps").exit_code == 0

    assert "horizon: 5 steps" in (only_run(outputs) / "config.yaml").read_text()


def test_a_complete_run_says_so_and_changes_nothing(normlab: Command, outputs: Path) -> None:
    words = ["train", "architecture.width=4", "train.until=2 steps", "evaluation=none"]
    assert normlab(*words).exit_code == 0
    before = {path: path.read_bytes() for path in only_run(outputs).rglob("*") if path.is_file()}
    again = normlab(*words)

    assert again.exit_code == 0
    assert again.stdout.startswith("already complete: ")
    assert {path: path.read_bytes() for path in only_run(outputs).rglob("*") if path.is_file()} == before


def test_fresh_sets_the_old_folder_aside(normlab: Command, copy_of: Callable[..., Path]) -> None:
    words = ["train", "architecture.width=4", "train.until=2 steps", "evaluation=none"]
    run = copy_of(*words)
    before = digest(normlab, run)
    assert normlab(*words, "fresh=true").exit_code == 0

    aside = run.with_name(run.name + ".old-1")
    assert digest(normlab, aside) == before == digest(normlab, run)
    assert json.loads((run / "status.json").read_text())["resumes"] == 0


def test_resume_works_from_another_folder(normlab: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", "architecture.width=4", "train.batch_size=16", "evaluation=none"]
    assert normlab(*words, "train.until=3 steps").exit_code == 0
    run = only_run(outputs)
    monkeypatch.delenv("NORMLAB_OUTPUTS")
    (outputs / "elsewhere").mkdir()
    monkeypatch.chdir(outputs / "elsewhere")
    resumed = normlab("train", f"resume=../{run.parent.name}/{run.name}", "train.until=6 steps")

    assert resumed.exit_code == 0
    assert json.loads((run / "status.json").read_text())["step"] == 6
    assert list((outputs / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 75)], ids=["INT", "TERM", "USR1"]
)
def test_a_signal_saves_and_stops(normlab: Command, outputs: Path, tmp_path: Path, number: int, code: int) -> None:
    words = ["train", "architecture.width=4", "train.until=1000000 steps", "evaluation=none", "every.log=1 step"]
    child = start(tmp_path, *words)
    while not list(outputs.glob("*/*/metrics.jsonl")):
        time.sleep(0.02)
    os.kill(child, number)
    ended = result(tmp_path, os.waitpid(child, 0)[1])
    status = json.loads((only_run(outputs) / "status.json").read_text())

    assert ended.exit_code == code
    assert (status["state"], status["exit_code"]) == ("stopped", code)
    assert f"step_{status['step']:08d}.pt.json" in {path.name for path in (only_run(outputs) / "checkpoints").iterdir()}
    assert f"normlab train resume={only_run(outputs)}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_time_limit_saves_and_stops(normlab: Command, outputs: Path) -> None:
    words = ["train", "architecture.width=4", "train.batch_size=16", "train.until=1000000 steps", "evaluation=none"]
    ended = normlab(*words, "train.time_limit=0.04 minutes")

    assert ended.exit_code == 75
    assert json.loads((only_run(outputs) / "status.json").read_text())["step"] > 0


def test_a_second_process_is_turned_away(normlab: Command, outputs: Path, tmp_path: Path) -> None:
    words = ["train", "architecture.width=4", "train.until=1000000 steps", "evaluation=none", "every.log=1 step"]
    (tmp_path / "first").mkdir()
    child = start(tmp_path / "first", *words)
    while not list(outputs.glob("*/*/metrics.jsonl")):
        time.sleep(0.02)
    second = normlab(*words)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    assert second.exit_code == 7
    assert f"is in use by process {child} on" in second.stderr


def test_other_images_behind_the_same_name_are_refused(normlab: Command, outputs: Path, tmp_path: Path) -> None:
    from PIL import Image

    for folder, shade in (("one", 40), ("two", 200)):
        (tmp_path / folder).mkdir()
        for number in range(12):
            Image.new("RGB", (32, 32), (shade, number, 0)).save(tmp_path / folder / f"{number}.png")
    words = ["train", "dataset=image_folder", "architecture.width=4", "evaluation=none", "train.batch_size=4"]
    assert normlab(*words, f"dataset.root={tmp_path / 'one'}", "train.until=2 steps").exit_code == 0
    other = normlab(*words, f"dataset.root={tmp_path / 'two'}", "train.until=4 steps")

    assert other.exit_code == 2
    assert "error: dataset.root: the images differ" in other.stderr


def test_a_run_with_every_default_is_extended(normlab: Command, outputs: Path) -> None:
    words = ["train", "architecture.width=4", "evaluation=none"]
    assert normlab(*words, "train.until=2 steps").exit_code == 0
    extended = normlab(*words, "train.until=3 steps")

    assert extended.exit_code == 0, extended.stderr
    assert json.loads((only_run(outputs) / "status.json").read_text())["step"] == 3


def test_two_ways_to_say_the_same_settings_are_the_same_run(normlab: Command, outputs: Path) -> None:
    words = ["train", "architecture.width=4", "evaluation=none", "train.until=2 steps"]
    assert normlab(*words, "optimizer.name=adamw").exit_code == 0
    again = normlab(*words, "optimizer=adamw")

    assert again.exit_code == 0, again.stderr
    assert again.stdout.startswith("already complete")
    assert "weight_decay: 0.01" in (only_run(outputs) / "config.yaml").read_text()


def test_a_number_written_otherwise_is_the_same_run(normlab: Command, outputs: Path) -> None:
    words = ["train", "evaluation=none", "train.until=2 steps"]
    assert normlab(*words, "architecture.width=4", "optimizer.betas=[0,0.9]").exit_code == 0
    again = normlab(*words, "architecture.width=4.0", "optimizer.betas=[0.0,0.9]")

    assert again.exit_code == 0, again.stderr
    assert again.stdout.startswith("already complete")


def test_a_run_that_outlives_its_schedule_says_that_it_learns_nothing_any_more(normlab: Command, outputs: Path) -> None:
    words = ["train", "architecture.width=4", "evaluation=none", "optimizer.schedule=linear"]
    first, longer = normlab(*words, "train.until=2 steps"), normlab(*words, "train.until=4 steps")

    assert (first.exit_code, longer.exit_code) == (0, 0)
    assert "learning rate is 0" not in first.stderr
    assert "warning: the learning rate is 0 before the run ends" in longer.stderr


def test_fresh_sets_aside_checkpoints_that_have_lost_their_configuration(
    normlab: Command, copy_of: Callable[..., Path]
) -> None:
    words = ["train", "architecture.width=4", "evaluation=none", "train.until=2 steps"]
    run = copy_of(*words)
    (run / "config.yaml").unlink()
    fresh = normlab(*words, "fresh=true")

    assert fresh.exit_code == 0, fresh.stderr
    assert "continues" not in fresh.stderr
    assert not (run.with_name(f"{run.name}.old-1") / ".lock.json").exists()


def test_killed_before_its_first_checkpoint_a_run_shows_each_step_once(
    normlab: Command, outputs: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["train", "architecture.width=4", "evaluation=none", "every.checkpoint=null", "every.log=1 step"]
    child = start(tmp_path, *words, "train.until=1000000 steps")
    while not list(outputs.glob("*/*/metrics.jsonl")) or len(steps(only_run(outputs) / "metrics.jsonl")) < 5:
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert normlab(*words, "train.until=8 steps").exit_code == 0

    events = EventAccumulator(str(only_run(outputs) / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/generator")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert steps(only_run(outputs) / "metrics.jsonl") == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew_in_silence(normlab: Command, outputs: Path) -> None:
    words = ["train", "architecture.width=4", "evaluation=none", "every.log=1 step"]
    assert normlab(*words, "train.until=2 steps").exit_code == 0
    for file in (only_run(outputs) / "checkpoints").iterdir():
        file.unlink()
    rows = (only_run(outputs) / "metrics.jsonl").read_bytes()
    refused = normlab(*words, "train.until=4 steps")

    assert refused.exit_code == 4
    assert "fresh=true" in refused.stderr
    assert (only_run(outputs) / "metrics.jsonl").read_bytes() == rows


def test_a_run_finds_its_data_from_another_folder(
    normlab: Command, outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for number in range(12):
        Image.new("RGB", (32, 32), (40, number, 0)).save(tmp_path / "pictures" / f"{number}.png")
    words = ["train", "dataset=image_folder", "architecture.width=4", "evaluation=none", "train.batch_size=4"]
    assert normlab(*words, "dataset.root=pictures", "train.until=2 steps").exit_code == 0
    run = only_run(outputs)
    monkeypatch.chdir("/")
    resumed = normlab("train", f"resume={run}", "train.until=3 steps")

    assert resumed.exit_code == 0, resumed.stderr


def test_a_signal_that_comes_while_a_row_is_written_stops_after_saving(
    normlab: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from normlab.outputs.recorder import Recorder

    write = Recorder.scalars

    def write_and_be_told(self: Recorder, position, scalars) -> None:
        write(self, position, scalars)
        if position.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "scalars", write_and_be_told)
    words = ["train", "architecture.width=4", "evaluation=none", "every.log=1 step", "train.until=9 steps"]
    ended = normlab(*words)
    status = json.loads((only_run(outputs) / "status.json").read_text())

    assert ended.exit_code == 143
    assert (only_run(outputs) / "checkpoints" / f"step_{status['step']:08d}.pt.json").exists()


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGINT, 130, "interrupted\n"),
        (signal.SIGTERM, 143, "ended by SIGTERM; nothing was under way that could be lost\n"),
        (signal.SIGUSR1, 75, "ended by SIGUSR1; nothing was under way that could be lost\n"),
    ],
    ids=["INT", "TERM", "USR1"],
)
def test_a_signal_before_training_ends_at_once_and_leaves_nothing(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, says: str
) -> None:
    def prepare_for_long(*_: object) -> None:
        (tmp_path / "preparing").touch()
        time.sleep(60)

    monkeypatch.setattr("normlab.assemble.gather", prepare_for_long)
    child = start(tmp_path, "train")
    while not (tmp_path / "preparing").exists():
        time.sleep(0.02)
    os.kill(child, number)
    ended = result(tmp_path, os.waitpid(child, 0)[1])

    assert ended.exit_code == code
    assert ended.stderr == says
    assert not outputs.exists()


@pytest.mark.parametrize(("refused", "code"), [({2, 4}, 0), ({2, 4, 6}, 5), ({8}, 5)], ids=["twice", "thrice", "last"])
def test_a_disk_that_refuses_a_checkpoint_ends_a_run_only_when_it_must(
    normlab: Command,
    outputs: Path,
    trained: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    refused: set[int],
    code: int,
) -> None:
    save = Checkpoints.save

    def save_unless_full(self: Checkpoints, step: int, state: dict[str, object]) -> None:
        if step in refused:
            raise ResourceError(str(self.file(step)), "cannot be written: no space left on device", "make room")
        save(self, step, state)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_unless_full)
        ended = normlab(*SAVING)
    again = normlab(*SAVING)

    assert ended.exit_code == code
    assert "step 2 is not saved, training goes on" in ended.stderr or refused == {8}
    assert again.exit_code == 0
    assert digest(normlab, only_run(outputs)) == digest(normlab, trained(*SAVING))


def test_minutes_between_checkpoints_pass_between_refused_ones_too(
    normlab: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, seconds = Checkpoints.save, itertools.count(step=10)

    def save_the_ends_alone(self: Checkpoints, step: int, state: dict[str, object]) -> None:
        if step not in (0, 15):
            raise ResourceError(str(self.file(step)), "cannot be written: no space left on device", "make room")
        save(self, step, state)

    # A clock that a look moves on by ten seconds: a step takes as many, so a minute is over twice before the end.
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    monkeypatch.setattr(Checkpoints, "save", save_the_ends_alone)
    words = ["architecture.width=4", "train.batch_size=16", "evaluation=none", "every.log=null", "every.sample=null"]
    ended = normlab("train", *words, "train.until=15 steps", "every.checkpoint=1 minutes")

    assert ended.exit_code == 0, ended.stderr
    assert ended.stderr.count("is not saved, training goes on") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=["INT", "TERM", "USR1"])
def test_a_signal_that_comes_when_all_is_done_changes_nothing(number: int) -> None:
    program = f"""
import atexit, os
from normlab import cli
atexit.register(os.kill, os.getpid(), {int(number)})
cli.main(["--help"])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["save", "step"])
def test_a_second_interrupt_ends_a_run_where_it_stands(
    normlab: Command, outputs: Path, trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    take = Step.take

    def take_and_be_told(self: Step) -> dict[str, object]:
        if self.state.step == 3:
            tell_itself(signal.SIGINT, times=2)
        return take(self)

    with monkeypatch.context() as patch:
        if place == "save":
            disturb_the_save_of_step_4(patch, signal.SIGINT, times=2)
        else:
            patch.setattr(Step, "take", take_and_be_told)
        ended = normlab(*SAVING)
    run = only_run(outputs)
    verified = normlab("verify", str(run))

    assert ended.exit_code == 130, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "a bug" not in ended.stderr
    assert verified.exit_code == 0, verified.stderr
    assert "state digest of step 2: " in verified.stdout
    assert not list(run.rglob("*.partial"))
    again = normlab(*SAVING)
    assert again.exit_code == 0, again.stderr
    assert digest(normlab, run) == digest(normlab, trained(*SAVING))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["file", "manifest"])
def test_killed_within_a_save_a_run_goes_on_from_the_checkpoint_before(
    normlab: Command, outputs: Path, trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    write_atomically = checkpoints.write_atomically

    def die_before_the_manifest_of_step_4(path: Path, content: bytes) -> None:
        if path.name == "step_00000004.pt.json":
            tell_itself(signal.SIGKILL)
        write_atomically(path, content)

    with monkeypatch.context() as patch:
        if place == "file":
            disturb_the_save_of_step_4(patch, signal.SIGKILL)
        else:
            patch.setattr(checkpoints, "write_atomically", die_before_the_manifest_of_step_4)
        killed = normlab(*SAVING)
    run = only_run(outputs)
    left = {path.name for path in (run / "checkpoints").iterdir()}
    again = normlab(*SAVING)

    assert killed.exit_code == -signal.SIGKILL
    assert any(name.endswith(".partial") for name in left) == (place == "file")
    assert ("step_00000004.pt" in left, "step_00000004.pt.json" in left) == (place == "manifest", False)
    assert again.exit_code == 0, again.stderr
    assert ("removed 1 half-written file(s) in" in again.stderr) == (place == "file")
    assert "continues from step 2 of 8" in again.stderr
    assert not list(run.rglob("*.partial"))
    assert digest(normlab, run) == digest(normlab, trained(*SAVING))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "generator"),
    [
        (signal.SIGKILL, -signal.SIGKILL, "live"),
        (signal.SIGKILL, -signal.SIGKILL, "averaged"),
        (signal.SIGTERM, 143, "live"),
        (signal.SIGUSR1, 75, "averaged"),
    ],
    ids=["KILL-live", "KILL-averaged", "TERM-live", "USR1-averaged"],
)
def test_ended_within_an_evaluation_a_run_makes_it_up_and_no_other(
    normlab: Command,
    outputs: Path,
    trained: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
    generator: str,
) -> None:
    # Evaluations at steps 0, 2 and 4, each of the live generator and then of the averaged one.
    words = ["train", "architecture.width=4", "train.batch_size=16", "train.until=4 steps", "ema=standard"]
    words += ["every.evaluate=2 steps", "evaluation.samples=60", "evaluation.batch_size=20"]
    sample, calls = Evaluator._sample, itertools.count()

    def sample_and_be_told(self: Evaluator, *arguments: Any) -> Iterator[Tensor]:
        disturbed = next(calls) == (2 if generator == "live" else 3)
        for batch, images in enumerate(sample(self, *arguments)):
            if disturbed and batch == 1:
                (tmp_path / "told").touch()
                tell_itself(number)
            yield images

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "_sample", sample_and_be_told)
        ended = normlab(*words)
    took = time.time() - (tmp_path / "told").stat().st_mtime
    straight, run = trained(*words), only_run(outputs)

    assert ended.exit_code == code, ended.stderr
    assert took < 10
    assert (run / "checkpoints" / "step_00000002.pt.json").exists()
    scored = [(row["step"], row["generator"]) for row in rows_without_time(run / "evaluations.jsonl")]
    assert scored == [(0, "live"), (0, "averaged"), *([(2, "live")] if generator == "averaged" else [])]
    again = normlab(*words)
    assert again.exit_code == 0, again.stderr
    assert "continues from step 2 of 4" in again.stderr
    assert rows_without_time(run / "evaluations.jsonl") == rows_without_time(straight / "evaluations.jsonl")
    scored = [(row["step"], row["generator"]) for row in rows_without_time(run / "evaluations.jsonl")]
    assert scored == [(step, name) for step in (0, 2, 4) for name in ("live", "averaged")]
    assert digest(normlab, run) == digest(normlab, straight)


@pytest.mark.parametrize("due", [4, pytest.param(3, marks=pytest.mark.slow)], ids=["at a checkpoint", "between two"])
def test_killed_within_its_spectra_a_run_has_each_row_once_and_ends_the_same(
    normlab: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch, due: int
) -> None:
    append = JsonLines.append

    def append_and_die(self: JsonLines, row: Mapping[str, Any]) -> None:
        append(self, row)
        if self.path.name == "spectra.jsonl" and (row["step"], row["network"], row["layer"]) == (due, "generator", "3"):
            tell_itself(signal.SIGKILL)

    words = [*SAVING, "train.until=6 steps", f"every.spectra={due} steps"]
    assert normlab(*words, "name=straight").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "append", append_and_die)
        killed = normlab(*words, "name=killed")
    straight, run = (only_run_of(outputs, name) for name in ("straight", "killed"))
    left = rows_without_time(run / "spectra.jsonl")
    again = normlab(*words, "name=killed")

    assert killed.exit_code == -signal.SIGKILL
    assert left[-1]["step"] == due
    assert again.exit_code == 0, again.stderr
    assert f"continues from step {due // 2 * 2} of 6" in again.stderr
    rows = rows_without_time(straight / "spectra.jsonl")
    assert rows_without_time(run / "spectra.jsonl") == rows
    places = [(row["step"], row["network"], row["layer"]) for row in rows]
    assert sorted(set(places), key=places.index) == places
    assert {row["step"] for row in rows} == {0, due, 6}
    # The estimates of a run that was killed are those of one that was not.
    assert rows_without_time(run / "metrics.jsonl") == rows_without_time(straight / "metrics.jsonl")
    ends = [Checkpoints(folder / "checkpoints").load(6) for folder in (run, straight)]
    assert len({checkpoints.state_digest(end) for end in ends}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "every", "too_large"),
    # Step 0, without moments, is small enough to be read where all others are too large.
    [(4, "1 step", True), (4, "2 steps", False), (20, "1 step", False)],
    ids=["smaller", "smaller with step 0", "larger"],
)
def test_a_checkpoint_of_another_width_is_refused_and_stays(
    normlab: Command, outputs: Path, width: int, every: str, too_large: bool
) -> None:
    words = ["train.batch_size=16", "evaluation=none", f"every.checkpoint={every}"]
    assert normlab("train", *words, "architecture.width=16", "train.until=2 steps").exit_code == 0
    run = only_run(outputs)
    before = {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    changed = [f"architecture.width={width}", "allow_changes=[architecture.width]"]
    refused = normlab("train", f"resume={run}", *changed, "train.until=4 steps")
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    after = {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    extended = normlab("train", f"resume={run}", "train.until=4 steps")

    assert refused.exit_code == 4
    assert after == before
    if too_large:
        assert "only of more bytes than a state of this run takes" in line
    else:
        assert "does not fit this run: " in line
        assert 1 <= line.count(", not float32 [") <= 5
        assert re.search(r"; and \d+ more — ", line)
    assert extended.exit_code == 0, extended.stderr
    assert "continues from step 2 of 4" in extended.stderr
    assert not list(run.rglob("*.corrupt"))


def test_a_checkpoint_larger_than_any_of_its_run_is_set_aside_for_the_one_that_takes_its_place(
    normlab: Command, copy_of: Callable[..., Path]
) -> None:
    run = copy_of(*SAVING, "train.until=4 steps")
    saved = Checkpoints(run / "checkpoints")
    expected = digest(normlab, run)
    saved.save(4, {**saved.load(4), "padding": torch.zeros(10**6)})
    (run / "status.json").write_text((run / "status.json").read_text().replace('"done"', '"running"'))
    again = normlab(*SAVING, "train.until=4 steps")

    assert again.exit_code == 0, again.stderr
    assert "more than a state of this run takes; trying the one before it" in again.stderr
    assert "continues from step 2 of 4" in again.stderr
    assert digest(normlab, run) == expected
    assert (run / "checkpoints" / "step_00000004.pt.corrupt").exists()


@pytest.mark.slow
def test_where_every_checkpoint_is_damaged_only_fresh_begins_anew(
    normlab: Command, copy_of: Callable[..., Path]
) -> None:
    run = copy_of(*SAVING, "train.until=4 steps")
    for file in (run / "checkpoints").glob("*.pt"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(bytes(content))
    rows = (run / "metrics.jsonl").read_bytes()
    for _ in range(2):
        refused = normlab(*SAVING)
        (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
        assert refused.exit_code == 4
        assert "has checkpoints, but no sound one — fresh=true starts over" in line
        assert (run / "metrics.jsonl").read_bytes() == rows
    fresh = normlab(*SAVING, "fresh=true")

    assert fresh.exit_code == 0, fresh.stderr
    aside = run.with_name(run.name + ".old-1")
    assert (aside / "metrics.jsonl").read_bytes() == rows
    assert steps(run / "metrics.jsonl") == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("left", ["rows and status", "status", "files"])
def test_a_run_whose_manifests_are_lost_never_begins_anew(
    normlab: Command, copy_of: Callable[..., Path], left: str
) -> None:
    words = [*SAVING, "train.until=4 steps"]
    run = copy_of(*words)
    for manifest in (run / "checkpoints").glob("*.json"):
        manifest.unlink()
    if left != "rows and status":
        (run / "metrics.jsonl").unlink()
    if left == "files":
        (run / "status.json").unlink()
    refused = normlab(*SAVING)

    assert refused.exit_code == 4
    assert "holds no checkpoint with its manifest, although the run was trained to step 4" in refused.stderr
    assert (run / "checkpoints" / "step_00000004.pt").exists()


def test_a_finished_run_that_cannot_be_extended_stays_finished(normlab: Command, copy_of: Callable[..., Path]) -> None:
    words = [*SAVING, "train.until=4 steps"]
    run = copy_of(*words)
    assert normlab("clean", str(run)).exit_code == 0
    checked, refused, again = normlab(*SAVING, "--check"), normlab(*SAVING), normlab(*words)

    assert (checked.exit_code, refused.exit_code, again.exit_code) == (4, 4, 0)
    assert "already complete" in again.stdout
    assert json.loads((run / "status.json").read_text())["state"] == "done"


def test_a_killed_clean_leaves_every_checkpoint(
    normlab: Command, copy_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(*SAVING, "train.until=4 steps")
    expected = digest(normlab, run)
    write_atomically, calls = checkpoints.write_atomically, itertools.count()

    def die_at_the_fourth(path: Path, content: bytes) -> None:
        if next(calls) == 3:  # the last manifest of the second checkpoint
            tell_itself(signal.SIGKILL)
        write_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_atomically", die_at_the_fourth)
        killed = normlab("clean", str(run))
    verified = normlab("verify", str(run))

    assert killed.exit_code == -signal.SIGKILL
    assert verified.exit_code == 0, verified.stderr
    assert "state digest of step 4" in verified.stdout
    assert digest(normlab, run) != expected  # of the optimizers nothing is left
    assert normlab("clean", str(run)).exit_code == 0


def test_with_other_images_a_finished_run_is_not_called_complete(
    normlab: Command, outputs: Path, tmp_path: Path
) -> None:
    for name, level in (("a", 0), ("b", 9), ("c", 0)):
        images = np.random.default_rng(level).integers(0, 256, (64, 32, 32), dtype=np.uint8)
        np.save(tmp_path / f"{name}.npy", images)
    words = [*SAVING, "train.until=2 steps", "dataset=arrays"]
    assert normlab(*words, f"dataset.root={tmp_path / 'a.npy'}").exit_code == 0
    other, copy = (normlab(*words, f"dataset.root={tmp_path / name}") for name in ("b.npy", "c.npy"))
    checked = normlab(*words, f"dataset.root={tmp_path / 'b.npy'}", "--check")
    told = [f"resume={only_run(outputs)}", f"dataset.root={tmp_path / 'b.npy'}", "allow_changes=[dataset.root]"]
    allowed = normlab("train", *told, "train.until=4 steps")

    assert (other.exit_code, copy.exit_code, checked.exit_code, allowed.exit_code) == (2, 0, 2, 0), allowed.stderr
    assert "the images differ from those that the run began with" in other.stderr
    assert "already complete" in copy.stdout
    assert "dataset.root: the images differ from those that the run began with" in allowed.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("status.json", '{"state": "done", "step": "x"}'),
        ("status.json", "[" * 100_000),
        ("environment.json", '{"dataset": [1], "threads": "many"}'),
        ("environment.json", '{"dataset": {"image_shape": "abc", "train": "x"}, "threads": 100000}'),
        ("evaluations.jsonl", '{"step": 4}\n'),
        ("spectra.jsonl", '{"step": 4}\n'),
        ("metrics.jsonl", '{"step": 4, "seconds": "abc"}\n' + "[" * 100_000 + "\n"),
        ("samples/step_00000004.png", "no picture"),
    ],
)
def test_files_beside_the_checkpoints_that_somebody_has_damaged_are_no_bug(
    normlab: Command, outputs: Path, copy_of: Callable[..., Path], name: str, content: str
) -> None:
    run = copy_of(*SAVING, "train.until=4 steps")
    (run / name).write_text(content)
    ended = [normlab("status", str(outputs)), normlab("verify", str(run)), normlab(*SAVING)]

    assert all("a bug" not in each.stderr and "Traceback" not in each.stderr for each in ended), ended
    assert ended[0].exit_code == 0
    assert ended[2].exit_code == 0, ended[2].stderr


def test_verify_tells_when_the_newest_checkpoint_is_older_than_the_run(
    normlab: Command, copy_of: Callable[..., Path]
) -> None:
    run = copy_of(*SAVING, "train.until=4 steps")
    for file in (run / "checkpoints").glob("step_00000004*"):
        file.unlink()
    verified = normlab("verify", str(run))

    assert verified.exit_code == 4
    assert "is done at step 4, and the newest checkpoint is of step 2" in verified.stderr
