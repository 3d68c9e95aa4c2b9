import gzip
import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torchvision

from normlab.data import digits as embedded
from normlab.data import stacked_mnist as stacked
from normlab.data.cifar import cifar10, cifar100
from normlab.data.digits import digits
from normlab.data.images import Dataset
from normlab.data.mnist import MNIST, fashion_mnist, mnist
from normlab.data.sources import DATASETS
from normlab.data.stacked_mnist import stacked_mnist
from normlab.data.stl10 import stl10
from normlab.errors import DataError
from normlab.settings import Misfit

GENERATOR = np.random.default_rng(0)
IDX = {
    "train-images-idx3-ubyte": GENERATOR.integers(0, 256, (30, 28, 28), dtype=np.uint8),
    "train-labels-idx1-ubyte": np.arange(30, dtype=np.uint8) % 10,
    "t10k-images-idx3-ubyte": GENERATOR.integers(0, 256, (10, 28, 28), dtype=np.uint8),
    "t10k-labels-idx1-ubyte": np.arange(10, dtype=np.uint8),
}


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return header + array.tobytes()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cut off the network; the list fills with the addresses that were asked for."""
    addresses: list[str] = []

    def unreachable(request: Any, *_: Any, **__: Any) -> None:
        addresses.append(getattr(request, "full_url", request))
        raise URLError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    return addresses


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of small files in the format of MNIST, whose checksums are those expected."""
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, array in IDX.items():
        (folder / name).write_bytes(idx_bytes(array))
        monkeypatch.setitem(MNIST.files, name, md5(idx_bytes(array)))
    return folder


