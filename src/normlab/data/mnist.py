"""MNIST, Fashion-MNIST and stacked MNIST: four files in the idx format, fetched where allowed, checked and read."""

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from normlab.data.catalogue import DATASETS, ImageSize, from_pack, write_resized
from normlab.data.digits import TEN_DIGITS
from normlab.data.downloads import download as download_file
from normlab.data.downloads import md5_of
from normlab.data.images import Dataset, Images
from normlab.data.originals import damaged, fetch, unreadable, ways_out
from normlab.data.packing import PackWriter, content_digest, packed
from normlab.data.pixels import Pixels
from normlab.settings import PositiveInt

# torchvision takes a good part of a second to import, so only the functions that need it do.


@dataclass(frozen=True)
class IdxSource:
    """A data set in the four files of MNIST: `files` gives the md5 of each, uncompressed, where it is known."""

    name: str
    folder: str
    address: str
    files: dict[str, str | None] = field(hash=False)


MNIST = IdxSource(
    name="mnist",
    folder="MNIST",
    address="https://ossci-datasets.s3.amazonaws.com/mnist/",
    files={
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
)
FASHION_MNIST = IdxSource(
    name="fashion_mnist",
    folder="FashionMNIST",
    address="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    files=dict.fromkeys(MNIST.files),
)


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


def fetch_idx(source: IdxSource, root: Path, allowed: bool) -> list[Path]:
    """Return the four files, plain or gzipped, after downloading what is missing if that is allowed.

    Raises DataError, with the layout expected and the ways out, if some are still missing.
    """
    import torchvision

    original = {"mnist": torchvision.datasets.MNIST, "fashion_mnist": torchvision.datasets.FashionMNIST}[source.name]
    raw = root / source.folder / "raw"
    checksums = dict(original.resources)

    def missing() -> list[str]:
        # A gzipped file that is cut short, as another program's interrupted download leaves it, is as good as missing.
        return [name for name in source.files if not _is_plain_or_whole(raw / name, checksums[f"{name}.gz"])]

    def bring() -> None:
        for name in missing():
            file = f"{name}.gz"
            download_file([f"{mirror}{file}" for mirror in original.mirrors], raw / file, checksums[file])

    if not allowed:
        for name in missing():
            if _gzipped(raw / name).is_file():
                raise damaged(_gzipped(raw / name), "its md5 is wrong")
    fetch(raw, root, missing, bring if allowed else None, ways_out(source.address, f"{source.folder}/raw/"))
    return [raw / name if (raw / name).is_file() else _gzipped(raw / name) for name in source.files]


def read_idx(source: IdxSource, files: Sequence[Path]) -> tuple[Images, Images]:
    """Return the training and the test split, pixels uint8 [n, 1, 28, 28]; raise DataError for a damaged file."""
    arrays = [_read_idx_file(path, md5) for path, md5 in zip(files, source.files.values(), strict=True)]
    splits: list[Images] = []
    for (pixels, labels), (path, _) in zip((arrays[:2], arrays[2:]), (files[:2], files[2:]), strict=True):
        if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
            raise damaged(path, f"it holds {pixels.shape} pixels, its labels are {labels.shape}")
        splits.append(Images(pixels[:, None], labels.astype(np.int64)))
    return splits[0], splits[1]


def _idx_dataset(
    source: IdxSource, root: str, download: bool, image_size: int, limit: int | None, flip: bool
) -> Dataset:
    folder = Path(root).expanduser()
    files = fetch_idx(source, folder, download)

    def fill(writer: PackWriter) -> None:
        train, test = (padded(split) for split in read_idx(source, files))
        write_resized(writer, train, test, image_size)
        writer.finish(_fashion_names() if source is FASHION_MNIST else TEN_DIGITS, [])

    pack = packed(source.name, content_digest(folder, files), {"image_size": image_size}, fill)
    return from_pack(source.name, pack, limit, flip)


def padded(images: Images) -> Images:
    """Surround images of 28x28 with the two rows and columns of zeros that make them 32x32."""
    return replace(images, pixels=np.pad(images.pixels[:], ((0, 0), (0, 0), (2, 2), (2, 2))))


def _fashion_names() -> tuple[str, ...]:
    import torchvision

    return tuple(torchvision.datasets.FashionMNIST.classes)


def _gzipped(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def _is_plain_or_whole(path: Path, gzipped_md5: str) -> bool:
    try:
        return path.is_file() or (_gzipped(path).is_file() and md5_of(_gzipped(path)) == gzipped_md5)
    except OSError as error:
        raise unreadable(_gzipped(path), error) from error


def _read_idx_file(path: Path, md5: str | None) -> Pixels:
    """Return the array of an idx file: a magic number that tells the type and rank, big-endian sizes, then bytes."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise damaged(path, str(error)) from error
    if md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise damaged(path, "its md5 is wrong")
    rank = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    shape = tuple(int(size) for size in np.frombuffer(content[4 : 4 + 4 * rank], ">i4"))
    if rank == 0 or len(content) != 4 + 4 * rank + np.prod(shape):
        raise damaged(path, f"its {len(content)} bytes are not those of an idx file")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
