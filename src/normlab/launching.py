"""A run from its configuration to its end: the data, the folder, the parts, the training, and what is left behind."""

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from normlab import assemble, composition, config, following, footprint, progress, ranks
from normlab.assemble import Materials
from normlab.config import Part, RunConfig
from normlab.data.images import Dataset
from normlab.errors import (
    DONE,
    CollapseError,
    Complaint,
    ConfigurationError,
    NormlabError,
    NumericalError,
    ResourceError,
    is_out_of_memory,
)
from normlab.evaluation.evaluator import restandardised
from normlab.outputs import plain_json
from normlab.outputs.atomic import write_atomically
from normlab.outputs.checkpoints import Checkpoints
from normlab.outputs.environment import describe_environment
from normlab.outputs.export import export_generator
from normlab.outputs.run_dir import RunDir, Status
from normlab.outputs.sinks import JsonLines, open_log
from normlab.reports.runs import in_short
from normlab.rescoring import confirm_best
from normlab.threads import threads_of
from normlab.training.pace import pace_of
from normlab.training.states import DEAD_SPREAD
from normlab.training.stopping import Stop, Stopped
from normlab.training.trainer import Trainer

log = logging.getLogger(__name__)


def checked(settings: RunConfig, complaints: list[Complaint]) -> RunConfig:
    """Return the settings with every parameter of every part; raise ConfigurationError for all that is wrong at once.

    `complaints` are those that reading the settings has given rise to; a setting is complained of once.
    """
    complaints = [*complaints, *assemble.import_plugins(settings)]
    known = {complaint.where for complaint in complaints}
    complaints += [complaint for complaint in assemble.check(settings) if complaint.where not in known]
    composition.refuse(complaints)
    return assemble.completed(settings)


def preview(settings: RunConfig, run_dir: RunDir) -> int:
    """Open the data and the features that a run needs, look for room, start nothing, and say what would be done where.

    Raises what stands in the way: BusyError, DataError, ResourceError, or NumericalError for a run that has diverged.
    """
    run_dir.refuse_if_locked()
    begun = not settings.fresh and run_dir.exists()
    if begun:
        settings = _continued(settings, run_dir)
        if (ended := _ended(settings, run_dir)) is not None:
            return ended
    device = assemble.choose_device(settings.device)
    materials = _gather(settings, device)
    dataset = materials.dataset
    _require_room(settings, dataset, run_dir, device)
    if begun:
        _require_same_images(dataset, settings, run_dir)
        _require_same_ranks(dataset, settings, run_dir)
        assemble.resumed(assemble.build_step(settings, dataset, materials.real, device), run_dir, set_aside=False)
    steps = pace_of(settings, len(dataset.train)).steps(settings.train.until)
    print(f"{settings.label}  {dataset.name}: {len(dataset.train):,} images  {steps:,} steps on {device}")
    saved = Checkpoints(run_dir.checkpoints).steps() if begun else []
    print(f"would continue from step {saved[-1]:,} in {run_dir.path}" if saved else f"would train in {run_dir.path}")
    return DONE


def launch(settings: RunConfig, run_dir: RunDir) -> int:
    """Train a run to its end, or find that it has ended already, and return the exit code."""
    run_dir.refuse_if_locked()  # before the data, which may take a while
    if not settings.fresh and run_dir.exists():
        settings = _continued(settings, run_dir)
        if (ended := _ended(settings, run_dir)) is not None:
            return ended
    stop = Stop(None if settings.train.time_limit is None else 60 * settings.train.time_limit.value)
    # Before anything is computed, and the same when the run goes on: sums depend on it.
    device = following.prepare(settings, threads_of(settings, run_dir, ranks.current().count))
    materials = _gather(settings, device)
    _require_room(settings, materials.dataset, run_dir, device)
    run_dir.create()
    if settings.fresh and (run_dir.exists() or Checkpoints(run_dir.checkpoints).steps()):
        with run_dir.lock():
            log.warning("the old folder is now %s", run_dir.set_aside())
        run_dir.create()
    with run_dir.lock(), stop.listening():
        if run_dir.exists():
            settings = _continued(settings, run_dir)  # somebody may have begun it since we looked
            _require_same_images(materials.dataset, settings, run_dir)
            _require_same_ranks(materials.dataset, settings, run_dir)
        else:
            settings = _with_horizons(settings, None)
        try:
            trainer = _train(settings, materials, run_dir, device, stop)
        except Stopped as stopped:
            return stopped.exit_code
        except KeyboardInterrupt:
            steps = Checkpoints(run_dir.checkpoints).steps()
            saved = f"the newest checkpoint is of step {steps[-1]:,}" if steps else "there is no checkpoint yet"
            log.info("stopped at once, without saving: %s; the same command goes on", saved)
            raise
    _tell_result(trainer, run_dir)
    return DONE


