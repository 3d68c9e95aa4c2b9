import argparse
import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import benchmark
from benchmarks import (
    bare,
    gpu,
    memory,
    mimicry,
    mimicry_worker,
    monitors,
    options,
    pictures,
    reporting,
    runs,
    scaling,
    startup,
    streaming,
    timing,
    trainer,
)
from benchmarks.report import Report
from benchmarks.work import UnequalWork, Work
from normlab import assemble, cli
from normlab.data.batches import BATCHES_AHEAD
from normlab.outputs.sinks import JsonLines

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"
TINY = ("trainer", "--rounds", "2", "--steps", "50", "--width", "8", "--batch", "2")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let benchmarks warm up for two steps and have a row every five, and keep their log out of the tests' own."""
    for module in (trainer, monitors):
        monkeypatch.setattr(module, "WARM_UP", 2)
    for module in (trainer, options):
        monkeypatch.setattr(module, "LOG_EVERY", 5)
    monkeypatch.setattr(runs, "open_log", lambda path: None)


def test_every_arm_stands_twice_in_every_place_over_six_rounds():
    orders = [timing.in_turn(["a", "b", "c"], round_number) for round_number in range(6)]
    assert len({tuple(order) for order in orders}) == 6
    for place in range(3):
        assert Counter(order[place] for order in orders) == {"a": 2, "b": 2, "c": 2}


