"""The parts that architectures share."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlab.networks.blocks import Downsample, Upsample


def repeated(input: Tensor) -> Tensor:
    return input.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def averaged(input: Tensor) -> Tensor:
    return F.conv2d(input.flatten(0, 1)[:, None], torch.full((1, 1, 2, 2), 0.25).to(input), stride=2).unflatten(
        0, input.shape[:2]
    )[:, :, 0]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("module", "plain"), [(Upsample(), repeated), (Downsample(), averaged)])
def test_maps_are_doubled_and_halved_with_their_first_and_second_gradients(
    module: nn.Module, plain: nn.Module, memory_format: torch.memory_format
) -> None:
    rng = torch.Generator().manual_seed(0)
    input = torch.randn(1, 2, 2, 4, generator=rng, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    output = module(input)
    torch.testing.assert_close(output, plain(input))
    assert output.is_contiguous(memory_format=memory_format)

    def slope(function: nn.Module) -> tuple[Tensor, Tensor]:
        (first,) = torch.autograd.grad(function(input).pow(3).sum(), input, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), input)
        return first, second

    torch.testing.assert_close(slope(module), slope(plain))
    assert torch.autograd.gradgradcheck(module, input)
