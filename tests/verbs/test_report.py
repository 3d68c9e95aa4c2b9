"""`normlab report` on folders of runs that are made up, so that what it must say is known."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from normlab import config
from normlab.config import (
    EvaluationConfig,
    NormalizationConfig,
    OptimizerConfig,
    Part,
    RunConfig,
    TrainConfig,
    TuningConfig,
)
from normlab.outputs.run_dir import RunDir, Status
from normlab.outputs.sinks import JsonLines
from normlab.reports import arms

from ..conftest import Command

EVERY = 100  # steps between evaluations
LOGGED = 10  # steps between rows


def arm(technique: str, seed: int = 0, **others: Any) -> RunConfig:
    normalization = NormalizationConfig(discriminator=Part(name=technique))
    return replace(RunConfig(), normalization=normalization, seed=seed, **others)


def fabricate(
    folder: Path,
    settings: RunConfig,
    distances: Sequence[float | None] = (),
    *,
    state: Any = "done",
    protocol: str = "by",
    logged: int = LOGGED,
    exit_code: int | None = None,
    found: Mapping[str, int] | None = None,
    **more: Any,
) -> Path:
    """Write a run that was evaluated every 100 steps, and whose losses alternate between 1 and 3."""
    run = RunDir(folder)
    run.create()
    run.config.write_text(config.to_yaml(settings))
    last = EVERY * max(len(distances) - 1, 0)
    states = dict(found or {})
    run.write_status(Status(state=state, step=last, images_seen=64 * last, exit_code=exit_code, states=states))
    for step in range(logged, last + 1, logged):
        losses = {"loss/generator": 1.0 + 2 * (step // logged % 2), "gradient_norm/generator": 1.0}
        JsonLines(run.metrics).append({"step": step, "images_seen": 64 * step, "seconds": step / 10, **losses})
    for number, distance in enumerate(distances):
        step = EVERY * number
        place = {"step": step, "images_seen": 64 * step, "seconds": step / 10, "generator": "live"}
        row = {**place, "protocol": protocol, "flags": [], "frechet_distance": distance, **more}
        JsonLines(run.evaluations).append(row)
    return folder


def falling(reached_at: int) -> list[float]:
    """Return distances at 11 evaluations which are 50 from step `reached_at` on, and 100 before."""
    return [100.0 if EVERY * number < reached_at else 50.0 for number in range(11)]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three seeds of two arms: with spectral norm they take 70 % of the steps that they take without."""
    for seed, (steps, fewer) in enumerate([(1000, 700), (1000, 700), (1000, 700)]):
        fabricate(tmp_path / f"study/none{seed}", arm("none", seed), falling(steps))
        fabricate(tmp_path / f"study/spectral{seed}", arm("spectral", seed), falling(fewer))
    return tmp_path / "study"


def compared(normlab: Command, *words: str) -> list[dict[str, Any]]:
    shown = normlab("report", "--json", *words)
    assert shown.exit_code == 0, shown.stderr
    return json.loads(shown.stdout)["comparisons"]


def by_label(comparison: Mapping[str, Any]) -> dict[str, Any]:
    return {described["arm"]: described for described in comparison["arms"]}


def test_thirty_per_cent_faster_is_shown_as_that(normlab: Command, study: Path) -> None:
    shown = normlab("report", str(study))
    (comparison,) = compared(normlab, str(study))
    spectral = by_label(comparison)["G:batch D:spectral"]

    assert (comparison["baseline"], comparison["level"]) == ("G:batch D:none", 50)
    assert comparison["horizon"] == {"step": 1000, "images_seen": 64000, "seconds": 100}
    assert {unit: told["percent"] for unit, told in spectral["speedup"].items()} == pytest.approx(
        {"step": 30, "images_seen": 30, "seconds": 30}
    )
    assert spectral["stability"]["loss/generator/variation"] == pytest.approx(2 / (2 + 2))
    assert shown.exit_code == 0
    assert "30 %" in shown.stdout
    words = ("Quality:", "Stability of", "Convergence:")
    quality, stability, convergence = (shown.stdout.index(word) for word in words)
    assert quality < stability < convergence


def test_a_stated_level_and_metric_are_those_used(normlab: Command, study: Path) -> None:
    (comparison,) = compared(normlab, str(study), "--level", "100", "--metric", "frechet_distance")

    assert comparison["level_is_given"]
    assert {described["times"]["step"] for described in comparison["arms"]} == {0}
    assert any("a time of 0 says nothing" in note for note in comparison["notes"])


def test_the_baseline_is_what_it_is_said_to_be(normlab: Command, study: Path) -> None:
    (comparison,) = compared(
        normlab, str(study), "--baseline", "normalization.discriminator=spectral", "loss=non_saturating"
    )

    assert comparison["baseline"] == "G:batch D:spectral"
    # Within 1,000 steps 1,000 is 3/7 more than 700.
    assert by_label(comparison)["G:batch D:none"]["speedup"]["step"]["percent"] == pytest.approx(-300 / 7)


def test_a_run_that_diverged_is_counted_and_never_gets_there(normlab: Command, study: Path) -> None:
    fabricate(study / "spectral3", arm("spectral", 3), [100, 50, 50], state="diverged")
    (comparison,) = compared(normlab, str(study))
    spectral = by_label(comparison)["G:batch D:spectral"]

    assert spectral["states"] == {"done": 3, "diverged": 1}
    assert spectral["reached"] == 3
    assert spectral["times"]["step"] == pytest.approx((3 * 700 + 1000) / 4)
    assert spectral["quality"]["mean"] == 50
    assert comparison["horizon"]["step"] == 1000


