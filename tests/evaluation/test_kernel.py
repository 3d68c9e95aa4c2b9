import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from normlab.evaluation import kernel
from normlab.evaluation.kernel import kernel_distance, mean_kernel
from normlab.randomness import stream


def features(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.rand(count, 12, generator=stream(seed, "test"), dtype=torch.float64) + shift


def test_distance_equals_torch_fidelity_of_one_full_subset():
    real, fake = features(80, 0), features(80, 1, shift=0.2)
    expected = kid_features_to_metric(fake, real, kid_subsets=1, kid_subset_size=80, verbose=False)[KEY_METRIC_KID_MEAN]
    assert kernel_distance(real, fake) == pytest.approx(expected, rel=1e-12)


def test_distance_is_the_definition_for_sets_of_different_sizes(monkeypatch: pytest.MonkeyPatch):
    """Pair by pair, and in blocks that do not divide the sets."""
    monkeypatch.setattr(kernel, "ROWS", 7)
    real, fake = features(30, 0), features(20, 1, shift=0.2)

    def k(x: Tensor, y: Tensor) -> float:
        return float((x @ y / 12 + 1) ** 3)

    within = [
        sum(k(x, y) for i, x in enumerate(side) for j, y in enumerate(side) if i != j) / (len(side) * (len(side) - 1))
        for side in (real, fake)
    ]
    between = sum(k(x, y) for x in real for y in fake) / (30 * 20)
    assert kernel_distance(real, fake) == pytest.approx(within[0] + within[1] - 2 * between, rel=1e-9)
    assert kernel_distance(real, fake, mean_kernel(real)) == kernel_distance(real, fake)


def test_distance_is_unbiased():
    """Over many draws of the same distribution its mean is 0 within four standard errors."""
    values = torch.tensor([kernel_distance(features(10, 2 * n), features(15, 2 * n + 1)) for n in range(400)])
    assert abs(values.mean()) < 4 * values.std() / 20
    assert values.min() < 0


def test_products_in_float32_are_enough():
    """To 1e-6, since kernel values of about 2 are averaged whose errors of 1e-7 each are not alike."""
    real, fake = features(500, 0), features(400, 1, shift=0.05)
    assert kernel_distance(real.float(), fake.float()) == pytest.approx(kernel_distance(real, fake), abs=1e-6)
