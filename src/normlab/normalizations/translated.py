"""The weight normalization of Xiang & Li 2017: strict layers between translated nonlinearities."""

import math

import torch
from torch import Tensor, nn

from normlab.normalizations.base import (
    TECHNIQUES,
    Place,
    Position,
    Reparametrization,
    Technique,
    WeightLayer,
    channels_of,
    output_dimension,
)
from normlab.normalizations.weight import GivenLengths

EPS = 1e-8  # added to every length, as the authors' code does
INITIAL_SLOPE = 0.25


class TranslatedPReLU(nn.Module):
    """TPReLU(x) = PReLU_a(x - alpha) + alpha, a slope a in [0, 1] and a threshold alpha per channel (their eq. 8).

    a starts at 0.25 and alpha at 0; the slope is clamped in the pass, not in the parameter, as the authors' code does.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((channels,), INITIAL_SLOPE))
        self.threshold = nn.Parameter(torch.zeros(channels))

    def forward(self, input: Tensor) -> Tensor:
        shape = (-1, *[1] * (input.dim() - 2))
        a, alpha = self.slope.clamp(0, 1).view(shape), self.threshold.view(shape)
        above = (input - alpha).clamp(min=0)
        return above + a * (input - alpha - above) + alpha


class UnitWeightNorm(GivenLengths):
    """W_k -> W_k / |W_k| for each output channel k, times the strides of a transposed convolution's square root.

    A pixel of a transposed convolution's output sees one tap in s_h s_w, so that its weight is that much longer
    (as the authors' code has it). With `affine` there is a learned gain, from 1.
    """

    eps = EPS
    length: Tensor  # [output channels]

    def __init__(self, layer: WeightLayer, affine: bool) -> None:
        super().__init__(output_dimension(layer))
        length = math.sqrt(math.prod(layer.stride)) if isinstance(layer, nn.ConvTranspose2d) else 1.0
        ones = torch.ones(channels_of(layer), dtype=layer.weight.dtype)
        self.register_buffer("length", length * ones, persistent=False)
        self.gain = nn.Parameter(ones) if affine else None

    @torch.no_grad()
    def reset(self, weight: Tensor, rng: torch.Generator) -> None:
        if self.gain is not None:
            self.gain.fill_(1)

    def wanted(self) -> Tensor:
        return self.length if self.gain is None else self.gain * self.length


class WeightNormalizedAddition(nn.Module):
    """w_1 residual + w_2 shortcut over |(w_1, w_2)|, per channel; w starts at (0, 1) (the authors' code)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.tensor([0.0, 1.0])[:, None].repeat(1, channels))

    def forward(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        shape = (-1, *[1] * (residual.dim() - 2))
        of_residual, of_shortcut = (self.shares / (self.shares.norm(dim=0) + EPS)).unbind()
        return of_residual.view(shape) * residual + of_shortcut.view(shape) * shortcut


@TECHNIQUES.register("weight_translated")
def weight_translated(*, affine: tuple[Position, ...] = ("last",)) -> Technique:
    """Strict weight normalization with TPReLU, and an affine last layer (Xiang & Li 2017, sections 3.1 to 3.3).

    Strict layers have neither gain nor bias; TPReLU stands in place of every nonlinearity, and the branches of a
    residual block are added by normalized weights.

    affine: the layers with a learned gain, and their bias if the architecture gives them one. Their generator's first
        layer is affine too in the newer of the authors' two codes.
    """

    def reparametrize(layer: WeightLayer, place: Place) -> Reparametrization:
        is_affine = place.position in affine
        if not is_affine and not isinstance(layer, nn.Embedding):
            layer.register_parameter("bias", None)
        return UnitWeightNorm(layer, is_affine)

    return Technique(
        name="weight_translated",
        weight=reparametrize,
        nonlinearity=lambda place, usual: TranslatedPReLU(place.channels),
        addition=WeightNormalizedAddition,
    )
