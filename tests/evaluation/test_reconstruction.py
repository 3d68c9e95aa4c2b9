"""Reconstruction errors against closed forms, the authors' loop written out, and themselves."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlab.data.images import Images
from normlab.evaluation.batching import Interrupted
from normlab.evaluation.reconstruction import Reconstruction, Search, reconstruct
from normlab.outputs.grids import to_uint8
from normlab.randomness import stream
from tests.evaluation.conftest import Upwards

CPU = torch.device("cpu")


class Linear(nn.Module):
    """Images that are a linear function of the latent, 3x2x4 or as many values as `matrix` has rows."""

    def __init__(self, matrix: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.matrix, self.bias = nn.Parameter(matrix), nn.Parameter(bias)
        self.latent_size = matrix.shape[1]

    def forward(self, latents: Tensor) -> Tensor:
        return (latents @ self.matrix.T + self.bias).unflatten(1, (3, 2, -1))


def images(count: int, *shape: int) -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, (count, *(shape or (1, 32, 32))), dtype=np.uint8)
    pixels.flags.writeable = False
    return Images(pixels, np.arange(count, dtype=np.int64) % 5)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def in_order(held_out: Images) -> Tensor:
    """All images in the order of their searches, in [0, 1]."""
    order = torch.randperm(len(held_out), generator=stream(0, "reconstruction"))
    return torch.tensor(held_out.pixels)[order] / 255


# RMSprop with a constant rate ends by stepping to and fro about the minimum, within its rate along each axis.
LONG = Search(steps=1000, lr=4e-3)


def test_an_invertible_linear_generator_makes_every_image():
    linear = Linear(torch.linalg.qr(normal(24, 24)).Q, torch.zeros(24))
    found = reconstruct(linear, images(5, 3, 2, 4), device=CPU, search=LONG)
    assert found.per_image.max() < 24 * (LONG.lr / 2) ** 2


def test_a_tall_linear_generator_comes_to_the_least_squares():
    matrix, bias = torch.linalg.qr(normal(24, 5)).Q * 2, 0.1 * normal(24)
    held_out = images(10, 3, 2, 4)
    found = reconstruct(Linear(matrix, bias), held_out, device=CPU, search=LONG, batch_size=6)
    targets = (in_order(held_out) * 2 - 1).flatten(1) - bias
    residuals = torch.linalg.lstsq(matrix, targets.T).solution.T @ matrix.T - targets
    least = residuals.square().sum(dim=1) / 4
    assert least.min() > 0.1
    assert found.per_image.tolist() == pytest.approx(least.tolist(), abs=5 * LONG.lr**2)
    assert found.error == pytest.approx(float(found.per_image.mean()))


def test_without_steps_the_error_is_that_of_the_image_of_the_zero_latent(generator: Upwards):
    held_out = images(7)
    found = reconstruct(generator, held_out, device=CPU, search=Search(steps=0))
    generator.eval()
    with torch.no_grad():
        middle = (generator(torch.zeros(1, 6)) + 1) / 2
    expected = (in_order(held_out) - middle).square().sum(dim=(1, 2, 3))
    assert found.per_image.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_more_steps_never_make_a_convex_error_larger_on_the_way_to_its_minimum():
    linear = Linear(torch.linalg.qr(normal(24, 24)).Q, torch.zeros(24))
    held_out = images(10, 3, 2, 4)
    errors = [
        reconstruct(linear, held_out, device=CPU, search=Search(steps=steps)).error
        for steps in (0, 1, 2, 5, 10, 20, 30, 40, 50)
    ]
    assert all(later < earlier for earlier, later in pairwise(errors))


def authors_error(generator: nn.Module, targets: Tensor, batch_size: int) -> float:
    """What the authors' test does, with their optimizer written out."""
    generator.eval()
    total = 0.0
    for target in targets.split(batch_size):
        z, average = torch.zeros(len(target), 6, requires_grad=True), 0.0
        for _ in range(50):
            (gradient,) = torch.autograd.grad(functional.mse_loss((generator(z) + 1) / 2, target), z)
            average = 0.9 * average + 0.1 * gradient.square()
            z = (z - 0.01 * gradient / (average.sqrt() + 1e-6)).detach().requires_grad_()
        total += functional.mse_loss((generator(z) + 1) / 2, target).item() * len(target)
    return total / len(targets)


def test_the_form_of_a_batch_is_the_authors_loop(generator: Upwards):
    held_out = images(40)
    found = reconstruct(generator, held_out, device=CPU, search=Search(form="batch"))
    assert found.error == pytest.approx(authors_error(generator, in_order(held_out), 32), rel=1e-5)


