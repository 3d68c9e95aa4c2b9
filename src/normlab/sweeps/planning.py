"""What a sweep's command line asks for: its runs, which of them are still to be done, and what each may take."""

import importlib.util
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from normlab import composition, progress, ranks, threads
from normlab.config import RunConfig
from normlab.errors import DONE, Complaint, ConfigurationError, NumericalError
from normlab.outputs.machine import of_gpus
from normlab.outputs.run_dir import RunDir
from normlab.sweeps.record import Job

_NOT_FOR_RUNS = ("on_error=", "threads=")


@dataclass(frozen=True)
class Planned:
    """A run of a sweep before it starts, and how it has ended if there is nothing left to do."""

    words: list[str]
    settings: RunConfig
    folder: Path
    ended: progress.Ending | None


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep, and the launcher that starts them: its `name` and its `settings`."""

    runs: list[Planned]
    launcher: dict[str, Any]
    on_error: Literal["continue", "stop"]
    hydra_words: list[str]


def plan(words: list[str], config_dir: str | None, keep: Callable[[RunConfig], bool] | None = None) -> Plan:
    """Read every run of a sweep before the first one starts, so that a typo shows now and not on Monday.

    What only the parts can judge, such as a learning rate below 0, ends that run alone.  keep: whether a run is to be
    one of the sweep's, by default all are.
    """
    launcher, hydra_words, own = _launcher_and_words(words, config_dir)
    count = _processes(launcher)
    complaints: dict[Complaint, None] = {}
    runs: list[Planned] = []
    for combination in composition.combinations(own):
        settings, wrong = composition.configure(combination, config_dir)
        complaints |= dict.fromkeys(wrong)
        if keep is not None and not keep(settings):
            continue
        folder = composition.run_folder(settings)
        ended = None if settings.fresh else progress.ended(settings, RunDir(folder))
        runs.append(Planned(combination, settings, folder, ended))
        if ended is None:
            complaints |= dict.fromkeys(ranks.unequal(settings.train.batch_size, count))
    composition.refuse(list(complaints))
    _refuse_twins(runs)
    return Plan(runs, launcher, runs[0].settings.on_error, hydra_words)


def first_settings(words: list[str], config_dir: str | None) -> RunConfig:
    """Return the settings of a sweep's first run, whatever is wrong with them."""
    _, _, own = _launcher_and_words(words, config_dir)
    return composition.configure(composition.combinations(own)[0], config_dir)[0]


def require_launcher(launcher: dict[str, Any]) -> None:
    """Raise ConfigurationError if the launcher's package is not installed, or Slurm is not there."""
    package = ".".join(str(launcher["settings"]["_target_"]).split(".")[:2])
    try:
        found = importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        problem = f"'{launcher['name']}' needs the package {package.partition('.')[2]}, which is not installed"
        raise ConfigurationError("hydra/launcher", problem, "pip install 'normlab[cluster]'")
    if package.endswith("submitit_launcher") and _kind(launcher) == "SlurmLauncher" and shutil.which("sbatch") is None:
        problem = f"'{launcher['name']}' needs Slurm, and there is no sbatch here"
        raise ConfigurationError("hydra/launcher", problem, "go where it is, or try submitit_local or joblib")


def jobs(plan: Plan) -> tuple[Job, ...]:
    """Return what each run is to be given: its words, its threads and its GPU, or one for each of its tasks."""
    # By all its runs, not by those that are missing: a study's runs compute with the same number, whenever they run.
    share = _share_of_cores(plan.launcher, len(plan.runs))
    gpus = _gpus_to_share(plan.launcher, len(plan.runs))
    processes = _processes(plan.launcher)
    tasks = _count(plan.launcher, "tasks_per_node") or 1
    result: list[Job] = []
    for number, run in enumerate(plan.runs):
        words = [word for word in run.words if not word.startswith(_NOT_FOR_RUNS)]
        count = run.settings.threads
        if share is not None:
            count = threads.threads_of(run.settings, RunDir(run.folder), processes, share)
        if count is not None:
            words.append(f"threads={count}")
        # Who names a GPU means it, among all that there are.
        shares = run.settings.device in ("auto", "cuda")
        gpu = ",".join(_of_run(number, gpus, tasks) if shares else gpus) if gpus else None
        job = Job(job=number, overrides=tuple(words), folder=str(run.folder.resolve()), threads=count, gpu=gpu)
        result.append(_as_it_ended(job, run))
    return tuple(result)


def runs_at_once(launcher: dict[str, Any], runs: int) -> int | None:
    """Return how many runs a launcher has on this machine at a time; None if that is for others to say, or open."""
    if is_open(launcher):
        return None
    kind = _kind(launcher)
    if kind == "JoblibLauncher":
        at_once = _count(launcher, "n_jobs") or 1
        return max(1, min(runs, at_once if at_once > 0 else threads.cores() + 1 + at_once))
    return {"BasicLauncher": 1, "LocalLauncher": max(1, runs)}.get(kind)


