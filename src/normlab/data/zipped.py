"""Zip files of images, read where they are: nothing is unpacked to the disk."""

import io
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from normlab.data.conversion import to_pixels
from normlab.data.decoding import Decoded, decode, pack_images
from normlab.data.folders import divide, is_hidden, is_image
from normlab.data.packing import PackWriter
from normlab.errors import DataError

LARGEST_IMAGE = 2**28  # bytes of one file, unpacked
LARGEST_RATIO = 200  # of unpacked to packed bytes, for entries above a gigabyte; deflate reaches a thousand on zeros
ENCRYPTED = 0x1


def pack_zip(path: Path, archive: zipfile.ZipFile, writer: PackWriter, size: int, channels: int) -> None:
    """Decode the images of a zip file, open and sound, into a pack, divided as those of a folder are.

    Folders that stand around everything count for nothing. Raises DataError if there are no images or if one cannot be
    decoded.
    """
    entries = {_inner(name): name for name in images_in(archive)}
    depth = _common_depth(entries)
    names = {path / PurePosixPath(*inner.parts[depth:]): name for inner, name in entries.items()}
    listing = divide(path, sorted((file.relative_to(path) for file in names), key=lambda file: file.as_posix()))

    def read(file: Path) -> Decoded:
        name = names[listing.root / file]
        return decode(f"{path}[{name}]", lambda: io.BytesIO(archive.read(name)), partial(_convert, size, channels))

    pack_images(writer, listing.splits, read, (channels, size, size), listing.class_names, listing.notes)


def require_sound(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise DataError for an entry that nobody packs in good faith: encrypted, a bomb, a name that leads elsewhere."""
    for entry in archive.infolist():
        where = f"{path}[{entry.filename!r}]"
        inner = _inner(entry.filename)
        if inner.is_absolute() or ".." in inner.parts or ":" in entry.filename.partition("/")[0]:
            raise DataError(where, "leads out of the archive", "pack the files anew, with plain relative names")
        if entry.flag_bits & ENCRYPTED:
            raise DataError(where, "is encrypted", "pack the files anew without a password")
        if _is_bomb(entry):
            sizes = f"{entry.compress_size:,} bytes that unpack to {entry.file_size:,}"
            raise DataError(where, f"has {sizes}, which no image has", "take the entry out of the archive")


def _is_bomb(entry: zipfile.ZipInfo) -> bool:
    if is_image(_inner(entry.filename).name):
        return entry.file_size > LARGEST_IMAGE
    return entry.file_size > max(2**30, LARGEST_RATIO * entry.compress_size)


def images_in(archive: zipfile.ZipFile) -> list[str]:
    """Return the names of the entries that are images, but for hidden folders."""
    return [
        name
        for name in archive.namelist()
        if is_image(_inner(name).name) and not any(is_hidden(folder) for folder in _inner(name).parts[:-1])
    ]


def _inner(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace("\\", "/"))


def _common_depth(entries: Iterable[PurePosixPath]) -> int:
    """Return how many folders stand around all the entries, but for a folder of a split."""
    folders = [entry.parts[:-1] for entry in entries]
    depth = 0
    for level in zip(*folders, strict=False):
        if len(set(level)) > 1 or level[0] == "train":
            break
        depth += 1
    return depth


def _convert(size: int, channels: int, image: Image.Image) -> Decoded:
    return Decoded(*to_pixels(image, size, channels))
