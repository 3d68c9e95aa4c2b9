"""Files that are whole or absent: nobody ever reads half of one, whatever moment the process or the machine dies at."""

import errno
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from normlab.errors import ResourceError

PARTIAL = ".partial"  # the suffix of a file that is still being written, or that a killed process left behind

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` in a file in one step: before it the old file is there, after it the new one, on the disk.

    Raises ResourceError if it cannot be written; the old file is then untouched.
    """
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """Open a temporary file that takes the place of `path` when the block ends, and vanishes if the block fails.

    An OSError, in the block too, becomes a ResourceError that names `path`.
    """
    # Beside the target, since only within one file system a rename is atomic; with a name of its own, since two
    # processes may write the same shared file.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        _discard(partial)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: a rename survives a power cut only after that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> int:
    """Remove what killed writers left anywhere below a folder that nobody else is writing to; return the count."""
    strays = list(folder.rglob(f"*{PARTIAL}"))
    for stray in strays:
        _discard(stray)
    return len(strays)


def unwritable(path: Path, error: OSError) -> ResourceError:
    """Say that a file or folder cannot be written, why, and what would help."""
    reason = (error.strerror or str(error)).lower()
    if error.errno in _NO_ROOM:
        return ResourceError(
            str(path), f"cannot be written: {reason}{_room(path)}", "make room, then give the same command again"
        )
    return ResourceError(str(path), f"cannot be written: {reason}", "check the path and its permissions")


def free_disk(folder: Path) -> int:
    """Return how many bytes are free where a folder is, or would be made."""
    there = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    return shutil.disk_usage(there).free


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        # On a file system that has turned read-only, say; the failure that led here is the one to report.
        return


def _room(path: Path) -> str:
    try:
        return f" ({shutil.disk_usage(path.parent).free / 1e6:,.0f} MB free)"
    except OSError:
        return ""
