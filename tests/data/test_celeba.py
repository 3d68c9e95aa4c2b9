"""CelebA on small files in its layout."""

import errno
import os
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from normlab.data import celeba as module
from normlab.data.celeba import celeba
from normlab.data.downloads import md5_of
from normlab.errors import DataError, ResourceError
from tests.conftest import Command

PARTS = [0, 0, 1, 2, 0, 2, 1, 0]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "IMAGES", len(PARTS))
    monkeypatch.setitem(sys.modules, "gdown", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder celeba/ with eight images of noise, and all that is published beside them."""
    images = tmp_path / "data" / "celeba" / "img_align_celeba"
    images.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(len(PARTS)):
        blocks = random.integers(0, 256, (28, 23, 3), dtype=np.uint8)
        pixels = blocks.repeat(8, axis=0).repeat(8, axis=1)[:218, :178]
        Image.fromarray(pixels).save(images / f"{number + 1:06}.jpg", quality=95)
    lines = [f"{number + 1:06}.jpg {part}\n" for number, part in enumerate(PARTS)]
    (images.parent / "list_eval_partition.txt").write_text("".join(lines))
    return images.parent


def opened(folder: Path, **settings: object):
    return celeba(root=str(folder.parent), download=False, **settings)


def refusal(folder: Path, download: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        celeba(root=str(folder.parent), download=download)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("crop", "size"), [(148, 64), (178, 128), (140, 32)])
def test_the_centre_is_cut_out_and_resized_and_the_official_parts_are_the_splits(
    folder: Path, crop: int, size: int
) -> None:
    dataset = opened(folder, crop=crop, image_size=size)
    cut = torchvision.transforms.Compose(
        [
            torchvision.transforms.CenterCrop(crop),
            torchvision.transforms.Resize(size, torchvision.transforms.InterpolationMode.BICUBIC, antialias=True),
        ]
    )
    for images, part in ((dataset.train, 0), (dataset.held_out, 2)):
        numbers = [number + 1 for number, of in enumerate(PARTS) if of == part]
        pictures = [Image.open(folder / "img_align_celeba" / f"{number:06}.jpg") for number in numbers]
        expected = np.stack([np.asarray(cut(picture)).transpose(2, 0, 1) for picture in pictures])
        assert np.array_equal(images.pixels, expected)
        assert images.labels is None


def test_images_are_64_pixels_of_a_crop_of_148_unless_asked(folder: Path) -> None:
    assert opened(folder).fingerprint == opened(folder, crop=148, image_size=64).fingerprint
    assert opened(folder).image_shape == (3, 64, 64)


def test_a_half_unpacked_folder_is_refused_with_counts(folder: Path) -> None:
    (folder / "img_align_celeba" / "000007.jpg").unlink()
    line = refusal(folder)
    assert line.startswith(f"error: {folder / 'img_align_celeba'}: holds 7 of 8 images")


def test_the_number_of_images_is_the_published_one() -> None:
    assert (162_770 + 19_867 + 19_962) == 202_599
    assert "202599.jpg" in module.REMEDY


def test_another_image_in_place_of_one_is_named(folder: Path) -> None:
    images = folder / "img_align_celeba"
    (images / "000001.jpg").rename(images / "1.jpg")
    assert f"error: {images / '000001.jpg'}: cannot be read: No such file" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"000001.jpg 0\n", b"a/b 0\n" * 8, b"000001.jpg\n" * 8, b"\xff"])
def test_a_partition_that_does_not_tell_of_every_image_is_refused(folder: Path, content: bytes) -> None:
    (folder / "list_eval_partition.txt").write_bytes(content)
    assert f"{folder / 'list_eval_partition.txt'}: is damaged: it " in refusal(folder)


def test_missing_data_names_the_layout_the_page_and_the_way_out(folder: Path) -> None:
    (folder / "img_align_celeba").rename(folder / "elsewhere")
    line = refusal(folder)
    assert line.startswith(f"error: {folder}: lacks img_align_celeba/, and dataset.download is false — ")
    for word in ("img_align_celeba.zip", "list_eval_partition.txt", "mmlab.ie.cuhk.edu.hk", "dataset=image_folder"):
        assert word in line


def test_without_gdown_the_extra_is_named(folder: Path) -> None:
    (folder / "list_eval_partition.txt").unlink()
    assert "pip install 'normlab[celeba]'" in refusal(folder, download=True)


def test_images_of_another_size_are_not_the_aligned_ones(folder: Path) -> None:
    path = folder / "img_align_celeba" / "000004.jpg"
    Image.new("RGB", (409, 687)).save(path)
    assert refusal(folder).startswith(f"error: {path}: is 409x687, not 178x218 as the aligned images are")


def test_a_truncated_image_is_named(folder: Path) -> None:
    path = folder / "img_align_celeba" / "000001.jpg"
    os.truncate(path, 500)
    assert refusal(folder).startswith(f"error: {path}: cannot be decoded: ")


def zip_up(folder: Path) -> Path:
    """Put the images into the published zip and take the folder away."""
    packed = folder / "img_align_celeba.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for image in sorted((folder / "img_align_celeba").iterdir()):
            archive.write(image, f"img_align_celeba/{image.name}")
    (folder / "img_align_celeba").rename(folder.parents[1] / "before")
    return packed


def test_the_zip_is_unpacked_without_the_network(folder: Path) -> None:
    before = opened(folder).fingerprint
    zip_up(folder)
    assert opened(folder).fingerprint == before
    assert sorted(entry.name for entry in folder.parent.iterdir()) == ["celeba"]


def test_a_zip_with_a_name_that_leads_elsewhere_is_refused(folder: Path) -> None:
    packed = zip_up(folder)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("img_align_celeba/../../escaped.jpg", b"")
    assert refusal(folder).startswith(
        f"error: {packed}['img_align_celeba/../../escaped.jpg']: leads out of the archive"
    )
    assert sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".normlab")) == [
        "img_align_celeba.zip",
        "list_eval_partition.txt",
    ]


def test_a_damaged_zip_leaves_no_folder(folder: Path) -> None:
    packed = zip_up(folder)
    os.truncate(packed, packed.stat().st_size // 2)
    assert refusal(folder).startswith(f"error: {packed}: is damaged: ")
    assert not (folder / "img_align_celeba").exists()
    assert not (folder / ".img_align_celeba.partial").exists()


def fake_gdown(monkeypatch: pytest.MonkeyPatch, sent: Path) -> None:
    def download(*, id: str, output: str, quiet: bool, resume: bool) -> str:
        Path(output).write_bytes(sent.read_bytes())
        return output

    gdown = types.ModuleType("gdown")
    gdown.__spec__ = types.SimpleNamespace()  # pyright: ignore
    gdown.download = download  # pyright: ignore
    monkeypatch.setitem(sys.modules, "gdown", gdown)


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        (ImportError("No module named 'requests'"), DataError, "gdown failed: No module named 'requests' — put"),
        (OSError("Max retries\nexceeded"), DataError, "gdown failed: Max retries exceeded — put"),
        (OSError(errno.ENOSPC, "No space left on device"), ResourceError, "cannot be written: no space left on device"),
    ],
)
def test_a_failure_of_gdown_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, kind: type[DataError], words: str
) -> None:
    def download(**_: object) -> None:
        raise failure

    fake_gdown(monkeypatch, folder)
    monkeypatch.setattr(sys.modules["gdown"], "download", download)
    (folder / "list_eval_partition.txt").unlink()
    with pytest.raises(kind) as caught:
        celeba(root=str(folder.parent))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_gdown_fetches_is_checked(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = opened(folder).fingerprint
    sent = zip_up(folder).rename(tmp_path / "sent.zip")
    fake_gdown(monkeypatch, sent)
    line = refusal(folder, download=True)
    assert "lacks img_align_celeba/, and Google Drive sent something else than img_align_celeba.zip" in line
    published = [("id", md5_of(sent), "img_align_celeba.zip")]
    monkeypatch.setattr(torchvision.datasets.CelebA, "file_list", published)
    assert celeba(root=str(folder.parent)).fingerprint == before


def test_the_command_line_trains_on_it(folder: Path, normlab: Command, outputs: Path) -> None:
    words = ("architecture.width=4", "train.batch_size=2", "train.until=2 steps", "evaluation=none", "device=cpu")
    trained = normlab("train", "dataset=celeba", f"dataset.root={folder.parent}", *words)
    assert trained.exit_code == 0, trained.stderr
