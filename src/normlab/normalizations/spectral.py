"""Spectral normalization: every weight divided by an estimate of its largest singular value."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

from normlab.normalizations.base import (
    TECHNIQUES,
    Place,
    Position,
    Reparametrization,
    Technique,
    WeightLayer,
    as_matrix,
    output_dimension,
    per_channel,
    technique_of_weights,
)
from normlab.normalizations.maps import Convolution
from normlab.settings import Misfit, PositiveFloat, PowerIterations

FIRST_ITERATIONS = 15  # spent on the first W, whose vectors the papers leave random
FIRST_ITERATIONS_OF_OPERATORS = 50  # which converge more slowly: their singular values lie closer together

When = Literal["update", "forward"]


class Settings(TypedDict, total=False):
    """What all that divide by sigma have in common; `DividedBySigma` says what it is."""

    power_iterations: int
    scale: float
    gain: nn.Parameter | None
    per_forward: bool


def unit(vector: Tensor) -> Tensor:
    """Return a vector at length 1 (at length 0 if it is shorter than 1e-12)."""
    return vector / vector.norm().clamp(min=1e-12)


def to_unit_length(vectors: list[Tensor]) -> None:
    """Bring vectors to length 1 in place (to length 0 what is shorter than 1e-12)."""
    lengths = torch._foreach_norm(vectors)  # pyright: ignore  # torch has no public names for these
    torch._foreach_clamp_min_(lengths, 1e-12)  # pyright: ignore
    torch._foreach_div_(vectors, lengths)  # pyright: ignore


def by_shape(matrices: Sequence[Tensor]) -> list[list[int]]:
    """Return which of some matrices are to be multiplied in one product: those of equal shape, on a GPU.

    There every launch that is saved is time gained. A CPU is several times as fast with one after the other.
    """
    groups: dict[Any, list[int]] = {}
    for number, matrix in enumerate(matrices):
        groups.setdefault(tuple(matrix.shape) if matrix.is_cuda else number, []).append(number)
    return list(groups.values())


def products(matrices: Sequence[Tensor], vectors: Sequence[Tensor], groups: list[list[int]]) -> list[Tensor]:
    """Return each matrix times its vector, computed group by group."""
    results = list(vectors)
    for group in groups:
        if len(group) == 1:
            (number,) = group
            results[number] = torch.mv(matrices[number], vectors[number])
            continue
        stack, rows = (torch.stack([each[number] for number in group]) for each in (matrices, vectors))
        # No bmm, which would take TensorFloat-32 for its float32 where products may.
        for number, product in zip(group, (stack * rows[:, None]).sum(dim=2).unbind(), strict=True):
            results[number] = product
    return results


class DivideBySigma(torch.autograd.Function):
    """scale W / sigma(W) of several layers, where the gradient sees u and v as constants (Miyato et al. 2018, eq. 12).

    sigma(W) is the mean of u' M v over the matrices M as which a weight is seen, each with its u and v. With G the
    gradient with respect to W / sigma, that with respect to W is (G - <G, W / sigma> u v') / sigma, with the mean of
    the u v' where there are several.

    views: for each pair of u and v the number of its weight and the dimension that is the rows of its matrix.
    """

    @staticmethod
    def forward(ctx: Any, scales: list[float], views: list[tuple[int, int]], *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(scales)
        weights, us, vs = tensors[:count], tensors[count : count + len(views)], tensors[count + len(views) :]
        matrices = [as_matrix(weights[number], dimension) for number, dimension in views]
        images = products(matrices, vs, by_shape(matrices))
        sigmas: list[list[Tensor]] = [[] for _ in scales]
        for (number, _), u, image in zip(views, us, images, strict=True):
            sigmas[number].append(torch.dot(u, image))
        means = [of_one[0] if len(of_one) == 1 else torch.stack(of_one).mean() for of_one in sigmas]
        inverses = torch.stack(means).reciprocal()
        divided = [weight * inverse for weight, inverse in zip(weights, inverses.unbind(), strict=True)]
        ctx.scales, ctx.views, ctx.shares = scales, views, [1 / len(of_one) for of_one in sigmas]
        ctx.save_for_backward(inverses, *divided, *us, *vs)
        return tuple(weight if scale == 1 else scale * weight for scale, weight in zip(scales, divided, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        count, views = len(gradients), ctx.views
        inverses, *saved = ctx.saved_tensors
        divided, us, vs = saved[:count], saved[count : count + len(views)], saved[count + len(views) :]
        along = torch.stack([each.sum() for each in torch._foreach_mul(gradients, divided)])  # pyright: ignore
        slopes, results = (
            (along * inverses).unbind(),
            [G * inverse for G, inverse in zip(gradients, inverses.unbind(), strict=True)],
        )
        for (number, dimension), u, v in zip(views, us, vs, strict=True):
            weight = divided[number]
            outer = per_channel(slopes[number] * u, weight, dimension), v.view(_without(weight.shape, dimension))
            results[number].addcmul_(*outer, value=-ctx.shares[number])
        scaled = (result if scale == 1 else scale * result for scale, result in zip(ctx.scales, results, strict=True))
        return None, None, *scaled, *([None] * (2 * len(views)))


def _without(shape: Sequence[int], dimension: int) -> list[int]:
    """Return the shape of a tensor that has one row in a dimension."""
    return [1 if place == dimension else length for place, length in enumerate(shape)]


class DividedBySigma(Reparametrization):
    """W -> gain scale W / sigma(W), sigma the largest singular value of what the subclass sees in W.

    Power iteration moves the vectors of sigma, and the gradient sees them as constants (Miyato et al. 2018, section 2.1
    and algorithm 1). Here it runs once after each update of the own network; `per_forward` runs it before every
    training pass, as they do. The vectors are saved with the weights.

    scale: a constant (Lin et al. 2021, section 5).  gain: a learned factor, its own or one that layers share; the bias
    of the layer is its own, and neither scale nor gain multiplies it.
    """

    first_iterations = FIRST_ITERATIONS

    def __init__(
        self,
        *,
        power_iterations: int = 1,
        scale: float = 1.0,
        gain: nn.Parameter | None = None,
        per_forward: bool = False,
    ) -> None:
        super().__init__()
        self.power_iterations = power_iterations
        self.scale = scale
        self.gain = gain
        self.per_forward = per_forward

    def start(self, rng: torch.Generator) -> None:
        """Draw the vectors that power iteration starts from."""
        raise NotImplementedError

    def iterate(self, weight: Tensor, times: int) -> None:
        """Move the vectors towards those of the largest singular value."""
        raise NotImplementedError

    def sigma(self, weight: Tensor) -> Tensor:
        """Return the estimate, a scalar that is differentiable in W and never above the true value."""
        raise NotImplementedError

    @torch.no_grad()
    def reset(self, weight: Tensor, rng: torch.Generator) -> None:
        self.start(rng)
        self.iterate(weight, self.first_iterations)

    def advance(self, weight: Tensor) -> None:
        self.iterate(weight, self.power_iterations)

    def forward(self, weight: Tensor) -> Tensor:
        factor = self.scale / self.sigma(weight)
        return weight * (factor if self.gain is None else self.gain * factor)


class SpectralNorm(DividedBySigma):
    """sigma = u' W v of W as the matrix [one of its dimensions, all else] (Miyato et al. 2018, eq. 10 and 11).

    dimension: of the weight, that which the matrix has for its rows; output channels where it is not given.
    """

    u: Tensor  # [rows]
    v: Tensor  # [columns]

    def __init__(self, layer: WeightLayer, dimension: int | None = None, **settings: Unpack[Settings]) -> None:
        super().__init__(**settings)
        self.dimension = output_dimension(layer) if dimension is None else dimension
        rows, columns = as_matrix(layer.weight, self.dimension).shape
        self.register_buffer("u", torch.zeros(rows, dtype=layer.weight.dtype))
        self.register_buffer("v", torch.zeros(columns, dtype=layer.weight.dtype))

    def start(self, rng: torch.Generator) -> None:
        self.u.copy_(unit(torch.randn(self.u.shape, generator=rng)))

    def iterate(self, weight: Tensor, times: int) -> None:
        self.iterate_all([self], [weight], times)

    @staticmethod
    def iterate_all(parts: Sequence["SpectralNorm"], weights: Sequence[Tensor], times: int) -> None:
        """Move the vectors of several layers; once an iteration all are brought to length 1 together."""
        matrices = [as_matrix(weight, part.dimension) for part, weight in zip(parts, weights, strict=True)]
        transposed, groups = [W.T for W in matrices], by_shape(matrices)
        us, vs = [part.u for part in parts], [part.v for part in parts]
        for _ in range(times):
            vs = products(transposed, us, groups)
            us = products(matrices, vs, groups)
            to_unit_length(vs + us)
        torch._foreach_copy_([part.v for part in parts] + [part.u for part in parts], vs + us)  # pyright: ignore

    @classmethod
    def advance_all(cls, parts: Sequence["SpectralNorm"], weights: Sequence[Tensor]) -> None:
        cls.iterate_all(parts, weights, parts[0].power_iterations)

    @classmethod
    def effective(cls, parts: Sequence["SpectralNorm"], weights: Sequence[Tensor]) -> list[Tensor]:
        return divided(parts, weights, list(enumerate(parts)))

    def forward(self, weight: Tensor) -> Tensor:
        return self.effective([self], [weight])[0]

    def sigma(self, weight: Tensor) -> Tensor:
        W = as_matrix(weight, self.dimension)
        # Copies, because power iteration changes u and v in place while a graph may still hold them.
        return torch.dot(self.u.clone(), W @ self.v.clone())


def divided(
    parts: Sequence[DividedBySigma], weights: Sequence[Tensor], views: Sequence[tuple[int, SpectralNorm]]
) -> list[Tensor]:
    """Return several weights divided by their sigmas, of which each has one view or the mean of several.

    views: with the number of the weight that each is of.
    """
    vectors = [view.u for _, view in views] + [view.v for _, view in views]
    # Copies, because power iteration changes u and v in place while a graph may still hold them.
    copies = torch.cat(vectors).split([len(vector) for vector in vectors])
    forms = [part.scale for part in parts], [(number, view.dimension) for number, view in views]
    results: tuple[Tensor, ...] = DivideBySigma.apply(*forms, *weights, *copies)
    return [weight if part.gain is None else part.gain * weight for part, weight in zip(parts, results, strict=True)]


class SpectralNormWithGain(SpectralNorm):
    """Spectral normalization times a gain that starts at 1, or at the first estimate of sigma."""

    def __init__(self, layer: WeightLayer, from_sigma: bool, **settings: Unpack[Settings]) -> None:
        super().__init__(layer, **settings)
        self.from_sigma = from_sigma

    @torch.no_grad()
    def reset(self, weight: Tensor, rng: torch.Generator) -> None:
        super().reset(weight, rng)
        assert self.gain is not None
        self.gain.copy_(self.sigma(weight) if self.from_sigma else torch.ones(()))


class BidirectionalSpectralNorm(DividedBySigma):
    """sigma = (sigma(W_out) + sigma(W_in)) / 2, with a row per output channel and with a row per input channel.

    Of a weight with no map both are the same, and it is plain spectral normalization (Lin et al. 2021, section 5).
    """

    def __init__(self, layer: WeightLayer, **settings: Unpack[Settings]) -> None:
        super().__init__(**settings)
        dimension = output_dimension(layer)
        self.of_outputs = SpectralNorm(layer, dimension)
        self.of_inputs = SpectralNorm(layer, 1 - dimension) if layer.weight.dim() > 2 else None

    def views(self) -> list[SpectralNorm]:
        return [self.of_outputs] if self.of_inputs is None else [self.of_outputs, self.of_inputs]

    @staticmethod
    def views_of(parts: Sequence["BidirectionalSpectralNorm"]) -> list[tuple[int, SpectralNorm]]:
        """Return the views of several layers, each with the number of its layer."""
        return [(number, view) for number, part in enumerate(parts) for view in part.views()]

    def start(self, rng: torch.Generator) -> None:
        for view in self.views():
            view.start(rng)

    def iterate(self, weight: Tensor, times: int) -> None:
        views = self.views()
        SpectralNorm.iterate_all(views, [weight] * len(views), times)

    @classmethod
    def advance_all(cls, parts: Sequence["BidirectionalSpectralNorm"], weights: Sequence[Tensor]) -> None:
        numbers, views = zip(*cls.views_of(parts), strict=True)
        SpectralNorm.iterate_all(views, [weights[number] for number in numbers], parts[0].power_iterations)

    @classmethod
    def effective(cls, parts: Sequence["BidirectionalSpectralNorm"], weights: Sequence[Tensor]) -> list[Tensor]:
        return divided(parts, weights, cls.views_of(parts))

    def forward(self, weight: Tensor) -> Tensor:
        return self.effective([self], [weight])[0]

    def sigma(self, weight: Tensor) -> Tensor:
        return torch.stack([view.sigma(weight) for view in self.views()]).mean()


class SpectralConvolutionNorm(DividedBySigma):
    """sigma of the convolution as the linear map that it is, at the layer's stride, padding and input size.

    Power iteration passes an image through the convolution and back through its adjoint (the operator norm that Lin et
    al. 2021 call SN_conv; Gouk et al. 2021, algorithm 1). The bias is no part of the map.
    """

    first_iterations = FIRST_ITERATIONS_OF_OPERATORS
    x: Tensor  # [1, input channels, h, w]
    y: Tensor  # [1, output channels, h', w']

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d, place: Place, **settings: Unpack[Settings]) -> None:
        super().__init__(**settings)
        self.map = Convolution.of(layer, (place.input_size, place.input_size))
        for name, channels, size in (("x", layer.in_channels, place.input_size), ("y", layer.out_channels, place.size)):
            self.register_buffer(name, torch.zeros(1, channels, size, size, dtype=layer.weight.dtype))

    def start(self, rng: torch.Generator) -> None:
        self.x.copy_(unit(torch.randn(self.x.shape, generator=rng)))

    def iterate(self, weight: Tensor, times: int) -> None:
        x, y = self.x, self.y
        for _ in range(times):
            y = unit(self.map.forth(x, weight))
            x = unit(self.map.back(y, weight))
        self.x.copy_(x)
        self.y.copy_(y)

    def sigma(self, weight: Tensor) -> Tensor:
        return (self.y.clone() * self.map.forth(self.x.clone(), weight)).sum()


def bounding(
    name: str,
    build: Callable[[WeightLayer, Place], Reparametrization],
    exempt: tuple[Position, ...],
    fixes_sigma: bool = False,
) -> Technique:
    """Return the technique that divides the weight of every layer but those at exempt positions by a norm of it."""
    return technique_of_weights(name, build, exempt, bounded=True, fixes_sigma=fixes_sigma)


@TECHNIQUES.register("spectral")
def spectral(
    *, power_iterations: PowerIterations = 1, advance: When = "update", exempt: tuple[Position, ...] = ()
) -> Technique:
    """Spectral normalization of every layer of the network, first and last included (Miyato et al. 2018)."""
    settings = Settings(power_iterations=power_iterations, per_forward=advance == "forward")
    return bounding("spectral", lambda layer, place: SpectralNorm(layer, **settings), exempt, fixes_sigma=True)


@TECHNIQUES.register("scaled_spectral")
def scaled_spectral(
    *,
    scale: PositiveFloat = 1.4,
    power_iterations: PowerIterations = 1,
    advance: When = "update",
    exempt: tuple[Position, ...] = (),
) -> Technique:
    """Spectral normalization times a constant, SSN; sqrt(2) is what ReLU takes away (Lin et al. 2021, section 5)."""
    settings = Settings(power_iterations=power_iterations, scale=scale, per_forward=advance == "forward")
    return bounding("scaled_spectral", lambda layer, place: SpectralNorm(layer, **settings), exempt, fixes_sigma=True)


@TECHNIQUES.register("bidirectional_spectral")
def bidirectional_spectral(
    *, power_iterations: PowerIterations = 1, advance: When = "update", exempt: tuple[Position, ...] = ()
) -> Technique:
    """Division by the mean of the norms over output and over input channels, BSN (Lin et al. 2021, section 5)."""
    settings = Settings(power_iterations=power_iterations, per_forward=advance == "forward")
    return bounding("bidirectional_spectral", lambda layer, place: BidirectionalSpectralNorm(layer, **settings), exempt)


@TECHNIQUES.register("bidirectional_scaled_spectral")
def bidirectional_scaled_spectral(
    *,
    scale: PositiveFloat = 1.4,
    power_iterations: PowerIterations = 1,
    advance: When = "update",
    exempt: tuple[Position, ...] = (),
) -> Technique:
    """Bidirectional spectral normalization times a constant, BSSN (Lin et al. 2021, section 5)."""
    settings = Settings(power_iterations=power_iterations, scale=scale, per_forward=advance == "forward")
    return bounding(
        "bidirectional_scaled_spectral", lambda layer, place: BidirectionalSpectralNorm(layer, **settings), exempt
    )


@TECHNIQUES.register("spectral_conv")
def spectral_conv(
    *,
    scale: PositiveFloat = 1.0,
    power_iterations: PowerIterations = 1,
    advance: When = "update",
    exempt: tuple[Position, ...] = (),
) -> Technique:
    """Division by the norm of the convolution as a linear map, SN_conv (Gouk et al. 2021; Lin et al. 2021, section 3).

    Every layer is then 1-Lipschitz, which plain spectral normalization does not make it.
    """
    settings = Settings(power_iterations=power_iterations, scale=scale, per_forward=advance == "forward")

    def build(layer: WeightLayer, place: Place) -> Reparametrization:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            return SpectralConvolutionNorm(layer, place, **settings)
        return SpectralNorm(layer, **settings)

    return bounding("spectral_conv", build, exempt)


@TECHNIQUES.register("spectral_gamma")
def spectral_gamma(
    *,
    sharing: Literal["layer", "network"] = "layer",
    start: Literal["one", "sigma"] = "one",
    power_iterations: PowerIterations = 1,
    advance: When = "update",
    exempt: tuple[Position, ...] = (),
) -> Technique:
    """Spectral normalization times a learned gain gamma, of each layer (Miyato et al. 2018, appendix E) or of all.

    gamma starts at 1, as in Lin et al. 2021, or at sigma(W), where the network computes what it would without.
    """
    if sharing == "network" and start == "sigma":
        raise Misfit("start=sigma is of one layer, and sharing=network has one gain for all", "give start=one")
    shared = nn.Parameter(torch.ones(())) if sharing == "network" else None

    def build(layer: WeightLayer, place: Place) -> Reparametrization:
        gain = nn.Parameter(torch.ones((), dtype=layer.weight.dtype)) if shared is None else shared
        settings = Settings(power_iterations=power_iterations, gain=gain, per_forward=advance == "forward")
        return SpectralNormWithGain(layer, start == "sigma", **settings)

    return technique_of_weights("spectral_gamma", build, exempt)  # a learned factor bounds nothing
