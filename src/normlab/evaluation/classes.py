"""What the classes that a network sees in images tell of them."""

import importlib
import math
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

TORCHMETRICS = "torchmetrics.image.inception"


def prepare() -> None:
    """Begin to import torchmetrics, which takes a second or more, while a first pass over images computes."""
    if TORCHMETRICS not in sys.modules:
        threading.Thread(target=importlib.import_module, args=(TORCHMETRICS,), daemon=True).start()


class ClassifierScore(NamedTuple):
    """The mean and the standard deviation over parts of the samples; the latter is NaN of one part."""

    mean: float
    spread: float


def classifier_score(logits: Sequence[Tensor], splits: int) -> ClassifierScore:
    """Return exp of the mean KL divergence of a sample's classes from all samples' (Salimans et al. 2016), at least 1.

    logits: batches [n, classes]. Over as many parts of the samples, in a fixed random order, as `parts_of` says; by
    torchmetrics, in float64. On Inception-2015 logits without bias it is the Inception score. It grows with the samples
    of a part.
    """
    every = torch.cat([batch.detach().cpu().double() for batch in logits])
    count, number = len(every), parts_of(len(every), splits)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    # Cut as torch-fidelity cuts; torchmetrics itself would make fewer parts where they do not come out even.
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
    from torchmetrics.image.inception import InceptionScore  # only here, since it takes so long

    # torchmetrics shuffles with the global random state, which belongs to the run.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `InceptionScore` will save")
        warnings.filterwarnings("ignore", message=r"std\(\): degrees of freedom")  # of a single part
        torch.default_generator.manual_seed(0)
        # Nor may it wait for other processes of a run, which have no part in this.
        score = InceptionScore(_AsTheyAre(), splits=1, sync_on_compute=False)
        score.update(logits)
        return score.compute()[0]


class _AsTheyAre(nn.Module):
    """Stands where torchmetrics expects a network: the logits are there already."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits
