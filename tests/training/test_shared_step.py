"""A step that two ranks share: that of one process with the same batch, to rounding, and alike on both, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from normlab.distributed import Team
from normlab.normalizations.activation import BatchNorm
from normlab.outputs.checkpoints import state_digest
from normlab.ranks import ALONE, Ranks

from ..ranks import on_ranks
from .conftest import BuildStep

STEPS = 2
# Rounding of float32 sums in another order, over two steps; a wrong factor, or half a batch, is far beyond.
ROUNDING = {"rtol": 2e-4, "atol": 2e-6}


def trained(build_step: BuildStep, words: tuple[str, ...], ranks: Ranks) -> dict[str, Any]:
    """Return the scalars of some steps, the networks that they leave, and the digest of the whole state."""
    step = build_step("optimizer=sgd", "optimizer.lr=0.05", *words, ranks=ranks)
    scalars = [{name: value.clone() for name, value in step.take().items()} for _ in range(STEPS)]
    state = step.state.state_dict()
    return {
        "scalars": scalars,
        "state": {name: state[name] for name in ("generator", "discriminator")},
        "digest": state_digest(state),
    }


@pytest.mark.parametrize(
    "words",
    [
        ("normalization=both/spectral", "train.discriminator_steps=2"),
        ("normalization=both/adaptive",),
        ("normalization=both/layer", "penalty=wgan_gp", "loss=wasserstein"),
        ("normalization=both/batch", "ema.decay=0.9"),
        ("normalization=batch", "penalty=r1", "penalty.r1.every=2", "force=true"),
        ("normalization=layer", "penalty=dragan"),
        ("normalization=none", "penalty=[r1,orthogonal,spectral_regularization]", "penalty.r1.every=2"),
        (
            *("architecture=sngan_cnn", "architecture.conditional=true"),
            *("normalization.generator=conditional_batch", "normalization.discriminator=spectral"),
        ),
        ("normalization=gradient", "normalization.generator=none"),
    ],
    ids=lambda words: " ".join(words),
)
def test_two_ranks_share_a_step_that_is_one_process_s_to_rounding(
    build_step: BuildStep, tmp_path: Path, words: tuple[str, ...]
) -> None:
    alone = trained(build_step, words, ALONE)
    one, other = on_ranks(tmp_path, 2, lambda team: trained(build_step, words, team))

    assert one["digest"] == other["digest"]
    torch.testing.assert_close(one["scalars"], alone["scalars"], **ROUNDING)
    torch.testing.assert_close(one["state"], alone["state"], **ROUNDING)
    assert list(one["scalars"][0]) == list(alone["scalars"][0])


def test_local_statistics_are_of_each_rank_s_rows(build_step: BuildStep, tmp_path: Path) -> None:
    words = ("normalization=both/batch", "train.batch_norm=local")
    alone = trained(build_step, words, ALONE)
    one, other = on_ranks(tmp_path, 2, lambda team: trained(build_step, words, team))

    assert one["digest"] == other["digest"]
    assert (one["scalars"][0]["loss/discriminator"] - alone["scalars"][0]["loss/discriminator"]).abs() > 1e-4


def test_local_running_statistics_are_the_mean_of_what_each_rank_s_rows_make_of_them(
    build_step: BuildStep, tmp_path: Path
) -> None:
    """Against torch's own batch norm, fed what the first norm of the discriminator sees on each rank in one step."""

    def moved(team: Team) -> tuple[list[Tensor], Tensor, Tensor]:
        step = build_step("normalization=both/batch", "train.batch_norm=local", ranks=team)
        norm = step.state.discriminator.batch_norms()[0]
        seen: list[Tensor] = []

        def see(module: torch.nn.Module, inputs: tuple[Tensor]) -> None:
            if norm.moving_statistics:
                seen.append(inputs[0].detach().clone())

        norm.register_forward_pre_hook(see)
        step.take()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return seen, norm.running_mean, norm.running_var

    (ours, mean, variance), (theirs, *_) = on_ranks(tmp_path, 2, moved)
    apart = [torch.nn.BatchNorm2d(len(mean)) for _ in range(2)]
    for norm, seen in zip(apart, (ours, theirs), strict=True):
        assert [len(images) for images in seen] == [4, 4]  # half of the real ones, and half of the fakes
        for images in seen:
            norm(images)
    torch.testing.assert_close(mean, torch.stack([norm.running_mean for norm in apart]).mean(0), **ROUNDING)
    torch.testing.assert_close(variance, torch.stack([norm.running_var for norm in apart]).mean(0), **ROUNDING)


def test_a_loss_that_is_not_finite_on_one_rank_masks_the_update_of_all(build_step: BuildStep, tmp_path: Path) -> None:
    def spoilt(team: Team) -> tuple[str, str, float]:
        step = build_step("normalization=both/none", ranks=team)
        before = state_digest(step.state.state_dict()["generator"])
        if team.rank == 1:
            real = step.real.resident
            assert real is not None
            step.real.resident = torch.full_like(real, torch.nan, dtype=torch.float32)
        step.take()
        return before, state_digest(step.state.state_dict()["generator"]), float(step.non_finite)

    for before, after, non_finite in on_ranks(tmp_path, 2, spoilt):
        assert (after, non_finite) == (before, 1.0)


def test_gradients_pass_twice_through_statistics_of_all_ranks(tmp_path: Path) -> None:
    """Against one batch norm over both halves, in float64."""
    rng = torch.Generator().manual_seed(0)
    images, head = (torch.randn(6, 3, 4, 4, generator=rng, dtype=torch.float64) for _ in range(2))

    def curved(norm: BatchNorm, input: Tensor, head: Tensor) -> tuple[Tensor, ...]:
        input = input.clone().requires_grad_()
        (slope,) = torch.autograd.grad((norm(input) * head).tanh().sum(), input, create_graph=True)
        parameters = torch.autograd.grad(slope.square().sum(), [input, norm.weight])
        return slope.detach(), *parameters

    def half(team: Team) -> tuple[Tensor, ...]:
        norm = BatchNorm(3).double()
        norm.stacked = team.stacked
        slope, of_images, of_gain = curved(norm, team.share(images), team.share(head))
        team.sum(of_gain)
        return slope, of_images, of_gain, norm.running_mean, norm.running_var

    norm = BatchNorm(3).double()
    slope, of_images, of_gain = curved(norm, images, head)
    one, other = on_ranks(tmp_path, 2, half)

    torch.testing.assert_close(torch.cat([one[0], other[0]]), slope)
    torch.testing.assert_close(torch.cat([one[1], other[1]]), of_images)
    torch.testing.assert_close(one[2:], (of_gain, norm.running_mean, norm.running_var))
