"""A step on a small synthetic data set, built from a configuration as a run builds it."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

from normlab import assemble, composition, config
from normlab.data.images import Dataset, Images
from normlab.training.step import Step

BuildStep = Callable[..., Step]
GROUPS = composition.groups()
CPU = torch.device("cpu")


def synthetic_dataset() -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 1, 32, 32), dtype=np.uint8)
    images = Images(pixels, np.arange(50) % 10)
    return Dataset("synthetic", images, images, None, "0" * 64, flip=False, notes=())


@cache
def chosen(words: tuple[str, ...]) -> config.Tree:
    """Return the tree of overrides that choose parts; once for the same ones, since composing takes a while."""
    tree, complaints = composition.compose([*words])
    assert not complaints
    return tree


def chooses(word: str) -> bool:
    key = word.partition("=")[0]
    return key in composition.SLOTS or key in GROUPS


@cache
def checked(words: tuple[str, ...]) -> config.RunConfig:
    """Return the configuration of overrides that hold."""
    tree = chosen(tuple(filter(chooses, words)))
    tree, complaints = composition.override(tree, [word for word in words if not chooses(word)])
    settings, more = config.read(tree)
    assert not complaints + more
    assert assemble.check(settings) == []
    return settings


@pytest.fixture
def build_step() -> BuildStep:
    """Return a function from overrides, and a device, to a step at step 0."""

    def build(*words: str, device: torch.device = CPU) -> Step:
        small = ["train.batch_size=8", "architecture.width=4", "evaluation.features=none"]
        settings = checked((*small, *words))
        dataset = synthetic_dataset()
        return assemble.build_step(settings, dataset, assemble.open_batches(settings, dataset, device), device)

    return build
