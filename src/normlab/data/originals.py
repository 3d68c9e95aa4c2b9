"""Data sets as they were published: what lies there already, what is fetched or unpacked, what is refused."""

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from normlab.data.downloads import DownloadFailed, download, locked, md5_of
from normlab.errors import DataError
from normlab.outputs.atomic import sync_folder, unwritable

NOT_AN_ARCHIVE = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error)


@dataclass(frozen=True)
class Archive:
    """A published tar archive, its folder, and the md5 of each file that we read from there."""

    address: str
    md5: str
    folder: str
    files: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]


def fetch_archive(archive: Archive, root: Path, allowed: bool) -> list[Path]:
    """Return the files of an archive under `root`, unpacked or downloaded first if some are missing and it is allowed.

    An archive that lies there whole is unpacked without the network, so that needs no permission.
    Raises DataError, with the layout expected and the ways out, if some are still missing; ResourceError if the disk
    does not take them.
    """
    folder, packed = root / archive.folder, root / archive.name

    def missing() -> list[str]:
        return [name for name in archive.files if not (folder / name).is_file()]

    def bring() -> None:
        if not packed.is_file() or md5_of(packed) != archive.md5:
            if not allowed:
                raise DownloadFailed(f"{packed} is damaged: its md5 is not {archive.md5}")
            download([archive.address], packed, archive.md5)
        unpack(packed, archive.folder, archive.files)

    remedy = ways_out(archive.address, f"{archive.folder}/")
    fetch(folder, root, missing, bring if allowed or packed.is_file() else None, remedy)
    return [folder / name for name in archive.files]


def fetch(
    folder: Path,
    root: Path,
    missing: Callable[[], list[str]],
    bring: Callable[[], None] | None,
    remedy: str,
) -> None:
    """See to it that nothing is missing in `folder`; `bring`, if it is given, is called under a lock of `root`.

    Raises DataError, with the remedy, if something is still missing.
    """
    failure = "dataset.download is false"
    if missing() and bring is not None:
        failure = ""
        try:
            root.mkdir(parents=True, exist_ok=True)
            with locked(root / ".normlab-download.lock"):
                if missing():  # else another process has brought it while this one waited
                    bring()
        except DownloadFailed as error:
            failure = str(error)
        except OSError as error:
            raise unwritable(root, error) from error
    if lacking := missing():
        because = f", and {failure}" if failure else ""
        raise DataError(str(folder), f"lacks {', '.join(lacking)}{because}", remedy)


def ways_out(address: str, layout: str) -> str:
    """Return what a person can do who lacks the files of `address`, in whose root there should be `layout`."""
    return (
        f"put the files of {address} there, set dataset.root (or NORMLAB_DATA) to a folder that holds {layout}, "
        "or use dataset=digits, which needs none"
    )


def unpack(archive: Path, folder: str, names: Collection[str]) -> None:
    """Bring the files `names` of a tar archive's `folder` beside the archive, each of them whole or not at all.

    Raises DataError if the archive is damaged, ResourceError if the disk does not take the files.
    """
    wanted = {PurePosixPath(folder, name) for name in names}
    beside = archive.with_name(f".{folder}.partial")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        with tarfile.open(archive) as content:
            members = [member for member in content if member.isfile() and PurePosixPath(member.name) in wanted]
            content.extractall(beside, members, filter="data")
        (beside / folder).mkdir(parents=True, exist_ok=True)  # should nothing that is wanted have been in it
        move_into(beside / folder, archive.with_name(folder))
    except NOT_AN_ARCHIVE as error:
        raise damaged(archive, str(error)) from error
    except OSError as error:
        raise unwritable(archive.with_name(folder), error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def move_into(source: Path, target: Path) -> None:
    """Rename a folder to `target`, or its files one by one if there is a `target`, which may be half of it."""
    if not target.exists():
        source.replace(target)
    else:
        for file in source.iterdir():
            file.replace(target / file.name)
        sync_folder(target)
    sync_folder(target.parent)


def require_md5(path: Path, md5: str) -> None:
    """Raise DataError if a file cannot be read or has another md5."""
    try:
        right = md5_of(path) == md5
    except OSError as error:
        raise unreadable(path, error) from error
    if not right:
        raise damaged(path, "its md5 is wrong")


def damaged(path: Path, how: str) -> DataError:
    return DataError(str(path), f"is damaged: {how}", "delete the file and run again, or bring it anew")


def unreadable(path: Path, error: OSError) -> DataError:
    return DataError(str(path), f"cannot be read: {error.strerror or error}", "make the file readable")
