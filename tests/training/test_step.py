"""One step: the same draws for every technique, exact resume, masked divergence, each network its own update."""

import copy
import io
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.work import Work
from normlab.networks import Network
from normlab.normalizations import TECHNIQUES
from normlab.normalizations.spectral import SpectralNorm
from normlab.outputs.checkpoints import state_digest
from normlab.training.optimizers import OPTIMIZERS
from normlab.training.step import describe_scores

from .conftest import BuildStep

# Those that both networks take without labels.
ALL = [name for name in TECHNIQUES.names() if name not in ("conditional_batch", "gradient")]
SMALL_GROUPS = ["normalization.generator.channels_per_group=4", "normalization.discriminator.channels_per_group=4"]


def both(technique: str) -> list[str]:
    return [f"normalization=both/{technique}", *(SMALL_GROUPS if technique == "group" else [])]


def parameters(network: Network) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def reload(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state as another process would read it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("technique", ALL)
def test_at_equal_seed_every_technique_sees_the_same_weights_batch_and_latents(
    build_step: BuildStep, technique: str
) -> None:
    ours, reference = build_step("seed=3", *both(technique)), build_step("seed=3", *both("none"))
    for network in ("generator", "discriminator"):
        shared = dict(getattr(ours.state, network).named_parameters())
        parameters = dict(getattr(reference.state, network).named_parameters())
        weights = [name for name in parameters if name.endswith("layer.weight")]
        assert all(torch.equal(parameters[name], shared[name]) for name in weights)

    assert torch.equal(ours.real.batch(0), reference.real.batch(0))
    for purpose in ("generator", "discriminator 0"):
        assert torch.equal(ours.latents(purpose), reference.latents(purpose))


def test_another_seed_changes_weights_batch_and_latents(build_step: BuildStep) -> None:
    one, other = build_step("seed=0"), build_step("seed=1")

    assert not torch.equal(parameters(one.state.generator)[0], parameters(other.state.generator)[0])
    assert not torch.equal(one.real.batch(0), other.real.batch(0))
    assert not torch.equal(one.latents("generator"), other.latents("generator"))


def test_every_update_draws_latents_of_its_own(build_step: BuildStep) -> None:
    step = build_step("train.discriminator_steps=2")
    draws = [step.latents(purpose) for purpose in ("generator", "discriminator 0", "discriminator 1")]
    step.take()
    draws.append(step.latents("generator"))

    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 4


@pytest.mark.parametrize("technique", ALL)
@pytest.mark.parametrize("more", [[], ["ema.decay=0.9", "train.discriminator_steps=2", "optimizer.schedule=linear"]])
def test_saving_and_loading_in_the_middle_changes_no_bit(
    build_step: BuildStep, technique: str, more: list[str]
) -> None:
    straight = build_step(*both(technique), *more)
    for _ in range(4):
        straight.take()
    first, second = build_step(*both(technique), *more), build_step(*both(technique), *more)
    first.take()
    first.take()
    second.state.load_state_dict(reload(first.state.state_dict()))
    torch.manual_seed(1234)  # whatever the process drew before must not matter
    second.take()
    second.take()

    assert state_digest(second.state.state_dict()) == state_digest(straight.state.state_dict())


@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_saving_and_loading_changes_no_bit_under_any_optimizer(build_step: BuildStep, optimizer: str) -> None:
    straight, first, second = (build_step(f"optimizer={optimizer}") for _ in range(3))
    for _ in range(3):
        straight.take()
    first.take()
    second.state.load_state_dict(reload(first.state.state_dict()))
    second.take()
    second.take()

    assert state_digest(second.state.state_dict()) == state_digest(straight.state.state_dict())


@pytest.mark.parametrize("technique", ALL)
def test_channels_last_is_the_same_step_to_rounding_and_resumes_to_the_bit(
    build_step: BuildStep, technique: str
) -> None:
    words = [*both(technique), "optimizer=sgd", "optimizer.momentum=0.5"]
    contiguous = build_step(*words)
    straight, first, second = (build_step(*words, "memory_format=channels_last") for _ in range(3))
    expected = contiguous.take()
    for name, value in straight.take().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    straight.take()
    first.take()
    second.state.load_state_dict(reload(first.state.state_dict()))
    second.take()

    assert state_digest(second.state.state_dict()) == state_digest(straight.state.state_dict())
    for network in (second.state.generator, second.state.discriminator):
        layers = [layer for _, layer in network.layers() if layer.place.input_size > 1]
        maps = [layer.layer.weight for layer in layers if layer.layer.weight.dim() == 4]
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in maps)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_a_non_finite_loss_masks_that_update_and_all_later_ones(build_step: BuildStep, optimizer: str) -> None:
    step = build_step(f"optimizer={optimizer}", "normalization=none", "ema.decay=0.5")
    step.take()
    before = parameters(step.state.generator) + parameters(step.state.discriminator)
    healthy, step.loss = step.loss, step.loss._replace(discriminator=lambda real, fake: (real - fake).sum() * torch.nan)
    step.take()
    step.loss = healthy
    step.take()

    after = parameters(step.state.generator) + parameters(step.state.discriminator)
    assert step.non_finite.item() == 1
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_finite_loss_masks_nothing(build_step: BuildStep) -> None:
    step = build_step()
    before = parameters(step.state.generator)
    step.take()

    assert step.non_finite.item() == 0
    assert not any(torch.equal(old, new) for old, new in zip(before, parameters(step.state.generator), strict=True))


