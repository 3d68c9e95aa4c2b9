"""STL-10: the binary files, fetched or unpacked where allowed, checked and read."""

from pathlib import Path

import numpy as np

from normlab.data.catalogue import DATASETS, ImageSize, from_pack, write_resized
from normlab.data.images import Dataset, Images
from normlab.data.originals import Archive, damaged, fetch_archive, require_md5
from normlab.data.packing import PackWriter, content_digest, packed
from normlab.data.pixels import Labels, Pixels
from normlab.settings import PositiveInt

FILES = ("unlabeled_X.bin", "test_X.bin", "test_y.bin")
SIZE = 96
CLASS_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


@DATASETS.register("stl10")
def stl10(
    *,
    root: str = "data",
    download: bool = True,
    image_size: ImageSize = 48,
    limit: PositiveInt | None = None,
    flip: bool = False,
) -> Dataset:
    """Return STL-10 (Coates et al. 2011), colour, 100,000 to train and 8,000 held out, from `root`/stl10_binary.

    The training images are those of unlabeled_X.bin, all of them and no others: without labels, and of more kinds of
    things than the ten classes. The held-out ones are the official test part, with labels. The 5,000 labelled images of
    the official training part are not used. 96x96, resized to 48 (bicubic) as Miyato et al. 2018 have them.
    Raises DataError if files are missing or damaged.
    """
    # torchvision takes a good part of a second to import. It has the address and the checksums.
    from torchvision.datasets import STL10

    folder = Path(root).expanduser()
    published = dict([*STL10.train_list, *STL10.test_list])
    checksums = {name: published[name] for name in FILES}
    unlabelled, test, test_labels = fetch_archive(
        Archive(STL10.url, STL10.tgz_md5, STL10.base_folder, checksums), folder, download
    )

    def fill(writer: PackWriter) -> None:
        for path in (unlabelled, test, test_labels):
            require_md5(path, checksums[path.name])
        labels = read_labels(test_labels)
        write_resized(writer, Images(read_pixels(unlabelled), None), Images(read_pixels(test), labels), image_size)
        writer.finish(CLASS_NAMES, [])

    files = [unlabelled, test, test_labels]
    pack = packed("stl10", content_digest(folder, files), {"image_size": image_size}, fill)
    return from_pack("stl10", pack, limit, flip)


def read_pixels(path: Path) -> Pixels:
    """Return the images of a file, uint8 [n, 3, 96, 96], mapped; raise DataError if it ends within one."""
    bytes_each = 3 * SIZE * SIZE
    if path.stat().st_size == 0 or path.stat().st_size % bytes_each:
        raise damaged(path, f"its {path.stat().st_size} bytes are no whole number of images")
    # The file goes down the columns, first red, then green, then blue.
    return np.memmap(path, np.uint8, mode="r").reshape(-1, 3, SIZE, SIZE).transpose(0, 1, 3, 2)


def read_labels(path: Path) -> Labels:
    """Return the classes of a file, int64 [n], counted from 0; in the file they are counted from 1."""
    return np.fromfile(path, np.uint8).astype(np.int64) - 1
