"""Gradient normalization against the closed form of piecewise linear functions."""

import pytest
import torch
from torch import nn

from normlab.networks.network import Generator
from normlab.normalizations import TECHNIQUES
from normlab.normalizations.output import gradient_normalized
from normlab.settings import Misfit


def scores(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.LeakyReLU(0.2), nn.Linear(9, 1), nn.Flatten(0)).double()


def images(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(1)).double()


def test_i22_the_score_is_the_formulas() -> None:
    f, x = scores(), images().requires_grad_()
    plain = f(x)
    (slope,) = torch.autograd.grad(plain.sum(), x)
    expected = plain / (slope.flatten(1).norm(dim=1) + plain.abs())
    normalized = gradient_normalized(f)(x)

    torch.testing.assert_close(normalized.double(), expected, rtol=0, atol=1e-6)  # computed in float32
    assert normalized.abs().max() < 1


def test_i22_the_slope_of_a_piecewise_linear_score_is_that_of_the_formula() -> None:
    f, x = scores(), images().requires_grad_()
    (slope,) = torch.autograd.grad(f(x).sum(), x)
    n, size = slope.flatten(1).norm(dim=1), f(x).abs()
    (steepness,) = torch.autograd.grad(gradient_normalized(f)(x).sum(), x)

    torch.testing.assert_close(steepness.flatten(1).norm(dim=1), (n / (n + size)) ** 2, rtol=1e-5, atol=0)


def test_i22_a_larger_score_is_the_same_score() -> None:
    f, x = scores(), images()

    torch.testing.assert_close(gradient_normalized(lambda x: 7 * f(x))(x), gradient_normalized(f)(x), rtol=1e-5, atol=0)


def test_a_score_of_0_without_a_slope_is_0() -> None:
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    scores = gradient_normalized(lambda x: 0 * x.flatten(1).sum(dim=1) + bias)(images())
    (gradient,) = torch.autograd.grad(scores.sum(), bias)

    assert torch.equal(scores, torch.zeros(8))
    assert gradient.abs() <= 8  # one for each image, and not one over the smallest size


def test_it_is_computed_where_gradients_are_switched_off() -> None:
    with torch.no_grad():
        normalized = gradient_normalized(scores())(images())

    assert normalized.abs().max() > 0


def test_a_gradient_reaches_the_parameters_and_the_image() -> None:
    f, x = scores(), images().requires_grad_()
    gradient_normalized(f)(x).sum().backward()

    assert x.grad is not None
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in list(f.parameters())[:2])


def test_a_generator_is_refused() -> None:
    with pytest.raises(Misfit, match="a generator has none"):
        Generator(nn.Linear(2, 2), TECHNIQUES.build("gradient", {}), 2)
