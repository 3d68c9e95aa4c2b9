"""Images as arrays and in zip files."""

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from normlab.data import zipped
from normlab.data.arrays import arrays
from normlab.data.conversion import resized
from normlab.data.image_folder import image_folder
from normlab.data.images import Dataset
from normlab.data.packing import cache_folder
from normlab.errors import DataError
from tests.conftest import Command

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (50, 32, 32), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (50, 3, 32, 32), dtype=np.uint8)
NUMBERS = np.arange(50)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))


def saved(tmp_path: Path, array: np.ndarray) -> Path:
    np.save(tmp_path / "x.npy", array)
    return tmp_path / "x.npy"


def zipped_arrays(tmp_path: Path, **content: Any) -> Path:
    np.savez_compressed(tmp_path / "x.npz", **content)
    return tmp_path / "x.npz"


def pixels(dataset: Dataset) -> np.ndarray:
    return np.concatenate([dataset.train.pixels[:], dataset.held_out.pixels[:]])


def in_any_order(images: np.ndarray) -> list[bytes]:
    return sorted(image.tobytes() for image in images)


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        arrays(root=str(path), **settings)
    assert "\n" not in str(caught.value)
    assert not (cache_folder() / "datasets").exists() or not [
        entry for entry in (cache_folder() / "datasets").iterdir() if entry.is_dir()
    ]
    return str(caught.value)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, GREY[:, None]),
        (GREY[..., None], GREY[:, None]),
        (COLOUR, COLOUR),
        (COLOUR.transpose(0, 2, 3, 1), COLOUR),
        (np.asfortranarray(COLOUR), COLOUR),
    ],
    ids=["n h w", "n h w 1", "n 3 h w", "n h w 3", "fortran"],
)
def test_every_layout_gives_the_same_pixels(tmp_path: Path, array: np.ndarray, expected: np.ndarray) -> None:
    dataset = arrays(root=str(saved(tmp_path, array)))
    assert in_any_order(pixels(dataset)) == in_any_order(expected)
    assert (len(dataset.train), len(dataset.held_out)) == (45, 5)
    assert dataset.train.labels is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize(("black", "white"), [(0, 1), (-1, 1), (0, 255)])
def test_floats_are_brought_to_bytes_by_their_range(tmp_path: Path, dtype: Any, black: int, white: int) -> None:
    floats = (GREY / 255 * (white - black) + black).astype(dtype)
    dataset = arrays(root=str(saved(tmp_path, floats)))
    assert in_any_order(pixels(dataset)) == in_any_order(GREY[:, None])
    assert dataset.notes == (f"floats are taken to go from {black} (black) to {white} (white)",)


def test_sides_are_resized_and_cropped_as_those_of_files_are(tmp_path: Path) -> None:
    wide = RANDOM.integers(0, 256, (4, 40, 60, 3), dtype=np.uint8)
    expected = [np.asarray(resized(Image.fromarray(image), 32)).transpose(2, 0, 1) for image in wide]
    assert in_any_order(pixels(arrays(root=str(saved(tmp_path, wide))))) == in_any_order(np.stack(expected))


def test_the_division_is_fixed_and_a_partition(tmp_path: Path) -> None:
    path = zipped_arrays(tmp_path, images=GREY, labels=NUMBERS)
    first, second = (arrays(root=str(path), limit=limit) for limit in (None, 20))
    assert first.train.labels is not None
    assert first.held_out.labels is not None
    assert sorted([*first.train.labels, *first.held_out.labels]) == list(range(50))
    assert np.array_equal(first.held_out.pixels, second.held_out.pixels)


@pytest.mark.parametrize(
    ("images", "labels"), [("images", "labels"), ("pixels", "labels"), ("x", "y"), ("arr_0", "arr_1")]
)
def test_labels_stay_with_their_images(tmp_path: Path, images: str, labels: str) -> None:
    dataset = arrays(root=str(zipped_arrays(tmp_path, **{images: GREY, labels: NUMBERS % 3 * 10})))
    assert dataset.class_names == ("0", "10", "20")
    number = {image.tobytes(): number for number, image in enumerate(GREY)}
    for split in (dataset.train, dataset.held_out):
        assert split.labels is not None
        assert [number[image.tobytes()] % 3 for image in split.pixels] == split.labels.tolist()


@pytest.mark.parametrize(
    "names",
    [("train_images", "train_labels", "test_images", "test_labels"), ("x_train", "y_train", "x_test", "y_test")],
)
def test_both_splits_of_a_file_are_kept(tmp_path: Path, names: tuple[str, ...]) -> None:
    content = dict(zip(names, (GREY[:40], NUMBERS[:40, None] % 4, GREY[40:], NUMBERS[40:, None] % 4), strict=True))
    dataset = arrays(root=str(zipped_arrays(tmp_path, **content, class_names=np.array(["a", "b", "c", "d"]))))
    assert np.array_equal(dataset.train.pixels[:, 0], GREY[:40])
    assert np.array_equal(dataset.held_out.pixels[:, 0], GREY[40:])
    assert dataset.held_out.labels is not None
    assert dataset.held_out.labels.tolist() == [number % 4 for number in range(40, 50)]
    assert dataset.class_names == ("a", "b", "c", "d")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_named_by_index(tmp_path: Path, value: float) -> None:
    floats = np.full((2500, 4, 4), 0.5, np.float32)
    floats[1717, 2, 1] = value
    path = saved(tmp_path, floats)
    assert refusal(path).startswith(f"error: {path}[1717]: holds NaN or infinity — ")
    path = zipped_arrays(tmp_path, images=floats)
    assert refusal(path).startswith(f"error: {path}[images][1717]: holds NaN or infinity — ")


