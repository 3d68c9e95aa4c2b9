"""One step: the discriminator updates, the generator update, and what moves with them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from normlab.data.batches import RealBatches
from normlab.losses import Loss
from normlab.networks.network import Network
from normlab.randomness import stream
from normlab.training.optimizers import Schedule
from normlab.training.state import TrainState

Scalars = dict[str, Tensor]


@dataclass(kw_only=True)
class Step:
    """One generator update and the discriminator updates before it, without a word between host and device.

    All shapes are constant, and every random number is a function of the seed, its purpose and the position. The first
    non-finite loss or gradient sets `non_finite` on the device, which masks that update and all later ones; the trainer
    reads it when it next looks.
    """

    state: TrainState
    loss: Loss
    real: RealBatches
    schedule: Schedule
    batch_size: int
    discriminator_steps: int
    seed: int
    precision: torch.dtype
    device: torch.device
    non_finite: Tensor = field(init=False)

    def __post_init__(self) -> None:
        state = self.state
        self.non_finite = torch.zeros((), device=self.device)
        optimizers = (state.generator_optimizer, state.discriminator_optimizer)
        self.rates = [(optimizer, float(optimizer.param_groups[0]["lr"])) for optimizer in optimizers]

    def take(self) -> Scalars:
        """Train one step further and return its scalars, on the device."""
        state = self.state
        for optimizer, rate in self.rates:
            optimizer.param_groups[0]["lr"] = rate * self.schedule(state.step)
        scalars: Scalars = {}
        for update in range(self.discriminator_steps):
            scalars = self.update_discriminator(update)
        scalars |= self.update_generator()
        if state.averaged is not None:
            state.averaged.update(state.generator, state.step)
        state.step += 1
        return scalars

    def update_discriminator(self, update: int) -> Scalars:
        generator, discriminator = self.state.generator, self.state.discriminator
        real = self.real.batch(self.state.images_seen)
        with torch.no_grad(), self.autocast(), generator.frozen_statistics():
            fake = generator(self.latents(f"discriminator {update}"))
        weights = discriminator.effective_weights()
        # Two passes, never one over both: batch statistics of real and fake images together would tell them apart.
        with self.autocast():
            real_scores, fake_scores = discriminator(real, weights), discriminator(fake, weights)
        loss = self.loss.discriminator(real_scores, fake_scores)
        norm = self.descend(loss, discriminator, self.state.discriminator_optimizer)
        self.state.images_seen += self.batch_size
        return {
            "loss/discriminator": loss.detach(),
            "score/real": real_scores.detach().float().mean(),
            "score/fake": fake_scores.detach().float().mean(),
            "gradient_norm/discriminator": norm,
        }

    def update_generator(self) -> Scalars:
        generator, discriminator = self.state.generator, self.state.discriminator
        with torch.no_grad():
            weights = discriminator.effective_weights()
        with self.autocast(), discriminator.frozen_statistics():
            scores = discriminator(generator(self.latents("generator")), weights)
        loss = self.loss.generator(scores)
        norm = self.descend(loss, generator, self.state.generator_optimizer)
        return {"loss/generator": loss.detach(), "gradient_norm/generator": norm}

    def descend(self, loss: Tensor, network: Network, optimizer: Optimizer) -> Tensor:
        """Update one network, unless something has become non-finite, and return the norm of its whole gradient."""
        parameters = list(network.parameters())
        # With respect to these parameters alone: the other network's gradients are never computed.
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.nn.utils.get_total_norm(gradients)
        self.non_finite.copy_(torch.maximum(self.non_finite, (~torch.isfinite(loss.detach() + norm)).float()))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.found_inf = self.non_finite  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        network.advance()
        return norm

    def latents(self, purpose: str) -> Tensor:
        rng = stream(self.seed, "latents", purpose, self.state.step)
        latents = torch.randn(self.batch_size, self.state.generator.latent_size, generator=rng)
        return latents.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else latents

    def autocast(self) -> torch.autocast:
        enabled = self.precision != torch.float32
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)
