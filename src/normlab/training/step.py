"""One step: the discriminator updates, the generator update, and what moves with them."""

import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from normlab.constraints import Constraint
from normlab.data.batches import RealBatches
from normlab.losses import Loss
from normlab.networks.network import Network, Weights
from normlab.normalizations.base import as_matrix, output_dimension
from normlab.penalties import Batch, Draw, Penalty, Update
from normlab.randomness import stream
from normlab.ranks import ALONE, Ranks
from normlab.settings import Length
from normlab.training.capture import Capture, Inputs, Scalars
from normlab.training.compiled import Compiler
from normlab.training.optimizers import Schedule
from normlab.training.state import TrainState

P = ParamSpec("P")
R = TypeVar("R")


class Descent(NamedTuple):
    """What an update leaves: the norm of the whole gradient, the terms and the scores, of the whole batch."""

    norm: Tensor
    terms: Scalars
    scores: Sequence[Tensor]


@dataclass(kw_only=True)
class Step:
    """One generator update and the discriminator updates before it, without a word between host and device.

    All shapes are constant, and what the device is given from outside, random numbers above all, is a function of the
    seed, its purpose and the position: so a step can be captured once and replayed at every position after. The first
    non-finite loss or gradient sets `non_finite` on the device, which masks that update and all later ones; the trainer
    reads it when it next looks.

    Several ranks share a step: each draws what the whole batch takes and keeps the rows that are its own, and all make
    the same update, by the gradient of the whole batch.

    capture: what replays steps; None where each is computed anew.  compiler: what compiles the networks' passes and
    their weights; None where they are left as they are.  ranks: those that share steps; what is done between two steps
    is of whole batches, and any rank can do it alone.  synchronised: whether batch statistics are of the whole batch,
    rather than of the rows of each rank.
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
    capture: Capture | None = None
    compiler: Compiler | None = None
    ranks: Ranks = ALONE
    synchronised: bool = True
    sharing: Ranks = field(init=False, default=ALONE)
    non_finite: Tensor = field(init=False)

    def __post_init__(self) -> None:
        state = self.state
        self.inputs = Inputs(self.device)
        self.non_finite = torch.zeros((), device=self.device)
        optimizers = (state.generator_optimizer, state.discriminator_optimizer)
        self.rates = [(each, [float(group["lr"]) for group in each.param_groups]) for each in optimizers]
        if self.capture is not None and self.device.type == "cuda":
            for group in (group for each in optimizers for group in each.param_groups if "capturable" in group):
                group["capturable"] = True

    def take(self) -> Scalars:
        """Train one step further and return its scalars, on the device, which the next step may overwrite."""
        state = self.state
        self.set_rates()
        with self.together():
            scalars = self.train() if self.compiler is None else self.compiler.take(self.train, state)
        state.step += 1
        state.images_seen += self.discriminator_steps * self.batch_size
        return scalars

    @property
    def captured_as(self) -> str:
        """What has come of the wish to compile or capture steps: `none` where it was not possible."""
        if self.compiler is not None and not self.compiler.impossible:
            return "compile"
        return "graph" if self.capture is not None and not self.capture.impossible else "none"

    def train(self) -> Scalars:
        """Do all of a step but for its count: by replay, where steps are captured."""
        if self.capture is None:
            return self.compute()
        # Steps at which other penalties are due are other steps.
        due = tuple(tuple(self.penalties_due(update)) for update in range(self.discriminator_steps))
        return self.capture.take(self, due)

    @contextmanager
    def together(self) -> Generator[None]:
        """Share with the other ranks what is done during the block."""
        if self.ranks.count == 1:
            yield
            return
        norms = [norm for network in self.networks for norm in network.batch_norms()] if self.synchronised else []
        self.sharing = self.ranks
        for norm in norms:
            norm.stacked = self.ranks.stacked
        try:
            yield
        finally:
            self.sharing = ALONE
            for norm in norms:
                norm.stacked = None

    @property
    def networks(self) -> tuple[Network, Network]:
        return self.state.generator, self.state.discriminator

    def set_rates(self) -> None:
        for optimizer, rates in self.rates:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                rate *= self.schedule(self.state.step)
                if self.capture is None:
                    group["lr"] = rate
                elif isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = torch.tensor(rate, dtype=torch.float32, device=self.device)

    def compute(self) -> Scalars:
        """Do all of a step that the device does, at the position where the state stands."""
        state = self.state
        scalars: Scalars = {}
        of_generator: Weights | None = None  # which stands still while the discriminator moves
        for update in range(self.discriminator_steps):
            with torch.no_grad():
                of_generator = self.weights_of_pass(state.generator, of_generator)
            scalars = self.update_discriminator(update, of_generator)
        scalars |= self.update_generator()
        if (averaged := state.averaged) is not None:
            share = self.inputs("averaged", lambda: torch.tensor(averaged.share(state.step)))
            averaged.update(state.generator, share)
        return scalars

    def update_discriminator(self, update: int, of_generator: Weights) -> Scalars:
        generator, discriminator = self.state.generator, self.state.discriminator
        real = self.real_batch(update)
        with torch.no_grad(), self.autocast(), generator.frozen_statistics():
            fake = self.generate(f"discriminator {update}", of_generator)
        weights = self.weights_of_pass(discriminator)
        # Two passes, never one over both: batch statistics of real and fake images together would tell them apart.
        with self.autocast():
            real_scores = self.compiled(discriminator.forward)(real.images, weights, real.labels)
            weights = self.weights_of_pass(discriminator, weights)
            fake_scores = self.compiled(discriminator.forward)(fake.images, weights, fake.labels)
        loss = self.loss.discriminator(real_scores, fake_scores)
        penalty = self.penalty(update, real, fake, weights)
        terms = {"loss/discriminator": loss} | ({} if penalty is None else {"loss/penalty": penalty})
        optimizer = self.state.discriminator_optimizer
        descent = self.descend(
            terms, [real_scores.detach(), fake_scores.detach()], discriminator, weights, optimizer, self.constraint
        )
        scores = describe_scores(*descent.scores)
        return descent.terms | scores | {"gradient_norm/discriminator": descent.norm}

    def update_generator(self) -> Scalars:
        generator, discriminator = self.state.generator, self.state.discriminator
        with torch.no_grad():
            # All of them, and none to be differentiated: a compiled pass has the gradients of whatever could be.
            of_discriminator = discriminator.parameters_of_body() | self.weights_of_pass(discriminator)
        weights = self.weights_of_pass(generator)
        with self.autocast(), discriminator.frozen_statistics():
            fake = self.generate("generator", weights)
            scores = self.compiled(discriminator.forward)(fake.images, of_discriminator, fake.labels)
        terms = {"loss/generator": self.loss.generator(scores)}
        descent = self.descend(terms, [], generator, weights, self.state.generator_optimizer)
        return descent.terms | {"gradient_norm/generator": descent.norm}

    def descend(
        self,
        terms: Mapping[str, Tensor],
        scores: Sequence[Tensor],
        network: Network,
        weights: Weights,
        optimizer: Optimizer,
        constraint: Constraint | None = None,
    ) -> "Descent":
        """Update one network by the sum of some terms, unless something has become non-finite.

        weights: the effective ones of the pass, whose gradients move what adapts to them.
        """
        loss = reduce(torch.add, terms.values())
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        adapting = {name: weights[name] for name, _, part in network.reparametrized() if part.uses_gradient}
        # With respect to these parameters alone: the other network's gradients are never computed.
        every = torch.autograd.grad(loss, [*parameters, *adapting.values()])
        own = self.local_statistics(network)
        losses = (loss, *terms.values())
        means, scores = self.sharing.combined([*every, *(each.detach() for each in losses), *own], scores)
        means = iter(means)
        gradients, of_weights = [*islice(means, len(parameters))], [*islice(means, len(adapting))]
        loss, *averages = islice(means, 1 + len(terms))
        for statistic, average in zip(own, means, strict=True):
            statistic.copy_(average)
        norm = torch.nn.utils.get_total_norm(gradients)
        self.non_finite.copy_(torch.maximum(self.non_finite, (~torch.isfinite(loss + norm)).float()))
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
        self.compiled(network.advance)()
        return Descent(norm, dict(zip(terms, averages, strict=True)), scores)

    def local_statistics(self, network: Network) -> list[Tensor]:
        """Return the running statistics that this rank has moved by its own rows alone."""
        if self.synchronised or self.sharing.count == 1:
            return []
        return [
            buffer
            for norm in network.batch_norms()
            for buffer in (norm.running_mean, norm.running_var)
            if buffer is not None
        ]

    def penalties_due(self, update: int) -> list[int]:
        """Return the numbers of the penalties that are due at a discriminator update of the step."""
        count = self.state.step * self.discriminator_steps + update
        # One further, so that a step that is a multiple of `every` tells of it.
        return [number for number, penalty in enumerate(self.penalties) if (count + 1) % penalty.every == 0]

    def penalty(self, update: int, real: Batch, fake: Batch, weights: Weights) -> Tensor | None:
        """Return the sum of the penalties that are due at this discriminator update, or None if none is."""
        discriminator = self.state.discriminator
        terms: list[Tensor] = []
        for number in self.penalties_due(update):
            penalty = self.penalties[number]
            seen = Update(
                # In float32: the norm of a gradient in bfloat16 would be off by half a percent.
                score=lambda images, labels: discriminator(images, weights, labels),
                real=real,
                fake=Batch(fake.images.float(), fake.labels),
                weights=[
                    as_matrix(weights.get(name, layer.layer.weight), output_dimension(layer.layer))
                    for name, layer in discriminator.weight_layers()
                ],
                uniform=self.draws_of_penalty(torch.rand, number, update),
                normal=self.draws_of_penalty(torch.randn, number, update),
                std=self.sharing.std,
            )
            with discriminator.frozen_statistics():
                terms.append(penalty.every * penalty.weight * penalty.value(seen))
        return torch.stack(terms).sum() if terms else None

    def draws_of_penalty(self, draw: Callable[..., Tensor], number: int, update: int) -> Draw:
        """Return what draws for a penalty: each time it is called for a shape, another tensor."""
        counts = itertools.count()

        def drawn(shape: tuple[int, ...], per_image: bool = True) -> Tensor:
            key = ("penalty", number, draw.__name__, next(counts))

            def make() -> Tensor:
                position = self.state.step * self.discriminator_steps + update
                rng = stream(self.seed, *key, position)
                if not per_image:
                    return draw(shape, generator=rng)
                images, *rest = shape
                return self.sharing.share(draw((images * self.sharing.count, *rest), generator=rng))

            return self.inputs(f"{key} {update}", make)

        return drawn

    def progress(self, horizon: Length | None) -> Tensor:
        """Return which part of a horizon has passed, of the run's where it is None."""

        def make() -> Tensor:
            return torch.tensor(self.elapsed(horizon, self.state.step), dtype=torch.float64)

        return self.inputs(f"progress {horizon}", make)

    def real_batch(self, update: int) -> Batch:
        """Return the real images of a discriminator update of the step, and their labels if the networks take any."""
        real, size = self.real, self.batch_size

        def position() -> int:
            return self.state.images_seen + update * size

        rows = self.inputs(f"rows {update}", lambda: real.rows(position(), self.sharing.rows(size)))
        flips = self.rows_of(f"flips {update}", lambda: real.flips(position())) if real.flip else None
        images = self.compiled(real.images_of)(rows, flips)
        if self.state.discriminator.classes is None:
            return Batch(images, None)
        return Batch(images, self.rows_of(f"labels {update}", lambda: real.labels(position())))

    def rows_of(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Return an input that has a row for each image of the batch, or this rank's rows of it."""
        return self.inputs(name, lambda: self.sharing.share(make()))

    def generate(self, purpose: str, weights: Weights) -> Batch:
        """Return what the generator makes of the latents and labels of a purpose."""
        labels = self.fake_labels(purpose)
        return Batch(self.compiled(self.state.generator.forward)(self.latents(purpose), weights, labels), labels)

    def weights_of_pass(self, network: Network, previous: Weights | None = None) -> Weights:
        return self.compiled(network.weights_of_pass)(previous) if network.technique.reparametrizes else {}

    def compiled(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return a function of tensors, compiled where the run asks for it."""
        return function if self.compiler is None else self.compiler(function)

    def latents(self, purpose: str) -> Tensor:
        shape = (self.batch_size, self.state.generator.latent_size)

        def make() -> Tensor:
            return torch.randn(shape, generator=stream(self.seed, "latents", purpose, self.state.step))

        return self.rows_of(f"latents {purpose}", make)

    def fake_labels(self, purpose: str) -> Tensor | None:
        """Return labels drawn uniformly, int64 [batch]; None if the networks are given none."""
        classes = self.state.generator.classes
        if classes is None:
            return None

        def make() -> Tensor:
            rng = stream(self.seed, "labels", purpose, self.state.step)
            return torch.randint(classes, (self.batch_size,), generator=rng)

        return self.rows_of(f"labels of {purpose}", make)

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
