"""Every technique on every architecture, in either network: built, trained, averaged, saved and gone on with."""

import copy
import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normlab.constraints import CONSTRAINTS
from normlab.losses import LOSSES
from normlab.networks import ARCHITECTURES, ImageSpec
from normlab.networks.blocks import IN_A_SHORTCUT, SumPool
from normlab.networks.initialisation import INITIALISATIONS, fans, initialise
from normlab.networks.network import Generator, Network, Weights
from normlab.normalizations import TECHNIQUES
from normlab.normalizations.base import WeightLayer, as_matrix, keep_activation, output_dimension
from normlab.normalizations.spectral import SpectralNorm, unit
from normlab.outputs.checkpoints import state_digest
from normlab.settings import Misfit

from .conftest import BuildStep

# Narrow forms, and a size that each has.
ARCHITECTURE_WORDS = {
    "dcgan": ["architecture.width=4"],
    "sngan_cnn": ["architecture.width=2"],
    "sngan_resnet": ["architecture.width=4"],
    "wn_resnet": ["architecture.width=2", "architecture.blocks=[1,1,1]"],
    "mlp": ["architecture.width=8"],
}
SMALL_GROUPS = {"group": "channels_per_group=2"}
ALL = TECHNIQUES.names()


def build(name: str, params: dict[str, Any], image: ImageSpec, technique: str = "none") -> tuple[Generator, Network]:
    architecture = ARCHITECTURES.build(name, params, image)
    chosen = TECHNIQUES.build(technique, {})
    return architecture.generator(chosen), architecture.discriminator(chosen)


def words(architecture: str, network: str, technique: str) -> list[str]:
    """Return the overrides of a run with a technique in one network, and none in the other."""
    other = "discriminator" if network == "generator" else "generator"
    chosen = [f"architecture={architecture}", *ARCHITECTURE_WORDS[architecture], "force=true"]
    chosen += [f"normalization.{network}={technique}", f"normalization.{other}=none", "train.batch_size=4"]
    chosen.append("initialisation=kaiming")  # with weights of 0.02 so narrow and deep a network is dead
    if technique in SMALL_GROUPS:
        chosen.append(f"normalization.{network}.{SMALL_GROUPS[technique]}")
    if technique == "conditional_batch":
        chosen.append("architecture.conditional=true")
    if technique == "adaptive_literal":
        chosen.append(f"normalization.{network}.init=1")  # from 0.1 it may start so dead that nothing moves in float32
    return chosen


def fits(architecture: str, network: str, technique: str) -> bool:
    if technique == "gradient":
        return network == "discriminator"
    return technique != "conditional_batch" or architecture in ("sngan_cnn", "sngan_resnet")


PAIRS = [
    (architecture, network, technique)
    for architecture in ARCHITECTURE_WORDS
    for network in ("generator", "discriminator")
    for technique in ALL
    if fits(architecture, network, technique)
]


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "network", "technique"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_every_pair_trains_saves_and_goes_on_to_the_same_bits(
    build_step: BuildStep, architecture: str, network: str, technique: str
) -> None:
    chosen = words(architecture, network, technique)
    straight = build_step(*chosen, "ema.decay=0.9")
    owner = getattr(straight.state, network)
    before = [layer.layer.weight.clone() for _, layer in owner.layers()]
    straight.take()
    file = io.BytesIO()
    torch.save(straight.state.state_dict(), file)
    straight.take()
    scalars = straight.take()
    second = build_step(*chosen, "ema.decay=0.9")
    second.state.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    second.take()
    second.take()

    assert state_digest(second.state.state_dict()) == state_digest(straight.state.state_dict())
    assert straight.non_finite.item() == 0
    assert all(value.isfinite() for value in scalars.values())
    moved = [not torch.equal(old, layer.layer.weight) for old, (_, layer) in zip(before, owner.layers(), strict=True)]
    assert any(moved)
    averaged, generator = straight.state.averaged, straight.state.generator
    assert averaged is not None
    assert all(map(torch.equal, averaged.module.buffers(), generator.buffers()))
    low = build_step(*chosen, "precision=bf16")
    low.take()
    assert low.non_finite.item() == 0
    assert {value.dtype for value in low.state.discriminator.state_dict().values()} <= {torch.float32, torch.int64}


