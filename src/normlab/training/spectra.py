"""What is measured of every layer of both networks, whatever the technique: singular values, norms, gradients.

`measure` is exact, for a row per layer now and then; `estimate` costs next to nothing, for every row of scalars.
Neither moves anything of a network, leaves a gradient behind, or depends on what was measured before.
"""

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlab.data.batches import queued
from normlab.networks.blocks import Score
from normlab.networks.network import Network, NormalizedLayer, Stack
from normlab.normalizations.activation import BatchNorm
from normlab.normalizations.adaptive import AdaptiveWeightNorm
from normlab.normalizations.base import WeightLayer, as_matrix, keep_output, output_dimension
from normlab.normalizations.maps import Convolution, Pair
from normlab.normalizations.spectral import unit
from normlab.normalizations.translated import TranslatedPReLU
from normlab.penalties import Batch
from normlab.randomness import stream
from normlab.training.capture import Scalars
from normlab.training.step import Step

Row = dict[str, Any]

POWER_ITERATIONS, STARTS = 8, 8  # of an estimate
# What the residual of an operator's norm, squared, has to fall below, relative to it, and when that is looked at.
ACCURACY = 1e-3
LOOK_EVERY, MOST_ITERATIONS = 8, 512
NEXT_TO_NOTHING = 1e-8  # of the map's square

# Modules that never move two inputs further apart; LeakyReLU is another if its slope is at most 1.
ONE_LIPSCHITZ = (nn.ReLU, nn.Tanh, nn.Sigmoid, TranslatedPReLU, nn.Flatten, nn.Unflatten, nn.Identity)

OF_A_NETWORK = ("product_bound", "input_gradient/real", "input_gradient/fake", "input_gradient/between")


# --- Exact, for spectra.jsonl ---------------------------------------------------------------------------------------


def measure(step: Step) -> list[Row]:
    """Return a row per layer of both networks, in the order of the pass, each network's after one with `layer` None.

    The passes are those of the update that comes next, but for latents of their own: the next real images, batch
    statistics of the batch, the run's precision. Numbers are floats, None where they are not defined or not finite.
    Those of a layer are of its effective weight W, as [output channels, all else], in float64: in float32 a condition
    number above 1e6 would be one of the decomposition's rounding, and a GPU's convolutions might be in TF32.

    sigma: the largest singular value.  condition_number: over the smallest of all min(rows, columns); None where that
    is 0 to rounding.  stable_rank: |W|_F^2 / sigma^2.  operator_norm: see there.
    row_norm_min, _mean, _max: of the rows of W.  scale_min, _mean, _max: of the lengths S of adaptive techniques.
    folded_gain: see there.  gradient_norm: of the network's own loss, penalties apart, with respect to W (the measure
    of Lin et al. 2021, sections 3 and 4, over depth).

    product_bound: see there.  input_gradient/real, /fake, /between: the mean norm of the gradient of an image's score
    with respect to the image, in float32, at real images, fakes, and uniformly between them, as Gulrajani et al. 2017
    draw them. Batch statistics count as constants there: the share that an image has of them is 1/n.
    """
    generator, discriminator = step.state.generator, step.state.discriminator
    of_generator, of_discriminator = _leaves(generator), _leaves(discriminator)
    sizes: dict[nn.Module, Pair] = {}

    def note_size(module: nn.Module, inputs: Any, output: Tensor) -> None:
        sizes[module] = inputs[0].shape[2:]

    layers = [layer for network in (generator, discriminator) for _, layer in network.layers()]
    with _undisturbed(step), watching(layers, note_size):
        real = step.real_batch(0)
        with step.autocast():
            fake = step.generate("spectra", of_generator)
            scores = discriminator(fake.images, of_discriminator, fake.labels)
        gradients = torch.autograd.grad(step.loss.generator(scores), [*of_generator.values()])
        rows = _rows("generator", generator, of_generator, gradients, sizes)

        fake = Batch(fake.images.detach().float(), fake.labels)
        with step.autocast():
            both = [discriminator(batch.images, of_discriminator, batch.labels) for batch in (real, fake)]
        gradients = torch.autograd.grad(step.loss.discriminator(*both), [*of_discriminator.values()])
        slopes = _input_gradients(step, real, fake, of_discriminator)
        return rows + _rows("discriminator", discriminator, of_discriminator, gradients, sizes, slopes)


def _rows(
    name: str,
    network: Network,
    weights: dict[str, Tensor],
    gradients: Iterable[Tensor],
    sizes: dict[nn.Module, Pair],
    slopes: Scalars | None = None,
) -> list[Row]:
    """Return the rows of a network, given its weights by name, their gradients, and the sizes of the layers' inputs.

    slopes: of a discriminator, its input gradients.
    """
    rows: list[Row] = []
    for (layer_name, layer), weight, gradient in zip(network.layers(), weights.values(), gradients, strict=True):
        values = describe_weight(layer, weight.detach(), sizes[layer])
        rows.append({"network": name, "layer": layer_name, **_plain({**values, "gradient_norm": gradient.norm()})})
    of_network: dict[str, Any] = dict.fromkeys(OF_A_NETWORK)
    if slopes is not None:
        of_network |= {"product_bound": product_bound(network, [row["operator_norm"] for row in rows]), **slopes}
    return [{"network": name, "layer": None, **_plain(of_network)}, *rows]


