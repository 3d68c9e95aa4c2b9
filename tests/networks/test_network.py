"""What holds for every network under every technique."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from normlab.networks import ARCHITECTURES, ImageSpec, Network
from normlab.networks.initialisation import INITIALISATIONS, initialise
from normlab.normalizations import TECHNIQUES
from normlab.normalizations.activation import BatchNorm

SHAPE = (1, 32, 32)
DCGAN = INITIALISATIONS.build("dcgan", {})
# Those that both networks take without labels.
ALL = [name for name in TECHNIQUES.names() if name not in ("conditional_batch", "gradient")]


def pair(technique: str, width: int = 16, shape: tuple[int, int, int] = SHAPE) -> tuple[Network, Network]:
    architecture = ARCHITECTURES.build("dcgan", {"width": width}, ImageSpec(*shape))
    networks = (
        architecture.generator(TECHNIQUES.build(technique, {})),
        architecture.discriminator(TECHNIQUES.build(technique, {})),
    )
    for network, purpose in zip(networks, ("generator", "discriminator"), strict=True):
        initialise(network, DCGAN, 0, purpose)
    return networks


def latents(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 100, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [32, 40, 48, 56, 64, 80, 96, 112, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_scores_have_the_right_shapes(size: int, channels: int) -> None:
    generator, discriminator = pair("none", 2, (channels, size, size))
    images = generator(latents())

    assert images.shape == (4, channels, size, size)
    assert images.abs().max() <= 1
    assert discriminator(images).shape == (4,)


@pytest.mark.parametrize(("size", "depth"), [(32, 4), (48, 4), (64, 5), (96, 5), (128, 6)])
def test_depth_follows_the_size(size: int, depth: int) -> None:
    assert [len(list(network.layers())) for network in pair("none", 2, (1, size, size))] == [depth, depth]


@pytest.mark.parametrize("technique", ALL)
def test_shared_parameters_are_drawn_alike_under_every_technique(technique: str) -> None:
    for network, reference in zip(pair(technique), pair("none"), strict=True):
        parameters = dict(network.named_parameters())
        # weight_translated has no biases in most layers.
        shared = [(value, parameters[name]) for name, value in reference.named_parameters() if name in parameters]
        assert all(torch.equal(value, own) for value, own in shared)
        assert len(shared) >= len(list(network.layers()))


def test_initial_weights_follow_dcgan() -> None:
    generator, _ = pair("batch", width=64)
    weights = torch.cat([layer.layer.weight.flatten() for _, layer in generator.layers()])
    gains = torch.cat([module.weight for module in generator.modules() if isinstance(module, BatchNorm)])

    # Of 2.9 million weights and 448 gains, 5 standard errors.
    assert weights.mean().abs() < 5 * 0.02 / len(weights) ** 0.5
    assert abs(weights.std() / 0.02 - 1) < 5 / (2 * len(weights)) ** 0.5
    assert (gains.mean() - 1).abs() < 5 * 0.02 / len(gains) ** 0.5
    assert abs(gains.std() / 0.02 - 1) < 5 / (2 * len(gains)) ** 0.5


@pytest.mark.parametrize("technique", ALL)
def test_a_gradient_reaches_every_parameter_of_both_networks(technique: str) -> None:
    generator, discriminator = pair(technique)
    discriminator(generator(latents(8))).square().sum().backward()
    parameters = [*generator.named_parameters(), *discriminator.named_parameters()]

    assert [name for name, parameter in parameters if parameter.requires_grad and parameter.grad is None] == []


@pytest.mark.parametrize("technique", ALL)
def test_a_pass_with_effective_weights_equals_one_without(technique: str) -> None:
    generator, discriminator = pair(technique)
    images = generator(latents(), generator.effective_weights())

    torch.testing.assert_close(images, generator(latents()))
    torch.testing.assert_close(discriminator(images, discriminator.effective_weights()), discriminator(images))


@pytest.mark.parametrize("technique", ALL)
def test_no_pass_moves_what_belongs_to_a_weight(technique: str) -> None:
    for network, input in zip(pair(technique), (latents(), torch.randn(4, *SHAPE)), strict=True):
        statistics = {name for name, module in network.named_modules() if isinstance(module, BatchNorm)}
        before = copy.deepcopy(network.state_dict())
        network(input)
        after = network.state_dict()

        assert all(torch.equal(after[k], before[k]) for k in before if k.rpartition(".")[0] not in statistics)


@pytest.mark.parametrize("technique", [name for name in ALL if "weight" in name or "spectral" in name])
def test_every_layer_of_both_networks_is_reparametrized(technique: str) -> None:
    for network in pair(technique):
        names = {f"{name}.layer.weight" for name, _ in network.layers()}

        assert set(network.effective_weights()) == names


@pytest.mark.parametrize("technique", ALL)
def test_state_survives_saving_loading_and_copying(technique: str) -> None:
    for network, other in zip(pair(technique), pair(technique), strict=True):
        input = latents() if hasattr(network, "latent_size") else torch.randn(4, *SHAPE)
        network(input)
        network.advance()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(torch.rand_like(parameter))  # a network of the same seed would fit unloaded
        assert not torch.allclose(other.eval()(input), network.eval()(input))
        other.load_state_dict(network.state_dict())

        expected = network(input)
        torch.testing.assert_close(other(input), expected)
        torch.testing.assert_close(copy.deepcopy(network)(input), expected)


def test_double_backward_passes_through_the_effective_weights() -> None:
    _, discriminator = pair("spectral")
    images = torch.randn(4, *SHAPE, requires_grad=True)
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    gradient.square().sum().backward()

    weights = [layer.layer.weight for _, layer in discriminator.layers()]
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in weights)


def test_a_technique_may_wrap_the_whole_network() -> None:
    halved = replace(TECHNIQUES.build("none", {}), output=lambda network: lambda input: network(input) / 2)
    architecture = ARCHITECTURES.build("dcgan", {"width": 4}, ImageSpec(*SHAPE))
    plain, wrapped = architecture.discriminator(TECHNIQUES.build("none", {})), architecture.discriminator(halved)
    for network in (plain, wrapped):
        initialise(network, DCGAN, 0, "discriminator")
    images = torch.randn(4, *SHAPE)

    torch.testing.assert_close(wrapped(images), plain(images) / 2)


def test_batch_norm_statistics_stay_out_of_the_other_networks_update() -> None:
    generator, _ = pair("batch")
    norm = next(module for module in generator.modules() if isinstance(module, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    with generator.frozen_statistics():
        generator(latents())
    frozen = norm.running_mean.clone()
    generator(latents())

    assert torch.equal(before, frozen)
    assert not torch.equal(before, norm.running_mean)
