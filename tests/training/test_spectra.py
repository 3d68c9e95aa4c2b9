"""What is measured of layers against dense matrices, autograd by hand and closed forms; and that it moves nothing."""

import copy

import pytest
import torch
from torch import Tensor, nn

from normlab import assemble
from normlab.networks import Network
from normlab.networks.blocks import Layers
from normlab.networks.network import NormalizedLayer, Stack
from normlab.normalizations import TECHNIQUES
from normlab.normalizations.adaptive import AdaptiveWeightNorm
from normlab.normalizations.base import Place, WeightLayer
from normlab.outputs.checkpoints import state_digest
from normlab.randomness import stream
from normlab.training import spectra
from normlab.training.step import Step

from .conftest import BuildStep

SIZE = 6  # of the input map
KINDS = ["conv", "strided", "rest", "transposed", "linear"]
TECHNIQUES_OF_WEIGHTS = ["none", "spectral", "spectral_conv", "adaptive", "weight"]


def normalized(kind: str, technique: str) -> NormalizedLayer:
    """Return a layer in float64 under a technique."""
    torch.manual_seed(0)
    layers: dict[str, WeightLayer] = {
        "conv": nn.Conv2d(3, 5, 3, padding=1),
        "strided": nn.Conv2d(3, 5, 4, stride=2, padding=1),
        "rest": nn.Conv2d(3, 5, 2, stride=2, padding=1, dilation=2),  # the stride leaves a row and a column over
        "transposed": nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1),
        "linear": nn.Linear(7, 5),
    }
    size = {"conv": SIZE, "strided": SIZE // 2, "rest": SIZE // 2, "transposed": 2 * SIZE, "linear": 1}[kind]
    place = Place("discriminator", "hidden", 5, size, SIZE)
    layer = NormalizedLayer(layers[kind], TECHNIQUES.build(technique, {}), place).double()
    if layer.reparametrization is not None:
        layer.reparametrization.reset(layer.layer.weight.data, stream(0, "test"))
    return layer


@torch.no_grad()
def dense(layer: NormalizedLayer) -> Tensor:
    """Return the matrix [inputs, outputs] of what a layer makes of each unit input, without its bias."""
    plain = copy.deepcopy(layer.layer)
    plain.weight.data = layer.effective_weight()
    plain.bias = None
    if isinstance(plain, nn.Linear):
        return plain(torch.eye(7).double())
    return plain(torch.eye(3 * SIZE * SIZE).double().view(-1, 3, SIZE, SIZE)).flatten(1)


@pytest.mark.parametrize("technique", TECHNIQUES_OF_WEIGHTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_described_by_its_singular_values_and_those_of_the_dense_operator(
    kind: str, technique: str
) -> None:
    layer = normalized(kind, technique)
    W = layer.effective_weight().detach()
    matrix = W.transpose(0, 1).flatten(1) if kind == "transposed" else W.flatten(1)
    values, norms = torch.linalg.svdvals(matrix), [float(row.norm()) for row in matrix]
    described = spectra.describe_weight(layer, W, (SIZE, SIZE))
    told = {key: float(value) for key, value in described.items() if value is not None}

    assert told["sigma"] == pytest.approx(float(values[0]), rel=1e-12)
    assert told["condition_number"] == pytest.approx(float(values[0] / values[-1]), rel=1e-9)
    assert told["stable_rank"] == pytest.approx(float(values.square().sum() / values[0] ** 2), rel=1e-12)
    assert [told[f"row_norm_{each}"] for each in ("min", "mean", "max")] == pytest.approx(
        [min(norms), sum(norms) / len(norms), max(norms)], rel=1e-12
    )
    exact = float(torch.linalg.svdvals(dense(layer))[0])
    # From below, as what is found in a part of the space; 1e-4 is what the iteration promises.
    assert exact * (1 - 1e-4) <= told["operator_norm"] <= exact * (1 + 1e-12)
    assert ("scale_min" in told) == (technique == "adaptive")


@pytest.mark.parametrize(
    ("values", "largest"),
    [
        (torch.linspace(0, 1, 400), 1.0),  # dense up to the largest
        (torch.cat([torch.ones(50), torch.full((50,), 0.999)]), 1.0),  # many times the largest
        (torch.cat([torch.zeros(99), torch.tensor([3.0])]), 3.0),  # over after one iteration
        (torch.zeros(20), 0.0),
        (torch.full((1,), -2.0), 2.0),
    ],
)
def test_the_iteration_finds_the_largest_value_of_a_diagonal_map(values: Tensor, largest: float) -> None:
    values = values.double()
    start = torch.randn(len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = float(spectra.largest_singular_value(lambda x: values * x, lambda y: values * y, start))

    # The residual bounds the distance to some value by 0.05 %; values as dense as these have one so near.
    assert largest * (1 - 1e-3) <= found <= largest * (1 + 1e-12)


def test_a_weight_without_full_rank_or_with_infinities_has_no_number_where_there_is_none() -> None:
    layer = normalized("conv", "none")
    W = layer.layer.weight.detach()
    W[1] = W[0]
    deficient = spectra._plain(spectra.describe_weight(layer, W.float(), (SIZE, SIZE)))
    zero = spectra._plain(spectra.describe_weight(layer, torch.zeros_like(W), (SIZE, SIZE)))
    infinite = spectra._plain(spectra.describe_weight(layer, W / 0, (SIZE, SIZE)))

    assert deficient["condition_number"] is None
    assert all(deficient[key] > 0 for key in ("sigma", "stable_rank", "operator_norm"))
    assert (zero["sigma"], zero["operator_norm"], zero["stable_rank"], zero["condition_number"]) == (0, 0, None, None)
    assert set(infinite.values()) == {None}


def rows_of(step: Step) -> dict[tuple[str, str | None], spectra.Row]:
    return {(row["network"], row["layer"]): row for row in spectra.measure(step)}


def trained(build_step: BuildStep, *words: str, steps: int = 2) -> Step:
    step = build_step(*words)
    for _ in range(steps):
        step.take()
    return step


ARMS = {
    "batch": ["normalization=both/batch"],
    "per forward": ["normalization.generator=spectral", "normalization.generator.advance=forward"],
    "adaptive": ["normalization=both/adaptive"],
    "gradient": ["normalization=gradient"],
    "bf16": ["precision=bf16"],
    "conditional": [
        *("architecture=sngan_resnet", "architecture.conditional=true"),
        *("normalization.generator=conditional_batch", "normalization.discriminator=layer"),
    ],
}


@pytest.mark.parametrize("arm", ARMS)
def test_measuring_changes_no_bit_of_training_and_measures_the_same_again(build_step: BuildStep, arm: str) -> None:
    measured, plain = trained(build_step, *ARMS[arm], steps=1), trained(build_step, *ARMS[arm], steps=1)
    gradients = [parameter.grad for parameter in measured.state.discriminator.parameters()]
    before = torch.random.get_rng_state()
    rows = spectra.measure(measured)
    estimates = spectra.estimate(measured)

    assert spectra.measure(measured) == rows
    assert spectra.estimate(measured) == estimates
    assert torch.equal(torch.random.get_rng_state(), before)
    after = [parameter.grad for parameter in measured.state.discriminator.parameters()]
    assert all(new is old for new, old in zip(after, gradients, strict=True))
    for step in (measured, plain):
        step.take()
    assert state_digest(measured.state.state_dict()) == state_digest(plain.state.state_dict())
    require_complete(rows, measured)


def require_complete(rows: list[spectra.Row], step: Step) -> None:
    """Raise AssertionError unless every layer of both networks has a row, and each network one before."""
    expected = [
        (name, layer)
        for name in ("generator", "discriminator")
        for layer in [None, *(layer for layer, _ in getattr(step.state, name).layers())]
    ]
    assert [(row["network"], row["layer"]) for row in rows] == expected
    assert len({tuple(row) for row in rows}) == 2  # the same keys in every row of a layer, and of a network
    assert all(row[key] > 0 for row in rows if row["layer"] for key in ("sigma", "operator_norm", "gradient_norm"))
    assert all(isinstance(value, float | str | None) for row in rows for value in row.values())


def test_scales_are_those_of_adaptive_lengths(build_step: BuildStep) -> None:
    step = trained(build_step, "normalization=both/adaptive", "normalization.discriminator.granularity=layer")
    rows = rows_of(step)
    for name in ("generator", "discriminator"):
        for layer_name, layer in getattr(step.state, name).layers():
            row, part = rows[name, layer_name], layer.reparametrization
            assert isinstance(part, AdaptiveWeightNorm)
            expected = [float(part.S.min()), float(part.S.mean()), float(part.S.max())]
            assert [row["scale_min"], row["scale_mean"], row["scale_max"]] == expected
            # The other lengths of the same vectors.
            if part.dimension is not None:
                assert row["row_norm_max"] == pytest.approx(float(part.S.max()), rel=1e-5)


def test_the_gain_of_a_batch_norm_is_folded_into_the_rows_that_it_multiplies(build_step: BuildStep) -> None:
    step = trained(build_step, "architecture=sngan_cnn", "normalization=spectral")
    rows = rows_of(step)
    layers = dict(step.state.generator.layers())
    # The first is a linear layer, of whose rows 4 x 4 make a channel's map; the second a transposed convolution.
    (first, linear), (second, transposed) = list(layers.items())[:2]
    for name, layer in ((first, linear), (second, transposed)):
        norm, W = layer.activation, layer.layer.weight.detach().double()
        gain = (norm.weight.detach() / (norm.running_var + norm.eps).sqrt()).double()
        folded = gain[:, None] * (W.transpose(0, 1) if name == second else W).reshape(len(gain), -1)
        folded = folded.reshape(-1, W.shape[1]) if name == first else folded
        expected = float(torch.linalg.matrix_norm(folded, ord=2))
        assert rows["generator", name]["folded_gain"] == pytest.approx(expected, rel=1e-6)
        assert rows["generator", name]["folded_gain"] != pytest.approx(rows["generator", name]["sigma"], rel=0.05)
    assert rows["discriminator", "0"]["folded_gain"] is None


@pytest.mark.parametrize("technique", ["none", "spectral", "batch"])
def test_gradient_norms_are_those_of_the_losses_by_hand(build_step: BuildStep, technique: str) -> None:
    step = trained(build_step, f"normalization=both/{technique}")
    generator, discriminator = step.state.generator, step.state.discriminator
    weights = {"generator": generator.effective_weights(), "discriminator": discriminator.effective_weights()}
    real, fake = (
        step.real_batch(0).images,
        generator(step.latents("spectra"), weights["generator"]),
    )
    seen = [discriminator(images, weights["discriminator"]) for images in (real, fake.detach())]
    losses = {
        "generator": step.loss.generator(discriminator(fake)),
        "discriminator": step.loss.discriminator(*seen),
    }
    rows = rows_of(step)
    for network, loss in losses.items():
        for name, layer in getattr(step.state, network).layers():
            # The effective weight where there is one, else the raw one.
            target = weights[network].get(f"{name}.layer.weight", layer.layer.weight)
            (gradient,) = torch.autograd.grad(loss, target, retain_graph=True)
            assert rows[network, name]["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-5)


def linear_discriminator(slope: Tensor) -> Network:
    layers = Layers("discriminator", TECHNIQUES.build("none", {}))
    linear = nn.Linear(len(slope), 1)
    linear.weight.data = slope[None]
    return Network(Stack(nn.Flatten(), layers.layer(linear, "last"), nn.Flatten(0)), layers.technique)


def test_of_a_linear_discriminator_slope_and_bound_are_the_length_of_its_weight(build_step: BuildStep) -> None:
    step = build_step()
    slope = torch.randn(32 * 32)
    step.state.discriminator = linear_discriminator(slope)
    row = rows_of(step)["discriminator", None]

    length = float(slope.norm())
    assert row["product_bound"] == pytest.approx(length, rel=1e-6)
    assert [row[f"input_gradient/{at}"] for at in ("real", "fake", "between")] == pytest.approx(3 * [length], rel=1e-6)


@pytest.mark.parametrize("technique", ["none", "instance", "gradient"])
def test_input_gradients_are_those_of_each_image_alone(build_step: BuildStep, technique: str) -> None:
    step = trained(build_step, f"normalization={technique}")
    discriminator = step.state.discriminator
    row = rows_of(step)["discriminator", None]
    fake = step.state.generator(step.latents("spectra")).detach()
    real = step.real_batch(0).images
    for name, images in (("real", real), ("fake", fake)):
        norms: list[float] = []
        for image in images:
            alone = image[None].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(discriminator(alone).squeeze(), alone)
            norms.append(float(gradient.norm()))
        assert row[f"input_gradient/{name}"] == pytest.approx(sum(norms) / len(norms), rel=1e-4)
    assert row["input_gradient/between"] != row["input_gradient/real"]


def test_behind_batch_norm_an_input_gradient_is_nearly_the_slope_of_the_images_own_score(build_step: BuildStep) -> None:
    step = trained(build_step, "normalization=batch", "train.batch_size=32")
    discriminator = step.state.discriminator
    told = rows_of(step)["discriminator", None]["input_gradient/real"]
    images = step.real_batch(0).images.requires_grad_()
    with discriminator.frozen_statistics():
        scores = discriminator(images)
    norms = [
        torch.autograd.grad(score, images, retain_graph=True)[0][number].norm() for number, score in enumerate(scores)
    ]

    # What is left out is the image's share of the statistics: 1/32 of each of two layers' mean and variance.
    assert told == pytest.approx(float(torch.stack(norms).mean()), rel=4 / 32)


@pytest.mark.parametrize("architecture", ["mlp", "dcgan"])
@pytest.mark.parametrize("technique", ["none", "spectral", "weight"])
def test_the_product_bounds_how_fast_a_score_changes(build_step: BuildStep, architecture: str, technique: str) -> None:
    step = trained(build_step, f"architecture={architecture}", f"normalization={technique}", "initialisation=kaiming")
    discriminator = step.state.discriminator
    bound = rows_of(step)["discriminator", None]["product_bound"]
    x = torch.rand(50, 1, 32, 32) * 2 - 1
    x.requires_grad_()
    (uphill,) = torch.autograd.grad(discriminator(x).sum(), x)
    fastest = 0.0
    for away in (torch.randn_like(x), uphill, 1e-3 * uphill / uphill.norm()):
        with torch.no_grad():
            change = (discriminator(x + away) - discriminator(x)).abs() / away.flatten(1).norm(dim=1)
        fastest = max(fastest, float(change.max()))

    # float32 scores of about 1 differ by 1e-7 where the images are 1e-4 apart.
    assert bound / 50 < fastest <= bound * (1 + 1e-4) + 1e-3


@pytest.mark.parametrize(
    "words",
    [
        ["normalization=layer"],
        ["normalization=gradient"],
        ["normalization=none", "architecture=sngan_resnet"],
        ["normalization=none", "architecture=wn_resnet", "architecture.blocks=[1,1,1]"],
    ],
    ids=["activation norm", "of the network", "sngan_resnet", "wn_resnet"],
)
def test_where_something_else_stretches_there_is_no_product(build_step: BuildStep, words: list[str]) -> None:
    assert rows_of(build_step(*words))["discriminator", None]["product_bound"] is None


def test_a_path_is_of_modules_that_are_known_not_to_stretch() -> None:
    layers = Layers("discriminator", TECHNIQUES.build("none", {}))
    linear = layers.layer(nn.Linear(3, 3), "hidden")

    def bound(*modules: nn.Module) -> float | None:
        return spectra.product_bound(Network(Stack(*modules), layers.technique), [2.0, 3.0])

    assert bound(linear, nn.LeakyReLU(0.2), nn.Tanh(), linear) == 6
    assert bound(linear, nn.LeakyReLU(1.5)) is None
    assert bound(linear, nn.PReLU()) is None
    assert bound(linear, nn.AvgPool2d(2)) is None


@pytest.mark.parametrize("technique", ["none", "spectral", "weight", "adaptive"])
def test_estimates_are_near_the_exact_values_and_never_above(build_step: BuildStep, technique: str) -> None:
    step = trained(build_step, f"normalization=both/{technique}")
    estimates = {name: float(value) for name, value in spectra.estimate(step).items()}
    exact = {
        f"sigma/{network}/{layer}": row["sigma"] for (network, layer), row in rows_of(step).items() if layer is not None
    }

    assert estimates.keys() == exact.keys()
    # 4 % is what Gaussian matrices, which these nearly are, leave of 8 iterations; 1e-6 the rounding of float32.
    assert all(0.96 * exact[name] <= estimate <= exact[name] * (1 + 1e-6) for name, estimate in estimates.items())


@pytest.mark.parametrize("shape", [(64, 16), (64, 576), (128, 1024)])
def test_of_a_gaussian_matrix_an_estimate_is_a_few_percent_low(shape: tuple[int, int]) -> None:
    ratios = []
    for seed in range(5):
        rng = torch.Generator().manual_seed(seed)
        W, start = torch.randn(shape, generator=rng), torch.randn(shape[0], spectra.STARTS, generator=rng)
        ratios.append(float(spectra.estimated_sigma(W, start) / torch.linalg.matrix_norm(W, ord=2)))

    assert max(ratios) <= 1 + 1e-6
    assert min(ratios) >= 0.96


def test_layers_are_described_at_the_start_by_the_same_norms(build_step: BuildStep) -> None:
    step = build_step("normalization=both/spectral")
    rows = rows_of(step)
    for row in assemble.describe(step):
        measured = rows[row["network"], row["layer"]]
        assert row["sigma"] == pytest.approx(measured["sigma"], rel=1e-12)
        assert row["operator_norm"] == pytest.approx(measured["operator_norm"], rel=1e-12)
