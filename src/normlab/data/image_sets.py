"""Images as they lie, to be scored: no splits, no labels, each in the size that it has."""

import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from normlab.data.arrays import KINDS, array_blocks, open_zip
from normlab.data.conversion import GREY_16_BIT, opaque
from normlab.data.decoding import Decoded, decode
from normlab.data.folders import EXTENSIONS, image_files
from normlab.data.packing import in_threads
from normlab.data.pixels import Pixels
from normlab.data.zipped import images_in
from normlab.errors import DataError

GREY = ("1", "L", "LA", "La", *GREY_16_BIT)


@dataclass(frozen=True)
class ImageSet:
    """So many images, grey (1 channel) or not (3); `read` yields each as uint8 [channels, h, w], grey repeated."""

    count: int
    channels: int
    read: Callable[[int], Iterator[Pixels]]

    def batches(self, size: int, channels: int) -> Iterator[Pixels]:
        """Yield uint8 [n, channels, h, w], n at most `size`; images beside each other that are equally large."""
        batch: list[Pixels] = []
        for pixels in self.read(channels):
            if batch and (len(batch) == size or pixels.shape != batch[0].shape):
                yield np.stack(batch)
                batch = []
            batch.append(pixels)
        if batch:
            yield np.stack(batch)


def open_image_set(path: Path) -> ImageSet:
    """Return the images of a folder, at any depth, of a .zip file of image files, or of arrays (.npy, .npz).

    Of an .npz file both splits count. Raises DataError if there are none, or if one turns out damaged.
    """
    if path.is_dir():
        files = [path / file for file in image_files(path)]
        return _of_files(path, {str(file): partial(file.open, "rb") for file in files})
    if not path.is_file() or path.suffix.lower() not in KINDS:
        remedy = f"give a folder of images ({' '.join(EXTENSIONS)}) or a file {', '.join(KINDS)}"
        raise DataError(str(path), "is no set of images" if path.exists() else "is not there", remedy)
    if path.suffix.lower() == ".zip":
        archive = open_zip(path)
        return _of_files(path, {f"{path}[{name}]": partial(_entry, archive, name) for name in images_in(archive)})
    blocks, count, channels = array_blocks(path)

    def read(wanted: int) -> Iterator[Pixels]:
        for block in blocks():
            for pixels in block:
                yield np.broadcast_to(pixels, (max(wanted, channels), *pixels.shape[1:]))

    return ImageSet(count, channels, read)


def _of_files(path: Path, files: dict[str, Callable[[], IO[bytes]]]) -> ImageSet:
    if not files:
        raise DataError(str(path), f"holds no images ({' '.join(EXTENSIONS)})", "name a folder or file that does")

    def is_grey(where: str) -> bool:
        return decode(where, files[where], _mode_of).done == ["grey"]

    def read(channels: int) -> Iterator[Pixels]:
        for decoded in in_threads(lambda where: decode(where, files[where], partial(_converted, channels)), files):
            yield decoded.pixels

    return ImageSet(len(files), 1 if all(in_threads(is_grey, files)) else 3, read)


def _mode_of(image: Image.Image) -> Decoded:
    return Decoded(np.empty(0, np.uint8), ["grey"] if image.mode in GREY else [])


def _converted(channels: int, image: Image.Image) -> Decoded:
    pixels = np.asarray(opaque(image, channels, []))
    return Decoded(pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1), [])


def _entry(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return io.BytesIO(archive.read(name))
