"""Techniques that wrap the whole network."""

import torch
from torch import Tensor

from normlab.normalizations.base import TECHNIQUES, Forward, Technique


def gradient_normalized(score: Forward) -> Forward:
    """f -> f / (|grad f| + |f|), with the gradient with respect to the image, for each image (Wu et al. 2021, eq. 6).

    Where a score and its gradient are both 0, the formula has 0 / 0, and the value here is 0.
    """

    def normalized(images: Tensor) -> Tensor:
        with torch.enable_grad():
            inputs = images if images.requires_grad else images.detach().requires_grad_()
            f = score(inputs).float()
            (slope,) = torch.autograd.grad(f.sum(), inputs, create_graph=True)
        size = slope.float().flatten(1).norm(dim=1) + f.abs()
        return f / torch.where(size > 0, size, 1)

    return normalized


@TECHNIQUES.register("gradient")
def gradient() -> Technique:
    """Gradient normalization: the score over its size and that of its gradient, in [-1, 1] (Wu et al. 2021)."""
    return Technique(name="gradient", output=gradient_normalized, bounds_discriminator=True)
