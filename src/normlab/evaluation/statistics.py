"""What one pass of features over a set of images leaves, and every score that follows from two of them."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from normlab.data.batches import queued
from normlab.errors import is_out_of_memory
from normlab.evaluation.classes import classifier_score
from normlab.evaluation.features import FeatureExtractor
from normlab.evaluation.frechet import Moments, frechet_distance
from normlab.evaluation.kernel import kernel_distance, mean_kernel
from normlab.evaluation.manifold import Balls, Overlap, balls, overlap
from normlab.randomness import stream

log = logging.getLogger(__name__)

# Part of the key of stored statistics: raise it whenever what they hold changes.
RECIPE = 2


# Of distance, score of classes and kernel distance: on the features of Inception-2015, and on others.
PUBLISHED_NAMES = ("fid", "inception_score", "kid")
OTHER_NAMES = ("frechet_distance", "classifier_score", "kernel_distance")


class NonFiniteFeatures(Exception):
    """A feature network made infinities or NaN of images that are finite."""


class Pass(NamedTuple):
    """What is kept of a pass over images: memory grows with `logits` alone, a number per class and image.

    kept: features [m, d] of a random part of the images, float32.  logits: batches [n, classes] on the CPU; none where
    the features have none.
    """

    moments: Moments
    kept: Tensor
    logits: list[Tensor]

    def __add__(self, other: "Pass") -> "Pass":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return what a pass over both sets of images leaves, one after the other."""
        return Pass(self.moments + other.moments, torch.cat([self.kept, other.kept]), self.logits + other.logits)

    def to(self, device: torch.device) -> "Pass":
        return Pass(self.moments.to(device), self.kept.to(device), self.logits)


def chosen(count: int, most: int) -> Tensor:
    """Return which of `count` images are kept features of: at most so many, always the same, bool [count]."""
    order = torch.randperm(count, generator=stream(0, "reference"))
    return torch.zeros(count, dtype=torch.bool).index_fill(0, order[:most], True)


def pass_over(batches: Iterable[Tensor], extractor: FeatureExtractor, kept: Tensor) -> Pass:
    """Extract the features of batches of images [n, c, h, w] once; `kept` says of which to keep them.

    Raises NonFiniteFeatures. Waits for the device once, at the end, so that it has its next batch before it needs it.
    """
    moments: Moments | None = None
    finite: list[Tensor] = []
    some: list[Tensor] = []
    logits: list[Tensor] = []
    position = 0
    for images in batches:
        features, of_batch = extractor.extract(images)
        finite.append(features.isfinite().all())
        batch = Moments.of(features)
        moments = batch if moments is None else moments + batch
        rows = kept[position : position + len(features)].nonzero()[:, 0]
        some.append(features.index_select(0, queued(rows, features.device)))
        if of_batch is not None:
            logits.append(of_batch)
        position += len(features)
    assert moments is not None, "there are no images"
    if not torch.stack(finite).all():
        raise NonFiniteFeatures
    return Pass(moments, torch.cat(some), [of_batch.cpu() for of_batch in logits])


@dataclass(frozen=True)
class RealStatistics:
    """All that scores need of the real images, so that they are looked at once.

    factor: of the covariance, as `Moments.factor` has it.  kept: features of some of them, with their balls and the
    mean of the kernel over their pairs.
    """

    moments: Moments
    factor: Tensor
    kept: Tensor
    balls: Balls
    within: float

    @classmethod
    def of(cls, real: Pass) -> "RealStatistics":
        return cls(real.moments, real.moments.factor(), real.kept, balls(real.kept), mean_kernel(real.kept))

    def tensors(self) -> dict[str, Tensor]:
        """Return what a file of them holds."""
        moments = self.moments
        few = {} if moments.few is None else {"few": moments.few}
        held = {"total": moments.total, "products": moments.products, "factor": self.factor, "kept": self.kept, **few}
        numbers = {"count": torch.tensor(moments.count), "within": torch.tensor(self.within, dtype=torch.float64)}
        return {name: tensor.cpu().contiguous() for name, tensor in {**held, **self.balls._asdict(), **numbers}.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: torch.device) -> "RealStatistics":
        held = {name: tensor.to(device) for name, tensor in tensors.items()}
        moments = Moments(int(held["count"]), held["total"], held["products"], held.get("few"))
        reached = Balls(held["for_precision"], held["for_coverage"])
        return cls(moments, held["factor"], held["kept"], reached, float(held["within"]))


def scores(real: RealStatistics, fake: Pass, published: bool, splits: int) -> dict[str, float]:
    """Return every score by name, NaN for one that memory is too small for.

    published: whether they may bear the names that belong to Inception-2015's features alone.  splits: parts of the
    samples that the classifier score is a mean over.

    relative_spread: the root of the mean squared distance between two fakes over that between two reals, in features: 1
    for sets alike, 0 where all fakes are one.
    """
    distance, score, kernel = PUBLISHED_NAMES if published else OTHER_NAMES
    found = if_memory_allows([distance], lambda: [frechet_distance(real.moments, fake.moments, real.factor)])
    if fake.logits:
        found |= if_memory_allows([score, f"{score}_spread"], lambda: classifier_score(fake.logits, splits))
    found |= if_memory_allows([kernel], lambda: [kernel_distance(real.kept, fake.kept, real.within)])
    found |= if_memory_allows(Overlap._fields, lambda: overlap(real.kept, fake.kept, real.balls))
    if (variance := real.moments.variance) > 0:
        found |= if_memory_allows(["relative_spread"], lambda: [(fake.moments.variance / variance) ** 0.5])
    return found


def floor(real: RealStatistics, samples: int, published: bool) -> dict[str, float]:
    """Return the distance of so many of the real images themselves, or of all whose features are kept, if fewer.

    No generator is to be expected below. images: how many they were.
    """
    some = real.kept[chosen(len(real.kept), samples).to(real.kept.device)]
    distance, *_ = PUBLISHED_NAMES if published else OTHER_NAMES
    found = if_memory_allows([distance], lambda: [frechet_distance(real.moments, Moments.of(some), real.factor)])
    return {"images": len(some), **found}


def if_memory_allows(names: Sequence[str], compute: Callable[[], Iterable[float]]) -> dict[str, float]:
    """Return what `compute` returns under these names; NaN for each, and a line in the log, where memory runs out."""
    try:
        return dict(zip(names, compute(), strict=True))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    log.error("out of memory: there is no %s", ", ".join(names))
    return dict.fromkeys(names, math.nan)
