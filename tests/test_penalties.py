"""Penalties and constraints against closed forms, and what may look at what."""

import pytest
import torch
from torch import Tensor, nn

from normlab.constraints import CONSTRAINTS
from normlab.penalties import PENALTIES, Batch, Update

SHAPE = (3, 4, 4)
A = torch.randn(48, generator=torch.Generator().manual_seed(0)).double()
OF_GRADIENTS = ["wgan_gp", "r1", "r2", "dragan"]


def linear(images: Tensor, labels: Tensor | None) -> Tensor:
    """A score a x whose gradient is a everywhere."""
    return images.flatten(1) @ A


def update(score: object = linear, weights: list[Tensor] | None = None, count: int = 6) -> Update:
    rng = torch.Generator().manual_seed(1)
    real, fake = (torch.randn(count, *SHAPE, generator=rng).double() for _ in range(2))
    return Update(
        score,  # pyright: ignore[reportArgumentType]
        Batch(real, None),
        Batch(fake, None),
        weights or [],
        lambda shape, per_image=True: torch.rand(shape, generator=rng).double(),
        lambda shape, per_image=True: torch.randn(shape, generator=rng),
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("wgan_gp", (A.norm() - 1) ** 2), ("dragan", (A.norm() - 1) ** 2), ("r1", A @ A / 2), ("r2", A @ A / 2)],
)
def test_i20_of_a_linear_score_they_are_closed_forms(name: str, expected: Tensor) -> None:
    value = PENALTIES.build(name, {}).value(update())

    # The gradient is summed up in float32.
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)


def test_the_target_of_a_gradient_norm_is_a_setting() -> None:
    value = PENALTIES.build("wgan_gp", {"target": 2.0}).value(update())

    torch.testing.assert_close(value.double(), (A.norm() - 2) ** 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["wgan_gp", "dragan"])
def test_where_the_score_is_flat_the_slope_of_the_penalty_is_finite(name: str) -> None:
    weight = torch.zeros(48, dtype=torch.float64, requires_grad=True)
    PENALTIES.build(name, {}).value(update(lambda images, labels: images.flatten(1) @ weight)).backward()

    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_they_look_where_they_say() -> None:
    seen: list[Tensor] = []

    def score(images: Tensor, labels: Tensor | None) -> Tensor:
        seen.append(images.detach())
        return linear(images, labels)

    given = update(score)
    real, fake = given.real.images, given.fake.images
    for name in ("r1", "r2", "wgan_gp", "dragan"):
        PENALTIES.build(name, {}).value(given)
    assert torch.equal(seen[0], real)
    assert torch.equal(seen[1], fake)
    share = ((seen[2] - fake) / (real - fake)).flatten(1)  # of the way from the fake to the real image
    assert ((share >= 0) & (share <= 1)).all()
    assert (share.std(dim=1) < 1e-9).all()  # one for an image
    assert share[:, 0].std() > 0.1
    noise = (seen[3] - real) / real.std()
    assert 0 <= noise.min() < 0.01
    assert 0.49 < noise.max() <= 0.5


def test_the_second_derivative_reaches_the_parameters() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Softplus(), nn.Linear(8, 1), nn.Flatten(0)).double()
    for name in OF_GRADIENTS:
        value = PENALTIES.build(name, {}).value(update(lambda images, labels: network(images)))
        gradients = torch.autograd.grad(value, [network[1].weight, network[3].weight])
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize(("norm", "couples"), [("layer", False), ("none", False), ("batch", True)])
def test_i21_batch_statistics_make_a_score_depend_on_the_other_images(norm: str, couples: bool) -> None:
    norms = {"layer": nn.GroupNorm(1, 4), "none": nn.Identity(), "batch": nn.BatchNorm2d(4)}
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), norms[norm], nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(16, 1)).double()
    images = torch.randn(5, *SHAPE).double().requires_grad_()
    (gradient,) = torch.autograd.grad(network(images)[0].sum(), images)

    assert (gradient[1:].abs().max() > 1e-7).item() == couples


def orthonormal_rows() -> Tensor:
    matrix, _ = torch.linalg.qr(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    return matrix.T


@pytest.mark.parametrize("form", ["full", "off_diagonal"])
def test_i24_orthonormal_rows_cost_nothing(form: str) -> None:
    penalty = PENALTIES.build("orthogonal", {"form": form})

    assert penalty.value(update(weights=[orthonormal_rows()])).item() == pytest.approx(0, abs=1e-10)


def test_i24_the_part_off_the_diagonal_leaves_the_lengths_free() -> None:
    stretched = torch.tensor([1.0, 2, 3, 4])[:, None] * orthonormal_rows()
    free, full = (PENALTIES.build("orthogonal", {"form": form}) for form in ("off_diagonal", "full"))

    assert free.value(update(weights=[stretched])).item() == pytest.approx(0, abs=1e-10)
    assert full.value(update(weights=[stretched])).item() == pytest.approx(
        sum((x**2 - 1) ** 2 for x in (2, 3, 4)), rel=1e-5
    )


def test_i24_the_gradient_has_the_factor_4() -> None:
    W = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    PENALTIES.build("orthogonal", {}).value(update(weights=[W])).backward()
    gram = W.detach() @ W.detach().T

    assert W.grad is not None
    torch.testing.assert_close(W.grad, 4 * (gram - gram.diagonal().diag()) @ W.detach(), rtol=1e-5, atol=1e-5)


def test_a_tall_matrix_is_held_against_the_identity_by_its_columns() -> None:
    value = PENALTIES.build("orthogonal", {"form": "full"}).value(update(weights=[orthonormal_rows().T]))

    assert value.item() == pytest.approx(0, abs=1e-10)


def test_i25_the_gradient_of_spectral_regularization_is_sigma_u_v() -> None:
    planted = 3 * torch.outer(torch.eye(5)[0], torch.eye(8)[1]) + 0.1 * torch.randn(5, 8, generator=torch.Generator())
    W = planted.clone().requires_grad_()
    penalty = PENALTIES.build("spectral_regularization", {})
    value = penalty.value(update(weights=[W]))
    value.backward()
    U, S, V = torch.linalg.svd(planted.double(), full_matrices=False)

    assert value.item() == pytest.approx(0.5 * S[0].item() ** 2, rel=1e-5)
    assert W.grad is not None
    torch.testing.assert_close(W.grad.double(), S[0] * torch.outer(U[:, 0], V[0]), rtol=0, atol=1e-4)


def test_i23_clipping_bounds_every_parameter() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    constrain = CONSTRAINTS.build("clip", {"bound": 0.01})
    constrain(network.parameters())

    assert max(parameter.abs().max().item() for parameter in network.parameters()) == pytest.approx(0.01)
    assert CONSTRAINTS.build("none", {}) is None
