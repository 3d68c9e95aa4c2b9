"""Packed data sets: images are decoded once, into plain arrays that every later run maps into memory."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from normlab.data.images import Images
from normlab.data.pixels import Labels, Pixels
from normlab.errors import DataError, ResourceError
from normlab.outputs.atomic import sync_folder
from normlab.outputs.cache import cache_folder

FORMAT = 1  # raise it when the same source would be packed differently
LARGEST_READ = 2**30  # bytes of a split that are held against their digest at every start
MANIFEST = "manifest.json"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pack:
    """A packed data set: its splits, the digest of each, the names of its classes, and what packing has to say."""

    train: Images
    held_out: Images
    digests: tuple[str, str]
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...]


class PackWriter:
    """The files of a pack as they are written, one split after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sizes: dict[str, int] = {}
        self.digests: dict[str, str] = {}

    def split(self, name: str, shape: tuple[int, ...], rows: Iterable[Pixels], labels: Labels | None) -> None:
        """Write a split; `rows` are uint8 arrays that give `shape`, [n, c, h, w], when laid one after the other.

        Bytes are appended rather than mapped, since a full disk kills a process that writes through a map.
        """
        written = 0
        with self._file(f"{name}_pixels.npy") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for row in _read_from_source(rows):
                block = np.ascontiguousarray(row)
                file.write(block.data)
                written += block.nbytes
        assert written == np.prod(shape), f"{written} bytes for {shape}"
        if labels is not None:
            with self._file(f"{name}_labels.npy") as file:
                np.save(file, labels.astype("<i8"))
        self.digests[name] = _open_split(self.folder, name).digest()

    @contextmanager
    def _file(self, name: str) -> Generator[BinaryIO]:
        with (self.folder / name).open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        self.sizes[name] = (self.folder / name).stat().st_size

    def finish(self, class_names: Sequence[str] | None, notes: Sequence[str]) -> None:
        """Write the manifest, which makes the folder a pack."""
        manifest = {"sizes": self.sizes, "digests": self.digests, "class_names": class_names, "notes": notes}
        with (self.folder / MANIFEST).open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())


def packed(name: str, source: str, settings: Mapping[str, Any], fill: Callable[[PackWriter], None]) -> Pack:
    """Return the pack of a data set; let `fill` write and finish it if it is not there or is damaged.

    source: a digest of the bytes that the images come from.  settings: what else decides their pixels.
    A pack appears under its name only when it is whole, and of several processes one fills it while the others wait.
    Raises ResourceError if the cache folder cannot be written.
    """
    key = hashlib.sha256(json.dumps([FORMAT, source, settings], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "datasets" / f"{name}-{key}"
    if _is_intact(folder):
        return _open(folder)
    with _writing_to_cache():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_intact(folder):
                _write(folder, fill)
    return _open(folder)


def content_digest(root: Path, files: Sequence[Path]) -> str:
    """Return a digest of the paths and bytes of files under `root`; their bytes are read only when something changed.

    A change shows in the listing of paths, sizes and times, whose digest is remembered in the cache folder.
    """
    listing = hashlib.sha256(os.fsencode(root.resolve()))
    for file in files:
        with _reading(file):
            status = file.stat()
        name = file.relative_to(root).as_posix()
        times = f"\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\n"
        listing.update(os.fsencode(name) + times.encode())
    remembered = cache_folder() / "listings" / listing.hexdigest()
    with suppress(OSError):
        if len(known := remembered.read_text()) == 64:
            return known
    content = hashlib.sha256()
    digests = tqdm(in_threads(_digest_of_file, files), "reading", len(files), unit=" files", disable=None, leave=False)
    for file, digest in zip(files, digests, strict=True):
        content.update(os.fsencode(file.relative_to(root).as_posix()) + f"\0{digest}\n".encode())
    with suppress(OSError):  # a cache that can only be read still serves the packs in it
        remembered.parent.mkdir(parents=True, exist_ok=True)
        partial = remembered.with_name(f"{remembered.name}.{os.getpid()}.partial")
        partial.write_text(content.hexdigest())
        partial.replace(remembered)
    return content.hexdigest()


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield the function's results in the order of the items, working ahead by no more than a thousand of them."""
    with ThreadPoolExecutor() as pool:
        for block in _in_blocks(items, 1024):
            # A thread takes several items at a time: small files cost less than handing them out singly would.
            for results in pool.map(lambda part: [function(item) for item in part], _in_blocks(block, 32)):
                yield from results


def _in_blocks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while block := list(islice(remaining, size)):
        yield block


def _digest_of_file(path: Path) -> str:
    with _reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_intact(folder: Path) -> bool:
    """Return whether a pack is whole and, unless it is too large to read through at every start, what was written."""
    if not _is_whole(folder):
        return False
    try:
        pack = _open(folder)
        splits = zip((pack.train, pack.held_out), pack.digests, strict=True)
        return all(split.pixels.nbytes > LARGEST_READ or split.digest() == digest for split, digest in splits)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sizes"]
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _write(folder: Path, fill: Callable[[PackWriter], None]) -> None:
    # The lock makes this process the only writer, so a fixed name serves, and what a killed one left is cleared away.
    partial = folder.with_name(f"{folder.name}.partial")
    for leftover in (partial, folder):
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir()
    try:
        fill(PackWriter(partial))
        assert _is_whole(partial), "the pack was not finished"
        sync_folder(partial)  # so that not even a power cut shows a pack without its files
        partial.replace(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _open(folder: Path) -> Pack:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    digests, names = manifest["digests"], manifest["class_names"]
    return Pack(
        train=_open_split(folder, "train"),
        held_out=_open_split(folder, "held_out"),
        digests=(digests["train"], digests["held_out"]),
        class_names=None if names is None else tuple(names),
        notes=tuple(manifest["notes"]),
    )


def _open_split(folder: Path, name: str) -> Images:
    labels = folder / f"{name}_labels.npy"
    pixels = np.load(folder / f"{name}_pixels.npy", mmap_mode="r")
    return Images(pixels, np.load(labels, mmap_mode="r") if labels.exists() else None)


@contextmanager
def _reading(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror}", "mend the file, or take it away") from error


def _read_from_source(rows: Iterable[Pixels]) -> Iterator[Pixels]:
    """Tell what fails in reading a source from what fails in writing its pack, which goes on at the same time."""
    try:
        yield from rows
    except OSError as error:
        source = str(error.filename or "dataset.root")
        raise DataError(source, f"cannot be read: {error.strerror or error}", "mend the disk or the file") from error


@contextmanager
def _writing_to_cache() -> Generator[None]:
    try:
        yield
    except OSError as error:
        problem = f"cannot be written: {error.strerror or error}"
        remedy = "free or mend it, or set NORMLAB_CACHE to a folder with space that you may write to"
        raise ResourceError(str(cache_folder()), problem, remedy) from error
