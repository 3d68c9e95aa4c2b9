import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from normlab.evaluation import manifold
from normlab.evaluation.manifold import balls, overlap
from normlab.randomness import stream


def features(count: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 6, generator=stream(seed, "test")) * scale + shift


def test_precision_and_recall_equal_torch_fidelity(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(manifold, "ROWS", 37)  # blocks that do not divide the sets
    real, fake = features(120, 0), features(90, 1, scale=0.8, shift=0.5)
    expected = prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)
    found = overlap(real, fake, balls(real))
    assert (found.precision, found.recall) == pytest.approx((expected["precision"], expected["recall"]), rel=1e-6)
    assert 0 < found.precision < 1


def test_density_and_coverage_are_their_definition():
    """Naeem et al. 2020, eq. 3 and 4, fake by fake and real by real."""
    real, fake = features(60, 0), features(50, 1, scale=0.8, shift=0.5)
    radii = [sorted(float((x - y).norm()) for y in real)[5] for x in real]
    inside = torch.tensor(
        [[bool((x - y).norm() <= radius) for x, radius in zip(real, radii, strict=True)] for y in fake]
    )
    found = overlap(real, fake, balls(real))
    assert found.density == pytest.approx(float(inside.sum()) / (5 * 50))
    assert found.coverage == pytest.approx(float(inside.any(dim=0).float().mean()))


def test_a_set_overlaps_with_itself_wholly():
    real = features(60, 0)
    found = overlap(real, real.clone(), balls(real))
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)


def test_fakes_that_are_all_alike_are_precise_and_recall_nothing():
    real = features(60, 0)
    alike = real[:1].expand(40, 6)
    found = overlap(real, alike, balls(real))
    assert found.precision == 1
    assert found.recall == pytest.approx(1 / 60)  # the one that they are
    assert found.coverage < 0.5


def test_sets_of_fewer_than_the_neighbours_have_balls_as_wide_as_the_set():
    real = features(3, 0)
    reached = balls(real)
    farthest = torch.cdist(real, real).max(dim=1).values
    torch.testing.assert_close(reached.for_precision, farthest)
    torch.testing.assert_close(reached.for_coverage, farthest)