def test_a_run_that_a_collapse_ended_is_counted_and_gets_there_only_if_it_was_there_before(
    normlab: Command, study: Path
) -> None:
    collapsed: dict[str, Any] = {"state": "stopped", "exit_code": 6}
    fabricate(study / "spectral3", arm("spectral", 3), [100, 90, 99], found={"collapsed": 200}, **collapsed)
    fabricate(study / "spectral4", arm("spectral", 4), [100, 50, 99], found={"collapsed": 200}, **collapsed)
    (comparison,) = compared(normlab, str(study))
    spectral = by_label(comparison)["G:batch D:spectral"]

    assert spectral["states"] == {"done": 3, "collapsed": 2}
    assert spectral["found"] == {"collapsed": 0, "dead": 0}
    assert (spectral["reached"], spectral["timed"]) == (4, 5)
    assert spectral["times"]["step"] == pytest.approx((3 * 700 + 1000 + 100) / 5)
    assert spectral["quality"]["mean"] == 50
    assert [run["final"]["reason"] for run in spectral["runs"]] == [None] * 3 + ["collapsed"] * 2
    assert comparison["horizon"]["step"] == 1000
    assert normlab("report", str(study / "spectral3")).exit_code == 0


def test_a_run_that_went_on_after_a_collapse_is_told_beside_those_that_are_done(normlab: Command, study: Path) -> None:
    fabricate(study / "layer", arm("layer"), falling(500), found={"collapsed": 400, "dead": 100})
    shown = normlab("report", str(study))
    (comparison,) = compared(normlab, str(study))
    layer, none = (by_label(comparison)[f"G:batch D:{name}"] for name in ("layer", "none"))

    assert (layer["found"], none["found"]) == ({"collapsed": 1, "dead": 1}, {"collapsed": 0, "dead": 0})
    assert layer["runs"][0]["found"] == {"collapsed": 400, "dead": 100}
    assert "called collapsed  called dead" in shown.stdout


def test_a_baseline_that_diverged_leaves_the_others_their_numbers(normlab: Command, tmp_path: Path) -> None:
    fabricate(tmp_path / "none", arm("none"), [100, 90], state="diverged")
    fabricate(tmp_path / "layer", arm("layer"), falling(500))
    (comparison,) = compared(normlab, str(tmp_path))
    layer = by_label(comparison)["G:batch D:layer"]

    assert (comparison["baseline"], comparison["level"]) == ("G:batch D:none", None)
    assert (layer["quality"]["mean"], layer["times"], layer["speedup"]) == (50, {}, {})
    # With every.log=10 the last half of 1,000 steps has 50 rows.
    assert layer["stability"]["loss/generator/variation"] == pytest.approx(0.5)


def test_gradients_over_depth_are_shown_where_they_were_recorded(normlab: Command, study: Path) -> None:
    rows = JsonLines(study / "none0/spectra.jsonl")
    for step in (600, 800, 1000):
        for depth, norm in enumerate((8.0, 4.0, 2.0)):
            rows.append({"step": step, "network": "discriminator", "layer": str(depth), "gradient_norm": norm})
    (comparison,) = compared(normlab, str(study))

    ratio = by_label(comparison)["G:batch D:none"]["stability"]["gradient_ratio/discriminator/first_to_last"]
    assert ratio == pytest.approx(4)


def test_numbers_that_no_run_has_are_told_of_in_a_note_alone(normlab: Command, study: Path) -> None:
    rows = JsonLines(study / "none0/spectra.jsonl")
    for step in (600, 1000):
        for depth in range(3):
            rows.append({"step": step, "network": "discriminator", "layer": str(depth), "gradient_norm": 1.0})
    shown = normlab("report", str(study)).stdout

    assert "Gradient norms over the layers" not in shown
    assert "gradients per layer at 2 steps of the window" in shown


def test_losses_of_another_kind_are_left_blank(normlab: Command, study: Path) -> None:
    for name, settings in {
        "hinge": arm("none", loss=Part(name="hinge")),
        "penalized": arm("none", penalty={"r1": {"weight": 10.0}}),
    }.items():
        fabricate(study / name, settings, falling(500))
    (comparison,) = compared(normlab, str(study))
    arms = by_label(comparison)

    for label in ("G:batch D:none loss=hinge penalty=none", "G:batch D:none loss=non_saturating penalty=r1"):
        assert set(arms[label]["stability"].values()) == {None}
        assert arms[label]["times"]["step"] == 500
    assert arms["G:batch D:spectral loss=non_saturating penalty=none"]["stability"]["loss/generator/spread"] is not None
    assert any("another loss or penalty" in note and "(2 of 8 runs)" in note for note in comparison["notes"])


def test_runs_logged_unequally_often_are_left_blank(normlab: Command, study: Path) -> None:
    fabricate(study / "often", arm("layer"), falling(500), logged=5)
    (comparison,) = compared(normlab, str(study))

    assert set(by_label(comparison)["G:batch D:layer"]["stability"].values()) == {None}
    assert any("not logged as often" in note for note in comparison["notes"])


def test_what_was_not_measured_alike_is_cut_to_what_all_have_and_told(normlab: Command, study: Path) -> None:
    for run in study.iterdir():
        (run / "environment.json").write_text('{"device_name": "this one", "threads": 1}')
    longer = [100.0] * 15 + [50.0] * 6
    fabricate(study / "longer", arm("layer"), longer)
    (study / "longer/environment.json").write_text('{"device_name": "another", "threads": 1}')
    (study / "longer/changes.jsonl").write_text("{}")
    (comparison,) = compared(normlab, str(study))
    layer = by_label(comparison)["G:batch D:layer"]

    assert comparison["horizon"] == {"step": 1000, "images_seen": 64000}
    assert (layer["reached"], layer["times"], layer["log_area"]) == (0, {"step": 1000, "images_seen": 64000}, 2)
    assert comparison["notes"] == [
        "an interval needs two seeds of both arms: G:batch D:layer",
        "the seeds of an arm reach the level at the same evaluation: no interval: G:batch D:spectral",
        "runs end at 1,000 to 2,000 steps: quality and stability are of each run's own end",
        "runs of different machines: seconds are left out",
        "1 of 7 runs had a setting changed on their way: see their changes.jsonl",
    ]


