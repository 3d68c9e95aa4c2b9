"""Files from the network: resumed where they were cut off, checked against their md5, whole or absent."""

import hashlib
import logging
import os
import shutil
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO, Literal, NoReturn, cast
from urllib.error import HTTPError

from filelock import FileLock, Timeout
from tqdm import tqdm

from normlab.errors import ResourceError
from normlab.outputs.atomic import sync_folder, unwritable

log = logging.getLogger(__name__)

SECONDS_WITHOUT_AN_ANSWER = 30  # some firewalls swallow packets, and a job must not wait for ever
MOST_ATTEMPTS = 10  # at one address, each but the last of which brought a part of the file
BLOCK = 2**20
RANGE_NOT_SATISFIABLE = 416


class DownloadFailed(Exception):
    """A file could not be fetched; the message says from where and why, on one line."""


def download(addresses: Sequence[str], path: Path, md5: str) -> None:
    """Fetch a file from the first address that has it; what an earlier attempt left in `<path>.partial` is kept.

    `path` appears only when all of the file is on the disk and its md5 is right.
    Raises DownloadFailed if no address gives such a file, ResourceError if it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    reasons: list[str] = []
    for address in addresses:
        try:
            _complete(address, partial, md5)
        except (OSError, HTTPException, ValueError) as error:  # URLError and time-outs are OSErrors
            reasons.append(f"{address}: {_reason(error)}")
            continue
        with _writing(path):
            partial.replace(path)
            sync_folder(path.parent)
        return
    raise DownloadFailed(f"fetching failed: {'; '.join(reasons)}")


def md5_of(path: Path) -> str:
    """Return the md5 of a file in hexadecimal, however large the file is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def locked(lock: Path) -> Generator[None]:
    """Hold a lock that is free again when this process ends in whatever way; say so if another process has it."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        log.info("another process is at it; waiting for %s", lock)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _complete(address: str, partial: Path, md5: str) -> None:
    """Bring `partial` to the whole file; raise ValueError if what the address sends has another md5."""
    for _ in range(MOST_ATTEMPTS):
        start = partial.stat().st_size if partial.is_file() else 0
        if start and md5_of(partial) == md5:  # killed between the last byte and the renaming
            return
        try:
            whole = _continue(address, partial, start)
        except HTTPError as error:
            if error.code != RANGE_NOT_SATISFIABLE or not start:
                raise
            partial.unlink()  # it is longer than the file: not a part of it
            continue
        except (OSError, HTTPException):
            if not partial.is_file() or partial.stat().st_size <= start:
                raise
            continue
        if whole and (digest := md5_of(partial)) != md5:
            partial.unlink()
            if not start:
                raise ValueError(f"its md5 is {digest}, not {md5}")
    raise OSError("the connection was cut time and again")


def _continue(address: str, partial: Path, start: int) -> bool:
    """Append to `partial`, which has `start` bytes, and return whether the file now has its full length."""
    headers = {"User-Agent": "normlab", **({"Range": f"bytes={start}-"} if start else {})}
    request = urllib.request.Request(address, headers=headers)
    with cast(HTTPResponse, urllib.request.urlopen(request, timeout=SECONDS_WITHOUT_AN_ANSWER)) as response:
        if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # the server sends the file from its beginning
        length = response.headers.get("Content-Length")
        size = None if length is None else start + int(length)
        _require_room(partial, 0 if size is None else size - start)
        with _opened(partial, "ab" if start else "wb") as file, _bar(partial, start, size) as bar:
            while block := response.read1(BLOCK):  # what there is, so that a kill loses little
                with _writing(partial):
                    file.write(block)
                bar.update(len(block))
            with _writing(partial):
                file.flush()
                os.fsync(file.fileno())
            return size is None or file.tell() >= size


def _opened(partial: Path, mode: Literal["ab", "wb"]) -> BinaryIO:
    with _writing(partial):
        return partial.open(mode)


def _bar(partial: Path, start: int, size: int | None) -> "tqdm[NoReturn]":
    name = partial.name.removesuffix(".partial")
    return tqdm(initial=start, total=size, desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=None)


def _require_room(partial: Path, bytes_to_come: int) -> None:
    with _writing(partial):
        free = shutil.disk_usage(partial.parent).free
    if bytes_to_come > free:
        problem = f"needs {bytes_to_come / 1e6:,.0f} MB more, but there are {free / 1e6:,.0f} MB free"
        raise ResourceError(str(partial), problem, "make room, or set dataset.root to a folder on another disk")


@contextmanager
def _writing(path: Path) -> Generator[None]:
    """Tell what the disk has against a file from what the network has, which are both OSErrors."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def _reason(error: Exception) -> str:
    # A URLError hides its reason behind angle brackets; an HTTPError, which is one too, says its number and its name.
    reason = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
    return " ".join(str(reason).split()) or type(error).__name__