def is_open(launcher: dict[str, Any]) -> bool:
    """Return whether it is left to normlab how many runs a launcher has at a time."""
    return _kind(launcher) == "JoblibLauncher" and launcher["settings"].get("n_jobs") == "auto"


def with_runs_at_once(plan: Plan, count: int) -> Plan:
    """Return a plan whose launcher, open till now, has so many runs at a time: Hydra takes a number alone."""
    settings = {**plan.launcher["settings"], "n_jobs": count}
    words = [word for word in plan.hydra_words if not word.startswith("hydra.launcher.n_jobs=")]
    words.append(f"hydra.launcher.n_jobs={count}")
    return replace(plan, launcher={**plan.launcher, "settings": settings}, hydra_words=words)


def visible_gpus() -> list[str]:
    """Return the GPUs of this machine as $CUDA_VISIBLE_DEVICES names them, and no others where it is set."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    return of_gpus("uuid")


def swept(runs: list[list[str]]) -> list[dict[str, str]]:
    """Return for each run the words, as keys and values, in which the runs differ."""
    parts = [[word.lstrip("+").partition("=") for word in words] for words in runs]
    values = [{key.rpartition("@")[2]: value for key, _, value in own} for own in parts]
    differing = {key for own in values for key in own if len({other.get(key) for other in values}) > 1}
    return [{key: value for key, value in own.items() if key in differing} for own in values]


def _launcher_and_words(words: list[str], config_dir: str | None) -> tuple[dict[str, Any], list[str], list[str]]:
    """Return a sweep's launcher, the words that are Hydra's, and those of its runs with all their values."""
    own = [word for word in words if not composition.for_hydra(word)]
    hydra_words = [word for word in words if word not in own or (word.startswith("experiment=") and "," not in word)]
    if any(word.startswith("hydra/sweeper") for word in hydra_words):
        raise ConfigurationError("hydra/sweeper", "is not for normlab", "list values, KEY=A,B: every combination runs")
    launcher, swept_by_experiment = composition.sweeping(hydra_words, config_dir)
    given = {word.partition("=")[0] for word in own}
    return launcher, hydra_words, own + [word for word in swept_by_experiment if word.partition("=")[0] not in given]


def _gpus_to_share(launcher: dict[str, Any], runs: int) -> list[str]:
    """Return the GPUs that go round between the runs; none where a run may take what it finds."""
    at_once = runs_at_once(launcher, runs)
    # submitit hides them from the runs that it starts on this machine, were it only one.
    return visible_gpus() if at_once is not None and (at_once > 1 or _kind(launcher) == "LocalLauncher") else []


def _of_run(number: int, gpus: list[str], tasks: int) -> list[str]:
    """Return the GPUs of one run, as many as it has tasks; all of them where they are too few for one run."""
    first = number % max(1, len(gpus) // tasks) * tasks
    return gpus[first : first + tasks]


def _as_it_ended(job: Job, run: Planned) -> Job:
    """Return a run that has ended before the sweep began as ended."""
    if run.ended is None:
        return job
    if run.ended == "done":
        return replace(job, state="done", exit_code=DONE, reason="already complete")
    status = RunDir(run.folder).read_status()
    return replace(job, state=run.ended, exit_code=NumericalError.exit_code, reason=status and status.error)


def _share_of_cores(launcher: dict[str, Any], runs: int) -> int | None:
    """Return how many threads a run may take: the cores that its job asks for, or its share of this machine's."""
    at_once = runs_at_once(launcher, runs)
    if asked := _count(launcher, "cpus_per_task"):
        return asked
    if at_once is None:
        return None
    return max(1, threads.cores() // (at_once * (_count(launcher, "tasks_per_node") or 1)))


def _processes(launcher: dict[str, Any]) -> int:
    """Return how many processes a launcher starts for each run."""
    return (_count(launcher, "tasks_per_node") or 1) * (_count(launcher, "nodes") or 1)


def _count(launcher: dict[str, Any], key: str) -> int | None:
    value = launcher["settings"].get(key)
    if value is not None and (not isinstance(value, int) or value == 0):
        remedy = f"give a whole number other than 0{', or auto' if key == 'n_jobs' else ''}"
        raise ConfigurationError(f"hydra.launcher.{key}", f"got {value!r}", remedy)
    return value


def _kind(launcher: dict[str, Any]) -> str:
    return str(launcher["settings"]["_target_"]).rpartition(".")[2]


def _refuse_twins(runs: list[Planned]) -> None:
    """Raise ConfigurationError if two runs would be one: they differ in nothing that determines the result."""
    counts = Counter(run.folder for run in runs)
    for folder, count in counts.items():
        if count > 1:
            twins = [f"#{number}" for number, run in enumerate(runs) if run.folder == folder]
            problem = f"{' and '.join(twins)} are the same run, {folder}"
            raise ConfigurationError("sweep", problem, "vary what determines the result, or leave all but one out")
