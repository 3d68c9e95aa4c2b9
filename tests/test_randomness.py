import torch

from normlab.randomness import permutation, stream


def test_a_stream_depends_on_its_key_alone() -> None:
    first = torch.randn(8, generator=stream(3, "latents", 7))
    torch.manual_seed(99)
    torch.randn(5)

    assert torch.equal(first, torch.randn(8, generator=stream(3, "latents", 7)))


def test_streams_of_different_keys_differ() -> None:
    keys = [(0, "latents", 1), (1, "latents", 1), (0, "flip", 1), (0, "latents", 2), (0, "latents", 1, 1)]
    draws = {tuple(torch.randn(4, generator=stream(*key)).tolist()) for key in keys}

    assert len(draws) == len(keys)


def test_a_stream_is_the_same_in_every_version() -> None:
    """These numbers are part of what a seed means: if they change, no earlier run can be repeated."""
    draw = torch.randint(1000, (4,), generator=stream(0, "golden"))

    assert draw.tolist() == GOLDEN


def test_a_permutation_shows_every_index_once() -> None:
    assert sorted(permutation(0, "data", 3, 100).tolist()) == list(range(100))
    assert not torch.equal(permutation(0, "data", 3, 100), permutation(0, "data", 4, 100))


GOLDEN = [640, 96, 323, 260]
