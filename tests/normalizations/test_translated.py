"""The layers of Xiang & Li 2017 against their formulas and against what they are said to be equivalent to."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normlab.normalizations import TECHNIQUES
from normlab.normalizations.base import Place, Reparametrization, WeightLayer, as_matrix, output_dimension
from normlab.normalizations.translated import TranslatedPReLU, WeightNormalizedAddition

HIDDEN, LAST = Place("discriminator", "hidden", 5, 4), Place("discriminator", "last", 5, 1)
TECHNIQUE = TECHNIQUES.build("weight_translated", {})


def strict(layer: WeightLayer, place: Place = HIDDEN) -> Reparametrization:
    part = TECHNIQUE.weight(layer, place)
    assert isinstance(part, Reparametrization)
    part.reset(layer.weight.data, torch.Generator())
    return part.double()


@pytest.mark.parametrize(
    ("layer", "length"),
    [
        (nn.Linear(7, 5), 1.0),
        (nn.Conv2d(3, 5, 4, stride=2), 1.0),
        (nn.ConvTranspose2d(3, 5, 3), 1.0),
        (nn.ConvTranspose2d(3, 5, 4, stride=2), 2.0),
        (nn.ConvTranspose2d(3, 5, 6, stride=3), 3.0),
    ],
    ids=["linear", "conv", "transposed", "stride 2", "stride 3"],
)
def test_i16_the_length_is_1_times_the_stride_of_a_transposed_convolution(layer: WeightLayer, length: float) -> None:
    layer.double()
    W = as_matrix(strict(layer)(layer.weight), output_dimension(layer))

    # The authors' eps of 1e-8 beside lengths of about 0.5.
    torch.testing.assert_close(W.norm(dim=1), torch.full((5,), length).double(), rtol=1e-6, atol=0)


def test_i10_and_i11_the_gradient_is_orthogonal_to_each_channel() -> None:
    layer = nn.Conv2d(3, 5, 4).double()
    part = strict(layer)
    effective = part(layer.weight)
    (gradient,) = torch.autograd.grad((effective * torch.randn_like(effective)).sum(), layer.weight)
    along = (gradient * layer.weight).sum(dim=(1, 2, 3)) / gradient.norm() / layer.weight.norm()

    torch.testing.assert_close(part(3 * layer.weight), effective, rtol=1e-6, atol=0)  # 1e-6: their eps
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-6)


def test_strict_layers_have_neither_gain_nor_bias_and_the_last_one_has_both() -> None:
    hidden, last = nn.Linear(7, 5), nn.Linear(7, 5)

    assert list(strict(hidden).parameters()) == []
    assert hidden.bias is None
    assert [parameter.tolist() for parameter in strict(last, LAST).parameters()] == [[1.0] * 5]
    assert last.bias is not None


def test_layers_may_be_affine_by_their_position() -> None:
    technique = TECHNIQUES.build("weight_translated", {"affine": ["first"]})
    layers = [nn.Linear(7, 5) for _ in range(3)]
    for layer, position in zip(layers, ("first", "hidden", "last"), strict=True):
        part = technique.weight(layer, Place("generator", position, 5, 1))
        assert isinstance(part, nn.Module)
        assert len(list(part.parameters())) == (position == "first")

    assert [layer.bias is None for layer in layers] == [False, True, True]


def test_i17_tprelu_is_prelu_around_a_threshold() -> None:
    x = torch.linspace(-3, 3, 50).double().view(10, 5)
    plain = TranslatedPReLU(5).double()
    plain.slope.data = torch.linspace(0, 1, 5).double()
    torch.testing.assert_close(plain(x), F.prelu(x, plain.slope), rtol=0, atol=1e-7)

    moved = TranslatedPReLU(5).double()
    moved.threshold.data = torch.linspace(-1, 1, 5).double()
    torch.testing.assert_close(moved(moved.threshold[None]), moved.threshold[None])
    torch.testing.assert_close(moved(x), F.prelu(x - moved.threshold, moved.slope) + moved.threshold)
    moved.slope.data.fill_(1)
    identity = moved(x)
    moved.slope.data.fill_(2)
    torch.testing.assert_close(identity, x)
    torch.testing.assert_close(moved(x), identity)


def test_i17_an_ended_slope_still_has_a_gradient_in_the_input() -> None:
    part = TranslatedPReLU(1).double()
    part.slope.data.fill_(1.5)  # beyond its end, at 1
    x = torch.tensor([[-1.0], [2.0]]).double().requires_grad_()
    part(x).sum().backward()

    assert x.grad is not None
    assert part.slope.grad is not None
    torch.testing.assert_close(x.grad.flatten(), torch.tensor([1.0, 1.0]).double())
    assert part.slope.grad.item() == 0


def test_i18_the_shares_of_an_addition_have_length_1_and_begin_with_the_shortcut() -> None:
    addition = WeightNormalizedAddition(3).double()
    residual, shortcut = torch.randn(2, 4, 3, 2, 2).double()
    torch.testing.assert_close(addition(residual, shortcut), shortcut, rtol=1e-6, atol=0)

    addition.shares.data = torch.randn(2, 3).double()
    of_residual = addition(torch.ones(1, 3, 1, 1).double(), torch.zeros(1, 3, 1, 1).double())
    of_shortcut = addition(torch.zeros(1, 3, 1, 1).double(), torch.ones(1, 3, 1, 1).double())
    torch.testing.assert_close(of_residual**2 + of_shortcut**2, torch.ones(1, 3, 1, 1).double(), rtol=1e-6, atol=0)


def test_i19_strict_layers_with_trelu_and_an_affine_end_can_do_what_linear_layers_with_relu_do() -> None:
    """Of relu(W x + b): its length goes into the next layer, its bias into the threshold, and what is left at the end.

    relu(W x + b) = |w| (relu(v x - alpha)) with v = w / |w| and alpha = -b / |w|, and trelu is that plus alpha.
    """
    torch.manual_seed(0)
    first, second = nn.Linear(6, 5).double(), nn.Linear(5, 3).double()
    x = torch.randn(20, 6).double()
    expected = second(F.relu(first(x)))

    lengths = first.weight.norm(dim=1)
    trelu = TranslatedPReLU(5).double()
    trelu.slope.data.zero_()
    trelu.threshold.data = -first.bias.data / lengths.data
    inner, outer = nn.Linear(6, 5).double(), nn.Linear(5, 3).double()
    inner.weight.data, outer.weight.data = first.weight.data, second.weight.data * lengths.data
    inner_part, outer_part = strict(inner), strict(outer, LAST)
    (gain,) = outer_part.parameters()
    gain.data = outer.weight.data.norm(dim=1)
    outer.bias.data = second.bias.data - outer.weight.data @ trelu.threshold.data
    hidden = trelu(x @ inner_part(inner.weight).T)
    output = hidden @ outer_part(outer.weight).T + outer.bias

    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)  # their eps again
