"""A trained generator from a run's folder or a file, with neither the data set nor a GPU."""

from pathlib import Path
from typing import NamedTuple

import torch

from normlab import assemble, config
from normlab.errors import CheckpointError, ConfigurationError
from normlab.evaluation.evaluator import restandardised
from normlab.networks.network import Generator
from normlab.outputs.checkpoints import Checkpoints
from normlab.outputs.export import read_generator
from normlab.outputs.run_dir import RunDir


class Loaded(NamedTuple):
    """A generator in evaluation mode on the CPU, and the step at which it was saved."""

    generator: Generator
    step: int


def load(source: Path) -> Loaded:
    """Return the generator of a run's newest checkpoint, averaged where there is an average, or of a .safetensors file.

    Of a run that has none left it is the one that the run exported.

    Raises ConfigurationError if the source is neither, CheckpointError if there is nothing sound in it.
    """
    return _from_file(source) if source.suffix == ".safetensors" else _from_run(source)


def _from_file(path: Path) -> Loaded:
    tensors, metadata = read_generator(path)
    try:
        # Without memory of its own: the description may claim any size, and the file's tensors are there already.
        with torch.device("meta"):
            generator = assemble.generator_from_metadata(metadata)
        if kinds := {tensor.dtype for tensor in tensors.values()} - {torch.float32, torch.int64}:
            raise ValueError(f"its weights are {', '.join(map(str, kinds))}, not torch.float32")
        generator.load_state_dict(tensors, assign=True)
        return Loaded(generator.eval(), int(metadata["step"]))
    except (ValueError, RuntimeError, LookupError, OverflowError, TypeError, AttributeError) as error:
        problem = f"is no generator of normlab: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(str(path), problem, "give one that it exported") from None


def _from_run(path: Path) -> Loaded:
    run_dir = RunDir(path)
    if not run_dir.exists():
        remedy = "name a folder that holds a config.yaml, or a .safetensors file"
        raise ConfigurationError(str(path), "is not the folder of a run", remedy)
    if not Checkpoints(run_dir.checkpoints).steps() and run_dir.generator.exists():
        return _from_file(run_dir.generator)
    settings = config.load(run_dir.config)
    own, checkpoints = assemble.saved_state(settings, run_dir), Checkpoints(run_dir.checkpoints)
    newest = None if own is None else checkpoints.newest(set_aside=False, largest=own.most_bytes())
    if own is None or newest is None:
        raise CheckpointError(str(run_dir.checkpoints), "holds no checkpoint", "train the run first")
    if misfits := list(own.misfits(newest.state)):
        raise checkpoints.misfit(newest.step, misfits[0], "`normlab verify` looks at all of them")
    own.generator.load_state_dict(newest.state["averaged"] or newest.state["generator"])
    return Loaded(restandardised(own.generator, settings.seed, torch.device("cpu")), newest.step)
