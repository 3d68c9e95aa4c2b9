"""The convolutional networks of the spectral normalization papers, for images of 32 to 64 px."""

from torch import nn

from normlab.networks.blocks import Layers, labels_of, score
from normlab.networks.network import ARCHITECTURES, Architecture, Generator, ImageSpec, Network, Size, Stack
from normlab.normalizations.base import Technique
from normlab.settings import Misfit

Channels = tuple[Size, ...]
HALVINGS = 3  # from the image to the map that the score sees


@ARCHITECTURES.register("sngan_cnn")
def sngan_cnn(
    image: ImageSpec,
    *,
    width: Size = 64,
    latent_size: Size = 128,
    generator_channels: Channels = (8, 4, 2, 1),
    discriminator_channels: Channels = (1, 1, 2, 2, 4, 4, 8),
    conditional: bool = False,
) -> Architecture:
    """The CNN of Miyato et al. 2018 (appendix B.4, table 3), which Lin et al. 2021 share, for 32, 48 or 64 px.

    generator_channels, discriminator_channels: of each layer, in multiples of `width`; four and seven of them.
        (1, 2, 2, 4, 4, 8, 8) is the wider discriminator of other codes.
    conditional: score labels by projection (Miyato & Koyama 2018); the generator then takes them by the technique
        conditional_batch.

    The generator turns a linear layer's map of an eighth of the size into the image by three transposed 4x4
    convolutions of stride 2 and one of 3x3, with ReLU, and ends in tanh. The discriminator alternates 3x3 and 4x4
    convolutions of stride 1 and 2, with LeakyReLU(0.1), and ends in a linear layer.
    Raises Misfit for other sizes and for lists of other lengths.
    """
    size, base = image.height, image.height >> HALVINGS
    if size not in (32, 48, 64):
        raise Misfit(f"sngan_cnn has no form for images of {size} px", "choose 32, 48 or 64")
    if len(generator_channels) != HALVINGS + 1 or len(discriminator_channels) != 2 * HALVINGS + 1:
        given = f"{len(generator_channels)} in the generator and {len(discriminator_channels)} in the discriminator"
        raise Misfit(f"sngan_cnn has 4 and 7 layers of channels, not {given}", "give lists of these lengths")
    classes = labels_of(image, conditional)

    def generator(technique: Technique) -> Generator:
        layers = Layers("generator", technique, classes)
        widths = [width * channels for channels in generator_channels]
        linear = nn.Linear(latent_size, widths[0] * base * base)
        body = Stack(layers.layer(linear, "first", base, shape=(widths[0], base, base)))
        body.append(layers.nonlinearity(widths[0], base, nn.ReLU()))
        for level in range(HALVINGS):
            before, after = base << level, base << level + 1
            convolution = nn.ConvTranspose2d(widths[level], widths[level + 1], 4, stride=2, padding=1)
            body.append(layers.layer(convolution, "hidden", after, before))
            body.append(layers.nonlinearity(widths[level + 1], after, nn.ReLU()))
        body.append(layers.layer(nn.ConvTranspose2d(widths[-1], image.channels, 3, padding=1), "last", size, size))
        body.append(nn.Tanh())
        return Generator(body, technique, latent_size, classes)

    def discriminator(technique: Technique) -> Network:
        layers = Layers("discriminator", technique, classes)
        widths = [image.channels, *(width * channels for channels in discriminator_channels)]
        body, map_size = Stack(), size
        for level in range(len(discriminator_channels)):
            halves = level % 2 == 1
            kernel, stride = (4, 2) if halves else (3, 1)
            convolution = nn.Conv2d(widths[level], widths[level + 1], kernel, stride=stride, padding=1)
            before, map_size = map_size, map_size // stride
            body.append(layers.layer(convolution, "hidden" if level else "first", map_size, before))
            body.append(layers.nonlinearity(widths[level + 1], map_size, nn.LeakyReLU(0.1)))
        body.append(nn.Flatten())
        body.append(score(layers, widths[-1] * base * base))
        return Network(body, technique, classes)

    return Architecture(generator, discriminator)
