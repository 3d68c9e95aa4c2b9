"""Folders of image files: which files there are, and which split and class each belongs to."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normlab.data.pixels import Labels
from normlab.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
TEST_FOLDERS = ("test", "val")
MOST_HELD_OUT = 10_000
WAY_OUT = (
    "set dataset.root (or NORMLAB_DATA) to a folder of images, flat, with a folder per class, or with train/ and test/"
)


@dataclass(frozen=True)
class Listing:
    """The image files of a folder, relative to it and sorted, and how they are divided.

    unused: how many images lie in neither split.
    """

    root: Path
    train: tuple[Path, ...]
    held_out: tuple[Path, ...]
    class_names: tuple[str, ...] | None
    depth: int  # where in a relative path the class stands
    unused: int = 0

    @property
    def files(self) -> list[Path]:
        return [self.root / file for file in (*self.train, *self.held_out)]

    @property
    def notes(self) -> tuple[str, ...]:
        if not self.unused:
            return ()
        splits = f"{self.train[0].parts[0]}/ and {self.held_out[0].parts[0]}/"
        return (f"{self.unused} images outside {splits} are not used",)

    @property
    def splits(self) -> dict[str, tuple[tuple[Path, ...], Labels | None]]:
        """The files of each split and their labels."""
        return {
            name: (files, self.labels(files)) for name, files in (("train", self.train), ("held_out", self.held_out))
        }

    def labels(self, files: Sequence[Path]) -> Labels | None:
        """Return the class of each file, int64 [n], or None where there are no classes."""
        if self.class_names is None:
            return None
        number = {name: index for index, name in enumerate(self.class_names)}
        return np.array([number[file.parts[self.depth]] for file in files], dtype=np.int64)


def list_folder(root: Path) -> Listing:
    """Return what images a folder holds.

    Raises DataError if there is no such folder, fewer than two images, or another data set inside.
    """
    if not root.exists():
        raise DataError("dataset.root", f"there is no folder '{root}'", WAY_OUT)
    if not root.is_dir():
        raise DataError("dataset.root", f"'{root}' is a file, not a folder", WAY_OUT)
    return divide(root, image_files(root))


def divide(root: Path, files: Sequence[Path]) -> Listing:
    """Return how image files, relative to `root` and sorted, are divided.

    With `train/` and `test/` (or `val/`) these are the splits; else a tenth is held out. The folders of a split are
    its classes if every image lies in one.
    Raises DataError if there are fewer than two images, or another data set inside.
    """
    top = {file.parts[0] for file in files if len(file.parts) > 1}
    test = next((name for name in TEST_FOLDERS if name in top), None)
    if "train" in top and test is not None:
        train = [file for file in files if file.parts[0] == "train"]
        held_out = [file for file in files if file.parts[0] == test]
        return _listing(root, train, held_out, depth=1, unused=len(files) - len(train) - len(held_out))
    if top == {"train"} and all(len(file.parts) > 1 for file in files):
        return divide(root / "train", [file.relative_to("train") for file in files])
    _refuse_nested(root, files)
    if len(files) < 2:
        found = f"holds only one image, {files[0]}" if files else f"holds no images ({' '.join(EXTENSIONS)})"
        raise DataError("dataset.root", f"'{root}' {found}", WAY_OUT)
    chosen = hold_out(files)
    train = [file for file in files if file not in chosen]
    return _listing(root, train, sorted(chosen), depth=0)


def hold_out(files: Sequence[Path]) -> set[Path]:
    """Choose the tenth of the files to hold out, by a hash of each path, so that adding files moves no other.

    At least one is chosen, never all, and at most 10,000.
    """
    hashes = {file: int.from_bytes(hashlib.sha256(os.fsencode(file.as_posix())).digest()[:8], "big") for file in files}
    ranked = sorted(files, key=lambda file: hashes[file])
    tenth = sum(value < 2**64 // 10 for value in hashes.values())
    return set(ranked[: max(1, min(tenth, MOST_HELD_OUT, len(files) - 1))])


def is_image(name: str) -> bool:
    """Return whether a file's name, without its folder, is that of an image that counts."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def is_hidden(folder: str) -> bool:
    """Return whether a folder's name is one that nobody means: hidden, or what macOS puts into archives."""
    return folder.startswith((".", "__MACOSX"))


def image_files(root: Path) -> list[Path]:
    """Return all image files under a folder, relative to it, sorted; links are followed, hidden names left out."""
    files: list[Path] = []
    visited: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=_refuse_unreadable, followlinks=True):
        # A link to a folder above it would be walked for ever.
        new = os.path.realpath(folder) not in visited
        visited.add(os.path.realpath(folder))
        subfolders[:] = [name for name in subfolders if new and not is_hidden(name)]
        if new:
            images = [name for name in names if is_image(name)]
            images = [name for name in images if os.path.isfile(os.path.join(folder, name))]  # a pipe would hang us
            files.extend(Path(folder, name).relative_to(root) for name in images)
    return sorted(files, key=lambda file: file.as_posix())


def _refuse_unreadable(error: OSError) -> None:
    raise DataError(str(error.filename), f"cannot be read: {error.strerror}", "make the folder readable") from error


def _refuse_nested(root: Path, files: Sequence[Path]) -> None:
    """Raise DataError if what looks like a class is a whole data set, whose test images would be trained on."""
    second = {file.parts[:2] for file in files if len(file.parts) > 2}
    for name in sorted({first for first, _ in second}):
        if (name, "train") in second and any((name, test) in second for test in TEST_FOLDERS):
            problem = f"'{root}' holds a data set in '{name}', with its own train and test folders"
            remedy = f"give dataset.root={root / name}" if root.is_dir() else f"pack '{name}' by itself"
            raise DataError("dataset.root", problem, remedy)


def _listing(root: Path, train: Sequence[Path], held_out: Sequence[Path], depth: int, unused: int = 0) -> Listing:
    files = [*train, *held_out]
    names = {file.parts[depth] for file in files if len(file.parts) > depth + 1}
    classified = all(len(file.parts) > depth + 1 for file in files)
    # One folder tells nothing apart: its images count as unlabelled.
    class_names = tuple(sorted(names)) if classified and len(names) > 1 else None
    return Listing(root, tuple(train), tuple(held_out), class_names, depth, unused)