def test_each_network_moves_in_its_own_update_alone(build_step: BuildStep) -> None:
    step = build_step("normalization=both/batch")
    generator, discriminator = step.state.generator, step.state.discriminator
    before = copy.deepcopy(generator.state_dict())
    step.update_discriminator(0, step.weights_of_pass(step.state.generator))
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())

    before = copy.deepcopy(discriminator.state_dict())
    step.update_generator()
    assert all(torch.equal(before[name], value) for name, value in discriminator.state_dict().items())


def test_power_iterations_advance_once_per_own_update(build_step: BuildStep, monkeypatch: pytest.MonkeyPatch) -> None:
    step = build_step("normalization=both/spectral", "train.discriminator_steps=3")
    owners = {
        part: name
        for name in ("generator", "discriminator")
        for _, _, part in getattr(step.state, name).reparametrized()
    }
    counts: Counter[str] = Counter()
    iterate_all = SpectralNorm.iterate_all

    def counted(parts: Sequence[SpectralNorm], weights: Sequence[Tensor], times: int) -> None:
        counts.update(owners[part] for part in parts for _ in range(times))
        iterate_all(parts, weights, times)

    monkeypatch.setattr(SpectralNorm, "iterate_all", counted)
    step.take()

    assert counts == {"generator": 4, "discriminator": 3 * 4}  # of 4 layers each


@pytest.mark.parametrize(
    ("technique", "most"), [("spectral", 1.5), ("weight", 1.4), ("adaptive", 1.6), ("bidirectional_spectral", 1.9)]
)
def test_normalization_adds_few_operations_as_layers_share_them(
    build_step: BuildStep, technique: str, most: float
) -> None:
    def operations(technique: str) -> int:
        step = build_step("architecture=sngan_resnet", f"normalization={technique}")
        step.take()
        with Work() as work:
            step.take()
        return work.operations

    assert operations(technique) <= most * operations("none")


