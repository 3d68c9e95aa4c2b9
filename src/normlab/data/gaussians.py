"""Points in the plane drawn from a mixture of Gaussians, whose modes can be counted."""

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from normlab.data.catalogue import DATASETS, from_pack
from normlab.data.images import Dataset, Images
from normlab.data.packing import Pack
from normlab.randomness import stream
from normlab.settings import PositiveFloat, PositiveInt

Points = npt.NDArray[np.float32]

EXTENT = 0.8  # of the outermost means from the origin, along an axis
TRAIN, HELD_OUT = 100_000, 10_000


@DATASETS.register("gaussians")
def gaussians(
    *, layout: Literal["ring", "grid"] = "ring", std: PositiveFloat = 0.01, limit: PositiveInt | None = None
) -> Dataset:
    """Return points of a mixture of Gaussians, 100,000 to train and 10,000 held out: a ring of 8 or a grid of 25.

    A point is an image of two channels and one pixel, in the range of images, [-1, 1], and its label is its mode. All
    modes are equally likely and equally round. In units of the outermost mean, `std` 0.01 is that of PacGAN's code (Lin
    et al. 2018): there the grid reaches from -4 to 4 with 0.05, and the ring has radius 1 with 0.01; here both end at
    0.8, which makes the ring's modes a quarter wider against its radius. The draw is the same for every run.
    """
    means = ring(8) if layout == "ring" else grid(5)
    train, held_out = (draw(means, std, split, count) for split, count in (("train", TRAIN), ("held_out", HELD_OUT)))
    names = tuple(f"{x:.2f} {y:.2f}" for x, y in means)
    return from_pack("gaussians", Pack(train, held_out, (train.digest(), held_out.digest()), names, ()), limit, False)


def ring(count: int) -> Points:
    """Return points at equal distances on a circle, float32 [count, 2]."""
    angles = 2 * math.pi * np.arange(count) / count
    return (EXTENT * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)


def grid(side: int) -> Points:
    """Return the points of a square grid, float32 [side^2, 2]."""
    axis = np.linspace(-EXTENT, EXTENT, side)
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)


def draw(means: Points, std: float, split: str, count: int) -> Images:
    """Return points of the mixture as pixels [count, 2, 1, 1] with the modes as labels."""
    rng = stream(0, "gaussians", split)
    modes = torch.randint(len(means), (count,), generator=rng)
    points = torch.from_numpy(means)[modes] + std * torch.randn(count, 2, generator=rng)
    return Images(points[:, :, None, None].numpy(), modes.numpy())
