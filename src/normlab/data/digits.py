"""The embedded hand-written digits, which need no file and no network."""

from functools import cache
from pathlib import Path

import numpy as np

from normlab.data.catalogue import DATASETS, ImageSize, from_pack
from normlab.data.conversion import resize_all
from normlab.data.images import Dataset, Images
from normlab.data.packing import Pack
from normlab.settings import PositiveInt

FILE = Path(__file__).with_name("digits.npz")
TRAIN = 1437
TEN_DIGITS = tuple("0123456789")


@DATASETS.register("digits")
def digits(*, image_size: ImageSize = 32, limit: PositiveInt | None = None, flip: bool = False) -> Dataset:
    """Return the embedded hand-written digits, grey, 1,437 to train and 360 held out.

    The test part of the UCI optical digits (Alpaydin & Kaynak 1998) as scikit-learn distributes it: 8x8, 17 levels,
    scaled to 0..255 and brought to `image_size` by bicubic interpolation with clamping. The order of the file is kept
    and its last fifth held out; who wrote which digit is not recorded, so a writer may stand in both splits.
    """
    return from_pack("digits", _pack(image_size), limit, flip)


@cache
def _pack(image_size: int) -> Pack:
    """Return the digits at a size; they are small and quickly made, so they are kept in this process alone."""
    with np.load(FILE) as content:
        values, labels = content["values"], content["labels"].astype(np.int64)
    pixels = np.rint(values * (255 / 16)).astype(np.uint8)[:, None]  # [n, 1, 8, 8]
    pixels = resize_all(pixels, image_size)
    train, held_out = Images(pixels[:TRAIN], labels[:TRAIN]), Images(pixels[TRAIN:], labels[TRAIN:])
    return Pack(train, held_out, (train.digest(), held_out.digest()), TEN_DIGITS, ())
