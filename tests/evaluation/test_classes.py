import math

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from normlab import assemble, scoring
from normlab.config import Part, RunConfig
from normlab.evaluation.classes import class_shares, classifier_score, parts_of
from normlab.randomness import stream


def gaussian(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "test"), dtype=torch.float64)


def test_score_equals_torch_fidelity_with_one_split():
    logits = gaussian(300, 20) * 3
    expected = isc_features_to_metric(logits, splits=1, shuffle=False)[KEY_METRIC_ISC_MEAN]
    found = classifier_score([logits[:200], logits[200:]], splits=1)
    assert found.mean == pytest.approx(expected, rel=1e-9)
    assert math.isnan(found.spread)


@pytest.mark.parametrize(("count", "splits"), [(300, 10), (21, 10), (7, 10)])
def test_score_equals_torch_fidelity_over_parts(count: int, splits: int):
    """Even, uneven, and as many parts as there are samples."""
    logits = gaussian(count, 20) * 3
    number = parts_of(count, splits)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    expected = isc_features_to_metric(logits[order], splits=number, shuffle=False)
    found = classifier_score([logits], splits)
    unbiased = (number / (number - 1)) ** 0.5
    assert found.mean == pytest.approx(expected[KEY_METRIC_ISC_MEAN], rel=1e-9)
    assert found.spread == pytest.approx(unbiased * expected[KEY_METRIC_ISC_STD], rel=1e-9, abs=1e-12)


def test_score_of_certain_and_even_classes_is_their_number():
    logits = torch.eye(5).repeat(200, 1) * 1000
    assert classifier_score([logits], splits=1).mean == pytest.approx(5, rel=1e-9)


def test_score_of_samples_alike_is_one_without_spread():
    assert classifier_score([torch.zeros(100, 5)], splits=10) == (1, 0)


def test_score_is_repeatable_and_leaves_the_global_random_state():
    logits = gaussian(100, 5)
    state = torch.get_rng_state()
    first = classifier_score([logits], splits=10)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert classifier_score([logits], splits=10) == first


def test_class_shares_count_the_largest_logit_of_every_sample():
    logits = torch.eye(4)[[0, 0, 0, 1, 3]]
    assert class_shares([logits[:2], logits[2:]]) == (0.6, 0.2, 0.0, 0.2)


@pytest.mark.parametrize(("dataset", "expected"), [("digits", 1), ("gaussians", 0)])
def test_what_scores_classes_is_readied_where_there_are_classes(
    monkeypatch: pytest.MonkeyPatch, dataset: str, expected: int
):
    readied: list[None] = []
    monkeypatch.setattr(scoring, "prepare", lambda: readied.append(None))
    monkeypatch.setattr(scoring.Evaluator, "real_statistics", lambda self: None)
    monkeypatch.setattr(scoring.Evaluator, "evaluate", interrupted)
    config = RunConfig(dataset=Part(name=dataset))
    scorer = scoring.build_scorer(config, assemble.open_dataset(config), torch.device("cpu"))
    assert scorer is not None
    assert scorer(torch.nn.Identity(), lambda: True) is None
    assert len(readied) == expected


def interrupted(*_: object) -> None:
    raise scoring.Interrupted
