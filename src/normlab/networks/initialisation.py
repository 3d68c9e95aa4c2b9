"""The first values of a network's parameters."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from normlab.networks.blocks import Residual
from normlab.networks.network import Network
from normlab.normalizations.activation import GAINED
from normlab.normalizations.base import Reparametrization, WeightLayer, as_matrix, output_dimension
from normlab.randomness import stream
from normlab.registry import Registry
from normlab.settings import PositiveFloat

Draw = Callable[[WeightLayer, torch.Generator], Tensor]


class Initialisation(NamedTuple):
    """How the weight of a layer is drawn, what it is multiplied by in a residual branch, and how gains spread around 1.

    The gains are those of activation norms.
    """

    weight: Draw
    residual_gain: float = 1.0
    gain_spread: float = 0.0


INITIALISATIONS: Registry[Callable[..., Initialisation]] = Registry("initialisation")


def fans(layer: WeightLayer) -> tuple[float, float]:
    """Return how many inputs an output of the layer depends on, and how many outputs an input reaches.

    A tap of a transposed convolution of stride s meets one output pixel in s^2, and one of a convolution one input
    pixel in s^2: so many fewer there are.
    """
    rows, columns = as_matrix(layer.weight, output_dimension(layer)).shape
    taps = math.prod(layer.weight.shape[2:])
    stride = math.prod(layer.stride) if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) else 1
    fan_in, fan_out = float(columns), float(rows * taps)
    return (fan_in / stride, fan_out) if isinstance(layer, nn.ConvTranspose2d) else (fan_in, fan_out / stride)


def _normal(spread: Callable[[WeightLayer], float]) -> Draw:
    return lambda layer, rng: spread(layer) * torch.randn(layer.weight.shape, generator=rng)


def _by_fan_in(gain: float) -> Initialisation:
    return Initialisation(_normal(lambda layer: gain / fans(layer)[0] ** 0.5))


@INITIALISATIONS.register("dcgan")
def dcgan(*, std: PositiveFloat = 0.02) -> Initialisation:
    """Weights from N(0, std), gains of activation norms from N(1, std) (Radford et al. 2016, section 4)."""
    return Initialisation(_normal(lambda layer: std), gain_spread=std)


@INITIALISATIONS.register("lecun")
def lecun(*, gain: PositiveFloat = 1.0) -> Initialisation:
    """Weights from N(0, gain^2 / fan_in) (LeCun et al. 1998)."""
    return _by_fan_in(gain)


@INITIALISATIONS.register("kaiming")
def kaiming(*, gain: PositiveFloat = 2**0.5) -> Initialisation:
    """Weights from N(0, gain^2 / fan_in), gain sqrt(2) for ReLU (He et al. 2015, eq. 10)."""
    return _by_fan_in(gain)


@INITIALISATIONS.register("xavier")
def xavier(*, gain: PositiveFloat = 1.0, residual_gain: PositiveFloat = 1.0) -> Initialisation:
    """Weights from U(-b, b), b = gain sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 16).

    residual_gain: a further factor of the weights in residual branches, not in shortcuts; sqrt(2) in the code of
        Miyato et al. 2018.
    """

    def draw(layer: WeightLayer, rng: torch.Generator) -> Tensor:
        bound = gain * (6 / sum(fans(layer))) ** 0.5
        return bound * (2 * torch.rand(layer.weight.shape, generator=rng) - 1)

    return Initialisation(draw, residual_gain)


@INITIALISATIONS.register("orthogonal")
def orthogonal(*, gain: PositiveFloat = 1.0) -> Initialisation:
    """Weights with orthogonal rows or columns, as [output channels, all else] (Saxe et al. 2014)."""

    def draw(layer: WeightLayer, rng: torch.Generator) -> Tensor:
        dimension = output_dimension(layer)
        shape = as_matrix(layer.weight, dimension).shape
        normal = torch.randn(max(shape), min(shape), generator=rng)
        basis, triangle = torch.linalg.qr(normal)
        basis = basis * triangle.diagonal().sign()  # uniform over orthogonal matrices (Mezzadri 2007)
        matrix = basis if shape[0] >= shape[1] else basis.T
        turned = layer.weight.transpose(0, dimension).shape
        return gain * matrix.reshape(turned).transpose(0, dimension)

    return Initialisation(draw)


@torch.no_grad()
def initialise(network: Network, initialisation: Initialisation, seed: int, purpose: str) -> None:
    """Draw every weight and gain; biases are 0, and what else a module has stays as it was built.

    Each parameter has a random stream of its own, named after it and drawn on the CPU: networks that differ in their
    technique share every draw that they have in common. The state of reparametrizations follows from the weights.
    On the meta device, where nothing has a value, this does nothing: it would only take long.
    """
    if any(parameter.is_meta for parameter in network.parameters()):
        return
    blocks = [module for module in network.body.modules() if isinstance(module, Residual)]
    in_branches = {module for block in blocks for module in block.residual.modules()}
    for name, module in network.body.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            rng = stream(seed, purpose, f"{name}.{parameter_name}")
            if isinstance(module, Reparametrization):
                continue
            if parameter_name == "bias":
                parameter.zero_()
            elif isinstance(module, WeightLayer):
                gain = initialisation.residual_gain if module in in_branches else 1.0
                parameter.copy_(gain * initialisation.weight(module, rng))
            elif isinstance(module, GAINED) and parameter_name in ("weight", "gain"):
                parameter.copy_(1 + initialisation.gain_spread * torch.randn(parameter.shape, generator=rng))
    for name, layer in network.layers():
        if layer.reparametrization is not None:
            layer.reparametrization.reset(layer.layer.weight, stream(seed, purpose, f"{name}.reparametrization"))
