"""Convolutions as the linear maps of images that they are."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, ...]  # of rows and of columns


@dataclass(frozen=True)
class Convolution:
    """What a convolution, or a transposed one, makes of images [n, c, h, w] of one size, without its bias.

    rest: the rows and columns of the larger of both images that the stride leaves over, which the map to it must add.
    """

    transposed: bool
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    rest: Pair

    @classmethod
    def of(cls, layer: nn.Conv2d | nn.ConvTranspose2d, size: Pair) -> "Convolution":
        """Return the map of a layer whose input has that height and width, and that pads with a number of zeros."""
        assert not isinstance(layer.padding, str)
        if isinstance(layer, nn.ConvTranspose2d):
            rest = tuple(layer.output_padding)
        else:
            axes = zip(size, layer.padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
            rest = tuple((n + 2 * p - d * (k - 1) - 1) % s for n, p, d, k, s in axes)
        transposed = isinstance(layer, nn.ConvTranspose2d)
        return cls(transposed, layer.stride, layer.padding, layer.dilation, layer.groups, rest)

    def forth(self, image: Tensor, weight: Tensor) -> Tensor:
        return self._up(image, weight) if self.transposed else self._down(image, weight)

    def back(self, image: Tensor, weight: Tensor) -> Tensor:
        """Return the adjoint of the map, that by which <y, A x> = <A' y, x>, of an image of the output's size."""
        return self._down(image, weight) if self.transposed else self._up(image, weight)

    def _down(self, image: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(image, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def _up(self, image: Tensor, weight: Tensor) -> Tensor:
        return F.conv_transpose2d(image, weight, None, self.stride, self.padding, self.rest, self.groups, self.dilation)
