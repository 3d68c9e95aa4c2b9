import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normlab.data.folders import hold_out, list_folder
from normlab.data.image_folder import image_folder
from normlab.data.images import Dataset
from normlab.errors import DataError

from ..conftest import Command


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "images"


def put(root: Path, name: str, colour: int = 0, mode: str = "RGB", size: tuple[int, int] = (32, 32)) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (colour,) * len(mode) if len(mode) > 1 else colour).save(path)
    return path


def colours(dataset: Dataset) -> tuple[list[int], list[int]]:
    return dataset.train.pixels[:, 0, 0, 0].tolist(), dataset.held_out.pixels[:, 0, 0, 0].tolist()


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        image_folder(root=str(root))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_flat_folder_has_no_labels(root: Path):
    for number in range(5):
        put(root, f"{number}.png", number)
    dataset = image_folder(root=str(root))
    train, held_out = colours(dataset)
    assert sorted(train + held_out) == [0, 1, 2, 3, 4]
    assert (dataset.train.labels, dataset.class_names, dataset.image_shape) == (None, None, (3, 32, 32))


def test_class_folders_give_labels_by_sorted_name(root: Path):
    for number in range(20):
        put(root, f"{'cat' if number % 2 else 'bee'}/{number}.png", number)
    dataset = image_folder(root=str(root))
    assert dataset.class_names == ("bee", "cat")
    for images, shown in zip((dataset.train, dataset.held_out), colours(dataset), strict=True):
        assert images.labels is not None
        assert images.labels.tolist() == [number % 2 for number in shown]


def test_images_outside_the_splits_are_counted_in_a_note(root: Path):
    for name in ("train/1.png", "train/2.png", "test/3.png", "val/4.png", "5.png"):
        put(root, name)
    for streamed in (False, True):
        assert (
            image_folder(root=str(root), streamed=streamed).notes[0] == "2 images outside train/ and test/ are not used"
        )


@pytest.mark.parametrize("test", ["test", "val"])
def test_train_and_test_folders_are_the_splits(root: Path, test: str):
    for number in range(4):
        put(root, f"train/{'ab'[number % 2]}/{number}.png", number)
    put(root, f"{test}/b/9.png", 9)
    dataset = image_folder(root=str(root))
    assert colours(dataset) == ([0, 2, 1, 3], [9])
    assert dataset.held_out.labels is not None
    assert dataset.held_out.labels.tolist() == [1]


def test_labels_are_dropped_when_some_images_lie_outside_the_classes(root: Path):
    for name in ("a/1.png", "b/2.png", "3.png"):
        put(root, name)
    assert image_folder(root=str(root)).class_names is None


def test_extensions_count_in_any_case_and_hidden_files_do_not(root: Path):
    names = ("a.PNG", "b.Jpg", "c.jpeg", "d.bmp", "e.webp", "f.gif", "g.tif", "h.TIFF")
    for name in (*names, ".i.png", ".hidden/j.png", "__MACOSX/k.png"):
        put(root, name)
    (root / "readme.txt").write_text("not an image")
    listing = list_folder(root)
    assert sorted(path.name for path in listing.files) == sorted(names)


def test_links_are_followed_and_a_circle_ends(root: Path, tmp_path: Path):
    put(tmp_path / "elsewhere", "1.png")
    put(root, "a/2.png")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    assert len(list_folder(root).files) == 2


def test_a_tenth_is_held_out_and_adding_files_moves_no_other():
    before = [Path(f"class/{number}.png") for number in range(2000)]
    more = [*before, *(Path(f"new/{number}.png") for number in range(2000))]
    assert 150 < len(hold_out(before)) < 250
    assert hold_out(more) & set(before) == hold_out(before)
    assert hold_out(before[::-1]) == hold_out(before)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_neither_split_is_ever_empty(count: int):
    for start in range(200):
        files = [Path(f"{start + number}.png") for number in range(count)]
        assert 1 <= len(hold_out(files)) < count


def test_no_more_than_ten_thousand_are_held_out():
    assert len(hold_out([Path(f"{number}.png") for number in range(110_000)])) == 10_000


def test_a_folder_of_mixed_modes_and_sizes_gives_exact_pixels_and_counts(root: Path):
    put(root, "train/1.png", 11, "L")
    put(root, "train/2.png", 12, "RGB")
    put(root, "train/3.png", 0, "RGBA", (48, 64))  # all transparent
    Image.fromarray(np.full((32, 32), 257 * 14, np.uint16)).save(root / "train/4.png")
    put(root, "test/5.png", 15, "L", (32, 40))
    dataset = image_folder(root=str(root))
    assert colours(dataset) == ([11, 12, 255, 14], [15])
    assert (dataset.train.pixels == dataset.train.pixels[:, :1, :1, :1]).all()
    assert dataset.notes == (
        "1 of 5 images: 16-bit scaled to 8 bits",
        "2 of 5 images: cropped to the centre square",
        "3 of 5 images: grey repeated to 3 channels",
        "1 of 5 images: reduced to 32 pixels",
        "1 of 5 images: transparency composited on white",
    )


