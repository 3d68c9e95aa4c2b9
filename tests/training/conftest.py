"""A step on a small synthetic data set, built from a configuration as a run builds it."""

import copy
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

from normlab import assemble, composition, config
from normlab.data.images import Dataset, Images
from normlab.ranks import ALONE, Ranks
from normlab.training.step import Step

BuildStep = Callable[..., Step]
GROUPS = composition.groups()
CPU = torch.device("cpu")


def synthetic_dataset() -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 1, 32, 32), dtype=np.uint8)
    images = Images(pixels, np.arange(50) % 10)
    return Dataset("synthetic", images, images, None, "0" * 64, flip=False, notes=())


@cache
def composed(*words: str) -> config.Tree:
    tree, complaints = composition.compose([*words])
    assert not complaints
    return tree


def chosen(words: list[str]) -> config.Tree:
    """Return the tree of overrides that choose parts, each composed alone and once, since that takes a while."""
    tree = copy.deepcopy(composed())
    for word in sorted(words, key=lambda word: word.partition("=")[0].count(".")):  # a slot's after its group's
        *path, last = word.partition("=")[0].split(".")
        source, target = composed(word), tree
        for name in path:
            source, target = source[name], target[name]
        target[last] = source[last]
    return tree


def chooses(word: str) -> bool:
    key = word.partition("=")[0]
    return key in composition.SLOTS or key in GROUPS


@cache
def checked(words: tuple[str, ...]) -> config.RunConfig:
    """Return the configuration of overrides that hold."""
    tree = chosen([*filter(chooses, words)])
    tree, complaints = composition.override(tree, [word for word in words if not chooses(word)])
    settings, more = config.read(tree)
    assert not complaints + more
    assert assemble.check(settings) == []
    return settings


@pytest.fixture
def build_step() -> BuildStep:
    """Return a function from overrides, a device and who shares it, to a step at step 0."""

    def build(*words: str, device: torch.device = CPU, ranks: Ranks = ALONE) -> Step:
        small = ["train.batch_size=8", "architecture.width=4", "evaluation.features=none"]
        settings = checked((*small, *words))
        dataset = synthetic_dataset()
        return assemble.build_step(settings, dataset, assemble.open_batches(settings, dataset, device), device, ranks)

    return build
