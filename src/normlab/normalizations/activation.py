"""Techniques that follow a layer: none at all, and batch, conditional batch, instance, layer and group normalization.

All compute in float32 whatever the precision around them, with a gain and a bias per channel and eps 1e-5.
Unless `exempt` says otherwise they skip what the literature skips: the last layer of the generator, whose output is the
image, and the first layer of the discriminator, which sees it (Radford et al. 2016, section 3). Behind the last layer
of the discriminator they never stand: normalized, a single score would be a constant.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlab.normalizations.base import TECHNIQUES, Exempt, Labelled, Place, Position, Technique, exempt_position
from normlab.settings import Misfit, PositiveInt


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization (Ioffe & Szegedy 2015); statistics over images and map, running ones with momentum 0.1.

    While `moving_statistics` is off, training passes use the batch's statistics without moving the running ones: the
    pass belongs to the other network's update. Of bfloat16 it computes in float32 as well, and gives back bfloat16,
    which the next layer would make of it in any case: that is half of what has to be moved.

    stacked: from a tensor to those of all processes that share a batch, [processes, ...], through which gradients pass:
    the statistics of training passes are then of the whole batch. None where there is only this process, or statistics
    are its own.
    """

    moving_statistics = True
    stacked: Callable[[Tensor], Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None
        if self.training and self.stacked is not None:
            output = self._over_all(input.to(self.running_mean.dtype), self.stacked)
            return output.bfloat16() if input.dtype == torch.bfloat16 else output
        if input.dtype != torch.bfloat16:
            input = input.to(self.running_mean.dtype)
        if self.training and not self.moving_statistics:
            return F.batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(input)

    def _over_all(self, input: Tensor, stacked: Callable[[Tensor], Tensor]) -> Tensor:
        # The variance of all is the mean of the variances plus the variance of the means, of parts that are as large.
        variances, means = stacked(torch.stack(torch.var_mean(input, (0, 2, 3), correction=0))).unbind(1)
        mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        if self.moving_statistics:
            self._move(mean.detach(), variance.detach(), len(means) * input.numel() // input.shape[1])
        scale = (variance + self.eps).rsqrt()
        centred = (input - mean[:, None, None]) * scale[:, None, None]
        return centred * self.weight[:, None, None] + self.bias[:, None, None] if self.affine else centred

    def _move(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        self.num_batches_tracked.add_(1)


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


class ConditionalBatchNorm(Labelled):
    """Batch normalization with a gain and a bias for each label (Dumoulin et al. 2017; Miyato & Koyama 2018).

    The statistics are of the whole batch, whatever its labels.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.normalize = BatchNorm(channels, affine=False)
        self.gain = nn.Parameter(torch.ones(classes, channels))
        self.bias = nn.Parameter(torch.zeros(classes, channels))

    def forward(self, input: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        gain, bias = (table[labels][:, :, None, None] for table in (self.gain, self.bias))
        return gain * self.normalize(input.to(gain.dtype)) + bias


class ElementwiseLayerNorm(nn.LayerNorm):
    """Layer normalization with a gain and a bias for each element of the map (Ba et al. 2016, to the letter)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__([channels, size, size])

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


# The modules whose gains an initialisation draws.
GAINED = (BatchNorm, ConditionalBatchNorm, InstanceNorm, GroupNorm, ElementwiseLayerNorm)
Exemptions = tuple[Position, ...] | None


def where_usual(
    build: Callable[[Place], nn.Module | Exempt], exempt: Exemptions = None
) -> Callable[[Place], nn.Module | Exempt]:
    """Return the module for a place, but for those that are exempt; None is what the literature exempts."""

    def activation(place: Place) -> nn.Module | Exempt:
        usual: tuple[Position, ...] = ("last",) if place.network == "generator" else ("first",)
        never: tuple[Position, ...] = () if place.network == "generator" else ("last",)
        if reason := exempt_position(place, (usual if exempt is None else exempt) + never):
            return reason
        return build(place)

    return activation


@TECHNIQUES.register("none")
def none() -> Technique:
    """No normalization: plain layers."""
    return Technique(name="none")


@TECHNIQUES.register("batch")
def batch(*, exempt: Exemptions = None) -> Technique:
    """Batch normalization (Ioffe & Szegedy 2015)."""
    build = where_usual(lambda place: BatchNorm(place.channels), exempt)
    return Technique(name="batch", activation=build, couples_images=True)


@TECHNIQUES.register("conditional_batch")
def conditional_batch(*, exempt: Exemptions = None) -> Technique:
    """Batch normalization with a gain and a bias for each label (Dumoulin et al. 2017; Miyato & Koyama 2018).

    Raises Misfit where the network is given no labels.
    """

    def build(place: Place) -> nn.Module:
        if place.classes is None:
            raise Misfit(
                "conditional_batch needs labels, and this network is given none",
                "give architecture.conditional=true with a labelled data set and an architecture that has it",
            )
        return ConditionalBatchNorm(place.channels, place.classes)

    return Technique(name="conditional_batch", activation=where_usual(build, exempt), couples_images=True)


@TECHNIQUES.register("instance")
def instance(*, exempt: Exemptions = None) -> Technique:
    """Instance normalization with gain and bias (Ulyanov et al. 2016)."""

    def build(place: Place) -> nn.Module | Exempt:
        # A statistic over the map would be one over a single value.
        return Exempt("1x1 map") if place.size == 1 else InstanceNorm(place.channels)

    return Technique(name="instance", activation=where_usual(build, exempt))


@TECHNIQUES.register("layer")
def layer(*, gains: Literal["channel", "element"] = "channel", exempt: Exemptions = None) -> Technique:
    """Layer normalization over channels and map (Ba et al. 2016), with a gain and a bias per channel or per element.

    Per channel it is a group normalization of one group: the form of the GAN literature, whose gains do not depend on
    the map's size.
    """

    def build(place: Place) -> nn.Module:
        if gains == "element":
            return ElementwiseLayerNorm(place.channels, place.size)
        return GroupNorm(1, place.channels)

    return Technique(name="layer", activation=where_usual(build, exempt))


@TECHNIQUES.register("group")
def group(*, channels_per_group: PositiveInt = 16, exempt: Exemptions = None) -> Technique:
    """Group normalization (Wu & He 2018), 16 channels to a group as in their section 4.

    Raises Misfit where a layer's channels do not divide into such groups.
    """

    def build(place: Place) -> nn.Module | Exempt:
        if channels_per_group * place.size == 1:
            return Exempt("1x1 map and group")
        if place.channels % channels_per_group:
            raise Misfit(
                f"channels_per_group={channels_per_group} does not divide a layer of {place.channels} channels",
                "choose a divisor of every layer's channels, or another width",
            )
        return GroupNorm(place.channels // channels_per_group, place.channels)

    return Technique(name="group", activation=where_usual(build, exempt))
