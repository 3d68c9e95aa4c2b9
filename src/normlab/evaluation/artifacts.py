"""Files of tensors that carry their own digest in their name: fitted classifiers and the statistics of real images."""

import hashlib
import json
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor

from normlab.data.packing import cache_folder
from normlab.errors import DataError, ResourceError
from normlab.outputs.atomic import write_atomically

DIGEST_LENGTH = 12
ABOUT = "normlab"


class Artifact(NamedTuple):
    """Tensors by name, the text that stands beside them, and the first 12 hexadecimal digits of the file's sha256."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    digest: str


def find_artifact(folder: Path, key: str) -> Path | None:
    """Return the file `<key>-<digest>.safetensors` of a folder, if there is one."""
    return next(iter(sorted(folder.glob(f"{key}-{'?' * DIGEST_LENGTH}.safetensors"))), None)


def write_artifact(folder: Path, key: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write `<key>-<digest>.safetensors`, whole or not at all; raise ResourceError if it cannot be written."""
    # One text in a fixed order: safetensors writes several in any order, and equal content must have equal digests.
    content = safetensors.torch.save(tensors, {ABOUT: json.dumps(metadata, sort_keys=True)})
    path = folder / f"{key}-{_digest(content)}.safetensors"
    write_atomically(path, content)
    return path


def read_artifact(path: Path, remedy: str = "give a file that normlab wrote") -> Artifact:
    """Read a file of tensors; raise DataError if it is none, or damaged where its name ends in a digest."""
    try:
        content = path.read_bytes()
        digest = _digest(content)
        if re.search(rf"-[0-9a-f]{{{DIGEST_LENGTH}}}$", path.stem) and not path.stem.endswith(digest):
            raise DataError(str(path), f"is damaged: the digest of its content is {digest}", remedy)
        with safe_open(str(path), framework="pt") as file:
            metadata: dict[str, str] = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
        return Artifact(safetensors.torch.load(content), metadata, digest)
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror or error}", "give a file that can be") from error
    except (SafetensorError, ValueError) as error:
        raise DataError(str(path), f"cannot be read as safetensors: {error}", remedy) from error


def cached_artifact(kind: str, key: str, make: Callable[[Path], Path]) -> Artifact:
    """Return the artifact of that key in the cache folder; let `make` write it if it is not there or is damaged.

    Of several processes one makes it while the others wait. Raises ResourceError if the cache cannot be written.
    """
    folder = cache_folder() / kind
    with _lock(folder, key):
        found = find_artifact(folder, key)
        if found is not None:
            try:
                return read_artifact(found)
            except DataError:
                found.unlink()  # it is made again
        return read_artifact(make(folder))


@contextmanager
def _lock(folder: Path, key: str) -> Generator[None]:
    lock = FileLock(folder / f"{key}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        problem = f"cannot be written: {error.strerror or error}"
        remedy = "free or mend it, or set NORMLAB_CACHE to a folder that you may write to"
        raise ResourceError(str(folder), problem, remedy) from error
    try:
        yield
    finally:
        lock.release()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]
