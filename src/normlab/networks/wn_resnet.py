"""The residual networks of Xiang & Li 2017."""

import torch
from torch import Tensor, nn

from normlab.networks.blocks import IN_A_SHORTCUT, Downsample, Layers, Residual, Upsample
from normlab.networks.network import ARCHITECTURES, Architecture, Generator, ImageSpec, Network, Size, Stack
from normlab.normalizations.base import Technique
from normlab.settings import Misfit

LEVELS = (1, 2, 4, 6, 8)  # channels in multiples of the width, from the image inwards
BLOCKS = 10  # which have two layers each, and with the last one make 21


class Affine(nn.Module):
    """A gain and a bias per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, input: Tensor) -> Tensor:
        return self.gain[:, None, None] * input + self.bias[:, None, None]


@ARCHITECTURES.register("wn_resnet")
def wn_resnet(
    image: ImageSpec, *, width: Size = 64, latent_size: Size = 128, blocks: tuple[Size, ...] | None = None
) -> Architecture:
    """The ResNet of Xiang & Li 2017 as the authors' code has it, for images that halve to a map of 4 to 7 px.

    blocks: in each level, from the image inwards, as many as there are halvings; null spreads 10 over them, which with
        the last layer make the 21 of the paper.

    A block is two convolutions with a nonlinearity between them, then the addition and another nonlinearity; the first
    block of a level of the discriminator halves the map by a 4x4 convolution of stride 2 beside an average, and the
    last one of a level of the generator doubles it by a transposed one beside repeated pixels. Where the channels
    change a 1x1 convolution stands in the shortcut. The nonlinearity is PReLU, the technique `weight_translated` makes
    it TPReLU. The generator ends in a gain and a bias per channel and tanh, where the authors have a sigmoid on [0, 1];
    none of its layers is a last one. Activation norms stand behind the layers of blocks, not in shortcuts.
    Raises Misfit for images of other sizes and for lists of other lengths.
    """
    size = image.height
    halvings = max(size.bit_length() - 3, 0)
    base = size >> halvings
    if not 2 <= halvings <= len(LEVELS) or base << halvings != size:
        raise Misfit(f"wn_resnet has no form for images of {size} px", "choose 32, 48, 64, 80, 96, 112, 128 or 160")
    if blocks is None:
        blocks = tuple(BLOCKS // halvings + (level < BLOCKS % halvings) for level in range(halvings))
    if len(blocks) != halvings:
        problem = f"blocks has {len(blocks)} levels, and images of {size} px halve {halvings} times"
        raise Misfit(problem, f"give {halvings} numbers")
    counts = blocks
    widths = [width * channels for channels in LEVELS[:halvings]]

    def generator(technique: Technique) -> Generator:
        layers = Layers("generator", technique)
        linear = nn.Linear(latent_size, widths[-1] * base * base)
        body = Stack(layers.layer(linear, "first", base, shape=(widths[-1], base, base)))
        body.append(layers.nonlinearity(widths[-1], base, nn.PReLU(widths[-1])))
        outputs = [image.channels, *widths]
        for level in reversed(range(halvings)):
            map_size = size >> level + 1
            for block in reversed(range(counts[level])):
                channels = outputs[level] if block == 0 else widths[level]
                makes_image = level == block == 0
                body.append(_up(layers, widths[level], channels, map_size, block == 0, makes_image))
                if not makes_image:
                    body.append(layers.nonlinearity(channels, map_size, nn.PReLU(channels)))
        body.append(Affine(image.channels))
        body.append(nn.Tanh())
        return Generator(body, technique, latent_size)

    def discriminator(technique: Technique) -> Network:
        layers = Layers("discriminator", technique)
        body = Stack()
        inputs = [image.channels, *widths]
        for level in range(halvings):
            for block in range(counts[level]):
                before = inputs[level] if block == 0 else widths[level]
                map_size = size >> level + (block > 0)
                body.append(_down(layers, before, widths[level], map_size, block == 0, level + block == 0))
                body.append(layers.nonlinearity(widths[level], size >> level + 1, nn.PReLU(widths[level])))
        body.append(layers.layer(nn.Conv2d(widths[-1], 1, base), "last", 1, base))
        body.append(nn.Flatten(0))
        return Network(body, technique)

    return Architecture(generator, discriminator)


def _up(layers: Layers, inputs: int, outputs: int, size: int, doubles: bool, makes_image: bool) -> Residual:
    """Return a block of the generator on a map of `size`, which may double it and change the channels."""
    larger = 2 * size if doubles else size
    second = (
        nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
        if doubles
        else nn.ConvTranspose2d(inputs, outputs, 3, padding=1)
    )
    residual = Stack(
        layers.layer(nn.ConvTranspose2d(inputs, inputs, 3, padding=1), "hidden", size, size),
        layers.nonlinearity(inputs, size, nn.PReLU(inputs)),
        layers.layer(second, "hidden", larger, size, bare="makes the image" if makes_image else None),
    )
    shortcut = Stack()
    if inputs != outputs:
        shortcut.append(layers.layer(nn.ConvTranspose2d(inputs, outputs, 1), "hidden", size, size, bare=IN_A_SHORTCUT))
    if doubles:
        shortcut.append(Upsample())
    return Residual(residual, shortcut, layers.addition(outputs))


def _down(layers: Layers, inputs: int, outputs: int, size: int, halves: bool, first: bool) -> Residual:
    """Return a block of the discriminator on a map of `size`, which may halve it and change the channels."""
    smaller = size // 2 if halves else size
    position = "first" if first else "hidden"
    convolution = (
        nn.Conv2d(inputs, outputs, 4, stride=2, padding=1) if halves else nn.Conv2d(inputs, outputs, 3, padding=1)
    )
    residual = Stack(
        layers.layer(convolution, position, smaller, size),
        layers.nonlinearity(outputs, smaller, nn.PReLU(outputs)),
        layers.layer(nn.Conv2d(outputs, outputs, 3, padding=1), "hidden", smaller, smaller),
    )
    shortcut = Stack()
    if halves:
        shortcut.append(Downsample())
    if inputs != outputs:
        shortcut.append(layers.layer(nn.Conv2d(inputs, outputs, 1), position, smaller, smaller, bare=IN_A_SHORTCUT))
    return Residual(residual, shortcut, layers.addition(outputs))
