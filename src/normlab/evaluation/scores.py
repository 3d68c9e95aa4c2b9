"""Scores as pure functions of features: they know nothing of images or networks, and leave the global random state."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# torchmetrics takes most of a second to import, so only the functions that need it do.

SPLITS = 10


@dataclass(frozen=True)
class Moments:
    """How many features there are, their sum [d] and the sum of their outer products [d, d], in float64 on the CPU.

    Adding two merges the sets that they describe.
    """

    count: int
    total: Tensor
    products: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Return the moments of features [n, d]."""
        exact = features.detach().cpu().double()
        return cls(len(exact), exact.sum(dim=0), exact.T @ exact)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.products + other.products)

    @property
    def dimensions(self) -> int:
        return len(self.total)


def frechet_distance(real: Moments, fake: Moments) -> float:
    """Return |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017), at least 0; by torchmetrics.

    On Inception-2015 features it is the FID. Both sets need two features or more. With fewer than dimensions it is
    biased, and for nearly equal sets inexact: rounding then leaves more than the distance itself.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    distance = FrechetInceptionDistance(_AsTheyAre(real.dimensions))
    # An empty update makes the result float64; the states below are what updates with the features would leave.
    distance.update(torch.empty(0, real.dimensions, dtype=torch.float64), real=True)
    for side, moments in (("real", real), ("fake", fake)):
        setattr(distance, f"{side}_features_num_samples", torch.tensor(moments.count))
        setattr(distance, f"{side}_features_sum", moments.total.clone())
        setattr(distance, f"{side}_features_cov_sum", moments.products.clone())
    return max(0.0, float(distance.compute()))


def classifier_score(logits: Iterable[Tensor], splits: int = SPLITS) -> float:
    """Return exp of the mean KL divergence of a sample's classes from all samples' (Salimans et al. 2016), at least 1.

    logits: batches [n, classes]. The mean over `splits` parts of the samples in a fixed random order; by torchmetrics,
    in float64. On Inception-2015 logits without bias it is the Inception score.
    """
    from torchmetrics.image.inception import InceptionScore

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `InceptionScore` will save")
        score = InceptionScore(_AsTheyAre(), splits=splits)
    for batch in logits:
        score.update(batch.detach().cpu().double())
    # torchmetrics shuffles with the global random state, which belongs to the run.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"std\(\): degrees of freedom")  # of a single split; not used
            mean, _ = score.compute()
    return max(1.0, float(mean))


def class_shares(logits: Iterable[Tensor]) -> tuple[float, ...]:
    """Return the share of samples whose largest logit is each class's; logits: batches [n, classes]."""
    every = torch.cat([batch.detach().cpu() for batch in logits])
    counts = every.argmax(dim=1).bincount(minlength=every.shape[1])
    return tuple((counts.double() / len(every)).tolist())


class _AsTheyAre(nn.Module):
    """Stands where torchmetrics expects a network: the features have been extracted already."""

    def __init__(self, dimensions: int = 0) -> None:
        super().__init__()
        self.num_features = dimensions

    def forward(self, features: Tensor) -> Tensor:
        return features
