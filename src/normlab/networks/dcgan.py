"""DCGAN (Radford, Metz & Chintala 2016) for images of 32 to 128 px."""

from torch import nn

from normlab.networks.blocks import Layers
from normlab.networks.network import ARCHITECTURES, Architecture, Generator, ImageSpec, Network, Size, Stack
from normlab.normalizations.base import Technique
from normlab.settings import Misfit


@ARCHITECTURES.register("dcgan")
def dcgan(image: ImageSpec, *, width: Size = 32, latent_size: Size = 100) -> Architecture:
    """DCGAN (Radford et al. 2016) for square images: 4 layers a network below 64 px, 5 below 128, 6 at 128.

    The discriminator halves the map and doubles the channels from `width` on until a map of 4 to 7 px is left, which
    its last layer turns into one score; the generator is its mirror. Kernels are 4x4 at stride 2, nonlinearities ReLU
    in the generator and LeakyReLU(0.2) in the discriminator, and the generator ends in tanh. Every layer has a bias,
    also where a normalization makes it idle, so that all techniques share the same parameters; the score has no
    sigmoid, which is part of the loss.
    Raises Misfit for a size outside 32 to 128 px or one that cannot be halved down to a whole map of 4 to 7 px.
    """
    size = image.height
    halvings = max(size.bit_length() - 3, 0)
    base = size >> halvings
    if not 32 <= size <= 128 or base << halvings != size:
        raise Misfit(f"dcgan has no form for images of {size} px", "choose 32, 40, 48, 56, 64, 80, 96, 112 or 128")
    widths = [width << level for level in range(halvings)]  # from the image inwards

    def generator(technique: Technique) -> Generator:
        layers = Layers("generator", technique)
        inner = widths[::-1]
        body = Stack(nn.Unflatten(1, (latent_size, 1, 1)))
        body.append(layers.layer(nn.ConvTranspose2d(latent_size, inner[0], base), "first", base))
        body.append(layers.nonlinearity(inner[0], base, nn.ReLU()))
        for level in range(1, halvings):
            before, after = base << level - 1, base << level
            convolution = nn.ConvTranspose2d(inner[level - 1], inner[level], 4, stride=2, padding=1)
            body.append(layers.layer(convolution, "hidden", after, before))
            body.append(layers.nonlinearity(inner[level], after, nn.ReLU()))
        convolution = nn.ConvTranspose2d(inner[-1], image.channels, 4, stride=2, padding=1)
        body.append(layers.layer(convolution, "last", size, size // 2))
        body.append(nn.Tanh())
        return Generator(body, technique, latent_size)

    def discriminator(technique: Technique) -> Network:
        layers = Layers("discriminator", technique)
        body = Stack()
        inputs = [image.channels, *widths]
        for level in range(halvings):
            before, after = size >> level, size >> level + 1
            convolution = nn.Conv2d(inputs[level], inputs[level + 1], 4, stride=2, padding=1)
            body.append(layers.layer(convolution, "hidden" if level else "first", after, before))
            body.append(layers.nonlinearity(inputs[level + 1], after, nn.LeakyReLU(0.2)))
        body.append(layers.layer(nn.Conv2d(widths[-1], 1, base), "last", 1, base))
        body.append(nn.Flatten(0))
        return Network(body, technique)

    return Architecture(generator, discriminator)