ACTIVATION_NORMS = [name for name in ALL if TECHNIQUES.build(name, {}).activation is not keep_activation]


@pytest.mark.parametrize(
    ("architecture", "technique"),
    [pair for pair in itertools.product(ARCHITECTURE_WORDS, ACTIVATION_NORMS) if fits(pair[0], "generator", pair[1])],
)
def test_activation_norms_may_stand_behind_every_layer_but_the_score(
    build_step: BuildStep, architecture: str, technique: str
) -> None:
    both = [*words(architecture, "generator", technique), f"normalization.discriminator={technique}"]
    both += [f"normalization.{network}.exempt=[]" for network in ("generator", "discriminator")]
    if technique in SMALL_GROUPS:
        both += [f"normalization.{network}.channels_per_group=1" for network in ("generator", "discriminator")]
    step = build_step(*both)
    step.take()

    *_, (_, score) = step.state.discriminator.layers()
    assert step.non_finite.item() == 0
    assert score.exempt == "last layer of the discriminator"


@pytest.mark.parametrize("technique", [name for name in ALL if fits("sngan_cnn", "discriminator", name)])
def test_i21_a_score_depends_on_other_images_where_a_technique_says_so(build_step: BuildStep, technique: str) -> None:
    step = build_step(*words("sngan_cnn", "discriminator", technique))
    discriminator = step.state.discriminator
    images = torch.randn(5, 1, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(discriminator(images)[0], images)

    assert (gradient[1:].abs().max() > 0).item() == discriminator.technique.couples_images
    assert gradient[0].abs().max() > 0


@pytest.mark.parametrize("technique", ["spectral", "bidirectional_spectral", "spectral_conv"])
def test_vectors_are_exact_beside_low_precision(build_step: BuildStep, technique: str) -> None:
    step = build_step(f"normalization={technique}", "normalization.discriminator.advance=forward", "precision=bf16")
    step.update_discriminator(0, step.weights_of_pass(step.state.generator))
    vectors = [
        value for name, value in step.state.discriminator.named_buffers() if name[-2:] in (".u", ".v", ".x", ".y")
    ]

    assert len(vectors) >= 8
    for vector in vectors:
        torch.testing.assert_close(vector, unit(vector), rtol=0, atol=1e-6)  # bfloat16 would be off by 1e-3


@pytest.mark.parametrize("architecture", list(ARCHITECTURE_WORDS))
@pytest.mark.parametrize("technique", [name for name in ALL if name not in ("batch", "conditional_batch")])
def test_the_gradient_of_a_penalty_passes_through_every_technique(
    build_step: BuildStep, architecture: str, technique: str
) -> None:
    step = build_step(*words(architecture, "discriminator", technique), "penalty=[r1,wgan_gp]")
    discriminator = step.state.discriminator
    weights = discriminator.effective_weights()
    real, fake = step.real_batch(0), step.generate("generator", step.state.generator.effective_weights())
    penalty = step.penalty(0, real, fake, weights)
    assert penalty is not None
    moved = [layer.layer.weight for _, layer in discriminator.layers()]
    gradients = torch.autograd.grad(penalty, moved)

    assert all(gradient.isfinite().all() for gradient in gradients)
    # All but what begins with no share in the score, as the residual branches of weight_translated do.
    assert sum(bool(gradient.abs().sum() > 0) for gradient in gradients) >= 3


@pytest.mark.parametrize(("architecture", "size"), [("sngan_cnn", 32), ("sngan_cnn", 48), ("sngan_cnn", 64)])
def test_sngan_cnn_is_as_published(architecture: str, size: int) -> None:
    generator, discriminator = build(architecture, {}, ImageSpec(3, size, size))
    base = size // 8

    assert [tuple(layer.layer.weight.shape) for _, layer in generator.layers()] == [
        (512 * base * base, 128),
        (512, 256, 4, 4),
        (256, 128, 4, 4),
        (128, 64, 4, 4),
        (64, 3, 3, 3),
    ]
    assert [tuple(layer.layer.weight.shape) for _, layer in discriminator.layers()] == [
        (64, 3, 3, 3),
        (64, 64, 4, 4),
        (128, 64, 3, 3),
        (128, 128, 4, 4),
        (256, 128, 3, 3),
        (256, 256, 4, 4),
        (512, 256, 3, 3),
        (1, 512 * base * base),
    ]


@pytest.mark.parametrize(
    ("size", "generator_layers", "discriminator_layers", "last_map"),
    [(32, 11, 11, 8), (48, 11, 16, 3), (64, 14, 16, 2), (128, 17, 18, 4)],
)
def test_sngan_resnet_has_the_blocks_of_its_size(
    size: int, generator_layers: int, discriminator_layers: int, last_map: int
) -> None:
    generator, discriminator = build("sngan_resnet", {"width": 2}, ImageSpec(3, size, size))
    images = generator(torch.randn(2, 128))

    assert images.shape == (2, 3, size, size)
    assert discriminator(images).shape == (2,)
    assert [len(list(network.layers())) for network in (generator, discriminator)] == [
        generator_layers,
        discriminator_layers,
    ]
    seen: dict[str, Tensor] = {}
    (pool,) = (module for module in discriminator.modules() if isinstance(module, SumPool))
    pool.register_forward_hook(lambda module, inputs, output: seen.update(map=inputs[0]))
    discriminator(images)
    assert seen["map"].shape[2:] == (last_map, last_map)


def test_wn_resnet_has_activation_norms_behind_all_layers_but_shortcuts_the_image_and_the_score() -> None:
    for network in build("wn_resnet", {"width": 2}, ImageSpec(3, 32, 32), "batch"):
        exempt = {name: layer.exempt for name, layer in network.layers() if layer.exempt is not None}
        makes_image = [name for name, reason in exempt.items() if reason == "makes the image"]

        assert len(makes_image) == isinstance(network, Generator)
        assert {reason for name, reason in exempt.items() if ".shortcut." in name} <= {IN_A_SHORTCUT, "makes the image"}
        others = [reason for name, reason in exempt.items() if ".shortcut." not in name and name not in makes_image]
        assert set(others) <= {"first layer of the discriminator", "last layer of the discriminator"}


def test_the_width_of_sngan_resnet_is_the_papers_where_it_is_not_given() -> None:
    for size, channels in ((32, 128), (48, 64)):
        with torch.device("meta"):
            _, discriminator = build("sngan_resnet", {}, ImageSpec(3, size, size))
        (_, first), *_ = discriminator.layers()
        assert first.layer.weight.shape[0] == channels


@pytest.mark.parametrize("size", [32, 64, 128, 160])
def test_wn_resnet_has_21_layers_from_image_to_score(size: int) -> None:
    generator, discriminator = build("wn_resnet", {"width": 1}, ImageSpec(3, size, size))
    images = generator(torch.randn(2, 128))
    for network in (generator, discriminator):
        main = [name for name, _ in network.layers() if ".shortcut." not in name]
        assert len(main) == 21

    assert images.shape == (2, 3, size, size)
    assert discriminator(images).shape == (2,)


def test_a_block_of_xiang_and_li_begins_as_its_shortcut() -> None:
    """I18: the weights of the addition begin with nothing of the residual branch."""
    _, discriminator = build("wn_resnet", {"width": 2}, ImageSpec(1, 32, 32), "weight_translated")
    initialise(discriminator, INITIALISATIONS.build("dcgan", {}), 0, "discriminator")
    images = torch.randn(2, 1, 32, 32)
    before = discriminator(images)
    with torch.no_grad():
        for name, layer in discriminator.layers():
            if ".residual." in name:
                layer.layer.weight.copy_(torch.randn(layer.layer.weight.shape))

    torch.testing.assert_close(discriminator(images), before)


@pytest.mark.parametrize("architecture", ["sngan_cnn", "sngan_resnet"])
def test_a_conditional_pair_sees_its_labels(architecture: str) -> None:
    built = ARCHITECTURES.build(architecture, {"width": 4, "conditional": True}, ImageSpec(1, 32, 32, classes=5))
    generator = built.generator(TECHNIQUES.build("conditional_batch", {}))
    discriminator = built.discriminator(TECHNIQUES.build("spectral", {}))
    for network, purpose in ((generator, "generator"), (discriminator, "discriminator")):
        initialise(network, INITIALISATIONS.build("xavier", {}), 0, purpose)
    with torch.no_grad():
        for module in generator.modules():
            if hasattr(module, "gain"):
                module.gain.copy_(torch.randn(module.gain.shape))  # pyright: ignore[reportCallIssue,reportArgumentType]
    latents, labels = torch.randn(1, 128).repeat(5, 1), torch.arange(5)
    images = generator(latents, labels=labels)
    alike = generator(latents, labels=torch.zeros(5, dtype=torch.int64))
    scores = discriminator(images[:1].repeat(5, 1, 1, 1), labels=labels)

    assert (images[0] - images[1]).abs().max() > 1e-3
    assert torch.equal(alike[0], alike[1])
    assert len(set(scores.tolist())) == 5
    torch.testing.assert_close(generator(latents), images)  # labels in turn where none are given


def test_the_projection_is_the_formula() -> None:
    built = ARCHITECTURES.build("sngan_cnn", {"width": 2, "conditional": True}, ImageSpec(1, 32, 32, classes=3))
    discriminator = built.discriminator(TECHNIQUES.build("none", {}))
    initialise(discriminator, INITIALISATIONS.build("kaiming", {}), 0, "discriminator")
    images, labels = torch.randn(4, 1, 32, 32), torch.tensor([0, 2, 1, 2])
    *inner, head = discriminator.body.children()
    h = images
    for module in inner:
        h = module(h)

    expected = head.linear.layer(h).flatten() + (head.embedding.layer.weight[labels] * h).sum(dim=1)
    torch.testing.assert_close(discriminator(images, labels=labels), expected)


@pytest.mark.parametrize(
    ("name", "params", "size", "message"),
    [
        ("sngan_cnn", {}, 40, "no form for images of 40 px"),
        ("sngan_cnn", {"generator_channels": [1, 2]}, 32, "4 and 7 layers of channels, not 2"),
        ("sngan_cnn", {"conditional": True}, 32, "the data set has none"),
        ("sngan_resnet", {}, 40, "choose 32, 48, 64, 128"),
        ("wn_resnet", {}, 44, "no form for images of 44 px"),
        ("wn_resnet", {"blocks": [1]}, 32, "blocks has 1 levels, and images of 32 px halve 3 times"),
    ],
)
def test_what_an_architecture_has_no_form_for_is_refused(
    name: str, params: dict[str, Any], size: int, message: str
) -> None:
    with pytest.raises(Misfit, match=message):
        ARCHITECTURES.build(name, params, ImageSpec(3, size, size))


LAYERS: list[WeightLayer] = [
    nn.Linear(300, 200),
    nn.Conv2d(30, 40, 3, padding=1),
    nn.Conv2d(30, 40, 4, stride=2, padding=1),
    nn.ConvTranspose2d(30, 40, 4, stride=2, padding=1),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{type(layer).__name__}-{getattr(layer, 'stride', '')}")
def test_fans_are_what_keeps_the_variance_forth_and_back(layer: WeightLayer) -> None:
    """With weights of variance 1 / fan_in the output has the variance of the input, away from its edges."""
    torch.manual_seed(0)
    for forth, fan in zip((True, False), fans(layer), strict=True):
        layer.weight.data = torch.randn_like(layer.weight) / fan**0.5
        assert layer.bias is not None
        layer.bias.data.zero_()
        shape = (64, 300) if isinstance(layer, nn.Linear) else (8, 30, 24, 24)
        input = torch.randn(shape, requires_grad=True)
        output = layer(input)
        if forth:
            inner = output if output.dim() == 2 else output[:, :, 4:-4, 4:-4]
        else:
            (gradient,) = torch.autograd.grad(output, input, torch.randn_like(output))
            inner = gradient if gradient.dim() == 2 else gradient[:, :, 4:-4, 4:-4]
        # 10,000 and more numbers, of which those of a channel share their weights: some percent.
        assert inner.var().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{type(layer).__name__}-{getattr(layer, 'stride', '')}")
def test_initialisations_have_the_spread_that_they_are_named_for(layer: WeightLayer) -> None:
    fan_in, fan_out = fans(layer)
    spreads = {
        "dcgan": 0.02,
        "lecun": fan_in**-0.5,
        "kaiming": (2 / fan_in) ** 0.5,
        "xavier": (2 / (fan_in + fan_out)) ** 0.5,
    }
    for name, spread in spreads.items():
        drawn = INITIALISATIONS.build(name, {}).weight(layer, torch.Generator().manual_seed(0))
        assert drawn.shape == layer.weight.shape
        assert drawn.std().item() == pytest.approx(spread, rel=0.05)  # 10,000 and more numbers: 1 percent
    drawn = INITIALISATIONS.build("orthogonal", {}).weight(layer, torch.Generator().manual_seed(0))
    matrix = as_matrix(drawn, output_dimension(layer)).double()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    torch.testing.assert_close(gram, torch.eye(len(gram)).double(), rtol=0, atol=1e-5)


def test_residual_branches_may_have_a_gain_of_their_own() -> None:
    pairs = [build("sngan_resnet", {"width": 4}, ImageSpec(3, 32, 32), "none") for _ in range(2)]
    for pair, params in zip(pairs, ({}, {"residual_gain": 2.0}), strict=True):
        for network in pair:
            initialise(network, INITIALISATIONS.build("xavier", params), 0, "test")
    for usual, gained in zip(*pairs, strict=True):
        for (name, before), (_, after) in zip(usual.layers(), gained.layers(), strict=True):
            factor = 2 if ".residual." in name else 1
            assert torch.equal(after.layer.weight, factor * before.layer.weight), name


def keep(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[name] = output

    return hook


@pytest.mark.parametrize("architecture", ["dcgan", "sngan_cnn", "sngan_resnet", "wn_resnet", "mlp"])
def test_i14_a_first_batch_leaves_every_layer_at_mean_0_and_variance_1(architecture: str) -> None:
    size = 1 if architecture == "mlp" else 32
    params = {"width": 4} if architecture != "mlp" else {"width": 16}
    for network, shape in zip(
        build(architecture, params, ImageSpec(3, size, size), "weight_datainit"), ("z", "x"), strict=True
    ):
        initialise(network, INITIALISATIONS.build("dcgan", {}), 0, "test")
        input = torch.randn(16, network.latent_size) if shape == "z" else torch.randn(16, 3, size, size)  # pyright: ignore[reportAttributeAccessIssue,reportArgumentType]
        network.fit(input)
        seen: dict[str, Tensor] = {}
        for name, layer in network.layers():
            layer.layer.register_forward_hook(keep(seen, name))
        network(input)

        for name, layer in network.layers():
            output = seen[name]
            over = [dim for dim in range(output.dim()) if dim != 1]
            mean, spread = output.mean(over), output.std(over, correction=0)
            live = spread > 1e-5  # a unit that ReLU has silenced before has none
            assert live.float().mean() > 0.9
            torch.testing.assert_close(spread[live], torch.ones_like(spread[live]), rtol=0, atol=1e-4)
            if layer.layer.bias is not None:
                torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("technique", "bound"),
    [
        ("spectral_conv", 1.0),
        ("spectral", 3.0**4 * 2.0**3),
        ("none", None),
    ],  # a 3x3 of stride 1: 3, a 4x4 of stride 2: 2
)
def test_i31_a_score_is_no_steeper_than_its_layers_together(technique: str, bound: float | None) -> None:
    torch.manual_seed(0)
    _, discriminator = build("sngan_cnn", {"width": 4}, ImageSpec(1, 32, 32), technique)
    initialise(discriminator, INITIALISATIONS.build("kaiming", {"gain": 40.0}), 0, "discriminator")
    for _, layer, part in discriminator.reparametrized():
        for _ in range(200):
            with torch.no_grad():
                part.advance(layer.layer.weight)
    images = torch.randn(50, 1, 32, 32, requires_grad=True)
    (slope,) = torch.autograd.grad(discriminator(images).sum(), images)
    steepest = slope.flatten(1).norm(dim=1).max().item()

    assert steepest > 0
    if bound is None:  # the same weights without: the bound is of the technique, not of the weights
        assert steepest > 3.0**4 * 2.0**3
    else:
        assert steepest <= bound * (1 + 1e-4)


@pytest.mark.parametrize("architecture", list(ARCHITECTURE_WORDS))
def test_spectral_conv_is_told_the_true_sizes(build_step: BuildStep, architecture: str) -> None:
    step = build_step(*words(architecture, "generator", "none"))
    seen: list[tuple[int, int]] = []
    told: list[tuple[int, int]] = []
    for network, input in (
        (step.state.generator, step.latents("generator")),
        (step.state.discriminator, step.real.batch(0)),
    ):
        for _, layer in network.layers():
            if isinstance(layer.layer, nn.Conv2d | nn.ConvTranspose2d):
                told.append((layer.place.input_size, layer.place.size))
                layer.layer.register_forward_hook(
                    lambda module, inputs, output: seen.append((inputs[0].shape[-1], output.shape[-1]))
                )
        network(input)

    assert sorted(seen) == sorted(told)


@pytest.mark.parametrize("technique", ["spectral", "bidirectional_spectral", "spectral_conv"])
def test_i28_an_averaged_generator_has_vectors_of_length_1(build_step: BuildStep, technique: str) -> None:
    step = build_step(f"normalization=both/{technique}", "ema.decay=0.9")
    for _ in range(3):
        step.take()
    averaged = step.state.averaged
    assert averaged is not None
    vectors = {name: value for name, value in averaged.module.named_buffers() if name[-2:] in (".u", ".v", ".x", ".y")}

    assert len(vectors) >= 8
    for vector in vectors.values():
        torch.testing.assert_close(vector, unit(vector))
    copy.deepcopy(averaged.module)(torch.randn(2, 100))


@pytest.mark.parametrize(("when", "distinct"), [("update", [1, 2]), ("forward", [2, 3])])
def test_i27_per_update_real_and_fake_images_meet_the_same_weights_and_per_forward_others(
    build_step: BuildStep, when: str, distinct: list[int]
) -> None:
    step = build_step("normalization=spectral", f"normalization.discriminator.advance={when}", "optimizer.lr=1e-30")
    seen: list[tuple[float, ...]] = []
    forward = Network.forward

    def noted(self: Network, input: Tensor, weights: Weights | None = None, labels: Tensor | None = None) -> Tensor:
        if not isinstance(self, Generator):
            assert weights is not None
            seen.append(tuple(weight.sum().item() for weight in weights.values()))
        return forward(self, input, weights, labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "forward", noted)
        step.take()

    # Of real images, of fakes, and in the generator's update; u moves between the updates even where no weight does.
    assert [len(set(seen[:2])), len(set(seen))] == distinct
    assert len(seen) == 3


def test_i29_a_generator_update_leaves_the_discriminator_without_gradients(build_step: BuildStep) -> None:
    step = build_step("normalization=both/spectral", "constraint=clip", "force=true")
    step.update_generator()

    assert all(parameter.grad is None for parameter in step.state.discriminator.parameters())
    assert all(parameter.grad is not None for parameter in step.state.generator.parameters())


def test_i23_clipping_is_of_the_discriminator_alone(build_step: BuildStep) -> None:
    step = build_step("normalization=none", "constraint=clip", "constraint.bound=0.005")
    step.take()

    assert max(value.abs().max().item() for value in step.state.discriminator.parameters()) == pytest.approx(0.005)
    assert max(value.abs().max().item() for value in step.state.generator.parameters()) > 0.005


@pytest.mark.parametrize("technique", ["adaptive", "spectral"])
def test_i23_clipping_leaves_what_belongs_to_weights_and_comes_before_it_moves(
    build_step: BuildStep, technique: str
) -> None:
    step = build_step(f"normalization={technique}", "constraint=clip", "force=true", "optimizer.lr=0.1")
    step.take()

    for _, layer, part in step.state.discriminator.reparametrized():
        weight = layer.layer.weight.detach()
        assert weight.abs().max().item() <= 0.01
        if isinstance(part, SpectralNorm):
            torch.testing.assert_close(part.u, unit(as_matrix(weight, part.dimension) @ part.v), rtol=0, atol=1e-6)
        else:
            assert part.S.min().item() > 0.5  # pyright: ignore[reportCallIssue,reportAttributeAccessIssue]


def test_a_lazy_penalty_comes_every_so_many_updates_and_counts_as_often(build_step: BuildStep) -> None:
    chosen = ["normalization=layer", "penalty=r1", "train.discriminator_steps=2"]
    eager, lazy = build_step(*chosen), build_step(*chosen, "penalty.r1.every=3")
    values: list[list[float | None]] = []
    for step in (eager, lazy):
        real, fake = step.real_batch(0), step.generate("generator", step.state.generator.effective_weights())
        weights = step.state.discriminator.effective_weights()
        values.append([])
        for step.state.step in (0, 1, 2):
            for update in (0, 1):
                value = step.penalty(update, real, fake, weights)
                values[-1].append(None if value is None else value.item())

    assert len(set(values[0])) == 1
    once = values[0][0]
    assert once is not None
    assert values[1] == [None, None, pytest.approx(3 * once), None, None, pytest.approx(3 * once)]


def test_a_step_whose_number_is_a_multiple_tells_of_a_lazy_penalty(build_step: BuildStep) -> None:
    step = build_step("normalization=none", "penalty=r1", "penalty.r1.every=4", "train.discriminator_steps=2")

    assert ["loss/penalty" in step.take() for _ in range(6)] == [False, True, False, True, False, True]


def test_a_penalty_moves_no_batch_statistics(build_step: BuildStep) -> None:
    step = build_step("normalization=both/batch", "penalty=r1", "force=true")
    discriminator = step.state.discriminator
    before = copy.deepcopy(dict(discriminator.named_buffers()))
    step.penalty(0, step.real_batch(0), step.real_batch(0), discriminator.effective_weights())

    assert all(torch.equal(value, before[name]) for name, value in discriminator.named_buffers())


def test_what_the_registries_hold_is_what_the_step_uses() -> None:
    assert LOSSES.build("wasserstein", {}).needs_bound
    assert not LOSSES.build("hinge", {}).needs_bound
    assert CONSTRAINTS.names() == ["clip", "none"]
