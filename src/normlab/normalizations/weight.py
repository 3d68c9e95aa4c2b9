"""Weight normalization: the length and the direction of each output channel's weight, told apart."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normlab.normalizations.base import (
    TECHNIQUES,
    Position,
    Reparametrization,
    Technique,
    WeightLayer,
    channels_of,
    output_dimension,
    outside,
    per_channel,
    technique_of_weights,
)
from normlab.settings import PositiveFloat

FLATTEST = 1e-6  # standard deviation over a batch that counts as none
SHORTEST = 1e-12  # that a channel of zeros counts as: it stays at zero, where the formula has NaN


def lengths(weights: Sequence[Tensor], dimensions: Sequence[int | None]) -> Tensor:
    """Return |W_k| for each channel k of several layers, one behind the other, at least 1e-12.

    dimensions: of each weight that of its channels; where there is none, the whole weight counts as one channel.
    """
    rows = zip(weights, dimensions, strict=True)
    norms = [torch.linalg.vector_norm(weight, dim=outside(weight, dimension)).view(-1) for weight, dimension in rows]
    return torch.cat(norms).clamp(min=SHORTEST)


def slopes(weights: Sequence[Tensor], gradients: Sequence[Tensor], dimensions: Sequence[int | None]) -> Tensor:
    """Return <G_k, W_k> for each channel k of several layers, one behind the other."""
    products = torch._foreach_mul(gradients, weights)  # pyright: ignore  # torch has no public name for it
    rows = zip(products, dimensions, strict=True)
    return torch.cat([product.sum(outside(product, dimension)).view(-1) for product, dimension in rows])


class GiveLengths(torch.autograd.Function):
    """W_k -> L_k W_k / (|W_k| + eps) of several layers, which share what is computed per channel.

    With f_k = L_k / (|W_k| + eps) and G the gradient with respect to the result, that with respect to L_k is
    <G_k, W_k> f_k / L_k, and that with respect to W_k is f_k (G_k - <G_k, W_k> W_k / (|W_k| (|W_k| + eps))).
    """

    @staticmethod
    def forward(ctx: Any, dimensions: list[int | None], eps: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(dimensions)
        weights, wanted = tensors[:count], tensors[count:]
        found = lengths(weights, dimensions)
        inverses = (found + eps if eps else found).reciprocal()
        factors = torch.cat(wanted) * inverses
        ctx.dimensions, ctx.sizes = dimensions, [len(each) for each in wanted]
        ctx.save_for_backward(found, inverses, factors, *weights)
        rows = zip(weights, factors.split(ctx.sizes), dimensions, strict=True)
        return tuple(weight * per_channel(factor, weight, dimension) for weight, factor, dimension in rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        found, inverses, factors, *weights = ctx.saved_tensors
        of_lengths = slopes(weights, gradients, ctx.dimensions) * inverses
        shares = (factors * of_lengths / found).split(ctx.sizes)
        results: list[Tensor] = []
        rows = zip(weights, gradients, factors.split(ctx.sizes), shares, ctx.dimensions, strict=True)
        for weight, G, factor, share, dimension in rows:
            scaled = per_channel(factor, weight, dimension) * G
            results.append(torch.addcmul(scaled, per_channel(share, weight, dimension), weight, value=-1))
        return None, None, *results, *of_lengths.split(ctx.sizes)


class GivenLengths(Reparametrization):
    """W_k -> L_k W_k / (|W_k| + eps) for each channel k of a dimension, or for the whole weight where it has none."""

    eps = 0.0

    def __init__(self, dimension: int | None) -> None:
        super().__init__()
        self.dimension = dimension

    def wanted(self) -> Tensor:
        """Return the lengths L [channels] that the effective weight is to have."""
        raise NotImplementedError

    @classmethod
    def effective(cls, parts: Sequence["GivenLengths"], weights: Sequence[Tensor]) -> list[Tensor]:
        dimensions, wanted = [part.dimension for part in parts], [part.wanted() for part in parts]
        return list(GiveLengths.apply(dimensions, cls.eps, *weights, *wanted))

    def forward(self, weight: Tensor) -> Tensor:
        return self.effective([self], [weight])[0]


class WeightNorm(GivenLengths):
    """W_k -> g_k W_k / |W_k| for each output channel k, with the length g learned (Salimans & Kingma 2016, eq. 2).

    g starts at |W_k|, so that at initialisation the network computes what it would without the technique. Lengths below
    1e-12 count as 1e-12.
    """

    def __init__(self, layer: WeightLayer) -> None:
        super().__init__(output_dimension(layer))
        self.g = nn.Parameter(torch.ones(channels_of(layer), dtype=layer.weight.dtype))

    def wanted(self) -> Tensor:
        return self.g

    @torch.no_grad()
    def reset(self, weight: Tensor, rng: torch.Generator) -> None:
        self.g.copy_(lengths([weight], [self.dimension]))


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


class StrictWeightNorm(GivenLengths):
    """W_k -> length W_k / |W_k| for each output channel k: the length is what it is, and never learned."""

    length: Tensor  # [output channels]

    def __init__(self, layer: WeightLayer, length: float) -> None:
        super().__init__(output_dimension(layer))
        constant = torch.full((channels_of(layer),), length, dtype=layer.weight.dtype)
        self.register_buffer("length", constant, persistent=False)

    def reset(self, weight: Tensor, rng: torch.Generator) -> None:
        """There is no state."""

    def wanted(self) -> Tensor:
        return self.length


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