def describe_weight(layer: NormalizedLayer, weight: Tensor, size: Pair) -> dict[str, Tensor | None]:
    """Return what `measure` tells of an effective weight; `size` is the height and width of the layer's input."""
    W = as_matrix(weight, output_dimension(layer.layer)).double()
    values = singular_values(W)
    sigma, smallest = values[0], values[-1]
    is_zero = smallest <= max(W.shape) * torch.finfo(W.dtype).eps * sigma
    part = layer.reparametrization
    return {
        "sigma": sigma,
        "condition_number": sigma / torch.where(is_zero, 0, smallest),
        "stable_rank": W.square().sum() / sigma.square(),
        "operator_norm": operator_norm(layer.layer, weight, size, sigma),
        **_range("row_norm", W.norm(dim=1)),
        **_range("scale", part.S.detach() if isinstance(part, AdaptiveWeightNorm) else None),
        "folded_gain": folded_gain(layer.activation, W),
    }


def singular_values(W: Tensor) -> Tensor:
    """Return the singular values of a matrix, the largest first; NaN where they are not finite or cannot be found."""
    try:
        return torch.linalg.svdvals(W)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]  # torch documents it
        return W.new_full((min(W.shape),), torch.nan)


def operator_norm(layer: WeightLayer, weight: Tensor, size: Pair, sigma: Tensor) -> Tensor | None:
    """Return the largest singular value of what a layer does to an input of a size, its bias apart.

    That is `sigma` of its weight but for convolutions, whose kernel is at work in many places at once; None where they
    pad with anything but a number of zeros.
    """
    if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return sigma
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return None
    if not weight.isfinite().all():
        return sigma
    W, convolution = weight.double(), Convolution.of(layer, size)
    start = torch.randn(1, layer.in_channels, *size, generator=stream(0, "spectra", "operator"), dtype=torch.float64)
    return largest_singular_value(
        lambda image: convolution.forth(image, W), lambda image: convolution.back(image, W), start.to(W.device)
    )


def largest_singular_value(
    forth: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor], start: Tensor
) -> Tensor:
    """Return the largest singular value of a linear map A that is given with its adjoint, from some input of it.

    By the iteration of Lanczos on A'A: the square root of the largest eigenvalue theta of a tridiagonal matrix that
    grows by a row per iteration, never above the true value, and far nearer to it than as many power iterations. It
    ends where |A'A x - theta x| <= 0.001 theta, so that within 0.05 % there is a singular value; of all layers that
    were held against their dense matrices it was the largest, within 0.01 %. The vectors are not made orthogonal anew,
    which brings copies of values that have converged, and moves none (Paige 1980).
    """
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    before, v = torch.zeros_like(start), unit(start)
    while True:
        image = forth(v)
        diagonal.append(image.square().sum())
        rest = back(image) - diagonal[-1] * v - (beside[-1] * before if beside else 0)
        beside.append(rest.norm())
        before, v = v, unit(rest)
        # Where next to nothing is left, the space is exhausted: what would follow is rounding.
        if len(diagonal) % LOOK_EVERY == 0 or beside[-1] <= NEXT_TO_NOTHING * diagonal[0]:
            off = torch.stack(beside)[:-1]
            theta, vectors = torch.linalg.eigh(torch.stack(diagonal).diag() + off.diag(1) + off.diag(-1))
            residual = beside[-1] * vectors[-1, -1].abs()
            if residual <= ACCURACY * theta[-1] or len(diagonal) >= MOST_ITERATIONS:
                return theta[-1].clamp(min=0).sqrt()


