"""How far a run has come, as its folder tells it: read without torch, so that a sweep may ask it of every run."""

from typing import Any, Literal

from normlab.config import RunConfig
from normlab.outputs import plain_json
from normlab.outputs.run_dir import RunDir
from normlab.training.pace import pace_of

Ending = Literal["done", "diverged", "collapsed"]


def ended(settings: RunConfig, run_dir: RunDir) -> Ending | None:
    """Return how a run has ended for good; None if there is something to do, or somebody is doing it."""
    status = run_dir.read_status()
    if status is None or not run_dir.exists() or run_dir.is_locked():
        return None
    if status.state == "diverged":
        return "diverged"
    if status.is_ended_by_collapse and settings.on_collapse == "stop":
        return "collapsed"
    last = last_step(settings, run_dir)
    return "done" if status.state == "done" and last is not None and status.step >= last else None


def last_step(settings: RunConfig, run_dir: RunDir) -> int | None:
    """Return the step at which the settings would have a run that has begun end; None if its images are not known."""
    images = images_of(run_dir).get("train")
    return None if not isinstance(images, int) else pace_of(settings, images).steps(settings.train.until)


def images_of(run_dir: RunDir) -> dict[str, Any]:
    """Return what a run's folder says of the images that it was begun with."""
    images = plain_json.read(run_dir.environment).get("dataset")
    return images if isinstance(images, dict) else {}


def has_other_images(run_dir: RunDir, fingerprint: str) -> bool:
    """Return whether a run was begun with other images than those, which the name of its folder does not tell."""
    return images_of(run_dir).get("fingerprint") not in (None, fingerprint)
