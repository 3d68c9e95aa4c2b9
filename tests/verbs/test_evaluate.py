"""`normlab evaluate` and `normlab prepare`, and what an evaluation leaves in a run's folder."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from normlab import scoring
from normlab.errors import ResourceError
from normlab.outputs.checkpoints import Checkpoints
from normlab.outputs.grids import read_image
from normlab.outputs.run_dir import RunDir
from normlab.outputs.sinks import JsonLines
from normlab.training.trainer import Trainer
from normlab.verbs.evaluate import PICTURES
from normlab.verbs.evaluate import _table as table
from tests.conftest import Command, result, start

# Two steps of a tiny network on the embedded digits, with an average, scored at each by more samples than dimensions.
WORDS = [
    *("train", "architecture.width=2", "dataset.limit=150", "train.batch_size=8", "train.until=2 steps"),
    *("every.evaluate=1 step", "evaluation.samples=130", "ema=standard", "device=cpu"),
]


def trained(normlab: Command, outputs: Path, *words: str) -> Path:
    result = normlab(*WORDS, *words)
    assert result.exit_code == 0, result.stderr
    (run,) = (outputs / "default").iterdir()
    return run


def rows_of(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["runs"][0]["rows"]


def test_scoring_again_gives_what_the_run_gave_and_is_kept(normlab: Command, outputs: Path):
    run = trained(normlab, outputs)
    first = {(row["step"], row["generator"]): row for row in JsonLines(RunDir(run).evaluations).rows()}
    again = rows_of(normlab("evaluate", str(run), "checkpoint=all", "--json"))
    assert {(row["step"], row["generator"]) for row in again} <= set(first)
    assert {row["generator"] for row in again} == {"live", "averaged"}
    for row in again:
        same = first[row["step"], row["generator"]]
        assert row["protocol"] == same["protocol"]
        # A pass of features over other numbers of images at a time differs by rounding.
        assert row["frechet_distance"] == pytest.approx(same["frechet_distance"], rel=1e-5)
    kept = (run / "scores.jsonl").read_text()
    assert rows_of(normlab("evaluate", str(run), "checkpoint=all", "--json")) == JsonLines(run / "scores.jsonl").rows()
    assert (run / "scores.jsonl").read_text() == kept  # nothing is scored twice


def test_another_protocol_is_another_row(normlab: Command, outputs: Path):
    run = trained(normlab, outputs)
    words = ("evaluation.samples=30", "evaluation.split=held_out", "evaluation.repeats=2", "checkpoint=2", "--json")
    live, averaged = rows_of(normlab("evaluate", str(run), *words))
    assert "/held_out-" in live["protocol"]
    assert "/samples-30/" in live["protocol"]
    assert len(live["repeats"]["frechet_distance"]) == 2
    assert averaged["generator"] == "averaged"
    evaluations = JsonLines(RunDir(run).evaluations).rows()
    assert [(row["step"], row["generator"]) for row in evaluations] == [
        (step, name) for step in (0, 1, 2) for name in ("live", "averaged")
    ]


def test_each_protocol_has_a_table_of_its_own_with_the_noise_of_repeats(normlab: Command, outputs: Path):
    run = trained(normlab, outputs)
    rows = [rows_of(normlab("evaluate", str(run), "--json", *more)) for more in ([], ["evaluation.samples=140"])]
    told = table([{"run": str(run), "rows": [*rows[0], *rows[1]]}]).split("\n\n")
    assert [part.partition("\n")[0] for part in told] == [f"protocol: {own[0]['protocol']}" for own in rows]

    assert "noise" not in "".join(told)
    assert "noise" in normlab("evaluate", str(run), "evaluation.repeats=2").stdout


def test_scores_that_memory_was_too_small_for_are_made_again(normlab: Command, outputs: Path):
    run = trained(normlab, outputs)
    rows = rows_of(normlab("evaluate", str(run), "--json"))
    kept = RunDir(run).scores
    kept.write_text("".join(json.dumps({**row, "kernel_distance": None}) + "\n" for row in rows))
    assert rows_of(normlab("evaluate", str(run), "--json")) == rows
    assert len(JsonLines(kept).rows()) == 2 * len(rows)


def test_a_score_of_one_part_is_kept_though_it_has_no_spread(normlab: Command, outputs: Path):
    run = trained(normlab, outputs)
    words = ("evaluate", str(run), "evaluation.splits=1", "--json")
    rows = rows_of(normlab(*words))
    assert {row["classifier_score_spread"] for row in rows} == {None}
    normlab(*words)
    assert len(JsonLines(RunDir(run).scores).rows()) == len(rows)


def test_the_best_is_of_one_protocol():
    def row(step: int, distance: float, protocol: str) -> dict[str, Any]:
        return {"step": step, "generator": "live", "flags": [], "protocol": protocol, "frechet_distance": distance}

    rows = [row(0, 140.0, "classifier"), row(1, 0.002, "inception-64"), row(2, 0.001, "inception-64")]
    told = SimpleNamespace(recorder=SimpleNamespace(evaluations=lambda: rows), judged="live")
    assert Trainer.best(cast(Trainer, told)) == rows[2]
    rows.append(row(3, 150.0, "classifier"))
    assert Trainer.best(cast(Trainer, told)) == rows[0]


def test_pictures_lie_beside_the_samples(normlab: Command, outputs: Path):
    run = trained(normlab, outputs, "ema=none")
    (row,) = rows_of(normlab("evaluate", str(run), "--pictures", "--json"))
    pictures = {name: read_image(Path(row[name])) for name in PICTURES}
    assert {path.name for path in RunDir(run).samples.iterdir()} >= {Path(row[name]).name for name in PICTURES}
    assert all(picture.float().std() > 0 for picture in pictures.values())
    assert 0 <= row["authenticity"] <= 1


def test_the_best_checkpoint_is_scored_again_before_it_is_called_so(normlab: Command, outputs: Path):
    run = trained(normlab, outputs)
    best = json.loads((run / "best.json").read_text())
    judged = [row for row in JsonLines(RunDir(run).evaluations).rows() if row["generator"] == "averaged"]
    lowest = min(judged, key=lambda row: row["frechet_distance"])
    assert best["chosen"] == lowest
    assert best["flags"] == []
    assert best["chosen"]["frechet_distance"] != best["frechet_distance"]
    (row,) = [
        row
        for row in rows_of(normlab("evaluate", str(run), "checkpoint=best", "--json"))
        if row["generator"] == "averaged"
    ]
    assert row["step"] == best["step"]


@pytest.mark.parametrize(
    ("fault", "problem"), [("refused", "has no checkpoint of step 1"), ("damaged", "is not what was written")]
)
def test_a_run_whose_best_step_has_no_sound_checkpoint_is_done_all_the_same(
    normlab: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch, fault: str, problem: str
):
    usual = Checkpoints.save

    def save(self: Checkpoints, step: int, state: dict[str, Any]) -> None:
        if step == 1 and fault == "refused":
            raise ResourceError(str(self.file(1)), "cannot be written: No space left on device", "make room")
        usual(self, step, state)
        if step == 1:
            self.file(1).write_bytes(bytes(self.file(1).stat().st_size))

    def best(self: Trainer) -> dict[str, Any] | None:
        return next((row for row in self.recorder.evaluations() if row["step"] == 1), None)

    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr(Trainer, "best", best)
    ended = normlab(*WORDS)
    (run,) = (outputs / "default").iterdir()
    status = RunDir(run).read_status()
    assert ended.exit_code == 0, ended.stderr
    assert f"the best step, 1, is not scored again: {problem}" in ended.stderr
    assert status is not None
    assert status.state == "done"
    assert not (run / "best.json").exists()


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        (["nowhere"], 2, "error: nowhere: is not the folder of a run"),
        (["RUN", "checkpoint=7"], 4, "holds no checkpoint that is '7'"),
        (["RUN", "seed=1"], 2, "error: seed: cannot change a run that is scored"),
        (["RUN", "evaluation.samples=3"], 2, "error: evaluation.samples: got 3"),
        (["RUN", "evaluation.features=inception"], 3, "error: evaluation.features: the weights of Inception"),
        (["checkpoint=last"], 2, "error: RUN: is missing"),
    ],
)
def test_what_cannot_be_scored_again_is_one_line(
    normlab: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], exit_code: int, message: str
):
    monkeypatch.setenv("TORCH_HOME", str(outputs / "home"))
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no network"))
    )
    run = trained(normlab, outputs, "evaluation=none") if "RUN" in words else Path()
    given = ["evaluation.features=auto"] if "RUN" in words and "inception" not in str(words) else []
    result = normlab("evaluate", *(str(run) if word == "RUN" else word for word in words), *given)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


class Constant(nn.Module):
    """A generator that has collapsed: the same image whatever the latent."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator, self.latent_size = generator, generator.latent_size

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.generator(torch.zeros_like(latents))


