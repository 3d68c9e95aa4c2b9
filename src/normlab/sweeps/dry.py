"""What a sweep would do, and what that would take; nothing is started and no folder made."""

from collections.abc import Callable

from normlab import composition, config, progress
from normlab.config import RunConfig
from normlab.errors import DONE, Complaint, ResourceError
from normlab.outputs.atomic import free_disk
from normlab.outputs.run_dir import RunDir
from normlab.outputs.sinks import duration
from normlab.reports import tables
from normlab.reports.runs import Run, find_runs, read_run
from normlab.sweeps import forecast, planning, throughput
from normlab.sweeps.planning import Plan, Planned
from normlab.training.pace import pace_of

# What the parts of a run have against their parameters; what its checkpoints take. Both need torch, and so come from
# those who have it.
Judge = Callable[[RunConfig], list[Complaint]]
Estimate = Callable[[RunConfig], int]


def check(words: list[str], config_dir: str | None, judge: Judge, estimate: Estimate) -> int:
    """Print how each run of a sweep stands and what the missing ones would take.

    Raises ConfigurationError for all that is wrong with any of them, ResourceError if the disk is too small.
    """
    plan = planning.plan(words, config_dir)
    planning.require_launcher(plan.launcher)
    composition.refuse(list(dict.fromkeys(complaint for run in plan.runs for complaint in judge(run.settings))))
    missing = [run for run in plan.runs if run.ended is None]
    rows = [
        {"run": f"#{number}", **own, "folder": _standing(run)}
        for number, (run, own) in enumerate(
            zip(plan.runs, planning.swept([run.words for run in plan.runs]), strict=True)
        )
    ]
    print(f"{tables.render(rows)}\n\n{len(missing)} of {len(plan.runs)} runs are missing or not at their end")
    if not missing:
        return DONE
    plan, at_a_time = throughput.forecast(plan)
    if at_a_time:
        print(at_a_time)
    known = {run.settings.name: list(find_runs([config.outputs_folder() / run.settings.name])) for run in missing}
    auto = _automatic_device(plan)
    devices = [auto if run.settings.device == "auto" else run.settings.device.partition(":")[0] for run in missing]
    kin = [
        forecast.alike(run.settings, device, known[run.settings.name])
        for run, device in zip(missing, devices, strict=True)
    ]
    print(_hours(plan, missing, kin))
    return _require_disk(missing, kin, estimate)


def _standing(run: Planned) -> str:
    """Return in a few words how a run's folder stands."""
    if run.ended is not None:
        return "complete" if run.ended == "done" else run.ended
    if not RunDir(run.folder).exists():
        return "missing"
    found = read_run(run.folder)
    if found.status is None:
        return "missing"
    step = f"at step {found.status.step:,}"
    if found.state == "done":
        return f"done {step}, to go further"
    return f"failed {step}: {found.status.error}" if found.state == "failed" else f"{found.state} {step}"


def _hours(plan: Plan, missing: list[Planned], kin: list[list[Run]]) -> str:
    predicted = [_seconds(run, runs) for run, runs in zip(missing, kin, strict=True)]
    seconds = [value for value in predicted if value is not None]
    if not seconds:
        return "time: unknown until one has run"
    text = f"time: about {duration(sum(seconds))} of training"
    at_once = planning.runs_at_once(plan.launcher, len(missing))
    if at_once is not None and at_once > 1:
        text += f", {duration(sum(seconds) / at_once)} with {at_once} at a time"
    if unknown := len(predicted) - len(seconds):
        text += f", and {unknown} runs of which nothing is known until one like them has run"
    return f"{text}; starts and evaluations come on top"


def _seconds(run: Planned, kin: list[Run]) -> float | None:
    """Return how long a run would train by the speed of runs like it, or None if nobody knows."""
    speed, images = forecast.images_per_second(kin), forecast.training_images(kin)
    if not speed or images is None:
        return None
    pace = pace_of(run.settings, progress.images_of(RunDir(run.folder)).get("train", images))
    status = None if run.settings.fresh else RunDir(run.folder).read_status()
    done = 0 if status is None else status.step
    return max(0, pace.steps(run.settings.train.until) - done) * pace.images_per_step / speed


def _require_disk(missing: list[Planned], kin: list[list[Run]], estimate: Estimate) -> int:
    measured = [forecast.bytes_on_disk(runs) for runs in kin]
    sizes = [estimate(run.settings) if size is None else size for run, size in zip(missing, measured, strict=True)]
    there = [0 if run.settings.fresh else forecast.folder_bytes(run.folder) for run in missing]
    needed = sum(max(0.0, size - have) for size, have in zip(sizes, there, strict=True))
    folder = config.outputs_folder().resolve()
    free = free_disk(folder)
    source = "by runs like these" if None not in measured else "by their checkpoints"
    print(f"disk: about {tables.size(needed)} more, {source}; {tables.size(free)} are free")
    if needed > free:
        problem = f"the runs need about {tables.size(needed)}, but only {tables.size(free)} are free"
        raise ResourceError(str(folder), problem, "make room, or set NORMLAB_OUTPUTS to another disk")
    return DONE


def _automatic_device(plan: Plan) -> str:
    """Return the type of device that `device=auto` would be, without asking torch."""
    asked = plan.launcher["settings"].get("gpus_per_node") or plan.launcher["settings"].get("gpus_per_task")
    return "cuda" if asked or planning.visible_gpus() else "cpu"