def refusal(source: Any, root: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        source(root=str(root), **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def gzip_all(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resources: list[tuple[str, str]] = []
    for name in IDX:
        content = gzip.compress((raw / name).read_bytes())
        (raw / f"{name}.gz").write_bytes(content)
        (raw / name).unlink()
        resources.append((f"{name}.gz", md5(content)))
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)


def check_mnist(dataset: Dataset) -> None:
    assert dataset.image_shape == (1, 32, 32)
    assert np.array_equal(dataset.train.pixels[:, 0, 2:30, 2:30], IDX["train-images-idx3-ubyte"])
    assert dataset.train.pixels.sum() == IDX["train-images-idx3-ubyte"].sum()  # the border is zero
    assert np.array_equal(dataset.held_out.pixels[:, 0, 2:30, 2:30], IDX["t10k-images-idx3-ubyte"])
    assert dataset.train.labels is not None
    assert dataset.held_out.labels is not None
    assert dataset.train.labels.tolist() == [number % 10 for number in range(30)]
    assert dataset.held_out.labels.tolist() == list(range(10))


def test_digits_are_1437_and_360_grey_images_of_every_class():
    dataset = digits()
    assert (dataset.image_shape, len(dataset.train), len(dataset.held_out)) == ((1, 32, 32), 1437, 360)
    assert dataset.train.labels is not None
    assert dataset.held_out.labels is not None
    assert np.bincount(dataset.train.labels).tolist() == [143, 146, 142, 146, 144, 145, 144, 143, 141, 143]
    assert np.bincount(dataset.held_out.labels).tolist() == [35, 36, 35, 37, 37, 37, 37, 36, 33, 37]
    assert (dataset.train.pixels.min(), dataset.train.pixels.max()) == (0, 255)


def test_the_embedded_digits_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    pixels, labels = datasets.load_digits(return_X_y=True)
    with np.load(Path(embedded.__file__).with_name("digits.npz")) as content:
        assert np.array_equal(content["values"].reshape(-1, 64), pixels)
        assert np.array_equal(content["labels"], labels)


def test_digits_need_no_cache_folder(tmp_path: Path):
    digits()
    assert not (tmp_path / "cache").exists()


def test_the_fingerprint_follows_what_the_networks_see():
    assert digits().fingerprint == digits(flip=True).fingerprint
    assert len({digits().fingerprint, digits(limit=100).fingerprint, digits(image_size=64).fingerprint}) == 3


def test_no_data_set_can_be_written_to():
    for dataset in (digits(), digits(limit=10)):
        with pytest.raises(ValueError, match="read-only"):
            dataset.train.pixels[0] = 0


@pytest.mark.parametrize("name", [name for name in DATASETS.names() if name != "gaussians"])
def test_an_image_size_out_of_range_is_refused(name: str):
    for size in (31, 129):
        with pytest.raises(Misfit, match="at least 32 and at most 128"):
            DATASETS.build(name, {"image_size": size})


def test_mnist_is_padded_with_zeros(raw: Path):
    check_mnist(mnist(root=str(raw.parents[1])))


def test_mnist_is_read_from_gzipped_files_without_unpacking_them(raw: Path, monkeypatch: pytest.MonkeyPatch):
    gzip_all(raw, monkeypatch)
    check_mnist(mnist(root=str(raw.parents[1]), download=False))
    assert {path.suffix for path in raw.iterdir()} == {".gz"}


def test_mnist_of_another_size_keeps_the_framing_of_32_pixels(raw: Path):
    dataset = mnist(root=str(raw.parents[1]), image_size=64)
    assert dataset.image_shape == (1, 64, 64)
    assert (dataset.train.pixels[:, :, :2] == 0).all()


def test_files_that_are_there_are_not_asked_for(raw: Path, asked: list[str]):
    mnist(root=str(raw.parents[1]), download=True)
    assert asked == []


def test_a_half_present_mnist_says_which_files_it_lacks(raw: Path, asked: list[str]):
    (raw / "t10k-labels-idx1-ubyte").unlink()
    line = refusal(mnist, raw.parents[1], download=False)
    assert line.startswith(f"error: {raw}: lacks t10k-labels-idx1-ubyte, and dataset.download is false — put the files")
    for way_out in (MNIST.address, "dataset.root", "NORMLAB_DATA", "MNIST/raw/", "dataset=digits"):
        assert way_out in line
    assert asked == []


@pytest.mark.parametrize("source", [mnist, fashion_mnist, cifar10, cifar100, stl10, stacked_mnist])
def test_an_unreachable_network_is_one_line_and_nothing_on_stdout(
    source: Any, tmp_path: Path, asked: list[str], capfd: pytest.CaptureFixture[str]
):
    line = refusal(source, tmp_path / "data")
    assert "and fetching failed: " in line
    assert "network is unreachable" in line
    assert asked
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("source", [mnist, fashion_mnist, cifar10, cifar100, stl10, stacked_mnist])
def test_without_download_a_missing_data_set_leaves_no_folder(source: Any, tmp_path: Path, asked: list[str]):
    assert "and dataset.download is false" in refusal(source, tmp_path / "data", download=False)
    assert not (tmp_path / "data").exists()
    assert asked == []


@pytest.mark.parametrize("name", list(IDX))
def test_a_damaged_mnist_file_is_named(raw: Path, name: str):
    content = bytearray((raw / name).read_bytes())
    content[-1] ^= 1
    (raw / name).write_bytes(content)
    assert refusal(mnist, raw.parents[1]).startswith(f"error: {raw / name}: is damaged: its md5 is wrong — delete")


def test_damage_is_found_even_when_the_data_set_was_packed_before(raw: Path):
    mnist(root=str(raw.parents[1]))
    os.truncate(raw / "train-images-idx3-ubyte", 100)
    assert "is damaged" in refusal(mnist, raw.parents[1])


def test_a_gzipped_file_that_is_cut_short_is_damaged_or_fetched_again(
    raw: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
):
    gzip_all(raw, monkeypatch)
    path = raw / "train-images-idx3-ubyte.gz"
    os.truncate(path, 100)
    assert refusal(mnist, raw.parents[1], download=False).startswith(f"error: {path}: is damaged: its md5 is wrong")
    assert asked == []
    assert "and fetching failed: " in refusal(mnist, raw.parents[1], download=True)
    assert asked[0].endswith("train-images-idx3-ubyte.gz")


@pytest.mark.parametrize("content", [b"", b"not an idx file", idx_bytes(IDX["t10k-images-idx3-ubyte"])[:-1]])
def test_fashion_mnist_files_are_checked_by_their_structure(raw: Path, content: bytes):
    folder = raw.parents[1] / "FashionMNIST" / "raw"
    folder.parent.mkdir()
    raw.rename(folder)
    dataset = fashion_mnist(root=str(raw.parents[1]))
    assert dataset.class_names is not None
    assert "Sneaker" in dataset.class_names
    (folder / "t10k-images-idx3-ubyte").write_bytes(content)
    assert refusal(fashion_mnist, raw.parents[1]).startswith(f"error: {folder / 't10k-images-idx3-ubyte'}: is damaged:")


def test_images_and_labels_must_be_as_many(raw: Path):
    folder = raw.parents[1] / "FashionMNIST" / "raw"
    folder.parent.mkdir()
    raw.rename(folder)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(9, np.uint8)))
    assert "t10k-images-idx3-ubyte: is damaged" in refusal(fashion_mnist, raw.parents[1])


