import math

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

from normlab.evaluation.scores import Moments, class_shares, classifier_score, frechet_distance
from normlab.randomness import stream


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed, "test"), dtype=torch.float64)


def moments_with(mean: Tensor, variances: Tensor, count: int = 1000) -> Moments:
    """The moments of a set with exactly this mean and these variances, without a set."""
    products = torch.diag(variances) * (count - 1) + count * torch.outer(mean, mean)
    return Moments(count, count * mean, products)


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    real = moments_with(torch.zeros(3).double(), torch.tensor([1.0, 4.0, 9.0]).double())
    fake = moments_with(torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([4.0, 4.0, 1.0]).double())
    assert frechet_distance(real, fake) == pytest.approx((1 + 4) + (1 + 0 + 4), rel=1e-9)


def test_frechet_distance_equals_torch_fidelity_on_correlated_features():
    mixing = gaussian(64, 64, seed=1)
    real, fake = gaussian(500, 64, seed=2) @ mixing, gaussian(400, 64, seed=3) @ mixing * 1.1 + 0.3
    statistics = [fid_features_to_statistics(features) for features in (real, fake)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    assert frechet_distance(Moments.of(real), Moments.of(fake)) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_of_a_set_to_itself_is_zero_and_never_negative():
    for count in (5, 50, 500):  # with fewer samples than dimensions rounding takes it below zero
        moments = Moments.of(gaussian(count, 40, seed=count))
        distance = frechet_distance(moments, moments)
        assert 0 <= distance < 1e-3
        assert math.copysign(1, distance) == 1


def test_moments_of_parts_add_up_to_the_moments_of_the_whole():
    features = gaussian(70, 8)
    whole, parts = Moments.of(features), Moments.of(features[:20]) + Moments.of(features[20:])
    assert parts.count == whole.count == 70
    torch.testing.assert_close(parts.total, whole.total)
    torch.testing.assert_close(parts.products, whole.products)


def test_frechet_distance_leaves_its_arguments_as_they_are():
    real, fake = Moments.of(gaussian(50, 4)), Moments.of(gaussian(50, 4, seed=1))
    before = real.total.clone(), real.products.clone(), real.count
    assert frechet_distance(real, fake) == frechet_distance(real, fake)
    assert torch.equal(real.total, before[0])
    assert torch.equal(real.products, before[1])


def test_classifier_score_equals_torch_fidelity_with_one_split():
    logits = gaussian(300, 20) * 3
    expected = isc_features_to_metric(logits, splits=1, shuffle=False)[KEY_METRIC_ISC_MEAN]
    assert classifier_score([logits[:200], logits[200:]], splits=1) == pytest.approx(expected, rel=1e-9)


def test_classifier_score_of_certain_and_even_classes_is_their_number():
    logits = torch.eye(5).repeat(200, 1) * 1000
    assert classifier_score([logits], splits=1) == pytest.approx(5, rel=1e-9)


def test_classifier_score_of_samples_alike_is_one():
    assert classifier_score([torch.zeros(100, 5)]) == 1


def test_classifier_score_is_repeatable_and_leaves_the_global_random_state():
    logits = gaussian(100, 5)
    state = torch.get_rng_state()
    first = classifier_score([logits])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert classifier_score([logits]) == first


def test_class_shares_count_the_largest_logit_of_every_sample():
    logits = torch.eye(4)[[0, 0, 0, 1, 3]]
    assert class_shares([logits[:2], logits[2:]]) == (0.6, 0.2, 0.0, 0.2)
