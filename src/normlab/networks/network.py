"""What every network is made of: layers that a technique may change, and weights made effective before the pass."""

import collections.abc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normlab.normalizations.activation import BatchNorm
from normlab.normalizations.base import (
    Elapsed,
    Exempt,
    Labelled,
    Place,
    Reparametrization,
    Technique,
    WeightLayer,
    keep_activation,
    keep_output,
)
from normlab.registry import Registry
from normlab.settings import Misfit, Range

Weights = dict[str, Tensor]
Size = Annotated[int, Range(least=1, most=100_000)]


class Stack(nn.Sequential):
    """Modules in a row, given the labels where they take them."""

    def forward(self, input: Tensor, labels: Tensor | None = None) -> Tensor:
        for module in self:
            input = follow(module, input, labels)
        return input


def follow(module: nn.Module | None, input: Tensor, labels: Tensor | None) -> Tensor:
    """Return what a module that may not be there, and may take labels, makes of an input."""
    if module is None:
        return input
    return module(input, labels) if isinstance(module, Labelled | Stack) else module(input)


class NormalizedLayer(Labelled):
    """A weight layer with what its technique makes of it: a reparametrized weight, a module behind it, or neither.

    shape: what each row of the output of a linear layer is brought to before a module follows, [c, h, w].
    bare: why no activation norm may stand behind this layer; None where one may.
    """

    reparametrization: Reparametrization | None
    activation: nn.Module | None

    def __init__(
        self,
        layer: WeightLayer,
        technique: Technique,
        place: Place,
        *,
        shape: tuple[int, int, int] | None = None,
        bare: str | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.place = place
        self.shape = shape
        weight = technique.weight(layer, place)
        activation = technique.activation(place) if bare is None else None
        if bare is not None and technique.activation is not keep_activation:
            activation = Exempt(bare)
        self.exempt = next((part.reason for part in (weight, activation) if isinstance(part, Exempt)), None)
        self.technique = None if self.exempt else technique.name
        self.reparametrization = None if isinstance(weight, Exempt) else weight
        self.activation = None if isinstance(activation, Exempt) else activation

    def forward(self, input: Tensor, labels: Tensor | None = None) -> Tensor:
        output = self.layer(input)
        if self.shape is not None:
            output = output.unflatten(1, self.shape)
        return follow(self.activation, output, labels)

    def effective_weight(self) -> Tensor:
        weight = self.layer.weight
        return weight if self.reparametrization is None else self.reparametrization(weight)


class Normalization(Labelled):
    """What a technique puts at a place where no weight layer stands: the entrance of a residual block."""

    def __init__(self, technique: Technique, place: Place) -> None:
        super().__init__()
        activation = technique.activation(place)
        self.activation = None if isinstance(activation, Exempt) else activation

    def forward(self, input: Tensor, labels: Tensor | None = None) -> Tensor:
        return follow(self.activation, input, labels)


class Network(nn.Module):
    """A generator or a discriminator: a stack of modules under one technique.

    A pass takes the effective weights as an argument, so that one computation serves all passes of an update; without
    the argument they are computed on the spot. Nothing but batch statistics moves inside a pass; `adapt` and `advance`
    move what belongs to the weights.

    classes: how many labels its passes are to be given; None where it takes none.
    """

    def __init__(self, body: nn.Module, technique: Technique, classes: int | None = None) -> None:
        super().__init__()
        self.body = body
        self.technique = technique
        self.classes = classes

    def forward(self, input: Tensor, weights: Weights | None = None, labels: Tensor | None = None) -> Tensor:
        """Return images [n, c, h, w] in [-1, 1] of latents [n, latent_size], or scores (logits) [n] of images.

        labels: int64 [n], of a network that takes them; 0, 1, 2 ... in turn where none are given.
        """
        effective = self.effective_weights() if weights is None else weights
        if labels is None and self.classes is not None:
            labels = torch.arange(len(input), device=input.device) % self.classes

        def body(input: Tensor) -> Tensor:
            arguments = (input,) if labels is None else (input, labels)
            return functional_call(self.body, effective, arguments) if effective else self.body(*arguments)

        return self.technique.output(body)(input)

    @property
    def is_left_alone(self) -> bool:
        """Whether the technique is of weights or activations, and every layer here is exempt from it."""
        if not (self.technique.reparametrizes or self.technique.activation is not keep_activation):
            return False
        parts = [module for module in self.modules() if isinstance(module, NormalizedLayer | Normalization)]
        return not any(part.activation or getattr(part, "reparametrization", None) for part in parts)

    def layers(self) -> Iterator[tuple[str, NormalizedLayer]]:
        """Yield the weight layers with their names, in the order of the pass."""
        for name, module in self.body.named_modules():
            if isinstance(module, NormalizedLayer):
                yield name, module

    def weight_layers(self) -> Iterator[tuple[str, NormalizedLayer]]:
        """Yield the weight layers with the names of their weights."""
        return ((f"{name}.layer.weight", layer) for name, layer in self.layers())

    def reparametrized(self) -> Iterator[tuple[str, NormalizedLayer, Reparametrization]]:
        """Yield the layers whose weight is reparametrized, with the name of that weight."""
        for name, layer in self.weight_layers():
            if layer.reparametrization is not None:
                yield name, layer, layer.reparametrization

    def parameters_of_body(self) -> Weights:
        """Return every parameter that a pass may be given others for, by name, not to be differentiated."""
        return {name: parameter.detach() for name, parameter in self.body.named_parameters()}

    def effective_weights(self) -> Weights:
        """Return the effective weights by parameter name, in float32, for the layers whose weight is reparametrized."""
        effective: Weights = {}
        with self._in_float32():
            for kind, names, parts, weights in self._by_kind():
                effective |= zip(names, kind.effective(parts, weights), strict=True)
        return effective

    def weights_of_pass(self, previous: Weights | None = None) -> Weights:
        """Return the effective weights for a training pass, those of the previous one where nothing has moved since.

        What advances per forward pass rather than per update does so here.
        """
        if any(part.per_forward for _, _, part in self.reparametrized()):
            self._advance(per_forward=True)
            return self.effective_weights()
        return self.effective_weights() if previous is None else previous

    @torch.no_grad()
    def adapt(self, gradients: Mapping[str, Tensor], elapsed: Elapsed) -> None:
        """Move what follows the gradients of the effective weights, by name, before the weights themselves move."""
        for kind, names, parts, weights in self._by_kind():
            if parts[0].uses_gradient:
                kind.adapt_all(parts, weights, [gradients[name] for name in names], elapsed)

    def advance(self) -> None:
        """Move the state that belongs to the weights, once after an update of this network."""
        self._advance(per_forward=False)

    @torch.no_grad()
    def _advance(self, per_forward: bool) -> None:
        with self._in_float32():
            for kind, _, parts, weights in self._by_kind():
                if parts[0].per_forward == per_forward:
                    kind.advance_all(parts, weights)

    def _by_kind(self) -> Iterator[tuple[type[Reparametrization], list[str], list[Reparametrization], list[Tensor]]]:
        """Yield each kind of reparametrization with its layers that move alike: names and values of their weights."""
        kinds: dict[Any, list[tuple[str, Reparametrization, Tensor]]] = {}
        for name, layer, part in self.reparametrized():
            alike = type(part), part.uses_gradient, part.per_forward
            kinds.setdefault(alike, []).append((name, part, layer.layer.weight))
        for (kind, *_), members in kinds.items():
            names, parts, weights = map(list, zip(*members, strict=True))
            yield kind, names, parts, weights

    def _in_float32(self) -> torch.autocast:
        return torch.autocast(next(self.parameters()).device.type, enabled=False)

    @property
    def starts_from_data(self) -> bool:
        return any(type(part).fit is not Reparametrization.fit for _, _, part in self.reparametrized())

    @torch.no_grad()
    def fit(self, input: Tensor, labels: Tensor | None = None) -> None:
        """Let what starts from data see a first batch, layer by layer, each behind those that have seen it."""
        if not self.starts_from_data:
            return
        hooks = [
            layer.layer.register_forward_hook(_fitting(layer, reparametrization))
            for _, layer, reparametrization in self.reparametrized()
        ]
        with self.frozen_statistics():
            self(input, labels=labels)
        for hook in hooks:
            hook.remove()

    @contextmanager
    def frozen_statistics(self) -> collections.abc.Generator[None]:
        """Let passes use batch statistics and not move the running ones: they serve the other network's update."""
        norms = self.batch_norms()
        for norm in norms:
            norm.moving_statistics = False
        try:
            yield
        finally:
            for norm in norms:
                norm.moving_statistics = True

    def batch_norms(self) -> list[BatchNorm]:
        """Return the modules that normalize by the statistics of a batch."""
        return [module for module in self.modules() if isinstance(module, BatchNorm)]


def _fitting(layer: NormalizedLayer, reparametrization: Reparametrization) -> Callable[..., Tensor]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return reparametrization.fit(layer.layer, output)

    return hook


class Generator(Network):
    """A network from latents [n, latent_size] to images [n, c, h, w] in [-1, 1].

    Raises Misfit for a technique that is of a score.
    """

    def __init__(self, body: nn.Module, technique: Technique, latent_size: int, classes: int | None = None) -> None:
        if technique.output is not keep_output:
            problem = f"{technique.name} normalization is of a score, and a generator has none"
            raise Misfit(problem, "give the discriminator it")
        super().__init__(body, technique, classes)
        self.latent_size = latent_size


class ImageSpec(NamedTuple):
    """What an architecture is built for: the shape of the images, and how many labels they have, if any."""

    channels: int
    height: int
    width: int
    classes: int | None = None


class Architecture(NamedTuple):
    """A pair of networks for one kind of image: each is built from the technique that it is to follow."""

    generator: Callable[[Technique], Generator]
    discriminator: Callable[[Technique], Network]


ARCHITECTURES: Registry[Callable[..., Architecture]] = Registry("architecture")
