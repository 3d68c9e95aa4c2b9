"""What architectures are put together from: layers under a technique, residual blocks, and the score at the end."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlab.networks.network import ImageSpec, Normalization, NormalizedLayer, Stack
from normlab.normalizations.base import Labelled, Place, Position, Technique, WeightLayer
from normlab.settings import Misfit

# Why no activation norm stands behind some layers of residual networks.
NORMALIZED_AT_ENTRANCES = "blocks are normalized at their entrance"
IN_A_SHORTCUT = "a shortcut"


class Layers:
    """Makes the layers of one network under its technique."""

    def __init__(
        self, network: Literal["generator", "discriminator"], technique: Technique, classes: int | None = None
    ) -> None:
        self.network: Literal["generator", "discriminator"] = network
        self.technique = technique
        self.classes = classes

    def place(self, position: Position, channels: int, size: int, input_size: int = 1) -> Place:
        return Place(self.network, position, channels, size, input_size, self.classes)

    def layer(
        self, layer: WeightLayer, position: Position, size: int = 1, input_size: int = 1, **how: Any
    ) -> NormalizedLayer:
        """Return a weight layer under the technique; the sizes are of its output and its input."""
        channels = how["shape"][0] if "shape" in how else layer.weight.shape[_outputs(layer)]
        return NormalizedLayer(layer, self.technique, self.place(position, channels, size, input_size), **how)

    def nonlinearity(self, channels: int, size: int, usual: nn.Module) -> nn.Module:
        return self.technique.nonlinearity(self.place("hidden", channels, size), usual)

    def normalization(self, channels: int, size: int) -> Normalization:
        return Normalization(self.technique, self.place("hidden", channels, size))

    def addition(self, channels: int) -> nn.Module:
        return self.technique.addition(channels)


class Residual(Labelled):
    """A residual branch and a shortcut, added; the shortcut is the identity where none is given."""

    def __init__(self, residual: Stack, shortcut: nn.Module, addition: nn.Module) -> None:
        super().__init__()
        self.residual = residual
        self.shortcut = shortcut
        self.addition = addition

    def forward(self, input: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.addition(self.residual(input, labels), self.shortcut(input))


class Score(Labelled):
    """The score of features h [n, k]: w h + b, and of a conditional network + <e_y, h> (Miyato & Koyama 2018, eq. 4).

    e_y is a learned vector for each label y.
    """

    def __init__(self, linear: NormalizedLayer, embedding: NormalizedLayer | None) -> None:
        super().__init__()
        self.linear = linear
        self.embedding = embedding

    def forward(self, input: Tensor, labels: Tensor | None = None) -> Tensor:
        score = self.linear(input).flatten()
        if self.embedding is None:
            return score
        return score + (self.embedding(labels) * input).sum(dim=1)


class SumPool(nn.Module):
    """The sum over the map, [n, c, h, w] to [n, c]."""

    def forward(self, input: Tensor) -> Tensor:
        return input.sum(dim=(2, 3))


class Upsample(nn.Module):
    """Every pixel twice in both directions."""

    def forward(self, input: Tensor) -> Tensor:
        return _Repeat.apply(input)


class Downsample(nn.Module):
    """The mean of every two by two pixels."""

    def forward(self, input: Tensor) -> Tensor:
        return _Average.apply(input)


# Each is the other's gradient, but for a factor 4: torch's own gradients are several times as slow on a GPU.
class _Repeat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return F.interpolate(input, scale_factor=2, mode="nearest")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 4 * F.avg_pool2d(gradient, 2)


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return F.avg_pool2d(input, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return F.interpolate(gradient, scale_factor=2, mode="nearest") / 4


def score(layers: Layers, features: int, bias: bool = True) -> Score:
    """Return the last layer of a discriminator, with its projection where the network is given labels."""
    linear = layers.layer(nn.Linear(features, 1, bias=bias), "last")
    classes = layers.classes
    return Score(linear, None if classes is None else layers.layer(nn.Embedding(classes, features), "last"))


def labels_of(image: ImageSpec, conditional: bool) -> int | None:
    """Return how many labels a network is to be given; raise Misfit if it is to have them and the images have none."""
    if conditional and image.classes is None:
        raise Misfit("conditional=true needs labels, and the data set has none", "choose another data set")
    return image.classes if conditional else None


def _outputs(layer: WeightLayer) -> int:
    """Return the dimension of the weight that counts the features of the output."""
    return 1 if isinstance(layer, nn.ConvTranspose2d | nn.Embedding) else 0