def test_a_run_that_was_not_evaluated_has_not_failed_to_get_there(normlab: Command, study: Path) -> None:
    fabricate(study / "none3", arm("none", 3)).joinpath("metrics.jsonl").write_text("")
    fabricate(study / "few", arm("spectral", 3), falling(900), flags=["few_samples"])
    (comparison,) = compared(normlab, str(study))

    assert [(described["reached"], described["timed"]) for described in comparison["arms"]] == [(3, 3), (3, 3)]
    assert by_label(comparison)["G:batch D:spectral"]["times"]["step"] == 700
    assert "not evaluated (1 of 8 runs)" in comparison["notes"]


def test_evaluations_unequally_far_apart_are_told(normlab: Command, study: Path) -> None:
    rows = JsonLines(study / "none0/evaluations.jsonl")
    halves = [row for row in rows.rows() if row["step"] % 200 == 0]
    rows.path.unlink()
    for row in halves:
        rows.append(row)
    (comparison,) = compared(normlab, str(study))

    assert "evaluated every 100 to 200 steps: less often by itself makes times later" in comparison["notes"]


def test_rows_of_another_protocol_and_flagged_ones_do_not_count(normlab: Command, study: Path) -> None:
    place = {"step": 100, "images_seen": 6400, "seconds": 10.0, "generator": "live", "frechet_distance": 1.0}
    rows = JsonLines(study / "none0/evaluations.jsonl")
    rows.append({**place, "protocol": "another", "flags": []})
    rows.append({**place, "protocol": "by", "flags": ["few_samples"]})
    (comparison,) = compared(normlab, str(study), "--level", "20")

    assert [described["reached"] for described in comparison["arms"]] == [0, 0]
    assert {"1 evaluations by another protocol are left out", "flagged evaluations do not count: 1 few_samples"} <= set(
        comparison["notes"]
    )


def test_runs_on_other_data_or_by_another_protocol_stand_apart(normlab: Command, study: Path) -> None:
    fabricate(study / "mnist", arm("none", dataset=Part(name="mnist")), falling(500))
    fabricate(study / "machine", arm("layer"), falling(500), protocol="by another machine's classifier")
    told = compared(normlab, str(study), "--baseline", "normalization.discriminator=spectral")

    assert [(each["dataset"], len(each["arms"]), each["baseline"]) for each in told] == [
        ("digits", 1, "G:batch D:layer"),
        ("mnist", 1, "G:batch D:none"),
        ("digits", 2, "G:batch D:spectral"),
    ]
    assert "not the baseline asked for" in told[0]["notes"][0]


def test_what_gives_no_numbers_is_listed(normlab: Command, study: Path) -> None:
    fabricate(study / "broken", arm("none", 5)).joinpath("config.yaml").write_text("name: [")
    fabricate(study / "stopped", arm("none", 6), [100], state="stopped")
    fabricate(study / "failed", arm("none", 7), [100], state="failed")
    fabricate(study / "early.old-1", arm("none", 0), falling(100))
    fabricate(study / "copy", arm("none", 1), [100, 50])
    shown = normlab("report", str(study))
    told = json.loads(normlab("report", str(study), "--json").stdout)
    left_out = {Path(each["run"]).name: each["reason"] for each in told["left_out"]}

    assert shown.exit_code == 0
    assert left_out.keys() == {"broken", "stopped", "failed", "early.old-1", "copy"}
    assert left_out["early.old-1"] == f"the same settings and seed as {study / 'none0'}"
    assert left_out["copy"] == f"the same settings and seed as {study / 'none1'}"
    assert all(name in shown.stdout for name in left_out)
    assert by_label(told["comparisons"][0])["G:batch D:none"]["states"] == {"done": 3, "failed": 1, "stopped": 1}


def test_how_a_run_is_evaluated_is_told_by_the_protocol_and_not_by_its_arm(normlab: Command, study: Path) -> None:
    few = EvaluationConfig(samples=20)
    fabricate(study / "changed", arm("none", 3, evaluation=few), falling(1000))
    fabricate(study / "other", arm("none", 0, evaluation=few), falling(1000), protocol="by few")
    fabricate(study / "again", arm("none", 1, evaluation=few), falling(500)[:9])
    fabricate(study / "begun.old-1", arm("none", 2), state="stopped")
    told = json.loads(normlab("report", str(study), "--json").stdout)
    by, by_few = sorted(told["comparisons"], key=lambda comparison: comparison["protocol"])

    assert {label: each["states"] for label, each in by_label(by).items()} == {
        "G:batch D:none": {"done": 4},
        "G:batch D:spectral": {"done": 3},
    }
    assert (by_few["protocol"], list(by_label(by_few))) == ("by few", ["G:batch D:none"])
    assert [Path(each["run"]).name for each in told["left_out"]] == ["again", "begun.old-1"]


def test_settings_stand_in_a_label_where_they_differ(normlab: Command, tmp_path: Path) -> None:
    def spectral(lr: float, **params: Any) -> RunConfig:
        normalization = NormalizationConfig(discriminator=Part(name="spectral", params=params))
        return replace(RunConfig(), normalization=normalization, optimizer=OptimizerConfig(params={"lr": lr}))

    for name, settings in {
        "a": spectral(1e-4, power_iterations=1),
        "b": spectral(2e-4, power_iterations=1),
        "c": spectral(2e-4, power_iterations=5),
    }.items():
        fabricate(tmp_path / name, settings, falling(500))
    power = "normalization.discriminator.power_iterations"
    (comparison,) = compared(normlab, str(tmp_path), "--baseline", f"{power}=5", "optimizer.lr=2e-4")

    assert list(by_label(comparison)) == [
        "G:batch D:spectral D.power_iterations=5 lr=0.0002",
        "G:batch D:spectral D.power_iterations=1 lr=0.0001",
        "G:batch D:spectral D.power_iterations=1 lr=0.0002",
    ]
    # What a label says may be typed.
    assert compared(normlab, str(tmp_path), "--baseline", "D.power_iterations=5", "lr=2e-4") == [comparison]
    refused = normlab("report", str(tmp_path), "--baseline", "G.power_iterations=5")
    assert refused.exit_code == 2
    assert "'G.power_iterations'" in refused.stderr