def _require_room(settings: RunConfig, dataset: Dataset, run_dir: RunDir, device: torch.device) -> None:
    checkpoint = footprint.checkpoint_bytes(settings, assemble.image_spec(dataset))
    if settings.fresh or not run_dir.exists():  # a run that goes on has its checkpoints, and asks at each save
        footprint.require_disk(checkpoint, run_dir.path)
    footprint.require_memory(checkpoint, device)


def _gather(settings: RunConfig, device: torch.device) -> Materials:
    try:
        return assemble.gather(settings, device, ranks.current())
    except (MemoryError, RuntimeError) as error:
        raise _known(error) or error from None


def _train(settings: RunConfig, materials: Materials, run_dir: RunDir, device: torch.device, stop: Stop) -> Trainer:
    dataset = materials.dataset
    before = run_dir.read_status()
    resumes = 0 if before is None else before.resumes + 1
    open_log(run_dir.log, settings.debug)
    log.info("%s  %s", settings.label, run_dir.path)
    log.debug("command: %s", shlex.join(sys.argv))
    for note in (*dataset.notes, *([] if materials.scorer is None else [f"scored by {materials.scorer.info}"])):
        log.info("%s", note)
    with _accounting(run_dir, replace(before or Status(state="running"), resumes=resumes)) as account:
        following.begin(settings, materials)
        trainer = assemble.assemble(settings, materials, run_dir, device, stop, ranks.current())
        following.hand_over(trainer.step)
        trainer.resumes = resumes
        trainer.flags = () if before is None else tuple(before.flags)
        trainer.states = {} if before is None else dict(before.states)
        account.append(trainer)
        ranks.current().on_loss(lambda error: trainer.report("failed", error.exit_code, str(error)))
        if run_dir.exists():
            _record_changes(settings, run_dir, trainer.state.step)
        if trainer.step.schedule(trainer.last_step - 1) == 0:
            remedy = "optimizer.schedule.horizon is shorter than train.until, and keeps what the run began with"
            log.warning("the learning rate is 0 before the run ends: %s", remedy)
        if trainer.state.step:
            log.info("continues from step %s of %s", f"{trainer.state.step:,}", f"{trainer.last_step:,}")
        else:
            plain_json.write(run_dir.layers, assemble.describe(trainer.step))
            if (spread := assemble.score_spread(trainer.step)) < DEAD_SPREAD:
                trainer.flags = ("dead_start",)
                log.warning("starts dead: the discriminator's scores differ by %.1g, below %g", spread, DEAD_SPREAD)
            trainer.recorder.tensorboard.text("configuration", f"```\n{config.to_yaml(settings)}```")
        plain_json.write(run_dir.environment, _environment(settings, materials, device))
        # Last, since a folder counts as a run from here on.
        write_atomically(run_dir.config, config.to_yaml(settings).encode())
        trainer.report("running")
        try:
            trainer.train()
        finally:
            with suppress(NormlabError):  # a full disk has been told of already
                _amend(run_dir, capture=trainer.step.captured_as)
        if materials.scorer is not None:
            confirm_best(settings, dataset, materials.scorer, trainer, run_dir)
            floor = {"protocol": materials.scorer.evaluator.protocol, **materials.scorer.evaluator.floor()}
            _amend(run_dir, floor=floor)
        _export(settings, dataset, trainer, run_dir)
        trainer.report("done", DONE)
        return trainer


