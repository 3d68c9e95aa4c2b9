"""Latents against SciPy's distributions and the geometry of circles."""

import math

import pytest
import torch
from scipy import stats

from normlab import latents
from normlab.randomness import stream


def test_latents_are_normal_and_their_seeds_are_all_that_tells_them_apart() -> None:
    drawn = latents.drawn(2000, 8, stream(0, "sample"))

    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 0.01
    assert torch.equal(drawn, latents.drawn(2000, 8, stream(0, "sample")))
    assert not torch.equal(drawn, latents.drawn(2000, 8, stream(1, "sample")))


@pytest.mark.parametrize("truncation", [0.3, 1.0, 2.5])
def test_truncated_latents_follow_the_truncated_normal(truncation: float) -> None:
    drawn = latents.drawn(2000, 8, stream(0, "sample"), truncation).flatten()

    assert drawn.abs().max() <= truncation
    assert stats.kstest(drawn.numpy(), stats.truncnorm(-truncation, truncation).cdf).pvalue > 0.01


def test_a_way_between_two_latents_turns_by_equal_angles_and_ends_at_them() -> None:
    first, last = latents.drawn(3, 16, stream(0, "a")), latents.drawn(3, 16, stream(0, "b"))
    way = latents.between(first, last, 5)

    torch.testing.assert_close(way[:, 0], first)
    torch.testing.assert_close(way[:, -1], last)
    # Of vectors of one length the steps are equal turns in their plane, and the length stays.
    unit = torch.nn.functional.normalize(torch.stack([first, last]), dim=-1)
    turns = latents.between(unit[0], unit[1], 5)
    torch.testing.assert_close(turns.norm(dim=-1), torch.ones(3, 5))
    cosines = (turns[:, 1:] * turns[:, :-1]).sum(dim=-1)
    angle = torch.arccos((unit[0] * unit[1]).sum(dim=-1))
    torch.testing.assert_close(cosines, torch.cos(angle / 4)[:, None].expand(3, 4))


@pytest.mark.parametrize("factor", [2.0, -1.0])
def test_latents_on_one_line_are_joined_by_it(factor: float) -> None:
    first = torch.tensor([[3.0, 4.0]])
    way = latents.between(first, factor * first, 3)

    torch.testing.assert_close(way[0], torch.tensor([[1.0], [(1 + factor) / 2], [factor]]) * first)
    assert math.isfinite(float(way.sum()))
