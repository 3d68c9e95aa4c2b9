"""What a run can do without, and what it cannot: folders that cannot be written, memory that runs out, kills."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from normlab import assemble, scoring
from normlab.evaluation.features import ClassifierFeatures
from normlab.outputs.recorder import Recorder
from normlab.outputs.run_dir import RunDir
from normlab.training.step import Step

from .conftest import Command

SMALL = ["architecture.width=4", "train.batch_size=8"]
PLAIN = [*SMALL, "evaluation=none", "every.log=1 step"]
SCORED = [*SMALL, "evaluation.samples=150", "every.log=1 step"]


def only_run(outputs: Path) -> Path:
    (run,) = (path for path in outputs.glob("*/*") if path.is_dir())
    return run


def digest(normlab: Command, run: Path) -> str:
    return normlab("verify", "--digest-only", str(run)).stdout


# --- Folders --------------------------------------------------------------------------------------------------------


def test_outputs_below_a_file_are_refused_in_one_line(
    normlab: Command, outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NORMLAB_OUTPUTS", str(tmp_path / "file" / "outputs"))
    refused = normlab("train", *PLAIN, "train.until=2 steps")

    assert refused.exit_code == 5
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert str(tmp_path / "file") in line


def test_a_run_whose_folder_became_read_only_is_refused_before_it_trains(
    normlab: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert normlab("train", *PLAIN, "train.until=2 steps").exit_code == 0
    rows = (only_run(outputs) / "metrics.jsonl").read_bytes()
    usual = os.open

    def read_only(path: str, flags: int, *more: int, **named: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(outputs)):
            raise OSError(30, "Read-only file system", str(path))  # what permissions cannot show to root
        return usual(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", read_only)
    refused = normlab("train", *PLAIN, "train.until=4 steps")

    assert refused.exit_code == 5, refused.stderr
    assert "cannot be written: read-only file system" in refused.stderr
    assert (only_run(outputs) / "metrics.jsonl").read_bytes() == rows


def test_without_tensorboard_a_run_goes_on_and_its_rows_are_whole(normlab: Command, outputs: Path) -> None:
    assert normlab("train", *PLAIN, "train.until=2 steps").exit_code == 0
    run = only_run(outputs)
    for file in (run / "tensorboard").iterdir():
        file.unlink()
    (run / "tensorboard").rmdir()
    (run / "tensorboard").write_text("in the way")
    extended = normlab("train", *PLAIN, "train.until=4 steps")

    assert extended.exit_code == 0
    assert extended.stderr.count("TensorBoard is off") == 1
    assert [json.loads(row)["step"] for row in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


# --- Memory ---------------------------------------------------------------------------------------------------------


def out_of_memory(*arguments: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_an_evaluation_that_runs_out_of_memory_changes_nothing_in_the_training(
    normlab: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert normlab("train", *PLAIN, "train.until=2 steps", "name=without").exit_code == 0
    expected = digest(normlab, only_run(outputs))
    usual = ClassifierFeatures.extract

    def cramped(self: ClassifierFeatures, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(images) != 40:  # what is left of the real images beside batches of 200 has room
            out_of_memory()
        return usual(self, images)

    warm = normlab("train", *SCORED, "train.until=1 step", "name=warm")  # the real images' statistics are cached here
    assert warm.exit_code == 0, warm.stderr
    monkeypatch.setattr(ClassifierFeatures, "extract", cramped)
    ended = normlab("train", *SCORED, "train.until=2 steps", "name=cramped")
    (run,) = (outputs / "cramped").glob("*")

    assert ended.exit_code == 0, ended.stderr
    rows = [json.loads(row) for row in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [(row["step"], row["flags"]) for row in rows] == [(0, ["out_of_memory"]), (2, ["out_of_memory"])]
    assert not any("frechet_distance" in row for row in rows)
    assert digest(normlab, run) == expected


def test_training_that_runs_out_of_memory_ends_with_code_5_and_can_go_on(
    normlab: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", *PLAIN, "train.until=6 steps", "every.checkpoint=2 steps"]
    usual = Step.update_generator
    with monkeypatch.context() as patch:
        patch.setattr(Step, "update_generator", lambda step: usual(step) if step.state.step < 4 else out_of_memory())
        failed = normlab(*words)
    run = only_run(outputs)
    saved = sorted(path.name for path in (run / "checkpoints").glob("*.pt"))
    again = normlab(*words)
    straight = normlab(*words, "name=straight")

    assert failed.exit_code == 5
    assert "error: device: out of memory" in failed.stderr
    assert saved[-1] == "step_00000004.pt"
    assert (again.exit_code, straight.exit_code) == (0, 0)
    (other,) = (outputs / "straight").glob("*")
    assert digest(normlab, run) == digest(normlab, other)


def test_memory_too_small_for_the_images_is_told_before_there_is_a_folder(
    normlab: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble, "open_batches", out_of_memory)
    refused = normlab("train", *PLAIN, "train.until=2 steps")

    assert refused.exit_code == 5
    assert "error: device: out of memory" in refused.stderr
    assert not outputs.exists()


# --- Views and the best checkpoint ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_after_many_kills_tensorboard_shows_what_an_undisturbed_run_shows(
    normlab: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["train", *SCORED, "train.until=8 steps", "every.checkpoint=2 steps"]
    words += ["every.evaluate=4 steps", "every.sample=4 steps", "ema=standard"]

    def points(run: Path) -> dict[str, list[int]]:
        events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
        tags = events.Tags()
        shown = {tag: [event.step for event in events.Scalars(tag)] for tag in tags["scalars"]}
        return shown | {tag: [event.step for event in events.Images(tag)] for tag in tags["images"]}

    usual = {name: getattr(Recorder, name) for name in ("evaluation", "scalars", "grid")}
    for name, step in [("scalars", 1), ("grid", 4), ("evaluation", 4), ("scalars", 5), ("evaluation", 8)]:

        def and_die(recorder: Recorder, at: Any, *arguments: Any, name: str = name, step: int = step) -> None:
            usual[name](recorder, at, *arguments)
            if step == (at if name == "grid" else at.step):
                os.kill(os.getpid(), signal.SIGKILL)

        with monkeypatch.context() as patch:
            patch.setattr(Recorder, name, and_die)
            assert normlab(*words, "name=killed").exit_code == -signal.SIGKILL
    assert normlab(*words, "name=killed").exit_code == 0
    assert normlab(*words, "name=straight").exit_code == 0
    (killed,), (straight,) = (outputs / "killed").glob("*"), (outputs / "straight").glob("*")

    assert points(killed) == points(straight)
    assert points(straight)["loss/generator"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert points(straight)["averaged/frechet_distance"] == [0, 4, 8]
    assert points(straight)["samples"] == [0, 4, 8]


def test_flagged_scores_never_make_a_checkpoint_the_best(
    normlab: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distances = iter([(9.0, []), (5.0, []), (1.0, ["few_samples"]), (7.0, []), (8.0, []), (5.5, [])])

    def score(self: scoring.Scorer, *arguments: object) -> dict[str, object]:
        distance, flags = next(distances)
        return {"protocol": "made up", "flags": flags, "frechet_distance": distance}

    monkeypatch.setattr(scoring.Scorer, "__call__", score)
    assert normlab("train", *SCORED, "train.until=4 steps", "every.evaluate=1 step").exit_code == 0

    kept = sorted(path.name for path in RunDir(only_run(outputs)).checkpoints.glob("*.pt"))
    assert kept == ["step_00000001.pt", "step_00000003.pt", "step_00000004.pt"]
    best = json.loads((only_run(outputs) / "best.json").read_text())
    assert (best["step"], best["chosen"]["frechet_distance"], best["frechet_distance"]) == (1, 5.0, 5.5)


def test_a_run_whose_scores_hardly_differ_says_so_at_once_and_stays_marked(normlab: Command, outputs: Path) -> None:
    words = ["train", *PLAIN, "normalization=both/adaptive_literal"]
    begun = normlab(*words, "train.until=2 steps")
    healthy = normlab("train", *PLAIN, "train.until=1 step", "normalization=both/adaptive", "name=healthy")
    extended = normlab(*words, "train.until=3 steps")
    (dead,) = (outputs / "default").iterdir()
    (alive,) = (outputs / "healthy").iterdir()

    assert (begun.exit_code, extended.exit_code) == (0, 0)
    assert "warning: starts dead: the discriminator's scores differ by" in begun.stderr
    assert "dead" not in extended.stderr + healthy.stderr
    flags = [json.loads((run / "status.json").read_text())["flags"] for run in (dead, alive)]
    assert flags == [["dead_start"], []]
