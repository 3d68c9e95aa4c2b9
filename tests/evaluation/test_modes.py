"""Counts of modes against samples whose modes are known."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from normlab.data import stacked_mnist as stacked
from normlab.data.batches import scaled
from normlab.data.conversion import resize_all
from normlab.data.digits import digits
from normlab.data.gaussians import gaussians, grid, ring
from normlab.data.images import Dataset
from normlab.data.stacked_mnist import stacked_mnist
from normlab.evaluation.classifier import load_classifier, shipped_classifier
from normlab.evaluation.modes import Gaussians, ModeCounter, StackedDigits, kl_to_uniform, mode_counter

CPU = torch.device("cpu")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def as_images(points: Tensor) -> Tensor:
    return points[:, :, None, None]


def counted(counter: ModeCounter, samples: Tensor) -> dict[str, float]:
    counter.reset()
    for batch in samples.split(300):
        counter.update(batch)
    return counter.metrics()


def test_modes_are_estimated_from_the_labelled_points():
    for layout, means in (("ring", ring(8)), ("grid", grid(5))):
        found = Gaussians.of(gaussians(layout=layout, std=0.02))  # type: ignore[arg-type]
        # 5 standard errors, of 4,400 points and more to a mode and of 220,000 coordinates in all.
        np.testing.assert_allclose(found.means.numpy(), means, atol=5 * 0.02 / 4000**0.5)
        assert found.std == pytest.approx(0.02, rel=5 / (2 * 220_000) ** 0.5)


def test_a_limit_on_the_training_points_leaves_every_mode():
    found = Gaussians.of(gaussians(layout="grid", limit=3))
    np.testing.assert_allclose(found.means.numpy(), grid(5), atol=5 * 0.01 / 300**0.5)


def test_points_of_the_mixture_are_good_as_often_as_their_distribution_says():
    dataset = gaussians()
    metrics = counted(Gaussians.of(dataset), torch.tensor(dataset.held_out.pixels))
    # In two dimensions the squared distance over the variance is exponential with mean 2.
    expected = 1 - math.exp(-4.5)
    assert metrics["good_share"] == pytest.approx(expected, abs=5 * (expected * (1 - expected) / 10_000) ** 0.5)
    assert metrics["modes"] == 8


def test_points_within_three_deviations_of_the_nearest_mean_are_good():
    means = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    points = torch.tensor([[0.299, 0.0], [0.0, -0.301], [0.9, -0.2], [1.0, 0.4], [0.5, 0.5], [float("nan"), 0.0]])
    counter = Gaussians(means, std=0.1)
    for _ in range(2):  # the second time as if there had been no first
        # Two good ones in two of three modes: log 3 - log 2.
        assert counted(counter, as_images(points)) == {
            "modes": 2,
            "good_share": pytest.approx(2 / 6),
            "kl_to_uniform": pytest.approx(math.log(3) - math.log(2)),
        }


def test_where_no_point_is_good_there_is_no_divergence():
    found = Gaussians(torch.zeros(3, 2, dtype=torch.float64), std=0.1)
    assert counted(found, as_images(torch.ones(4, 2))) == {"modes": 0, "good_share": 0}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([5, 5, 5, 5], 0),
        ([7, 0, 0, 0], math.log(4)),
        ([3, 1], math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)),
    ],
)
def test_divergence_from_uniform_is_the_closed_form(counts: list[int], expected: float):
    assert kl_to_uniform(torch.tensor(counts)) == pytest.approx(expected, abs=1e-12)


def test_divergence_of_a_uniform_draw_is_half_the_other_modes_over_the_draws():
    draws = [torch.randint(1000, (26_000,), generator=seeded()).bincount(minlength=1000)]
    # 2 n KL is nearly chi squared with 999 degrees of freedom: 5 of its standard deviations, and its next term, 1 %.
    expected = 999 / 52_000
    assert kl_to_uniform(draws[0]) == pytest.approx(expected, rel=5 * (2 / 999) ** 0.5 + 0.02)


def test_only_data_whose_modes_are_known_have_a_counter(labelled: Dataset):
    assert isinstance(mode_counter(gaussians(), CPU), Gaussians)
    assert isinstance(mode_counter(replace(labelled, name="stacked_mnist"), CPU), StackedDigits)
    assert mode_counter(labelled, CPU) is None


@pytest.fixture(scope="module")
def planes() -> Tensor:
    """A plane for each digit that the classifier of MNIST reads rightly, uint8 [10, 32, 32]."""
    embedded = digits()
    pixels, labels = torch.tensor(embedded.train.pixels[:300]).float(), torch.tensor(embedded.train.labels[:300])
    # As large in the frame, and as bright, as MNIST's.
    small = functional.interpolate(pixels, size=(18, 18), mode="bilinear", antialias=True)
    drawn = functional.pad((small * 1.5).clamp(0, 255), [7] * 4).to(torch.uint8)
    path = shipped_classifier("mnist", (1, 32, 32))
    assert path is not None
    with torch.no_grad():
        read = load_classifier(path).classifier(scaled(drawn))[1].argmax(dim=1)
    first = [int(((labels == digit) & (read == digit)).nonzero()[0]) for digit in range(10)]
    return drawn[first, 0]


@pytest.fixture
def stacks(labelled: Dataset) -> StackedDigits:
    counter = mode_counter(replace(labelled, name="stacked_mnist"), CPU)
    assert isinstance(counter, StackedDigits)
    return counter


def test_red_green_and_blue_are_hundreds_tens_and_ones(stacks: StackedDigits, planes: Tensor):
    stacks.update(planes[torch.tensor([[0, 4, 2], [7, 0, 1], [7, 0, 1]])])
    assert stacks.counts.nonzero().flatten().tolist() == [42, 701]
    assert stacks.metrics() == {
        "modes": 2,
        "kl_to_uniform": pytest.approx(math.log(1000) + math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3),
    }


def test_every_mode_that_has_an_image_is_reached_and_no_other(stacks: StackedDigits, planes: Tensor):
    modes = torch.cartesian_prod(*[torch.arange(10)] * 3)[::7]
    assert counted(stacks, planes[modes]) == {"modes": 143, "kl_to_uniform": pytest.approx(math.log(1000 / 143))}
    assert stacks.counts.nonzero().flatten().tolist() == list(range(0, 1000, 7))


@pytest.mark.parametrize("size", [48, 64])
def test_larger_images_are_reduced_to_what_the_classifier_knows(stacks: StackedDigits, planes: Tensor, size: int):
    large = torch.from_numpy(resize_all(planes[:, None].numpy(), size))[:, 0]
    stacks.update(torch.stack([large, large.roll(-1, dims=0), large.roll(-2, dims=0)], dim=1))
    assert stacks.counts.nonzero().flatten().tolist() == [12, 123, 234, 345, 456, 567, 678, 789, 890, 901]


@pytest.mark.skipif(
    not (Path(os.environ.get("NORMLAB_DATA", "/nowhere")) / "MNIST" / "raw").is_dir(),
    reason="NORMLAB_DATA names no folder with MNIST",
)
@pytest.mark.slow
def test_real_stacks_are_counted_by_their_labels(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stacked, "TRAIN", 1000)
    monkeypatch.setattr(stacked, "HELD_OUT", 10)
    dataset = stacked_mnist(root=os.environ["NORMLAB_DATA"], download=False)
    counter = mode_counter(dataset, CPU)
    assert isinstance(counter, StackedDigits)
    counted(counter, torch.tensor(dataset.train.pixels))
    labels = torch.tensor(dataset.train.labels).bincount(minlength=1000)
    # Three readings, each wrong in 0.7 % of the test digits.
    assert (counter.counts - labels).abs().sum() / 2 < 0.03 * 1000
