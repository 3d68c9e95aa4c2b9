"""How well two sets of features lie in each other: balls around each, as far as the k-th nearest of its own set."""

from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 2000  # of the distances that are held at a time
# Neighbours that make a ball, as the authors have it.
FOR_PRECISION = 3
FOR_COVERAGE = 5


class Overlap(NamedTuple):
    """How far two sets of features overlap.

    precision: the share of fakes within a ball of a real one; recall: the share of reals within a ball of a fake one,
    both with 3 neighbours (Kynkäänniemi et al. 2019, eq. 1 and 2), in [0, 1].  density: in how many balls of reals a
    fake lies, over what is expected, 1 for sets alike and above it where fakes crowd; coverage: the share of balls of
    reals with a fake in them, in [0, 1], both with 5 (Naeem et al. 2020, eq. 3 and 4).
    """

    precision: float
    recall: float
    density: float
    coverage: float


class Balls(NamedTuple):
    """Radii [n] around features [n, d], which reach the third and the fifth nearest of the same set."""

    for_precision: Tensor
    for_coverage: Tensor


def balls(features: Tensor) -> Balls:
    """Return the balls of features [n, d]; where there are too few for so many neighbours, all the others count."""
    most = min(FOR_COVERAGE, len(features) - 1)
    # One more than the neighbours, since each is nearest to itself.
    nearest = torch.cat(
        [torch.cdist(rows, features).topk(most + 1, largest=False).values for rows in features.split(ROWS)]
    )
    return Balls(nearest[:, min(FOR_PRECISION, most)], nearest[:, most])


def overlap(real: Tensor, fake: Tensor, of_real: Balls) -> Overlap:
    """Return how far features [n, d] of real and [m, d] of fake images overlap; `of_real` are the balls of the former.

    Distances are Euclidean, held for 2,000 fakes at a time.
    """
    of_fake = balls(fake)
    recalled = covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    precise = within = 0
    for rows, radii in zip(fake.split(ROWS), of_fake.for_precision.split(ROWS), strict=True):
        distances = torch.cdist(rows, real)
        precise += int((distances <= of_real.for_precision).any(dim=1).sum())
        recalled = recalled | (distances <= radii[:, None]).any(dim=0)
        inside = distances <= of_real.for_coverage
        within += int(inside.sum())
        covered = covered | inside.any(dim=0)
    neighbours = min(FOR_COVERAGE, len(real) - 1)
    return Overlap(
        precision=precise / len(fake),
        recall=float(recalled.double().mean()),
        density=within / (neighbours * len(fake)),
        coverage=float(covered.double().mean()),
    )
