"""The average of the generator over its updates."""

import copy

import torch
from torch import Tensor

from normlab.networks.network import Generator


class Ema:
    """An exponential moving average of a generator's parameters (Yazici et al. 2019); its buffers are copied.

    Batch statistics and the vectors of power iterations are no quantities to average: an average of unit vectors is
    shorter than one. Until as many updates have been made as the average reaches back over, the decay is smaller, so
    that the weights at the start are soon forgotten. `module` is the averaged copy, in evaluation mode.
    """

    def __init__(self, source: Generator, decay: float) -> None:
        self.decay = decay
        self.module: Generator = copy.deepcopy(source).requires_grad_(False).eval()

    def share(self, step: int) -> float:
        """Return which part of the way to the source an update moves: 1 - decay, or 9 / (10 + step) if that is more.

        step: how many updates have been made before, 0 at the first.
        """
        return max(1 - self.decay, 9 / (10 + step))

    @torch.no_grad()
    def update(self, source: Generator, share: Tensor) -> None:
        """Move the average by a part of the way to the source, a scalar on the device."""
        for average, value in zip(self.module.parameters(), source.parameters(), strict=True):
            average.lerp_(value, share)
        for average, value in zip(self.module.buffers(), source.buffers(), strict=True):
            average.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.module.load_state_dict(state)