@pytest.mark.parametrize(
    ("least", "most"), [(-2.1, 2.6), (0, 3), (-1, 255), (0, 256), (0, 0), (-300, -200), (0, 65535)]
)
def test_a_range_that_makes_no_sense_is_refused_with_its_ends(tmp_path: Path, least: float, most: float) -> None:
    floats = np.full((20, 4, 4), least, np.float32)
    floats[7] = most
    path = saved(tmp_path, floats)
    assert refusal(path).startswith(f"error: {path}: holds values from {least:g} to {most:g} — scale them")


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, bool, np.complex64, "U3"])
def test_other_numbers_are_refused(tmp_path: Path, dtype: Any) -> None:
    path = saved(tmp_path, np.ones((20, 4, 4)).astype(dtype))
    assert f"error: {path}: holds numbers of type {np.dtype(dtype)} — give uint8, or floats" in refusal(path)


@pytest.mark.parametrize(
    "shape", [(20,), (20, 4), (20, 4, 4, 4), (20, 2, 8, 8), (20, 3, 8, 3), (20, 8, 8, 3, 1), (20, 0, 4), ()]
)
def test_other_shapes_and_numbers_of_channels_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = saved(tmp_path, np.zeros(shape, np.uint8))
    assert refusal(path).startswith(f"error: {path}: has the shape {list(shape)}")


def test_channels_are_as_asked_or_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, GREY)
    assert f"error: {path}: has 1 channels, not 3 — " in refusal(path, channels=3)
    assert arrays(root=str(path), channels=1).image_shape == (1, 32, 32)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_are_refused(tmp_path: Path, count: int) -> None:
    assert f"holds {count} images — give at least 2" in refusal(saved(tmp_path, GREY[:count]))


@pytest.mark.parametrize(
    "labels", [NUMBERS[:49], NUMBERS / 2, np.zeros((50, 14), int)], ids=["too few", "floats", "many each"]
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: np.ndarray) -> None:
    path = zipped_arrays(tmp_path, images=GREY, labels=labels)
    assert refusal(path).startswith(f"error: {path}[images]: has 50 images, but labels {labels.dtype} of shape ")


def test_a_single_held_out_image_and_a_single_number_do_not_mislead(tmp_path: Path) -> None:
    content = {"x_train": GREY[:5], "x_test": GREY[5:6], "y_train": NUMBERS[:5], "y_test": NUMBERS[:1]}
    dataset = arrays(root=str(zipped_arrays(tmp_path, **content, class_names=np.array("a"))))
    assert (len(dataset.train), len(dataset.held_out), dataset.class_names) == (5, 1, ("0", "1", "2", "3", "4"))
    assert "has the shape []" in refusal_of_other(tmp_path, images=np.uint8(3), labels=NUMBERS)


def refusal_of_other(tmp_path: Path, **content: Any) -> str:
    with pytest.raises(DataError) as caught:
        arrays(root=str(zipped_arrays(tmp_path, **content)))
    return str(caught.value)


def test_an_npz_file_without_images_says_what_it_holds(tmp_path: Path) -> None:
    path = zipped_arrays(tmp_path, faces=GREY)
    assert refusal(path).startswith(
        f"error: {path}: holds faces, and none of that is known as images — name the arrays"
    )


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["npy", "npz", "bare pickle"])
def test_python_objects_are_never_loaded(tmp_path: Path, kind: str) -> None:
    trap = np.array([Trap(tmp_path / "sprung")] * 3, dtype=object)
    if kind == "npz":
        path = zipped_arrays(tmp_path, images=trap)
    elif kind == "npy":
        path = saved(tmp_path, trap)
    else:
        path = tmp_path / "x.npy"
        path.write_bytes(pickle.dumps(trap))
    assert refusal(path).startswith(f"error: {path}: holds Python objects (a pickle), which are never loaded")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kind", ["npy", "npz", "zip"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    path = {"npy": lambda: saved(tmp_path, GREY), "npz": lambda: zipped_arrays(tmp_path, images=GREY)}.get(
        kind, lambda: zip_of(tmp_path, {f"{number}.png": png(number) for number in range(5)})
    )()
    os.truncate(path, int(path.stat().st_size * share))
    assert refusal(path).startswith(f"error: {path}: is damaged: ")


