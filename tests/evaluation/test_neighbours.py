"""Neighbours in feature space against brute force."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from normlab.data.images import Dataset, Images
from normlab.evaluation.batching import Interrupted
from normlab.evaluation.neighbours import GAP, Neighbours, authenticity, nearest_neighbours, neighbours_picture
from normlab.outputs.grids import PADDING, save_image

CPU = torch.device("cpu")


class PooledFeatures:
    """64 features that are plain to compute: means of 4x4 pixels."""

    name: Literal["classifier"] = "classifier"
    dimensions = 64
    digest = "0123456789ab"
    info = "pools"

    def __init__(self) -> None:
        self.largest = 0

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.largest = max(self.largest, len(images))
        features = torch.nn.functional.avg_pool2d(images.float() / 255, 4).flatten(1)
        return features, features[:, :2]


def noise(count: int, seed: int) -> Tensor:
    return torch.randint(256, (count, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def split_of(pixels: Tensor) -> Images:
    array = pixels.numpy()
    array.flags.writeable = False
    return Images(array, None)


def nearest(samples: Tensor, images: Images, k: int = 5, batch_size: int = 7) -> Neighbours:
    return nearest_neighbours(samples, images, PooledFeatures(), k=k, batch_size=batch_size, device=CPU)


def distances_between(samples: Tensor, others: Tensor) -> Tensor:
    a, b = (PooledFeatures().extract(images)[0].double() for images in (samples, others))
    return (a[:, None] - b).square().sum(dim=2).sqrt()


@pytest.mark.parametrize("batch_size", [1, 7, 50, 1000])
def test_neighbours_are_those_of_brute_force(batch_size: int):
    samples, pixels = noise(6, 0), noise(50, 1)
    found = nearest(samples, split_of(pixels), batch_size=batch_size)
    distances, order = distances_between(samples, pixels).sort(dim=1)
    assert torch.equal(found.indices, order[:, :5])
    torch.testing.assert_close(found.distances, distances[:, :5].float())


def test_no_more_than_a_batch_is_looked_at_at_a_time():
    features = PooledFeatures()
    nearest_neighbours(noise(20, 0), split_of(noise(50, 1)), features, k=5, batch_size=8, device=CPU)
    assert features.largest == 8


def test_a_training_image_finds_itself(labelled: Dataset):
    rows = [3, 95, 40]
    found = nearest(torch.tensor(labelled.train.pixels[rows]), labelled.train)
    assert found.indices[:, 0].tolist() == rows
    # Features of one image in two batches may differ by rounding.
    assert found.distances[:, 0].max() < 1e-5 * found.distances[:, 1].min()


def test_of_equal_images_the_earlier_comes_first():
    pixels = noise(3, 1)[[0, 1, 1, 2, 1]]
    assert nearest(pixels[1:2], split_of(pixels), k=3, batch_size=2).indices.tolist() == [[1, 2, 4]]


def test_a_split_smaller_than_k_is_given_whole():
    assert nearest(noise(2, 0), split_of(noise(3, 1)), k=5).indices.shape == (2, 3)


def test_stop_is_heard_before_every_batch():
    answers = iter([False, True])
    with pytest.raises(Interrupted):
        nearest_neighbours(
            noise(1, 0),
            split_of(noise(9, 1)),
            PooledFeatures(),
            k=2,
            batch_size=3,
            device=CPU,
            stop=lambda: next(answers),
        )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_of_the_picture_is_a_sample_a_gap_and_its_neighbours(channels: int, tmp_path):
    samples, pixels = (noise(count, 2 + count).expand(-1, channels, -1, -1) for count in (2, 6))
    indices = torch.tensor([[5, 0, 3], [1, 1, 2]])
    picture = neighbours_picture(samples, split_of(pixels.contiguous()), Neighbours(indices, torch.zeros(2, 3)))
    step = 32 + PADDING
    right = step + PADDING + GAP
    assert picture.shape == (channels, 2 * step + PADDING, right + 3 * step + PADDING)
    for row in range(2):
        top = row * step + PADDING
        strip = picture[:, top : top + 32]
        assert torch.equal(strip[:, :, PADDING : PADDING + 32], samples[row])
        assert not strip[:, :, step : right + PADDING].any()
        for place, index in enumerate(indices[row]):
            left = right + place * step + PADDING
            assert torch.equal(strip[:, :, left : left + 32], pixels[index])
    save_image(picture, tmp_path / "neighbours.png")


def authentic(samples: Tensor, pixels: Tensor) -> float:
    return authenticity(samples, split_of(pixels), PooledFeatures(), batch_size=9, device=CPU)


def test_authenticity_is_that_of_brute_force():
    # Training images of little contrast, which lie close together, and of much; and each of them made brighter.
    pixels = (noise(40, 0) * torch.linspace(0.1, 0.8, 40)[:, None, None, None]).to(torch.uint8)
    samples = pixels + torch.arange(0, 40)[torch.randperm(40, generator=seeded())][:, None, None, None].to(torch.uint8)
    between = distances_between(pixels, pixels).fill_diagonal_(torch.inf).amin(dim=1)
    distance, match = distances_between(samples, pixels).min(dim=1)
    expected = float((distance > between[match]).double().mean())
    assert 0.1 < expected < 0.9
    assert authentic(samples, pixels) == pytest.approx(expected)


def test_copies_are_not_authentic_and_what_is_far_from_everything_is():
    pixels = noise(30, 0)
    assert authentic(pixels[5:9], pixels) == 0
    assert authentic(torch.full((4, 1, 32, 32), 255, dtype=torch.uint8), pixels) == 1
