"""Weight normalization: the length and the direction of each output channel's weight, learned apart."""

import torch
from torch import Tensor, nn

from normlab.normalizations.base import (
    TECHNIQUES,
    Place,
    Reparametrization,
    Technique,
    WeightLayer,
    as_matrix,
    output_dimension,
)


class WeightNorm(Reparametrization):
    """W_k -> g_k W_k / |W_k| for each output channel k, with the length g learned (Salimans & Kingma 2016, eq. 2).

    g starts at |W_k|, so that at initialisation the network computes what it would without the technique; the paper's
    start from a batch of data is another technique. Lengths below 1e-12 count as 1e-12, so that a channel of zeros
    stays at zero and does not turn into NaN, as it would in the formula.
    """

    def __init__(self, layer: WeightLayer) -> None:
        super().__init__()
        self.output_dim = output_dimension(layer)
        self.g = nn.Parameter(torch.ones(layer.weight.shape[self.output_dim], dtype=layer.weight.dtype))

    def lengths(self, weight: Tensor) -> Tensor:
        """Return |W_k| for each output channel k, [output channels]."""
        return as_matrix(weight, self.output_dim).norm(dim=1).clamp(min=1e-12)

    @torch.no_grad()
    def reset(self, weight: Tensor, rng: torch.Generator) -> None:
        self.g.copy_(self.lengths(weight))

    def forward(self, weight: Tensor) -> Tensor:
        shape = [1] * weight.dim()
        shape[self.output_dim] = -1
        return weight * (self.g / self.lengths(weight)).view(shape)


@TECHNIQUES.register("weight")
def weight() -> Technique:
    """Weight normalization with learned lengths on every layer of the network (Salimans & Kingma 2016)."""

    def reparametrize(layer: WeightLayer, place: Place) -> Reparametrization:
        return WeightNorm(layer)

    return Technique(name="weight", weight=reparametrize)
