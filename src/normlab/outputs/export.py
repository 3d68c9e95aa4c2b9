"""The generator as a file to share: weights alone, which any program reads and which runs no code."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from normlab.errors import CheckpointError
from normlab.outputs.atomic import write_atomically


def export_generator(module: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the parameters and buffers of a module as safetensors, with what is needed to rebuild it as text.

    Raises ResourceError if the file cannot be written.
    """
    # Copies, because the format refuses two names for one memory.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    write_atomically(path, safetensors.torch.save(tensors, dict(metadata)))


def read_generator(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file; raise CheckpointError if it is none."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(str(path), "does not exist", "give a run or a .safetensors file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(str(path), f"cannot be read as safetensors: {error}", "export it again") from None
