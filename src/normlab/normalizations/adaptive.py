"""Adaptive weight normalization: lengths that follow their own gradient, outside the optimizer."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

from normlab.normalizations.base import (
    TECHNIQUES,
    Elapsed,
    Position,
    Technique,
    WeightLayer,
    channels_of,
    output_dimension,
    technique_of_weights,
)
from normlab.normalizations.weight import GivenLengths, lengths, slopes
from normlab.settings import Horizon, Misfit, NonNegativeFloat, PositiveFloat

Mode = Literal["descent", "ascent", "grad_norm", "learned"]
Granularity = Literal["channel", "layer"]
Decay = Literal["constant", "linear", "cosine"]

# kappa(t): what is left of alpha when the part t of the horizon has passed.
DECAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": torch.ones_like,
    "linear": lambda t: 1 - t,
    "cosine": lambda t: 0.5 * (1 + torch.cos(math.pi * t)),
}


class AdaptiveWeightNorm(GivenLengths):
    """W_k -> S_k V_k with V_k = W_k / |W_k|, where S moves by its own rule and V by the optimizer (Mishra 2019).

    With G the gradient of the loss with respect to the effective weight, and kappa(t) a decay over the training's
    progress, once per update of the own network and at the S and V of the pass:

        descent    S_k <- S_k - alpha kappa(t) <G_k, V_k>, which is gradient descent on S
        ascent     S_k <- S_k + alpha kappa(t) <G_k, V_k>, the sign as it stands in the paper
        grad_norm  S_k <- S_k + alpha kappa(t) |G_k|
        learned    S_k is a parameter of the optimizer, at the learning rate alpha

    and after the update S is clamped to its bounds. k counts output channels; or a layer has one S, and V length 1.
    """

    def __init__(
        self,
        layer: WeightLayer,
        *,
        alpha: float,
        mode: Mode,
        granularity: Granularity,
        decay: Decay,
        horizon: Horizon,
        init: float,
        bounds: tuple[float | None, float | None],
    ) -> None:
        super().__init__(output_dimension(layer) if granularity == "channel" else None)
        self.alpha, self.decay, self.horizon = alpha, DECAYS[decay], horizon
        self.mode = mode
        self.init, self.bounds = init, bounds
        count = 1 if self.dimension is None else channels_of(layer)
        # One that requires no gradient is left alone by the optimizer, and still averaged over updates.
        self.S = nn.Parameter(torch.full((count,), init, dtype=layer.weight.dtype), requires_grad=mode == "learned")
        self.uses_gradient = mode != "learned"
        self.learning_rate = alpha if mode == "learned" else None

    @torch.no_grad()
    def reset(self, weight: Tensor, rng: torch.Generator) -> None:
        self.S.fill_(self.init)

    def wanted(self) -> Tensor:
        return self.S

    def adapt(self, weight: Tensor, gradient: Tensor, elapsed: Elapsed) -> None:
        self.adapt_all([self], [weight], [gradient], elapsed)

    @classmethod
    def adapt_all(
        cls,
        parts: Sequence["AdaptiveWeightNorm"],
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        elapsed: Elapsed,
    ) -> None:
        rule, dimensions = parts[0], [part.dimension for part in parts]
        if rule.mode == "grad_norm":
            slope = lengths(gradients, dimensions)
        else:
            slope = slopes(weights, gradients, dimensions) / lengths(weights, dimensions)
        sign = -1.0 if rule.mode == "descent" else 1.0
        changes = sign * rule.alpha * rule.decay(elapsed(rule.horizon)) * slope
        scales = [part.S for part in parts]
        torch._foreach_add_(scales, changes.split([len(S) for S in scales]))  # pyright: ignore

    def advance(self, weight: Tensor) -> None:
        self.advance_all([self], [weight])

    @classmethod
    def advance_all(cls, parts: Sequence["AdaptiveWeightNorm"], weights: Sequence[Tensor]) -> None:
        scales, (least, most) = [part.S for part in parts], parts[0].bounds
        if least is not None:
            torch._foreach_clamp_min_(scales, least)  # pyright: ignore
        if most is not None:
            torch._foreach_clamp_max_(scales, most)  # pyright: ignore


class Rule(TypedDict):
    """How S moves; `AdaptiveWeightNorm` says what each setting is."""

    alpha: float
    mode: Mode
    granularity: Granularity
    decay: Decay
    horizon: Horizon
    init: float
    bounds: tuple[float | None, float | None]


def adapting(name: str, exempt: tuple[Position, ...], **rule: Unpack[Rule]) -> Technique:
    """Return the technique that lets the lengths of every layer but those at exempt positions follow a rule.

    Raises Misfit where the lengths would not start within their bounds.
    """
    (least, most), init = rule["bounds"], rule["init"]
    if (least is not None and init < least) or (most is not None and init > most):
        bounds = f"least={'null' if least is None else least} and most={'null' if most is None else most}"
        raise Misfit(f"init={init} does not lie between {bounds}", "move it, or the bounds")
    bounded = rule["alpha"] == 0 or rule["bounds"][1] is not None
    return technique_of_weights(name, lambda layer, place: AdaptiveWeightNorm(layer, **rule), exempt, bounded=bounded)


@TECHNIQUES.register("adaptive")
def adaptive(
    *,
    alpha: NonNegativeFloat = 0.01,
    mode: Mode = "descent",
    granularity: Granularity = "channel",
    decay: Decay = "linear",
    horizon: Horizon = None,
    init: PositiveFloat = 1.0,
    least: PositiveFloat | None = 1e-3,
    most: PositiveFloat | None = None,
    exempt: tuple[Position, ...] = (),
) -> Technique:
    """Adaptive weight normalization: lengths descend their own gradient at their own rate (our reading of Mishra 2019).

    With alpha 0 the lengths stay, which is the control for any effect of adaptation. Lengths that are `learned` follow
    the optimizer's schedule, and neither decay nor horizon.
    """
    return adapting(
        "adaptive",
        exempt,
        alpha=alpha,
        mode=mode,
        granularity=granularity,
        decay=decay,
        horizon=horizon,
        init=init,
        bounds=(least, most),
    )


@TECHNIQUES.register("adaptive_literal")
def adaptive_literal(
    *,
    alpha: NonNegativeFloat = 0.01,
    mode: Mode = "ascent",
    granularity: Granularity = "layer",
    decay: Decay = "constant",
    horizon: Horizon = None,
    init: PositiveFloat = 0.1,
    least: PositiveFloat | None = None,
    most: PositiveFloat | None = None,
    exempt: tuple[Position, ...] = (),
) -> Technique:
    """Adaptive weight normalization to the letter: S_new = S_old + alpha <gradient, V>, from 0.1 (Mishra 2019, 4.1).

    Without batch normalization beside it a network of four layers starts with scores that differ by about 1e-8: it is
    dead.
    """
    return adapting(
        "adaptive_literal",
        exempt,
        alpha=alpha,
        mode=mode,
        granularity=granularity,
        decay=decay,
        horizon=horizon,
        init=init,
        bounds=(least, most),
    )
