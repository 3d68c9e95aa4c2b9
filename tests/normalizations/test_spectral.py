"""The spectral techniques against the singular values of what they divide by, unrolled where it is a convolution."""

import copy
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.work import Work
from normlab.normalizations import TECHNIQUES, spectral
from normlab.normalizations.base import Place, Reparametrization, WeightLayer, as_matrix, output_dimension
from normlab.normalizations.spectral import BidirectionalSpectralNorm, SpectralConvolutionNorm, SpectralNorm
from normlab.randomness import stream

SIZE = 6  # of the input map
FAMILY = [name for name in TECHNIQUES.names() if "spectral" in name]
LAYERS = ["conv", "strided", "transposed", "linear", "embedding"]


def layer(kind: str) -> WeightLayer:
    """Return a layer with a gap between its first and second singular values, so that power iteration converges."""
    torch.manual_seed(0)
    kinds: dict[str, WeightLayer] = {
        "conv": nn.Conv2d(3, 5, 3, padding=1),
        "strided": nn.Conv2d(3, 5, 4, stride=2, padding=1),
        "transposed": nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1),
        "linear": nn.Linear(7, 5),
        "embedding": nn.Embedding(7, 5),
    }
    built = kinds[kind].double()
    dimension = output_dimension(built)
    turned = as_matrix(built.weight.data, dimension)
    planted = 3 * torch.outer(
        F.normalize(torch.randn(len(turned)), dim=0), F.normalize(torch.randn(turned.shape[1]), dim=0)
    )
    noisy = planted.double() + 0.1 * torch.randn_like(turned)
    shape = built.weight.transpose(0, dimension).shape
    built.weight.data = noisy.reshape(shape).transpose(0, dimension).contiguous()
    return built


