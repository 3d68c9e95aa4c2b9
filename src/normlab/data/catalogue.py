"""The registry of data sets, and what all of them share: their settings, and how splits become a `Dataset`."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import numpy as np
import torch

from normlab.data.conversion import resize_all
from normlab.data.images import Dataset, Images
from normlab.data.packing import Pack, PackWriter
from normlab.data.pixels import Pixels, StreamedPixels
from normlab.randomness import stream
from normlab.registry import Registry
from normlab.settings import Range

DATASETS: Registry[Callable[..., Dataset]] = Registry("dataset")

ImageSize = Annotated[int, Range(least=32, most=128)]
Workers = Annotated[int, Range(least=1, most=128)]
WORKERS = 4


def from_pack(name: str, pack: Pack, limit: int | None, flip: bool) -> Dataset:
    """Return the data set of a pack, of whose training images `limit` are kept: the first of a fixed random order."""
    train, notes = pack.train, pack.notes
    train_digest, held_out_digest = pack.digests
    if limit is not None and limit < len(train):
        notes = (*notes, _limit_note(limit, train))
        train = _first(limit, train)
        train_digest = train.digest()
    for array in (train.pixels, train.labels, pack.held_out.pixels, pack.held_out.labels):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    fingerprint = hashlib.sha256(f"{train_digest} {held_out_digest}".encode()).hexdigest()
    return Dataset(name, train, pack.held_out, pack.class_names, fingerprint, flip, notes)


def from_streams(
    name: str,
    train: Images,
    held_out: Images,
    class_names: Sequence[str] | None,
    source: str,
    limit: int | None,
    flip: bool,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """Return a data set whose images are decoded on the way, limited as a packed one is.

    source: what decides the pixels, in words: a digest of the files and the settings.
    """
    notes = (*notes, "images are decoded on the way; what has to be converted is not counted")
    if limit is not None and limit < len(train):
        notes = (*notes, _limit_note(limit, train))
        train = _first(limit, train)
        source = f"{source} limit {limit}"
    fingerprint = hashlib.sha256(source.encode()).hexdigest()
    return Dataset(name, train, held_out, None if class_names is None else tuple(class_names), fingerprint, flip, notes)


def write_resized(writer: PackWriter, train: Images, held_out: Images, size: int) -> None:
    """Write both splits of a pack from images [n, c, h, w] in memory or mapped, brought to `size` pixels."""
    for name, images in (("train", train), ("held_out", held_out)):
        shape = (len(images), images.pixels.shape[1], size, size)
        writer.split(name, shape, _resized_blocks(images, size), images.labels)


def _resized_blocks(images: Images, size: int) -> Iterator[Pixels]:
    for start in range(0, len(images), 1000):
        yield resize_all(images.pixels[start : start + 1000], size)


def _limit_note(limit: int, train: Images) -> str:
    return f"dataset.limit keeps {limit} of {len(train)} training images"


def _first(limit: int, train: Images) -> Images:
    # In the order of a class-sorted folder the first images would all be of one class.
    kept = torch.randperm(len(train), generator=stream(0, "limit"))[:limit].numpy()
    pixels = train.pixels.select(kept) if isinstance(train.pixels, StreamedPixels) else train.pixels[kept]
    return Images(pixels, None if train.labels is None else train.labels[kept])