def test_an_array_that_claims_to_be_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "x.npy", tmp_path / "x.npz"):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 3, 64, 64)}
        )
        path.write_bytes(header.getvalue())
        if path.suffix == ".npz":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("images.npy", header.getvalue())
        assert refusal(path).startswith(f"error: {path}: is damaged: ")


@pytest.mark.parametrize("name", ["nothing.npy", "folder.npy", "text.txt"])
def test_what_is_no_such_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "text.txt").write_text("")
    line = refusal(tmp_path / name)
    assert line.startswith("error: dataset.root: ")
    assert "set dataset.root to a file (.npy .npz .zip)" in line


def png(grey: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (32, 32), grey).save(content, "PNG")
    return content.getvalue()


def zip_of(tmp_path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return tmp_path / "x.zip"


TREES = {
    "flat": [f"{number}.png" for number in range(30)],
    "classes": [f"{'ab'[number % 2]}/{number}.png" for number in range(30)],
    "split": [f"{'test' if number % 5 == 0 else 'train'}/{'ab'[number % 2]}/{number}.png" for number in range(30)],
    "train alone": [f"train/{'ab'[number % 2]}/{number}.png" for number in range(30)],
}


@pytest.mark.parametrize("around", ["", "mine/", "deep/er/"])
@pytest.mark.parametrize("tree", TREES)
def test_a_zip_file_is_what_a_folder_of_its_content_is(tmp_path: Path, tree: str, around: str) -> None:
    files = {name: png(number) for number, name in enumerate(TREES[tree])}
    for name, content in files.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    noise = {"__MACOSX/x.png": b"", f"{around}.hidden.png": b"", f"{around}readme.txt": b"words"}
    path = zip_of(tmp_path, {**{around + name: content for name, content in files.items()}, **noise})
    one, other = arrays(root=str(path)), image_folder(root=str(tmp_path / "folder"))
    assert (one.fingerprint, one.class_names, one.notes) == (other.fingerprint, other.class_names, other.notes)


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png", "..\\out.png", "C:/out.png"])
def test_an_entry_that_leads_out_of_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    path = zip_of(tmp_path, {"1.png": png(1), "2.png": png(2), name: png(3)})
    assert refusal(path).startswith(f"error: {path}[{name!r}]: leads out of the archive — ")


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path, {"1.png": png(1), "2.png": png(2)})
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    path.write_bytes(content)
    assert refusal(path).startswith(f"error: {path}['1.png']: is encrypted — ")


def test_a_bomb_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipped, "LARGEST_IMAGE", 10**6)
    path = zip_of(tmp_path, {"1.png": png(1), "2.png": b"\0" * (10**6 + 1)})
    assert f"{path}['2.png']: has " in (line := refusal(path))
    assert "bytes that unpack to 1,000,001, which no image has" in line


def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    path = zip_of(tmp_path, {"1.png": png(1), "2.png": png(2)})
    with pytest.raises(DataError, match="decompression bomb"):
        arrays(root=str(path))


def test_a_damaged_entry_is_named(tmp_path: Path) -> None:
    path = zip_of(tmp_path, {"1.png": png(1), "2.png": png(2)[:40], "3.png": b""})
    with pytest.raises(DataError) as caught:
        arrays(root=str(path))
    lines = sorted(str(caught.value).splitlines())
    assert [line.partition(": cannot be decoded")[0] for line in lines] == [f"error: {path}[{n}.png]" for n in (2, 3)]


def test_bytes_that_changed_within_a_zip_file_are_found(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in (1, 2):
            archive.writestr(f"{number}.bmp", bytes(RANDOM.bytes(5000)))
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[1000] ^= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.zip\[1\.bmp\]: cannot be decoded: Bad CRC-32"):
        arrays(root=str(tmp_path / "x.zip"))


def test_the_command_line_trains_on_an_array_and_refuses_a_bad_one_before_it_starts(
    tmp_path: Path, normlab: Command, outputs: Path
) -> None:
    words = ("train", "dataset=arrays", "evaluation=none", "architecture.width=4", "train.batch_size=8", "device=cpu")
    good = normlab(*words, f"dataset.root={saved(tmp_path, COLOUR)}", "train.until=2 steps", "name=good")
    assert good.exit_code == 0, good.stderr
    floats = np.full((20, 32, 32), np.nan, np.float32)
    bad = normlab(*words, f"dataset.root={saved(tmp_path, floats)}", "name=bad")
    assert (bad.exit_code, bad.stderr.count("\n")) == (3, 1)
    assert bad.stderr.startswith(f"error: {tmp_path / 'x.npy'}[0]: holds NaN or infinity")
    assert not (outputs / "bad").exists()


def test_more_images_in_a_batch_than_there_are_is_refused(tmp_path: Path, normlab: Command, outputs: Path) -> None:
    path = saved(tmp_path, GREY[:6])
    few = normlab("train", "dataset=arrays", f"dataset.root={path}", "train.batch_size=64", "evaluation=none")
    assert few.exit_code == 3
    assert few.stderr.startswith("error: train.batch_size: is 64, but there are only 5 training images — ")
    assert not outputs.exists()
