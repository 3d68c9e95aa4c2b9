"""What the layers of a network are before the first update."""

from typing import Any

import torch
from torch import Tensor, nn

from normlab.networks.network import Network
from normlab.normalizations.base import as_matrix, output_dimension


@torch.no_grad()
def describe_layers(network: Network, network_name: str, input: Tensor) -> list[dict[str, Any]]:
    """Return a row per weight layer, in the order of the pass, for `layers.json`.

    technique: its name, or null with the reason in `exempt`.  sigma: the largest singular value of the effective weight
    as [output channels, all else].  scale: the root mean square of its entries.  spread: the standard deviation of the
    layer's output, behind its activation norm, over a training pass on `input`. Nothing of the network moves.
    """
    spreads: dict[str, float] = {}

    def note_spread(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            spreads[name] = float(output.detach().float().std())

        return hook

    hooks = [layer.register_forward_hook(note_spread(name)) for name, layer in network.layers()]
    with network.frozen_statistics():
        network(input)
    for hook in hooks:
        hook.remove()

    rows: list[dict[str, Any]] = []
    for name, layer in network.layers():
        weight = layer.effective_weight().float()
        matrix = as_matrix(weight, output_dimension(layer.layer))
        rows.append(
            {
                "network": network_name,
                "layer": name,
                "kind": type(layer.layer).__name__,
                "shape": list(weight.shape),
                "output_size": layer.place.size,
                "technique": layer.technique,
                "exempt": layer.exempt,
                "sigma": float(torch.linalg.matrix_norm(matrix, ord=2)),
                "scale": float(weight.square().mean().sqrt()),
                "spread": spreads[name],
            }
        )
    return rows
