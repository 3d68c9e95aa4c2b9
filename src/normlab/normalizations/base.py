"""A technique is one value: what happens to each weight, what follows each layer, what wraps the whole network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from normlab.registry import Registry

Forward = Callable[[Tensor], Tensor]
WeightLayer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


class Place(NamedTuple):
    """Where a layer stands in its network: what a technique may look at to decide whether it applies."""

    network: Literal["generator", "discriminator"]
    position: Literal["first", "hidden", "last"]
    channels: int  # of the layer's output
    size: int  # height and width of the layer's output, 1 where it has no map


class Exempt(NamedTuple):
    """A technique's word that it leaves a layer alone, with its reason."""

    reason: str


class Reparametrization(nn.Module):
    """The map from a layer's raw weight W to its effective weight.

    `forward` is a pure function of W and of the state. The state lives in parameters, which the optimizer moves, and in
    buffers, which `advance` moves: the trainer calls it once after each update of the network that owns the layer, so
    that all passes between two updates, training or not, see one and the same effective weight.
    """

    def reset(self, weight: Tensor, rng: torch.Generator) -> None:
        """Set the state that belongs to a freshly drawn W; random numbers come from `rng`, on the CPU."""
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        """Return the effective weight, shaped like W."""
        raise NotImplementedError

    def advance(self, weight: Tensor) -> None:
        """Move the buffers after an update of W; called without gradients."""


def keep_weight(layer: WeightLayer, place: Place) -> Reparametrization | Exempt | None:
    """Leave every weight as it is."""
    return None


def keep_activation(place: Place) -> nn.Module | Exempt | None:
    """Let nothing follow a layer."""
    return None


def keep_output(network: Forward) -> Forward:
    """Leave the network's function as it is."""
    return network


@dataclass(frozen=True, kw_only=True)
class Technique:
    """One way to normalize one network.

    weight: the reparametrization of a layer's weight; Exempt where the technique leaves this one alone; None where the
        technique does nothing to weights at all.
    activation: the module that follows a layer, before its nonlinearity; Exempt and None as above.
    output: the network's function, given the network's function.
    """

    name: str
    weight: Callable[[WeightLayer, Place], Reparametrization | Exempt | None] = keep_weight
    activation: Callable[[Place], nn.Module | Exempt | None] = keep_activation
    output: Callable[[Forward], Forward] = keep_output


TECHNIQUES: Registry[Callable[..., Technique]] = Registry("technique")


def output_dimension(layer: WeightLayer) -> int:
    """Return the dimension of a weight that counts output channels: 1 for transposed convolutions, else 0."""
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0


def as_matrix(weight: Tensor, output_dim: int) -> Tensor:
    """Return a weight as the matrix [output channels, all else] whose norms the literature speaks of."""
    return weight.transpose(0, output_dim).flatten(1)