def test_in_full_batches_of_32_both_forms_make_the_same_search(generator: Upwards):
    held_out = images(32)
    own, authors = (
        reconstruct(generator, held_out, device=CPU, search=Search(form=form)) for form in ("images", "batch")
    )
    # The formula of the paper is a sum over the values of an image, the code's a mean.
    assert (own.per_image / 1024).tolist() == pytest.approx(authors.per_image.tolist(), rel=1e-5)


def test_only_the_form_of_a_batch_depends_on_its_size(generator: Upwards):
    held_out = images(40)

    def per_image(form: str, batch_size: int) -> Tensor:
        # An eps as large as the gradients, so that what it weighs is seen.
        search = Search(form=form, eps=1e-4)  # type: ignore[arg-type]
        return reconstruct(generator, held_out, device=CPU, search=search, batch_size=batch_size).per_image

    torch.testing.assert_close(per_image("images", 32), per_image("images", 7), rtol=1e-4, atol=0)
    assert (per_image("batch", 32) / per_image("batch", 7) - 1).abs().max() > 1e-3


@pytest.mark.parametrize("training", [True, False])
def test_the_generator_and_the_random_state_stay_as_they_are(generator: Upwards, training: bool):
    generator.train(training)
    generator(torch.ones(3, 6)).sum().backward()
    generator.body[0].bias.requires_grad_(False)
    before = copy.deepcopy(generator.state_dict())
    parameters = list(generator.parameters())
    gradients = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    flags = [parameter.requires_grad for parameter in parameters]
    state = torch.get_rng_state()
    reconstruct(generator, images(5), device=CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())
    assert all(module.training is training for module in generator.modules())
    assert [parameter.requires_grad for parameter in parameters] == flags
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


def test_it_repeats_whatever_the_random_state_and_the_precision_around_it(generator: Upwards):
    held_out = images(9)
    first = reconstruct(generator, held_out, device=CPU)
    torch.rand(3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        second = reconstruct(generator, held_out, device=CPU)
    assert torch.equal(first.per_image, second.per_image)


def test_fewer_images_are_the_first_of_more(generator: Upwards):
    held_out = images(30)
    few, more = (reconstruct(generator, held_out, device=CPU, search=Search(count=count)) for count in (10, 10**6))
    assert len(more.per_image) == 30
    torch.testing.assert_close(few.per_image, more.per_image[:10], rtol=1e-5, atol=0)


def test_a_conditional_generator_is_given_the_label_of_the_image():
    class Labelled(nn.Module):
        """Makes the one image of a label that its pixels agree with."""

        latent_size, classes = 2, 5

        def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
            assert labels is not None
            grey = (labels / 4 * 2 - 1)[:, None].expand(-1, 192)
            return (grey + 0 * latents.sum(dim=1, keepdim=True)).unflatten(1, (3, 8, 8))

    labels = np.arange(20, dtype=np.int64) % 5
    grey = np.rint(labels / 4 * 255).astype(np.uint8)[:, None, None, None].repeat(3, axis=1)
    held_out = Images(grey.repeat(8, axis=2).repeat(8, axis=3), labels)
    found = reconstruct(Labelled(), held_out, device=CPU, batch_size=6)
    # The grey of a label is at most half a level from a level.
    assert found.error <= 192 * (0.5 / 255) ** 2 + 1e-9


def test_the_first_images_stand_beside_what_became_of_them(generator: Upwards):
    held_out = images(20)
    found: Reconstruction = reconstruct(generator, held_out, device=CPU, batch_size=3)
    originals, made = found.pairs
    assert found.pairs.shape == (2, 8, 1, 32, 32)
    assert torch.equal(to_uint8(originals), (in_order(held_out)[:8] * 255).to(torch.uint8))
    squares = ((originals - made) / 2).square().sum(dim=(1, 2, 3))
    assert squares.tolist() == pytest.approx(found.per_image[:8].tolist(), rel=1e-5)


def test_images_that_are_not_finite_have_no_error(generator: Upwards):
    with torch.no_grad():
        generator.body[4].bias[3] = float("nan")
    assert math.isnan(reconstruct(generator, images(3), device=CPU).error)


def test_stop_is_heard_before_every_batch(generator: Upwards):
    answers = iter([False, True])
    with pytest.raises(Interrupted):
        reconstruct(generator, images(9), device=CPU, batch_size=3, stop=lambda: next(answers))
    assert next(answers, None) is None