def test_keys_that_end_alike_are_told_whole() -> None:
    same = {key: "batch" for key in arms.TECHNIQUES}
    first, second = (
        {**same, "loss.gain": gain, "initialisation.gain": 1.0 - gain, "loss.name": "hinge"} for gain in (0.0, 1.0)
    )
    assert arms.labels([first, second]) == [
        "G:batch D:batch loss.gain=0.0 initialisation.gain=1.0",
        "G:batch D:batch loss.gain=1.0 initialisation.gain=0.0",
    ]


def test_a_parameter_that_two_techniques_have_goes_with_their_names(normlab: Command, tmp_path: Path) -> None:
    def settings(technique: str, exempt: list[str]) -> RunConfig:
        part = Part(name=technique, params={"exempt": exempt})
        return replace(RunConfig(), normalization=NormalizationConfig(discriminator=part))

    fabricate(tmp_path / "batch", settings("batch", ["first"]), falling(500))
    fabricate(tmp_path / "spectral", settings("spectral", []), falling(500))
    assert {*by_label(compared(normlab, str(tmp_path))[0])} == {"G:batch D:batch", "G:batch D:spectral"}

    fabricate(tmp_path / "other", settings("batch", ["last"]), falling(500))
    (comparison,) = compared(normlab, str(tmp_path))
    assert "G:batch D:batch D.exempt=['last']" in by_label(comparison)


