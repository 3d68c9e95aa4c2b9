"""Score one set of images against another: no training involved."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from normlab.data.image_sets import ImageSet
from normlab.evaluation.evaluator import Evaluation
from normlab.evaluation.features import FeatureExtractor, label
from normlab.evaluation.statistics import Pass, RealStatistics, chosen, pass_over, scores


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How sets of images are held against each other, each image in its own size.

    channels: of the images that the features see.  kept: of how many images of each side features are kept, for the
    scores that need more than moments.
    """

    features: FeatureExtractor
    channels: int
    kept: int
    splits: int
    batch_size: int
    device: torch.device

    def evaluate(self, real: ImageSet, fake: ImageSet) -> tuple[str, Evaluation]:
        """Return the protocol, and the scores of a set against one that counts as real; raise NonFiniteFeatures."""
        passed, digest = self._pass_over(real, "real images")
        statistics = RealStatistics.of(passed)
        passed, _ = self._pass_over(fake, "fake images")
        values = {
            name: [value] for name, value in scores(statistics, passed, self.features.published, self.splits).items()
        }
        extractor = label(self.features)
        protocol = f"{extractor}/real-{real.count}-{digest}/samples-{fake.count}/kept-{self.kept}/splits-{self.splits}"
        return protocol, Evaluation.of(self.features, statistics, fake.count, values, passed.logits)

    def _pass_over(self, images: ImageSet, what: str) -> tuple[Pass, str]:
        """Return what a pass over a set leaves, and the first digits of a digest of its pixels."""
        content = hashlib.sha256()

        def batches() -> Iterator[Tensor]:
            with tqdm(total=images.count, desc=what, unit=" images", leave=False, disable=None) as bar:
                for batch in images.batches(self.batch_size, self.channels):
                    content.update(np.ascontiguousarray(batch).data)
                    yield torch.from_numpy(np.array(batch)).to(self.device)
                    bar.update(len(batch))

        passed = pass_over(batches(), self.features, chosen(images.count, self.kept))
        return passed, content.hexdigest()[:8]
