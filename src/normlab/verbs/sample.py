"""`normlab sample RUN|FILE.safetensors`: images of a generator, without its data set."""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from normlab import composition, latents
from normlab.assemble import import_plugins
from normlab.config import RunConfig
from normlab.errors import DONE, ConfigurationError
from normlab.evaluation.batching import batches
from normlab.loading import load
from normlab.networks.network import Generator
from normlab.outputs import plain_json
from normlab.outputs.atomic import replacing
from normlab.outputs.grids import save_grid, save_image, to_uint8
from normlab.randomness import stream
from normlab.verbs.arguments import Arguments, modules

MOST = 1_000_000  # images
MOST_OF_GRID = 10_000
OTHER_FORMATS = (".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".svg", ".pdf", ".npy", ".zip", ".pt")
BATCH = 250
DESCRIPTION = """\
Draw images from a trained generator, of a run or of a file that it exported: a grid, an array, or a file for each. The
same seed gives the same images."""
EXAMPLES = """\
examples:
  normlab sample RUN                                            a grid of 64: samples.png in the run's folder
  normlab sample generator.safetensors --count 50000 --out samples.npz
  normlab sample RUN --count 1000 --out samples/                a PNG for each image
  normlab sample RUN --interpolate --out between.png            each row goes from one image to another
  normlab sample RUN --truncation 0.7                           fewer and better kinds of images
"""


def run(arguments: list[str]) -> int:
    """Write the images and print where they are."""
    options = _parser().parse_args(arguments)
    composition.refuse(import_plugins(RunConfig(plugins=options.plugins)))
    source = Path(options.source)
    generator, step = load(source)
    if options.interpolate:  # whole rows, each of which arrives
        options.count = -(-options.count // options.columns) * options.columns
    labels = _labels(generator, options)
    drawn = _latents(generator, options)
    out = options.out or (source / "samples.png" if source.is_dir() else source.with_name("samples.png"))
    ending = "" if out.is_dir() else out.suffix.lower()
    _require_room(out, ending, options.count)
    images = _images(generator, drawn, labels)
    if ending == ".png":
        save_grid(torch.cat([*images]), out, options.columns)
    elif ending == ".npz":
        _save_array(torch.cat([_as_kept(batch) for batch in images]), labels, out)
    else:
        _save_files(images, out)
    print(plain_json.dump({"path": str(out), "count": options.count, "step": step}) if options.json else out)
    return DONE


def count(text: str) -> int:
    if not 1 <= (number := int(text)) <= MOST:
        raise argparse.ArgumentTypeError(f"must be from 1 to {MOST:,}, got {number:,}")
    return number


def positive(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


def _parser() -> Arguments:
    parser = Arguments("sample", DESCRIPTION)
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    parser.add_argument("source", metavar="RUN|FILE.safetensors")
    parser.add_argument("--count", type=count, default=64, help="how many images (default 64)")
    parser.add_argument("--columns", type=count, default=8, help="how many in a row (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the latents (default 0)")
    help = "the largest coordinate of a latent, with --interpolate of both ends; by default they are as in training"
    parser.add_argument("--truncation", type=positive, default=None, metavar="T", help=help)
    help = "let each row go from one latent to another along a great circle"
    parser.add_argument("--interpolate", action="store_true", help=help)
    help = "of a generator that takes labels: this one for all (default: in turn, with --interpolate by rows)"
    parser.add_argument("--label", type=int, default=None, help=help)
    help = "a grid FILE.png, an array FILE.npz (`images` uint8 [n, h, w, c]), or a folder for a PNG each; default: "
    parser.add_argument("--out", type=Path, default=None, help=f"{help}samples.png beside the source")
    help = "import these first: a FILE does not name its own"
    parser.add_argument("--plugins", type=modules, default=(), metavar="MODULES", help=help)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def _require_room(out: Path, ending: str, count: int) -> None:
    """Raise ConfigurationError if images cannot be kept where they are to be."""
    if ending == ".png" and count > MOST_OF_GRID:
        problem = f"a grid of {count:,} images is more than {MOST_OF_GRID:,}"
        raise ConfigurationError("--count", problem, "give --out a name that ends in .npz, or a folder")
    if ending in OTHER_FORMATS:
        remedy = "end it in .png for a grid, in .npz for an array, or name a folder for a file of each"
        raise ConfigurationError("--out", f"{out} ends in {out.suffix}", remedy)
    if ending not in (".png", ".npz") and out.exists() and (not out.is_dir() or any(out.iterdir())):
        problem = f"{out} is {'a folder that is not empty' if out.is_dir() else 'a file'}"
        raise ConfigurationError("--out", problem, "name a folder that is empty or not there yet")


def _latents(generator: Generator, options: argparse.Namespace) -> Tensor:
    rng, size = stream(options.seed, "sample"), generator.latent_size
    if not options.interpolate:
        return latents.drawn(options.count, size, rng, options.truncation)
    if options.columns < 2:
        raise ConfigurationError("--interpolate", "needs rows of two images or more", "give more --columns")
    rows = options.count // options.columns
    ends = latents.drawn(2 * rows, size, rng, options.truncation)
    return latents.between(ends[:rows], ends[rows:], options.columns).flatten(0, 1)


def _labels(generator: Generator, options: argparse.Namespace) -> Tensor | None:
    """Return the labels of the images, int64 [count], None where the generator takes none.

    They go in turn from image to image, but with --interpolate from row to row: what changes in a row is the latent.
    """
    classes, label, count = generator.classes, options.label, options.count
    if classes is None:
        if label is not None:
            raise ConfigurationError(
                "--label", "is of a generator that takes labels, and this one does not", "leave it"
            )
        return None
    if label is None:
        return torch.arange(count) // (options.columns if options.interpolate else 1) % classes
    if not 0 <= label < classes:
        raise ConfigurationError("--label", f"got {label}", f"there are 0 to {classes - 1}")
    return torch.full((count,), label)


@torch.no_grad()
def _images(generator: Generator, drawn: Tensor, labels: Tensor | None) -> Iterator[Tensor]:
    for rows in batches(len(drawn), BATCH, "sampling"):
        yield generator(drawn[rows], labels=None if labels is None else labels[rows])


def _as_kept(images: Tensor) -> Tensor:
    """Return images as uint8 [n, h, w, c]; points [n, 2] as they are."""
    return images[:, :, 0, 0] if images.shape[1:] == (2, 1, 1) else to_uint8(images).permute(0, 2, 3, 1)


def _save_array(images: Tensor, labels: Tensor | None, path: Path) -> None:
    with replacing(path) as file:
        if labels is None:
            np.savez_compressed(file, images=images.numpy())
        else:
            np.savez_compressed(file, images=images.numpy(), labels=labels.numpy())


def _save_files(images: Iterator[Tensor], folder: Path) -> None:
    number = 0
    for batch in images:
        if batch.shape[1:] == (2, 1, 1):
            raise ConfigurationError("--out", "points have no picture each", "give a name that ends in .png or .npz")
        for image in to_uint8(batch):
            folder.mkdir(parents=True, exist_ok=True)
            save_image(image, folder / f"{number:06}.png")
            number += 1
