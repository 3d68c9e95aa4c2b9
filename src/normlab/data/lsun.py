"""LSUN bedrooms: three million photographs in a database of LMDB, decoded on the way."""

import importlib
import importlib.util
import io
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from normlab.data.catalogue import DATASETS, WORKERS, ImageSize, Workers, from_streams
from normlab.data.conversion import to_pixels
from normlab.data.decoding import Decoded, decode
from normlab.data.images import Dataset, Images
from normlab.data.originals import damaged
from normlab.data.packing import FORMAT, cache_folder, content_digest
from normlab.data.pixels import Pixels, StreamedPixels
from normlab.errors import DataError, ResourceError
from normlab.outputs.atomic import write_atomically
from normlab.settings import PositiveInt

COUNTS = {"bedroom_train_lmdb": 3_033_042, "bedroom_val_lmdb": 300}
REMEDY = (
    "fetch http://dl.yf.io/lsun/scenes/{name}.zip (the training part has 43 GB), unpack it there, or set dataset.root "
    "to the folder that holds {name}/; dataset=image_folder dataset.streamed=true takes any folder of images"
)

Keys = npt.NDArray[np.bytes_]


@DATASETS.register("lsun_bedroom")
def lsun_bedroom(
    *,
    root: str = "data",
    image_size: ImageSize = 64,
    limit: PositiveInt | None = None,
    flip: bool = False,
    workers: Workers = WORKERS,
) -> Dataset:
    """Return LSUN bedrooms (Yu et al. 2015), colour, 3,033,042 to train and 300 held out, from the folder `root`.

    The official parts: all of bedroom_train_lmdb is trained on, all of bedroom_val_lmdb held out. No labels. The
    shorter side, of 256 pixels, is resized to `image_size` (bicubic, antialiased) and the centre square cut out. Images
    are decoded whenever they are shown, in `workers` threads, and a damaged one is met only when its turn comes.
    Needs the package lmdb. Raises DataError if that or a part is missing, cut short or of another size.
    """
    if importlib.util.find_spec("lmdb") is None:
        raise DataError("dataset", "lsun_bedroom needs the package lmdb", "run: pip install 'normlab[lsun]'")
    folder = Path(root).expanduser()
    for name in COUNTS:
        _require_whole(folder / name)
    digests = [content_digest(folder / name, [folder / name / "data.mdb"]) for name in COUNTS]
    train, held_out = (
        _streamed(folder / name, digest, image_size, workers) for name, digest in zip(COUNTS, digests, strict=True)
    )
    source = f"lsun_bedroom format {FORMAT} files {' '.join(digests)} size {image_size}"
    return from_streams("lsun_bedroom", train, held_out, None, source, limit, flip)


@lru_cache
def _open(path: str) -> Any:
    """Return the database in a folder, read-only; a process may open each only once."""
    lmdb: Any = importlib.import_module("lmdb")
    try:
        return lmdb.open(path, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise damaged(Path(path, "data.mdb"), str(error)) from error


def _require_whole(folder: Path) -> None:
    """Raise DataError unless a folder holds a database that is as long and as full as it should be."""
    file = folder / "data.mdb"
    if not file.is_file():
        raise DataError(str(folder), "lacks data.mdb", REMEDY.format(name=folder.name))
    database = _open(str(folder.resolve()))
    # To read behind the end of a mapped file is to be killed, so this comes before anything is read.
    length, needed = file.stat().st_size, (database.info()["last_pgno"] + 1) * database.stat()["psize"]
    if length < needed:
        raise damaged(file, f"it has {length:,} of {needed:,} bytes, as a download has that was cut off")
    entries, expected = database.stat()["entries"], COUNTS[folder.name]
    if entries != expected:
        raise DataError(str(file), f"holds {entries:,} of {expected:,} images", REMEDY.format(name=folder.name))


def _streamed(folder: Path, digest: str, size: int, workers: int) -> Images:
    database, keys = _open(str(folder.resolve())), _keys(folder, digest)

    def read(number: int) -> Pixels:
        return _read(database, folder / "data.mdb", keys[number], size)

    return Images(StreamedPixels(len(keys), (3, size, size), read, workers), None)


def _keys(folder: Path, digest: str) -> Keys:
    """Return the keys of a database in its own order, which is sorted; they are kept in the cache folder.

    They lie scattered over the whole file, so that a slow disk takes minutes to find three million of them.
    """
    kept = cache_folder() / "listings" / f"{digest}.npy"
    with suppress(OSError, ValueError, EOFError):
        if len(keys := np.load(kept, allow_pickle=False)) == COUNTS[folder.name]:
            return keys
    with _open(str(folder.resolve())).begin() as transaction:
        keys = np.array(list(transaction.cursor().iternext(values=False)))
    content = io.BytesIO()
    np.save(content, keys)
    with suppress(OSError, ResourceError):  # a cache that can only be read still serves
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, content.getvalue())
    return keys


def _read(database: Any, file: Path, key: bytes, size: int) -> Pixels:
    with database.begin() as transaction:
        content: bytes = transaction.get(bytes(key)) or b""

    def convert(image: Image.Image) -> Decoded:
        return Decoded(*to_pixels(image, size, channels=3))

    return decode(f"{file}[{key.decode(errors='replace')}]", lambda: io.BytesIO(content), convert).pixels
