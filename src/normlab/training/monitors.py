"""What the layers of a network are before the first update."""

from typing import Any

import torch
from torch import Tensor, nn

from normlab.networks.network import Network
from normlab.normalizations.base import as_matrix, output_dimension
from normlab.normalizations.maps import Pair
from normlab.training.spectra import operator_norm, singular_values, watching


@torch.no_grad()
def describe_layers(network: Network, network_name: str, input: Tensor) -> list[dict[str, Any]]:
    """Return a row per weight layer, in the order of the pass, for `layers.json`.

    technique: its name, or null with the reason in `exempt`.  sigma: the largest singular value of the effective weight
    as [output channels, all else].  operator_norm: that of what the layer does to its input, its bias apart.  scale:
    the root mean square of the weight's entries.  spread: the standard deviation of the layer's output, behind its
    activation norm, over a training pass on `input`. Nothing of the network moves.
    """
    spreads: dict[nn.Module, float] = {}
    sizes: dict[nn.Module, Pair] = {}

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        spreads[module] = float(output.detach().float().std())
        sizes[module] = inputs[0].shape[2:]

    with watching([layer for _, layer in network.layers()], note), network.frozen_statistics():
        network(input)

    rows: list[dict[str, Any]] = []
    for name, layer in network.layers():
        weight = layer.effective_weight().float()
        sigma = singular_values(as_matrix(weight, output_dimension(layer.layer)).double())[0]
        norm = operator_norm(layer.layer, weight, sizes[layer], sigma)
        rows.append(
            {
                "network": network_name,
                "layer": name,
                "kind": type(layer.layer).__name__,
                "shape": list(weight.shape),
                "output_size": layer.place.size,
                "technique": layer.technique,
                "exempt": layer.exempt,
                "sigma": float(sigma),
                "operator_norm": None if norm is None else float(norm),
                "scale": float(weight.square().mean().sqrt()),
                "spread": spreads[layer],
            }
        )
    return rows