_STATES: dict[type[NormlabError], str] = {NumericalError: "diverged", CollapseError: "stopped"}


@contextmanager
def _accounting(run_dir: RunDir, status: Status) -> Generator[list[Trainer]]:
    """Leave in `status.json` and `run.log` how the block ended; a trainer, once there is one, knows where it stood."""
    account: list[Trainer] = []

    def end(state: Any, exit_code: int, error: str) -> None:
        if account:
            account[0].report(state, exit_code, error)
        elif status.state != "done":  # one that cannot be extended is as complete as it was
            run_dir.write_status(replace(status, state=state, exit_code=exit_code, error=error))
        log.debug("%s", traceback.format_exc())

    try:
        yield account
    except Stopped as stopped:
        end("stopped", stopped.exit_code, str(stopped))
        command = f"normlab train resume={shlex.quote(str(run_dir.path.resolve()))}"
        log.info("%s: saved step %s; to continue: %s", stopped, f"{account[0].state.step:,}", command)
        raise
    except Exception as error:
        known = _known(error)
        if known is None:
            end("failed", 1, f"{type(error).__name__}: {error}")
            raise
        end(_STATES.get(type(known), "failed"), known.exit_code, str(known))
        raise known from None
    finally:
        if account:
            account[0].recorder.close()


def _known(error: Exception) -> NormlabError | None:
    """Return an error as one that a person can mend, or None if it is none of those."""
    if isinstance(error, NormlabError):
        return error
    if is_out_of_memory(error):
        remedy = "try a smaller train.batch_size or architecture.width"
        return ResourceError("device", f"out of memory ({str(error).partition(chr(10))[0]})", remedy)
    return None


def _continued(settings: RunConfig, run_dir: RunDir) -> RunConfig:
    """Return the settings with which a run goes on; raise ConfigurationError if they would make another run of it."""
    saved = _saved(run_dir)
    # A longer run keeps the learning rates that it began with.
    settings = _with_horizons(settings, saved)
    composition.refuse(
        [
            Complaint(
                key,
                f"is {after!r}, but {before!r} in the run",
                f"set it back, or give {'' if settings.resume else 'fresh=true or '}allow_changes=[{key}]",
            )
            for key, before, after in config.changes(saved, settings)
            if key not in settings.allow_changes
        ]
    )
    return settings


def _saved(run_dir: RunDir) -> RunConfig:
    """Return the configuration that a run began with; a parameter that came to normlab later has its default."""
    return assemble.completed(config.load(run_dir.config))


def _record_changes(settings: RunConfig, run_dir: RunDir, step: int) -> None:
    """Leave in `changes.jsonl` which settings a run goes on with otherwise than it began, and since which step."""
    for change in config.changes(_saved(run_dir), settings):
        log.warning("%s changes from %s to %s at step %s", *change, f"{step:,}")
        JsonLines(run_dir.changes).append({"step": step, **change._asdict()})
    count, before = ranks.current().count, run_dir.read_ranks()
    if count != before:
        log.info("processes: %d from step %s on, %d before", count, f"{step:,}", before)


def _with_horizons(settings: RunConfig, saved: RunConfig | None) -> RunConfig:
    """Return the settings with a horizon for each part that decays and has none: the run's own, if it has begun."""

    def completed(part: Part, before: Part | None) -> Part:
        if "horizon" not in part.params or part.params["horizon"] is not None:
            return part
        horizon = str(settings.train.until) if before is None else before.params.get("horizon")
        return replace(part, params={**part.params, "horizon": horizon})

    normalization, before = settings.normalization, None if saved is None else saved.normalization
    optimizer = settings.optimizer
    return replace(
        settings,
        optimizer=replace(
            optimizer, schedule=completed(optimizer.schedule, None if saved is None else saved.optimizer.schedule)
        ),
        normalization=replace(
            normalization,
            generator=completed(normalization.generator, None if before is None else before.generator),
            discriminator=completed(normalization.discriminator, None if before is None else before.discriminator),
        ),
    )