def test_a_parameter_of_one_technique_alone_goes_with_its_name(normlab: Command, study: Path) -> None:
    power = NormalizationConfig(discriminator=Part(name="spectral_conv", params={"power_iterations": 3}))
    fabricate(study / "conv", replace(RunConfig(), normalization=power), falling(500))
    (comparison,) = compared(normlab, str(study))

    assert "G:batch D:spectral_conv" in by_label(comparison)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--metric", "frechet"], "error: --metric: 'frechet' is not a metric (did you mean 'frechet_distance'?"),
        (["--metric", "kid"], "error: --metric: no run has kid — there are frechet_distance"),
        (["--level", "low"], "error: --level: got 'low', no finite number"),
        (["--level", "nan"], "error: --level: got 'nan', no finite number"),
        (["--baseline", "spectral"], "error: --baseline: got 'spectral', no KEY=VALUE"),
        (["--baseline", "normalization.discriminater=none"], "error: --baseline: 'normalization.discriminater' is not"),
        (["--baseline", "normalization.discriminator=batch"], "error: --baseline: no arm has normalization.discr"),
        (["--baseline", "loss=non_saturating"], "error: --baseline: loss=non_saturating fits 'G:batch D:none', 'G:"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(normlab: Command, study: Path, words: list[str], says: str) -> None:
    refused = normlab("report", str(study), *words)

    assert refused.exit_code == 2
    assert refused.stderr.startswith(says), refused.stderr
    assert refused.stderr.count("\n") == 1


def test_where_there_is_nothing_to_compare_it_says_so(normlab: Command, tmp_path: Path) -> None:
    empty = normlab("report", str(tmp_path))
    fabricate(tmp_path / "run", arm("none"), [100], state="stopped")
    unfinished = normlab("report", str(tmp_path))

    assert (empty.exit_code, unfinished.exit_code) == (2, 2)
    assert empty.stderr.startswith(f"error: {tmp_path}: holds no run")
    assert "no run has ended, 1 stopped" in unfinished.stderr
    assert unfinished.stderr.count("\n") == 1


def test_reading_runs_imports_no_torch(study: Path) -> None:
    code = "import sys; from normlab import cli; code = cli.run(sys.argv[1:]); sys.exit(code or 'torch' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code, "report", str(study)], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0, ended.stderr


def test_a_report_is_one_page_and_its_parts_as_files(normlab: Command, study: Path, tmp_path: Path) -> None:
    shown = normlab("report", str(study), "--out", str(tmp_path / "out"), "--json")
    (comparison,) = json.loads(shown.stdout)["comparisons"]
    page = (tmp_path / "out/report.html").read_text()
    files = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes() for path in (tmp_path / "out").rglob("*.*")
    }

    assert json.loads(files["report.json"])["comparisons"] == [comparison]
    assert {f"tables/quality.{ending}" for ending in ("csv", "md", "tex")} < {*files}
    assert {"figures/curves.svg", "figures/curves.png", "figures/finals.svg", "tables/settings.csv"} < {*files}
    rows = {row["arm"]: row for row in csv.DictReader(files["tables/quality.csv"].decode().splitlines())}
    for described in comparison["arms"]:
        assert float(rows[described["arm"]]["frechet_distance"]) == described["quality"]["mean"]
    # Whole by itself, and the answer comes first.
    assert not re.search(r"(?:src|srcset)=\"(?!data:)", page)
    assert "<link" not in page
    assert page.index("There are fewer than 5 seeds") < page.index("<table")
    assert f"normlab report {study}" in page
    # The same runs give the same bytes.
    normlab("report", str(study), "--out", str(tmp_path / "out"), "--json")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == files


@pytest.mark.parametrize(
    ("seeds", "shift", "verdict", "opening"),
    [
        (5, -30, "better", "G:batch D:layer is better than the baseline G:batch D:none"),
        (5, 30, "worse", "Worse than the baseline G:batch D:none, "),
        (5, 0.01, "not separable", "No arm is separable from the baseline G:batch D:none"),
        (4, -30, "fewer than 5 seeds: nothing is said", "There are fewer than 5 seeds"),
    ],
)
def test_a_difference_is_one_only_from_five_seeds_and_after_correction(
    normlab: Command, tmp_path: Path, seeds: int, shift: float, verdict: str, opening: str
) -> None:
    """Against SciPy's tests of the same numbers; both arms that are held against the baseline have the same p."""
    for seed in range(seeds):
        own = 50 + seed + (seed % 2) / 7
        fabricate(tmp_path / f"none{seed}", arm("none", seed), [99, 50 + seed])
        for technique in ("spectral", "layer"):
            fabricate(tmp_path / f"{technique}{seed}", arm(technique, seed), [99, own + shift])
    (comparison,) = compared(normlab, str(tmp_path), "--out", str(tmp_path / "out"))
    baseline, spectral = (by_label(comparison)[f"G:batch D:{name}"] for name in ("none", "spectral"))
    told = spectral["difference"]
    values = [[run["final"]["value"] for run in each["runs"]] for each in (spectral, baseline)]
    welch, paired = stats.ttest_ind(*values, equal_var=False), stats.ttest_rel(*values)

    assert told["verdict"] == verdict
    assert told["welch"]["p"] == pytest.approx(welch.pvalue)
    assert [told["welch"]["low"], told["welch"]["high"]] == pytest.approx([*welch.confidence_interval()])
    assert told["paired"]["p"] == pytest.approx(paired.pvalue)
    assert told["p"] == pytest.approx(min(1, 2 * welch.pvalue))  # Holm's for two equal ones
    assert told["correlation"] == pytest.approx(stats.pearsonr(*values).statistic)
    interval = stats.t.interval(0.95, seeds - 1, loc=np.mean(values[0]), scale=stats.sem(values[0]))
    assert [spectral["quality"]["low"], spectral["quality"]["high"]] == pytest.approx([*interval])
    answer = re.search(r'class="answer">(.*?)</p>', (tmp_path / "out/report.html").read_text())
    assert answer is not None
    assert answer[1].startswith(opening)


def test_runs_may_be_told_apart_by_some_settings_and_averaged_over_others(normlab: Command, tmp_path: Path) -> None:
    seeds = {"none": (20.0, 26.0, 21.0), "spectral": (10.0, 14.0, 13.0)}
    for technique, finals in seeds.items():
        for seed, final in enumerate(finals):
            for lr, worse in ((1e-4, -2.0), (4e-4, 2.0)):
                settings = arm(technique, seed, optimizer=OptimizerConfig(params={"lr": lr}))
                fabricate(tmp_path / f"{technique}{lr}{seed}", settings, [99, final + worse])
    every = by_label(*compared(normlab, str(tmp_path)))
    pooled = by_label(*compared(normlab, str(tmp_path), "--by", "normalization"))

    assert len(every) == 4
    assert [*pooled] == ["G:batch D:none", "G:batch D:spectral"]
    assert pooled["G:batch D:spectral"]["pooled"] == ["optimizer.lr"]
    # The two runs of a seed are one sample, their mean: three of each arm, and not six.
    quality, difference = (pooled["G:batch D:spectral"][key] for key in ("quality", "difference"))
    welch = stats.ttest_ind(seeds["spectral"], seeds["none"], equal_var=False)
    assert (quality["mean"], quality["n"]) == (pytest.approx(37 / 3), 3)
    assert difference["welch"]["p"] == pytest.approx(welch.pvalue)
    assert difference["correlation"] == pytest.approx(np.corrcoef(seeds["spectral"], seeds["none"])[0, 1])
    (balanced,) = compared(normlab, str(tmp_path), "--by", "normalization")
    shutil.rmtree(tmp_path / "spectral0.00040")
    shutil.rmtree(tmp_path / "spectral0.00041")
    shutil.rmtree(tmp_path / "spectral0.00042")
    (lopsided,) = compared(normlab, str(tmp_path), "--by", "normalization")
    told = "arms are averages over different values of optimizer.lr: a difference may be one of those"
    assert [told in each["notes"] for each in (balanced, lopsided)] == [False, True]
    refused = normlab("report", str(tmp_path), "--by", "optimizer.rate")
    assert (refused.exit_code, "optimizer.lr" in refused.stderr) == (2, True)


def test_precisions_are_never_mixed(normlab: Command, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        fabricate(tmp_path / precision, arm("none", precision=precision), [99, 50])

    assert [each["precision"] for each in compared(normlab, str(tmp_path))] == ["bf16", "fp32"]


def test_what_real_images_score_stands_below_the_arms(normlab: Command, study: Path) -> None:
    for run in study.iterdir():
        floor = {"protocol": "by" if run.name == "none0" else "other", "images": 50, "frechet_distance": 1.25}
        (run / "environment.json").write_text(json.dumps({"floor": floor}))
    (comparison,) = compared(normlab, str(study))

    assert comparison["floor"] == 1.25
    assert re.search(r"real images themselves +1\.25 ", normlab("report", str(study)).stdout)


def test_the_noise_of_evaluations_and_the_best_scored_again_stand_beside_the_final_value(
    normlab: Command, tmp_path: Path
) -> None:
    for seed, deviation in ((0, 3.0), (1, 4.0)):
        repeats = {"frechet_distance": [50 - deviation, 50, 50 + deviation]}
        fabricate(tmp_path / str(seed), arm("none", seed), [99, 50], repeats=repeats)
        best = {"step": 0, "protocol": "by", "flags": [], "frechet_distance": 40.0 + seed}
        (tmp_path / f"{seed}/best.json").write_text(json.dumps(best))
    (described,) = by_label(*compared(normlab, str(tmp_path))).values()

    assert described["noise"] == pytest.approx((3**2 / 2 + 4**2 / 2) ** 0.5)
    assert described["best"]["mean"] == 40.5
    assert described["quality"]["mean"] == 50


def test_the_noise_may_be_measured_by_scoring_a_run_again(normlab: Command, study: Path) -> None:
    again = {"step": 1000, "protocol": "by", "flags": [], "repeats": {"frechet_distance": [47.0, 50.0, 53.0]}}
    JsonLines(RunDir(study / "none1").scores).append(again)
    noise = {label: each["noise"] for label, each in by_label(*compared(normlab, str(study))).items()}

    assert noise == {"G:batch D:none": 3.0, "G:batch D:spectral": None}


def test_an_arm_of_too_few_seeds_is_not_said_to_be_inseparable(normlab: Command, tmp_path: Path) -> None:
    for technique, seeds, best in (("none", 5, 50.0), ("spectral", 5, 20.0), ("batch", 5, 50.1), ("layer", 2, 20.0)):
        for seed in range(seeds):
            fabricate(tmp_path / f"{technique}{seed}", arm(technique, seed), [99, best + seed])
    normlab("report", str(tmp_path), "--out", str(tmp_path / "out"))
    page = (tmp_path / "out/report.html").read_text()

    assert "Not separable from it: G:batch D:batch.</p>" in page
    assert "Fewer than 5 seeds: G:batch D:layer.</p>" in page


def test_a_run_whose_generator_ends_in_infinities_has_not_survived(normlab: Command, tmp_path: Path) -> None:
    for seed in range(5):
        fabricate(tmp_path / f"study/none{seed}", arm("none", seed), [90.0, 30.0 + seed])
        fabricate(tmp_path / f"study/spectral{seed}", arm("spectral", seed), [90.0, 5.0 + seed])
    fabricate(tmp_path / "study/spectral5", arm("spectral", 5), [90.0, None], flags=["non_finite"])
    spectral = by_label(compared(normlab, str(tmp_path / "study"))[0])["G:batch D:spectral"]

    assert (spectral["survived"], spectral["entered"]) == (5, 6)
    assert spectral["difference"]["ranks"] is not None


def test_with_too_few_seeds_for_ranks_nobody_is_called_inseparable(normlab: Command, tmp_path: Path) -> None:
    techniques = ("layer", "instance", "group", "batch", "weight", "adaptive", "spectral")
    for seed in range(5):
        fabricate(tmp_path / f"study/none{seed}", arm("none", seed), [90.0, 30.0 + seed], state="diverged")
        for technique in techniques:
            fabricate(tmp_path / f"study/{technique}{seed}", arm(technique, seed), [90.0, 5.0 + seed])
    shown = normlab("report", str(tmp_path / "study"))
    own = by_label(compared(normlab, str(tmp_path / "study"))[0])["G:batch D:spectral"]["difference"]

    assert (own["verdict"], own["detectable"]) == ("too few seeds for ranks", None)
    assert own["p"] > 0.05 > own["ranks"]
    assert "with so many arms no ranks of so few could tell" in shown.stdout


def test_runs_of_one_seed_at_several_settings_are_no_seeds(normlab: Command, tmp_path: Path) -> None:
    for number, lr in enumerate((1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4)):
        others = {"optimizer": OptimizerConfig(params={"lr": lr})}
        fabricate(tmp_path / f"study/none{number}", arm("none", 0, **others), [90.0, 50.0, 40.0 + number])
        fabricate(tmp_path / f"study/spectral{number}", arm("spectral", 0, **others), [90.0, 5.0, 5.0 + number])
    words = (str(tmp_path / "study"), "--by", "normalization", "--level", "45")
    spectral = by_label(compared(normlab, *words)[0])["G:batch D:spectral"]

    assert spectral["difference"]["verdict"].startswith("fewer than 5 seeds")
    assert (spectral["reached"], spectral["timed"]) == (6, 6)
    assert "6 of 6" in normlab("report", *words).stdout


def test_a_final_value_is_of_the_last_step(normlab: Command, study: Path) -> None:
    run = RunDir(study / "spectral0")
    status = run.read_status()
    assert status is not None
    run.write_status(replace(status, step=status.step + 500))
    (comparison,) = compared(normlab, str(study))

    assert by_label(comparison)["G:batch D:spectral"]["survived"] == 2
    assert any("not evaluated at the last step" in note for note in comparison["notes"])


def test_a_run_that_has_ended_is_not_hidden_by_a_longer_one_that_has_not(normlab: Command, study: Path) -> None:
    longer = fabricate(study / "longer", arm("spectral"), [100.0] * 21, state="stopped")
    shown = json.loads(normlab("report", "--json", str(study)).stdout)

    assert by_label(shown["comparisons"][0])["G:batch D:spectral"]["survived"] == 3
    assert [Path(each["run"]).name for each in shown["left_out"]] == [longer.name]


def test_the_same_settings_on_other_images_are_another_run(normlab: Command, study: Path) -> None:
    for seed in range(3):
        fabricate(study / f"dogs/none{seed}", arm("none", seed), falling(500), protocol="by dogs")
    cats, dogs = compared(normlab, str(study))
    normlab("report", str(study), "--out", str(study.parent / "out"))

    assert by_label(cats)["G:batch D:none"]["survived"] == by_label(dogs)["G:batch D:none"]["survived"] == 3
    folders = sorted(path.name for path in (study.parent / "out/figures").iterdir())
    assert len(folders) == 2
    assert "of" in (study.parent / "out/tables/runs.csv").read_text().splitlines()[0].split(",")


def test_every_setting_in_which_runs_differ_is_listed(normlab: Command, tmp_path: Path) -> None:
    for seed in range(2):
        fabricate(tmp_path / f"study/none{seed}", arm("none", seed), falling(500))
        fabricate(tmp_path / f"study/spectral{seed}", arm("spectral", seed, threads=1 + seed), falling(500))
    normlab("report", str(tmp_path / "study"), "--out", str(tmp_path / "out"))
    none, spectral = csv.DictReader((tmp_path / "out/tables/settings.csv").read_text().splitlines())

    assert (none["threads"], spectral["threads"]) == ("", "1, 2")
    assert (none["normalization.discriminator.name"], none["seeds"]) == ("none", "0, 1")


def test_the_commands_that_train_the_arms_are_told(normlab: Command, tmp_path: Path) -> None:
    """Where an arm is pooled, there is one for each of its parts; that they give the settings is tested of words_of."""
    study = tmp_path / "study"
    for lr in (1e-3, 2e-3):
        others = {"optimizer": OptimizerConfig(params={"lr": lr})}
        for seed in range(3):
            fabricate(study / f"layer{lr}{seed}", arm("layer", seed, **others), falling(500))
    normlab("report", str(study), "--out", str(tmp_path / "out"), "--by", "normalization")
    rows = [*csv.DictReader((tmp_path / "out/tables/commands.csv").read_text().splitlines())]

    assert [shlex.split(row["command"])[-2:] for row in rows] == [
        ["optimizer.lr=0.001", "seed=0,1,2"],
        ["optimizer.lr=0.002", "seed=0,1,2"],
    ]
    assert all(row["command"].startswith("normlab train -m normalization.discriminator=layer") for row in rows)


def test_a_setting_at_which_all_seeds_were_lost_is_marked(normlab: Command, tmp_path: Path) -> None:
    for lr in (1e-3, 2e-3, 4e-3):
        for technique in ("none", "spectral"):
            others = {"optimizer": OptimizerConfig(params={"lr": lr})}
            state = "diverged" if (technique, lr) == ("none", 4e-3) else "done"
            fabricate(tmp_path / f"study/{technique}{lr}", arm(technique, **others), falling(500), state=state)
    normlab("report", str(tmp_path / "study"), "--out", str(tmp_path / "out"))
    page = (tmp_path / "out/report.html").read_text()

    assert "against optimizer.lr" in page
    assert "A cross at the top: no seed survived there." in page


def test_a_file_is_no_folder_for_a_report(normlab: Command, study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        refused = normlab("report", str(study), "--out", str(out))
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert "--out" in refused.stderr


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("status.json", '{"state": "done", "step": 1000, "states": null}'),
        ("environment.json", '{"floor": [1], "dataset": 3}'),
        ("../tuning.json", '{"arms": [1], "seeds": null}'),
        ("samples/step_x.png", ""),
        ("evaluations.jsonl", '{"step": 1000, "repeats": [1]}\n'),
        ("evaluations.jsonl", '{"step": 1000, "protocol": "by", "flags": 3}\n'),
        ("environment.json", '{"git": 3, "versions": [1]}'),
        ("samples/step_00001000.png", "\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0"),
    ],
)
def test_one_damaged_run_does_not_keep_the_others_from_a_report(
    normlab: Command, study: Path, tmp_path: Path, file: str, content: str
) -> None:
    (whole,) = compared(normlab, str(study))
    path = study / "none0" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="latin-1")
    (study / "none1/metrics.jsonl").unlink()
    (study / "none1/metrics.jsonl").mkdir()

    assert normlab("report", str(study), "--out", str(tmp_path / "out")).exit_code == 0
    (comparison,) = json.loads((tmp_path / "out/report.json").read_text())["comparisons"]
    finals = {Path(run["run"]).name: run["final"]["value"] for each in comparison["arms"] for run in each["runs"]}
    others = {Path(run["run"]).name: run["final"]["value"] for each in whole["arms"] for run in each["runs"]}
    assert {name: others[name] for name in finals if name != "none0"} == {
        name: value for name, value in finals.items() if name != "none0"
    }


