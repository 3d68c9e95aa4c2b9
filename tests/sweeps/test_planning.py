"""What a sweep is planned to be: its launcher, and what of the machine each run gets."""

from pathlib import Path

import pytest

from normlab.errors import ConfigurationError
from normlab.sweeps import planning
from normlab.sweeps.record import Job

pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the launchers are the extra 'cluster'")

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=6"]


def jobs(*words: str) -> tuple[Job, ...]:
    return planning.jobs(planning.plan(list(words), config_dir=None))


@pytest.mark.parametrize(
    ("launcher", "threads"), [([], 8), (JOBLIB, 4), (["hydra/launcher=submitit_local"], 2), (SLURM, 6)]
)
def test_cores_are_shared_out_and_each_run_is_told_its_threads(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, launcher: list[str], threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    planned = jobs(*launcher, "seed=0,1,2,3")

    assert [job.threads for job in planned] == [threads] * 4
    assert [job.overrides[-1] for job in planned] == [f"threads={threads}"] * 4


def test_a_given_number_of_threads_is_what_every_run_gets(outputs: Path) -> None:
    assert [job.threads for job in jobs(*JOBLIB, "seed=0,1", "threads=3")] == [3, 3]


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [
        ("5,7", "auto", ["5", "7", "5"]),
        ("5,7", "cuda", ["5", "7", "5"]),
        ("5,7", "cuda:1", ["5,7"] * 3),
        ("5,7", "cpu", ["5,7"] * 3),
        ("", "auto", [None] * 3),
    ],
)
def test_gpus_go_round_by_run_number_unless_the_device_is_named(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, visible: str, device: str, expected: list[str | None]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert [job.gpu for job in jobs(*JOBLIB, "seed=0,1,2", f"device={device}")] == expected


@pytest.mark.parametrize(
    ("visible", "tasks", "expected"),
    [
        ("a,b", 2, ["a,b"] * 3),
        ("a,b,c,d,e", 2, ["a,b", "c,d", "a,b"]),
        ("a", 2, ["a"] * 3),  # which the run then refuses, as it would without a sweep
    ],
)
def test_a_run_of_several_tasks_gets_a_gpu_for_each(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, visible: str, tasks: int, expected: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    words = ["hydra/launcher=submitit_local", f"hydra.launcher.tasks_per_node={tasks}", "seed=0,1,2"]

    assert [job.gpu for job in jobs(*words)] == expected


def test_runs_one_after_the_other_keep_every_gpu(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")

    assert [job.gpu for job in jobs("seed=0,1")] == [None, None]


def test_gpus_are_found_where_nothing_says_which_are_visible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho GPU-a\necho GPU-b\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert planning.visible_gpus() == ["GPU-a", "GPU-b"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["hydra/launcher=jobli"], "'jobli' is not known — did you mean 'joblib'?"),
        ([*JOBLIB, "hydra.launcher.njobs=3"], "did you mean hydra.launcher.n_jobs?"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=many"], "hydra.launcher.n_jobs: got 'many'"),
        (["hydra/sweeper=optuna"], "hydra/sweeper: is not for normlab"),
        (["seed=1", "every.log='1 step','2 steps'"], "#0 and #1 are the same run"),
        (
            ["hydra/launcher=submitit_slurm", *(f"hydra.launcher.{key}=3" for key in ("tasks_per_node", "nodes"))],
            "train.batch_size: is 64, which 9 processes cannot share equally — give a multiple of 9, such as 63",
        ),
        (["on_error=ignore"], "on_error: got 'ignore'"),
    ],
)
def test_what_no_sweep_can_mean_is_refused(outputs: Path, words: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError, match="error: ") as refused:
        jobs(*words)

    assert says in str(refused.value)


def test_an_experiment_may_say_what_is_swept_over_and_with_which_launcher(outputs: Path, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    lines = ["# @package _global_", "defaults: [override /hydra/launcher: joblib]"]
    lines += ["hydra: {launcher: {n_jobs: 3}, sweeper: {params: {seed: 'range(3)', normalization: 'none,layer'}}}"]
    (tmp_path / "experiment" / "study.yaml").write_text("\n".join(lines))

    plan = planning.plan(["experiment=study", "normalization=batch"], str(tmp_path))

    assert [run.words for run in plan.runs] == [
        ["experiment=study", "normalization=batch", f"seed={seed}"] for seed in range(3)
    ]
    assert (plan.launcher["name"], plan.launcher["settings"]["n_jobs"]) == ("joblib", 3)


def test_a_launcher_whose_package_is_missing_is_refused_with_the_extra_that_has_it() -> None:
    launcher = {"name": "joblib", "settings": {"_target_": "hydra_plugins.no_such_launcher.Launcher"}}

    with pytest.raises(ConfigurationError) as refused:
        planning.require_launcher(launcher)

    assert "pip install 'normlab[cluster]'" in str(refused.value)


def test_slurm_is_asked_for_where_there_is_none(monkeypatch: pytest.MonkeyPatch, outputs: Path) -> None:
    monkeypatch.setenv("PATH", "")

    with pytest.raises(ConfigurationError, match="there is no sbatch here"):
        planning.require_launcher(planning.plan(SLURM, None).launcher)
