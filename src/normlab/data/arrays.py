"""Images that somebody has as an array (.npy, .npz) or packed together (.zip)."""

import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from normlab.data.catalogue import DATASETS, ImageSize, from_pack
from normlab.data.conversion import resize_all
from normlab.data.folders import MOST_HELD_OUT
from normlab.data.images import Dataset
from normlab.data.originals import damaged
from normlab.data.packing import PackWriter, content_digest, packed
from normlab.data.pixels import Labels, Pixels
from normlab.data.zipped import pack_zip, require_sound
from normlab.errors import DataError
from normlab.randomness import stream
from normlab.settings import PositiveInt

# What images and labels may be called in an .npz file: of both splits, or of all images.
NAMES = (
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("images", "labels"),
    ("pixels", "labels"),
    ("x", "y"),
    ("arr_0", "arr_1"),
)
KINDS = (".npy", ".npz", ".zip")
BLOCK = 1000
UNREADABLE = (
    ValueError,
    OverflowError,
    EOFError,
    SyntaxError,
    MemoryError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
WAY_OUT = f"set dataset.root to a file ({' '.join(KINDS)}); dataset=image_folder takes a folder"

SLACK = 1e-3  # beyond black or white, for what a resampling filter or float16 leaves
Array = npt.NDArray[Any]


@DATASETS.register("arrays")
def arrays(
    *,
    root: str = "data",
    image_size: ImageSize = 32,
    channels: Literal[1, 3] | None = None,
    limit: PositiveInt | None = None,
    flip: bool = False,
) -> Dataset:
    """Return the images of one file, `root`: an array (.npy, .npz) or packed image files (.zip).

    An array is [n, h, w], [n, h, w, c] or [n, c, h, w] with 1 or 3 channels, of uint8 or of floats from 0 to 1, from -1
    to 1 or from 0 to 255. An .npz file calls it `images`, `pixels` or `x`, and has `labels` or `y` if it has any; with
    train_images and test_images (or x_train and x_test) these are the splits. A .zip file is read as a folder is, with
    `channels` 3 unless it says 1. Otherwise a fixed tenth is held out. The shorter side is resized to `image_size`
    (bicubic, antialiased) and the centre square cut out. Python objects (pickles) are never loaded.
    Raises DataError if there is no such file, if it is damaged, or if its values cannot be pixels.
    """
    path = Path(root).expanduser()
    _require_file(path)
    digest = content_digest(path.parent, [path])

    def fill(writer: PackWriter) -> None:
        if path.suffix.lower() == ".zip":
            with open_zip(path) as archive:
                pack_zip(path, archive, writer, image_size, channels or 3)
        else:
            _pack_arrays(path, writer, image_size, channels)

    pack = packed("arrays", digest, {"image_size": image_size, "channels": channels}, fill)
    return from_pack("arrays", pack, limit, flip)


class Part(NamedTuple):
    """Images [n, c, h, w] of any type, mapped or in memory, and their labels as the file has them."""

    where: str
    images: Array
    labels: Array | None


class Scale(NamedTuple):
    """What black and white are among floating-point pixels."""

    black: float
    white: float


# Bytes as floats hardly stay below 16, whereas values from 0 to 3 have been standardised in some way.
SCALES = (Scale(0, 1), Scale(-1, 1), Scale(0, 255))


def _require_file(path: Path) -> None:
    if not path.exists():
        raise DataError("dataset.root", f"there is no file '{path}'", WAY_OUT)
    if not path.is_file() or path.suffix.lower() not in KINDS:
        raise DataError("dataset.root", f"'{path}' is no {', '.join(KINDS[:-1])} or {KINDS[-1]} file", WAY_OUT)


@contextmanager
def _reading(path: Path) -> Generator[None]:
    """Tell of what numpy and zipfile raise when they open a damaged file in one line."""
    try:
        yield
    except UNREADABLE as error:
        if "pickle" in str(error) or "Python objects" in str(error):
            problem = "holds Python objects (a pickle), which are never loaded since they can run code"
            raise DataError(str(path), problem, "save it as an array of uint8 or float numbers") from error
        raise damaged(path, " ".join(str(error).split()) or type(error).__name__) from error


def open_zip(path: Path) -> zipfile.ZipFile:
    """Return an archive without suspicious entries; raise DataError if it has some or is none."""
    with _reading(path):
        archive = zipfile.ZipFile(path)
    require_sound(path, archive)
    return archive


def array_blocks(path: Path) -> tuple[Callable[[], Iterator[Pixels]], int, int]:
    """Return what yields the images of a file of arrays in blocks, uint8 [n, c, h, w], their number and channels."""
    with _reading(path):
        parts, _ = _load(path)
    scale, count = _scale(parts), sum(len(part.images) for part in parts)
    if count == 0:
        raise DataError(str(path), "holds no images", "give a file that does")

    def blocks() -> Iterator[Pixels]:
        for part in parts:
            for start in range(0, len(part.images), BLOCK):
                block = part.images[start : start + BLOCK]
                yield block if scale is None else _to_bytes(block, scale)

    return blocks, count, max(int(part.images.shape[1]) for part in parts)


def _pack_arrays(path: Path, writer: PackWriter, size: int, channels: int | None) -> None:
    with _reading(path):
        parts, class_names = _load(path)
    channels = channels or int(parts[0].images.shape[1])
    for where, images, _ in parts:
        if len(images) < (least := 3 - len(parts)):  # of one array some are held out
            raise DataError(where, f"holds {len(images)} images", f"give at least {least}")
        if images.shape[1] != channels:
            remedy = "give all images the same number of channels, and dataset.channels that number or null"
            raise DataError(where, f"has {images.shape[1]} channels, not {channels}", remedy)
    scale = _scale(parts)
    labels, names = _classes(parts, class_names)
    numbers = [np.arange(len(part.images)) for part in parts] if len(parts) == 2 else _divide(len(parts[0].images))
    for split, which, part in zip(("train", "held_out"), numbers, (parts[0], parts[-1]), strict=True):
        own = None if labels is None else labels[part.where][which]
        writer.split(split, (len(which), channels, size, size), _rows(part.images, which, scale, size), own)
    notes = [] if scale is None else [f"floats are taken to go from {scale.black:g} (black) to {scale.white:g} (white)"]
    writer.finish(names, notes)


def _rows(images: Array, numbers: Labels, scale: Scale | None, size: int) -> Iterator[Pixels]:
    for start in range(0, len(numbers), BLOCK):
        block = images[numbers[start : start + BLOCK]]
        yield resize_all(block if scale is None else _to_bytes(block, scale), size)


def _to_bytes(floats: Array, scale: Scale) -> Pixels:
    """Return floats in a range as 0..255, rounded to the nearest."""
    shares = (floats.astype(np.float64) - scale.black) / (scale.white - scale.black)
    return np.rint(shares.clip(0, 1) * 255).astype(np.uint8)


def _divide(count: int) -> list[Labels]:
    """Return which images are trained on and which tenth, at least one and at most 10,000, is held out."""
    order = torch.randperm(count, generator=stream(0, "held_out")).numpy()
    held_out = max(1, min(count // 10, MOST_HELD_OUT))
    return [np.sort(order[held_out:]), np.sort(order[:held_out])]


def _load(path: Path) -> tuple[list[Part], Array | None]:
    """Return one part, or that to train on and that held out, and the names of the classes if the file has them."""
    if path.suffix.lower() == ".npy":
        return [_part(str(path), np.load(path, mmap_mode="r", allow_pickle=False), None)], None
    with open_zip(path), np.load(path, allow_pickle=False) as content:
        present = set(content.files)
        for names in NAMES:
            pairs = [names[start : start + 2] for start in range(0, len(names), 2)]
            if not {images for images, _ in pairs} <= present:
                continue
            labelled = all(labels in present for _, labels in pairs)
            parts = [
                _part(f"{path}[{images}]", content[images], content[labels] if labelled else None)
                for images, labels in pairs
            ]
            return parts, content["class_names"] if "class_names" in present else None
    problem = f"holds {', '.join(sorted(present)) or 'nothing'}, and none of that is known as images"
    raise DataError(str(path), problem, f"name the arrays {' or '.join('/'.join(names) for names in NAMES)}")


def _classes(parts: list[Part], class_names: Array | None) -> tuple[dict[str, Labels] | None, list[str] | None]:
    """Return the labels of each part, counted from 0, and the name of each class: as given, else its number."""
    given = [part.labels for part in parts if part.labels is not None]
    if not given:
        return None, None
    values = np.unique(np.concatenate(given))
    labels = {where: np.searchsorted(values, own).astype(np.int64) for where, _, own in parts if own is not None}
    if class_names is not None and class_names.ndim == 1 and values[0] >= 0 and values[-1] < len(class_names):
        return labels, [str(class_names[value]) for value in values]
    return labels, [str(value) for value in values]


def _scale(parts: list[Part]) -> Scale | None:
    """Return what black and white are, from all values of the file; None if they are bytes already.

    Raises DataError for other types, for NaN and infinities, and for values that fit none of the usual ranges.
    """
    if all(part.images.dtype == np.uint8 for part in parts):
        return None
    least, most = np.inf, -np.inf
    for where, images, _ in parts:
        if images.dtype.kind != "f":
            remedy = "give uint8, or floats from 0 to 1, from -1 to 1 or from 0 to 255"
            raise DataError(where, f"holds numbers of type {images.dtype}", remedy)
        for start in range(0, len(images), BLOCK):
            block = images[start : start + BLOCK]
            finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
            if not finite.all():
                first = start + int(finite.argmin())
                raise DataError(f"{where}[{first}]", "holds NaN or infinity", "mend the image, or take it out")
            least, most = min(least, float(block.min())), max(most, float(block.max()))
    for scale in SCALES:
        if scale.black - SLACK <= least and most <= scale.white + SLACK and most > scale.white / 16:
            return scale
    problem = f"holds values from {least:g} to {most:g}"
    raise DataError(parts[0].where, problem, "scale them to 0..1, -1..1 or 0..255; nothing else tells black from white")


def _part(where: str, images: Array, labels: Array | None) -> Part:
    images = _channels_first(where, images)
    if labels is not None:
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            problem = f"has {len(images)} images, but labels {labels.dtype} of shape {list(labels.shape)}"
            raise DataError(where, problem, "give a whole number for each image, or no labels")
    return Part(where, images, labels)


def _channels_first(where: str, images: Array) -> Array:
    """Return images as [n, c, h, w]; raise DataError if their shape leaves a choice, or none."""
    shape = list(images.shape)
    if images.ndim == 3 and 0 not in shape[1:]:
        return images[:, None]
    if images.ndim == 4 and 0 not in shape[1:]:
        last, first = shape[3] in (1, 3), shape[1] in (1, 3)
        if first and last:
            problem = f"has the shape {shape}, whose channels may stand first or last"
            raise DataError(where, problem, "save the images as files and use dataset=image_folder")
        if last:
            return images.transpose(0, 3, 1, 2)
        if first:
            return images
    remedy = "give [n, h, w], [n, h, w, c] or [n, c, h, w] with 1 or 3 channels"
    raise DataError(where, f"has the shape {shape}", remedy)