@pytest.mark.parametrize(("choice", "exit_code", "steps"), [("record", 0, [0, 1, 2]), ("stop", 6, [0, 1])])
def test_a_generator_that_has_collapsed_is_found_at_once_and_may_stop_the_run(
    normlab: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch, choice: str, exit_code: int, steps: list[int]
):
    usual = scoring.Scorer.__call__
    calls = iter(range(9))

    def collapsed_from_step_1(self: scoring.Scorer, generator: nn.Module, *more: Any) -> Any:
        return usual(self, generator if next(calls) == 0 else Constant(generator), *more)

    monkeypatch.setattr(scoring.Scorer, "__call__", collapsed_from_step_1)
    words = [*WORDS, "ema=none", f"on_collapse={choice}"]
    result = normlab(*words)
    (run,) = (outputs / "default").iterdir()
    rows = JsonLines(RunDir(run).evaluations).rows()
    assert result.exit_code == exit_code
    assert [row["step"] for row in rows] == steps
    assert [row["state"] for row in rows] == ["untrained", *["collapsed"] * (len(steps) - 1)]
    status = RunDir(run).read_status()
    assert status is not None
    assert status.states == {"collapsed": 1}
    assert status.state == ("done" if choice == "record" else "stopped")
    if choice == "stop":
        again = normlab(*words)
        assert again.exit_code == 6
        assert "the generator had collapsed at step 1" in again.stderr
        told = normlab("status", str(run))
        assert told.stdout.splitlines()[2].startswith("collapsed")
        assert f"to continue: normlab train resume={run} on_collapse=record" in told.stdout
        swept = normlab("train", "-m", *words[1:])
        assert swept.exit_code == 0, swept.stderr
        assert swept.stdout.splitlines()[3].split()[:3] == ["#0", "6", "collapsed"]
        assert "have not ended" not in swept.stdout
        assert normlab(*words, "on_collapse=record").exit_code == 0
        assert [row["step"] for row in JsonLines(RunDir(run).evaluations).rows()] == [0, 1, 2]


