"""LSUN bedrooms on small databases in their layout."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normlab.data import lsun as module
from normlab.data.conversion import to_pixels
from normlab.data.lsun import lsun_bedroom
from normlab.data.packing import cache_folder
from normlab.data.pixels import StreamedPixels
from normlab.errors import DataError
from tests.conftest import Command

lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed (pip install 'normlab[lsun]')")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "COUNTS", {"bedroom_train_lmdb": 40, "bedroom_val_lmdb": 5})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Both databases, with WebP images of noise under keys of 40 hexadecimal digits."""
    random = np.random.default_rng(0)
    for name, count in module.COUNTS.items():
        fill(tmp_path / "data" / name, {random.bytes(20).hex(): noise(random) for _ in range(count)})
    return tmp_path / "data"


def noise(random: np.random.Generator) -> bytes:
    content = io.BytesIO()
    pixels = random.integers(0, 256, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "WEBP")
    return content.getvalue()


def fill(folder: Path, images: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**24) as database, database.begin(write=True) as transaction:
        for key, content in images.items():
            transaction.put(key.encode(), content)


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        lsun_bedroom(root=str(root))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_both_parts_are_streamed_in_the_order_of_their_keys(root: Path) -> None:
    dataset = lsun_bedroom(root=str(root))
    for images, name in ((dataset.train, "bedroom_train_lmdb"), (dataset.held_out, "bedroom_val_lmdb")):
        assert isinstance(images.pixels, StreamedPixels)
        assert images.labels is None
        with module._open(str(root / name)).begin() as transaction:
            contents = [content for _, content in sorted(transaction.cursor())]
        expected = [to_pixels(Image.open(io.BytesIO(content)), 64, 3)[0] for content in contents]
        assert np.array_equal(images.pixels[:], np.stack(expected))
    assert dataset.image_shape == (3, 64, 64)


def test_the_number_of_threads_changes_nothing(root: Path) -> None:
    one, many = (lsun_bedroom(root=str(root), workers=workers) for workers in (1, 8))
    assert np.array_equal(one.train.pixels[:], many.train.pixels[:])
    assert one.fingerprint == many.fingerprint


def test_limit_and_size_are_other_data_sets(root: Path) -> None:
    whole, few, small = (lsun_bedroom(root=str(root), **more) for more in ({}, {"limit": 7}, {"image_size": 32}))
    assert len({whole.fingerprint, few.fingerprint, small.fingerprint}) == 3
    assert len(few.train) == 7


def test_a_second_start_reads_neither_the_bytes_nor_the_keys_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lsun_bedroom(root=str(root))
    monkeypatch.setattr("normlab.data.packing._digest_of_file", lambda _: pytest.fail("the file was read again"))
    monkeypatch.setattr(module, "write_atomically", lambda *_: pytest.fail("the keys were listed again"))
    second = lsun_bedroom(root=str(root))
    assert np.array_equal(second.train.pixels[:], first.train.pixels[:])
    assert not (cache_folder() / "datasets").exists()


@pytest.mark.parametrize("content", [b"", b"nothing of the kind"])
def test_a_damaged_list_of_keys_is_made_anew(root: Path, content: bytes) -> None:
    first = lsun_bedroom(root=str(root))
    for kept in (cache_folder() / "listings").glob("*.npy"):
        kept.write_bytes(content)
    assert np.array_equal(lsun_bedroom(root=str(root)).train.pixels[:], first.train.pixels[:])


def test_a_missing_part_is_named_with_the_way_out(root: Path) -> None:
    (root / "bedroom_val_lmdb").rename(root / "elsewhere")
    line = refusal(root)
    assert line.startswith(f"error: {root / 'bedroom_val_lmdb'}: lacks data.mdb — ")
    for word in ("http://dl.yf.io/lsun/scenes/bedroom_val_lmdb.zip", "dataset.root", "dataset=image_folder"):
        assert word in line


def test_a_database_that_is_cut_short_is_refused_before_it_is_read(root: Path) -> None:
    file = root / "bedroom_train_lmdb" / "data.mdb"
    length = file.stat().st_size
    os.truncate(file, length // 2)
    assert f"{file}: is damaged: it has {length // 2:,} of {length:,} bytes" in refusal(root)


def test_what_is_no_database_is_refused(root: Path) -> None:
    file = root / "bedroom_val_lmdb" / "data.mdb"
    file.write_bytes(b"nothing of the kind" * 1000)
    assert refusal(root).startswith(f"error: {file}: is damaged: ")


def test_too_few_images_are_refused_with_counts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.COUNTS, "bedroom_train_lmdb", 3_033_042)
    assert "data.mdb: holds 40 of 3,033,042 images — " in refusal(root)


def test_an_image_that_cannot_be_decoded_is_named_by_its_key(root: Path) -> None:
    fill(
        root / "other",
        {"bad": b"not an image", **{f"{number}": noise(np.random.default_rng(0)) for number in range(4)}},
    )
    (root / "bedroom_val_lmdb").rename(root / "elsewhere")
    (root / "other").rename(root / "bedroom_val_lmdb")
    held_out = lsun_bedroom(root=str(root)).held_out
    with pytest.raises(DataError, match=r"data\.mdb\[bad\]: cannot be decoded: it is not an image"):
        held_out.pixels[:]


def test_without_lmdb_the_extra_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    assert "lsun_bedroom needs the package lmdb — run: pip install 'normlab[lsun]'" in refusal(root)


def test_the_command_line_trains_on_it(root: Path, normlab: Command, outputs: Path) -> None:
    words = ("architecture.width=4", "train.batch_size=2", "train.until=2 steps", "evaluation=none", "device=cpu")
    trained = normlab("train", "dataset=lsun_bedroom", f"dataset.root={root}", *words)
    assert trained.exit_code == 0, trained.stderr
