"""`normlab sample RUN|FILE.safetensors`: images of a generator, without its data set."""

import argparse
from pathlib import Path
from typing import Any

import torch

from normlab import assemble, config
from normlab.errors import DONE, CheckpointError, ConfigurationError
from normlab.evaluation.evaluator import restandardised
from normlab.networks.network import Generator
from normlab.outputs import plain_json
from normlab.outputs.checkpoints import Checkpoints
from normlab.outputs.export import read_generator
from normlab.outputs.grids import save_grid
from normlab.outputs.run_dir import RunDir
from normlab.randomness import stream


def run(arguments: list[str]) -> int:
    """Write a grid of samples."""
    parser = argparse.ArgumentParser("normlab sample", description="Draw images from a trained generator.")
    parser.add_argument("source", metavar="RUN|FILE.safetensors")
    parser.add_argument("--count", type=_positive, default=64, help="how many images (default 64)")
    parser.add_argument("--columns", type=_positive, default=8, help="how many in a row (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the latents (default 0)")
    parser.add_argument("--out", type=Path, default=None, metavar="PNG", help="default: samples.png beside the source")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    source = Path(options.source)
    generator, step = _from_file(source) if source.suffix == ".safetensors" else _from_run(source)
    latents = torch.randn(options.count, generator.latent_size, generator=stream(options.seed, "sample"))
    with torch.no_grad():
        images = torch.cat([generator(batch) for batch in latents.split(250)])
    out = options.out or (source / "samples.png" if source.is_dir() else source.with_name("samples.png"))
    save_grid(images, out, options.columns)
    print(plain_json.dump({"path": str(out), "count": options.count, "step": step}) if options.json else out)
    return DONE


def _from_file(path: Path) -> tuple[Generator, Any]:
    tensors, metadata = read_generator(path)
    try:
        generator = assemble.generator_from_metadata(metadata)
        generator.load_state_dict(tensors)
    except (ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(str(path), f"is no generator of normlab: {error}", "give one that it exported") from None
    return generator.eval(), int(metadata["step"])


def _from_run(path: Path) -> tuple[Generator, Any]:
    """Return the generator of the newest checkpoint, the averaged one where there is one."""
    run_dir = RunDir(path)
    if not run_dir.exists():
        remedy = "name a folder that holds a config.yaml, or a .safetensors file"
        raise ConfigurationError(str(path), "is not the folder of a run", remedy)
    settings = config.load(run_dir.config)
    environment = run_dir.read_json("environment.json")
    newest = Checkpoints(run_dir.checkpoints).newest()
    if environment is None or newest is None:
        raise CheckpointError(str(run_dir.checkpoints), "holds no checkpoint", "train the run first")
    assemble.import_plugins(settings)
    generator = assemble.build_generator(settings, tuple(environment["dataset"]["image_shape"]))
    generator.load_state_dict(newest.state["averaged"] or newest.state["generator"])
    return restandardised(generator, settings.seed, torch.device("cpu")), newest.step


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
