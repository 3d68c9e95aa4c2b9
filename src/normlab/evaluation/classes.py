"""What the classes that a network sees in images tell of them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ClassifierScore(NamedTuple):
    """The mean and the standard deviation over parts of the samples; the latter is NaN of one part."""

    mean: float
    spread: float


def classifier_score(logits: Sequence[Tensor], splits: int) -> ClassifierScore:
    """Return exp of the mean KL divergence of a sample's classes from all samples' (Salimans et al. 2016), at least 1.

    logits: batches [n, classes]. Over as many parts of the samples, in a fixed random order, as `parts_of` says,
    in float64. On Inception-2015 logits without bias it is the Inception score. It grows with the samples of a part.
    """
    every = torch.cat([batch.detach().cpu().double() for batch in logits])
    count, number = len(every), parts_of(len(every), splits)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    # Cut as torch-fidelity cuts, so that parts differ by a sample at most.
    pieces = every[order].tensor_split([part * count // number for part in range(1, number)])
    scores = torch.stack([_score_of_part(piece) for piece in pieces])
    spread = float(scores.std()) if number > 1 else math.nan
    return ClassifierScore(max(1.0, float(scores.mean())), spread)


def parts_of(samples: int, splits: int) -> int:
    """Return how many parts a classifier score is a mean over: `splits`, as long as there is a sample for each."""
    return min(splits, samples)


def class_shares(logits: Sequence[Tensor]) -> tuple[float, ...]:
    """Return the share of samples whose largest logit is each class's; logits: batches [n, classes]."""
    every = torch.cat([batch.detach().cpu() for batch in logits])
    counts = every.argmax(dim=1).bincount(minlength=every.shape[1])
    return tuple((counts.double() / len(every)).tolist())


def _score_of_part(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(dim=1)  # p(y|x)
    p = log_p.exp()
    divergences = (p * (log_p - p.mean(dim=0).log())).sum(dim=1)
    return divergences.mean().exp()
