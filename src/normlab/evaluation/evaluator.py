"""Score a generator: samples in, features once, all metrics from them; training is left exactly as it was."""

import logging
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import KW_ONLY, dataclass
from functools import partial, reduce
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from normlab.data.batches import queued
from normlab.data.images import Dataset, Images
from normlab.errors import DataError, is_out_of_memory
from normlab.evaluation.artifacts import cached_artifact, write_artifact
from normlab.evaluation.batching import Interrupted, batches, never
from normlab.evaluation.classes import class_shares, parts_of
from normlab.evaluation.features import Coordinates, FeatureExtractor, label, scoring
from normlab.evaluation.modes import ModeCounter, mode_counter
from normlab.evaluation.neighbours import authenticity, nearest_neighbours, neighbours_picture
from normlab.evaluation.reconstruction import AUTHORS_BATCH, Reconstruction, Search, reconstruct
from normlab.evaluation.statistics import (
    RECIPE,
    NonFiniteFeatures,
    Pass,
    RealStatistics,
    chosen,
    floor,
    if_memory_allows,
    pass_over,
    scores,
)
from normlab.outputs.grids import to_uint8
from normlab.randomness import stream
from normlab.ranks import ALONE, Order, Ranks

log = logging.getLogger(__name__)

STATISTICS_BATCHES, STATISTICS_BATCH = 50, 64
AUTHENTICATED, PICTURED = 500, 8  # samples that are held against the training images, and those that are shown

AnyModule = TypeVar("AnyModule", bound=nn.Module)
Result = TypeVar("Result")
Split = Literal["train", "held_out"]


Key = tuple[str | int, ...]  # of a stream of latents


class NonFiniteImages(Exception):
    """The generator's images hold infinities or NaN."""


class Task(NamedTuple):
    """What ranks make their shares of: samples of a generator, given by its state, of latents by their key."""

    key: Key
    state: dict[str, Tensor]


class Share(NamedTuple):
    """What samples of one rank leave: a pass over their features, and counts of the modes that they lie in."""

    over: Pass
    counts: Tensor | None


# What ends the scoring of a generator, the gravest first.
_ENDS = (Interrupted, NonFiniteImages, NonFiniteFeatures, MemoryError)


@dataclass(frozen=True)
class Evaluation:
    """What is known of a generator.

    metrics: numbers by name, means over the repeats; none if images or features are not finite, NaN for one that
    there was no memory for.  repeats: the values of each repeat, where there are several.  class_shares: shares of
    samples by the class that the classifier gives them.  flags: `few_samples` (fewer than feature dimensions, so
    that distances are far too large), `few_real_images` (the same of the real ones), `non_finite` (the generator's
    images hold infinities or NaN), `non_finite_features` (those that the feature network makes of them do),
    `out_of_memory` (even one image at a time was too much).
    """

    metrics: dict[str, float]
    repeats: dict[str, list[float]]
    class_shares: tuple[float, ...] | None
    flags: tuple[str, ...]

    @classmethod
    def of(
        cls,
        features: FeatureExtractor,
        real: RealStatistics,
        samples: int,
        values: Mapping[str, list[float]],
        logits: list[Tensor],
    ) -> "Evaluation":
        """Return what scores on these features, one of each repeat, make of so many samples."""
        shares = class_shares(logits) if logits and features.name == "classifier" else None
        enough = features.dimensions
        flags = [("few_samples", samples < enough), ("few_real_images", real.moments.count < enough)]
        several = any(len(of_repeats) > 1 for of_repeats in values.values())
        return cls(
            {name: fmean(of_repeats) for name, of_repeats in values.items()} | _extremes(shares),
            dict(values) if several else {},
            shares,
            tuple(flag for flag, raised in flags if raised),
        )

    @classmethod
    def without_metrics(cls, flag: str) -> "Evaluation":
        return cls({}, {}, None, (flag,))