def test_stacked_mnist_has_three_digits_in_three_channels_and_the_mode_as_label(
    raw: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stacked, "TRAIN", 2500)
    monkeypatch.setattr(stacked, "HELD_OUT", 500)
    dataset = stacked_mnist(root=str(raw.parents[1]), download=False)
    single = mnist(root=str(raw.parents[1]), download=False)
    for images, digits_, name in (
        (dataset.train, single.train, "train"),
        (dataset.held_out, single.held_out, "held_out"),
    ):
        chosen = stacked.draw(name, len(digits_), len(images))
        assert images.labels is not None
        assert digits_.labels is not None
        for number in (0, 1, 499, len(images) - 1):
            red, green, blue = chosen[number]
            expected = np.concatenate([digits_.pixels[red], digits_.pixels[green], digits_.pixels[blue]])
            assert np.array_equal(images.pixels[number], expected)
            assert images.labels[number] == int("".join(str(digits_.labels[digit]) for digit in chosen[number]))
    assert dataset.image_shape == (3, 32, 32)
    assert dataset.class_names is not None
    assert dataset.class_names[42] == "042"


def test_the_draw_of_stacked_mnist_is_fixed():
    first = stacked.draw("train", 60_000, 128_000)
    assert np.array_equal(first, stacked.draw("train", 60_000, 128_000))
    assert first[:2].tolist() == [[30177, 13669, 57964], [38298, 21580, 49777]]
    assert not np.array_equal(first[:26_000], stacked.draw("held_out", 60_000, 26_000))


@pytest.mark.skipif(
    not (Path(os.environ.get("NORMLAB_DATA", "/nowhere")) / "MNIST" / "raw").is_dir(),
    reason="NORMLAB_DATA names no folder with MNIST",
)
@pytest.mark.slow
def test_stacked_mnist_of_the_real_digits_has_a_thousand_modes():
    dataset = stacked_mnist(root=os.environ["NORMLAB_DATA"], download=False)
    assert (len(dataset.train), len(dataset.held_out)) == (128_000, 26_000)
    single = mnist(root=os.environ["NORMLAB_DATA"], download=False)
    for images, digits_ in ((dataset.train, single.train), (dataset.held_out, single.held_out)):
        assert images.labels is not None
        assert digits_.labels is not None
        shares = np.bincount(digits_.labels) / len(digits_)
        expected = len(images) * np.einsum("a,b,c->abc", shares, shares, shares).ravel()
        counts = np.bincount(images.labels, minlength=1000)
        assert counts.min() > 0
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())


@pytest.fixture
def cifar_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with two small batches in the format of CIFAR-10, whose checksums are those expected."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    contents: dict[str, Any] = {
        "data_batch_1": {
            "data": np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, -1),
            "labels": [3, 1, 0, 2],
        },
        "test_batch": {"data": np.full((2, 3072), 9, np.uint8), "labels": [1, 0]},
        "batches.meta": {"label_names": ["plane", "car", "bird", "cat"]},
    }
    checksums: dict[str, str] = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        checksums[name] = md5(pickle.dumps(content))
    original = torchvision.datasets.CIFAR10
    monkeypatch.setattr(original, "train_list", [["data_batch_1", checksums["data_batch_1"]]])
    monkeypatch.setattr(original, "test_list", [["test_batch", checksums["test_batch"]]])
    monkeypatch.setattr(original, "meta", original.meta | {"md5": checksums["batches.meta"]})
    return tmp_path / "data"


