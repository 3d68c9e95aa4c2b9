"""MNIST, Fashion-MNIST and CIFAR-10 as they were published: their files, fetched where allowed, checked and read."""

import gzip
import hashlib
import io
import socket
import sys
import tarfile
import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

import numpy as np
from filelock import FileLock

from normlab.data.images import Images, Pixels
from normlab.errors import DataError

# torchvision takes a good part of a second to import, so only the functions that need it do.

NETWORK_TIMEOUT = 30  # seconds without an answer
FETCH_FAILURES = (OSError, RuntimeError, HTTPException, EOFError, tarfile.TarError, zlib.error)


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
CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_ADDRESS = f"https://www.cs.toronto.edu/~kriz/{CIFAR10_ARCHIVE}"


def fetch_idx(source: IdxSource, root: Path, download: bool) -> list[Path]:
    """Return the four files, plain or gzipped, after downloading what is missing if `download` allows it.

    Raises DataError, with the layout expected and the ways out, if some are still missing.
    """
    import torchvision

    original = {"mnist": torchvision.datasets.MNIST, "fashion_mnist": torchvision.datasets.FashionMNIST}[source.name]
    raw = root / source.folder / "raw"

    checksums = dict(original.resources)

    def missing() -> list[str]:
        # A gzipped file that is cut short, as an interrupted download leaves it, is as good as missing.
        return [name for name in source.files if not _is_plain_or_whole(raw / name, checksums[f"{name}.gz"])]

    failure = _fetch(root, missing, lambda: original(root, download=True)) if download and missing() else ""
    for name in (lacking := missing()):
        if _gzipped(raw / name).is_file() and not failure:
            raise _damaged(_gzipped(raw / name), "its md5 is wrong")
    if lacking:
        raise _lacking(raw, lacking, f"{source.folder}/raw/", source.address, download, failure)
    return [raw / name if (raw / name).is_file() else _gzipped(raw / name) for name in source.files]


def read_idx(source: IdxSource, files: Sequence[Path]) -> tuple[Images, Images]:
    """Return the training and the test split, pixels uint8 [n, 1, 28, 28]; raise DataError for a damaged file."""
    arrays = [_read_idx_file(path, md5) for path, md5 in zip(files, source.files.values(), strict=True)]
    splits: list[Images] = []
    for (pixels, labels), (path, _) in zip((arrays[:2], arrays[2:]), (files[:2], files[2:]), strict=True):
        if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
            raise _damaged(path, f"it holds {pixels.shape} pixels, its labels are {labels.shape}")
        splits.append(Images(pixels[:, None], labels.astype(np.int64)))
    return splits[0], splits[1]


def fetch_cifar10(root: Path, download: bool) -> list[Path]:
    """Return the files of the python version, after unpacking or downloading the archive if some are missing.

    Raises DataError, with the layout expected and the ways out, if some are still missing.
    """
    folder, names = root / CIFAR10_FOLDER, _cifar10_files()

    def missing() -> list[str]:
        return [name for name in names if not (folder / name).is_file()]

    fetchable = download or (root / CIFAR10_ARCHIVE).is_file()
    failure = _fetch(root, missing, lambda: _unpack_cifar10(root, download)) if fetchable and missing() else ""
    if lacking := missing():
        raise _lacking(folder, lacking, f"{CIFAR10_FOLDER}/", CIFAR10_ADDRESS, download, failure)
    return [folder / name for name in names]


def read_cifar10(root: Path, files: Sequence[Path]) -> tuple[Images, Images, tuple[str, ...]]:
    """Return both splits, pixels uint8 [n, 3, 32, 32], and the class names; raise DataError for a damaged file."""
    import torchvision

    for path, md5 in zip(files, _cifar10_files().values(), strict=True):
        if _md5(_bytes_of(path)) != md5:
            raise _damaged(path, "its md5 is wrong")
    splits = [torchvision.datasets.CIFAR10(root, train=train) for train in (True, False)]
    train, test = (Images(split.data.transpose(0, 3, 1, 2), np.array(split.targets, np.int64)) for split in splits)
    return train, test, tuple(splits[0].classes)


def fashion_names() -> tuple[str, ...]:
    """Return the names of the ten kinds of clothing."""
    import torchvision

    return tuple(torchvision.datasets.FashionMNIST.classes)


def _cifar10_files() -> dict[str, str]:
    import torchvision

    original = torchvision.datasets.CIFAR10
    meta = [[original.meta["filename"], original.meta["md5"]]]
    return {name: md5 for name, md5 in (*original.train_list, *original.test_list, *meta)}


def _unpack_cifar10(root: Path, download: bool) -> None:
    import torchvision

    original = torchvision.datasets.CIFAR10
    archive = root / CIFAR10_ARCHIVE
    # An archive that is whole is unpacked without the network, so that needs no permission to download.
    whole = archive.is_file() and _md5(_bytes_of(archive)) == original.tgz_md5
    if whole or download:
        original(root, download=True)


def _fetch(root: Path, missing: Callable[[], list[str]], download: Callable[[], object]) -> str:
    """Fetch under a lock, unless another process has done so by then; return why it failed, or nothing."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".normlab-download.lock"), _quiet(), _timeout():
            if missing():
                download()
    except FETCH_FAILURES as error:
        return " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__
    return ""


def _lacking(folder: Path, names: list[str], layout: str, address: str, download: bool, failure: str) -> DataError:
    problem = f"lacks {', '.join(names)}"
    if failure:
        problem += f", and fetching failed: {failure}"
    elif not download:
        problem += ", and dataset.download is false"
    remedy = (
        f"put the files of {address} there, set dataset.root (or NORMLAB_DATA) to a folder that holds {layout}, "
        "or use dataset=digits, which needs none"
    )
    return DataError(str(folder), problem, remedy)


def _gzipped(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def _is_plain_or_whole(path: Path, gzipped_md5: str) -> bool:
    return path.is_file() or (_gzipped(path).is_file() and _md5(_bytes_of(_gzipped(path))) == gzipped_md5)


def _read_idx_file(path: Path, md5: str | None) -> Pixels:
    """Return the array of an idx file: a magic number that tells the type and rank, big-endian sizes, then bytes."""
    content = _bytes_of(path)
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, str(error)) from error
    if md5 is not None and _md5(content) != md5:
        raise _damaged(path, "its md5 is wrong")
    rank = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    shape = tuple(int(size) for size in np.frombuffer(content[4 : 4 + 4 * rank], ">i4"))
    if rank == 0 or len(content) != 4 + 4 * rank + np.prod(shape):
        raise _damaged(path, f"its {len(content)} bytes are not those of an idx file")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror}", "make the file readable") from error


def _damaged(path: Path, how: str) -> DataError:
    return DataError(str(path), f"is damaged: {how}", "delete the file and run again, or bring it anew")


@contextmanager
def _quiet() -> Generator[None]:
    """Keep a library's talk off stdout, and off stderr where no person watches."""
    with redirect_stdout(io.StringIO()), redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        yield


@contextmanager
def _timeout() -> Generator[None]:
    # Without it a network that swallows packets, as behind some firewalls, would keep a job waiting for ever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
