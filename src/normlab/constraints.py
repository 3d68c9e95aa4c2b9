"""Constraints: what is done to the discriminator's parameters after each of its updates."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from normlab.registry import Registry
from normlab.settings import PositiveFloat

Constraint = Callable[[Iterable[Tensor]], None]

CONSTRAINTS: Registry[Callable[..., Constraint | None]] = Registry("constraint")


@CONSTRAINTS.register("none")
def none() -> None:
    """No constraint."""


@CONSTRAINTS.register("clip")
def clip(*, bound: PositiveFloat = 0.01) -> Constraint:
    """Every parameter, biases and gains too, clipped to [-bound, bound] (Arjovsky et al. 2017, algorithm 1).

    Of a reparametrized weight it is the parameters that are clipped, not the effective weight.
    """

    @torch.no_grad()
    def constrain(parameters: Iterable[Tensor]) -> None:
        for parameter in parameters:
            parameter.clamp_(-bound, bound)

    return constrain
