import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from normlab.data.images import Dataset, Images
from normlab.data.sources import DATASETS
from normlab.errors import DataError
from normlab.evaluation import evaluator as evaluator_module
from normlab.evaluation import statistics
from normlab.evaluation.batching import Interrupted
from normlab.evaluation.evaluator import Evaluator, restandardised
from normlab.evaluation.features import open_features
from normlab.evaluation.frechet import Moments, frechet_distance
from normlab.evaluation.reconstruction import Search
from normlab.outputs.grids import to_uint8
from normlab.randomness import stream
from tests.evaluation.conftest import Upwards

CPU = torch.device("cpu")


class MeanFeatures:
    """Eight features that are plain to compute: the means of eight rows of pixels; counts the images it was shown."""

    name = "classifier"
    dimensions = 8
    published = False
    digest = "0123456789ab"
    info = "row means"

    def __init__(self) -> None:
        self.seen = 0

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += len(images)
        features = images.float().mean(dim=(1, 3))[:, ::4]
        return features, features[:, :2]


def evaluator(dataset: Dataset, samples: int = 50, batch_size: int = 20, seed: int = 0) -> Evaluator:
    return Evaluator(
        MeanFeatures(), dataset, samples=samples, split="train", batch_size=batch_size, seed=seed, device=CPU
    )


def test_distance_is_that_of_the_documented_procedure(labelled: Dataset, generator: Upwards):
    result = evaluator(labelled).evaluate(generator)
    latents = torch.randn(50, 6, generator=stream(0, "evaluation"))
    with torch.no_grad():
        images = to_uint8(restandardised(generator, 0, CPU)(latents))
    features = MeanFeatures()
    real = Moments.of(features.extract(torch.tensor(labelled.train.pixels))[0])
    fake_features, logits = features.extract(images)
    assert result.metrics["frechet_distance"] == pytest.approx(frechet_distance(real, Moments.of(fake_features)))
    shares = logits.argmax(dim=1).bincount(minlength=2) / 50
    assert result.class_shares == pytest.approx(shares.tolist())
    assert result.metrics["class_share_max"] == pytest.approx(float(shares.max()))
    assert set(result.metrics) == {
        *("frechet_distance", "classifier_score", "classifier_score_spread", "kernel_distance"),
        *("precision", "recall", "density", "coverage", "relative_spread"),
        *("class_share_min", "class_share_max"),
    }
    assert result.flags == ()


def test_the_floor_is_the_distance_of_as_many_real_images(labelled: Dataset):
    scored = evaluator(labelled, samples=50)
    features = MeanFeatures().extract(torch.tensor(labelled.train.pixels))[0]
    some = features[statistics.chosen(len(features), 50)]
    seen = scored.features.seen if isinstance(scored.features, MeanFeatures) else 0

    floor = scored.floor()
    assert floor == {
        "images": 50,
        "frechet_distance": pytest.approx(frechet_distance(Moments.of(features), Moments.of(some)), rel=1e-4),
    }
    assert isinstance(scored.features, MeanFeatures)
    assert scored.features.seen - seen == 96  # of the real statistics: the floor itself sees no image
    assert evaluator(labelled, samples=500).floor() == {"images": 96, "frechet_distance": pytest.approx(0, abs=1e-2)}


def test_evaluation_repeats_and_does_not_depend_on_the_batch_size(labelled: Dataset, generator: Upwards):
    first = evaluator(labelled, batch_size=20).evaluate(generator)
    assert evaluator(labelled, batch_size=20).evaluate(generator) == first
    assert evaluator(labelled, batch_size=7).evaluate(generator).metrics == pytest.approx(first.metrics, rel=1e-4)


def test_another_seed_draws_other_latents(labelled: Dataset, generator: Upwards):
    first, second = (evaluator(labelled, seed=seed).evaluate(generator) for seed in (0, 1))
    assert first.metrics["frechet_distance"] != second.metrics["frechet_distance"]


