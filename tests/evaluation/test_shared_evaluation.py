"""An evaluation that ranks share: the scores of one process, its flags, and its end where it is asked to stop."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from normlab.data.images import Dataset
from normlab.data.sources import DATASETS
from normlab.distributed import Team
from normlab.evaluation.batching import Interrupted, never
from normlab.evaluation.evaluator import Evaluation, Evaluator
from normlab.ranks import ALONE, Order, Ranks

from ..ranks import on_ranks
from .conftest import Upwards
from .test_evaluator import CPU, MeanFeatures

SAMPLES = 50  # which three ranks do not share equally


class Readied(MeanFeatures):
    """Features that are told when the statistics of the real images are there."""

    ready = False


def shared(
    team: Ranks,
    dataset: Dataset,
    generator: Upwards,
    features: Readied | None = None,
    stop: Callable[[], bool] = never,
    repeats: int = 1,
) -> Evaluation | str | None:
    """Return what the first rank makes of a generator, with weights of its own; None on the others, which follow."""
    features = features or Readied()
    scorer = Evaluator(
        features,
        dataset,
        samples=SAMPLES,
        split="train",
        batch_size=20,
        seed=0,
        device=CPU,
        kept=30,
        repeats=repeats,
        ranks=team,
    )
    scorer.real_statistics()
    features.ready = True
    if team.rank == 0:
        try:
            return scorer.evaluate(generator, stop)
        except Interrupted:
            return "interrupted"
    assert isinstance(team, Team)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.zero_()
    for _ in range(repeats):
        order, task = team.follow()
        assert order == Order.EVALUATE
        scorer.follow(task, generator)
    return None


def test_scores_of_three_ranks_are_those_of_one(labelled: Dataset, generator: Upwards, tmp_path: Path) -> None:
    alone = shared(ALONE, labelled, generator, repeats=2)
    first, *others = on_ranks(tmp_path, 3, lambda team: shared(team, labelled, generator, repeats=2))

    assert others == [None, None]
    assert first.metrics == pytest.approx(alone.metrics, rel=1e-6, nan_ok=True)
    assert first.repeats == {name: pytest.approx(values, rel=1e-6) for name, values in alone.repeats.items()}
    assert (first.flags, first.class_shares) == (alone.flags, alone.class_shares)


def test_counts_of_modes_add_up(tmp_path: Path) -> None:
    points = DATASETS.build("gaussians", {})

    class Points(Upwards):
        def forward(self, latents: Tensor) -> Tensor:
            chosen = torch.from_numpy(points.train.pixels[(1000 * latents[:, 0].abs()).long() % len(points.train)])
            return torch.where(latents[:, 1, None, None, None] > 0, chosen, 0.7 * chosen)

    class Places(Readied):
        dimensions = 2

        def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return images.flatten(1), images.flatten(1)

    torch.manual_seed(0)
    generator = Points()
    alone = shared(ALONE, points, generator, Places())
    first, _ = on_ranks(tmp_path, 2, lambda team: shared(team, points, generator, Places()))

    assert first.metrics["modes"] == alone.metrics["modes"] > 0
    assert first.metrics["good_share"] == alone.metrics["good_share"] < 1


class Failing(Readied):
    """Features that fail in some way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = super().extract(images)
        if not self.ready:
            return features, logits
        if self.way == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return features * math.nan, logits


@pytest.mark.parametrize(("way", "flag"), [("memory", "out_of_memory"), ("nan", "non_finite_features")])
def test_what_fails_on_one_rank_flags_the_evaluation(
    labelled: Dataset, generator: Upwards, tmp_path: Path, way: str, flag: str
) -> None:
    features = [Readied(), Failing(way)]
    first, _ = on_ranks(tmp_path, 2, lambda team: shared(team, labelled, generator, features[team.rank]))

    assert (first.flags, first.metrics) == ((flag,), {})


class Awaiting(Readied):
    """Features that wait, at their first samples, until the evaluation is interrupted, and count their batches."""

    batches = 0

    def __init__(self, team: Team) -> None:
        super().__init__()
        self.team = team

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.ready:
            self.batches += 1
            deadline = time.monotonic() + 20
            while self.batches == 1 and not self.team.is_interrupted() and time.monotonic() < deadline:
                time.sleep(0.01)
        return super().extract(images)


def test_an_evaluation_that_is_told_to_stop_ends_on_all_ranks(
    labelled: Dataset, generator: Upwards, tmp_path: Path
) -> None:
    def stopped(team: Team) -> tuple[Evaluation | str | None, int]:
        if team.rank == 0:
            return shared(team, labelled, generator, stop=lambda: True), 0
        features = Awaiting(team)
        return shared(team, labelled, generator, features), features.batches

    first, (_, batches) = on_ranks(tmp_path, 2, stopped)

    assert first == ("interrupted", 0)
    assert batches < 2  # which its 25 samples make
