"""What is said of a run's size before it begins is what it then takes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from normlab import assemble, footprint
from normlab.composition import configure
from normlab.networks import ImageSpec
from normlab.training.state import TrainState


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)


def stepped(state: TrainState) -> TrainState:
    for network, optimizer in (
        (state.generator, state.generator_optimizer),
        (state.discriminator, state.discriminator_optimizer),
    ):
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    return state


@pytest.mark.parametrize(
    "words",
    [
        ["optimizer=adam"],
        ["optimizer=adamw", "ema.decay=0.9"],
        ["optimizer=rmsprop"],
        ["optimizer=sgd"],
        ["optimizer=sgd", "optimizer.momentum=0.9"],
        ["normalization=both/spectral_gamma"],
    ],
)
def test_a_checkpoint_is_as_large_as_was_foretold(words: list[str]) -> None:
    config, complaints = configure([*words, "architecture.width=4"])
    assert not complaints
    image = ImageSpec(1, 32, 32, 10)
    state = stepped(assemble.build_state(config, image, torch.device("cpu")))
    held = sum(tensor.nbytes for tensor in tensors(state.state_dict()))
    assert footprint.checkpoint_bytes(config, image) == held
