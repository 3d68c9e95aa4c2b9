import math

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from normlab.evaluation.frechet import Moments, frechet_distance
from normlab.randomness import stream


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed, "test"), dtype=torch.float64)


def moments_with(mean: Tensor, variances: Tensor, count: int = 1000) -> Moments:
    """The moments of a set with exactly this mean and these variances, without a set."""
    products = torch.diag(variances) * (count - 1) + count * torch.outer(mean, mean)
    return Moments(count, count * mean, products)


def by_torch_fidelity(real: Tensor, fake: Tensor) -> float:
    statistics = [fid_features_to_statistics(features) for features in (real, fake)]
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


def test_distance_of_diagonal_gaussians_is_the_closed_form():
    real = moments_with(torch.zeros(3).double(), torch.tensor([1.0, 4.0, 9.0]).double())
    fake = moments_with(torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([4.0, 4.0, 1.0]).double())
    assert frechet_distance(real, fake) == pytest.approx((1 + 4) + (1 + 0 + 4), rel=1e-9)


@pytest.mark.parametrize(("real_count", "fake_count"), [(500, 400), (500, 40), (40, 500), (40, 30), (64, 65)])
@pytest.mark.parametrize("dead", [0, 20])
def test_distance_equals_torch_fidelity(real_count: int, fake_count: int, dead: int):
    """With fewer features than their 64 dimensions too, and with dimensions in which nothing varies, as behind ReLU."""
    mixing = gaussian(64, 64, seed=1)
    mixing[:, :dead] = 0
    real, fake = gaussian(real_count, 64, seed=2) @ mixing, gaussian(fake_count, 64, seed=3) @ mixing * 1.1 + 0.3
    traces = Moments.of(real).variance + Moments.of(fake).variance
    # Its eigenvalues are of a product that is not symmetric, and of rank below its size: their roots carry 1e-8.
    distance = frechet_distance(Moments.of(real), Moments.of(fake))
    assert abs(distance - by_torch_fidelity(real, fake)) < 1e-7 * traces


@pytest.mark.parametrize("count", [30, 200])
def test_distance_of_nearly_equal_sets_is_that_of_their_difference(count: int):
    """A shift alone: the covariances are equal, so the distance is the squared length of the shift."""
    real = gaussian(count, 64) @ gaussian(64, 64, seed=1)
    shift = 1e-3 * gaussian(64, seed=2)
    distance = frechet_distance(Moments.of(real), Moments.of(real + shift))
    # 1e-10 of the traces of 2 * 64 * 64 is what the roots of eigenvalues in float64 leave.
    assert distance == pytest.approx(float(shift @ shift), abs=1e-10 * 2 * 64 * 64)


def test_distance_of_a_set_to_itself_is_zero_and_never_negative():
    for count in (5, 50, 500):  # with fewer samples than dimensions rounding takes it below zero
        moments = Moments.of(gaussian(count, 40, seed=count))
        distance = frechet_distance(moments, moments)
        assert 0 <= distance < 1e-9
        assert math.copysign(1, distance) == 1


@pytest.mark.parametrize("count", [30, 200])
def test_distance_is_the_same_with_a_factor_at_hand(count: int):
    real, fake = Moments.of(gaussian(count, 40)), Moments.of(gaussian(100, 40, seed=1))
    assert frechet_distance(real, fake, real.factor()) == frechet_distance(real, fake)


@pytest.mark.parametrize("count", [7, 70])
def test_factor_is_a_root_of_the_covariance(count: int):
    features = gaussian(count, 8) @ torch.diag(torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 0]).double())
    factor = Moments.of(features).factor()
    torch.testing.assert_close(factor.T @ factor, torch.cov(features.T))
    assert factor.shape == (7, 8)  # a row for each of the few, or for each dimension in which they vary


def test_moments_of_parts_add_up_to_the_moments_of_the_whole():
    features = gaussian(70, 8)
    whole, parts = Moments.of(features), Moments.of(features[:20]) + Moments.of(features[20:])
    assert parts.count == whole.count == 70
    torch.testing.assert_close(parts.total, whole.total)
    torch.testing.assert_close(parts.products, whole.products)
    torch.testing.assert_close(whole.covariance, torch.cov(features.T))


def test_moments_keep_no_more_features_than_dimensions():
    """So that memory does not grow with the number of images."""
    moments = Moments.of(gaussian(5, 8))
    assert moments.few is not None
    for seed in range(1, 4):
        moments += Moments.of(gaussian(5, 8, seed=seed))
        assert moments.few is None
        assert {tuple(tensor.shape) for tensor in (moments.total, moments.products)} == {(8,), (8, 8)}
    few = Moments.of(gaussian(3, 8)) + Moments.of(gaussian(4, 8, seed=1))
    assert torch.equal(few.few, torch.cat([gaussian(3, 8), gaussian(4, 8, seed=1)]))  # type: ignore[arg-type]


def test_variance_is_half_the_mean_squared_distance_of_pairs():
    features = gaussian(30, 5)
    pairs = torch.pdist(features).square().mean()
    assert Moments.of(features).variance == pytest.approx(float(pairs) / 2, rel=1e-12)


def test_distance_leaves_its_arguments_as_they_are():
    real, fake = Moments.of(gaussian(50, 4)), Moments.of(gaussian(50, 4, seed=1))
    before = real.total.clone(), real.products.clone(), real.count
    assert frechet_distance(real, fake) == frechet_distance(real, fake)
    assert torch.equal(real.total, before[0])
    assert torch.equal(real.products, before[1])


@pytest.mark.parametrize("different", [1, 5, 50])
def test_distance_of_a_collapsed_set_is_exact_though_it_has_more_features_than_dimensions(different: int):
    """Held against the singular values of the centred features themselves."""
    d = 256
    real, kinds = gaussian(600, d, seed=4), gaussian(different, d, seed=5)
    fake = kinds[torch.arange(500) % different]
    centred = [(features - features.mean(dim=0)) / (len(features) - 1) ** 0.5 for features in (real, fake)]
    shared = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    traces = sum(part.square().sum() for part in centred)
    expected = (real.mean(dim=0) - fake.mean(dim=0)).square().sum() + traces - 2 * shared
    distance = frechet_distance(Moments.of(real), Moments.of(fake))
    assert abs(distance - expected) < 1e-9 * traces