def _ended(settings: RunConfig, run_dir: RunDir) -> int | None:
    """Return the exit code of a run that has ended for good, having said so; None if there is something to do."""
    status, state = run_dir.read_status(), progress.ended(settings, run_dir)
    if status is None or state is None:
        return None
    if state == "diverged":
        raise NumericalError(
            str(run_dir.path),
            f"the run has diverged at step {status.step}",
            "fresh=true starts over, seed=N another one",
        )
    if state == "collapsed":
        problem = (
            f"the generator had collapsed at step {status.states['collapsed']}, and on_collapse=stop ended the run"
        )
        raise CollapseError(str(run_dir.path), problem, "on_collapse=record goes on, fresh=true starts over")
    if settings.dataset.params.get("root") != _saved(run_dir).dataset.params.get("root"):
        _require_same_images(assemble.open_dataset(settings), settings, run_dir)
    print(f"already complete: {run_dir.path} (step {status.step:,})")
    return DONE


def _require_same_images(dataset: Dataset, settings: RunConfig, run_dir: RunDir) -> None:
    """Raise ConfigurationError if a run would go on with other images."""
    if progress.has_other_images(run_dir, dataset.fingerprint):
        problem = "the images differ from those that the run began with"
        if "dataset.root" in settings.allow_changes:
            log.warning("dataset.root: %s", problem)
            return
        remedy = "set it back, give another name=, fresh=true, or with resume allow_changes=[dataset.root]"
        raise ConfigurationError.of([Complaint("dataset.root", problem, remedy)])


def _require_same_ranks(dataset: Dataset, settings: RunConfig, run_dir: RunDir) -> None:
    """Raise ConfigurationError if a run would go on with batches that are normalized in other shares."""
    count, before, key = ranks.current().count, run_dir.read_ranks(), "train.batch_norm"
    if count == before or settings.train.batch_norm != "local" or key in settings.allow_changes:
        return
    if assemble.normalizes_batches(settings, assemble.image_spec(dataset)):
        problem = f"is local, of which {before} processes make something else than {count}"
        raise ConfigurationError(key, problem, f"start {before}, or give allow_changes=[{key}]")


def _amend(run_dir: RunDir, **facts: Any) -> None:
    """Put into `environment.json` what has shown itself on the way."""
    plain_json.write(run_dir.environment, {**plain_json.read(run_dir.environment), **facts})


def _environment(settings: RunConfig, materials: Materials, device: torch.device) -> dict[str, Any]:
    dataset = materials.dataset
    described = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "train": len(dataset.train),
        "held_out": len(dataset.held_out),
        "image_shape": list(dataset.image_shape),
        "classes": dataset.classes,
    }
    features = None if materials.scorer is None else materials.scorer.info
    return {
        **describe_environment(device, settings.precision),
        "capture": assemble.capture_of(settings, device),
        "ranks": ranks.current().count,
        "dataset": described,
        "features": features,
    }


def _export(settings: RunConfig, dataset: Dataset, trainer: Trainer, run_dir: RunDir) -> None:
    averaged = trainer.state.averaged
    generator = trainer.state.generator if averaged is None else averaged.module
    metadata = assemble.generator_metadata(settings, assemble.image_spec(dataset), trainer.state.step)
    export_generator(restandardised(generator, settings.seed, trainer.step.device), run_dir.generator, metadata)


def _tell_result(trainer: Trainer, run_dir: RunDir) -> None:
    print(f"done: {run_dir.path} (step {trainer.state.step:,})")
    for row in [row for row in trainer.recorder.evaluations() if row["step"] == trainer.state.step]:
        print(f"  {row['generator']}: {in_short(row)}  [{row['protocol']}]")
    best = plain_json.read(run_dir.best)
    if best and best["step"] != trainer.state.step:
        print(f"  best, scored again: step {best['step']:,}  {in_short(best)}")
    print(f"  samples: {os.path.relpath(run_dir.sample(trainer.state.step))}")
