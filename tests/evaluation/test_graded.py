"""Scores move the way their definitions say when classes are taken away from real images."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from normlab.data.images import Dataset
from normlab.data.sources import DATASETS
from normlab.evaluation.classifier import accuracy, open_classifier
from normlab.evaluation.evaluator import Evaluator
from normlab.evaluation.features import open_features
from normlab.training.states import judge

CPU = torch.device("cpu")
COUNT = 400  # images of each set
CLASSES = (10, 8, 5, 2, 1)


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    root = os.environ.get("NORMLAB_DATA", "data")
    if not (Path(root) / "MNIST" / "raw").is_dir():
        pytest.skip("needs the real MNIST: set NORMLAB_DATA to the folder that holds MNIST/raw")
    return DATASETS.build("mnist", {"root": root})


@pytest.mark.slow
def test_shipped_classifier_of_mnist_names_99_of_100_held_out_images_rightly(mnist: Dataset):
    stored = open_classifier(mnist)
    assert stored.metadata["held_out_accuracy"] == f"{accuracy(stored.classifier, mnist.held_out):.4f}"
    assert float(stored.metadata["held_out_accuracy"]) >= 0.99


@pytest.mark.slow
def test_scores_move_as_classes_are_taken_away(mnist: Dataset):
    """Of held-out images, as many each time, so that only which ones there are differs."""
    limited = DATASETS.build("mnist", {"root": os.environ.get("NORMLAB_DATA", "data"), "limit": 2000})
    features = open_features("auto", None, limited, CPU)
    evaluator = Evaluator(features, limited, samples=COUNT, split="train", batch_size=200, seed=0, device=CPU)
    evaluator.splits = 1
    labels, pixels = mnist.held_out.labels, mnist.held_out.pixels
    assert labels is not None
    found: dict[str, list[float]] = {}
    for classes in CLASSES:
        chosen = np.flatnonzero(labels < classes)[:COUNT]
        metrics = evaluator.evaluate_images([torch.tensor(pixels[chosen])], COUNT).metrics
        for name, value in metrics.items():
            found.setdefault(name, []).append(value)

    def falls(name: str) -> bool:
        return all(after < before for before, after in zip(found[name], found[name][1:], strict=False))

    every, single = ({"step": 1, **{name: values[place] for name, values in found.items()}} for place in (0, -1))
    assert judge(single, [every]) == "collapsed"

    # What is missing is far away from what is there.
    assert falls("classifier_score")
    assert falls("relative_spread")
    assert falls("recall")
    assert falls("coverage")
    assert found["frechet_distance"] == sorted(found["frechet_distance"])
    assert found["kernel_distance"] == sorted(found["kernel_distance"])
    # A number of classes is what the score counts, up to what the classifier is unsure of.
    assert found["classifier_score"] == pytest.approx(CLASSES, rel=0.12)
    # What is there is real: precise, and lying among more of the fewer.
    assert min(found["precision"]) > 0.85
    assert min(found["density"]) > 0.85
