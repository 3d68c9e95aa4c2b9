"""Score one set of images against another: no training involved."""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from normlab.data.image_sets import ImageSet
from normlab.evaluation.classes import parts_of
from normlab.evaluation.classifier import by
from normlab.evaluation.evaluator import Evaluation
from normlab.evaluation.features import FeatureExtractor, label
from normlab.evaluation.statistics import Pass, RealStatistics, chosen, pass_over, scores


def evaluate_set(
    real: ImageSet,
    fake: ImageSet,
    features: FeatureExtractor,
    *,
    channels: int,
    kept: int,
    splits: int,
    batch_size: int,
    device: torch.device,
) -> tuple[str, Evaluation]:
    """Return the protocol, and the scores of a set against one that counts as real, each image in its own size.

    channels: of the images that the features see.  kept, splits: as an `Evaluator` has them. Raises NonFiniteFeatures.
    """

    def pass_over_set(images: ImageSet, what: str) -> tuple[Pass, str, str]:
        """Return what a pass over a set leaves, the first digits of a digest of its pixels, and the images' shape."""
        content = hashlib.sha256()
        shapes: set[tuple[int, ...]] = set()

        def batches() -> Iterator[Tensor]:
            with tqdm(total=images.count, desc=what, unit=" images", leave=False, disable=None) as bar:
                for batch in images.batches(batch_size, channels):
                    shapes.add(batch.shape[1:])
                    content.update(np.ascontiguousarray(batch).data)
                    yield torch.from_numpy(np.array(batch)).to(device)
                    bar.update(len(batch))

        passed = pass_over(batches(), features, chosen(images.count, kept))
        return passed, content.hexdigest()[:8], by(shapes.pop()) if len(shapes) == 1 else "mixed"

    of_real, digest, real_shape = pass_over_set(real, "real images")
    statistics = RealStatistics.of(of_real)
    of_fake, _, fake_shape = pass_over_set(fake, "fake images")
    found = scores(statistics, of_fake, features.published, splits)
    values = {name: [value] for name, value in found.items()}
    sets = f"real-{real.count}-{digest}-{real_shape}/samples-{fake.count}-{fake_shape}"
    protocol = f"{label(features)}/{sets}/kept-{kept}/splits-{parts_of(fake.count, splits)}"
    return protocol, Evaluation.of(features, statistics, fake.count, values, of_fake.logits)
