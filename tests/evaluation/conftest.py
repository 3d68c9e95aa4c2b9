from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normlab.data.images import Dataset, Images


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a cache folder of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("NORMLAB_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bars(count: int, seed: int) -> Images:
    """Images with a bright bar on the left (class 0) or on the right (class 1), and some noise."""
    random = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 2
    pixels = random.integers(0, 60, size=(count, 1, 32, 32), dtype=np.uint8)
    pixels[labels == 0, :, :, 4:12] += 150
    pixels[labels == 1, :, :, 20:28] += 150
    pixels.flags.writeable = labels.flags.writeable = False
    return Images(pixels, labels)


@pytest.fixture
def labelled() -> Dataset:
    return Dataset("bars", bars(96, 0), bars(40, 1), ("left", "right"), "ab" * 32, False, ())


@pytest.fixture
def unlabelled(labelled: Dataset) -> Dataset:
    train, held_out = Images(labelled.train.pixels, None), Images(labelled.held_out.pixels, None)
    return Dataset("bare", train, held_out, None, "cd" * 32, False, ())


@pytest.fixture
def colour(unlabelled: Dataset) -> Dataset:
    train, held_out = (
        Images(images.pixels.repeat(3, axis=1), None) for images in (unlabelled.train, unlabelled.held_out)
    )
    return Dataset("colour", train, held_out, None, "ef" * 32, False, ())


class Upwards(nn.Module):
    """A small generator with batch normalization and dropout, of images 1x32x32."""

    latent_size = 6

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1024), nn.Tanh()
        )

    def forward(self, latents: Tensor) -> Tensor:
        return self.body(latents).reshape(-1, 1, 32, 32)


@pytest.fixture
def generator() -> Upwards:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Upwards()
        network(torch.randn(32, 6))  # running statistics on the way, as in training
    return network
