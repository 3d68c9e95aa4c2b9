"""A technique is one value: what happens to each weight, what follows each layer, what wraps the whole network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from normlab.registry import Registry
from normlab.settings import Length

Forward = Callable[[Tensor], Tensor]
WeightLayer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding
Position = Literal["first", "hidden", "last"]
# From a horizon, null for that of the run, to the part of it that has passed, a scalar in [0, 1] on the device.
Elapsed = Callable[[Length | None], Tensor]


class Place(NamedTuple):
    """Where a layer stands in its network: what a technique may look at to decide whether it applies."""

    network: Literal["generator", "discriminator"]
    position: Position
    channels: int  # of the layer's output
    size: int  # height and width of the layer's output, 1 where it has no map
    input_size: int = 1  # the same of its input
    classes: int | None = None  # of the labels that the network is given, if any


class Exempt(NamedTuple):
    """A technique's word that it leaves a layer alone, with its reason."""

    reason: str


class Reparametrization(nn.Module):
    """The map from a layer's raw weight W to its effective weight.

    `forward` is a pure function of W and of the state. The state lives in parameters, which the optimizer moves unless
    they require no gradient, and in buffers. An average over updates is made of parameters, and not of buffers.

    `adapt` and `advance` move the state: the trainer calls each once per update of the network that owns the layer, so
    that all passes between two updates, training or not, see one and the same effective weight. A reparametrization
    that is `per_forward` advances before every training pass instead.
    """

    uses_gradient = False  # whether `adapt` is to be called
    per_forward = False
    learning_rate: float | None = None  # of its parameters, where it is not the network's

    def reset(self, weight: Tensor, rng: torch.Generator) -> None:
        """Set the state that belongs to a freshly drawn W; random numbers come from `rng`, on the CPU."""
        raise NotImplementedError

    def fit(self, layer: WeightLayer, output: Tensor) -> Tensor:
        """Set the state by what the layer makes of a first batch, and return what it makes of that batch then."""
        return output

    def forward(self, weight: Tensor) -> Tensor:
        """Return the effective weight, shaped like W."""
        raise NotImplementedError

    def adapt(self, weight: Tensor, gradient: Tensor, elapsed: Elapsed) -> None:
        """Move the state by the loss's gradient with respect to the effective weight, before W is moved."""

    def advance(self, weight: Tensor) -> None:
        """Move the buffers after an update of W; called without gradients."""

    @classmethod
    def effective(cls, parts: Sequence[Any], weights: Sequence[Tensor]) -> list[Tensor]:
        """Return the effective weights of several layers of this kind, which may share operations between them."""
        return [part(weight) for part, weight in zip(parts, weights, strict=True)]

    @classmethod
    def adapt_all(
        cls, parts: Sequence[Any], weights: Sequence[Tensor], gradients: Sequence[Tensor], elapsed: Elapsed
    ) -> None:
        """Adapt several layers of this kind, which may share operations between them."""
        for part, weight, gradient in zip(parts, weights, gradients, strict=True):
            part.adapt(weight, gradient, elapsed)

    @classmethod
    def advance_all(cls, parts: Sequence[Any], weights: Sequence[Tensor]) -> None:
        """Advance several layers of this kind, which may share operations between them."""
        for part, weight in zip(parts, weights, strict=True):
            part.advance(weight)


class Labelled(nn.Module):
    """A module whose pass is `forward(input, labels)`, with labels int64 [n], or None where there are none."""


def keep_weight(layer: WeightLayer, place: Place) -> Reparametrization | Exempt | None:
    """Leave every weight as it is."""
    return None


def keep_activation(place: Place) -> nn.Module | Exempt | None:
    """Let nothing follow a layer."""
    return None


def keep_nonlinearity(place: Place, usual: nn.Module) -> nn.Module:
    """Leave the architecture's nonlinearity as it is."""
    return usual


class Addition(nn.Module):
    """The sum of a block's branches."""

    def forward(self, residual: Tensor, shortcut: Tensor) -> Tensor:
        return residual + shortcut


