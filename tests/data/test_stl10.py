"""STL-10 on small files in its layout, against torchvision's own reader."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import STL10

from normlab.data.conversion import resized
from normlab.data.stl10 import stl10
from normlab.errors import DataError
from tests.conftest import Command


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a few random images in every file of STL-10, whose checksums are those expected."""
    folder = tmp_path / "data" / "stl10_binary"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    contents = {
        **{f"{name}_X.bin": random.bytes(count * 3 * 96 * 96) for name, count in (("train", 3), ("test", 4))},
        "unlabeled_X.bin": random.bytes(7 * 3 * 96 * 96),
        "train_y.bin": bytes([1, 2, 3]),
        "test_y.bin": bytes([10, 1, 5, 1]),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "class_names.txt").write_text("\n".join(["airplane", "bird", *["x"] * 8]))
    (folder / "fold_indices.txt").write_text("")
    for split in ("train_list", "test_list"):
        md5s = [[name, hashlib.md5(contents[name]).hexdigest()] for name, _ in getattr(STL10, split)]
        monkeypatch.setattr(STL10, split, md5s)
    return tmp_path / "data"


def smaller(pixels: np.ndarray, size: int) -> np.ndarray:
    return np.stack([np.asarray(resized(Image.fromarray(image.transpose(1, 2, 0)), size)) for image in pixels])


@pytest.mark.parametrize("size", [48, 96])
def test_the_unlabelled_images_are_trained_on_and_the_test_part_is_held_out(root: Path, size: int) -> None:
    dataset = stl10(root=str(root), download=False, image_size=size)
    unlabelled, test = (STL10(root, split=split) for split in ("unlabeled", "test"))
    assert np.array_equal(dataset.train.pixels[:].transpose(0, 2, 3, 1), smaller(unlabelled.data, size))
    assert np.array_equal(dataset.held_out.pixels[:].transpose(0, 2, 3, 1), smaller(test.data, size))
    assert dataset.train.labels is None
    assert dataset.held_out.labels is not None
    assert dataset.held_out.labels.tolist() == test.labels.tolist() == [9, 0, 4, 0]
    assert dataset.class_names is not None
    assert dataset.class_names[9] == "truck"


def test_the_size_is_48_unless_asked(root: Path) -> None:
    assert stl10(root=str(root)).image_shape == (3, 48, 48)


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        stl10(root=str(root), download=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_that_is_cut_short_is_named(root: Path) -> None:
    path = root / "stl10_binary" / "unlabeled_X.bin"
    os.truncate(path, 100_000)
    assert refusal(root).startswith(f"error: {path}: is damaged: its md5 is wrong — ")


def test_a_missing_file_is_named_with_the_way_out(root: Path) -> None:
    (root / "stl10_binary" / "test_y.bin").unlink()
    line = refusal(root)
    assert line.startswith(f"error: {root / 'stl10_binary'}: lacks test_y.bin, and dataset.download is false — ")
    assert STL10.url in line


def test_the_archive_is_unpacked_without_the_network(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(root / "stl10_binary", "stl10_binary")
    (root / "stl10_binary.tar.gz").write_bytes(packed.getvalue())
    monkeypatch.setattr(STL10, "tgz_md5", hashlib.md5(packed.getvalue()).hexdigest())
    before = stl10(root=str(root), download=False).fingerprint
    (root / "stl10_binary" / "unlabeled_X.bin").unlink()
    assert stl10(root=str(root), download=False).fingerprint == before


def test_the_command_line_trains_on_it(root: Path, normlab: Command, outputs: Path) -> None:
    words = ("architecture.width=4", "train.batch_size=2", "train.until=2 steps", "evaluation=none", "device=cpu")
    trained = normlab("train", "dataset=stl10", f"dataset.root={root}", *words)
    assert trained.exit_code == 0, trained.stderr
