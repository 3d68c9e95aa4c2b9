import pytest
import torch
import torch.nn.functional as F

from normlab.losses import LOSSES

REAL, FAKE = torch.tensor([2.0, -0.5, 0.3]), torch.tensor([-1.5, 0.25, 3.0])


def test_non_saturating_is_binary_cross_entropy_on_logits() -> None:
    loss = LOSSES.build("non_saturating", {})
    one, zero = torch.ones(3), torch.zeros(3)
    cross_entropy = F.binary_cross_entropy_with_logits

    torch.testing.assert_close(loss.discriminator(REAL, FAKE), cross_entropy(REAL, one) + cross_entropy(FAKE, zero))
    torch.testing.assert_close(loss.generator(FAKE), cross_entropy(FAKE, one))


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [  # by hand, from the three scores above
        ("hinge", (0 + 1.5 + 0.7) / 3 + (0 + 1.25 + 4) / 3, -1.75 / 3),
        ("wasserstein", 1.75 / 3 - 1.8 / 3, -1.75 / 3),
        (
            "least_squares",
            0.5 * (1 + 2.25 + 0.49) / 3 + 0.5 * (2.25 + 0.0625 + 9) / 3,
            0.5 * (6.25 + 0.5625 + 4) / 3,
        ),
    ],
)
def test_losses_equal_their_formulas(name: str, discriminator: float, generator: float) -> None:
    loss = LOSSES.build(name, {})

    torch.testing.assert_close(loss.discriminator(REAL, FAKE), torch.tensor(discriminator))
    torch.testing.assert_close(loss.generator(FAKE), torch.tensor(generator))


@pytest.mark.parametrize("name", LOSSES.names())
def test_losses_are_float32_and_finite_for_huge_bfloat16_scores(name: str) -> None:
    loss = LOSSES.build(name, {})
    huge = torch.tensor([1e4, -1e4], dtype=torch.bfloat16)

    for value in (loss.discriminator(huge, huge), loss.generator(huge)):
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
