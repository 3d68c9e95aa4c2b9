"""The Fréchet distance between two sets of features, from their moments alone."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """How many features there are, their sum [d] and the sum of their outer products [d, d], in float64.

    Adding two merges the sets that they describe. few: the features themselves [n, d] while they are no more than their
    dimensions, so that memory does not grow with their number; None beyond.
    """

    count: int
    total: Tensor
    products: Tensor
    few: Tensor | None = None

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Return the moments of features [n, d]."""
        exact = features.detach().double()
        return cls(len(exact), exact.sum(dim=0), exact.T @ exact, _if_few(exact))

    def __add__(self, other: "Moments") -> "Moments":
        both = None if self.few is None or other.few is None else _if_few(torch.cat([self.few, other.few]))
        return Moments(self.count + other.count, self.total + other.total, self.products + other.products, both)

    def to(self, device: torch.device) -> "Moments":
        few = None if self.few is None else self.few.to(device)
        return Moments(self.count, self.total.to(device), self.products.to(device), few)

    @property
    def dimensions(self) -> int:
        return len(self.total)

    @cached_property
    def mean(self) -> Tensor:
        """The mean, [d]."""
        return self.total / self.count

    @cached_property
    def covariance(self) -> Tensor:
        """The unbiased covariance, [d, d]."""
        return (self.products - self.count * torch.outer(self.mean, self.mean)) / (self.count - 1)

    @property
    def variance(self) -> float:
        """The trace of the covariance: half the mean squared distance between two of the features."""
        return max(0.0, float(self.covariance.trace()))

    def factor(self) -> Tensor:
        """Return F [r, d] with F' F the covariance, without the dimensions in which nothing varies.

        Of few features these themselves, centred and scaled, which is exact; else by eigen-decomposition.
        """
        if self.few is not None:
            return (self.few - self.mean) / (self.count - 1) ** 0.5
        values, vectors = torch.linalg.eigh(self.covariance)
        # The covariance is a difference, which rounding leaves as far from 0 as the mean is large.
        scale = values[-1].clamp(min=0) + self.mean @ self.mean
        varying = values > scale * self.dimensions * torch.finfo(values.dtype).eps
        return values[varying].sqrt()[:, None] * vectors[:, varying].T


def _if_few(features: Tensor) -> Tensor | None:
    return features if len(features) <= features.shape[1] else None


def frechet_distance(real: Moments, fake: Moments, factor: Tensor | None = None) -> float:
    """Return |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017), at least 0.

    On Inception-2015 features it is the FID. Both sets need two features or more; of fewer than dimensions it is exact,
    but biased. `factor` is that of the real ones, where it is at hand. With C = F' F the last trace is the sum of the
    singular values of F1 F2'; where the fakes vary in every dimension, that of the roots of the eigenvalues of
    F1 C2 F1', which are their squares: of a collapsed set most are 0 but for rounding, whose roots are not.
    """
    F1, F2 = real.factor() if factor is None else factor, fake.factor()
    if len(F2) == fake.dimensions:
        shared = torch.linalg.eigvalsh(F1 @ fake.covariance @ F1.T).clamp(min=0).sqrt().sum()
    else:
        shared = torch.linalg.svdvals(F1 @ F2.T).sum()
    difference = real.mean - fake.mean
    return max(0.0, float(difference @ difference + real.covariance.trace() + fake.covariance.trace() - 2 * shared))
