"""DCGAN (Radford, Metz & Chintala 2016) for images of 32 to 128 px."""

from typing import Annotated

from torch import nn

from normlab.networks.network import ARCHITECTURES, Architecture, Generator, Network, NormalizedLayer
from normlab.normalizations.base import Place, Technique
from normlab.settings import Misfit, Range

Size = Annotated[int, Range(least=1, most=100_000)]


@ARCHITECTURES.register("dcgan")
def dcgan(image_shape: tuple[int, int, int], *, width: Size = 32, latent_size: Size = 100) -> Architecture:
    """DCGAN (Radford et al. 2016) for square images: 4 layers a network below 64 px, 5 below 128, 6 at 128.

    image_shape: [c, h, w] of the images.

    The discriminator halves the map and doubles the channels from `width` on until a map of 4 to 7 px is left, which
    its last layer turns into one score; the generator is its mirror. Kernels are 4x4 at stride 2, nonlinearities ReLU
    in the generator and LeakyReLU(0.2) in the discriminator, and the generator ends in tanh. Every layer has a bias,
    also where a normalization makes it idle, so that all techniques share the same parameters; the score has no
    sigmoid, which is part of the loss.
    Raises Misfit for a size outside 32 to 128 px or one that cannot be halved down to a whole map of 4 to 7 px.
    """
    channels, size, _ = image_shape
    halvings = size.bit_length() - 3
    base = size >> halvings
    if not 32 <= size <= 128 or base << halvings != size:
        raise Misfit(f"dcgan has no form for images of {size} px", "choose 32, 40, 48, 56, 64, 80, 96, 112 or 128")
    widths = [width << level for level in range(halvings)]  # from the image inwards

    def generator(technique: Technique) -> Generator:
        def layer(layer: nn.ConvTranspose2d, position: str, size: int) -> NormalizedLayer:
            place = Place("generator", position, layer.out_channels, size)  # pyright: ignore[reportArgumentType]
            return NormalizedLayer(layer, technique, place)

        inner = widths[::-1]
        body = nn.Sequential(nn.Unflatten(1, (latent_size, 1, 1)))
        body.append(layer(nn.ConvTranspose2d(latent_size, inner[0], base), "first", base))
        body.append(nn.ReLU())
        for level in range(1, halvings):
            convolution = nn.ConvTranspose2d(inner[level - 1], inner[level], 4, stride=2, padding=1)
            body.append(layer(convolution, "hidden", base << level))
            body.append(nn.ReLU())
        body.append(layer(nn.ConvTranspose2d(inner[-1], channels, 4, stride=2, padding=1), "last", size))
        body.append(nn.Tanh())
        return Generator(body, technique, latent_size)

    def discriminator(technique: Technique) -> Network:
        def layer(layer: nn.Conv2d, position: str, size: int) -> NormalizedLayer:
            place = Place("discriminator", position, layer.out_channels, size)  # pyright: ignore[reportArgumentType]
            return NormalizedLayer(layer, technique, place)

        body = nn.Sequential()
        inputs = [channels, *widths]
        for level in range(halvings):
            convolution = nn.Conv2d(inputs[level], inputs[level + 1], 4, stride=2, padding=1)
            body.append(layer(convolution, "hidden" if level else "first", size >> (level + 1)))
            body.append(nn.LeakyReLU(0.2))
        body.append(layer(nn.Conv2d(widths[-1], 1, base), "last", 1))
        body.append(nn.Flatten(0))
        return Network(body, technique)

    return Architecture(generator, discriminator)
