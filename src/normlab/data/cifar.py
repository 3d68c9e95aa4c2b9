"""CIFAR-10 and CIFAR-100: the python version, fetched or unpacked where allowed, checked and read."""

from pathlib import Path
from typing import Any

import numpy as np

from normlab.data.catalogue import DATASETS, ImageSize, from_pack, write_resized
from normlab.data.images import Dataset, Images
from normlab.data.originals import Archive, fetch_archive, require_md5
from normlab.data.packing import PackWriter, content_digest, packed
from normlab.settings import PositiveInt

# torchvision takes a good part of a second to import, so only the functions that need it do.


@DATASETS.register("cifar10")
def cifar10(
    *,
    root: str = "data",
    download: bool = True,
    image_size: ImageSize = 32,
    limit: PositiveInt | None = None,
    flip: bool = False,
) -> Dataset:
    """Return CIFAR-10 (Krizhevsky 2009), colour, 50,000 to train and 10,000 held out, from `root`/cifar-10-batches-py.

    32x32; any other `image_size` is resized from that (bicubic).
    Raises DataError if files are missing or damaged.
    """
    import torchvision

    return _cifar_dataset("cifar10", torchvision.datasets.CIFAR10, root, download, image_size, limit, flip)


@DATASETS.register("cifar100")
def cifar100(
    *,
    root: str = "data",
    download: bool = True,
    image_size: ImageSize = 32,
    limit: PositiveInt | None = None,
    flip: bool = False,
) -> Dataset:
    """Return CIFAR-100 (Krizhevsky 2009), colour, 50,000 to train and 10,000 held out, from `root`/cifar-100-python.

    The labels are the 100 fine ones. 32x32; any other `image_size` is resized from that (bicubic).
    Raises DataError if files are missing or damaged.
    """
    import torchvision

    return _cifar_dataset("cifar100", torchvision.datasets.CIFAR100, root, download, image_size, limit, flip)


def _cifar_dataset(
    name: str, original: Any, root: str, download: bool, image_size: int, limit: int | None, flip: bool
) -> Dataset:
    folder = Path(root).expanduser()
    # torchvision's class holds the addresses and checksums, as public attributes, and the reader.
    meta = (original.meta["filename"], original.meta["md5"])
    checksums: dict[str, str] = dict([*original.train_list, *original.test_list, meta])
    archive = Archive(original.url, original.tgz_md5, original.base_folder, checksums)
    files = fetch_archive(archive, folder, download)

    def fill(writer: PackWriter) -> None:
        # Before torchvision reads them: they are pickles, and only the published ones are known to be harmless.
        for path in files:
            require_md5(path, checksums[path.name])
        train, test = (original(folder, train=train) for train in (True, False))
        write_resized(writer, _images(train), _images(test), image_size)
        writer.finish(train.classes, [])

    pack = packed(name, content_digest(folder, files), {"image_size": image_size}, fill)
    return from_pack(name, pack, limit, flip)


def _images(split: Any) -> Images:
    return Images(split.data.transpose(0, 3, 1, 2), np.array(split.targets, np.int64))