def plain_addition(channels: int) -> nn.Module:
    """Add the branches of a block as they are."""
    return Addition()


def keep_output(network: Forward) -> Forward:
    """Leave the discriminator's function as it is."""
    return network


@dataclass(frozen=True, kw_only=True)
class Technique:
    """One way to normalize one network.

    weight: the reparametrization of a layer's weight; Exempt where the technique leaves this one alone; None where the
        technique does nothing to weights at all.
    activation: the module that follows a layer, before its nonlinearity; Exempt and None as above.
    nonlinearity: what stands in place of the architecture's nonlinearity behind a layer.
    addition: what adds the residual branch of a block to its shortcut, given their channels.
    output: the discriminator's function, given its function; a generator cannot have one.
    couples_images: whether what the network makes of one image depends on the others of its batch.
    bounds_discriminator: whether the technique bounds how fast a discriminator's score may change with the image.
    fixes_sigma: whether it fixes the largest singular value of every effective weight.
    """

    name: str
    weight: Callable[[WeightLayer, Place], Reparametrization | Exempt | None] = keep_weight
    activation: Callable[[Place], nn.Module | Exempt | None] = keep_activation
    nonlinearity: Callable[[Place, nn.Module], nn.Module] = keep_nonlinearity
    addition: Callable[[int], nn.Module] = plain_addition
    output: Callable[[Forward], Forward] = keep_output
    couples_images: bool = False
    bounds_discriminator: bool = False
    fixes_sigma: bool = False

    @property
    def reparametrizes(self) -> bool:
        """Whether it does something to weights: of raw ones the size then says nothing of the network's."""
        return self.weight is not keep_weight


TECHNIQUES: Registry[Callable[..., Technique]] = Registry("technique")


def output_dimension(layer: WeightLayer) -> int:
    """Return the dimension of a weight that counts output channels: 1 for transposed convolutions, else 0.

    An embedding's is that of its classes: a row is what one label gives.
    """
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0


def channels_of(layer: WeightLayer) -> int:
    """Return how many output channels a layer has."""
    return layer.weight.shape[output_dimension(layer)]


def as_matrix(weight: Tensor, output_dim: int) -> Tensor:
    """Return a weight as the matrix [output channels, all else] whose norms the literature speaks of."""
    return (weight.transpose(0, output_dim) if output_dim else weight).flatten(1)


def outside(weight: Tensor, dimension: int | None) -> list[int]:
    """Return the dimensions of a weight but one, or all of them."""
    return [other for other in range(weight.dim()) if other != dimension]


def per_channel(values: Tensor, weight: Tensor, dimension: int | None) -> Tensor:
    """Return values [channels] shaped so that they multiply a weight channel by channel of a dimension.

    One value multiplies the whole weight where there is no dimension.
    """
    shape = [1] * weight.dim()
    if dimension is not None:
        shape[dimension] = -1
    return values.view(shape)


def technique_of_weights(
    name: str,
    build: Callable[[WeightLayer, Place], Reparametrization],
    exempt: tuple[Position, ...],
    *,
    bounded: bool = False,
    fixes_sigma: bool = False,
) -> Technique:
    """Return the technique that reparametrizes every layer but those at exempt positions.

    bounded: whether the effective weights have lengths that stay bounded, and with them the slope of a score.
    """

    def reparametrize(layer: WeightLayer, place: Place) -> Reparametrization | Exempt:
        return exempt_position(place, exempt) or build(layer, place)

    return Technique(
        name=name,
        weight=reparametrize,
        bounds_discriminator=bounded and not exempt,
        fixes_sigma=fixes_sigma and not exempt,
    )


def exempt_position(place: Place, exempt: tuple[Position, ...]) -> Exempt | None:
    """Return the reason why a layer is exempt by its position, or None if it is not."""
    return Exempt(f"{place.position} layer of the {place.network}") if place.position in exempt else None
