"""Images that are decoded on the way: the same bits as packed ones, whatever the number of workers."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normlab.data.batches import BATCHES_AHEAD, RealBatches
from normlab.data.image_folder import image_folder
from normlab.data.images import Dataset, Images
from normlab.data.packing import cache_folder
from normlab.data.pixels import Pixels, StreamedPixels
from normlab.errors import DataError
from normlab.evaluation.classifier import fit_classifier
from tests.conftest import Command

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """120 JPEGs of several sizes in two classes, split."""
    random = np.random.default_rng(0)
    for number in range(120):
        folder = tmp_path / "images" / ("test" if number % 6 == 0 else "train") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (32 + number % 7, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.jpg")
    return tmp_path / "images"


def both(root: Path, **settings: object) -> tuple[Dataset, Dataset]:
    return image_folder(root=str(root), **settings), image_folder(root=str(root), streamed=True, **settings)


def stream_of(dataset: Dataset) -> RealBatches:
    return RealBatches(dataset.train, seed=0, batch_size=16, flip=True, device=CPU)


@pytest.mark.parametrize("settings", [{}, {"channels": 1, "image_size": 48}, {"limit": 33}])
def test_streamed_pixels_and_labels_are_those_of_the_pack(root: Path, settings: dict[str, object]) -> None:
    packed, streamed = both(root, **settings)
    for one, other in ((packed.train, streamed.train), (packed.held_out, streamed.held_out)):
        assert isinstance(other.pixels, StreamedPixels)
        assert (other.pixels.shape, other.pixels.nbytes) == (one.pixels.shape, one.pixels.nbytes)
        assert np.array_equal(other.pixels[:], one.pixels)
        assert np.array_equal(other.labels, one.labels)
        assert other.digest() == one.digest()
    assert (streamed.class_names, streamed.image_shape) == (packed.class_names, packed.image_shape)


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_batches_are_the_same_bits_whatever_the_number_of_workers(root: Path, workers: int) -> None:
    packed, streamed = both(root, limit=50)
    streamed = image_folder(root=str(root), streamed=True, workers=workers, limit=50)
    one, other = stream_of(packed), stream_of(streamed)
    assert other.resident is None
    for position in range(0, 20 * 16, 16):
        assert torch.equal(one.batch(position), other.batch(position))


def test_a_batch_depends_on_its_position_and_not_on_what_was_read_ahead(root: Path) -> None:
    onward, direct = (stream_of(image_folder(root=str(root), streamed=True)) for _ in range(2))
    reached = {position: onward.batch(position) for position in range(0, 20 * 16, 16)}
    for position in (0, 0, 160, 16, 7 * 16, 304):
        assert torch.equal(direct.batch(position), reached[position])


def test_nothing_is_packed(root: Path) -> None:
    stream_of(image_folder(root=str(root), streamed=True)).batch(0)
    assert not (cache_folder() / "datasets").exists()


def test_a_few_batches_are_read_ahead_and_no_more() -> None:
    reads: list[int] = []

    def read(number: int) -> Pixels:
        reads.append(number)
        return np.zeros((1, 2, 2), np.uint8)

    images = Images(StreamedPixels(200, (1, 2, 2), read, workers=2), None)
    real = RealBatches(images, seed=0, batch_size=4, flip=False, device=CPU)
    real.batch(0)
    for batch in real.ahead(0, 4).batches.values():
        batch.result()
    assert sorted(reads) == sorted(real.order(0)[: 4 * (1 + BATCHES_AHEAD)].tolist())


def test_of_a_batch_that_is_shared_a_process_reads_its_part_alone() -> None:
    reads: list[int] = []

    def read(number: int) -> Pixels:
        reads.append(number)
        return np.full((1, 2, 2), number, np.uint8)

    images = Images(StreamedPixels(200, (1, 2, 2), read, workers=2), None)
    real = RealBatches(images, seed=0, batch_size=4, flip=False, device=CPU)
    part = real.rows(8, slice(2, 4))
    for batch in real.ahead(2, 4).batches.values():
        batch.result()

    assert part[:, 0, 0, 0].tolist() == real.order(0)[10:12].tolist()
    assert sorted(reads) == sorted(number for at in range(10, 30, 4) for number in real.order(0)[at : at + 2].tolist())


@pytest.mark.parametrize("rows", [slice(0, 0), slice(3, 9), slice(195, 300), slice(None), np.array([7, 7, 0, 199])])
def test_rows_are_those_of_an_array(rows: "slice | np.ndarray") -> None:
    array = np.random.default_rng(0).integers(0, 256, (200, 3, 4, 4), dtype=np.uint8)
    streamed = StreamedPixels(200, (3, 4, 4), array.__getitem__, workers=3)
    assert np.array_equal(streamed[rows], array[rows])
    assert np.array_equal(streamed.select(np.array([5, 2, 9]))[:], array[[5, 2, 9]])


def test_images_are_decoded_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=10)  # breaks unless three threads are in it at once

    def read(number: int) -> Pixels:
        together.wait()
        return np.full((1, 2, 2), number, np.uint8)

    assert StreamedPixels(3, (1, 2, 2), read, workers=3)[:][:, 0, 0, 0].tolist() == [0, 1, 2]


def test_images_on_the_disk_are_read_ahead_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 1, 2, 2), dtype=np.uint8)
    resident = RealBatches(Images(pixels, None), seed=0, batch_size=8, flip=False, device=CPU)
    monkeypatch.setattr("normlab.data.batches.LARGEST_COPY", 8)
    mapped = RealBatches(Images(pixels, None), seed=0, batch_size=8, flip=False, device=CPU)
    for position in range(0, 200, 8):
        assert torch.equal(mapped.batch(position), resident.batch(position))
        assert list(mapped.ahead(0, 8).batches) == [position + 8 * k for k in range(1, BATCHES_AHEAD + 1)]


def test_the_fingerprint_follows_files_and_settings_and_not_workers(root: Path) -> None:
    def fingerprint(**settings: object) -> str:
        return image_folder(root=str(root), streamed=True, **settings).fingerprint

    first = fingerprint()
    assert fingerprint(workers=1) == fingerprint(flip=True) == first
    assert (
        len({first, fingerprint(limit=20), fingerprint(limit=21), fingerprint(channels=1), fingerprint(image_size=48)})
        == 5
    )
    Image.new("RGB", (32, 32)).save(root / "train" / "a" / "002.jpg")
    assert fingerprint() != first


def test_a_classifier_is_fitted_to_streamed_images_as_to_packed_ones(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("normlab.evaluation.classifier.LEAST_IMAGES_SEEN", 500)
    one, other = (fit_classifier(dataset) for dataset in both(root, channels=1))
    assert one.held_out_accuracy == other.held_out_accuracy
    for name, tensor in one.classifier.state_dict().items():
        assert torch.equal(tensor, other.classifier.state_dict()[name])


def test_a_damaged_image_is_named_when_its_turn_comes(root: Path) -> None:
    path = root / "train" / "a" / "002.jpg"
    path.write_bytes(path.read_bytes()[:500])
    real = stream_of(image_folder(root=str(root), streamed=True))
    with pytest.raises(DataError) as caught:
        _ = [real.batch(position) for position in range(0, 112, 16)]
    assert str(caught.value).startswith(f"error: {path}: cannot be decoded: ")
    assert "\n" not in str(caught.value)


TRAIN = ("train", "dataset=image_folder", "dataset.streamed=true", "dataset.limit=64", "evaluation=none")
SMALL = ("train.batch_size=8", "architecture.width=4", "every.checkpoint=10 steps", "device=cpu")


def digest(normlab: Command, run: Path) -> str:
    return normlab("verify", str(run), "--digest-only").stdout.strip()


def the_run(outputs: Path, name: str) -> Path:
    (run,) = (outputs / name).iterdir()
    return run


def test_a_run_on_streamed_images_resumes_bit_by_bit_with_other_workers(
    root: Path, normlab: Command, outputs: Path
) -> None:
    words = (*TRAIN, *SMALL, f"dataset.root={root}")
    assert normlab(*words, "train.until=20 steps", "name=straight").exit_code == 0
    assert normlab(*words, "train.until=10 steps", "name=broken", "dataset.workers=1").exit_code == 0
    assert normlab(*words, "train.until=20 steps", "name=broken", "dataset.workers=7").exit_code == 0
    assert digest(normlab, the_run(outputs, "broken")) == digest(normlab, the_run(outputs, "straight")) != ""


def test_a_damaged_image_ends_the_run_with_one_line_and_the_checkpoint_stays(
    root: Path, normlab: Command, outputs: Path
) -> None:
    dataset = image_folder(root=str(root), streamed=True, limit=64)
    order = stream_of(dataset).order(0)  # of seed 0, as the run has it
    kept = sorted((root / "train").rglob("*.jpg"), key=lambda path: path.relative_to(root).as_posix())
    whole = dataset.train.pixels
    assert isinstance(whole, StreamedPixels)
    late = int(order[-1])  # the last image of the first epoch, which ends with step 8
    victim = next(path for path in kept if np.array_equal(image_pixels(path), whole[np.array([late])][0]))
    words = (*TRAIN, *SMALL, f"dataset.root={root}", "every.checkpoint=2 steps", "train.until=20 steps")
    content = victim.read_bytes()
    victim.write_bytes(content[:500])
    ended = normlab(*words)
    assert ended.exit_code == 3
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {victim}: cannot be decoded: ")
    run = the_run(outputs, "default")
    assert "step_00000006" in str(sorted((run / "checkpoints").iterdir()))
    assert normlab("verify", str(run)).exit_code == 0


def image_pixels(path: Path) -> Pixels:
    from normlab.data.conversion import to_pixels

    with Image.open(path) as image:
        return to_pixels(image, 32, 3)[0]