def test_comparisons_within_a_part_are_named_by_it_and_not_by_what_comes_with_it(
    normlab: Command, tmp_path: Path
) -> None:
    for name, width, others in (("mlp", 4, {"depth": 3}), ("dcgan", 16, {}), ("dcgan", 8, {})):
        architecture = Part(name=name, params={"width": width} | others)
        fabricate(tmp_path / f"study/{name}{width}", arm("none", 0, architecture=architecture), [99, 60])
    by_part = compared(normlab, str(tmp_path / "study"), "--within", "architecture")
    by_technique = compared(normlab, str(tmp_path / "study"), "--within", "normalization")

    within = ["architecture=dcgan width=8", "architecture=dcgan width=16", "architecture=mlp width=4"]
    assert [each["within"] for each in by_part] == within
    assert [each["within"] for each in by_technique] == [""]


def test_each_value_of_a_setting_may_be_a_comparison_of_its_own(normlab: Command, tmp_path: Path) -> None:
    study = str(tmp_path / "study")
    for lr, better in ((2e-4, 10), (1e-3, 20)):
        for seed in range(2):
            others = {"optimizer": OptimizerConfig(params={"lr": lr})}
            fabricate(tmp_path / f"study/none{lr}{seed}", arm("none", seed, **others), [99, 60 + seed])
            fabricate(tmp_path / f"study/spectral{lr}{seed}", arm("spectral", seed, **others), [99, 60 - better + seed])
    found = {each["within"]: by_label(each) for each in compared(normlab, study, "--within", "optimizer")}
    refused = normlab("report", study, "--within", "optimiser")
    normlab("report", study, "--within", "optimizer.lr", "--out", str(tmp_path / "out"))

    differences = {name: arms["G:batch D:spectral"]["difference"]["welch"]["value"] for name, arms in found.items()}
    assert differences == pytest.approx({"lr=0.0002": -10, "lr=0.001": -20})
    assert (refused.exit_code, "optimizer" in refused.stderr) == (2, True)
    assert "Within: lr=0.001" in (tmp_path / "out/report.html").read_text()


