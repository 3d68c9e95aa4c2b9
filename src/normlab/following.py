"""A run on several processes: what the first tells the others at its start, and the process that follows."""

import io
import logging
import sys
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import torch

from normlab import assemble
from normlab.assemble import Materials
from normlab.config import RunConfig
from normlab.errors import ConfigurationError, DataError
from normlab.outputs.environment import name_of, versions
from normlab.ranks import Order, current
from normlab.training.step import Step

if TYPE_CHECKING:  # a run of one process never loads it
    from normlab.distributed import Team

log = logging.getLogger(__name__)


class Beginning(NamedTuple):
    """What a run is built from, the same on every rank. images, protocol, versions: what all must find the same."""

    settings: RunConfig
    threads: int
    images: str
    protocol: str | None
    versions: str


class Unadorned(io.TextIOWrapper):
    """A stream that says that it is no terminal, so that no bar is drawn on it: the first rank's are enough."""

    def isatty(self) -> bool:
        return False


def prepare(settings: RunConfig, threads: int) -> torch.device:
    """Set how this process computes, and return the device that it computes on."""
    torch.set_num_threads(threads)
    assemble.set_float32_precision(settings.precision)
    device = assemble.choose_device(settings.device)
    if device.type == "cuda" and current().count > 1:
        torch.cuda.set_device(device)
    return device


def begin(settings: RunConfig, materials: Materials) -> None:
    """Have the other ranks build the run."""
    current().lead(Order.START, _beginning(settings, materials))


def hand_over(step: Step) -> None:
    """Have the other ranks take over the state that the run goes on from; warn of those on devices of another kind."""
    if current().count == 1:
        return
    first, *others = current().gather(name_of(step.device))
    for rank, name in enumerate(others, 1):
        if name != first:
            log.warning("rank %d computes on %s, and rank 0 on %s", rank, name, first)
    file = io.BytesIO()
    torch.save(step.state.state_dict(), file)
    current().lead(Order.START, file.getvalue())


def follow(team: "Team") -> NoReturn:
    """Do what the first rank says until it ends this process; what goes wrong here, it says."""
    logging.getLogger("normlab").setLevel(logging.CRITICAL)
    stderr = io.BufferedWriter(io.FileIO(2, "w", closefd=False))
    sys.stderr = Unadorned(stderr, errors="backslashreplace", line_buffering=True)
    try:
        _follow(team)
    except Exception as error:
        team.fail(error)
        raise


def _follow(team: "Team") -> NoReturn:
    _, beginning = team.follow()
    assert isinstance(beginning, Beginning)
    _require_same_versions(beginning)
    settings = beginning.settings
    assemble.import_plugins(settings)
    device = prepare(settings, beginning.threads)
    materials = assemble.gather(settings, device, team)
    _require_same(_beginning(settings, materials), beginning)
    step = assemble.build_step(settings, materials.dataset, materials.real, device, team)
    team.gather(name_of(device))
    _, state = team.follow()
    step.state.load_state_dict(torch.load(io.BytesIO(state), map_location=device, weights_only=True))
    while True:
        order, task = team.follow()
        if order == Order.STEP:
            step.take()
        elif materials.scorer is not None:
            materials.scorer.evaluator.follow(task, step.state.generator)


def _beginning(settings: RunConfig, materials: Materials) -> Beginning:
    scorer = materials.scorer
    protocol = None if scorer is None else scorer.evaluator.protocol
    return Beginning(settings, torch.get_num_threads(), materials.dataset.fingerprint, protocol, _versions())


def _versions() -> str:
    return ", ".join(f"{name} {versions()[name]}" for name in ("normlab", "torch"))


def _require_same_versions(first: Beginning) -> None:
    if (here := _versions()) != first.versions:
        problem = f"differ from those of rank 0 ({here}, not {first.versions})"
        raise ConfigurationError("versions", problem, "let all machines have the same installed")


def _require_same(here: Beginning, first: Beginning) -> None:
    for name in ("images", "protocol"):
        if getattr(here, name) != getattr(first, name):
            problem = f"differ from those of rank 0 ({getattr(here, name)}, not {getattr(first, name)})"
            where = "dataset.root" if name == "images" else "evaluation.features"
            raise DataError(where, problem, "let all machines see the same files, and the same NORMLAB_CACHE")
