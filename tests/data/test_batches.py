import numpy as np
import pytest
import torch
from torch import Tensor

from normlab.data import batches
from normlab.data.batches import RealBatches
from normlab.data.images import Images
from normlab.errors import DataError

CPU = torch.device("cpu")


def numbered(count: int) -> Images:
    """Images of 2x2 whose first pixel is their number and whose second is 255."""
    pixels = np.zeros((count, 1, 2, 2), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(count)
    pixels[:, 0, 0, 1] = 255
    pixels.flags.writeable = False
    return Images(pixels, None)


def numbers(batch: Tensor) -> list[int]:
    return [round(float(value + 1) * 127.5) for value in batch[:, 0, 0, 0]]


def stream_of(count: int, batch_size: int, seed: int = 0, flip: bool = False) -> RealBatches:
    return RealBatches(numbered(count), seed=seed, batch_size=batch_size, flip=flip, device=CPU)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_every_epoch_shows_each_image_once_across_the_borders_of_batches(batch_size: int):
    real = stream_of(10, batch_size)
    shown = [number for step in range(70) for number in numbers(real.batch(step * batch_size))]
    epochs = [shown[start : start + 10] for start in range(0, 70, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_a_batch_depends_on_its_position_and_not_on_what_was_asked_before():
    onward, direct = stream_of(10, 4, flip=True), stream_of(10, 4, flip=True)
    reached = [onward.batch(position) for position in range(0, 100, 4)]
    for position in (96, 8, 0, 36):
        assert torch.equal(direct.batch(position), reached[position // 4])


def test_the_images_at_a_position_do_not_depend_on_the_batch_size():
    small, large = stream_of(10, 2), stream_of(10, 6)
    assert numbers(large.batch(8)) == [number for start in (8, 10, 12) for number in numbers(small.batch(start))]


def test_another_seed_gives_another_order():
    assert numbers(stream_of(50, 50, seed=1).batch(0)) != numbers(stream_of(50, 50, seed=2).batch(0))


def test_pixels_become_floats_from_minus_one_to_one():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    expected = torch.tensor([-1.0, 51 / 127.5 - 1, 1.0])
    torch.testing.assert_close(batches.scaled(pixels), expected, rtol=0, atol=1e-7)


def test_flips_mirror_about_half_of_the_images_and_leave_the_order_alone():
    plain, flipped = stream_of(200, 200).batch(0), stream_of(200, 200, flip=True).batch(0)
    mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    assert torch.equal(torch.where(mirrored[:, None, None, None], plain.flip(-1), plain), flipped)
    assert 70 < int(mirrored.sum()) < 130


def test_the_same_image_is_not_always_flipped_alike():
    real = stream_of(1, 1, flip=True)
    assert {float(real.batch(position)[0, 0, 0, 0]) for position in range(20)} == {-1.0, 1.0}


def test_images_too_large_to_copy_are_read_in_place_with_the_same_result(monkeypatch: pytest.MonkeyPatch):
    copied = stream_of(10, 4)
    monkeypatch.setattr(batches, "LARGEST_COPY", 8)
    mapped = stream_of(10, 4)
    assert copied.resident is not None
    assert mapped.resident is None
    assert torch.equal(mapped.batch(8), copied.batch(8))


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(DataError, match=r"error: train.batch_size: is 11, but there are only 10 training images — "):
        stream_of(10, 11)


def test_at_most_two_permutations_are_kept():
    real = stream_of(10, 10)
    for position in range(0, 100, 10):
        real.batch(position)
    assert real.order.cache_info().currsize == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_shows_the_same_images_without_waiting_for_it():
    device = torch.device("cuda")
    real = RealBatches(numbered(10), seed=0, batch_size=4, flip=True, device=device)
    real.batch(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        shown = [real.batch(position) for position in range(0, 40, 4)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = stream_of(10, 4, flip=True)
    assert all(torch.equal(batch.cpu(), expected.batch(4 * step)) for step, batch in enumerate(shown))
