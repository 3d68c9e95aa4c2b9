"""Score a generator: samples in, features once, all metrics from them; training is left exactly as it was."""

import logging
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from normlab.data.images import Dataset
from normlab.errors import DataError, is_out_of_memory
from normlab.evaluation.artifacts import cached_artifact, write_artifact
from normlab.evaluation.features import FeatureExtractor, scoring
from normlab.evaluation.scores import Moments, class_shares, classifier_score, frechet_distance
from normlab.outputs.grids import to_uint8
from normlab.randomness import stream

log = logging.getLogger(__name__)

STATISTICS_BATCHES, STATISTICS_BATCH = 50, 64

AnyModule = TypeVar("AnyModule", bound=nn.Module)
Result = TypeVar("Result")


class Interrupted(Exception):
    """The evaluation was asked to stop; nothing has changed."""


@dataclass(frozen=True)
class Evaluation:
    """What is known of a generator.

    metrics: numbers by name; none if the images are not finite.  class_shares: shares of samples by the class that the
    classifier gives them.  flags: `few_samples` (fewer than feature dimensions, so that distances are far too large),
    `few_real_images` (the same of the real ones), `non_finite` (the generator's images hold infinities or NaN),
    `out_of_memory` (even one image at a time was too much).
    """

    metrics: dict[str, float]
    class_shares: tuple[float, ...] | None
    flags: tuple[str, ...]


def never() -> bool:
    return False