def folded_gain(norm: nn.Module | None, W: Tensor) -> Tensor | None:
    """Return the largest singular value of W with the gain of the batch norm behind it, diag(gamma / std) W.

    std is the root of the running variance, plus eps, which at step 0 is still 1. None where no batch norm follows, or
    one whose gain is of labels. With it a layer has the norm that batch norm leaves it, when its statistics are given.
    """
    if not isinstance(norm, BatchNorm):
        return None
    assert norm.running_var is not None
    gain = (norm.weight.detach() / (norm.running_var + norm.eps).sqrt()).double()
    # Of a linear layer whose rows are brought to a map a channel has as many rows as the map has pixels.
    return singular_values(gain.repeat_interleave(len(W) // len(gain))[:, None] * W)[0]


def product_bound(discriminator: Network, operator_norms: list[float | None]) -> float | None:
    """Return the product of the operator norms, a bound on how fast a score changes with the image, or None.

    It bounds where the layers stand on one path and nothing else on it stretches: ReLU, LeakyReLU with a slope of at
    most 1, tanh, sigmoid and TPReLU (its slope is in [0, 1]) are 1-Lipschitz, and so is what brings values to another
    shape. Activation norms, residual blocks, projections on labels, a technique of the whole network, and modules not
    known here break it. As each norm is a hair below its layer's, the product may be below the true one, by 0.01 % a
    convolution.
    """
    if discriminator.technique.output is not keep_output or not _is_a_path(discriminator.body):
        return None
    norms = [norm for norm in operator_norms if norm is not None]
    return math.prod(norms) if len(norms) == len(operator_norms) else None


def _is_a_path(module: nn.Module) -> bool:
    if isinstance(module, NormalizedLayer):
        return module.activation is None and not isinstance(module.layer, nn.Embedding)
    if isinstance(module, Stack | Score):
        return all(map(_is_a_path, module.children()))
    if isinstance(module, nn.LeakyReLU):
        return abs(module.negative_slope) <= 1
    return isinstance(module, ONE_LIPSCHITZ)


def _input_gradients(step: Step, real: Batch, fake: Batch, weights: dict[str, Tensor]) -> Scalars:
    discriminator = step.state.discriminator
    shape, rng = (len(real.images), 1, 1, 1), stream(step.seed, "spectra", "between", step.state.step)
    share = queued(torch.rand(shape, generator=rng), step.device)
    between = Batch(share * real.images + (1 - share) * fake.images, real.labels)
    slopes: Scalars = {}
    norms = [module for module in discriminator.modules() if isinstance(module, BatchNorm)]
    with watching(norms, _with_constant_statistics):
        for name, (images, labels) in {"real": real, "fake": fake, "between": between}.items():
            images = images.detach().requires_grad_()
            scores = discriminator(images, weights, labels)
            (gradient,) = torch.autograd.grad(scores.float().sum(), images)
            slopes[f"input_gradient/{name}"] = gradient.flatten(1).norm(dim=1).mean()
    return slopes


def _with_constant_statistics(norm: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Return what a batch norm has returned, as a function of each image alone."""
    assert isinstance(norm, BatchNorm)
    (input,) = inputs
    over = [dim for dim in range(input.dim()) if dim != 1]
    variance, mean = torch.var_mean(input.detach(), over, correction=0)
    return F.batch_norm(input, mean, variance, norm.weight, norm.bias, eps=norm.eps)


@torch.no_grad()
def _leaves(network: Network) -> dict[str, Tensor]:
    """Return the effective weight of every layer by the name of its weight, each a leaf that a gradient ends at."""
    return {name: layer.effective_weight().detach().requires_grad_() for name, layer in network.weight_layers()}


@contextmanager
def _undisturbed(step: Step) -> Generator[None]:
    """Let passes of both networks leave no trace: neither in running statistics nor in what modules draw from."""
    devices = [step.device] if step.device.type == "cuda" else []
    frozen = step.state.generator.frozen_statistics, step.state.discriminator.frozen_statistics
    with torch.random.fork_rng(devices=devices), frozen[0](), frozen[1]():
        yield


@contextmanager
def watching(modules: Iterable[nn.Module], hook: Callable[[nn.Module, Any, Tensor], Tensor | None]) -> Generator[None]:
    """Call a forward hook behind each pass of some modules during the block."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _range(name: str, values: Tensor | None) -> dict[str, Tensor | None]:
    what = ("min", "mean", "max")
    return {f"{name}_{each}": None if values is None else getattr(values, each)() for each in what}


def _plain(values: dict[str, Any]) -> Row:
    """Return numbers and tensors of one as floats, those that are not finite as None."""
    numbers = {name: None if value is None else float(value) for name, value in values.items()}
    return {name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()}


# --- Estimated, for metrics.jsonl -----------------------------------------------------------------------------------


@torch.no_grad()
def estimate(step: Step) -> Scalars:
    """Return `sigma/<network>/<layer>` for every layer, on the device, without a wait for it."""
    networks = {"generator": step.state.generator, "discriminator": step.state.discriminator}
    scalars: Scalars = {}
    for network_name, network in networks.items():
        for name, layer in network.layers():
            W = as_matrix(layer.effective_weight(), output_dimension(layer.layer))
            starts = torch.randn(len(W), STARTS, generator=stream(0, "spectra", "estimate"))
            scalars[f"sigma/{network_name}/{name}"] = estimated_sigma(W, queued(starts, step.device))
    return scalars


def estimated_sigma(W: Tensor, starts: Tensor) -> Tensor:
    """Return the largest |W' u| after 8 power iterations from each of some starts [rows, n].

    Never above the largest singular value, and without a state, so that it depends on W alone. Of a Gaussian matrix,
    whose singular values lie close together, it is 1 to 4 % low from 8 starts, from a single one up to 15 %.
    """
    u = F.normalize(starts, dim=0)
    for _ in range(POWER_ITERATIONS):
        u = F.normalize(W @ F.normalize(W.T @ u, dim=0), dim=0)
    return (W.T @ u).norm(dim=0).max()
