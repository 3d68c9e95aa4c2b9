"""A process that trains torch-mimicry's SNGAN-32 when it is asked to, by its own trainer or by a loop of one's own."""

import argparse
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10

from benchmarks.bare import BareLoop, shuffled
from benchmarks.workers import answers_alone, windows
from normlab.losses import hinge
from parity import mimicry, mimicry_networks

NEVER = 10**9


class Images(CIFAR10):
    """Images as torchvision reads those of CIFAR-10, but of an array, with what torch-mimicry does to each."""

    def __init__(self, pixels: Any) -> None:
        self.data = pixels.transpose(0, 2, 3, 1)
        self.targets = [0] * len(pixels)
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
        self.target_transform = None


class InWindows:
    """A loader that holds the trainer up between two windows of steps."""

    def __init__(self, loader: DataLoader[Any], batches_per_step: int, answers: TextIO) -> None:
        self.answers = answers
        self.loader = loader
        self.batches_per_step = batches_per_step
        self.batch_size = loader.batch_size

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        asked, left = windows(self.answers), 0
        while True:
            for batch in self.loader:
                if left == 0:
                    left = next(asked, 0) * self.batches_per_step
                if left == 0:
                    return
                left -= 1
                yield batch


def adam(network: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.0, 0.9))


def train(options: argparse.Namespace, networks: tuple[Any, Any], pixels: Any, answers: TextIO) -> None:
    """Train by torch-mimicry's trainer, as its own examples call it, but without a picture or a checkpoint."""
    generator, discriminator = networks
    loader = DataLoader(Images(pixels), batch_size=options.batch, shuffle=True)
    trainer = mimicry().training.Trainer(
        netD=discriminator,
        netG=generator,
        optG=adam(generator),
        optD=adam(discriminator),
        dataloader=InWindows(loader, options.discriminator_steps, answers),
        num_steps=NEVER,
        n_dis=options.discriminator_steps,
        lr_decay="linear",
        device=torch.device("cpu"),
        log_dir=str(options.folder / "log"),
        vis_steps=NEVER,
        save_steps=NEVER,
    )
    with suppress(StopIteration):  # by which the end of what was asked reaches us through the trainer
        trainer.train()


def train_by_hand(options: argparse.Namespace, networks: tuple[Any, Any], pixels: Any, answers: TextIO) -> None:
    """Train the same networks by the loop that one would write by hand, on images in memory."""
    generator, discriminator = networks
    loop = BareLoop(
        generator=generator,
        discriminator=discriminator,
        generator_optimizer=adam(generator),
        discriminator_optimizer=adam(discriminator),
        loss=hinge(),
        batches=shuffled(torch.tensor(pixels), options.batch),
        latents=lambda: torch.randn(options.batch, generator.nz),
        discriminator_steps=options.discriminator_steps,
    )
    for steps in windows(answers):
        loop.train(steps)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("loop", choices=("trainer", "by_hand"))
    parser.add_argument("folder", type=Path, help="with pixels.npy, uint8 [n, 3, 32, 32]")
    for name in ("width", "batch", "discriminator-steps", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    answers = answers_alone(options.folder / f"{options.loop}.txt")
    loop = train if options.loop == "trainer" else train_by_hand
    loop(options, mimicry_networks(options.width), np.load(options.folder / "pixels.npy"), answers)


if __name__ == "__main__":
    main()