class Evaluator:
    """Scores generators against one split of a data set, every time from the same latents.

    Where memory runs out it goes on with half the batch size, which changes no score.
    """

    def __init__(
        self,
        features: FeatureExtractor,
        dataset: Dataset,
        *,
        samples: int,
        split: Literal["train", "held_out"],
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        if len(dataset.train if split == "train" else dataset.held_out) < 2:
            problem = f"is {split}, which has fewer images than the two that a covariance needs"
            raise DataError("evaluation.split", problem, "give more images, the other split, or evaluation=none")
        self.features = features
        self.dataset = dataset
        self.samples = samples
        self.split: Literal["train", "held_out"] = split
        self.batch_size = batch_size
        self.seed = seed
        self.device = device
        self._real: Moments | None = None

    @property
    def protocol(self) -> str:
        """Everything that makes two values comparable, but for the seed of the latents."""
        real = self.dataset.train if self.split == "train" else self.dataset.held_out
        return "/".join(
            [
                f"{self.features.name}-{self.features.digest}",
                f"{self.dataset.name}-{self.dataset.fingerprint[:8]}",
                f"{self.split}-{len(real)}",
                f"samples-{self.samples}",
                "restandardised",
            ]
        )

    def real_moments(self, stop: Callable[[], bool] = never) -> Moments:
        """Return the moments of the real images' features, computed once ever and kept in the cache folder.

        Raises Interrupted if `stop`, asked before each batch, says so; ResourceError if they cannot be kept.
        """
        if self._real is None:
            key = f"{self.dataset.name}-{self.dataset.fingerprint[:16]}-{self.split}-{self.features.digest}"

            def compute(folder: Path) -> Path:
                log.info("computing the statistics of the real images, once; they are kept in %s", folder)
                real = self._in_batches_that_fit(lambda: self._moments_of_split(stop))
                tensors = {"count": torch.tensor(real.count), "total": real.total, "products": real.products}
                return write_artifact(folder, key, tensors, {"extractor": self.features.info})

            stored = cached_artifact("statistics", key, compute).tensors
            self._real = Moments(int(stored["count"]), stored["total"], stored["products"])
        return self._real

    def evaluate(self, generator: nn.Module, stop: Callable[[], bool] = never) -> Evaluation:
        """Score a copy of the generator, its batch statistics re-estimated, in evaluation mode.

        generator: has `latent_size`; takes latents [n, latent_size] to images [n, c, h, w] in [-1, 1].
        Raises Interrupted if `stop`, asked before each batch, says so.
        """
        real = self.real_moments(stop)
        try:
            return self._in_batches_that_fit(lambda: self._evaluate(generator, real, stop))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            log.error("an evaluation ran out of memory even with one image at a time; training goes on without it")
            return Evaluation({}, None, ("out_of_memory",))

    def _evaluate(self, generator: nn.Module, real: Moments, stop: Callable[[], bool]) -> Evaluation:
        fake: Moments | None = None
        logits: list[Tensor] = []
        for images in self._sample(generator, stop):
            if not images.isfinite().all():
                return Evaluation({}, None, ("non_finite",))
            features, batch_logits = self.features.extract(to_uint8(images))
            batch = Moments.of(features)
            fake = batch if fake is None else fake + batch
            logits.append(batch_logits.cpu())
        assert fake is not None
        enough = self.features.dimensions
        flags = [("few_samples", fake.count < enough), ("few_real_images", real.count < enough)]
        shares = class_shares(logits) if self.features.name == "classifier" else None
        return Evaluation(
            self._metrics(real, fake, logits) | _extremes(shares),
            shares,
            tuple(flag for flag, raised in flags if raised),
        )

    def _in_batches_that_fit(self, compute: Callable[[], Result]) -> Result:
        """Return what `compute` returns, in batches of half the size, and half of that, where memory runs out."""
        while True:
            try:
                return compute()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self.batch_size == 1:
                    raise
            # Out here the error is gone, and with it what it kept of the batch that was too large.
            self.batch_size //= 2
            log.warning("out of memory in an evaluation; trying batches of %s", self.batch_size)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _metrics(self, real: Moments, fake: Moments, logits: list[Tensor]) -> dict[str, float]:
        # A distance on other features than Inception's is not an FID and must not bear its name.
        distance, score = frechet_distance(real, fake), classifier_score(logits)
        if self.features.name == "inception":
            return {"fid": distance, "inception_score": score}
        return {"frechet_distance": distance, "classifier_score": score}

    def _sample(self, generator: nn.Module, stop: Callable[[], bool]) -> Iterator[Tensor]:
        """Yield images [n, c, h, w] of a copy of the generator; the batch size does not change what they are made of.

        A conditional generator is given every label equally often.
        """
        copy = restandardised(generator, self.seed, self.device)
        latent_size = _latent_size(generator)
        latents = torch.randn(self.samples, latent_size, generator=stream(self.seed, "evaluation"))
        classes = getattr(generator, "classes", None)
        labels = None if classes is None else torch.arange(self.samples) % classes
        starts = range(0, self.samples, self.batch_size)
        for start in tqdm(starts, desc="evaluating", unit=" batches", leave=False, disable=None):
            if stop():
                raise Interrupted
            batch = slice(start, start + self.batch_size)
            given = {} if labels is None else {"labels": labels[batch].to(self.device)}
            with scoring(self.device):
                images = copy(latents[batch].to(self.device), **given)
            yield images

    def _moments_of_split(self, stop: Callable[[], bool]) -> Moments:
        pixels = (self.dataset.train if self.split == "train" else self.dataset.held_out).pixels
        moments: Moments | None = None
        starts = range(0, len(pixels), self.batch_size)
        for start in tqdm(starts, desc="real images", unit=" batches", leave=False, disable=None):
            if stop():
                raise Interrupted
            images = torch.from_numpy(np.array(pixels[start : start + self.batch_size])).to(self.device)
            batch = Moments.of(self.features.extract(images)[0])
            moments = batch if moments is None else moments + batch
        assert moments is not None, "the split holds no images"
        return moments


def restandardised(generator: AnyModule, seed: int, device: torch.device) -> AnyModule:
    """Return a copy of a generator in evaluation mode whose batch statistics are exact averages for its weights.

    The running averages of training lag behind the weights, and an averaged generator has none of its own. They are
    estimated anew from the same 50 batches of 64 latents every time; a generator without any is only copied.
    """
    copy = deepcopy(generator).to(device).requires_grad_(False)
    latent_size = _latent_size(generator)
    batches = (
        torch.randn(STATISTICS_BATCH, latent_size, generator=stream(seed, "restandardise", batch))
        for batch in range(STATISTICS_BATCHES)
    )
    with scoring(device), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # for layers that draw while in training mode, such as dropout
        update_bn(batches, copy, device)
    return copy.eval()


def _latent_size(generator: nn.Module) -> int:
    latent_size = generator.latent_size
    assert isinstance(latent_size, int)
    return latent_size


def _extremes(shares: tuple[float, ...] | None) -> dict[str, float]:
    return {} if shares is None else {"class_share_min": min(shares), "class_share_max": max(shares)}