def test_the_weights_of_a_generator_are_computed_once_for_all_updates_of_the_discriminator(
    build_step: BuildStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = build_step("normalization=both/weight", "train.discriminator_steps=3")
    computed: list[Network] = []
    effective_weights = Network.effective_weights

    def counted(network: Network) -> dict[str, Tensor]:
        computed.append(network)
        return effective_weights(network)

    monkeypatch.setattr(Network, "effective_weights", counted)
    step.take()

    assert computed.count(step.state.generator) == 2  # and once more to be differentiated
    assert computed.count(step.state.discriminator) == 3 + 1


@pytest.mark.parametrize(("decay", "at", "expected"), [(0.75, 100, 0.75), (0.999, 0, 0.1), (0.999, 90, 0.91)])
def test_the_average_follows_its_formula_and_copies_buffers(
    build_step: BuildStep, decay: float, at: int, expected: float
) -> None:
    step = build_step("normalization=both/batch", f"ema.decay={decay}")
    step.state.step = at
    averaged = step.state.averaged
    assert averaged is not None
    before = [parameter.clone() for parameter in averaged.module.parameters()]
    step.take()
    generator = step.state.generator

    for old, average, value in zip(before, averaged.module.parameters(), generator.parameters(), strict=True):
        torch.testing.assert_close(average, expected * old + (1 - expected) * value)
    for average, value in zip(averaged.module.buffers(), generator.buffers(), strict=True):
        assert torch.equal(average, value)


def test_images_seen_count_every_discriminator_update(build_step: BuildStep) -> None:
    step = build_step("train.discriminator_steps=5")
    step.take()
    step.take()

    assert (step.state.step, step.state.images_seen) == (2, 2 * 5 * 8)


def test_learning_rates_are_each_networks_own_and_follow_the_schedule(build_step: BuildStep) -> None:
    step = build_step(
        "optimizer.lr=0.1",
        "optimizer.generator.lr=0.4",
        "optimizer.schedule=linear",
        "optimizer.schedule.horizon=4 steps",
    )
    rates = []
    for _ in range(5):
        step.take()
        optimizers = (step.state.generator_optimizer, step.state.discriminator_optimizer)
        rates += [optimizer.param_groups[0]["lr"] for optimizer in optimizers]

    assert rates == pytest.approx([0.4, 0.1, 0.3, 0.075, 0.2, 0.05, 0.1, 0.025, 0, 0])


def test_bfloat16_keeps_float32_state_and_differs_from_float32(build_step: BuildStep) -> None:
    low, full = build_step("precision=bf16"), build_step()
    low_scalars, full_scalars = low.take(), full.take()

    assert {value.dtype for value in low.state.generator.state_dict().values()} <= {torch.float32, torch.int64}
    assert {value.dtype for value in low_scalars.values()} == {torch.float32}
    assert low_scalars["loss/discriminator"] != full_scalars["loss/discriminator"]
    # bfloat16 has 8 bits of mantissa: a relative error of 1/256 for each of the few layers.
    torch.testing.assert_close(low_scalars["loss/discriminator"], full_scalars["loss/discriminator"], rtol=0.02, atol=0)


def test_scores_are_described_by_their_order_and_their_spread() -> None:
    real, fake = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([0.0, 2.0, 4.0, -1.0])
    told = {name: float(value) for name, value in describe_scores(real, fake).items()}
    alike = describe_scores(torch.zeros(3), torch.zeros(3))

    assert told["score/accuracy"] == (1 + 0.5 + 0 + 1) / 4
    values = [1, 2, 3, 0, 0, 2, 4, -1]
    mean = sum(values) / 8
    assert told["score/spread"] == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in values) / 7))
    assert (alike["score/accuracy"], alike["score/spread"]) == (0.5, 0)


def test_a_state_of_another_network_is_refused_and_nothing_of_it_taken(build_step: BuildStep) -> None:
    step, wider = build_step(), build_step("architecture.width=8")
    before = state_digest(step.state.state_dict())

    with pytest.raises(ValueError, match=r"body.0.layer.weight is float32 \[8, 1, 4, 4\], not float32 \[4, 1, 4, 4\]"):
        step.state.load_state_dict(wider.state.state_dict())
    with pytest.raises(ValueError, match="averaged is a OrderedDict, not nothing"):
        step.state.load_state_dict(build_step("ema.decay=0.9").state.state_dict())
    assert state_digest(step.state.state_dict()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("averaged"), "averaged: there on one side only"),
        (lambda state: state.update(step=-1), "step is -1"),
        (lambda state: state.update(images_seen=True), "images_seen is a bool, not a int"),
        (lambda state: state.update(generator=[]), "generator is a list, not the state of a network"),
        (lambda state: state["generator"].popitem(), "is absent, not"),
        (lambda state: state["generator"].update(more=torch.zeros(1)), r"generator.more is float32 \[1\], not absent"),
        (lambda state: state["generator_optimizer"]["state"].popitem(), "generator_optimizer is of"),
        (lambda state: state["generator_optimizer"]["state"][0].update(exp_avg=torch.zeros(2)), "0.exp_avg is float32"),
        (lambda state: state["generator_optimizer"]["state"][0].update(exp_avg="more"), "0.exp_avg is a str"),
        (lambda state: state["generator_optimizer"].update(state={}), "generator_optimizer is of 0 parameters, not 14"),
        (
            lambda state: state["generator_optimizer"]["state"][0].pop("exp_avg_sq"),
            "generator_optimizer.0 has step, exp_avg, not exp_avg, exp_avg_sq, step",
        ),
        (lambda state: state["generator_optimizer"].update(state=[]), "generator_optimizer is a dict, not the state"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(
    build_step: BuildStep, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    step = build_step()
    step.take()
    state = copy.deepcopy(step.state.state_dict())
    change(state)

    with pytest.raises(ValueError, match=message):
        step.state.load_state_dict(state)


def test_of_an_optimizer_the_moments_are_taken_and_the_settings_kept(build_step: BuildStep) -> None:
    old, new = build_step(), build_step("optimizer.betas=[0.0,0.9]")
    old.take()
    new.state.load_state_dict(old.state.state_dict())

    before, after = (step.state.generator_optimizer.state_dict() for step in (old, new))
    assert state_digest(before["state"]) == state_digest(after["state"])
    assert after["param_groups"][0]["betas"] == (0.0, 0.9)
