"""Fully connected networks, for points in the plane and other small things."""

from torch import nn

from normlab.networks.blocks import Layers, score
from normlab.networks.network import ARCHITECTURES, Architecture, Generator, ImageSpec, Network, Size, Stack
from normlab.normalizations.base import Technique


@ARCHITECTURES.register("mlp")
def mlp(image: ImageSpec, *, width: Size = 128, depth: Size = 3, latent_size: Size = 2) -> Architecture:
    """Fully connected networks of `depth` hidden layers of `width` units, with ReLU; LeakyReLU(0.2) where it scores.

    The generator ends in its last linear layer: points need no bound. Images are taken as the row of their pixels.
    """
    shape = (image.channels, image.height, image.width)
    pixels = image.channels * image.height * image.width

    def generator(technique: Technique) -> Generator:
        layers = Layers("generator", technique)
        body = Stack()
        for level in range(depth):
            linear = nn.Linear(latent_size if level == 0 else width, width)
            body.append(layers.layer(linear, "hidden" if level else "first", shape=(width, 1, 1)))
            body.append(layers.nonlinearity(width, 1, nn.ReLU()))
            body.append(nn.Flatten())
        body.append(layers.layer(nn.Linear(width, pixels), "last", image.height, shape=shape))
        return Generator(body, technique, latent_size)

    def discriminator(technique: Technique) -> Network:
        layers = Layers("discriminator", technique)
        body = Stack(nn.Flatten())
        for level in range(depth):
            linear = nn.Linear(pixels if level == 0 else width, width)
            body.append(layers.layer(linear, "hidden" if level else "first", shape=(width, 1, 1)))
            body.append(layers.nonlinearity(width, 1, nn.LeakyReLU(0.2)))
            body.append(nn.Flatten())
        body.append(score(layers, width))
        return Network(body, technique)

    return Architecture(generator, discriminator)
