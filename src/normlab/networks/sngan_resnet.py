"""The residual networks of the spectral normalization papers, for images of 32 to 128 px."""

from typing import NamedTuple

from torch import nn

from normlab.networks.blocks import (
    IN_A_SHORTCUT,
    NORMALIZED_AT_ENTRANCES,
    Downsample,
    Layers,
    Residual,
    SumPool,
    Upsample,
    labels_of,
    score,
)
from normlab.networks.network import ARCHITECTURES, Architecture, Generator, ImageSpec, Network, Size, Stack
from normlab.normalizations.base import Technique
from normlab.settings import Misfit


class Form(NamedTuple):
    """Channels in multiples of the width, from the latent to the image and from the image to the score.

    generator: of the first map and then of each block, all of which double the map.
    discriminator: of each block.  halving: how many of them, the first ones, halve the map.
    """

    width: int
    generator: tuple[int, ...]
    discriminator: tuple[int, ...]
    halving: int


FORMS = {
    32: Form(128, (2, 2, 2, 2), (1, 1, 1, 1), halving=2),
    48: Form(64, (8, 4, 2, 1), (1, 2, 4, 8, 16), halving=4),
    64: Form(64, (16, 8, 4, 2, 1), (1, 2, 4, 8, 16), halving=5),
    128: Form(64, (16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), halving=5),
}


@ARCHITECTURES.register("sngan_resnet")
def sngan_resnet(
    image: ImageSpec, *, width: Size | None = None, latent_size: Size = 128, conditional: bool = False
) -> Architecture:
    """The ResNet of Miyato et al. 2018 (appendix B.4, tables 4 to 6) for 32, 48, 64 or 128 px.

    width: null is the paper's, 128 at 32 px and 64 above.
    conditional: score labels by projection (Miyato & Koyama 2018); the generator then takes them by the technique
        conditional_batch.

    A block is normalization, ReLU, 3x3 convolution, twice, beside a 1x1 convolution where the map or the channels
    change; the generator doubles the map before its first convolution, the discriminator halves it by averages behind
    its second. The first block of the discriminator begins with its convolution, and its score is that of the sum over
    the map, without a bias. The form for 64 px, which the paper does not have, is that of the authors' code: of 48 px
    with a block more in the generator, and all blocks of the discriminator halve the map.
    Raises Misfit for other sizes.
    """
    size = image.height
    if size not in FORMS:
        raise Misfit(f"sngan_resnet has no form for images of {size} px", f"choose {', '.join(map(str, FORMS))}")
    form = FORMS[size]
    width = form.width if width is None else width
    classes = labels_of(image, conditional)

    def generator(technique: Technique) -> Generator:
        layers = Layers("generator", technique, classes)
        widths = [width * channels for channels in form.generator]
        blocks = len(widths) - 1
        base = size >> blocks
        linear = nn.Linear(latent_size, widths[0] * base * base)
        body = Stack(layers.layer(linear, "first", base, shape=(widths[0], base, base), bare=NORMALIZED_AT_ENTRANCES))
        for level in range(blocks):
            body.append(_up(layers, widths[level], widths[level + 1], base << level))
        body.append(layers.normalization(widths[-1], size))
        body.append(layers.nonlinearity(widths[-1], size, nn.ReLU()))
        body.append(layers.layer(nn.Conv2d(widths[-1], image.channels, 3, padding=1), "last", size, size))
        body.append(nn.Tanh())
        return Generator(body, technique, latent_size, classes)

    def discriminator(technique: Technique) -> Network:
        layers = Layers("discriminator", technique, classes)
        widths = [width * channels for channels in form.discriminator]
        body, map_size = Stack(_first_down(layers, image.channels, widths[0], size)), size // 2
        for level in range(1, len(widths)):
            halves = level < form.halving
            body.append(_down(layers, widths[level - 1], widths[level], map_size, halves))
            map_size //= 2 if halves else 1
        body.append(layers.nonlinearity(widths[-1], map_size, nn.ReLU()))
        body.append(SumPool())
        body.append(score(layers, widths[-1], bias=False))
        return Network(body, technique, classes)

    return Architecture(generator, discriminator)


def _up(layers: Layers, inputs: int, outputs: int, size: int) -> Residual:
    """Return the generator's block from a map of `size` to one of twice the size."""
    larger = 2 * size
    residual = Stack(
        layers.normalization(inputs, size),
        layers.nonlinearity(inputs, size, nn.ReLU()),
        Upsample(),
        layers.layer(nn.Conv2d(inputs, outputs, 3, padding=1), "hidden", larger, larger),
        layers.nonlinearity(outputs, larger, nn.ReLU()),
        layers.layer(nn.Conv2d(outputs, outputs, 3, padding=1), "hidden", larger, larger, bare=NORMALIZED_AT_ENTRANCES),
    )
    shortcut = layers.layer(nn.Conv2d(inputs, outputs, 1), "hidden", larger, larger, bare=IN_A_SHORTCUT)
    return Residual(residual, Stack(Upsample(), shortcut), layers.addition(outputs))


def _first_down(layers: Layers, inputs: int, outputs: int, size: int) -> Residual:
    """Return the discriminator's block that sees the image, whose shortcut halves the map before it convolves."""
    residual = Stack(
        layers.layer(nn.Conv2d(inputs, outputs, 3, padding=1), "first", size, size),
        layers.nonlinearity(outputs, size, nn.ReLU()),
        layers.layer(nn.Conv2d(outputs, outputs, 3, padding=1), "hidden", size, size, bare=NORMALIZED_AT_ENTRANCES),
        Downsample(),
    )
    shortcut = layers.layer(nn.Conv2d(inputs, outputs, 1), "first", size // 2, size // 2, bare=IN_A_SHORTCUT)
    return Residual(residual, Stack(Downsample(), shortcut), layers.addition(outputs))


def _down(layers: Layers, inputs: int, outputs: int, size: int, halves: bool) -> Residual:
    """Return another block of the discriminator, on a map of `size`."""
    residual = Stack(
        layers.normalization(inputs, size),
        layers.nonlinearity(inputs, size, nn.ReLU()),
        layers.layer(nn.Conv2d(inputs, inputs, 3, padding=1), "hidden", size, size),
        layers.nonlinearity(inputs, size, nn.ReLU()),
        layers.layer(nn.Conv2d(inputs, outputs, 3, padding=1), "hidden", size, size, bare=NORMALIZED_AT_ENTRANCES),
    )
    shortcut = Stack()
    if halves or inputs != outputs:
        shortcut.append(layers.layer(nn.Conv2d(inputs, outputs, 1), "hidden", size, size, bare=IN_A_SHORTCUT))
    if halves:
        residual.append(Downsample())
        shortcut.append(Downsample())
    return Residual(residual, shortcut, layers.addition(outputs))
