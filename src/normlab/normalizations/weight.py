"""Weight normalization: the length and the direction of each output channel's weight, told apart."""

import torch
from torch import Tensor, nn

from normlab.normalizations.base import (
    TECHNIQUES,
    Position,
    Reparametrization,
    Technique,
    WeightLayer,
    as_matrix,
    output_dimension,
    per_channel,
    technique_of_weights,
)
from normlab.settings import PositiveFloat

FLATTEST = 1e-6  # standard deviation over a batch that counts as none
SHORTEST = 1e-12  # that a channel of zeros counts as: it stays at zero, where the formula has NaN


def lengths(weight: Tensor, output_dim: int) -> Tensor:
    """Return |W_k| for each output channel k, [output channels], at least 1e-12."""
    return as_matrix(weight, output_dim).norm(dim=1).clamp(min=SHORTEST)


class WeightNorm(Reparametrization):
    """W_k -> g_k W_k / |W_k| for each output channel k, with the length g learned (Salimans & Kingma 2016, eq. 2).

    g starts at |W_k|, so that at initialisation the network computes what it would without the technique. Lengths below
    1e-12 count as 1e-12.
    """

    def __init__(self, layer: WeightLayer) -> None:
        super().__init__()
        self.output_dim = output_dimension(layer)
        self.g = nn.Parameter(torch.ones(layer.weight.shape[self.output_dim], dtype=layer.weight.dtype))

    @torch.no_grad()
    def reset(self, weight: Tensor, rng: torch.Generator) -> None:
        self.g.copy_(lengths(weight, self.output_dim))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * per_channel(self.g / lengths(weight, self.output_dim), weight, self.output_dim)


class FittedWeightNorm(WeightNorm):
    """Weight normalization whose lengths and biases start from a batch (Salimans & Kingma 2016, section 3).

    Layer by layer g <- 1 / sigma[t] and b <- -mu[t] / sigma[t], with t = W_k x / |W_k| over the batch and the map, so
    that every layer's output has mean 0 and variance 1 per channel there; only variance 1 where there is no bias. A
    channel that the batch leaves constant keeps length 1, and so do embeddings.
    """

    @torch.no_grad()
    def reset(self, weight: Tensor, rng: torch.Generator) -> None:
        self.g.fill_(1)

    @torch.no_grad()
    def fit(self, layer: WeightLayer, output: Tensor) -> Tensor:
        if isinstance(layer, nn.Embedding):
            return output
        over = [dim for dim in range(output.dim()) if dim != 1]
        shape = (-1, *[1] * (output.dim() - 2))
        t = output if layer.bias is None else output - layer.bias.view(shape)
        mu, sigma = t.mean(over), t.std(over, correction=0)
        scale = torch.where(sigma > FLATTEST, 1 / sigma, 1)
        self.g.copy_(scale)
        if layer.bias is None:
            return t * scale.view(shape)
        layer.bias.copy_(-mu * scale)
        return (t - mu.view(shape)) * scale.view(shape)


class StrictWeightNorm(Reparametrization):
    """W_k -> length W_k / |W_k| for each output channel k: the length is what it is, and never learned."""

    def __init__(self, layer: WeightLayer, length: float) -> None:
        super().__init__()
        self.output_dim = output_dimension(layer)
        self.length = length

    def reset(self, weight: Tensor, rng: torch.Generator) -> None:
        """There is no state."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * per_channel(self.length / lengths(weight, self.output_dim), weight, self.output_dim)


@TECHNIQUES.register("weight")
def weight(*, exempt: tuple[Position, ...] = ()) -> Technique:
    """Weight normalization with learned lengths on every layer of the network (Salimans & Kingma 2016)."""
    return technique_of_weights("weight", lambda layer, place: WeightNorm(layer), exempt)


@TECHNIQUES.register("weight_datainit")
def weight_datainit(*, exempt: tuple[Position, ...] = ()) -> Technique:
    """Weight normalization whose lengths and biases start from a first batch (Salimans & Kingma 2016, section 3)."""
    return technique_of_weights("weight_datainit", lambda layer, place: FittedWeightNorm(layer), exempt)


@TECHNIQUES.register("weight_strict")
def weight_strict(*, length: PositiveFloat = 1.0, exempt: tuple[Position, ...] = ()) -> Technique:
    """Weight normalization with one constant length for every output channel (Xiang & Li 2017, eq. 4, for length 1)."""
    return technique_of_weights(
        "weight_strict", lambda layer, place: StrictWeightNorm(layer, length), exempt, bounded=True
    )
