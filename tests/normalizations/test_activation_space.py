"""Batch, instance, layer and group normalization: their statistics, their exemptions, their precision."""

import pytest
import torch

from normlab.normalizations import TECHNIQUES
from normlab.normalizations.activation import BatchNorm
from normlab.normalizations.base import Exempt, Place
from normlab.settings import Misfit

HIDDEN = Place("discriminator", "hidden", 8, 6)
# Over which dimensions of [n, c, h, w], the channels split in (group, within), each technique takes its statistics.
OVER = {"batch": (0, 3, 4), "instance": (3, 4), "layer": (1, 2, 3, 4), "group": (2, 3, 4)}


def activation(name: str, place: Place = HIDDEN) -> torch.nn.Module:
    module = TECHNIQUES.build(name, {"channels_per_group": 4} if name == "group" else {}).activation(place)
    assert isinstance(module, torch.nn.Module)
    return module


@pytest.mark.parametrize("name", OVER)
def test_statistics_over_the_right_dimensions_become_0_and_1(name: str) -> None:
    images = 3 + 2 * torch.randn(16, 8, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    output = activation(name).double()(images).double().unflatten(1, (2, 4))

    mean, variance = output.mean(OVER[name]), output.var(OVER[name], correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-12, rtol=0)
    torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-4, rtol=0)  # eps 1e-5 of a variance of 4


@pytest.mark.parametrize("name", OVER)
def test_every_one_has_a_gain_and_a_bias_per_channel(name: str) -> None:
    assert {key: tuple(value.shape) for key, value in activation(name).named_parameters()} == {
        "weight": (8,),
        "bias": (8,),
    }


@pytest.mark.parametrize("name", OVER)
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (Place("generator", "last", 3, 32), "last layer of the generator"),
        (Place("discriminator", "last", 1, 1), "last layer of the discriminator"),
        (Place("discriminator", "first", 8, 16), "first layer of the discriminator"),
    ],
)
def test_exempt_places_say_why(name: str, place: Place, reason: str) -> None:
    assert TECHNIQUES.build(name, {}).activation(place) == Exempt(reason)


def test_statistics_over_a_single_value_are_not_taken() -> None:
    place = Place("generator", "hidden", 8, 1)
    assert TECHNIQUES.build("instance", {}).activation(place) == Exempt("1x1 map")
    assert TECHNIQUES.build("group", {"channels_per_group": 1}).activation(place) == Exempt("1x1 map and group")
    for name in ("batch", "layer"):
        assert isinstance(TECHNIQUES.build(name, {}).activation(place), torch.nn.Module)


@pytest.mark.parametrize("name", [*OVER, "weight", "spectral", "adaptive"])
def test_exemptions_can_be_given(name: str) -> None:
    technique = TECHNIQUES.build(name, {"exempt": ["hidden"], **({"channels_per_group": 4} if name == "group" else {})})
    layer = torch.nn.Conv2d(3, 8, 3)
    for position in ("first", "hidden", "last"):
        place = Place("generator", position, 8, 6)
        found = technique.activation(place) if name in OVER else technique.weight(layer, place)
        assert (found == Exempt("hidden layer of the generator")) == (position == "hidden")
        assert isinstance(found, torch.nn.Module) == (position != "hidden")


def test_layer_norm_has_gains_per_element_if_asked() -> None:
    module = TECHNIQUES.build("layer", {"gains": "element"}).activation(HIDDEN)
    assert isinstance(module, torch.nn.Module)
    images = torch.randn(4, 8, 6, 6)

    assert {tuple(value.shape) for value in module.parameters()} == {(8, 6, 6)}
    torch.testing.assert_close(module(images), torch.nn.LayerNorm([8, 6, 6])(images))


def test_conditional_batch_norm_is_batch_norm_with_the_gain_and_bias_of_each_label() -> None:
    place = Place("generator", "hidden", 8, 6, classes=3)
    module = TECHNIQUES.build("conditional_batch", {}).activation(place)
    assert isinstance(module, torch.nn.Module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    images, labels = torch.randn(6, 8, 6, 6), torch.tensor([0, 1, 2, 2, 1, 0])
    output = module(images, labels)
    plain = torch.nn.BatchNorm2d(8, affine=False)(images)

    for image, label in enumerate(labels):
        expected = module.gain[label][:, None, None] * plain[image] + module.bias[label][:, None, None]
        torch.testing.assert_close(output[image], expected)


@pytest.mark.parametrize("name", OVER)
def test_the_first_layer_of_the_generator_is_not_exempt(name: str) -> None:
    assert isinstance(TECHNIQUES.build(name, {}).activation(Place("generator", "first", 16, 4)), torch.nn.Module)


@pytest.mark.parametrize("name", OVER)
def test_normalization_is_in_float32_under_bfloat16(name: str) -> None:
    images = 100 + torch.randn(16, 8, 6, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    module = activation(name)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(images)

    exact = module(images.float())
    # Batch normalization alone hands on the bfloat16 that the next layer would make of it; not a bit may differ.
    assert output.dtype == (torch.bfloat16 if name == "batch" else torch.float32)
    torch.testing.assert_close(output, exact.to(output.dtype), **({"rtol": 0, "atol": 0} if name == "batch" else {}))


def test_frozen_statistics_are_used_and_do_not_move() -> None:
    norm = BatchNorm(4)
    images = 5 + torch.randn(8, 4, 3, 3)
    moving = norm(images)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    norm.moving_statistics = False
    frozen = norm(images)

    torch.testing.assert_close(frozen, moving)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    assert before["running_mean"].abs().min() > 0.1


def test_groups_that_do_not_divide_a_layer_are_refused() -> None:
    with pytest.raises(Misfit, match="channels_per_group=16 does not divide a layer of 24 channels"):
        TECHNIQUES.build("group", {}).activation(Place("generator", "hidden", 24, 8))