@pytest.mark.parametrize("training", [True, False])
def test_generator_and_global_random_state_are_untouched(labelled: Dataset, generator: Upwards, training: bool):
    generator.train(training)
    generator(torch.ones(3, 6)).sum().backward()
    before = copy.deepcopy(generator.state_dict())
    gradients = [parameter.grad.clone() for parameter in generator.parameters() if parameter.grad is not None]
    state = torch.get_rng_state()
    evaluator(labelled).evaluate(generator)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in generator.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(module.training is training for module in generator.modules())
    for parameter, gradient in zip(generator.parameters(), gradients, strict=True):
        assert parameter.requires_grad
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


def test_restandardised_statistics_are_exact_averages_whatever_they_were(generator: Upwards):
    linear, norm = generator.body[0], generator.body[1]
    assert isinstance(norm, nn.BatchNorm1d)
    norm.running_mean.fill_(1e6)  # type: ignore[union-attr]
    again = restandardised(generator, 5, CPU)
    batches = [linear(torch.randn(64, 6, generator=stream(5, "restandardise", batch))) for batch in range(50)]
    expected_mean = torch.stack([batch.mean(dim=0) for batch in batches]).mean(dim=0)
    expected_variance = torch.stack([batch.var(dim=0) for batch in batches]).mean(dim=0)
    torch.testing.assert_close(again.body[1].running_mean, expected_mean, check_dtype=False)
    torch.testing.assert_close(again.body[1].running_var, expected_variance, check_dtype=False)
    assert again.body[1].momentum == norm.momentum
    assert not any(module.training for module in again.modules())


def test_generator_without_batch_statistics_is_only_copied():
    plain = nn.Sequential(nn.Linear(4, 4))
    plain.latent_size = 4  # type: ignore[assignment]
    again = restandardised(plain, 0, CPU)
    assert again is not plain
    assert torch.equal(again[0].weight, plain[0].weight)  # type: ignore[index]


def test_pixels_are_rounded_and_clamped():
    images = torch.tensor([-1.5, -1.0, 0.0, 0.999, 1.0, 1.5])
    assert to_uint8(images).tolist() == [0, 0, 128, 255, 255, 255]


def test_few_samples_and_few_real_images_are_flagged(labelled: Dataset, generator: Upwards):
    assert evaluator(labelled, samples=7).evaluate(generator).flags == ("few_samples",)
    few = evaluator(labelled)
    few.features.dimensions = 97  # type: ignore[misc]
    assert few.evaluate(generator).flags == ("few_samples", "few_real_images")


def test_non_finite_images_give_a_flag_and_no_numbers(labelled: Dataset, generator: Upwards):
    with torch.no_grad():
        generator.body[4].bias[3] = float("nan")  # type: ignore[index]
    result = evaluator(labelled).evaluate(generator)
    assert (result.metrics, result.class_shares, result.flags) == ({}, None, ("non_finite",))


