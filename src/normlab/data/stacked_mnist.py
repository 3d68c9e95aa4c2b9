"""Stacked MNIST: three digits in the channels of one colour image, a thousand modes that can be counted."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from normlab.data.catalogue import DATASETS, ImageSize, from_pack
from normlab.data.conversion import resize_all
from normlab.data.images import Dataset, Images
from normlab.data.mnist import MNIST, fetch_idx, padded, read_idx
from normlab.data.packing import PackWriter, content_digest, packed
from normlab.data.pixels import Pixels
from normlab.randomness import stream
from normlab.settings import PositiveInt

Draw = npt.NDArray[np.int64]

TRAIN, HELD_OUT = 128_000, 26_000
MODES = tuple(f"{mode:03}" for mode in range(1000))
BLOCK = 1000


@DATASETS.register("stacked_mnist")
def stacked_mnist(
    *,
    root: str = "data",
    download: bool = True,
    image_size: ImageSize = 32,
    limit: PositiveInt | None = None,
    flip: bool = False,
) -> Dataset:
    """Return stacked MNIST (Metz et al. 2017), colour, 128,000 to train and 26,000 held out, from `root`/MNIST/raw.

    Red, green and blue are three digits a, b, c of MNIST, drawn independently with replacement, and the label is the
    mode 100a + 10b + c. Training images are made of MNIST's training digits, held-out ones of its test digits, in a
    draw that is the same for every run. There are as many training images as in PacGAN's code (Lin et al. 2018), and as
    many held-out ones as it scores. 28x28, padded with zeros to 32x32; any other `image_size` is resized from that.
    Raises DataError if files of MNIST are missing or damaged.
    """
    folder = Path(root).expanduser()
    files = fetch_idx(MNIST, folder, download)

    def fill(writer: PackWriter) -> None:
        train, test = (padded(split) for split in read_idx(MNIST, files))
        for name, digits, count in (("train", train, TRAIN), ("held_out", test, HELD_OUT)):
            chosen = draw(name, len(digits), count)
            assert digits.labels is not None
            labels = digits.labels[chosen] @ np.array([100, 10, 1])
            writer.split(name, (count, 3, image_size, image_size), _stacks(digits, chosen, image_size), labels)
        writer.finish(MODES, [])

    settings = {"image_size": image_size, "train": TRAIN, "held_out": HELD_OUT}
    pack = packed("stacked_mnist", content_digest(folder, files), settings, fill)
    return from_pack("stacked_mnist", pack, limit, flip)


def draw(split: str, digits: int, count: int) -> Draw:
    """Return which digits make up each image of a split, int64 [count, 3]."""
    return torch.randint(digits, (count, 3), generator=stream(0, "stacked_mnist", split)).numpy()


def _stacks(digits: Images, chosen: Draw, size: int) -> Iterator[Pixels]:
    planes = resize_all(digits.pixels[:], size)[:, 0]
    for start in range(0, len(chosen), BLOCK):
        yield planes[chosen[start : start + BLOCK]]
