"""The loop that one would write by hand."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlab.config import RunConfig
from normlab.training.step import Step


class BareLoop:
    """The loop that one writes by hand: plain layers, two optimizers, images in memory, and nothing that looks on.

    It has the images and the weights of a step of normlab, copied, and optimizers of its own.
    """

    def __init__(self, settings: RunConfig, step: Step) -> None:
        width = int(settings.architecture.params["width"])
        self.batch_size = settings.train.batch_size
        self.pixels = torch.tensor(step.real.images.pixels[:])
        self.generator = plain_generator(width)
        self.discriminator = plain_discriminator(width, settings.normalization.discriminator.name)
        copy_weights(step.state.generator, self.generator)
        copy_weights(step.state.discriminator, self.discriminator)
        betas = (0.5, 0.999)
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), lr=2e-4, betas=betas, fused=True)
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=2e-4, betas=betas, fused=True
        )
        self.ones, self.zeros = torch.ones(self.batch_size), torch.zeros(self.batch_size)
        self.batches = self.shuffled()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step(next(self.batches), self.latents(), self.latents())

    def step(self, real: Tensor, latents: Tensor, more_latents: Tensor) -> tuple[Tensor, Tensor]:
        """Update the discriminator, then the generator, and return their losses."""
        with torch.no_grad():
            fake = self.generator(latents)
        real_scores, fake_scores = self.discriminator(real), self.discriminator(fake)
        discriminator_loss = F.binary_cross_entropy_with_logits(
            real_scores, self.ones
        ) + F.binary_cross_entropy_with_logits(fake_scores, self.zeros)
        self.discriminator_optimizer.zero_grad()
        discriminator_loss.backward()
        self.discriminator_optimizer.step()

        self.discriminator.requires_grad_(False)
        scores = self.discriminator(self.generator(more_latents))
        generator_loss = F.binary_cross_entropy_with_logits(scores, self.ones)
        self.generator_optimizer.zero_grad()
        generator_loss.backward()
        self.generator_optimizer.step()
        self.discriminator.requires_grad_(True)
        return discriminator_loss.detach(), generator_loss.detach()

    def shuffled(self) -> Iterator[Tensor]:
        while True:
            for indices in torch.randperm(len(self.pixels)).split(self.batch_size):
                if len(indices) == self.batch_size:
                    yield self.pixels[indices].float().div_(127.5).sub_(1)

    def latents(self) -> Tensor:
        return torch.randn(self.batch_size, 100)


def plain_generator(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (100, 1, 1)),
        nn.ConvTranspose2d(100, 4 * width, 4),
        nn.BatchNorm2d(4 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        nn.Tanh(),
    )


# Techniques that torch has in the same arithmetic; its spectral and weight norm recompute the weight in every pass.
PLAIN_TECHNIQUES: dict[str, Callable[[int], list[nn.Module]]] = {
    "none": lambda channels: [],
    "batch": lambda channels: [nn.BatchNorm2d(channels)],
    "instance": lambda channels: [nn.InstanceNorm2d(channels, affine=True)],
    "layer": lambda channels: [nn.GroupNorm(1, channels)],
    "group": lambda channels: [nn.GroupNorm(channels // 16, channels)],
}


def plain_discriminator(width: int, technique: str) -> nn.Sequential:
    norm = PLAIN_TECHNIQUES[technique]
    return nn.Sequential(
        nn.Conv2d(1, width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        *norm(2 * width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
        *norm(4 * width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(4 * width, 1, 4),
        nn.Flatten(0),
    )


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy the parameters in the order of the layers, which the two share under different names."""
    for theirs, own in zip(source.parameters(), target.parameters(), strict=True):
        own.copy_(theirs)
