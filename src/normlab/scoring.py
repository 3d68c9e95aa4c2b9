"""From a configuration to what scores: a run's generator, or images without any run."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from normlab.config import RunConfig
from normlab.data.image_sets import open_image_set
from normlab.data.images import Dataset, Images
from normlab.errors import Complaint, DataError
from normlab.evaluation.batching import Interrupted
from normlab.evaluation.classes import prepare
from normlab.evaluation.classifier import all_shipped, by, shipped_classifier
from normlab.evaluation.evaluator import Evaluator
from normlab.evaluation.features import FEATURES, open_features
from normlab.evaluation.reconstruction import Search
from normlab.evaluation.sanity import sanity
from normlab.evaluation.sets import evaluate_set
from normlab.evaluation.statistics import NonFiniteFeatures
from normlab.ranks import ALONE, Ranks
from normlab.registry import unknown


def check_features(config: RunConfig) -> list[Complaint]:
    """Return what is wrong with the choice of features."""
    choices = ["auto", "none", *FEATURES.names()]
    chosen = config.evaluation.features
    return [] if chosen in choices else [unknown("evaluation.features", chosen, choices)]


def of_inception(features: str) -> bool:
    """Return whether sets of images are scored by a layer of Inception for this choice: `auto` is one there."""
    return features == "auto" or features.partition("-")[0] == "inception"


@dataclass(frozen=True)
class Scorer:
    """What scores a generator, for the trainer; `info` says with which features."""

    evaluator: Evaluator
    info: str

    def __call__(
        self, generator: nn.Module, stop: Callable[[], bool], purpose: str = "evaluation"
    ) -> Mapping[str, Any] | None:
        """Return a row of scores, or None if `stop` ended the evaluation; each purpose has latents of its own."""
        features = self.evaluator.features
        if features.published or features.name == "classifier":  # these have logits, which alone need what is prepared
            prepare()
        try:
            result = self.evaluator.evaluate(generator, stop, purpose)
        except Interrupted:
            return None
        shares = {} if result.class_shares is None else {"class_shares": list(result.class_shares)}
        repeats = {"repeats": result.repeats} if result.repeats else {}
        return {"protocol": self.evaluator.protocol, "flags": list(result.flags), **result.metrics, **repeats, **shares}


def build_scorer(config: RunConfig, dataset: Dataset, device: torch.device, ranks: Ranks = ALONE) -> Scorer | None:
    """Return what scores a generator, its feature network ready; None for no scores.

    ranks: those that share the work of the scores of a generator, while the first of them leads.
    """
    evaluation = config.evaluation
    if evaluation.features == "none":
        return None
    features = open_features(evaluation.features, evaluation.weights, dataset, device)
    wanted = evaluation.reconstruction
    search = Search(count=wanted.images, steps=wanted.steps, lr=wanted.lr, form=wanted.form)
    evaluator = Evaluator(
        features,
        dataset,
        samples=evaluation.samples,
        split=evaluation.split,
        batch_size=evaluation.batch_size,
        seed=config.seed,
        device=device,
        repeats=evaluation.repeats,
        kept=evaluation.kept,
        splits=evaluation.splits,
        search=search if search.count else None,
        conditional=bool(config.architecture.params.get("conditional")),
        ranks=ranks,
    )
    evaluator.real_statistics()  # now, since it may take a while or find that the cache cannot be written
    return Scorer(evaluator, features.info)


def known_scores(scorer: Scorer) -> Iterator[dict[str, Any]]:
    """Yield rows of scores of images of which it is known how good they are."""
    for what, count, result in sanity(scorer.evaluator):
        yield {"images": what, "count": count, **result.metrics, "flags": list(result.flags)}


def _require_shipped(name: str, image_shape: tuple[int, int, int]) -> None:
    """Raise DataError unless a classifier is shipped for such images: without labels none can be fitted."""
    if shipped_classifier(name, image_shape) is None:
        shipped = ", ".join(all_shipped())
        problem = f"no classifier of '{name}' for images {by(image_shape)} is shipped; there are {shipped}"
        remedy = "choose one by dataset=NAME, give evaluation.weights=FILE, or use evaluation.features=inception"
        raise DataError("evaluation.features", problem, remedy)


def score_sets(config: RunConfig, real: Path, fake: Path, device: torch.device) -> dict[str, Any]:
    """Return a row of scores of the images at one path against those at another; `auto` is Inception here.

    Raises DataError for what is no set of images of two or more, or for features that are not finite.
    """
    evaluation = config.evaluation
    reals, fakes = open_image_set(real), open_image_set(fake)
    for path, images in ((real, reals), (fake, fakes)):
        if images.count < 2:
            raise DataError(str(path), "holds a single image", "give two or more, which a covariance needs")
    kind = "inception" if evaluation.features == "auto" else evaluation.features
    channels = max(reals.channels, fakes.channels)
    _, height, width = next(iter(reals.read(channels))).shape
    shape = (channels, height, width)
    # Features are opened for a data set: an empty one of such images stands in.
    nothing = Images(np.empty((0, *shape), np.uint8), None)
    stand_in = Dataset(config.dataset.name, nothing, nothing, None, "", False, ())
    if kind == "classifier" and evaluation.weights is None:
        _require_shipped(config.dataset.name, shape)
    features = open_features(kind, evaluation.weights, stand_in, device)
    try:
        protocol, result = evaluate_set(
            reals,
            fakes,
            features,
            channels=channels,
            kept=evaluation.kept,
            splits=evaluation.splits,
            batch_size=evaluation.batch_size,
            device=device,
        )
    except NonFiniteFeatures:
        problem = f"{features.info} makes infinities or NaN of these images"
        raise DataError("evaluation.features", problem, "choose others") from None
    described = {"real": str(real), "fake": str(fake), "features": features.info}
    return {**described, "protocol": protocol, "flags": list(result.flags), **result.metrics}