def test_arms_are_timed_once_a_round_in_cpu_and_wall_seconds():
    calls: list[str] = []
    seconds = timing.time_rounds({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=2)
    assert Counter(calls) == {"a": 2, "b": 2}
    assert [len(windows) for windows in seconds.values()] == [2, 2]
    assert all(window.cpu >= 0 and window.wall > 0 for window in seconds["a"])


@pytest.mark.parametrize(("rounds", "rank"), [(5, 1), (6, 1), (9, 2), (15, 4), (25, 8)])
def test_the_interval_of_a_median_lies_between_the_tabulated_ranks(rounds: int, rank: int):
    # The ranks of a sign test's interval of at least 95 %; below 6 rounds there is none and the range stands for it.
    ratio = timing.ratio_of([float(value) for value in range(rounds, 0, -1)], [1.0] * rounds)
    assert ratio == ((rounds + 1) / 2, rank, rounds + 1 - rank)


def test_ratios_are_taken_within_rounds():
    assert timing.ratio_of([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == (2, 2, 2)


@pytest.mark.parametrize(("control", "exit_code"), [(0.969, 5), (0.97, 0), (1.03, 0), (1.031, 5)])
def test_a_noisy_control_is_told_and_exits_5(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    control: float,
    exit_code: int,
):
    monkeypatch.setattr(trainer, "trainer", lambda arguments: Report({"control": control}, ["a line"]))
    assert benchmark.main(["trainer", "--json"]) == exit_code
    output = capsys.readouterr()
    assert json.loads(output.out) == {"control": control}
    assert (f"error: control: an arm took {control:.3f}" in output.err) == (exit_code == 5)


def test_work_counts_convolutions_their_wanted_gradients_and_optimizer_steps():
    layer = nn.Conv2d(1, 2, 3)
    images = torch.randn(4, 1, 5, 5)
    optimizer = torch.optim.Adam(layer.parameters(), fused=True)
    with Work() as work:
        layer(images).sum().backward()
        optimizer.step()
    assert work.heavy == {
        "convolution of 4x1x5x5 by 2x1x3x3": 1,
        "gradient of 4x1x5x5 by 2x1x3x3: weight+bias": 1,
        "Adam step of 2 tensors": 1,
    }
    with Work() as work:
        layer.requires_grad_(False)(images.requires_grad_()).sum().backward()
    assert work.heavy["gradient of 4x1x5x5 by 2x1x3x3: input"] == 1


def test_unequal_work_prints_both_counts_and_no_ratio(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    plain = bare.BareLoop.train

    def twice(self: object, steps: int) -> None:
        plain(self, steps)
        plain(self, steps)

    monkeypatch.setattr(bare.BareLoop, "train", twice)
    assert benchmark.main(list(TINY)) == 1
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = [line for line in output.err.splitlines() if "convolution of 2x1x32x32 by 8x1x4x4" in line]
    assert line.split()[-2:] == ["3", "6"]


def test_losses_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(bare, "copy_weights", lambda source, target: None)
    assert benchmark.main(list(TINY)) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "error: the losses differ by" in output.err


@pytest.mark.parametrize("technique", ["none", "batch", "instance", "layer", "group"])
def test_the_bare_loop_computes_what_a_step_of_normlab_does(technique: str):
    words = ["trainer", "--technique", technique, "--width", "8", "--batch", "4"]
    settings = trainer.trainer_settings(benchmark.parsed(words))
    materials = assemble.gather(settings, torch.device("cpu"))
    assert trainer.largest_difference(settings, materials) < 1e-5


def test_a_window_holds_each_row_that_is_due_in_it(tmp_path: Path):
    settings = trainer.trainer_settings(benchmark.parsed([*TINY, "--width", "4"]))
    windows = runs.Windows(settings, assemble.gather(settings, torch.device("cpu")), tmp_path)
    windows.train(runs.WARM_UP)
    for rows in (2, 3):
        windows.train(50)
        written = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in written] == [50 * row for row in range(1, rows + 1)]
    windows.close()


def test_the_trainer_is_told_against_the_bare_loop(quick: None, outputs: Path, capsys: pytest.CaptureFixture[str]):
    code = benchmark.main([*TINY, "--steps", "5", "--json"])
    values = json.loads(capsys.readouterr().out)
    assert code == (0 if 0.97 <= values["control"] <= 1.03 else 5)
    assert values["low"] <= values["ratio"] <= values["high"]
    assert values["rounds"] == 2
    assert values["cpu_milliseconds_per_step"]["bare"] > 0
    assert 0 < values["outside_of_steps"] < 1
    assert values["convolutions_and_optimizer_steps"]["Adam step of 8 tensors"] == 1
    assert values["environment"]["threads"] == 1
    assert list(outputs.parent.iterdir()) == []


SMALL = ("architecture.width=4", "train.batch_size=4", "evaluation=none")


@pytest.mark.slow
def test_the_command_prints_one_object_and_leaves_no_run_behind(outputs: Path):
    """Of what saving costs: a share of the steps between two checkpoints."""
    command = [sys.executable, str(SCRIPT), "saving", "--json", "--rounds", "2", *SMALL, "every.checkpoint=8 images"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    values = json.loads(result.stdout)
    saving, training = values["seconds"]["saving"]["cpu"], values["seconds"]["training"]["cpu"]
    assert result.returncode == (0 if 0.97 <= values["control"] <= 1.03 else 5)
    assert values["steps_between"] == 2
    assert values["share"] == pytest.approx(saving / (saving + training))
    assert values["checkpoint_bytes"] > 10_000
    assert list(outputs.parent.iterdir()) == []


def test_saving_every_so_many_minutes_is_no_number_of_steps(capsys: pytest.CaptureFixture[str]):
    assert benchmark.main(["saving", *SMALL, "every.checkpoint=5 minutes"]) == 2
    assert "error: every.checkpoint: is 5 minutes" in capsys.readouterr().err


def test_what_monitors_cost_is_a_share_of_the_steps_between_two_measurements(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rows: dict[str, list[bool]] = {"with": [], "without": [], "again": []}
    append = JsonLines.append

    def noting_append(self: JsonLines, row: dict[str, object]) -> None:
        if self.path.name == "metrics.jsonl":
            rows[self.path.parent.name].append({"sigma/generator/1", "score/accuracy"} <= set(row))
        append(self, row)

    monkeypatch.setattr(JsonLines, "append", noting_append)
    rates = ["every.log=5 steps", "every.spectra=40 images"]
    benchmark.main(["monitors", "--json", "--rounds", "1", "--steps", "5", *SMALL, *rates])
    values = json.loads(capsys.readouterr().out)
    monitored, bare, measuring = (values["seconds"][name]["cpu"] for name in ("with", "without", "measuring"))

    assert rows == {"with": [True], "without": [False], "again": [False]}
    assert values["steps_between"] == 10
    assert values["ratio"] == pytest.approx((2 * monitored + measuring) / (2 * bare))


def test_what_is_never_measured_has_no_cost(capsys: pytest.CaptureFixture[str]):
    assert benchmark.main(["monitors", *SMALL, "every.spectra=null"]) == 2
    assert "error: every.spectra: is null" in capsys.readouterr().err


def test_memory_is_followed_over_a_whole_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(runs, "open_log", lambda path: None)
    held = iter(range(10**6))
    monkeypatch.setattr(memory, "resident_bytes", lambda: next(held))
    # A run that does something beside training now and then, and not every step, which takes many times as long.
    rates = [f"every.{what}=20 steps" for what in ("sample", "checkpoint", "spectra")]
    assert benchmark.main(["memory", "--json", "--steps", "40", *SMALL, *rates]) == 0
    values = json.loads(capsys.readouterr().out)
    assert len(values["most_bytes_by_tenths"]) == 10
    assert values["growth_bytes"] == values["most_bytes_by_tenths"][-1] - values["most_bytes_by_tenths"][2] > 0


def test_the_cost_of_a_technique_is_against_none(capsys: pytest.CaptureFixture[str]):
    small = ["--size", "32", "--width", "4", "--batch", "2", "--rounds", "1", "--threads", "1", "--json"]
    code = benchmark.main(["normalizations", "weight", "spectral", *small])
    told = json.loads(capsys.readouterr().out)

    assert code in (0, 5)  # a window this short is noisy
    assert set(told["ratios"]) == {"weight", "spectral"}
    worst = max(told["ratios"].values(), key=lambda ratio: ratio["median"])
    assert [told[key] for key in ("ratio", "low", "high")] == [worst[key] for key in ("median", "low", "high")]
    operations = told["operations_per_step"]
    assert operations["none"] < min(operations["weight"], operations["spectral"])


def test_steps_on_a_gpu_are_timed_anew_and_captured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """With the CPU in a GPU's place, where nothing is captured and no kernel is launched."""
    words = {"device=cuda": "device=cpu", "train.capture=graph": "train.capture=none"}
    words["architecture.width=64"] = "architecture.width=4"
    monkeypatch.setattr(gpu, "run_settings", lambda given: runs.run_settings([words.get(word, word) for word in given]))
    monkeypatch.setattr(gpu, "kernel_launches", lambda step: 7)
    monkeypatch.setattr(gpu, "PRODUCT", 64)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", str)
    code = benchmark.main(
        [
            "gpu",
            "--case",
            "dcgan_32",
            "--batch",
            "2",
            "--rounds",
            "1",
            "--steps",
            "1",
            "--json",
            "--capture",
            "graph",
            "weight",
        ]
    )
    told = json.loads(capsys.readouterr().out)
    rows = told["rows"]

    assert code in (0, 5)  # a window this short is noisy
    least = min((row["speedup"] for row in rows if row["capture"] == "graph"), key=lambda ratio: ratio["median"])
    assert [told[key] for key in ("ratio", "low", "high")] == [least[key] for key in ("median", "low", "high")]
    assert [(row["technique"], row["capture"], row["captured"], row["launches_per_step"]) for row in rows] == [
        (technique, capture, False, 7) for technique in ("none", "weight") for capture in ("none", "graph")
    ]
    assert ["of_bare" in row for row in rows] == [True, True, False, False]


@pytest.mark.parametrize("kept", sorted(SCRIPT.parents[1].glob("docs/results/gpu/*.json")), ids=lambda path: path.stem)
def test_a_kept_result_of_a_gpu_says_first_what_capture_gains_at_least(kept: Path):
    told = json.loads(kept.read_text())
    captured = [row["speedup"] for row in told["rows"] if row["captured"]]
    least = min(captured, key=lambda ratio: ratio["median"])
    assert [told[key] for key in ("ratio", "low", "high")] == [least[key] for key in ("median", "low", "high")]


def test_the_bare_loop_of_a_gpu_computes_what_a_step_does():
    settings = runs.run_settings(
        ["architecture.width=4", "normalization=none", "train.discriminator_steps=2", "train.batch_size=4"]
    )
    images, cpu = gpu.random_colours(32), torch.device("cpu")
    step = assemble.build_step(settings, images, assemble.open_batches(settings, images, cpu), cpu)
    loop = gpu.loop_of_modules(step)
    with gpu.Flops() as of_step:
        step.take()
    with gpu.Flops() as of_loop:
        loop.train(1)
    assert of_loop.total == of_step.total


def test_the_operations_of_a_step_are_those_of_its_products():
    settings = runs.run_settings(["dataset=gaussians", "architecture=mlp", "normalization=both/none"])
    images, cpu = assemble.open_dataset(settings), torch.device("cpu")
    step = assemble.build_step(settings, images, assemble.open_batches(settings, images, cpu), cpu)
    (g1, *g), (d1, *d) = (
        [layer.layer.weight.numel() for _, layer in network.layers()]
        for network in (step.state.generator, step.state.discriminator)
    )
    # Passes forward, and gradients of weights and of inputs; neither latents nor the discriminator's images need one.
    of_generator = 2 * (g1 + sum(g)) + (g1 + sum(g)) + sum(g)
    of_discriminator = 2 * (2 * (d1 + sum(d)) + sum(d)) + 2 * (d1 + sum(d))
    assert gpu.floating_operations(step) == 2 * settings.train.batch_size * (of_generator + of_discriminator)


def test_what_pip_cannot_install_is_one_line_and_exits_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert benchmark.main(["trainer", "--mimicry"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: torch-mimicry 0.1.16: pip cannot install it: No matching distribution")


def test_a_technique_is_refused_where_both_have_spectral_normalization(capsys: pytest.CaptureFixture[str]):
    assert benchmark.main(["trainer", "--mimicry", "--technique", "batch"]) == 2
    assert "error: --technique: " in capsys.readouterr().err


def test_scaling_refuses_a_setting_that_an_axis_sets(capsys: pytest.CaptureFixture[str]):
    assert benchmark.main(["scaling", "--axis", "width", "architecture.width=8"]) == 2
    assert capsys.readouterr().err.startswith("error: architecture.width: is what an axis or an option")


def test_a_loader_holds_a_trainer_up_between_windows(monkeypatch: pytest.MonkeyPatch):
    """A trainer of 2 batches a step, asked for windows of 1 and 2 steps, over an epoch of 4 batches."""
    requests = [{"steps": 1, "count": False}, {"steps": 2, "count": True}]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(request) + "\n" for request in requests)))
    answers = io.StringIO()
    layer, told = nn.Conv2d(1, 1, 1), [0]
    for _ in mimicry_worker.InWindows(DataLoader([0] * 4), 2, answers):
        told.append(len(answers.getvalue().splitlines()))
        layer(torch.zeros(1, 1, 1, 1))
    rows = [json.loads(answer) for answer in answers.getvalue().splitlines()]
    assert told == [0, 0, 0, 1, 1, 1, 1]
    assert [row["heavy"] for row in rows] == [{}, {"convolution of 1x1x1x1 by 1x1x1x1": 4}]
    assert all(row["cpu"] >= 0 and row["wall"] > 0 for row in rows)


def test_the_loop_by_hand_takes_as_many_updates_as_the_trainer_would(monkeypatch: pytest.MonkeyPatch):
    requests = [{"steps": 1, "count": True}, {"steps": 2, "count": True}]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(request) + "\n" for request in requests)))
    monkeypatch.setattr(mimicry_worker, "adam", bare.fused_adam)  # whose steps are counted
    generator, discriminator = nn.Linear(3, 5), nn.Linear(5, 1, bias=False)
    generator.nz = 3
    answers, settings = io.StringIO(), argparse.Namespace(batch=2, discriminator_steps=3)
    pixels = np.zeros((4, 5), np.uint8)
    mimicry_worker.train_by_hand(settings, (generator, discriminator), pixels, answers)
    rows = [json.loads(answer)["heavy"] for answer in answers.getvalue().splitlines()]
    assert rows == [{"Adam step of 1 tensors": 3 * n, "Adam step of 2 tensors": n} for n in (1, 2)]


def test_convolutions_of_other_shapes_are_refused_and_gradients_told():
    ours = Counter({"convolution of a": 2, "gradient of a: input": 2})
    theirs = Counter({"convolution of a": 2, "gradient of a: input+weight": 2})
    assert mimicry.compared(ours, theirs)["only_torch_mimicry"] == {"gradient of a: input+weight": 2}
    with pytest.raises(UnequalWork):
        mimicry.compared(ours, theirs + Counter({"convolution of b": 1}))


def interval(median: float) -> dict[str, float]:
    return {"median": median, "low": 0.9 * median, "high": 1.1 * median}


CONTROL = {"control": 1.0, "control_low": 0.98, "control_high": 1.02}
RATIO = {"ratio": 1.1, "low": 1.0, "high": 1.2}
WALL = {"wall_ratio": 1.1, "wall_low": 1.0, "wall_high": 1.2}
SPEEDUPS = {"cpu_speedup": interval(1.2), "wall_speedup": interval(1.3)}
CURVE = {"rows": [{"point": point, "images_per_second": interval(100 * point)} for point in (1, 2, 4)], **CONTROL}
READ = {"rows": [{"threads": count, "images_per_second": interval(100 * count)} for count in (1, 2)], **CONTROL}
TRAINED = {"wall_ratio": interval(1.1), "cpu_ratio": interval(1.2), **CONTROL}
FOUND: dict[str, dict[str, Any]] = {
    "trainer": {**RATIO, **WALL},
    "trainer against torch-mimicry": {
        "against": "torch-mimicry",
        **dict.fromkeys(("same_numerics", "best_settings", "by_hand"), SPEEDUPS),
    },
    "saving": {"share": 0.01, "wall_share": 0.02},
    "monitors": {**RATIO, **WALL, "rows_ratio": 1.0, "rows_low": 0.9, "rows_high": 1.1},
    "memory": {"most_bytes_by_tenths": [4e8] * 10},
    "normalizations": {"ratios": {"weight": interval(1.1), "spectral": interval(1.2)}},
    "evaluation": {**RATIO, "seconds_of_each": {"fid": 1.0}},
    "gpu": {
        "rows": [
            {
                "case": "dcgan_32",
                "technique": "weight",
                "capture": "graph",
                "speedup": interval(6.0),
                "cost": interval(1.0),
            }
        ]
    },
    "startup": {"wall_seconds": {"help": interval(0.2), "train": interval(4.0)}, "claims": {"help": 0.5, "train": 5.0}},
    "reporting": {
        "runs": 500,
        "seconds": {"report": 30.0, "status": 2.0},
        "claims": {"report": 60.0, "status": 5.0, "bytes": 1e9},
    },
    "scaling": {"axes": {"runs": CURVE, "ranks": {"skipped": "no"}}, "reference": {"runs": 1, "ranks": 1}},
    "streaming": {"sizes": {64: {"reading": READ, "training": TRAINED}}},
}


@pytest.mark.parametrize("name", FOUND)
def test_every_benchmark_has_a_picture(name: str):
    values = {"benchmark": name.split()[0], **CONTROL, "environment": {"cpu": "a CPU", "threads": 1}, **FOUND[name]}
    drawn = Image.open(io.BytesIO(pictures.picture(json.loads(json.dumps(values)))))
    ink = np.asarray(drawn.convert("L")) < 200
    assert 0.005 < ink.mean() < 0.2
    edges = (ink[:2], ink[-2:], ink[:, :2], ink[:, -2:])
    assert not any(edge.any() for edge in edges)  # nothing is cut off


def test_every_benchmark_that_there_is_can_be_drawn():
    assert set(pictures.PANELS) == set(benchmark.BENCHMARKS) == {name.split()[0] for name in FOUND}


def test_a_picture_is_drawn_beside_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    values = {"benchmark": "trainer", **CONTROL, **FOUND["trainer"]}
    monkeypatch.setattr(trainer, "trainer", lambda arguments: Report(values, ["a line"]))
    assert benchmark.main(["trainer", "--picture", str(tmp_path / "a.png")]) == 0
    assert capsys.readouterr().out == "a line\n"
    assert Image.open(tmp_path / "a.png").format == "PNG"


def test_throughput_is_per_image_of_each_point_and_against_the_reference():
    """Arms that tell a second for 64 images, and two for 256."""
    arms = {
        64: scaling.Arm(lambda steps: timing.Seconds(1.0 * steps, 1.0 * steps), 64),
        256: scaling.Arm(lambda steps: timing.Seconds(2.0 * steps, 2.0 * steps), 256),
    }
    table = scaling.measured(arms, 64, rounds=2)
    assert [row["images_per_second"]["median"] for row in table["rows"]] == pytest.approx([64, 128])
    assert [row["of_reference"]["median"] for row in table["rows"]] == pytest.approx([1, 2])
    assert (table["best"], table["best_ratio"], table["control"]) == (256, 2, 1)


def test_points_of_an_axis_differ_in_it_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(scaling, "POINTS", {**scaling.POINTS, "batch": (2, 64), "ranks": (1,)})
    monkeypatch.setattr(scaling, "LEAST", 0.0)
    words = ["scaling", "--axis", "batch", "--rounds", "1", "--json", "architecture.width=4"]
    assert benchmark.main(words) in (0, 5)
    told = json.loads(capsys.readouterr().out)
    rows = told["axes"]["batch"]["rows"]
    best = max((row["of_reference"] for row in rows), key=lambda ratio: ratio["median"])
    assert [told[key] for key in ("ratio", "low", "high")] == [best[key] for key in ("median", "low", "high")]
    assert [row["point"] for row in rows] == [2, 64]
    assert (told["reference"]["width"], told["reference"]["batch"]) == (4, 64)
    assert rows[0]["images_per_second"]["median"] < rows[1]["images_per_second"]["median"]


def test_ranks_have_the_threads_that_were_asked_for_and_leave_nothing_where_runs_go(
    stand_in: Callable[..., None], outputs: Path, tmp_path: Path
):
    rows = "".join(json.dumps({"step": step, "seconds": seconds}) + "\\n" for step, seconds in ((5, 2.0), (10, 5.0)))
    stand_in(
        f'echo "$*" > {tmp_path}/words',
        "mkdir -p $NORMLAB_OUTPUTS/name/run",
        f"printf '{rows}' > $NORMLAB_OUTPUTS/name/run/metrics.jsonl",
    )
    with scaling.ranks_of_a_run(benchmark.parsed(["scaling", "--threads", "3"])) as arms:
        assert arms[2].train(5).wall == 3
    words = (tmp_path / "words").read_text().split()
    assert {"--nproc-per-node=2", "threads=3", "train.until=10"} <= set(words)
    assert not outputs.exists()


@pytest.mark.parametrize("said", ["error: device: none — choose one", "Killed"])
def test_a_run_on_ranks_that_fails_says_why(
    stand_in: Callable[..., None], capsys: pytest.CaptureFixture[str], said: str
):
    """Behind a run's error comes what torchrun has to say of it."""
    stand_in(f"echo '{said}' >&2", *(["echo FAILED >&2"] if said.startswith("error") else []), "exit 3")
    assert benchmark.main(["scaling", "--axis", "ranks"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: ranks: a run on 1 rank(s) ended with 3 ({said.removeprefix('error: ')}) — ")


def test_a_window_of_streaming_pays_for_what_it_reads_ahead(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    weight = streaming.write_photographs(tmp_path / "photographs", 6)
    assert 5_000 < weight < 50_000
    arguments = benchmark.parsed(["streaming", "--batch", "2"])
    real = streaming.opened(streaming.words_of(arguments, tmp_path / "photographs", 32, 2))
    streaming.in_order(real)(1)
    ahead = real.ahead(0, real.batch_size).batches
    assert len(ahead) == BATCHES_AHEAD
    assert all(batch.done() for batch in ahead.values())


def test_streaming_says_first_what_the_size_costs_that_costs_most(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def measured(arguments: object, root: Path, size: int) -> dict[str, Any]:
        read = {"rows": [], "cpu_milliseconds_per_image": 1.0, **CONTROL}
        speeds = {"streamed": 1.0, "in memory": 1.0}
        return {
            "reading": read,
            "training": {"wall_ratio": interval(1 + size / 100), "images_per_second": speeds, **CONTROL},
        }

    monkeypatch.setattr(streaming, "measured", measured)
    assert benchmark.main(["streaming", "--photographs", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ratio"], told["low"], told["high"]) == pytest.approx((2.28, 0.9 * 2.28, 1.1 * 2.28))


def test_startup_says_first_what_a_first_step_takes_of_what_is_claimed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    taken = iter([3.0, 4.0, 2.0, 3.0])  # to warm up, then by rounds; every other process takes a second

    def probed(words: list[str], environment: dict[str, str]) -> timing.Seconds:
        return timing.Seconds(1.0, 1.0 if "evaluation=none" in words else next(taken))

    monkeypatch.setattr("gc.collect", lambda: 0)  # which takes long in a process that holds so much
    monkeypatch.setattr(startup, "_probed", probed)
    monkeypatch.setattr(startup, "_timed", lambda words, environment: timing.Seconds(1.0, 1.0))
    assert benchmark.main(["startup", "--rounds", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ratio"], told["low"], told["high"]) == (3 / 5, 2 / 5, 4 / 5)


def test_a_made_up_study_is_one_that_a_report_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    seen: list[dict[str, Any]] = []

    def measured(words: list[str], threads: int) -> tuple[float, int]:
        if words[0] == "report":
            assert cli.run(["report", words[1], "--json"]) == 0
            seen.append(json.loads(capsys.readouterr().out))
        return 1.0, 10**8

    monkeypatch.setattr(reporting, "measured", measured)
    assert benchmark.main(["reporting", "--runs", "90", "--rows", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)

    assert (told["runs"], told["seconds"]) == (90, {"report": 1.0, "status": 1.0})
    (comparison,) = seen[0]["comparisons"]
    assert not seen[0]["left_out"]
    assert [arm["survived"] for arm in comparison["arms"]] == [2] * 45  # nine techniques at five rates


@pytest.mark.slow
def test_cold_processes_are_timed_to_their_first_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert benchmark.main(["startup", "--rounds", "1", "--json", *SMALL]) in (0, 5)
    taken = json.loads(capsys.readouterr().out)["wall_seconds"]
    assert taken["help"]["median"] < taken["torch"]["median"]
    assert 0 < taken["train"]["median"] < 60