def output_size(kind: str) -> int:
    return {"conv": SIZE, "strided": SIZE // 2, "transposed": 2 * SIZE}.get(kind, 1)


def reparametrize(name: str, built: WeightLayer, kind: str, iterations: int = 0, **params: object) -> Reparametrization:
    place = Place("discriminator", "hidden", 5, output_size(kind), SIZE if output_size(kind) > 1 else 1)
    part = TECHNIQUES.build(name, params).weight(built, place)
    assert isinstance(part, Reparametrization)
    part.double().reset(built.weight.data, stream(0, "test"))
    for _ in range(iterations):
        part.advance(built.weight.data)
    return part


def norm(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix.detach(), ord=2)


def by_outputs(built: WeightLayer, weight: Tensor) -> Tensor:
    return as_matrix(weight, output_dimension(built))


def by_inputs(built: WeightLayer, weight: Tensor) -> Tensor:
    return as_matrix(weight, 1 - output_dimension(built))


def unrolled(built: nn.Conv2d | nn.ConvTranspose2d, weight: Tensor) -> Tensor:
    """Return the layer's linear map as a matrix [inputs, outputs]: what it makes of each unit image, without bias."""
    images = torch.eye(built.in_channels * SIZE * SIZE).double().view(-1, built.in_channels, SIZE, SIZE)
    apply = F.conv_transpose2d if isinstance(built, nn.ConvTranspose2d) else F.conv2d
    return apply(images, weight, stride=built.stride, padding=built.padding).flatten(1)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("scale", [1.0, 1.6])
def test_i1_the_largest_singular_value_is_the_scale(kind: str, scale: float) -> None:
    built = layer(kind)
    effective = reparametrize("scaled_spectral", built, kind, 300, scale=scale)(built.weight)

    torch.testing.assert_close(norm(by_outputs(built, effective)).item(), scale, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("kind", LAYERS)
def test_i2_sigma_is_never_overestimated(name: str, kind: str) -> None:
    built = layer(kind)
    built.weight.data = torch.randn_like(built.weight.data)  # without a gap: iteration is far from its end
    part = reparametrize(name, built, kind)
    sigmas = [norm(by_outputs(built, built.weight)), norm(by_inputs(built, built.weight))]
    if isinstance(part, SpectralConvolutionNorm):
        assert isinstance(built, nn.Conv2d | nn.ConvTranspose2d)
        true = norm(unrolled(built, built.weight))
    else:
        true = sum(sigmas) / 2 if isinstance(part, BidirectionalSpectralNorm) else sigmas[0]

    assert part.sigma(built.weight) <= true + 1e-9  # pyright: ignore[reportCallIssue]


def test_i4_of_a_transposed_convolution_the_rows_are_output_channels() -> None:
    built = layer("transposed")
    assert norm(by_outputs(built, built.weight)) != pytest.approx(norm(by_inputs(built, built.weight)).item(), rel=1e-3)
    effective = reparametrize("spectral", built, "transposed", 300)(built.weight)

    assert norm(by_outputs(built, effective)).item() == pytest.approx(1, abs=1e-6)
    assert norm(by_inputs(built, effective)).item() != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", ["conv", "strided", "transposed"])
def test_i5_and_i6_the_mean_of_both_norms_is_the_scale(kind: str) -> None:
    built = layer(kind)
    effective = reparametrize("bidirectional_scaled_spectral", built, kind, 300, scale=1.3)(built.weight)
    norms = [norm(view(built, effective)).item() for view in (by_outputs, by_inputs)]

    assert sum(norms) / 2 == pytest.approx(1.3, abs=1e-6)
    assert norms[0] != pytest.approx(1.3, abs=1e-3)


def test_i5_the_estimate_of_a_weight_and_of_its_transpose_are_equal() -> None:
    conv, transposed = nn.Conv2d(3, 5, 4).double(), nn.ConvTranspose2d(5, 3, 4).double()
    transposed.weight.data = conv.weight.data  # [5, 3, 4, 4]: output channels of one, input channels of the other
    sigmas = []
    for built in (conv, transposed):
        part = BidirectionalSpectralNorm(built).double()
        part.reset(built.weight.data, stream(0, "test"))
        part.iterate(built.weight.data, 2000)
        sigmas.append(part.sigma(built.weight).item())

    assert sigmas[0] == pytest.approx(sigmas[1], abs=1e-6)


@pytest.mark.parametrize("built", [nn.Linear(7, 5), nn.Conv2d(7, 5, 1)], ids=["linear", "1x1"])
def test_i5_without_a_window_both_directions_are_one(built: WeightLayer) -> None:
    built.double()
    place = Place("discriminator", "hidden", 5, 1)
    effective = []
    for name in ("spectral", "bidirectional_spectral"):
        part = TECHNIQUES.build(name, {}).weight(built, place)
        assert isinstance(part, Reparametrization)
        part.double().reset(built.weight.data, stream(0, "test"))
        for _ in range(2000):
            part.advance(built.weight.data)
        effective.append(part(built.weight).detach())

    torch.testing.assert_close(effective[1], effective[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["conv", "strided", "transposed"])
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_i7_the_norm_of_the_unrolled_convolution_is_the_scale(kind: str, scale: float) -> None:
    built = layer(kind)
    assert isinstance(built, nn.Conv2d | nn.ConvTranspose2d)
    effective = reparametrize("spectral_conv", built, kind, 500, scale=scale)(built.weight)

    # The singular values of a convolution lie close together: 500 iterations come as near as this.
    assert norm(unrolled(built, effective)).item() == pytest.approx(scale, abs=1e-4)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"), [(7, 3, 2, 1), (8, 3, 2, 1), (9, 5, 3, 2), (6, 6, 1, 0)]
)
def test_i7_whatever_rest_the_stride_leaves(size: int, kernel: int, stride: int, padding: int) -> None:
    built = nn.Conv2d(2, 3, kernel, stride=stride, padding=padding).double()
    image = torch.randn(1, 2, size, size).double()
    out = built(image).shape[-1]
    part = SpectralConvolutionNorm(built, Place("discriminator", "hidden", 3, out, size))
    seen = torch.randn(1, 3, out, out).double()

    # <y, A x> = <A' y, x> for any x and y: what is used as the adjoint is one.
    forth = (seen * part.map.forth(image, built.weight)).sum()
    back = (part.map.back(seen, built.weight) * image).sum()
    torch.testing.assert_close(back, forth)


def test_i8_a_transposed_convolution_is_the_transposed_map() -> None:
    weight = torch.randn(4, 3, 4, 4).double()
    images = torch.eye(3 * 64).double().view(-1, 3, 8, 8)
    down = F.conv2d(images, weight, stride=2, padding=1).flatten(1)  # [inputs, outputs]
    up = F.conv_transpose2d(torch.eye(4 * 16).double().view(-1, 4, 4, 4), weight, stride=2, padding=1).flatten(1)

    torch.testing.assert_close(up, down.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "factor"), [("conv", 3), ("strided", 2), ("transposed", 2)])
def test_i9_plain_spectral_normalization_leaves_a_convolution_a_norm_of_up_to_k_over_s(kind: str, factor: int) -> None:
    built = layer(kind)
    assert isinstance(built, nn.Conv2d | nn.ConvTranspose2d)
    built.weight.data = torch.randn_like(built.weight.data)
    effective = reparametrize("spectral", built, kind, 500)(built.weight)
    largest = norm(unrolled(built, effective)).item()

    # A transposed convolution is the transposed map of a convolution whose matrix has the input channels for its rows.
    least = (
        1.0
        if kind != "transposed"
        else (norm(by_inputs(built, built.weight)) / norm(by_outputs(built, built.weight))).item()
    )
    assert least * (1 - 1e-9) <= largest <= factor * least + 1e-9
    assert largest > 1.05  # it is not 1-Lipschitz, which is what spectral_conv is for


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("kind", LAYERS)
def test_i10_a_longer_weight_is_the_same_weight(name: str, kind: str) -> None:
    built = layer(kind)
    part = reparametrize(name, built, kind)

    torch.testing.assert_close(part(3 * built.weight), part(built.weight), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("kind", LAYERS)
def test_i11_the_gradient_is_orthogonal_to_the_weight(name: str, kind: str) -> None:
    built = layer(kind)
    part = reparametrize(name, built, kind)  # not converged: it holds all the same
    effective = part(built.weight)
    (gradient,) = torch.autograd.grad((effective * torch.randn_like(effective)).sum(), built.weight)

    assert abs((gradient * built.weight).sum()) <= 1e-10 * gradient.norm() * built.weight.norm()
    assert gradient.norm() > 1e-3


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("kind", LAYERS)
def test_i12_autograd_agrees_with_finite_differences(name: str, kind: str) -> None:
    built = layer(kind)
    part = reparametrize(name, built, kind)

    assert torch.autograd.gradcheck(part, (built.weight,), fast_mode=True)


def test_i30_a_gaussian_matrix_has_the_norm_of_random_matrix_theory() -> None:
    weight = torch.randn(256, 2304, generator=torch.Generator().manual_seed(0))
    built = nn.Linear(2304, 256)
    part = SpectralNorm(built)
    part.reset(weight, stream(0, "test"))
    part.iterate(weight, 300)

    expected = 256**0.5 + 2304**0.5
    assert part.sigma(weight).item() == pytest.approx(expected, rel=0.05)
    assert part(weight).std().item() == pytest.approx(1 / expected, rel=0.05)


@pytest.mark.parametrize(("sharing", "count"), [("layer", 2), ("network", 1)])
def test_a_learned_gain_is_of_a_layer_or_of_the_network(sharing: str, count: int) -> None:
    technique = TECHNIQUES.build("spectral_gamma", {"sharing": sharing})
    place = Place("discriminator", "hidden", 5, 1)
    parts = nn.ModuleList(technique.weight(nn.Linear(7, 5), place) for _ in range(2))  # pyright: ignore[reportArgumentType]

    assert len(list(parts.parameters())) == count
    assert not technique.bounds_discriminator


def test_a_gain_that_starts_at_sigma_keeps_the_function() -> None:
    built = layer("conv")
    part = reparametrize("spectral_gamma", built, "conv", start="sigma")

    torch.testing.assert_close(part(built.weight), built.weight)


def of_one_shape(matrices: Sequence[Tensor]) -> list[list[int]]:
    shapes = [matrix.shape for matrix in matrices]
    return [[number for number, own in enumerate(shapes) if own == shape] for shape in dict.fromkeys(shapes)]


@pytest.mark.parametrize("together", [False, True])
def test_layers_of_equal_shape_share_their_products(monkeypatch: pytest.MonkeyPatch, together: bool) -> None:
    """As on a GPU, where they share them, so on a CPU, where they do not: in as many products as there are shapes."""
    shapes = [(5, 7), (4, 6), (5, 7), (5, 7), (6, 4)]
    layers = [nn.Linear(columns, rows, dtype=torch.float64) for rows, columns in shapes]
    parts = [SpectralNorm(layer).double() for layer in layers]
    weights = [layer.weight for layer in layers]
    for number, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        part.reset(weight.data, stream(number, "test"))
    expected = copy.deepcopy(parts)
    for part, weight in zip(expected, weights, strict=True):
        part.iterate(weight.data, 3)
    if together:
        monkeypatch.setattr(spectral, "by_shape", of_one_shape)

    with torch.no_grad(), Work() as iterating:
        SpectralNorm.iterate_all(parts, weights, 3)
    with Work() as dividing:
        effective = SpectralNorm.effective(parts, weights)

    assert (iterating.light["mv"], iterating.light["sum"]) == ((12, 6) if together else (30, 0))
    assert (dividing.light["mv"], dividing.light["sum"]) == ((2, 1) if together else (5, 0))
    gradients = torch.autograd.grad(torch.stack([(weight**3).sum() for weight in effective]).sum(), weights)
    for part, other, weight, divided, gradient in zip(parts, expected, weights, effective, gradients, strict=True):
        torch.testing.assert_close((part.u, part.v), (other.u, other.v))
        alone = other(weight)
        torch.testing.assert_close(divided, alone)
        torch.testing.assert_close((gradient,), torch.autograd.grad((alone**3).sum(), weight))
