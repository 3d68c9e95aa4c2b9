"""How many runs at a time a sweep has where that is left to normlab."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from normlab.config import EvaluationConfig, OptimizerConfig, Part, RunConfig, TrainConfig
from normlab.errors import ConfigurationError
from normlab.outputs.cache import cache_folder
from normlab.settings import Length
from normlab.sweeps import planning, throughput
from normlab.sweeps.planning import Plan, Planned
from normlab.sweeps.throughput import Place, Row

from ..conftest import Command

pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the launchers are the extra 'cluster'")

AUTO = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=auto"]
DEFAULTS = RunConfig()
# Two at a time are nearly twice as fast as one, and more gain next to nothing.
SPEEDS = {1: 100.0, 2: 190.0, 4: 200.0, 8: 201.0}


class Device:
    """A device on which runs together reach given speeds; it notes what is tried."""

    def __init__(self, speeds: Callable[[int], float] = lambda count: SPEEDS[count], fit: int = 100) -> None:
        self.speeds, self.fit = speeds, fit
        self.tried: list[int] = []

    def __call__(self, count: int) -> Row:
        self.tried.append(count)
        speed = self.speeds(count)
        return Row(at_once=count, threads=1, images_per_second=speed, memory_bytes=10**9, fit=self.fit)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch, outputs: Path, tmp_path: Path) -> None:
    """A machine of 8 cores without a GPU, on which nothing has been tried."""
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))


def planned(count: int, settings: RunConfig = DEFAULTS) -> Plan:
    """Return the plan of so many runs that differ in their seeds, by a launcher that is left open."""
    runs = [Planned([f"seed={seed}"], replace(settings, seed=seed), Path(f"run-{seed}"), None) for seed in range(count)]
    launcher = {"name": "joblib", "settings": {"_target_": "joblib_launcher.JoblibLauncher", "n_jobs": "auto"}}
    return Plan(runs, launcher, "continue", AUTO)


@pytest.mark.parametrize(
    ("speeds", "fit", "most", "tried", "best"),
    [
        (lambda count: SPEEDS[count], 100, 8, [1, 2, 4], 2),
        (lambda count: 100.0, 100, 8, [1, 2], 1),
        (lambda count: 100.0 * count, 100, 8, [1, 2, 4, 8], 8),
        (lambda count: 100.0 * count, 100, 6, [1, 2, 4, 6], 6),
        (lambda count: 100.0 * count, 3, 8, [1, 2, 3], 3),
        (lambda count: 100.0 * count, 1, 8, [1], 1),
        (lambda count: 100.0 * count if count < 4 else 0.0, 100, 8, [1, 2, 4], 2),  # four did not go together
        (lambda count: 100.0, 100, 1, [], 1),
    ],
)
def test_more_at_a_time_are_tried_until_they_gain_nothing_or_have_no_room(
    speeds: Callable[[int], float], fit: int, most: int, tried: list[int], best: int
) -> None:
    device = Device(speeds, fit)
    rows = throughput.measure(most, device)

    assert (device.tried, throughput.best(rows, most)) == (tried, best)


def test_one_run_that_was_held_up_is_tried_again_where_two_seem_to_gain_the_impossible() -> None:
    speeds = iter([10.0, 190.0, 100.0, 200.0])
    device = Device(lambda count: next(speeds))

    rows = throughput.measure(4, device)
    assert device.tried == [1, 2, 1, 4]
    assert [row.images_per_second for row in rows] == [100, 190, 200]
    assert throughput.best(rows, 4) == 2


def test_where_one_core_is_left_it_is_said_that_one_run_at_a_time_is_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plan, rows = throughput.settle(planned(3), Device())

    assert (plan.launcher["settings"]["n_jobs"], rows) == (1, [])
    assert capsys.readouterr().out == "runs at a time: 1, as OMP_NUM_THREADS or the scheduler leaves one core\n"


def test_a_table_is_gone_on_with_where_more_runs_may_be_of_use() -> None:
    device = Device(lambda count: 100.0 * count)
    few = throughput.measure(2, device)
    many = throughput.measure(8, device, few)
    again = throughput.measure(3, device, many)

    assert device.tried == [1, 2, 4, 8, 3]
    assert [throughput.best(again, most) for most in (2, 3, 4, 8)] == [2, 3, 4, 8]


def test_what_sweeps_of_other_lengths_have_tried_changes_no_choice() -> None:
    speeds = {1: 100.0, 2: 150.0, 3: 180.0, 4: 195.0, 5: 1000.0, 6: 198.0, 7: 199.0, 8: 200.0}
    alone = {most: throughput.measure(most, Device(lambda count: speeds[count])) for most in range(1, 9)}
    every = [Device(lambda count: speeds[count])(count) for count in speeds]

    for most, rows in alone.items():
        assert throughput.best(every, most) == throughput.best(rows, most)
        assert throughput.next_count(every, most) is None
    assert throughput.best(every, 8) == 4


def test_hydra_and_the_runs_are_given_the_number_that_was_found() -> None:
    plan, rows = throughput.settle(planning.plan([*AUTO, "seed=0,1,2,3"], config_dir=None), Device())

    assert [row.at_once for row in rows] == [1, 2, 4]
    assert plan.launcher["settings"]["n_jobs"] == 2
    assert plan.hydra_words == ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert [job.threads for job in planning.jobs(plan)] == [4] * 4


def test_the_same_command_chooses_the_same_without_trying_whichever_runs_are_missing() -> None:
    plan = planned(8)
    throughput.settle(plan, Device())
    rest = replace(plan, runs=[*(replace(run, ended="done") for run in plan.runs[:5]), *plan.runs[5:]])
    second = Device(lambda count: 100.0 * count)

    assert throughput.settle(rest, second)[0].launcher["settings"]["n_jobs"] == 2
    assert second.tried == []


@pytest.mark.parametrize(
    ("settings", "tried"),
    [
        (RunConfig(name="other", optimizer=OptimizerConfig(params={"lr": 1e-3}), on_collapse="stop"), []),
        (RunConfig(evaluation=EvaluationConfig(features="none"), train=TrainConfig(until=Length(1, "steps"))), []),
        (RunConfig(train=TrainConfig(batch_size=32)), [1, 2, 4]),
        (RunConfig(threads=1), [1, 2, 4]),
    ],
)
def test_a_table_holds_for_all_settings_that_a_step_costs_the_same_with(settings: RunConfig, tried: list[int]) -> None:
    throughput.settle(planned(4), Device())
    device = Device()
    throughput.settle(planned(4, settings), device)

    assert device.tried == tried


def test_a_table_does_not_hold_on_other_hardware_nor_with_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RunConfig()

    def files() -> set[Path]:
        return {throughput._file(settings, Place())}  # pyright: ignore[reportPrivateUsage]

    kept = files()
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    kept |= files()
    monkeypatch.setattr(throughput, "cpu_name", lambda: "another")
    kept |= files()
    monkeypatch.setattr("importlib.metadata.version", lambda package: "0")
    kept |= files()

    assert len(kept) == 4


def test_on_several_gpus_each_has_as_many_as_one_was_found_to_bear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    device = Device(lambda count: 100.0 * count)
    plan, _ = throughput.settle(planned(5), device)
    jobs = planning.jobs(plan)

    assert device.tried == [1, 2, 3]  # three are what one of them would have of five runs
    assert plan.launcher["settings"]["n_jobs"] == 6
    assert [job.gpu for job in jobs] == ["5", "7", "5", "7", "5"]


@pytest.mark.parametrize(
    ("device", "place"),
    [
        ("auto", Place(2, "5", visible="5")),
        ("cuda", Place(2, "5", visible="5")),
        ("cuda:1", Place(1, "7")),
        ("cuda:2", Place(1)),
        ("cpu", Place(1)),
    ],
)
def test_runs_share_the_gpus_that_they_would_train_on(
    monkeypatch: pytest.MonkeyPatch, device: str, place: Place
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")

    assert throughput.place_of(RunConfig(device=device)) == place


def test_a_table_that_cannot_be_read_is_made_anew() -> None:
    plan = planned(4)
    throughput.settle(plan, Device())
    (kept,) = cache_folder().glob("throughput/*.json")
    kept.write_text('{"rows": [{"at_once": 1}]}')
    device = Device()
    throughput.settle(plan, device)

    assert device.tried == [1, 2, 4]


def test_a_look_at_a_sweep_tries_nothing_and_tells_what_is_known(normlab: Command) -> None:
    words = ["seed=0,1", "architecture.width=4"]
    before = normlab("train", "-m", "--check", *AUTO, *words)
    assert "runs at a time: would be tried out first, at most 2" in before.stdout
    assert not (cache_folder() / "throughput").exists()

    throughput.settle(planning.plan([*AUTO, *words], None), Device())
    after = normlab("train", "-m", "--check", *AUTO, *words)

    assert (before.exit_code, after.exit_code) == (0, 0), before.stderr + after.stderr
    assert "runs at a time: 2; kept in" in after.stdout


@pytest.mark.slow
def test_a_sweep_records_the_table_by_which_it_chose(normlab: Command, outputs: Path) -> None:
    words = ["architecture.width=4", "train.batch_size=16", "train.until=2 steps", "evaluation=none", "seed=0,1"]
    _, rows = throughput.settle(planning.plan([*AUTO, *words], None), Device())
    result = normlab("train", "-m", *AUTO, *words)

    assert result.exit_code == 0, result.stderr
    (record,) = [json.loads(path.read_text()) for path in outputs.glob(".sweep/*/sweep.json")]
    assert record["throughput"] == [asdict(row) for row in rows]
    assert record["launcher"]["settings"]["n_jobs"] == 2
    assert [(run["state"], run["threads"]) for run in record["runs"]] == [("done", 4)] * 2


def test_runs_that_are_tried_begin_together_each_with_its_share(stand_in: Callable[..., None], tmp_path: Path) -> None:
    # Each is ready a little later than the one before, and says how many it found ready when it was told to begin.
    stand_in(
        f"cd {tmp_path}; sleep 0.$(ls | grep -c came); touch came$$; sleep 0.1; touch ready$$; echo ready; read begin",
        "speed=$(ls | grep -c ready)$CUDA_VISIBLE_DEVICES",
        """printf '{"images_per_second": %s, "memory_bytes": %s, "fit": {"cpu": 13, "cuda": 7}}\\n' $speed $4""",
        "cat",
    )
    row = throughput.try_out(DEFAULTS, 3, Place(2, "5", visible="5"))

    # 3 ready, GPU 5: "35" each.  8 cores for 3 on each of 2 GPUs.  The machine's memory is for both GPUs' runs.
    assert row == Row(at_once=3, threads=1, images_per_second=3 * 35, memory_bytes=1, fit=6)


def test_what_cannot_be_tried_alone_says_why_and_what_cannot_together_comes_to_nothing(
    stand_in: Callable[..., None],
) -> None:
    stand_in("echo 'error: device: out of memory' >&2; exit 5")

    with pytest.raises(ConfigurationError, match=r"n_jobs: auto cannot try out run #0 \(device: out of memory\)"):
        throughput.try_out(DEFAULTS, 1, Place())
    assert throughput.try_out(DEFAULTS, 2, Place()).images_per_second == 0


def test_a_run_that_is_killed_while_it_is_tried_comes_to_nothing(stand_in: Callable[..., None]) -> None:
    stand_in("echo ready; kill -9 $$")

    assert throughput.try_out(DEFAULTS, 2, Place()).images_per_second == 0


@pytest.mark.slow
def test_runs_are_tried_by_their_steps_alone(monkeypatch: pytest.MonkeyPatch, outputs: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    settings = RunConfig(architecture=Part(name="dcgan", params={"width": 4}))
    row = throughput.try_out(settings, 2, Place(), seconds=0.5)

    assert (row.at_once, row.threads) == (2, 1)
    assert row.images_per_second > 0
    assert row.memory_bytes > 100e6  # torch alone takes more
    assert row.fit >= 1
    assert not outputs.exists()