def test_a_run_on_a_mixed_folder_says_what_was_done_to_its_images(root: Path, normlab: Command, outputs: Path):
    for number in range(8):
        put(root, f"{number}.png", number, ["L", "RGBA"][number % 2], (32, 40))
    words = ["dataset=image_folder", f"dataset.root={root}", "train.batch_size=2", "train.until=1 step"]
    ended = normlab("train", *words, "evaluation=none", "architecture.width=4")

    assert ended.exit_code == 0, ended.stderr
    (log,) = outputs.glob("*/*/run.log")
    for note in ("8 of 8 images: cropped to the centre square", "4 of 8 images: transparency composited on white"):
        assert ended.stderr.count(note) == log.read_text().count(note) == 1


def test_one_channel_can_be_asked_for(root: Path):
    for number in range(3):
        put(root, f"{number}.png", number)
    assert image_folder(root=str(root), channels=1, image_size=64).image_shape == (1, 64, 64)


def test_a_second_start_decodes_nothing_and_says_the_same(root: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(3):
        put(root, f"{number}.png", number, "L")
    first = image_folder(root=str(root))
    monkeypatch.setattr("normlab.data.image_folder.decode", lambda *_, **__: pytest.fail("an image was decoded again"))
    second = image_folder(root=str(root))
    assert (second.fingerprint, second.notes) == (first.fingerprint, first.notes)
    assert first.notes


def test_a_changed_image_is_another_data_set(root: Path):
    for number in range(3):
        put(root, f"{number}.png", number)
    before = image_folder(root=str(root)).fingerprint
    put(root, "1.png", 77)
    assert image_folder(root=str(root)).fingerprint != before


def test_limit_keeps_classes_mixed_and_a_larger_one_keeps_a_smaller_one(root: Path):
    for number in range(100):
        put(root, f"train/{number // 50}/{number:02}.png", number)
    put(root, "test/0/0.png")
    few, more = image_folder(root=str(root), limit=10), image_folder(root=str(root), limit=20)
    assert few.train.labels is not None
    assert set(few.train.labels.tolist()) == {0, 1}
    assert colours(more)[0][:10] == colours(few)[0]
    assert few.fingerprint != more.fingerprint
    assert few.notes == ("dataset.limit keeps 10 of 100 training images",)


def test_a_limit_above_the_number_of_images_changes_nothing(root: Path):
    for number in range(3):
        put(root, f"{number}.png", number)
    all_images, limited = image_folder(root=str(root)), image_folder(root=str(root), limit=1000)
    assert (limited.fingerprint, colours(limited)) == (all_images.fingerprint, colours(all_images))


def test_a_missing_folder_is_named_with_the_way_out(root: Path):
    line = refusal(root)
    assert line.startswith(f"error: dataset.root: there is no folder '{root}' — set dataset.root (or NORMLAB_DATA)")


def test_a_file_in_place_of_the_folder_is_named(root: Path):
    root.write_text("")
    assert f"'{root}' is a file, not a folder" in refusal(root)


def test_a_folder_without_images_says_which_kinds_count(root: Path):
    root.mkdir()
    assert f"'{root}' holds no images (.png .jpg" in refusal(root)


def test_a_single_image_cannot_be_split(root: Path):
    put(root, "1.png")
    assert "holds only one image, 1.png" in refusal(root)


def test_a_data_set_within_the_folder_is_not_mistaken_for_a_class(root: Path):
    put(root, "cifar/train/a/1.png")
    put(root, "cifar/test/a/2.png")
    assert refusal(root).endswith(f"give dataset.root={root / 'cifar'}")


@pytest.mark.parametrize("name", ["1.png", "1.jpg", "1.gif", "1.bmp", "1.webp", "1.tif"])
def test_a_truncated_image_is_named(root: Path, name: str):
    put(root, "0.png")
    path = put(root, name)
    os.truncate(path, path.stat().st_size // 2)
    assert refusal(root).startswith(f"error: {path}: cannot be decoded: ")


def test_what_is_no_image_is_named(root: Path):
    put(root, "0.png")
    (root / "1.jpg").write_text("not an image")
    line = refusal(root)
    assert line.startswith(f"error: {root / '1.jpg'}: cannot be decoded: it is not an image, or is damaged — ")


def test_pixels_of_unknown_range_are_refused_by_name(root: Path):
    put(root, "0.png")
    Image.fromarray(np.zeros((32, 32), np.float32)).save(root / "1.tif")
    assert refusal(root).startswith(f"error: {root / '1.tif'}: has floating-point pixels")


def test_damaged_images_are_all_named_at_once_up_to_ten(root: Path):
    root.mkdir()
    for number in range(12):
        (root / f"{number:02}.png").write_text("")
    with pytest.raises(DataError) as caught:
        image_folder(root=str(root))
    assert len(caught.value.complaints) == 11
    assert "more files cannot be decoded" in str(caught.value)