class Cramped(MeanFeatures):
    """The same features on a device with room for so many images."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().extract(images)


def test_where_memory_runs_out_smaller_batches_give_the_same_scores(
    labelled: Dataset, generator: Upwards, own_cache: Path, caplog: pytest.LogCaptureFixture
):
    cramped = evaluator(labelled, batch_size=20)
    cramped.features = Cramped(room=6)
    result = cramped.evaluate(generator)

    assert cramped.batch_size == 5
    # The sums over batches are taken in another order.
    assert result.metrics == pytest.approx(evaluator(labelled).evaluate(generator).metrics, rel=1e-9)
    assert [record.message for record in caplog.records if "out of memory" in record.message] == [
        "out of memory in an evaluation; trying batches of 10",
        "out of memory in an evaluation; trying batches of 5",
    ]


def test_an_evaluation_that_memory_is_too_small_for_is_flagged_and_training_goes_on(
    labelled: Dataset, generator: Upwards
):
    cramped = evaluator(labelled)
    cramped.real_statistics()
    cramped.features = Cramped(room=0)
    assert cramped.evaluate(generator).flags == ("out_of_memory",)


def test_a_score_that_memory_is_too_small_for_is_missing_and_no_image_is_made_twice(
    labelled: Dataset, generator: Upwards, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def overlap(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    expected = evaluator(labelled).evaluate(generator)
    monkeypatch.setattr(statistics, "overlap", overlap)
    cramped = evaluator(labelled)
    result = cramped.evaluate(generator)

    missing = {name for name, value in result.metrics.items() if math.isnan(value)}
    assert missing == {"precision", "recall", "density", "coverage"}
    assert {name: result.metrics[name] for name in expected.metrics.keys() - missing} == {
        name: value for name, value in expected.metrics.items() if name not in missing
    }
    assert result.flags == ()
    assert (cramped.batch_size, cramped.features.seen) == (20, 50)  # type: ignore[attr-defined]
    assert "out of memory: there is no precision, recall, density, coverage" in caplog.messages


def test_a_reconstruction_that_memory_is_too_small_for_costs_no_other_score(
    labelled: Dataset, generator: Upwards, monkeypatch: pytest.MonkeyPatch
):
    def reconstruct(*_: object, batch_size: int, **__: object) -> None:
        tried.append(batch_size)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    tried: list[int] = []
    monkeypatch.setattr(evaluator_module, "reconstruct", reconstruct)
    cramped = evaluator(labelled)
    cramped.search = Search(count=3)
    metrics = cramped.evaluate(generator).metrics

    assert tried == [20, 10, 5, 2, 1]
    assert math.isnan(metrics.pop("reconstruction_error"))
    assert metrics == evaluator(labelled).evaluate(generator).metrics


def test_another_error_within_an_evaluation_is_raised(labelled: Dataset, generator: Upwards):
    broken = evaluator(labelled)
    broken.real_statistics()
    broken.features.extract = lambda images: torch.zeros(1) @ torch.zeros(2)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"inconsistent tensor size|size mismatch"):
        broken.evaluate(generator)


def test_stop_is_heard_before_every_batch_of_samples(labelled: Dataset, generator: Upwards):
    chosen = evaluator(labelled, samples=60, batch_size=20)
    chosen.real_statistics()
    answers = iter([False, False, True])
    with pytest.raises(Interrupted):
        chosen.evaluate(generator, stop=lambda: next(answers))
    assert chosen.features.seen == 96 + 40  # type: ignore[attr-defined]


def test_stop_is_heard_within_the_real_statistics_and_nothing_half_done_is_kept(
    labelled: Dataset, generator: Upwards, own_cache: Path
):
    answers = iter([False, True])
    with pytest.raises(Interrupted):
        evaluator(labelled).evaluate(generator, stop=lambda: next(answers))
    assert not list(own_cache.rglob("*.safetensors"))
    assert evaluator(labelled).evaluate(generator).metrics


def test_real_statistics_are_computed_once_and_kept(labelled: Dataset, generator: Upwards):
    first, second = evaluator(labelled), evaluator(labelled)
    first.evaluate(generator)
    second.evaluate(generator)
    assert first.features.seen == 96 + 50  # type: ignore[attr-defined]
    assert second.features.seen == 50  # type: ignore[attr-defined]


def test_damaged_real_statistics_are_computed_again(labelled: Dataset, own_cache: Path):
    expected = evaluator(labelled).real_statistics()
    (file,) = (own_cache / "statistics").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    again = evaluator(labelled).real_statistics()
    assert torch.equal(again.moments.products, expected.moments.products)
    assert torch.equal(again.kept, expected.kept)


def test_protocol_tells_extractor_data_split_and_samples(labelled: Dataset):
    expected = "classifier-0123456789ab/bars-abababab/train-96/samples-50/kept-10000/splits-10/restandardised"
    assert evaluator(labelled).protocol == expected


def test_real_digits_score_far_better_than_noise(generator: Upwards):
    digits = DATASETS.build("digits", {})
    features = open_features("auto", None, digits, CPU)
    chosen = Evaluator(features, digits, samples=200, split="train", batch_size=100, seed=0, device=CPU)
    held_out = Moments.of(features.extract(torch.tensor(digits.held_out.pixels))[0])
    floor = frechet_distance(chosen.real_statistics().moments, held_out)
    result = chosen.evaluate(generator)
    assert result.metrics["frechet_distance"] > 10 * floor
    assert result.class_shares is not None
    assert len(result.class_shares) == 10
    assert sum(result.class_shares) == pytest.approx(1)


@pytest.mark.slow
def test_inception_metrics_bear_their_published_names(colour: Dataset, inception_weights: Path):
    class Colourful(Upwards):
        def forward(self, latents: Tensor) -> Tensor:
            return super().forward(latents).expand(-1, 3, -1, -1)

    # As few images as their neighbours allow: each takes a quarter of a second.
    few = replace(colour, held_out=Images(colour.held_out.pixels[:5], None))
    features = open_features("inception", str(inception_weights), few, CPU)
    chosen = Evaluator(features, few, samples=5, split="held_out", batch_size=5, seed=0, device=CPU)
    result = chosen.evaluate(Colourful())
    assert {"fid", "inception_score", "kid"} < set(result.metrics)
    assert not {"frechet_distance", "classifier_score", "kernel_distance"} & set(result.metrics)
    assert result.class_shares is None
    assert result.flags == ("few_samples", "few_real_images")


def test_a_single_real_image_is_refused(labelled: Dataset):
    single = replace(labelled, held_out=Images(labelled.held_out.pixels[:1], None))
    with pytest.raises(DataError, match="fewer images than the two"):
        Evaluator(MeanFeatures(), single, samples=20, split="held_out", batch_size=4, seed=0, device=CPU)


def test_repeats_draw_other_latents_and_give_the_mean(labelled: Dataset, generator: Upwards):
    single = evaluator(labelled).evaluate(generator)
    several = evaluator(labelled)
    several.repeats = 3
    result = several.evaluate(generator)
    distances = result.repeats["frechet_distance"]
    assert distances[0] == single.metrics["frechet_distance"]
    assert len(set(distances)) == 3
    assert result.metrics["frechet_distance"] == pytest.approx(sum(distances) / 3)
    assert single.repeats == {}


def test_another_purpose_draws_other_latents(labelled: Dataset, generator: Upwards):
    chosen = evaluator(labelled)
    assert chosen.evaluate(generator, purpose="best").metrics != chosen.evaluate(generator).metrics


def test_features_that_are_not_finite_give_a_flag_and_name_the_network(
    labelled: Dataset, generator: Upwards, caplog: pytest.LogCaptureFixture
):
    chosen = evaluator(labelled)
    chosen.real_statistics()
    chosen.features.extract = lambda images: (torch.full((len(images), 8), torch.inf), None)  # type: ignore[method-assign]
    result = chosen.evaluate(generator)
    assert (result.metrics, result.flags) == ({}, ("non_finite_features",))
    assert "row means" in caplog.text


def test_protocol_says_that_a_generator_takes_labels(labelled: Dataset):
    chosen = evaluator(labelled)
    chosen.conditional = True
    assert chosen.protocol.endswith("/labels-in-turn")


def test_features_without_a_digest_are_refused_since_statistics_are_kept_by_it(labelled: Dataset):
    features = MeanFeatures()
    features.digest = ""
    with pytest.raises(DataError, match=r"evaluation\.features: 'classifier' has no digest, which tells kept stat"):
        Evaluator(features, labelled, samples=50, split="train", batch_size=20, seed=0, device=CPU)


def test_protocol_names_as_many_parts_as_there_are(labelled: Dataset):
    assert "/splits-10/" in evaluator(labelled, samples=21).protocol
    assert "/splits-4/" in evaluator(labelled, samples=4).protocol
