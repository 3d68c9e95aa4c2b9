"""Adaptive weight normalization: what tells it from a length that an optimizer learns; more is in tests/training."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from normlab.normalizations import TECHNIQUES
from normlab.normalizations.adaptive import AdaptiveWeightNorm
from normlab.normalizations.base import Place, WeightLayer, as_matrix, output_dimension

PLACE = Place("discriminator", "hidden", 5, 4)


def half(horizon: object) -> torch.Tensor:
    return torch.tensor(0.5, dtype=torch.float64)


def layers() -> list[WeightLayer]:
    torch.manual_seed(0)
    return [nn.Conv2d(3, 5, 4).double(), nn.ConvTranspose2d(3, 5, 4).double(), nn.Linear(7, 5).double()]


def adaptive(layer: WeightLayer, name: str = "adaptive", **params: object) -> AdaptiveWeightNorm:
    part = TECHNIQUES.build(name, params).weight(layer, PLACE)
    assert isinstance(part, AdaptiveWeightNorm)
    part.double()
    part.reset(layer.weight, torch.Generator())
    return part


def adapted(part: AdaptiveWeightNorm, layer: WeightLayer, factor: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Move S once by the gradient of some loss, and return its change and the gradient of the effective weight."""
    effective = part(layer.weight)
    target = torch.randn(effective.shape, generator=torch.Generator().manual_seed(1)).double()
    (G,) = torch.autograd.grad(factor * (effective * target).sin().sum(), effective)
    before = part.S.detach().clone()
    with torch.no_grad():
        part.adapt(layer.weight, G, half)
        part.advance(layer.weight)
    return part.S.detach() - before, G


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_t1_every_length_starts_at_init_whatever_the_weight(layer: WeightLayer, granularity: str) -> None:
    part = adaptive(layer, init=0.1, granularity=granularity)
    W = as_matrix(part(layer.weight), output_dimension(layer))

    lengths = W.norm(dim=1) if granularity == "channel" else W.norm().view(1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.1))


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_t4_descent_is_the_gradient_of_the_length_by_autograd(layer: WeightLayer, granularity: str) -> None:
    part = adaptive(layer, alpha=0.3, granularity=granularity)
    learned = adaptive(layer, mode="learned", granularity=granularity)
    effective = learned(layer.weight)
    target = torch.randn(effective.shape, generator=torch.Generator().manual_seed(1)).double()
    (slope,) = torch.autograd.grad((effective * target).sin().sum(), learned.S)
    change, _ = adapted(part, layer)

    torch.testing.assert_close(change, -0.3 * 0.5 * slope)  # kappa of half the horizon is 1/2


def test_t5_a_loss_ten_times_as_large_moves_the_lengths_ten_times_as_far() -> None:
    layer = layers()[0]
    one, _ = adapted(adaptive(layer, alpha=1e-3), layer)
    ten, _ = adapted(adaptive(layer, alpha=1e-3), layer, factor=10)

    torch.testing.assert_close(ten, 10 * one)


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_t6_with_sgd_at_the_same_rate_it_is_torchs_weight_norm(layer: WeightLayer) -> None:
    theirs = parametrizations.weight_norm(copy.deepcopy(layer), dim=output_dimension(layer))
    part = adaptive(layer, alpha=0.05, decay="constant", least=None)
    with torch.no_grad():
        part.S.copy_(as_matrix(layer.weight, output_dimension(layer)).norm(dim=1))
    ours, others = (torch.optim.SGD(module.parameters(), lr=0.05) for module in (layer, theirs))
    shape = (4, 7) if isinstance(layer, nn.Linear) else (4, 3, 6, 6)
    rng = torch.Generator().manual_seed(2)
    for _ in range(20):
        input = torch.randn(shape, generator=rng).double()
        effective = part(layer.weight)
        output = torch.func.functional_call(layer, {"weight": effective}, (input,))
        gradients = torch.autograd.grad(output.square().mean(), [*layer.parameters(), effective])
        for parameter, gradient in zip(layer.parameters(), gradients, strict=False):
            parameter.grad = gradient
        with torch.no_grad():
            part.adapt(layer.weight, gradients[-1], half)
        ours.step()
        others.zero_grad()
        theirs(input).square().mean().backward()
        others.step()

    # Twenty steps in float64 apart by nothing but the order of sums.
    torch.testing.assert_close(part(layer.weight), theirs.weight, rtol=0, atol=1e-12)


def test_t7_ascent_is_descent_the_other_way() -> None:
    layer = layers()[0]
    down, _ = adapted(adaptive(layer, alpha=1e-3), layer)
    up, _ = adapted(adaptive(layer, alpha=1e-3, mode="ascent"), layer)

    torch.testing.assert_close(up, -down)


@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_t8_the_norm_of_the_gradient_only_lengthens(granularity: str) -> None:
    layer = layers()[1]
    change, G = adapted(adaptive(layer, alpha=0.3, mode="grad_norm", granularity=granularity), layer)
    matrix = as_matrix(G, output_dimension(layer))

    assert (change > 0).all()
    torch.testing.assert_close(
        change, 0.15 * (matrix.norm(dim=1) if granularity == "channel" else matrix.norm().view(1))
    )


@pytest.mark.parametrize(("decay", "expected"), [("constant", 1.0), ("linear", 0.0), ("cosine", 0.0)])
def test_t11_at_the_end_of_the_horizon_a_decayed_rate_is_0(decay: str, expected: float) -> None:
    layer = layers()[0]
    part = adaptive(layer, alpha=1.0, mode="grad_norm", decay=decay)
    with torch.no_grad():
        part.adapt(layer.weight, torch.ones_like(layer.weight), lambda horizon: torch.tensor(1.0))

    moved = part.S.detach() - 1
    torch.testing.assert_close(moved, torch.full_like(moved, expected * 48**0.5))


def test_t12_lengths_stay_within_their_bounds() -> None:
    layer = layers()[0]
    for sign, bound in ((1, 0.2), (-1, 3.0)):
        part = adaptive(layer, alpha=100.0, least=0.2, most=3.0)
        with torch.no_grad():
            part.adapt(layer.weight, sign * layer.weight, half)
            part.advance(layer.weight)
        assert torch.equal(part.S.detach(), torch.full_like(part.S, bound))


def test_the_literal_reading_is_ascent_of_one_length_per_layer_from_a_tenth() -> None:
    layer = layers()[0]
    literal = adaptive(layer, "adaptive_literal", alpha=1e-3)
    change, _ = adapted(literal, layer)
    same = adaptive(layer, mode="ascent", granularity="layer", decay="constant", init=0.1, least=None, alpha=1e-3)

    assert literal.S.shape == (1,)
    torch.testing.assert_close(change, adapted(same, layer)[0])