def test_runs_that_a_setting_was_chosen_by_are_no_part_of_its_result(normlab: Command, tmp_path: Path) -> None:
    tuning = TuningConfig(keys=("optimizer.lr",), seeds=(1000, 1001))
    for lr, best in ((1e-3, 20.0), (1e-4, 40.0)):
        for seed in tuning.seeds:
            settings = arm("none", seed, optimizer=OptimizerConfig(params={"lr": lr}), tuning=tuning)
            fabricate(tmp_path / f"study_tuning/{lr}{seed}", settings, [99, best])
    settings = arm("none", 0, optimizer=OptimizerConfig(params={"lr": 1e-3}), tuning=tuning)
    fabricate(tmp_path / "study/fresh", settings, [99, 30.0])
    both = json.loads(normlab("report", str(tmp_path), "--json").stdout)
    grid = by_label(*compared(normlab, str(tmp_path / "study_tuning")))

    ((only,),) = [each["arms"] for each in both["comparisons"]]
    assert [run["final"]["value"] for run in only["runs"]] == [30.0]
    assert len(both["left_out"]) == 4
    assert {each["survived"] for each in grid.values()} == {2}


def test_a_second_report_takes_the_place_of_the_first_and_of_nothing_else(
    normlab: Command, study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "paper"
    assert normlab("report", str(study), "--out", str(out)).exit_code == 0
    mine = (out / "figures/architecture.png", out / "tables/mine.tex")
    for path in mine:
        path.write_text("mine")
    assert (out / "tables/differences.csv").exists()
    assert normlab("report", str(study / "none0"), "--out", str(out)).exit_code == 0

    assert [path.read_text() for path in mine] == ["mine", "mine"]
    assert not (out / "tables/differences.csv").exists()  # of one arm there is none
    listed = json.loads((out / "files.json").read_text())["files"]
    there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert there == {*listed, "files.json", "figures/architecture.png", "tables/mine.tex"}


def test_a_list_of_what_to_remove_reaches_nothing_outside_its_folder(
    normlab: Command, study: Path, tmp_path: Path
) -> None:
    out, outside = tmp_path / "out", tmp_path / "mine.txt"
    outside.write_text("mine")
    out.mkdir()
    (out / "link.txt").symlink_to(outside)
    names = ["../mine.txt", str(outside), "link.txt", ".", 3]
    (out / "files.json").write_text(json.dumps({"files": names}))

    assert normlab("report", str(study), "--out", str(out)).exit_code == 0
    assert outside.read_text() == "mine"


def test_what_was_tuned_is_told_with_the_numbers_wherever_they_go(normlab: Command, tmp_path: Path) -> None:
    tuning = TuningConfig(keys=("optimizer.lr",), seeds=(1000,))
    fabricate(tmp_path / "study/none", arm("none"), [99, 30.0])
    fabricate(tmp_path / "study/batch", arm("batch"), [99, 20.0])
    fabricate(tmp_path / "tuned/spectral", arm("spectral", tuning=tuning), [99, 20.0])

    for folders, told in (
        (["study"], "Every arm was trained at one setting, and not tuned for itself."),
        (["study", "tuned"], "Tuned: G:batch D:spectral; the others were not"),
    ):
        words = [str(tmp_path / folder) for folder in folders]
        shown = normlab("report", *words, "--out", str(tmp_path / "out"))
        tables = tmp_path / "out/tables"
        texts = [shown.stdout, *((tables / f"{name}.md").read_text() for name in ("quality", "differences"))]
        texts += [(tmp_path / "out/report.html").read_text(), (tables / "quality.tex").read_text()]
        assert all(told in text for text in texts)


def test_arms_stand_in_the_order_of_their_numbers(normlab: Command, tmp_path: Path) -> None:
    for size in (16, 256, 64):
        fabricate(tmp_path / str(size), arm("none", train=TrainConfig(batch_size=size)), [99, 60])
    (comparison,) = compared(normlab, str(tmp_path), "--baseline", "D=none", "batch_size=16")

    assert [each["arm"].split("=")[-1] for each in comparison["arms"]] == ["16", "64", "256"]


def test_a_done_run_without_a_final_value_is_listed(normlab: Command, study: Path) -> None:
    (study / "none0/evaluations.jsonl").unlink()
    told = json.loads(normlab("report", str(study), "--json").stdout)["left_out"]

    assert [(Path(each["run"]).name, each["reason"]) for each in told] == [
        ("none0", "it has no final value: not evaluated")
    ]


def test_a_folder_that_cannot_be_made_is_no_bug(normlab: Command, study: Path) -> None:
    refused = normlab("report", str(study), "--out", "/proc/normlab")

    assert "cannot be written" in refused.stderr
    assert "bug" not in refused.stderr


def test_figures_say_how_many_arms_they_leave_out_and_where_intervals_are_cut(normlab: Command, tmp_path: Path) -> None:
    for number in range(14):
        for seed, final in enumerate((10.0, 60.0, 20.0)):
            others = {"optimizer": OptimizerConfig(params={"lr": 1e-3, "eps": number})}
            fabricate(tmp_path / f"study/{number}-{seed}", arm("none", seed, **others), [99.0, final])
    normlab("report", str(tmp_path / "study"), "--out", str(tmp_path / "out"))
    page = (tmp_path / "out/report.html").read_text()

    assert "The baseline and the 11 best of 13 other arms." in page
    assert "Intervals are cut at 0, below which no value can be." in page


def test_comparisons_whose_names_differ_in_signs_alone_have_folders_of_their_own(
    normlab: Command, tmp_path: Path
) -> None:
    for scale in (-1.0, 1.0):
        discriminator = Part(name="adaptive", params={"alpha": scale})
        settings = replace(RunConfig(), normalization=NormalizationConfig(discriminator=discriminator))
        fabricate(tmp_path / f"study/{scale}", settings, [99, 60])
    words = ["--within", "normalization.discriminator.alpha", "--out", str(tmp_path / "out")]
    assert normlab("report", str(tmp_path / "study"), *words).exit_code == 0

    assert len([path for path in (tmp_path / "out/tables").iterdir() if path.is_dir()]) == 2


def test_arms_may_be_told_apart_by_what_some_data_sets_alone_have(normlab: Command, tmp_path: Path) -> None:
    for data, technique in (
        ("mnist", Part(name="spectral", params={"power_iterations": 1})),
        ("digits", Part(name="none")),
    ):
        normalization = NormalizationConfig(discriminator=technique)
        settings = replace(RunConfig(), normalization=normalization, dataset=Part(name=data))
        fabricate(tmp_path / data, settings, [99, 60])
    words = ["--by", "normalization.discriminator.power_iterations"]

    assert len(compared(normlab, str(tmp_path), *words)) == 2


@pytest.mark.slow
def test_a_report_is_the_same_in_every_process(study: Path) -> None:
    """Sets of texts are in another order in every process, unless the hash seed is fixed."""
    for path in study.glob("*/metrics.jsonl"):  # too few rows for most numbers, each of which has its reason
        path.write_text("".join(path.read_text().splitlines(keepends=True)[-3:]))
    for path in study.glob("*/evaluations.jsonl"):  # nor a final value
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))

    def told(hash_seed: str) -> str:
        command = [sys.executable, "-m", "normlab", "report", str(study), "--json"]
        return subprocess.run(
            command, env=os.environ | {"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        ).stdout

    first, *others = (told(hash_seed) for hash_seed in "1234")

    assert len(json.loads(first)["comparisons"][0]["notes"]) > 1
    assert others == [first] * 3
