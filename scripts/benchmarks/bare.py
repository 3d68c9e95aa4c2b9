"""The loop that one would write by hand."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from normlab.config import RunConfig
from normlab.losses import Loss
from normlab.training.step import Step


@dataclass(frozen=True, kw_only=True)
class BareLoop:
    """The loop that one writes by hand: two networks, two optimizers, and nothing that looks on.

    batches: of real images, without end.  latents: draws those of a batch.  autocast: what losses are computed in.
    """

    generator: nn.Module
    discriminator: nn.Module
    generator_optimizer: Optimizer
    discriminator_optimizer: Optimizer
    loss: Loss
    batches: Iterator[Tensor]
    latents: Callable[[], Tensor]
    discriminator_steps: int = 1
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext

    def train(self, steps: int) -> None:
        for _ in range(steps):
            for _ in range(self.discriminator_steps):
                self.update_discriminator(next(self.batches), self.latents())
            self.update_generator(self.latents())

    def update_discriminator(self, real: Tensor, latents: Tensor) -> Tensor:
        """Return the loss that was descended."""
        with self.autocast():
            with torch.no_grad():
                fake = self.generator(latents)
            loss = self.loss.discriminator(self.discriminator(real), self.discriminator(fake))
        self.discriminator_optimizer.zero_grad()
        loss.backward()
        self.discriminator_optimizer.step()
        return loss.detach()

    def update_generator(self, latents: Tensor) -> Tensor:
        """Return the loss that was descended."""
        self.discriminator.requires_grad_(False)
        with self.autocast():
            loss = self.loss.generator(self.discriminator(self.generator(latents)))
        self.generator_optimizer.zero_grad()
        loss.backward()
        self.generator_optimizer.step()
        self.discriminator.requires_grad_(True)
        return loss.detach()


def shuffled(pixels: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yield full batches of images in [-1, 1], each epoch in another order; pixels: uint8, in memory."""
    while True:
        for indices in torch.randperm(len(pixels), device=pixels.device).split(batch_size):
            if len(indices) == batch_size:
                yield pixels[indices].float().div_(127.5).sub_(1)


def plain_loop(settings: RunConfig, step: Step) -> BareLoop:
    """Return a loop of plain layers with the images and the weights of a step of normlab, copied."""
    width, size = int(settings.architecture.params["width"]), settings.train.batch_size
    generator = plain_generator(width)
    discriminator = plain_discriminator(width, settings.normalization.discriminator.name)
    copy_weights(step.state.generator, generator)
    copy_weights(step.state.discriminator, discriminator)
    return BareLoop(
        generator=generator,
        discriminator=discriminator,
        generator_optimizer=fused_adam(generator),
        discriminator_optimizer=fused_adam(discriminator),
        loss=cross_entropy(size),
        batches=shuffled(torch.tensor(step.real.images.pixels[:]), size),
        latents=lambda: torch.randn(size, 100),
    )


def fused_adam(network: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True)


def cross_entropy(batch_size: int) -> Loss:
    """Return the non-saturating loss as torch has it, of logits and labels."""
    ones, zeros = torch.ones(batch_size), torch.zeros(batch_size)
    loss = F.binary_cross_entropy_with_logits
    return Loss(lambda real, fake: loss(real, ones) + loss(fake, zeros), lambda fake: loss(fake, ones))


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
