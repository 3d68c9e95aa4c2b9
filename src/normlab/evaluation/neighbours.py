"""The training images that generated ones resemble most, which shows what was learnt by heart."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from normlab.data.images import Images
from normlab.evaluation.batching import batches, never
from normlab.evaluation.features import FeatureExtractor
from normlab.outputs.grids import arrange

GAP = 8  # black pixels between a sample and its neighbours, besides the padding


@dataclass(frozen=True)
class Neighbours:
    """The k images nearest to each of n samples, the nearest first.

    indices: int64 [n, k], into the split.  distances: float32 [n, k], Euclidean, of features.
    """

    indices: Tensor
    distances: Tensor


def nearest_neighbours(
    samples: Tensor,
    images: Images,
    features: FeatureExtractor,
    *,
    k: int,
    batch_size: int,
    device: torch.device,
    stop: Callable[[], bool] = never,
) -> Neighbours:
    """Return the k images of a split that are nearest to each sample, or all if there are fewer.

    samples: uint8 [n, c, h, w]. Of images equally near, the earlier in the split comes first. What is kept in memory
    does not grow with the split. Raises Interrupted if `stop`, asked before each batch, says so.
    """
    given = torch.cat([features.extract(batch.to(device))[0] for batch in samples.split(batch_size)])
    distances = given.new_empty(len(given), 0)
    indices = distances.long()
    for rows in batches(len(images), batch_size, "neighbours", stop):
        others = features.extract(torch.from_numpy(np.array(images.pixels[rows])).to(device))[0]
        # By products of matrices it would be faster, and far from 0 for an image and itself.
        further = torch.cdist(given, others, compute_mode="donot_use_mm_for_euclid_dist")
        numbers = torch.arange(rows.start, rows.stop, device=device).expand(len(given), -1)
        distances, order = torch.cat([distances, further], dim=1).sort(dim=1, stable=True)
        distances, order = distances[:, :k], order[:, :k]
        indices = torch.cat([indices, numbers], dim=1).gather(1, order)
    return Neighbours(indices.cpu(), distances.cpu())


def neighbours_picture(samples: Tensor, images: Images, neighbours: Neighbours) -> Tensor:
    """Return a row for each sample: the sample, a gap, and its neighbours, uint8 [c, H, W]."""
    k = neighbours.indices.shape[1]
    real = torch.from_numpy(images.pixels[neighbours.indices.flatten().numpy()])
    left, right = arrange(samples.cpu(), columns=1), arrange(real, columns=k)
    return torch.cat([left, left.new_zeros(*left.shape[:2], GAP), right], dim=2)


def authenticity(
    samples: Tensor,
    images: Images,
    features: FeatureExtractor,
    *,
    batch_size: int,
    device: torch.device,
    stop: Callable[[], bool] = never,
) -> float:
    """Return the share of samples that are further from the nearest image than that is from the nearest other one.

    (Alaa et al. 2022; in per cent the AuthPct of Stein et al. 2023.) samples: uint8 [n, c, h, w].  images: two or more.
    It takes two passes over the split. Raises Interrupted if `stop`, asked before each batch, says so.
    """

    def nearest(samples: Tensor, k: int) -> Neighbours:
        return nearest_neighbours(samples, images, features, k=k, batch_size=batch_size, device=device, stop=stop)

    own = nearest(samples, k=1)
    reals, which = own.indices.flatten().unique(return_inverse=True)
    around = nearest(torch.from_numpy(images.pixels[reals.numpy()]), k=2)
    to_others = around.distances.masked_fill(around.indices == reals.unsqueeze(1), torch.inf).amin(dim=1)
    return float((own.distances.flatten() > to_others[which]).double().mean())
