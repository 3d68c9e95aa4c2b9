"""Penalties: terms that are added to the discriminator's loss.

Each is a function of an update. Those on the gradient of the score with respect to the image take the score of each
image on its own; those on weights take the weights as matrices [output channels, all else], effective ones where a
technique reparametrizes. All are in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from normlab.registry import Registry
from normlab.settings import NonNegativeFloat, PositiveFloat, PositiveInt, PowerIterations

Score = Callable[[Tensor, Tensor | None], Tensor]


class Draw(Protocol):
    """Draws random numbers of a shape, the same whenever an update is made."""

    def __call__(self, shape: tuple[int, ...], per_image: bool = True) -> Tensor:
        """Return numbers of a shape whose first length is that of the images, or, where not `per_image`, any shape."""
        ...


class Batch(NamedTuple):
    """Images [n, c, h, w] and their labels [n], if the networks are given any."""

    images: Tensor
    labels: Tensor | None


class Update(NamedTuple):
    """What a penalty may look at: the update of the discriminator to whose loss it is added.

    score: the discriminator on images and labels, one score each.  weights: of its layers, as matrices.
    uniform, normal: random numbers of a shape, from U(0, 1) and N(0, 1), the same whenever this update is made.
    std: the standard deviation of values [n, ...] of the images, over the whole batch: where several processes share an
    update, what else is here is of the images of one, and a penalty that is no mean over images nor of weights alone
    would not come out as in a single process.
    """

    score: Score
    real: Batch
    fake: Batch
    weights: list[Tensor]
    uniform: Draw
    normal: Draw
    std: Callable[[Tensor], Tensor] = torch.std


@dataclass(frozen=True)
class Penalty:
    """A term of the discriminator's loss, times `weight`; in every `every`-th update, and then `every` times.

    per_image: whether it is defined by what the score of an image alone is, so that nothing may couple the images of a
    batch.  bounds_discriminator: as with a technique.
    """

    value: Callable[[Update], Tensor]
    weight: float
    every: int
    per_image: bool = False
    bounds_discriminator: bool = False


PENALTIES: Registry[Callable[..., Penalty]] = Registry("penalty")


def slopes(score: Score, images: Tensor, labels: Tensor | None) -> Tensor:
    """Return the norm of each score's gradient with respect to its image, [n], squared and differentiable."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(score(images, labels).float().sum(), images, create_graph=True)
    return gradient.float().square().flatten(1).sum(dim=1)


@PENALTIES.register("wgan_gp")
def wgan_gp(*, weight: NonNegativeFloat = 10.0, target: PositiveFloat = 1.0, every: PositiveInt = 1) -> Penalty:
    """weight E[(|grad D(x)| - target)^2] at x uniformly between real and fake images (Gulrajani et al. 2017, eq. 3).

    1e-12 stands below the root of the norm, whose slope at 0 is infinite. For a conditional discriminator x has the
    label of its real image.
    """

    def value(update: Update) -> Tensor:
        share = update.uniform((len(update.real.images), 1, 1, 1))
        between = share * update.real.images + (1 - share) * update.fake.images
        norm = (slopes(update.score, between, update.real.labels) + 1e-12).sqrt()
        return (norm - target).square().mean()

    return Penalty(value, weight, every, per_image=True, bounds_discriminator=True)


@PENALTIES.register("r1")
def r1(*, weight: NonNegativeFloat = 10.0, every: PositiveInt = 1) -> Penalty:
    """weight / 2 E[|grad D(x)|^2] at real images (Mescheder et al. 2018, eq. 9); `every` 16 makes it lazy."""

    def value(update: Update) -> Tensor:
        return 0.5 * slopes(update.score, *update.real).mean()

    return Penalty(value, weight, every, per_image=True, bounds_discriminator=True)


@PENALTIES.register("r2")
def r2(*, weight: NonNegativeFloat = 10.0, every: PositiveInt = 1) -> Penalty:
    """weight / 2 E[|grad D(x)|^2] at fake images (Mescheder et al. 2018, eq. 10)."""

    def value(update: Update) -> Tensor:
        return 0.5 * slopes(update.score, *update.fake).mean()

    return Penalty(value, weight, every, per_image=True, bounds_discriminator=True)


@PENALTIES.register("dragan")
def dragan(
    *,
    weight: NonNegativeFloat = 10.0,
    target: PositiveFloat = 1.0,
    spread: PositiveFloat = 0.5,
    every: PositiveInt = 1,
) -> Penalty:
    """weight E[(|grad D(x)| - target)^2] around real images (Kodali et al. 2017, section 2.3).

    x is an image plus noise from U(0, spread times the batch's standard deviation), as in the authors' code.
    """

    def value(update: Update) -> Tensor:
        real = update.real.images
        noisy = real + spread * update.std(real) * update.uniform(tuple(real.shape))
        norm = (slopes(update.score, noisy, update.real.labels) + 1e-12).sqrt()
        return (norm - target).square().mean()

    return Penalty(value, weight, every, per_image=True, bounds_discriminator=True)


@PENALTIES.register("orthogonal")
def orthogonal(
    *,
    weight: NonNegativeFloat = 1e-4,
    form: Literal["full", "off_diagonal"] = "off_diagonal",
    every: PositiveInt = 1,
) -> Penalty:
    """weight times the sum over layers of |W W' - I|^2, or of its part off the diagonal (Brock et al. 2017 and 2019).

    W has a row per output channel; of a matrix with more rows than columns the full form takes W' W. The part off the
    diagonal leaves the lengths of the rows free; its gradient has the factor 4 that BigGAN's code writes as 2.
    """

    def value(update: Update) -> Tensor:
        return torch.stack([_orthogonality(W.float(), form) for W in update.weights]).sum()

    return Penalty(value, weight, every)


def _orthogonality(W: Tensor, form: str) -> Tensor:
    if form == "off_diagonal":
        gram = W @ W.T
        return (gram - gram.diagonal().diag()).square().sum()
    gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    return (gram - torch.eye(len(gram), device=W.device)).square().sum()


@PENALTIES.register("spectral_regularization")
def spectral_regularization(
    *, weight: NonNegativeFloat = 0.01, power_iterations: PowerIterations = 10, every: PositiveInt = 1
) -> Penalty:
    """weight / 2 times the sum over layers of sigma(W)^2 (Yoshida & Miyato 2017, eq. 6).

    A penalty has no state: power iteration starts from random vectors at every update, and so makes more iterations
    than the one of the authors, who keep theirs. The gradient sees the vectors as constants.
    """

    def sigma(W: Tensor, normal: Draw) -> Tensor:
        with torch.no_grad():
            v = normal((W.shape[1],), per_image=False)
            for _ in range(power_iterations):
                u = F.normalize(W @ v, dim=0)
                v = F.normalize(W.T @ u, dim=0)
            u = F.normalize(W @ v, dim=0)
        return torch.dot(u, W @ v)

    def value(update: Update) -> Tensor:
        return 0.5 * torch.stack([sigma(W.float(), update.normal).square() for W in update.weights]).sum()

    return Penalty(value, weight, every)
