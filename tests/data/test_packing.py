import errno
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from normlab.data.packing import PackWriter, cache_folder, content_digest, in_threads, packed
from normlab.errors import DataError, ResourceError

PIXELS = np.arange(6 * 12, dtype=np.uint8).reshape(6, 3, 2, 2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(writer: PackWriter) -> None:
    writer.split("train", (4, 3, 2, 2), [PIXELS[:1], PIXELS[1:4]], np.arange(4))
    writer.split("held_out", (2, 3, 2, 2), PIXELS[4:], None)
    writer.finish(["a", "b"], ["2 images: turned"])


class CountingFill:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, writer: PackWriter) -> None:
        self.calls += 1
        fill(writer)


def pack_folders(cache: Path) -> list[Path]:
    return [path for path in (cache / "datasets").iterdir() if path.is_dir()]


def test_a_pack_gives_back_what_was_written():
    pack = packed("toy", "source", {}, fill)
    assert np.array_equal(pack.train.pixels, PIXELS[:4])
    assert np.array_equal(pack.held_out.pixels, PIXELS[4:])
    assert pack.train.labels is not None
    assert pack.train.labels.tolist() == [0, 1, 2, 3]
    assert pack.held_out.labels is None
    assert (pack.class_names, pack.notes) == (("a", "b"), ("2 images: turned",))
    assert pack.digests == (pack.train.digest(), pack.held_out.digest())


def test_packed_pixels_are_mapped_and_cannot_be_written():
    pixels = packed("toy", "source", {}, fill).train.pixels
    assert isinstance(pixels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 0


def test_a_second_call_decodes_nothing():
    counting = CountingFill()
    packed("toy", "source", {}, counting)
    packed("toy", "source", {}, counting)
    assert counting.calls == 1


def test_another_source_or_setting_is_another_pack(cache: Path):
    for source, settings in (("one", {"image_size": 32}), ("two", {"image_size": 32}), ("one", {"image_size": 64})):
        packed("toy", source, settings, fill)
    assert len(pack_folders(cache)) == 3


def test_an_interrupted_preparation_leaves_nothing_and_the_next_one_succeeds(cache: Path):
    def interrupted(writer: PackWriter) -> None:
        writer.split("train", (4, 3, 2, 2), PIXELS[:4], None)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed("toy", "source", {}, interrupted)
    assert pack_folders(cache) == []
    assert len(packed("toy", "source", {}, fill).train) == 4


def kill_while_filling(writer: PackWriter) -> None:
    writer.split("train", (4, 3, 2, 2), PIXELS[:4], None)
    os._exit(9)


def test_a_source_that_cannot_be_read_is_not_mistaken_for_a_cache_that_cannot_be_written(cache: Path):
    def fill(writer: PackWriter) -> None:
        def rows():
            yield np.zeros((1, 1, 2, 2), np.uint8)
            raise OSError(errno.EIO, "Input/output error", "images/7.png")

        writer.split("train", (2, 1, 2, 2), rows(), None)

    with pytest.raises(DataError, match=r"images/7\.png: cannot be read: Input/output error"):
        packed("broken", "source", {}, fill)
    assert pack_folders(cache) == []


def test_what_a_killed_preparation_left_is_not_taken_for_a_pack_and_is_cleared_away(cache: Path):
    child = os.fork()
    if child == 0:
        packed("toy", "source", {}, kill_while_filling)
    os.waitpid(child, 0)
    (leftover,) = pack_folders(cache)
    assert leftover.name.endswith(".partial")
    assert len(packed("toy", "source", {}, fill).held_out) == 2
    assert [folder.suffix for folder in pack_folders(cache)] == [""]


@pytest.mark.parametrize("name", ["train_pixels.npy", "held_out_pixels.npy", "train_labels.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_damaged_pack_is_built_anew(cache: Path, name: str, damage: str):
    packed("toy", "source", {}, fill)
    (folder,) = pack_folders(cache)
    if damage == "cut":
        os.truncate(folder / name, 20)
    else:
        (folder / name).unlink()
    assert np.array_equal(packed("toy", "source", {}, fill).train.pixels, PIXELS[:4])


def slow_fill(writer: PackWriter) -> None:
    with (cache_folder() / "fills").open("a") as file:
        file.write("x")
    time.sleep(0.3)
    fill(writer)


def pack_slowly() -> None:
    packed("toy", "source", {}, slow_fill)


def test_two_processes_pack_once(cache: Path):
    cache.mkdir()
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=pack_slowly) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert (cache / "fills").read_text() == "x"


def test_a_cache_that_cannot_be_written_is_one_line_that_names_the_variable(cache: Path):
    cache.write_text("a file stands where the folder should be")
    with pytest.raises(ResourceError) as caught:
        packed("toy", "source", {}, fill)
    assert str(caught.value).startswith(f"error: {cache}: cannot be written: ")
    assert "NORMLAB_CACHE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_and_leaves_nothing(cache: Path):
    def full(writer: PackWriter) -> None:
        writer.split("train", (4, 3, 2, 2), PIXELS[:4], None)
        raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match="cannot be written: No space left on device"):
        packed("toy", "source", {}, full)
    assert pack_folders(cache) == []


def test_the_cache_folder_follows_its_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("NORMLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "normlab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "normlab"


def test_the_content_digest_follows_bytes_and_paths_and_not_times(tmp_path: Path):
    root = tmp_path / "images"
    root.mkdir()
    first, second = root / "a", root / "b"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    before = content_digest(root, [first, second])
    os.utime(first, ns=(1, 1))
    assert content_digest(root, [first, second]) == before
    second.write_bytes(b"owt")
    assert content_digest(root, [first, second]) != before
    assert content_digest(root, [first]) != before


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    before = content_digest(tmp_path, [file])
    monkeypatch.setattr("normlab.data.packing._digest_of_file", lambda _: pytest.fail("the file was read again"))
    assert content_digest(tmp_path, [file]) == before


def test_a_link_to_nothing_is_named(tmp_path: Path):
    link = tmp_path / "a.png"
    link.symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"a\.png: cannot be read: No such file or directory — "):
        content_digest(tmp_path, [link])


def test_threads_give_results_in_the_order_of_the_items():
    assert list(in_threads(lambda number: number * number, range(3000))) == [number**2 for number in range(3000)]
