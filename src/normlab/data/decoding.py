"""Image files of any format to pixels, one at a time or a whole data set into a pack."""

import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple, NoReturn, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from normlab.data.conversion import UnusableImage
from normlab.data.packing import PackWriter, in_threads
from normlab.data.pixels import Labels, Pixels
from normlab.errors import Complaint, DataError, NormlabError

MOST_COMPLAINTS = 10
# What Pillow and zipfile raise on damaged files, depending on their format.
UNDECODABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)

File = TypeVar("File")


class Decoded(NamedTuple):
    """An image as uint8 [c, h, w], and what had to be done to it."""

    pixels: Pixels
    done: list[str]


def decode(where: str, open_file: Callable[[], IO[bytes]], convert: Callable[[Image.Image], Decoded]) -> Decoded:
    """Open, decode and convert one image; raise DataError that names it by `where` if that cannot be done."""
    try:
        with open_file() as file, Image.open(file) as image:
            image.load()
            return convert(image)
    except UnusableImage as error:
        raise DataError(where, str(error), "convert the file to 8 bits, or take it away") from error
    except UNDECODABLE as error:
        raise DataError(where, f"cannot be decoded: {_reason(error)}", "mend the file, or take it away") from error


def pack_images(
    writer: PackWriter,
    splits: Mapping[str, tuple[Sequence[File], Labels | None]],
    read: Callable[[File], Decoded],
    image_shape: tuple[int, int, int],
    class_names: Sequence[str] | None,
    notes: Sequence[str] = (),
) -> None:
    """Decode every file of both splits into a pack, and finish it; raise DataError that names those that cannot be."""
    counts: Counter[str] = Counter()
    complaints: list[Complaint] = []
    total = sum(len(files) for files, _ in splits.values())

    def attempt(file: File) -> Decoded | list[Complaint]:
        try:
            return read(file)
        except NormlabError as error:
            return error.complaints

    def rows(files: Sequence[File], bar: "tqdm[NoReturn]") -> Iterator[Pixels]:
        for result in in_threads(attempt, files):
            bar.update()
            if isinstance(result, Decoded):
                counts.update(result.done)
                yield result.pixels
            else:
                # Going on finds all the damaged files at once; what is packed until then is thrown away.
                complaints.extend(result)
                yield np.zeros(image_shape, np.uint8)

    with tqdm(total=total, desc="decoding", unit=" images", disable=None) as bar:
        for name, (files, labels) in splits.items():
            writer.split(name, (len(files), *image_shape), rows(files, bar), labels)
    if complaints:
        raise DataError.of(_shortened(complaints))
    converted = [f"{count} of {total} images: {what}" for what, count in sorted(counts.items())]
    writer.finish(class_names, [*notes, *converted])


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image, or is damaged"
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def _shortened(complaints: list[Complaint]) -> list[Complaint]:
    shown, hidden = complaints[:MOST_COMPLAINTS], len(complaints) - MOST_COMPLAINTS
    if hidden > 0:
        shown.append(
            Complaint("dataset.root", f"{hidden} more files cannot be decoded", "mend them, or take them away")
        )
    return shown