@dataclass(eq=False)
class Evaluator:
    """Scores generators against one split of a data set, every time from the same latents.

    samples: of a generator, as often as `repeats` says, each time from other latents.  kept: of how many images of each
    side features are kept, for the scores that need more than moments.  splits: parts of the samples that the
    classifier score is a mean over.  conditional: whether generators take labels.  search: for held-out images, if any.
    ranks: those that share the samples; on all but the first, `follow` is called and nothing else.

    Where memory runs out it goes on with half the batch size, which changes no score. Raises DataError for a split of
    fewer than two images, and for features without a digest.
    """

    features: FeatureExtractor
    dataset: Dataset
    _: KW_ONLY
    samples: int
    split: Split
    batch_size: int
    seed: int
    device: torch.device
    repeats: int = 1
    kept: int = 10_000
    splits: int = 10
    conditional: bool = False
    search: Search | None = None
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        if len(self.images) < 2:
            problem = f"is {self.split}, which has fewer images than the two that a covariance needs"
            raise DataError("evaluation.split", problem, "give more images, the other split, or evaluation=none")
        # Only of coordinates is it known that they never change.
        if not self.features.digest and not isinstance(self.features, Coordinates):
            problem = f"'{self.features.name}' has no digest, which tells kept statistics from those of other weights"
            remedy = "set it to 12 hexadecimal digits of the sha256 of weights and code"
            raise DataError("evaluation.features", problem, remedy)
        self._mode_counter = mode_counter(self.dataset, self.device)
        self._real: RealStatistics | None = None

    @property
    def images(self) -> Images:
        """The real images that generators are held against."""
        return self.dataset.train if self.split == "train" else self.dataset.held_out

    @property
    def protocol(self) -> str:
        """Everything that makes two values comparable, but for the seed of the latents and how often they are drawn."""
        return "/".join(
            [
                label(self.features),
                f"{self.dataset.name}-{self.dataset.fingerprint[:8]}",
                f"{self.split}-{len(self.images)}",
                f"samples-{self.samples}",
                f"kept-{self.kept}",
                f"splits-{parts_of(self.samples, self.splits)}",
                "restandardised",
                *(["labels-in-turn"] if self.conditional else []),
                *([] if self._mode_counter is None else [self._mode_counter.protocol]),
                *([] if self.search is None else [self._protocol_of(self.search)]),
            ]
        )

    def real_statistics(self, stop: Callable[[], bool] = never) -> RealStatistics:
        """Return the statistics of the real images' features, computed once ever and kept in the cache folder.

        Raises Interrupted if `stop`, asked before each batch, says so; ResourceError if they cannot be kept.
        """
        if self._real is None:
            parts = (self.dataset.name, self.dataset.fingerprint[:16], self.split, self.features.name)
            key = "-".join([*parts, self.features.digest, f"kept{self.kept}", f"recipe{RECIPE}"])

            def compute(folder: Path) -> Path:
                log.info("computing the statistics of the real images, once; they are kept in %s", folder)
                real = self._in_batches_that_fit(lambda: self._pass_over_real(stop))
                return write_artifact(folder, key, RealStatistics.of(real).tensors(), {"extractor": self.features.info})

            stored = cached_artifact("statistics", key, compute).tensors
            self._real = RealStatistics.from_tensors(stored, self.device)
        return self._real

    def evaluate(
        self, generator: nn.Module, stop: Callable[[], bool] = never, purpose: str = "evaluation"
    ) -> Evaluation:
        """Score a copy of the generator, its batch statistics re-estimated, in evaluation mode.

        generator: has `latent_size`; takes latents [n, latent_size] to images [n, c, h, w] in [-1, 1].  purpose: of the
        latents, others for each.
        Raises Interrupted if `stop`, asked before each batch, says so.
        """
        real = self.real_statistics(stop)
        try:
            return self._evaluate(generator, real, stop, purpose)
        except NonFiniteImages:
            return Evaluation.without_metrics("non_finite")
        except NonFiniteFeatures:
            log.error("the features of %s hold infinities or NaN: no score", self.features.info)
            return Evaluation.without_metrics("non_finite_features")
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            log.error("an evaluation ran out of memory, however small its batches; training goes on without it")
            return Evaluation.without_metrics("out_of_memory")

    def evaluate_images(self, batches: Iterable[Tensor], count: int) -> Evaluation:
        """Score images in batches [n, c, h, w], `count` in all, as if a generator had made them."""
        real = self.real_statistics()
        fake, modes = self._pass_over(batches, chosen(count, self.kept))
        found = {**scores(real, fake, self.features.published, self.splits), **modes}
        values = {name: [value] for name, value in found.items()}
        return Evaluation.of(self.features, real, count, values, fake.logits)

    def floor(self) -> dict[str, float]:
        """Return what real images score that are as many as the samples, as `statistics.floor` has it."""
        return floor(self.real_statistics(), self.samples, self.features.published)

    def reconstruct(self, generator: nn.Module, search: Search, stop: Callable[[], bool] = never) -> Reconstruction:
        """Search for held-out images in a generator that has the batch statistics it is to be scored with."""

        def in_batches(size: int) -> Reconstruction:
            images = self.dataset.held_out
            return reconstruct(generator, images, device=self.device, search=search, batch_size=size, stop=stop)

        # Batches are part of what the form `batch` computes; of the other they are not, and may be of any size.
        if search.form == "batch":
            return in_batches(AUTHORS_BATCH)
        return self._in_batches_that_fit(lambda: in_batches(self.batch_size))

    def neighbours(self, generator: nn.Module) -> tuple[Tensor, float]:
        """Return a picture of 8 samples, each beside the 8 training images nearest to it, and the authenticity of 500.

        generator: with the batch statistics that it is to be scored with.
        """
        latents = torch.randn(AUTHENTICATED, _latent_size(generator), generator=stream(self.seed, "neighbours"))
        with scoring(self.device):
            parts = latents.to(self.device).split(self.batch_size)
            samples = torch.cat([to_uint8(generator(part)) for part in parts])
        images, shown = self.dataset.train, samples[:PICTURED]
        size, device = self.batch_size, self.device
        nearest = nearest_neighbours(shown, images, self.features, k=PICTURED, batch_size=size, device=device)
        share = authenticity(samples, images, self.features, batch_size=size, device=device)
        return neighbours_picture(shown, images, nearest), share

    def _protocol_of(self, search: Search) -> str:
        count = min(search.count, len(self.dataset.held_out))
        return f"reconstruction-{count}x{search.steps}-lr{search.lr:g}-{search.form}"

    def _evaluate(
        self, generator: nn.Module, real: RealStatistics, stop: Callable[[], bool], purpose: str
    ) -> Evaluation:
        copy = restandardised(generator, self.seed, self.device)

        every: dict[str, list[float]] = defaultdict(list)
        logits: list[Tensor] = []
        for repeat in range(self.repeats):
            fake, modes = self._pass_over_samples(copy, (purpose,) if repeat == 0 else (purpose, repeat), stop)
            for name, value in {**scores(real, fake, self.features.published, self.splits), **modes}.items():
                every[name].append(value)
            logits += fake.logits
        if (search := self.search) is not None:
            found = if_memory_allows(["reconstruction_error"], lambda: [self.reconstruct(copy, search, stop).error])
            every["reconstruction_error"] = [*found.values()]
        return Evaluation.of(self.features, real, self.samples, every, logits)

    def follow(self, task: Task, generator: nn.Module) -> None:
        """Make this rank's share of what the first one is to score; generator: one whose weights do not matter."""
        copy = deepcopy(generator).requires_grad_(False).eval()
        copy.load_state_dict(task.state)
        self.ranks.gather(self._share(copy, task.key, self.ranks.is_interrupted))

    def _pass_over_samples(self, copy: nn.Module, key: Key, stop: Callable[[], bool]) -> tuple[Pass, dict[str, float]]:
        """Return what a pass over samples leaves, of which each rank makes its share."""
        ranks, counter = self.ranks, self._mode_counter
        if ranks.count == 1 or self.samples < ranks.count:
            make = partial(self._sample, copy, key, stop, slice(0, self.samples))
            return self._in_batches_that_fit(lambda: self._pass_over(make(), chosen(self.samples, self.kept)))
        ranks.lead(Order.EVALUATE, Task(key, {name: value.cpu() for name, value in copy.state_dict().items()}))
        own = self._share(copy, key, stop)
        if isinstance(own, Interrupted):
            ranks.interrupt()
        found = ranks.gather(own)
        if errors := [each for each in found if isinstance(each, Exception)]:
            raise min(errors, key=lambda error: [isinstance(error, end) for end in _ENDS].index(True))
        shares = [each for each in found if isinstance(each, Share)]
        fake = reduce(operator.add, [share.over.to(self.device) for share in shares])
        if counter is None:
            return fake, {}
        counter.counts = torch.stack([share.counts for share in shares if share.counts is not None]).sum(dim=0)
        return fake, counter.metrics()

    def _share(self, copy: nn.Module, key: Key, stop: Callable[[], bool]) -> Share | Exception:
        """Return what this rank's samples leave, or what has ended it."""
        rows = self.ranks.rows(self.samples)
        kept = chosen(self.samples, self.kept)[rows]
        try:
            over, _ = self._in_batches_that_fit(lambda: self._pass_over(self._sample(copy, key, stop, rows), kept))
        except (Interrupted, NonFiniteImages, NonFiniteFeatures) as error:
            return error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return MemoryError(str(error))
        counter = self._mode_counter
        return Share(over.to(torch.device("cpu")), None if counter is None else counter.counts)

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

    def _sample(self, copy: nn.Module, key: Key, stop: Callable[[], bool], rows: slice) -> Iterator[Tensor]:
        """Yield what features are extracted of, of some rows; the batch size does not change what it is made of.

        A conditional generator is given every label equally often. Raises Interrupted, and behind the last batch
        NonFiniteImages, so that it waits for the device only there.
        """
        finite: list[Tensor] = []
        latents = torch.randn(self.samples, _latent_size(copy), generator=stream(self.seed, *key))[rows]
        classes = getattr(copy, "classes", None)
        labels = None if classes is None else torch.arange(self.samples)[rows] % classes
        for batch in batches(len(latents), self.batch_size, "evaluating", stop):
            given = {} if labels is None else {"labels": queued(labels[batch], self.device)}
            with scoring(self.device):
                images = copy(queued(latents[batch], self.device), **given)
            finite.append(images.isfinite().all())
            yield images if self.dataset.of_points else to_uint8(images)
        if not torch.stack(finite).all():
            raise NonFiniteImages

    def _pass_over(self, batches: Iterable[Tensor], kept: Tensor) -> tuple[Pass, dict[str, float]]:
        """Return what a pass over images leaves, and what there is to say of the modes that they lie in."""
        counter = self._mode_counter
        if counter is None:
            return pass_over(batches, self.features, kept), {}
        counter.reset()
        fake = pass_over(_counted(batches, counter), self.features, kept)
        return fake, counter.metrics()

    def _pass_over_real(self, stop: Callable[[], bool]) -> Pass:
        def images() -> Iterator[Tensor]:
            for rows in batches(len(self.images), self.batch_size, "real images", stop):
                yield torch.from_numpy(np.array(self.images.pixels[rows])).to(self.device)

        return pass_over(images(), self.features, chosen(len(self.images), self.kept))


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


def _counted(batches: Iterable[Tensor], counter: ModeCounter) -> Iterator[Tensor]:
    """Yield batches as they come, and let a counter see each."""
    for batch in batches:
        counter.update(batch)
        yield batch


def _latent_size(generator: nn.Module) -> int:
    latent_size = generator.latent_size
    assert isinstance(latent_size, int)
    return latent_size


def _extremes(shares: tuple[float, ...] | None) -> dict[str, float]:
    return {} if shares is None else {"class_share_min": min(shares), "class_share_max": max(shares)}