def test_prepare_makes_what_runs_share_and_shows_what_scores_are_worth(normlab: Command, outputs: Path):
    words = ("dataset.limit=200", "evaluation.samples=100", "device=cpu", "--json")
    result = normlab("prepare", *words)
    assert result.exit_code == 0, result.stderr
    about = json.loads(result.stdout)
    known = {row["images"]: row for row in about["known"]}
    assert about["protocol"].startswith("classifier-")
    assert list(known) == ["same split", "other split", "noise", "class 0"]
    same, other, noise, one = known.values()
    assert same["frechet_distance"] < min(one["frechet_distance"], noise["frechet_distance"])
    assert same["frechet_distance"] < other["frechet_distance"]
    assert (same["precision"], noise["precision"]) == (1, 0)
    assert min(same["classifier_score"], other["classifier_score"]) > 5 > 2 > one["classifier_score"]
    assert other["coverage"] > 2 * one["coverage"]
    assert "computing the statistics" not in normlab("prepare", *words).stderr


def test_prepare_counts_the_modes_of_points(normlab: Command, outputs: Path):
    result = normlab("prepare", "dataset=gaussians", "dataset.limit=500", "architecture=mlp", "--json")
    assert result.exit_code == 0, result.stderr
    same, other, noise, one = json.loads(result.stdout)["known"]
    assert [row["modes"] for row in (same, other, one)] == [8, 8, 1]
    assert other["good_share"] > 0.98 > 0.1 > noise["good_share"]


def test_prepare_refuses_as_train_does(normlab: Command, outputs: Path):
    result = normlab("prepare", "dataset=mnist", "dataset.root=nowhere", "evaluation.samples=3", "lr=1")
    assert result.exit_code == 2
    assert [line.split(":")[1].strip() for line in result.stderr.splitlines()] == ["lr", "evaluation.samples"]


def test_points_are_scored_by_their_coordinates_and_modes(normlab: Command, outputs: Path):
    words = ["dataset=gaussians", "dataset.limit=500", "architecture=mlp", "architecture.width=4", "ema=none"]
    run = trained(normlab, outputs, *words, "evaluation.samples=50")
    row = JsonLines(RunDir(run).evaluations).rows()[-1]
    assert row["protocol"].startswith("coordinates/gaussians-")
    assert row["protocol"].endswith("/modes-within-3-deviations")
    assert {"frechet_distance", "coverage", "modes", "good_share"} <= set(row)


def test_reconstruction_error_is_measured_where_it_is_asked_for(normlab: Command, outputs: Path):
    words = ["evaluation.reconstruction.images=3", "evaluation.reconstruction.steps=2", "ema=none"]
    run = trained(normlab, outputs, *words)
    rows = JsonLines(RunDir(run).evaluations).rows()
    assert all(row["reconstruction_error"] > 0 for row in rows)
    assert rows[0]["protocol"].endswith("/reconstruction-3x2-lr0.01-images")


def test_two_runs_that_start_at_once_compute_the_real_statistics_once(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    children = [start(folder, *WORDS, f"name={folder.name}") for folder in folders]
    ended = [result(folder, os.waitpid(child, 0)[1]) for folder, child in zip(folders, children, strict=True)]
    assert [each.exit_code for each in ended] == [0, 0]
    assert sum("computing the statistics" in each.stderr for each in ended) == 1
    assert len(list((tmp_path / "cache" / "statistics").glob("*.safetensors"))) == 1
