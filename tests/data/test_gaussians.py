"""The mixtures of Gaussians against their closed forms."""

from pathlib import Path

import numpy as np
import pytest
import torch

from normlab import load
from normlab.data.batches import scaled
from normlab.data.gaussians import EXTENT, gaussians
from normlab.outputs.grids import SIDE, scatter
from normlab.outputs.run_dir import RunDir
from normlab.outputs.sinks import JsonLines

from ..conftest import Command


@pytest.mark.parametrize(("layout", "modes"), [("ring", 8), ("grid", 25)])
def test_points_scatter_around_the_means_of_their_modes(layout: str, modes: int) -> None:
    dataset = gaussians(layout=layout, std=0.05)  # pyright: ignore[reportArgumentType]
    points, labels = dataset.train.pixels[:, :, 0, 0], dataset.train.labels
    assert labels is not None
    means = np.stack([points[labels == mode].mean(axis=0) for mode in range(modes)])
    spreads = np.stack([points[labels == mode].std(axis=0) for mode in range(modes)])

    assert (dataset.classes, dataset.image_shape, dataset.of_points) == (modes, (2, 1, 1), True)
    # Of 4,000 points and more to a mode: 5 standard errors.
    np.testing.assert_allclose(spreads, 0.05, rtol=5 / (2 * 4000) ** 0.5)
    assert np.bincount(labels).min() > 100_000 / modes - 5 * (100_000 / modes) ** 0.5
    if layout == "ring":
        np.testing.assert_allclose(np.linalg.norm(means, axis=1), EXTENT, atol=5 * 0.05 / 4000**0.5)
    else:
        np.testing.assert_allclose(np.unique(means.round(2)), [-0.8, -0.4, 0, 0.4, 0.8], atol=0.01)


def test_points_are_in_the_range_of_images_already() -> None:
    points = torch.rand(5, 2, 1, 1) * 2 - 1

    assert torch.equal(scaled(points), points)


def test_a_plot_has_x_to_the_right_and_y_upwards() -> None:
    picture = scatter(torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.5, 9.0]]))[0]

    assert picture.nonzero().tolist() == [[0, round(0.75 * (SIDE - 1))], [0, SIDE - 1], [SIDE - 1, 0]]


@pytest.mark.slow
def test_a_gan_learns_the_ring_in_seconds(normlab: Command, outputs: Path) -> None:
    words = ["dataset=gaussians", "architecture=mlp", "normalization=both/none", "initialisation=kaiming"]
    words += ["optimizer.lr=1e-3", "train.batch_size=256", "train.until=1500 steps"]
    words += ["evaluation.samples=1000", "evaluation.kept=1000", "every.spectra=null"]
    trained = normlab("train", *words)
    assert trained.exit_code == 0, trained.stderr
    (run,) = outputs.glob("*/*")
    row = JsonLines(RunDir(run).evaluations).rows()[-1]
    assert row["state"] is None  # neither collapsed nor as it was at the start
    with torch.no_grad():
        points = load(run)(torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)))[:, :, 0, 0]
    radius = points.norm(dim=1)
    sectors = torch.bincount(
        ((torch.atan2(points[:, 1], points[:, 0]) / (torch.pi / 4)).round().long()) % 8, minlength=8
    )

    # Most samples lie on the ring, and every mode has some.
    assert ((radius - EXTENT).abs() < 0.1).float().mean() > 0.8
    assert (sectors > 40).all()
