"""A sweep that gives every arm the same grid, chooses on some seeds and trains on others."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from normlab.config import NormalizationConfig, OptimizerConfig, Part, RunConfig, TuningConfig
from normlab.sweeps import tuning
from normlab.sweeps.planning import Planned

from ..conftest import Command
from ..verbs.test_report import fabricate

KEYS = TuningConfig(keys=("optimizer.lr", "train.discriminator_steps"), seeds=(1000, 1001))


def settings(technique: str, lr: float, seed: int) -> RunConfig:
    normalization = NormalizationConfig(discriminator=Part(name=technique))
    optimizer = OptimizerConfig(params={"lr": lr})
    return replace(RunConfig(), normalization=normalization, optimizer=optimizer, seed=seed, tuning=KEYS)


def test_the_setting_of_the_best_mean_is_chosen_and_one_that_diverged_is_not(tmp_path: Path) -> None:
    """A rate that is better where it survives, but diverged on one of the seeds, loses to one that never does."""
    finals = {
        ("none", 1e-4): (20, 22),
        ("none", 1e-3): (5, None),
        ("spectral", 1e-4): (19, 30),
        ("spectral", 1e-3): (24, 24),
    }
    runs: list[Planned] = []
    for (technique, lr), values in finals.items():
        for seed, value in zip(KEYS.seeds, values, strict=True):
            own, folder = settings(technique, lr, seed), tmp_path / f"{technique}{lr}{seed}"
            fabricate(folder, own, [90, value or 90], state="diverged" if value is None else "done")
            runs.append(Planned([], own, folder, "done"))
    metric, grid = tuning.results(runs)
    labels = {tuning.arm_of(run.settings): run.settings.label for run in runs}
    best = {labels[arm]: tuning.best(points) for arm, points in grid.items()}

    assert metric == "frechet_distance"
    assert {label: point.values["optimizer.lr"] for label, point in best.items()} == {
        "G:batch D:none": 1e-4,
        "G:batch D:spectral": 1e-3,
    }
    assert best["G:batch D:spectral"].finals == [24, 24]
    lost = next(point for points in grid.values() for point in points if math.inf in point.finals)
    assert lost.values["optimizer.lr"] == 1e-3


def test_of_settings_that_all_lost_runs_the_one_that_lost_fewest_is_chosen_then_the_best() -> None:
    lost = math.inf
    points = [
        tuning.Setting({"lr": rate}, finals) for rate, finals in ((1, [lost, lost]), (2, [20, lost]), (3, [lost, 9]))
    ]

    assert tuning.best(points).values == {"lr": 3}
    assert tuning.best(points[:2]).values == {"lr": 2}
    assert tuning.best(points[:1]).values == {"lr": 1}


def test_settings_that_are_lists_make_a_grid_as_numbers_do() -> None:
    betas, rates = ([0.5, 0.9], [0.0, 0.9], [0.5, 0.9]), (1e-3, 1e-4, 1e-3)
    points = [tuning.Setting({"betas": pair, "lr": rate}, [1.0]) for pair, rate in zip(betas, rates, strict=True)]

    assert tuning.values_of(points, ("betas", "lr")) == {"betas": [[0.0, 0.9], [0.5, 0.9]], "lr": [1e-4, 1e-3]}


def test_a_choice_at_the_edge_of_three_values_or_more_is_told() -> None:
    grid = {"optimizer.lr": [1e-4, 2e-4, 1e-3], "train.discriminator_steps": [1, 5], "loss.name": ["a", "b", "c"]}
    steps = {"train.discriminator_steps": 1, "loss.name": "a"}

    assert tuning.edges({"optimizer.lr": 1e-3, **steps}, grid) == ["optimizer.lr"]
    assert tuning.edges({"optimizer.lr": 2e-4, **steps}, grid) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tuning.keys=[optimizer.rate]", "tuning.seeds=[9]"], "tuning.keys: 'optimizer.rate' is not a setting"),
        (["tuning.keys=[optimizer.lr]"], "tuning.seeds: is empty"),
        (["tuning.keys=[optimizer.lr]", "tuning.seeds=[1]"], "tuning.seeds: 1 would be chosen on and reported, too"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_any_run(
    normlab: Command, outputs: Path, words: list[str], says: str
) -> None:
    refused = normlab("train", "-m", "optimizer.lr=1e-4,1e-3", "seed=0,1", *words)

    assert refused.exit_code == 2
    assert says in refused.stderr
    assert not outputs.exists()


@pytest.mark.slow
def test_a_tuned_comparison_is_one_command_and_its_report_says_that_it_was_tuned(
    normlab: Command, outputs: Path, tmp_path: Path
) -> None:
    words = ["experiment=tuned_comparison", "normalization=none,spectral", "optimizer.lr=1e-4,1e-3", "seed=0,1"]
    words += ["train.discriminator_steps=1", "tuning.seeds=[1000]", "architecture.width=4", "train.batch_size=16"]
    words += ["train.until=2 steps", "evaluation.samples=200", "every.evaluate=1 steps", "threads=1"]
    first, again = normlab("train", "-m", *words), normlab("train", "-m", *words)
    chosen = json.loads((outputs / "tuned_comparison/tuning.json").read_text())
    rates = {row["arm"]: row["optimizer.lr"] for row in chosen["arms"]}
    reported = normlab("report", str(outputs / "tuned_comparison"), "--out", str(tmp_path / "out"), "--json")
    (comparison,) = json.loads(reported.stdout)["comparisons"]

    assert (first.exit_code, again.exit_code) == (0, 0), first.stderr
    assert len([*outputs.glob("tuned_comparison_tuning/*/config.yaml")]) == 2 * 2
    assert len([*outputs.glob("tuned_comparison/*/config.yaml")]) == 2 * 2
    assert {arm["settings"]["optimizer.lr"] for arm in comparison["arms"]} <= {1e-4, 1e-3}
    for arm in comparison["arms"]:
        label = " ".join(arm["arm"].split(" ")[:2])
        assert arm["settings"]["optimizer.lr"] == rates[label]
    assert chosen["grid"] == {"optimizer.lr": [1e-4, 1e-3], "train.discriminator_steps": [1]}
    page = (tmp_path / "out/report.html").read_text()
    assert "of seeds 1000, from optimizer.lr 0.0001, 0.001; train.discriminator_steps 1." in page
    assert "Every arm had the same grid of optimizer.lr and train.discriminator_steps" in page
