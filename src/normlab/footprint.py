"""What a run takes of disk and memory, found out where no weight takes memory, and whether there is room for it."""

from pathlib import Path

import torch
from torch.optim import Optimizer

from normlab import assemble
from normlab.config import RunConfig
from normlab.errors import ResourceError
from normlab.networks import ImageSpec
from normlab.outputs.atomic import free_disk
from normlab.reports.tables import size
from normlab.training.optimizers import moments

# The newest two checkpoints and the best are kept; when a new one is written the oldest is still there.
CHECKPOINTS = 3
MOST_CLASSES = 1000


def checkpoint_bytes(settings: RunConfig, image: ImageSpec) -> int:
    """Return how large a checkpoint is but for its table of contents: weights, averages and optimizer state."""
    device = torch.device("meta")
    with device:
        state = assemble.build_state(settings, image, device)
    modules = [state.generator, state.discriminator, *([] if state.averaged is None else [state.averaged.module])]
    weights = sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())
    return weights + sum(map(moment_bytes, (state.generator_optimizer, state.discriminator_optimizer)))


def moment_bytes(optimizer: Optimizer) -> int:
    """Return how much an optimizer keeps of its parameters once it has made a step, its numbers in float32."""
    kept = moments(optimizer).values()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return sum(parameter.nbytes if shaped else 4 for parameter in parameters for shaped in kept)


def largest_image(settings: RunConfig) -> ImageSpec:
    """Return what images are at most, as far as it can be told without them."""
    side = settings.dataset.params.get("image_size", 32)
    return ImageSpec(3, side, side, classes=MOST_CLASSES)


def require_disk(checkpoint: int, folder: Path) -> None:
    """Raise ResourceError if three checkpoints of so many bytes do not fit where a run's folder is, or is to be."""
    needed, free = CHECKPOINTS * checkpoint, free_disk(folder)
    if needed > free:
        problem = f"{CHECKPOINTS} checkpoints need {size(needed)}, but only {size(free)} are free"
        raise ResourceError(str(folder), problem, "make room, or set NORMLAB_OUTPUTS to another disk")


def require_memory(checkpoint: int, device: torch.device) -> None:
    """Raise ResourceError if what a checkpoint of so many bytes holds does not fit beside what is in memory already.

    What gradients and the activations of a batch take comes on top: the first step shows it.
    """
    free = free_memory(device)
    if free is not None and checkpoint > free:
        problem = f"weights and optimizer need {size(checkpoint)}, but only {size(free)} of memory are free"
        raise ResourceError("device", problem, "try a smaller architecture.width, or another device")


def free_memory(device: torch.device) -> int | None:
    """Return how many bytes of memory are free on a device, or None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    (available,) = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(available)
