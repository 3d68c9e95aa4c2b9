"""Optimizers whose updates can be masked on the device, and learning rates as functions of the step.

Every optimizer here honours the attribute `found_inf` (a float tensor on the device): where it is 1, `step` changes no
parameter. That is the protocol of torch's gradient scaler and of its fused optimizers, and costs no synchronisation.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from normlab.registry import Registry
from normlab.settings import Fraction, Horizon, Length, NonNegativeFloat, PositiveFloat, Range

Parameters = list[dict[str, Any]]  # groups: "params", and the "lr" of those that have one of their own
Schedule = Callable[[int], float]  # from the step to a factor of the learning rate
StepsOf = Callable[[Length | None], int]  # from a length to steps; of None, the length of the run

OPTIMIZERS: Registry[Callable[..., Optimizer]] = Registry("optimizer")
SCHEDULES: Registry[Callable[..., Schedule]] = Registry("schedule")


class MaskedRMSprop(torch.optim.RMSprop):
    """RMSprop that leaves the parameters alone where `found_inf` is 1; torch has no fused form of it."""

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.found_inf is not None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    # A gradient of 0 moves nothing, since there is no momentum here; NaN times 0 would stay NaN.
                    parameter.grad = torch.where(self.found_inf > 0, 0, parameter.grad)
        super().step()


def moments(optimizer: Optimizer) -> dict[str, bool]:
    """Return the names of what an optimizer keeps of each parameter once it has made a step; it makes none here.

    With each stands whether it has the parameter's shape; a number where it has not.
    """
    group = optimizer.param_groups[0]
    # On the CPU: what is kept is the same everywhere, and on `meta`, where no tensor has values, no step can be made.
    probe = torch.zeros(2, device="cpu", requires_grad=True)
    probe.grad = torch.zeros_like(probe)
    twin = copy.copy(optimizer)
    twin.state = defaultdict(dict)
    twin.param_groups = [{**group, "params": [probe], "lr": 0.0, "capturable": False}]
    twin.found_inf = None  # pyright: ignore[reportAttributeAccessIssue]
    twin.step()
    return {name: value.shape == probe.shape for name, value in sorted(twin.state[probe].items())}


@OPTIMIZERS.register("adam")
def adam(
    parameters: Parameters,
    *,
    lr: PositiveFloat = 2e-4,
    betas: tuple[Fraction, Fraction] = (0.5, 0.999),
    eps: PositiveFloat = 1e-8,
) -> Optimizer:
    """Adam (Kingma & Ba 2015) with the defaults of DCGAN (Radford et al. 2016, section 4)."""
    return torch.optim.Adam(parameters, lr=lr, betas=betas, eps=eps, fused=True)


@OPTIMIZERS.register("adamw")
def adamw(
    parameters: Parameters,
    *,
    lr: PositiveFloat = 2e-4,
    betas: tuple[Fraction, Fraction] = (0.5, 0.999),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.01,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)


@OPTIMIZERS.register("rmsprop")
def rmsprop(
    parameters: Parameters,
    *,
    lr: PositiveFloat = 5e-5,
    alpha: Fraction = 0.99,
    eps: PositiveFloat = 1e-8,
) -> Optimizer:
    """RMSprop (Tieleman & Hinton 2012) at the rate of WGAN (Arjovsky et al. 2017, algorithm 1)."""
    return MaskedRMSprop(parameters, lr=lr, alpha=alpha, eps=eps)


@OPTIMIZERS.register("sgd")
def sgd(parameters: Parameters, *, lr: PositiveFloat = 0.01, momentum: Fraction = 0.0) -> Optimizer:
    """Stochastic gradient descent, with heavy-ball momentum if any."""
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, fused=True)


@SCHEDULES.register("constant")
def constant(steps_of: StepsOf) -> Schedule:
    """The learning rate as it is."""
    return lambda step: 1.0


@SCHEDULES.register("linear")
def linear(steps_of: StepsOf, *, horizon: Horizon = None, start: Fraction = 0.0, floor: Fraction = 0.0) -> Schedule:
    """1 up to `start`, a part of the horizon, then linear decay to `floor` at its end, `floor` after it.

    With `start` 0.5 it is that of CycleGAN (Zhu et al. 2017, section 4).
    """
    steps = steps_of(horizon)
    return lambda step: 1 - (1 - floor) * max(_progress(step, steps) - start, 0.0) / (1 - start)


@SCHEDULES.register("cosine")
def cosine(steps_of: StepsOf, *, horizon: Horizon = None, floor: Fraction = 0.0) -> Schedule:
    """Half a cosine from 1 to `floor` over the horizon (Loshchilov & Hutter 2017, eq. 5, without restarts)."""
    steps = steps_of(horizon)
    return lambda step: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * _progress(step, steps)))


@SCHEDULES.register("step")
def step(
    steps_of: StepsOf,
    *,
    horizon: Horizon = None,
    milestones: tuple[Fraction, ...] = (0.5, 0.75),
    factor: Annotated[float, Range(above=0, most=1)] = 0.1,
) -> Schedule:
    """The rate times `factor` at each milestone, a part of the horizon."""
    steps = steps_of(horizon)
    return lambda step: factor ** sum(_progress(step, steps) >= milestone for milestone in milestones)


def _progress(step: int, steps: int) -> float:
    return min(step / steps, 1.0)
