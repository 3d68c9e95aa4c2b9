"""Randomness as a function of (seed, purpose, position), so that nothing random needs to be saved or restored."""

import hashlib

import torch
from torch import Tensor


def stream(seed: int, *key: str | int) -> torch.Generator:
    """Return the CPU generator that belongs to a seed, a purpose and a position, the same on every machine.

    Draws are made on the CPU and copied, so that a run on another device sees the same numbers.
    """
    text = "/".join(str(part) for part in (seed, *key))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def permutation(seed: int, purpose: str, epoch: int, count: int) -> Tensor:
    """Return the order in which an epoch shows `count` images, int64 [count]."""
    return torch.randperm(count, generator=stream(seed, purpose, epoch))
