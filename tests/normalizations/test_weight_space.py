"""Weight and spectral normalization against the singular value decomposition, autograd and torch's own forms."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from normlab.normalizations import TECHNIQUES
from normlab.normalizations.base import Place, Reparametrization, WeightLayer, as_matrix, output_dimension
from normlab.normalizations.spectral import SpectralNorm
from normlab.normalizations.weight import WeightNorm
from normlab.randomness import stream

PLACE = Place("discriminator", "hidden", 5, 4)


def layers() -> list[WeightLayer]:
    torch.manual_seed(0)
    return [nn.Conv2d(3, 5, 4), nn.ConvTranspose2d(3, 5, 4), nn.Linear(7, 5)]


def reparametrize(name: str, layer: WeightLayer) -> Reparametrization:
    layer.double()
    reparametrization = TECHNIQUES.build(name, {}).weight(layer, PLACE)
    assert isinstance(reparametrization, Reparametrization)
    reparametrization.double().reset(layer.weight, stream(0, "test"))
    return reparametrization


def matrix(layer: WeightLayer, weight: torch.Tensor) -> torch.Tensor:
    return as_matrix(weight, output_dimension(layer))


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_rows_of_the_matrix_are_output_channels(layer: WeightLayer) -> None:
    assert matrix(layer, layer.weight).shape == (5, layer.weight.numel() // 5)


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_weight_norm_keeps_the_function_at_the_start(layer: WeightLayer) -> None:
    norm = reparametrize("weight", layer)

    torch.testing.assert_close(norm(layer.weight), layer.weight, rtol=1e-12, atol=0)


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_weight_norm_gives_each_output_channel_the_learned_length(layer: WeightLayer) -> None:
    norm = reparametrize("weight", layer)
    assert isinstance(norm, WeightNorm)
    norm.g.data = torch.linspace(0.5, 3, 5, dtype=torch.float64)

    torch.testing.assert_close(matrix(layer, norm(layer.weight)).norm(dim=1), norm.g.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_weight_norm_equals_torchs_with_the_right_axis(layer: WeightLayer) -> None:
    norm = reparametrize("weight", layer)
    target = torch.randn_like(layer.weight)
    (norm(layer.weight) * target).sum().backward()
    ours = (layer.weight.grad.clone(), norm.g.grad)
    expected = parametrizations.weight_norm(layer, dim=output_dimension(layer))
    (expected.weight * target).sum().backward()

    theirs = expected.parametrizations.weight
    torch.testing.assert_close(ours[0], theirs.original1.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours[1], theirs.original0.grad.flatten(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_the_gradient_of_weight_norm_is_orthogonal_to_each_channel(layer: WeightLayer) -> None:
    norm = reparametrize("weight", layer)
    (norm(layer.weight) * torch.randn_like(layer.weight)).sum().backward()

    along = (matrix(layer, layer.weight.grad) * matrix(layer, layer.weight)).sum(dim=1)
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-12, rtol=0)


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_i13_a_step_of_gradient_descent_lengthens_the_direction(layer: WeightLayer) -> None:
    norm = reparametrize("weight", layer)
    effective = norm(layer.weight)
    (gradient,) = torch.autograd.grad((effective * torch.randn_like(effective)).sum(), layer.weight)
    before, move = (matrix(layer, each).square().sum(dim=1) for each in (layer.weight, 0.3 * gradient))

    after = matrix(layer, layer.weight - 0.3 * gradient).square().sum(dim=1)
    torch.testing.assert_close(after, before + move, rtol=1e-12, atol=0)


def test_weight_norm_leaves_a_channel_of_zeros_at_zero() -> None:
    layer = nn.Linear(4, 3)
    layer.weight.data[1] = 0
    norm = reparametrize("weight", layer)
    effective = norm(layer.weight)
    effective.sum().backward()

    assert torch.equal(effective[1], torch.zeros(4, dtype=torch.float64))
    assert torch.isfinite(layer.weight.grad).all()


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_spectral_norm_has_unit_largest_singular_value_once_converged(layer: WeightLayer) -> None:
    norm = reparametrize("spectral", layer)
    for _ in range(2000):  # enough for the smallest gap between the singular values of these layers
        norm.advance(layer.weight.data)

    sigma = torch.linalg.matrix_norm(matrix(layer, norm(layer.weight)), ord=2)
    torch.testing.assert_close(sigma, torch.ones_like(sigma), atol=1e-10, rtol=0)


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_spectral_norm_never_overestimates_sigma(layer: WeightLayer) -> None:
    norm = reparametrize("spectral", layer)

    assert torch.linalg.matrix_norm(matrix(layer, norm(layer.weight)), ord=2) >= 1 - 1e-12


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_spectral_norm_equals_torchs_after_its_vectors_are_copied(layer: WeightLayer) -> None:
    norm = reparametrize("spectral", layer)
    assert isinstance(norm, SpectralNorm)
    ours = norm(layer.weight).detach()
    theirs = parametrizations.spectral_norm(layer, dim=output_dimension(layer)).eval()
    theirs.parametrizations.weight[0]._u.copy_(norm.u)
    theirs.parametrizations.weight[0]._v.copy_(norm.v)

    torch.testing.assert_close(ours, theirs.weight.detach())


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_the_gradient_of_spectral_norm_is_the_papers_formula(layer: WeightLayer) -> None:
    """(1/sigma) (G - <G, W_sn> u v'), with u and v constant (Miyato et al. 2018, eq. 12); converged or not."""
    norm = reparametrize("spectral", layer)
    assert isinstance(norm, SpectralNorm)
    direction = torch.randn_like(layer.weight)
    effective = norm(layer.weight)
    (effective * direction).sum().backward()

    W, G = matrix(layer, layer.weight.detach()), matrix(layer, direction)
    sigma = norm.u @ W @ norm.v
    expected = (G - (G * W / sigma).sum() * torch.outer(norm.u, norm.v)) / sigma
    torch.testing.assert_close(matrix(layer, layer.weight.grad), expected, rtol=1e-10, atol=1e-12)


def test_one_advance_is_the_given_number_of_iterations() -> None:
    layer = nn.Linear(9, 6).double()
    one, three = (SpectralNorm(layer, power_iterations=count).double() for count in (1, 3))
    for norm in (one, three):
        norm.reset(layer.weight.data, stream(0, "test"))
    three.advance(layer.weight.data)
    for _ in range(3):
        one.advance(layer.weight.data)

    torch.testing.assert_close(one.u, three.u)


def test_the_graph_survives_an_advance() -> None:
    """u and v move in place after the update; a backward pass that comes later must still see the old ones."""
    layer = nn.Linear(9, 6)
    norm = SpectralNorm(layer, power_iterations=1)
    norm.reset(layer.weight, stream(0, "test"))
    effective = norm(layer.weight)
    norm.advance(layer.weight.data)

    effective.sum().backward()
    assert layer.weight.grad is not None


ALTOGETHER = [
    ("weight", {}),
    ("weight_strict", {"length": 2.0}),
    ("weight_translated", {}),
    ("adaptive", {"mode": "learned"}),
    ("adaptive", {"mode": "learned", "granularity": "layer"}),
    ("spectral", {}),
    ("scaled_spectral", {}),
    ("spectral_gamma", {}),
    ("bidirectional_spectral", {}),
    ("bidirectional_scaled_spectral", {}),
]


@pytest.mark.parametrize(("name", "params"), ALTOGETHER, ids=lambda value: str(value))
def test_what_layers_share_is_what_each_gives_alone_with_the_gradient_of_finite_differences(
    name: str, params: dict[str, object]
) -> None:
    technique = TECHNIQUES.build(name, params)
    every = [layer.double() for layer in (*layers(), *layers())]
    parts = [
        technique.weight(layer, PLACE._replace(position="last" if i else "hidden")) for i, layer in enumerate(every)
    ]
    built = [part.double() for part in parts if isinstance(part, Reparametrization)]
    assert len(built) == len(every)
    assert len({type(part) for part in built}) == 1
    weights = [layer.weight for layer in every]
    for number, (part, weight) in enumerate(zip(built, weights, strict=True)):
        part.reset(weight, stream(number, "test"))
        for factor in part.parameters():
            factor.data += torch.rand_like(factor)
    together = type(built[0]).effective(built, weights)

    for part, weight, effective in zip(built, weights, together, strict=True):
        torch.testing.assert_close(effective, part(weight), rtol=1e-12, atol=1e-14)
    if "spectral" in name:
        # Its vectors count as constants, so they must be those of the largest singular value for the true slope.
        for part, weight in zip(built, weights, strict=True):
            for _ in range(200):
                part.advance(weight.data)
    inputs = [*weights, *{factor for part in built for factor in part.parameters()}]
    assert torch.autograd.gradcheck(lambda *_: tuple(type(built[0]).effective(built, weights)), inputs, fast_mode=True)


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_strict_weight_norm_has_the_given_length_whatever_the_weight(layer: WeightLayer) -> None:
    layer.double()
    part = TECHNIQUES.build("weight_strict", {"length": 0.1}).weight(layer, PLACE)
    assert isinstance(part, Reparametrization)
    effective = part(layer.weight)
    (gradient,) = torch.autograd.grad((effective * torch.randn_like(effective)).sum(), layer.weight)
    along = (matrix(layer, gradient) * matrix(layer, layer.weight)).sum(dim=1)

    # I10 and I11, to rounding in float64.
    torch.testing.assert_close(
        matrix(layer, effective).norm(dim=1), torch.full((5,), 0.1, dtype=torch.float64), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(part(7 * layer.weight), effective, rtol=1e-12, atol=0)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-12)
