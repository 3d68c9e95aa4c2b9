"""The kernel distance between two sets of features."""

import torch
from torch import Tensor

ROWS = 2000  # of the kernel's matrix that are held at a time


def kernel_distance(real: Tensor, fake: Tensor, within_real: float | None = None) -> float:
    """Return the squared maximum mean discrepancy of features [n, d] and [m, d] under the kernel (x'y / d + 1)^3.

    On Inception-2015 features it is the kernel inception distance (Binkowski et al. 2018, section 4), here by one
    unbiased estimate over all features where the paper averages over subsets, whose spread this has none of. Unbiased,
    so that it may fall below 0 for sets alike, whatever their sizes. `within_real` is `mean_kernel(real)`, where it is
    at hand.
    """
    if within_real is None:
        within_real = mean_kernel(real)
    return within_real + mean_kernel(fake) - 2 * _sum(real, fake) / (len(real) * len(fake))


def mean_kernel(features: Tensor) -> float:
    """Return the mean of the kernel over pairs of different features [n, d], n being two or more."""
    count, dimensions = features.shape
    of_itself = (features.double().square().sum(dim=1) / dimensions + 1).pow(3).sum()
    return (_sum(features, features) - float(of_itself)) / (count * (count - 1))


def _sum(left: Tensor, right: Tensor) -> float:
    """Return the sum of the kernel over all pairs; products in the precision of the features, sums in float64."""
    dimensions = left.shape[1]
    total = torch.zeros((), dtype=torch.float64, device=left.device)
    for rows in left.split(ROWS):
        total += (rows @ right.T / dimensions + 1).pow(3).sum(dtype=torch.float64)
    return float(total)
