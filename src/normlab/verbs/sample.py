"""`normlab sample RUN|FILE.safetensors`: images of a generator, without its data set."""

import argparse
from pathlib import Path

import torch

from normlab import composition
from normlab.assemble import import_plugins
from normlab.config import RunConfig
from normlab.errors import DONE
from normlab.loading import load
from normlab.outputs import plain_json
from normlab.outputs.grids import save_grid
from normlab.randomness import stream
from normlab.verbs.arguments import Arguments, modules

MOST = 100_000  # images or columns of a grid


def run(arguments: list[str]) -> int:
    """Write a grid of samples."""
    parser = Arguments("sample", "Draw images from a trained generator.")
    parser.add_argument("source", metavar="RUN|FILE.safetensors")
    parser.add_argument("--count", type=count, default=64, help="how many images (default 64)")
    parser.add_argument("--columns", type=count, default=8, help="how many in a row (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the latents (default 0)")
    parser.add_argument("--out", type=Path, default=None, metavar="PNG", help="default: samples.png beside the source")
    parser.add_argument(
        "--plugins",
        type=modules,
        default=(),
        metavar="MODULES",
        help="import these first: a FILE does not name its own",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    composition.refuse(import_plugins(RunConfig(plugins=options.plugins)))
    source = Path(options.source)
    generator, step = load(source)
    latents = torch.randn(options.count, generator.latent_size, generator=stream(options.seed, "sample"))
    with torch.no_grad():
        images = torch.cat([generator(batch) for batch in latents.split(250)])
    out = options.out or (source / "samples.png" if source.is_dir() else source.with_name("samples.png"))
    save_grid(images, out, options.columns)
    print(plain_json.dump({"path": str(out), "count": options.count, "step": step}) if options.json else out)
    return DONE


def count(text: str) -> int:
    if not 1 <= (number := int(text)) <= MOST:
        raise argparse.ArgumentTypeError(f"must be from 1 to {MOST:,}, got {number:,}")
    return number
