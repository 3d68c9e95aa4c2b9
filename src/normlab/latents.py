"""Latents to draw samples from: as in training, truncated, or on the way from one to another."""

import math

import torch
from torch import Tensor

PARALLEL = 1e-6  # sine of the angle below which two latents count as pointing the same way, or the opposite one


def drawn(count: int, size: int, rng: torch.Generator, truncation: float | None = None) -> Tensor:
    """Return standard normal latents [count, size], every coordinate within `truncation` of 0 where it is given.

    A truncated normal is what redrawing each coordinate until it fits gives (Brock et al. 2019, section 3.1); here by
    the inverse of its distribution, one draw each. The smaller it is, the more alike and the better samples are.
    """
    if truncation is None:
        return torch.randn(count, size, generator=rng)
    within = math.erf(truncation / math.sqrt(2))  # the probability of a coordinate that is not redrawn
    uniform = torch.rand(count, size, generator=rng, dtype=torch.float64)
    return (math.sqrt(2) * torch.erfinv(within * (2 * uniform - 1))).clamp(-truncation, truncation).float()


def between(first: Tensor, last: Tensor, steps: int) -> Tensor:
    """Return latents [n, steps, size] from `first` to `last` [n, size], both included, along great circles.

    Halfway along a straight line a normal latent of many dimensions would be too short for the generator to have met
    (White 2016, section 2.1). Latents that point the same way, or opposite ones, are joined by the straight line.
    """
    t = torch.linspace(0, 1, steps, dtype=torch.float64)[None, :, None]
    a, b = first.double()[:, None], last.double()[:, None]
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1)[..., None].clamp(-1, 1)
    angle = torch.arccos(cosine)
    sine = torch.sin(angle)
    arc = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / sine.clamp(min=PARALLEL)
    return torch.where(sine < PARALLEL, (1 - t) * a + t * b, arc).float()
