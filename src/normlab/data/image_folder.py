"""A folder of the user's own images, packed once or decoded on the way."""

from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image

from normlab.data.catalogue import DATASETS, WORKERS, ImageSize, Workers, from_pack, from_streams
from normlab.data.conversion import to_pixels
from normlab.data.decoding import Decoded, decode, pack_images
from normlab.data.folders import list_folder
from normlab.data.images import Dataset, Images
from normlab.data.packing import FORMAT, PackWriter, content_digest, packed
from normlab.data.pixels import Pixels, StreamedPixels
from normlab.settings import PositiveInt


@DATASETS.register("image_folder")
def image_folder(
    *,
    root: str = "data",
    image_size: ImageSize = 32,
    channels: Literal[1, 3] = 3,
    limit: PositiveInt | None = None,
    flip: bool = False,
    streamed: bool = False,
    workers: Workers = WORKERS,
) -> Dataset:
    """Return the images (png jpg jpeg bmp webp gif tif tiff) of the folder `root`, flat or with a folder per class.

    `train/` and `test/` (or `val/`) in it are the splits; otherwise a tenth is held out, chosen by a hash of each path.
    Images of any size and mode are converted as `conversion.to_pixels` says, and the notes count what was converted.
    They are decoded once and packed in the cache folder, or, if `streamed`, whenever they are shown, in `workers`
    threads: the same pixels, but no room on the disk, and a damaged file is met only when its turn comes.
    Raises DataError if there is no such folder, if it holds no images, or if one cannot be decoded.
    """
    listing = list_folder(Path(root).expanduser())
    digest = content_digest(listing.root, listing.files)
    if streamed:
        train, held_out = (
            Images(_streamed(listing.root, files, image_size, channels, workers), labels)
            for files, labels in listing.splits.values()
        )
        source = f"image_folder format {FORMAT} files {digest} size {image_size} channels {channels}"
        return from_streams("image_folder", train, held_out, listing.class_names, source, limit, flip, listing.notes)

    def fill(writer: PackWriter) -> None:
        read = partial(_read, listing.root, image_size, channels)
        shape = (channels, image_size, image_size)
        pack_images(writer, listing.splits, read, shape, listing.class_names, listing.notes)

    pack = packed("image_folder", digest, {"image_size": image_size, "channels": channels}, fill)
    return from_pack("image_folder", pack, limit, flip)


def _streamed(root: Path, files: tuple[Path, ...], size: int, channels: int, workers: int) -> StreamedPixels:
    def read(number: int) -> Pixels:
        return _read(root, size, channels, files[number]).pixels

    return StreamedPixels(len(files), (channels, size, size), read, workers)


def _read(root: Path, size: int, channels: int, file: Path) -> Decoded:
    def convert(image: Image.Image) -> Decoded:
        return Decoded(*to_pixels(image, size, channels))

    path = root / file
    return decode(str(path), lambda: path.open("rb"), convert)
