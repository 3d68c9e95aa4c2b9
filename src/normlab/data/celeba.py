"""CelebA: the aligned photographs and the official partition, unpacked or fetched where allowed, counted and read."""

import errno
import importlib.util
import os
import shutil
import sys
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image

from normlab.data.catalogue import DATASETS, ImageSize, from_pack
from normlab.data.conversion import UnusableImage, resized
from normlab.data.decoding import Decoded, decode, pack_images
from normlab.data.downloads import DownloadFailed, md5_of
from normlab.data.images import Dataset
from normlab.data.originals import damaged, fetch, move_into, unreadable
from normlab.data.packing import PackWriter, content_digest, packed
from normlab.data.zipped import require_sound
from normlab.errors import DataError
from normlab.outputs.atomic import unwritable
from normlab.settings import PositiveInt, Range

IMAGES = 202_599
SIZE = (178, 218)
TRAIN, HELD_OUT = "0", "2"  # in the partition; 1 is its validation part
FOLDER, PARTITION, ZIP = "img_align_celeba", "list_eval_partition.txt", "img_align_celeba.zip"
REMEDY = (
    f"put {FOLDER}/ (000001.jpg to {IMAGES}.jpg) or {ZIP}, and {PARTITION}, of "
    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html there, in the folder celeba/ of dataset.root; or give "
    "dataset=image_folder dataset.root=FOLDER for any folder of its images"
)


@DATASETS.register("celeba")
def celeba(
    *,
    root: str = "data",
    download: bool = True,
    image_size: ImageSize = 64,
    crop: Annotated[int, Range(least=32, most=178)] = 148,
    limit: PositiveInt | None = None,
    flip: bool = False,
) -> Dataset:
    """Return CelebA (Liu et al. 2015), aligned, colour, 162,770 to train and 19,962 held out, from `root`/celeba.

    The training part of the official partition is trained on and its test part held out; its validation part of 19,867
    is not used. The centre square of `crop` pixels is cut out of 178x218 and resized to `image_size` (bicubic,
    antialiased). There are no labels: the 40 attributes are no classes.
    Raises DataError if images are missing, too few or damaged.
    """
    folder = Path(root).expanduser() / "celeba"
    _fetch(folder, download)
    splits = _partition(folder / PARTITION)
    _require_all(folder / FOLDER, sum(map(len, splits.values())))
    train, held_out = ([folder / FOLDER / name for name in splits.get(part, [])] for part in (TRAIN, HELD_OUT))
    digest = content_digest(folder, [folder / PARTITION, *train, *held_out])

    def fill(writer: PackWriter) -> None:
        files = {"train": (train, None), "held_out": (held_out, None)}
        pack_images(writer, files, partial(_read, crop, image_size), (3, image_size, image_size), None)

    pack = packed("celeba", digest, {"image_size": image_size, "crop": crop}, fill)
    return from_pack("celeba", pack, limit, flip)


def _fetch(folder: Path, allowed: bool) -> None:
    def missing() -> list[str]:
        parts = {f"{FOLDER}/": (folder / FOLDER).is_dir(), PARTITION: (folder / PARTITION).is_file()}
        return [name for name, there in parts.items() if not there]

    def bring() -> None:
        if not (folder / PARTITION).is_file():
            _download(folder / PARTITION, allowed)
        if not (folder / FOLDER).is_dir():
            if not (folder / ZIP).is_file():
                _download(folder / ZIP, allowed)
            _unpack(folder / ZIP)

    fetch(folder, folder, missing, bring if allowed or (folder / ZIP).is_file() else None, REMEDY)


def _download(path: Path, allowed: bool) -> None:
    """Fetch one of the published files from Google Drive, which often refuses; raise DownloadFailed if it does."""
    if not allowed:
        raise DownloadFailed("dataset.download is false")
    if importlib.util.find_spec("gdown") is None:
        raise DownloadFailed("fetching it takes the package gdown (pip install 'normlab[celeba]')")
    from torchvision.datasets import CelebA

    ((identifier, md5),) = [(identifier, md5) for identifier, md5, name in CelebA.file_list if name == path.name]
    arriving = path.with_name(f"{path.name}.partial")
    try:
        gdown: Any = importlib.import_module("gdown")
        gdown.download(id=identifier, output=str(arriving), quiet=not sys.stderr.isatty(), resume=True)
    except Exception as error:  # it has a dozen of its own and passes on those of what it rests on
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise unwritable(path, error) from error
        raise DownloadFailed(f"gdown failed: {' '.join(str(error).split())}") from error
    if not arriving.is_file() or md5_of(arriving) != md5:
        arriving.unlink(missing_ok=True)
        raise DownloadFailed(f"Google Drive sent something else than {path.name}, as it does when its quota is used up")
    arriving.replace(path)


def _unpack(archive: Path) -> None:
    """Bring the images of the published zip beside it, all of them or none."""
    beside = archive.with_name(f".{FOLDER}.partial")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        with zipfile.ZipFile(archive) as content:
            require_sound(archive, content)
            members = [name for name in content.namelist() if name.startswith(f"{FOLDER}/") and name.endswith(".jpg")]
            content.extractall(beside, members)
        (beside / FOLDER).mkdir(parents=True, exist_ok=True)
        move_into(beside / FOLDER, archive.with_name(FOLDER))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise damaged(archive, str(error)) from error
    except OSError as error:
        raise unwritable(archive.with_name(FOLDER), error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _partition(path: Path) -> dict[str, list[str]]:
    """Return the names of the images of each part; raise DataError if the file does not tell of every image."""
    try:
        rows = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise damaged(path, "it is not text") from error
    if len(rows) != IMAGES or any(len(row) != 2 or "/" in row[0] for row in rows):
        raise damaged(path, f"it has {len(rows):,} lines; there should be {IMAGES:,}, each a file's name and 0, 1 or 2")
    splits: dict[str, list[str]] = {}
    for name, part in rows:
        splits.setdefault(part, []).append(name)
    return splits


def _require_all(folder: Path, count: int) -> None:
    """Raise DataError unless there are as many images as the partition has; which ones shows when they are read."""
    try:
        found = sum(name.endswith(".jpg") for name in os.listdir(folder))
    except OSError as error:
        raise unreadable(folder, error) from error
    if found != count:
        problem = f"holds {found:,} of {count:,} images, as a folder does that was unpacked in part"
        raise DataError(str(folder), problem, f"delete the folder and unpack {ZIP} again")


def _read(crop: int, size: int, path: Path) -> Decoded:
    def convert(image: Image.Image) -> Decoded:
        if image.size != SIZE:
            raise UnusableImage(f"is {image.width}x{image.height}, not {SIZE[0]}x{SIZE[1]} as the aligned images are")
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        square = image.convert("RGB").crop((left, top, left + crop, top + crop))
        return Decoded(np.asarray(resized(square, size)).transpose(2, 0, 1), [])

    return decode(str(path), lambda: path.open("rb"), convert)
