"""The data sets by name. Each is a function of its settings that returns a `Dataset`."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch

from normlab.data.conversion import resize_all
from normlab.data.folders import list_folder, pack_folder
from normlab.data.images import Dataset, Images, Pixels
from normlab.data.originals import (
    FASHION_MNIST,
    MNIST,
    IdxSource,
    fashion_names,
    fetch_cifar10,
    fetch_idx,
    read_cifar10,
    read_idx,
)
from normlab.data.packing import Pack, PackWriter, content_digest, packed
from normlab.randomness import stream
from normlab.registry import Registry
from normlab.settings import PositiveInt, Range

ImageSize = Annotated[int, Range(least=32, most=128)]

DATASETS: Registry[Callable[..., Dataset]] = Registry("dataset")

DIGITS = Path(__file__).with_name("digits.npz")
DIGITS_TRAIN = 1437
TEN_DIGITS = tuple("0123456789")


@DATASETS.register("digits")
def digits(*, image_size: ImageSize = 32, limit: PositiveInt | None = None, flip: bool = False) -> Dataset:
    """Return the embedded hand-written digits, grey, 1,437 to train and 360 held out.

    The test part of the UCI optical digits (Alpaydin & Kaynak 1998) as scikit-learn distributes it: 8x8, 17 levels,
    scaled to 0..255 and brought to `image_size` by bicubic interpolation with clamping. The order of the file is kept
    and its last fifth held out; who wrote which digit is not recorded, so a writer may stand in both splits.
    """
    with np.load(DIGITS) as content:
        values, labels = content["values"], content["labels"].astype(np.int64)
    pixels = np.rint(values * (255 / 16)).astype(np.uint8)[:, None]  # [n, 1, 8, 8]
    pixels = resize_all(pixels, image_size)
    train = Images(pixels[:DIGITS_TRAIN], labels[:DIGITS_TRAIN])
    held_out = Images(pixels[DIGITS_TRAIN:], labels[DIGITS_TRAIN:])
    # They are small and quickly made, so they need no pack and no cache folder.
    return _dataset("digits", Pack(train, held_out, (train.digest(), held_out.digest()), TEN_DIGITS, ()), limit, flip)


@DATASETS.register("mnist")
def mnist(
    *,
    root: str = "data",
    download: bool = True,
    image_size: ImageSize = 32,
    limit: PositiveInt | None = None,
    flip: bool = False,
) -> Dataset:
    """Return MNIST (LeCun et al. 1998), grey, 60,000 to train and 10,000 held out, from `root`/MNIST/raw.

    28x28, padded with zeros to 32x32; any other `image_size` is resized from that.
    Raises DataError if files are missing or damaged.
    """
    return _idx_dataset(MNIST, root, download, image_size, limit, flip)


@DATASETS.register("fashion_mnist")
def fashion_mnist(
    *,
    root: str = "data",
    download: bool = True,
    image_size: ImageSize = 32,
    limit: PositiveInt | None = None,
    flip: bool = False,
) -> Dataset:
    """Return Fashion-MNIST (Xiao et al. 2017), grey, 60,000 to train and 10,000 held out, from `root`/FashionMNIST/raw.

    28x28, padded with zeros to 32x32; any other `image_size` is resized from that.
    Raises DataError if files are missing or damaged.
    """
    return _idx_dataset(FASHION_MNIST, root, download, image_size, limit, flip)


@DATASETS.register("cifar10")
def cifar10(
    *,
    root: str = "data",
    download: bool = True,
    image_size: ImageSize = 32,
    limit: PositiveInt | None = None,
    flip: bool = False,
) -> Dataset:
    """Return CIFAR-10 (Krizhevsky 2009), colour, 50,000 to train and 10,000 held out, from `root`/cifar-10-batches-py.

    32x32; any other `image_size` is resized from that (bicubic).
    Raises DataError if files are missing or damaged.
    """
    folder = Path(root).expanduser()
    files = fetch_cifar10(folder, download)

    def fill(writer: PackWriter) -> None:
        train, test, class_names = read_cifar10(folder, files)
        _write_resized(writer, train, test, image_size)
        writer.finish(class_names, [])

    pack = packed("cifar10", content_digest(folder, files), {"image_size": image_size}, fill)
    return _dataset("cifar10", pack, limit, flip)


@DATASETS.register("image_folder")
def image_folder(
    *,
    root: str = "data",
    image_size: ImageSize = 32,
    channels: Literal[1, 3] = 3,
    limit: PositiveInt | None = None,
    flip: bool = False,
) -> Dataset:
    """Return the images (png jpg jpeg bmp webp gif tif tiff) of the folder `root`, flat or with a folder per class.

    `train/` and `test/` (or `val/`) in it are the splits; otherwise a tenth is held out, chosen by a hash of each path.
    Images of any size and mode are converted as `conversion.to_pixels` says, and the notes count what was converted.
    Raises DataError if there is no such folder, if it holds no images, or if one cannot be decoded.
    """
    listing = list_folder(Path(root).expanduser())

    def fill(writer: PackWriter) -> None:
        pack_folder(listing, writer, image_size, channels)

    settings = {"image_size": image_size, "channels": channels}
    pack = packed("image_folder", content_digest(listing.root, listing.files), settings, fill)
    return _dataset("image_folder", pack, limit, flip)


def _idx_dataset(
    source: IdxSource, root: str, download: bool, image_size: int, limit: int | None, flip: bool
) -> Dataset:
    folder = Path(root).expanduser()
    files = fetch_idx(source, folder, download)

    def fill(writer: PackWriter) -> None:
        train, test = (_padded(split) for split in read_idx(source, files))
        _write_resized(writer, train, test, image_size)
        writer.finish(fashion_names() if source is FASHION_MNIST else TEN_DIGITS, [])

    pack = packed(source.name, content_digest(folder, files), {"image_size": image_size}, fill)
    return _dataset(source.name, pack, limit, flip)


def _padded(images: Images) -> Images:
    """Surround images of 28x28 with the two rows and columns of zeros that make them 32x32."""
    return replace(images, pixels=np.pad(images.pixels, ((0, 0), (0, 0), (2, 2), (2, 2))))


def _write_resized(writer: PackWriter, train: Images, held_out: Images, size: int) -> None:
    for name, images in (("train", train), ("held_out", held_out)):
        shape = (len(images), images.pixels.shape[1], size, size)
        writer.split(name, shape, _resized_blocks(images.pixels, size), images.labels)


def _resized_blocks(pixels: Pixels, size: int) -> Iterator[Pixels]:
    for start in range(0, len(pixels), 1000):
        yield resize_all(pixels[start : start + 1000], size)


def _dataset(name: str, pack: Pack, limit: int | None, flip: bool) -> Dataset:
    """Make the data set of a pack, of whose training images `limit` are kept: the first of a fixed random order."""
    train, notes = pack.train, pack.notes
    train_digest, held_out_digest = pack.digests
    if limit is not None and limit < len(train):
        # In the order of a class-sorted folder the first images would all be of one class.
        kept = torch.randperm(len(train), generator=stream(0, "limit"))[:limit].numpy()
        notes = (*notes, f"dataset.limit keeps {limit} of {len(train)} training images")
        train = Images(train.pixels[kept], None if train.labels is None else train.labels[kept])
        train_digest = train.digest()
    for array in (train.pixels, train.labels, pack.held_out.pixels, pack.held_out.labels):
        if array is not None:
            array.flags.writeable = False
    fingerprint = hashlib.sha256(f"{train_digest} {held_out_digest}".encode()).hexdigest()
    return Dataset(name, train, pack.held_out, pack.class_names, fingerprint, flip, notes)
