"""Spectral normalization: every weight divided by an estimate of its largest singular value."""

import torch
from torch import Tensor

from normlab.normalizations.base import (
    TECHNIQUES,
    Place,
    Reparametrization,
    Technique,
    WeightLayer,
    as_matrix,
    output_dimension,
)
from normlab.settings import PositiveInt

FIRST_ITERATIONS = 15


def unit(vector: Tensor) -> Tensor:
    """Return a vector at length 1 (at length 0 if it is shorter than 1e-12)."""
    return vector / vector.norm().clamp(min=1e-12)


class SpectralNorm(Reparametrization):
    """W -> W / sigma(W), sigma the largest singular value of W as [output channels, all else] (Miyato et al. 2018).

    sigma = u' W v, where power iteration moves u and v and the gradient sees them as constants (their section 2.1 and
    algorithm 1). Here the iterations run once after each update of the own network rather than in every forward pass,
    u and v are saved with the weights, and 15 iterations are spent on the first W, whose u the paper leaves random.
    """

    u: Tensor  # [output channels]
    v: Tensor  # [all else]

    def __init__(self, layer: WeightLayer, power_iterations: int) -> None:
        super().__init__()
        self.output_dim = output_dimension(layer)
        self.power_iterations = power_iterations
        rows, columns = as_matrix(layer.weight, self.output_dim).shape
        self.register_buffer("u", torch.zeros(rows, dtype=layer.weight.dtype))
        self.register_buffer("v", torch.zeros(columns, dtype=layer.weight.dtype))

    @torch.no_grad()
    def reset(self, weight: Tensor, rng: torch.Generator) -> None:
        self.u.copy_(unit(torch.randn(self.u.shape, generator=rng)))
        self.iterate(weight, FIRST_ITERATIONS)

    def advance(self, weight: Tensor) -> None:
        self.iterate(weight, self.power_iterations)

    def iterate(self, weight: Tensor, times: int) -> None:
        W, u, v = as_matrix(weight, self.output_dim), self.u, self.v
        for _ in range(times):
            v = unit(W.T @ u)
            u = unit(W @ v)
        self.u.copy_(u)
        self.v.copy_(v)

    def forward(self, weight: Tensor) -> Tensor:
        W = as_matrix(weight, self.output_dim)
        # Copies, because the next `advance` changes u and v in place while a graph may still hold them.
        sigma = torch.dot(self.u.clone(), W @ self.v.clone())
        return weight / sigma


@TECHNIQUES.register("spectral")
def spectral(*, power_iterations: PositiveInt = 1) -> Technique:
    """Spectral normalization of every layer of the network, first and last included (Miyato et al. 2018)."""

    def reparametrize(layer: WeightLayer, place: Place) -> Reparametrization:
        return SpectralNorm(layer, power_iterations)

    return Technique(name="spectral", weight=reparametrize)