def test_cifar10_gives_pixels_channels_first_with_labels_and_names(cifar_root: Path):
    dataset = cifar10(root=str(cifar_root))
    expected = np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, 3, 32, 32)
    assert np.array_equal(dataset.train.pixels, expected)
    assert dataset.train.labels is not None
    assert dataset.train.labels.tolist() == [3, 1, 0, 2]
    assert (dataset.class_names, len(dataset.held_out)) == (("plane", "car", "bird", "cat"), 2)


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_damaged_cifar10_file_is_named(cifar_root: Path, name: str):
    path = cifar_root / "cifar-10-batches-py" / name
    os.truncate(path, 10)
    assert refusal(cifar10, cifar_root).startswith(f"error: {path}: is damaged: its md5 is wrong — ")


def test_an_archive_of_cifar10_is_unpacked_without_the_network(
    cifar_root: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(cifar_root / "cifar-10-batches-py", "cifar-10-batches-py")
    (cifar_root / "cifar-10-python.tar.gz").write_bytes(packed.getvalue())
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", md5(packed.getvalue()))
    (cifar_root / "cifar-10-batches-py" / "test_batch").unlink()
    assert len(cifar10(root=str(cifar_root), download=False).held_out) == 2
    assert asked == []


@pytest.mark.skipif(
    not (Path(os.environ.get("NORMLAB_DATA", "/nowhere")) / "MNIST" / "raw").is_dir(),
    reason="NORMLAB_DATA names no folder with MNIST",
)
def test_the_real_mnist_has_its_known_counts():
    dataset = mnist(root=os.environ["NORMLAB_DATA"], download=False)
    assert dataset.train.labels is not None
    assert dataset.held_out.labels is not None
    assert np.bincount(dataset.train.labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert np.bincount(dataset.held_out.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert dataset.train.pixels.shape == (60_000, 1, 32, 32)
    assert round(dataset.train.pixels.mean() * (32 / 28) ** 2 / 255, 4) == 0.1307


@pytest.fixture
def cifar100_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a small train and test file in the format of CIFAR-100, whose checksums are those expected."""
    folder = tmp_path / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)

    def part(count: int) -> dict[str, Any]:
        pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": pixels, "fine_labels": list(range(count)), "coarse_labels": [7] * count}

    contents: dict[str, Any] = {
        "train": part(5),
        "test": part(2),
        "meta": {"fine_label_names": ["apple", "fish", "baby", "bear", "beaver"], "coarse_label_names": ["all"]},
    }
    checksums: dict[str, str] = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        checksums[name] = md5(pickle.dumps(content))
    original = torchvision.datasets.CIFAR100
    monkeypatch.setattr(original, "train_list", [["train", checksums["train"]]])
    monkeypatch.setattr(original, "test_list", [["test", checksums["test"]]])
    monkeypatch.setattr(original, "meta", original.meta | {"md5": checksums["meta"]})
    return tmp_path / "data"


def test_cifar100_has_the_fine_labels(cifar100_root: Path, asked: list[str]):
    dataset = cifar100(root=str(cifar100_root))
    with (cifar100_root / "cifar-100-python" / "train").open("rb") as file:
        expected = pickle.load(file)["data"].reshape(5, 3, 32, 32)
    assert np.array_equal(dataset.train.pixels, expected)
    assert dataset.train.labels is not None
    assert dataset.train.labels.tolist() == [0, 1, 2, 3, 4]
    assert (dataset.class_names, len(dataset.held_out)) == (("apple", "fish", "baby", "bear", "beaver"), 2)
    assert asked == []


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_damaged_cifar100_file_is_named_and_never_unpickled(cifar100_root: Path, name: str):
    path = cifar100_root / "cifar-100-python" / name
    path.write_bytes(pickle.dumps(Trap(cifar100_root / "sprung")))
    assert refusal(cifar100, cifar100_root).startswith(f"error: {path}: is damaged: its md5 is wrong — ")
    assert not (cifar100_root / "sprung").exists()


class Trap:
    """What a hostile pickle is: it makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)
