"""Adaptive weight normalization in a step: what moves when, and what the optimizer and the average make of it."""

import pytest
import torch

from normlab.normalizations.base import as_matrix, output_dimension
from normlab.training.step import Step

from .conftest import BuildStep

MODES = ["descent", "ascent", "grad_norm"]


def lengths(step: Step, network: str) -> list[torch.Tensor]:
    parts = getattr(step.state, network).reparametrized()
    return [part.S.detach().clone() for _, _, part in parts]


def weights(step: Step, network: str) -> list[torch.Tensor]:
    layers = getattr(step.state, network).layers()
    return [layer.layer.weight.detach().clone() for _, layer in layers]


@pytest.mark.parametrize("mode", MODES)
def test_t2_without_an_optimizer_the_lengths_move_alone(build_step: BuildStep, mode: str) -> None:
    both = [f"normalization.{network}.mode={mode}" for network in ("generator", "discriminator")]
    step = build_step("normalization=both/adaptive", "optimizer=sgd", "optimizer.lr=1e-30", *both)
    before = {network: (lengths(step, network), weights(step, network)) for network in ("generator", "discriminator")}
    step.take()

    for network, (old_lengths, old_weights) in before.items():
        assert not any(map(torch.equal, old_lengths, lengths(step, network)))
        assert all(map(torch.equal, old_weights, weights(step, network)))


def test_t3_with_alpha_0_the_lengths_stay_and_the_directions_move(build_step: BuildStep) -> None:
    both = [f"normalization.{network}.alpha=0" for network in ("generator", "discriminator")]
    step = build_step("normalization=both/adaptive", *both)
    for _ in range(3):
        step.take()

    for network in (step.state.generator, step.state.discriminator):
        for name, layer in network.weight_layers():
            matrix = as_matrix(network.effective_weights()[name], output_dimension(layer.layer))
            torch.testing.assert_close(matrix.norm(dim=1), torch.ones(len(matrix)), rtol=0, atol=1e-6)


def test_t4_and_t11_in_a_step_the_lengths_follow_the_whole_loss_at_the_weights_of_the_pass(
    build_step: BuildStep,
) -> None:
    step = build_step(
        "normalization=adaptive", "penalty=r1", "train.until=4 steps", "normalization.discriminator.alpha=0.5"
    )
    step.take()
    discriminator = step.state.discriminator
    weights = discriminator.effective_weights()
    real = step.real_batch(0)
    with torch.no_grad(), step.state.generator.frozen_statistics():
        fake = step.generate("discriminator 0", step.state.generator.effective_weights())
    loss = step.loss.discriminator(discriminator(real.images, weights), discriminator(fake.images, weights))
    penalty = step.penalty(0, real, fake, weights)
    assert penalty is not None
    gradients = torch.autograd.grad(loss + penalty, list(weights.values()))
    expected: list[torch.Tensor] = []
    for G, (_, layer, part) in zip(gradients, discriminator.reparametrized(), strict=True):
        W = as_matrix(layer.layer.weight, output_dimension(layer.layer)).detach()
        V = W / W.norm(dim=1, keepdim=True)
        along = (as_matrix(G, output_dimension(layer.layer)) * V).sum(dim=1)
        expected.append(part.S.detach() - 0.5 * (1 - 1 / 4) * along)  # one of four steps has passed
    before = lengths(step, "discriminator")
    step.update_discriminator(0, step.weights_of_pass(step.state.generator))

    for old, new, formula in zip(before, lengths(step, "discriminator"), expected, strict=True):
        torch.testing.assert_close(new, formula, rtol=1e-5, atol=1e-6)  # both in float32
        assert (new - old).abs().max() > 1e-4


@pytest.mark.parametrize("mode", [*MODES, "learned"])
def test_t9_the_optimizer_has_the_lengths_only_where_it_learns_them(build_step: BuildStep, mode: str) -> None:
    step = build_step("normalization=adaptive", f"normalization.discriminator.mode={mode}")
    lengths = {id(part.S) for _, _, part in step.state.discriminator.reparametrized()}
    groups = step.state.discriminator_optimizer.param_groups
    held = [[id(parameter) for parameter in group["params"]] for group in groups]

    assert all(not lengths & set(group) for group in held[:1])
    assert [group["lr"] for group in groups] == ([2e-4, 0.01] if mode == "learned" else [2e-4])
    assert {identity for group in held[1:] for identity in group} == (lengths if mode == "learned" else set())


def test_t10_a_generator_update_leaves_the_discriminators_lengths(build_step: BuildStep) -> None:
    step = build_step("normalization=both/adaptive")
    before = {network: lengths(step, network) for network in ("generator", "discriminator")}
    step.update_generator()

    assert all(map(torch.equal, before["discriminator"], lengths(step, "discriminator")))
    assert not any(map(torch.equal, before["generator"], lengths(step, "generator")))


def test_a_non_finite_loss_leaves_the_lengths(build_step: BuildStep) -> None:
    step = build_step("normalization=both/adaptive")
    before = lengths(step, "discriminator")
    step.loss = step.loss._replace(discriminator=lambda real, fake: (real - fake).sum() * torch.nan)
    step.take()

    assert all(map(torch.equal, before, lengths(step, "discriminator")))


def test_averages_are_made_of_lengths(build_step: BuildStep) -> None:
    step = build_step("normalization=both/adaptive", "ema.decay=0.5")
    averaged = step.state.averaged
    assert averaged is not None
    before = lengths(step, "generator")
    step.take()
    after = lengths(step, "generator")
    means = [part.S for _, _, part in averaged.module.reparametrized()]

    for old, new, mean in zip(before, after, means, strict=True):
        torch.testing.assert_close(mean, 0.1 * old + 0.9 * new)  # the decay of a first update is 1/10
