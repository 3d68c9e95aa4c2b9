"""One step: the discriminator updates, the generator update, and what moves with them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from normlab.constraints import Constraint
from normlab.data.batches import RealBatches
from normlab.losses import Loss
from normlab.networks.network import Network, Weights
from normlab.normalizations.base import as_matrix, output_dimension
from normlab.penalties import Batch, Penalty, Update
from normlab.randomness import stream
from normlab.settings import Length
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
    penalties: list[Penalty]
    constraint: Constraint | None
    real: RealBatches
    schedule: Schedule
    elapsed: Callable[[Length | None, int], float]
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
        self.rates = [(each, [float(group["lr"]) for group in each.param_groups]) for each in optimizers]

    def take(self) -> Scalars:
        """Train one step further and return its scalars, on the device."""
        state = self.state
        for optimizer, rates in self.rates:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self.schedule(state.step)
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
        real = self.real_batch(self.state.images_seen)
        with torch.no_grad(), self.autocast(), generator.frozen_statistics():
            fake = self.generate(f"discriminator {update}", generator.weights_of_pass())
        weights = discriminator.weights_of_pass()
        # Two passes, never one over both: batch statistics of real and fake images together would tell them apart.
        with self.autocast():
            real_scores = discriminator(real.images, weights, real.labels)
            weights = discriminator.weights_of_pass(weights)
            fake_scores = discriminator(fake.images, weights, fake.labels)
        loss = self.loss.discriminator(real_scores, fake_scores)
        penalty = self.penalty(update, real, fake, weights)
        scalars = {"loss/discriminator": loss.detach(), **describe_scores(real_scores.detach(), fake_scores.detach())}
        if penalty is not None:
            loss = loss + penalty
            scalars["loss/penalty"] = penalty.detach()
        norm = self.descend(loss, discriminator, weights, self.state.discriminator_optimizer, self.constraint)
        self.state.images_seen += self.batch_size
        return scalars | {"gradient_norm/discriminator": norm}

    def update_generator(self) -> Scalars:
        generator, discriminator = self.state.generator, self.state.discriminator
        with torch.no_grad():
            of_discriminator = discriminator.weights_of_pass()
        weights = generator.weights_of_pass()
        with self.autocast(), discriminator.frozen_statistics():
            fake = self.generate("generator", weights)
            scores = discriminator(fake.images, of_discriminator, fake.labels)
        loss = self.loss.generator(scores)
        norm = self.descend(loss, generator, weights, self.state.generator_optimizer)
        return {"loss/generator": loss.detach(), "gradient_norm/generator": norm}

    def descend(
        self,
        loss: Tensor,
        network: Network,
        weights: Weights,
        optimizer: Optimizer,
        constraint: Constraint | None = None,
    ) -> Tensor:
        """Update one network, unless something has become non-finite, and return the norm of its whole gradient.

        weights: the effective ones of the pass, whose gradients move what adapts to them.
        """
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        adapting = {name: weights[name] for name, _, part in network.reparametrized() if part.uses_gradient}
        # With respect to these parameters alone: the other network's gradients are never computed.
        every = torch.autograd.grad(loss, [*parameters, *adapting.values()])
        gradients, of_weights = every[: len(parameters)], every[len(parameters) :]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.non_finite.copy_(torch.maximum(self.non_finite, (~torch.isfinite(loss.detach() + norm)).float()))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            # Fused optimizers want both laid out alike, which autograd does not promise.
            alike = gradient.stride() == parameter.stride()
            parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)
        masked = (torch.where(self.non_finite > 0, 0, gradient) for gradient in of_weights)
        network.adapt(dict(zip(adapting, masked, strict=True)), self.progress)
        optimizer.found_inf = self.non_finite  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        if constraint is not None:
            constraint(parameters)
        network.advance()
        return norm

    def penalty(self, update: int, real: Batch, fake: Batch, weights: Weights) -> Tensor | None:
        """Return the sum of the penalties that are due at this discriminator update, or None if none is."""
        discriminator = self.state.discriminator
        count = self.state.step * self.discriminator_steps + update
        terms: list[Tensor] = []
        for number, penalty in enumerate(self.penalties):
            if (count + 1) % penalty.every:  # so that a step that is a multiple of it tells of it
                continue
            rng = stream(self.seed, "penalty", number, count)
            seen = Update(
                # In float32: the norm of a gradient in bfloat16 would be off by half a percent.
                score=lambda images, labels: discriminator(images, weights, labels),
                real=real,
                fake=Batch(fake.images.float(), fake.labels),
                weights=[
                    as_matrix(weights.get(name, layer.layer.weight), output_dimension(layer.layer))
                    for name, layer in discriminator.weight_layers()
                ],
                uniform=lambda shape, rng=rng: self.to_device(torch.rand(shape, generator=rng)),
                normal=lambda shape, rng=rng: self.to_device(torch.randn(shape, generator=rng)),
            )
            with discriminator.frozen_statistics():
                terms.append(penalty.every * penalty.weight * penalty.value(seen))
        return torch.stack(terms).sum() if terms else None

    def progress(self, horizon: Length | None) -> float:
        """Return which part of a horizon has passed, of the run's where it is None."""
        return self.elapsed(horizon, self.state.step)

    def real_batch(self, images_seen: int) -> Batch:
        labels = None if self.state.discriminator.classes is None else self.real.labels(images_seen)
        return Batch(self.real.batch(images_seen), labels)

    def generate(self, purpose: str, weights: Weights) -> Batch:
        """Return what the generator makes of the latents and labels of a purpose."""
        labels = self.fake_labels(purpose)
        return Batch(self.state.generator(self.latents(purpose), weights, labels), labels)

    def latents(self, purpose: str) -> Tensor:
        rng = stream(self.seed, "latents", purpose, self.state.step)
        return self.to_device(torch.randn(self.batch_size, self.state.generator.latent_size, generator=rng))

    def fake_labels(self, purpose: str) -> Tensor | None:
        """Return labels drawn uniformly, int64 [batch]; None if the networks are given none."""
        classes = self.state.generator.classes
        if classes is None:
            return None
        rng = stream(self.seed, "labels", purpose, self.state.step)
        return self.to_device(torch.randint(classes, (self.batch_size,), generator=rng))

    def to_device(self, values: Tensor) -> Tensor:
        return values.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else values

    def autocast(self) -> torch.autocast:
        enabled = self.precision != torch.float32
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


def describe_scores(real: Tensor, fake: Tensor) -> Scalars:
    """Return what is logged of the discriminator's scores [n] of a batch of real images and one of fakes.

    score/accuracy: the share of pairs of a real image and a fake one, by position, in which the real one scores higher,
    a tie counting half: 0.5 is chance, whatever the loss.  score/spread: the standard deviation of both together.
    """
    real, fake = real.float(), fake.float()
    return {
        "score/real": real.mean(),
        "score/fake": fake.mean(),
        "score/accuracy": 0.5 + 0.5 * (real - fake).sign().mean(),
        "score/spread": torch.cat([real, fake]).std(),
    }
