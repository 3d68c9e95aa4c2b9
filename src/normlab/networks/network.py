"""What every network is made of: layers that a technique may change, and weights made effective before the pass."""

import collections.abc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normlab.normalizations.activation import BatchNorm
from normlab.normalizations.base import Exempt, Place, Reparametrization, Technique, WeightLayer
from normlab.randomness import stream
from normlab.registry import Registry


class NormalizedLayer(nn.Module):
    """A weight layer with what its technique makes of it: a reparametrized weight, a module behind it, or neither."""

    reparametrization: Reparametrization | None
    activation: nn.Module | None

    def __init__(self, layer: WeightLayer, technique: Technique, place: Place) -> None:
        super().__init__()
        self.layer = layer
        self.place = place
        weight, activation = technique.weight(layer, place), technique.activation(place)
        self.exempt = next((part.reason for part in (weight, activation) if isinstance(part, Exempt)), None)
        self.technique = None if self.exempt else technique.name
        self.reparametrization = None if isinstance(weight, Exempt) else weight
        self.activation = None if isinstance(activation, Exempt) else activation

    def forward(self, input: Tensor) -> Tensor:
        output = self.layer(input)
        return output if self.activation is None else self.activation(output)

    def effective_weight(self) -> Tensor:
        weight = self.layer.weight
        return weight if self.reparametrization is None else self.reparametrization(weight)


class Network(nn.Module):
    """A generator or a discriminator: a stack of modules under one technique.

    A pass takes the effective weights as an argument, so that one computation serves all passes of an update; without
    the argument they are computed on the spot. Nothing but batch statistics moves inside a pass; `advance` moves what
    belongs to the weights.
    """

    def __init__(self, body: nn.Module, technique: Technique) -> None:
        super().__init__()
        self.body = body
        self.technique = technique

    def forward(self, input: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """Return images [n, c, h, w] in [-1, 1] of latents [n, latent_size], or scores (logits) [n] of images."""
        effective = self.effective_weights() if weights is None else weights

        def body(input: Tensor) -> Tensor:
            return functional_call(self.body, effective, (input,)) if effective else self.body(input)

        return self.technique.output(body)(input)

    def layers(self) -> Iterator[tuple[str, NormalizedLayer]]:
        """Yield the weight layers with their names, in the order of the pass."""
        for name, module in self.body.named_modules():
            if isinstance(module, NormalizedLayer):
                yield name, module

    def effective_weights(self) -> dict[str, Tensor]:
        """Return the effective weights by parameter name, in float32, for the layers whose weight is reparametrized."""
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return {
                f"{name}.layer.weight": layer.effective_weight()
                for name, layer in self.layers()
                if layer.reparametrization is not None
            }

    @torch.no_grad()
    def advance(self) -> None:
        """Move the state that belongs to the weights, once after an update of this network."""
        for _, layer in self.layers():
            if layer.reparametrization is not None:
                layer.reparametrization.advance(layer.layer.weight)

    @contextmanager
    def frozen_statistics(self) -> collections.abc.Generator[None]:
        """Let passes use batch statistics and not move the running ones: they serve the other network's update."""
        modules = [module for module in self.modules() if isinstance(module, BatchNorm)]
        for module in modules:
            module.moving_statistics = False
        try:
            yield
        finally:
            for module in modules:
                module.moving_statistics = True


class Generator(Network):
    """A network from latents [n, latent_size] to images [n, c, h, w] in [-1, 1]."""

    def __init__(self, body: nn.Module, technique: Technique, latent_size: int) -> None:
        super().__init__(body, technique)
        self.latent_size = latent_size


class Architecture(NamedTuple):
    """A pair of networks for one image shape: each is built from the technique that it is to follow."""

    generator: Callable[[Technique], Generator]
    discriminator: Callable[[Technique], Network]


ARCHITECTURES: Registry[Callable[..., Architecture]] = Registry("architecture")


@torch.no_grad()
def initialise(network: Network, seed: int, purpose: str) -> None:
    """Draw every parameter as DCGAN does: weights from N(0, 0.02), gains from N(1, 0.02), biases 0.

    Each parameter has a random stream of its own, named after it and drawn on the CPU: networks that differ in their
    technique share every draw that they have in common. The state of reparametrizations follows from the weights.
    """
    for name, module in network.body.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, Reparametrization):
                continue
            if parameter_name == "bias":
                parameter.zero_()
                continue
            mean = 0.0 if isinstance(module, WeightLayer) else 1.0
            rng = stream(seed, purpose, f"{name}.{parameter_name}")
            parameter.copy_(mean + 0.02 * torch.randn(parameter.shape, generator=rng))
    for name, layer in network.layers():
        if layer.reparametrization is not None:
            layer.reparametrization.reset(layer.layer.weight, stream(seed, purpose, f"{name}.reparametrization"))
