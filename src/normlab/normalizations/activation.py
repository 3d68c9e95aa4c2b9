"""Techniques that follow a layer: none at all, and batch, instance, layer and group normalization.

All work in float32 whatever the precision of the layers around them, with a gain and a bias per channel and eps 1e-5.
They skip what the literature skips: the last layer of either network (its output is the image or the score), the first
layer of the discriminator (it sees the image; Radford et al. 2016, section 3), and maps of 1x1, where a statistic over
the map is a statistic over a single value.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from normlab.normalizations.base import TECHNIQUES, Exempt, Place, Technique
from normlab.settings import Misfit, PositiveInt


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization (Ioffe & Szegedy 2015); statistics over images and map, running ones with momentum 0.1.

    While `moving_statistics` is off, training passes use the batch's statistics without moving the running ones: the
    pass belongs to the other network's update.
    """

    moving_statistics = True

    def forward(self, input: Tensor) -> Tensor:
        if self.training and not self.moving_statistics:
            return F.batch_norm(
                input.to(self.weight.dtype), None, None, self.weight, self.bias, training=True, eps=self.eps
            )
        return super().forward(input.to(self.weight.dtype))


class InstanceNorm(nn.InstanceNorm2d):
    """Instance normalization (Ulyanov et al. 2016); statistics over the map of each image and channel.

    With a gain and a bias, unlike torch's default: without them a generator loses the mean of each channel for good.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


class GroupNorm(nn.GroupNorm):
    """Group normalization (Wu & He 2018); statistics over the map and a group of channels of each image."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


def where_usual(build: Callable[[int], nn.Module]) -> Callable[[Place], nn.Module | Exempt]:
    """Return the module for a number of channels at every place but the exempt ones of this file's first paragraph."""

    def activation(place: Place) -> nn.Module | Exempt:
        if place.position == "last" or (place.network == "discriminator" and place.position == "first"):
            return Exempt(f"{place.position} layer of the {place.network}")
        if place.size == 1:
            return Exempt("1x1 map")
        return build(place.channels)

    return activation


@TECHNIQUES.register("none")
def none() -> Technique:
    """No normalization: plain layers."""
    return Technique(name="none")


@TECHNIQUES.register("batch")
def batch() -> Technique:
    """Batch normalization (Ioffe & Szegedy 2015)."""
    return Technique(name="batch", activation=where_usual(BatchNorm))


@TECHNIQUES.register("instance")
def instance() -> Technique:
    """Instance normalization with gain and bias (Ulyanov et al. 2016)."""
    return Technique(name="instance", activation=where_usual(InstanceNorm))


@TECHNIQUES.register("layer")
def layer() -> Technique:
    """Layer normalization over channels and map, a gain and a bias per channel (Ba et al. 2016).

    A group normalization of one group: the form of the GAN literature, whose gains do not depend on the map's size.
    """
    return Technique(name="layer", activation=where_usual(lambda channels: GroupNorm(1, channels)))


@TECHNIQUES.register("group")
def group(*, channels_per_group: PositiveInt = 16) -> Technique:
    """Group normalization (Wu & He 2018), 16 channels to a group as in their section 4.

    Raises Misfit where a layer's channels do not divide into such groups.
    """

    def build(channels: int) -> nn.Module:
        if channels % channels_per_group:
            raise Misfit(
                f"channels_per_group={channels_per_group} does not divide a layer of {channels} channels",
                "choose a divisor of every layer's channels, or another width",
            )
        return GroupNorm(channels // channels_per_group, channels)

    return Technique(name="group", activation=where_usual(build))
