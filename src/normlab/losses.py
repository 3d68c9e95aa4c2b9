"""Adversarial losses as pairs of functions of scores (logits, [n]); each takes the mean over the batch, in float32."""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from normlab.registry import Registry


class Loss(NamedTuple):
    """What the discriminator descends, given its scores of real and of fake images, and the generator, of fakes.

    needs_bound: whether the discriminator can lower it without end unless something bounds its slope.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    needs_bound: bool = False


LOSSES: Registry[Callable[..., Loss]] = Registry("loss")


@LOSSES.register("non_saturating")
def non_saturating() -> Loss:
    """Cross-entropy with the generator's labels flipped (Goodfellow et al. 2014, section 3)."""
    return Loss(
        discriminator=lambda real, fake: F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean(),
        generator=lambda fake: F.softplus(-fake.float()).mean(),
    )


@LOSSES.register("hinge")
def hinge() -> Loss:
    """The hinge loss (Lim & Ye 2017; Miyato et al. 2018, eq. 16 and 17)."""
    return Loss(
        discriminator=lambda real, fake: F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean(),
        generator=lambda fake: -fake.float().mean(),
    )


@LOSSES.register("wasserstein")
def wasserstein() -> Loss:
    """The difference of mean scores (Arjovsky et al. 2017, eq. 2); the discriminator must be bounded by other means."""
    return Loss(
        discriminator=lambda real, fake: fake.float().mean() - real.float().mean(),
        generator=lambda fake: -fake.float().mean(),
        needs_bound=True,
    )


@LOSSES.register("least_squares")
def least_squares() -> Loss:
    """Half the squared distance of scores to the labels 0 for fake and 1 for real (Mao et al. 2017, eq. 9)."""
    return Loss(
        discriminator=lambda real, fake: 0.5 * ((real.float() - 1).square().mean() + fake.float().square().mean()),
        generator=lambda fake: 0.5 * (fake.float() - 1).square().mean(),
    )
