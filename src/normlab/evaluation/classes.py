"""What the classes that a network sees in images tell of them."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

# torchmetrics takes most of a second to import, so only the function that needs it does.


class ClassifierScore(NamedTuple):
    """The mean and the standard deviation over parts of the samples; the latter is NaN of one part."""

    mean: float
    spread: float


def classifier_score(logits: Sequence[Tensor], splits: int) -> ClassifierScore:
    """Return exp of the mean KL divergence of a sample's classes from all samples' (Salimans et al. 2016), at least 1.

    logits: batches [n, classes]. Over `splits` parts of the samples in a fixed random order; by torchmetrics, in
    float64. On Inception-2015 logits without bias it is the Inception score. It grows with the samples of a part.
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
            warnings.filterwarnings("ignore", message=r"std\(\): degrees of freedom")  # of a single part
            mean, spread = score.compute()
    return ClassifierScore(max(1.0, float(mean)), float(spread))


def class_shares(logits: Sequence[Tensor]) -> tuple[float, ...]:
    """Return the share of samples whose largest logit is each class's; logits: batches [n, classes]."""
    every = torch.cat([batch.detach().cpu() for batch in logits])
    counts = every.argmax(dim=1).bincount(minlength=every.shape[1])
    return tuple((counts.double() / len(every)).tolist())


class _AsTheyAre(nn.Module):
    """Stands where torchmetrics expects a network: the logits are there already."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits
