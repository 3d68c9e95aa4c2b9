"""Features of images: from the classifier that belongs to a data set, or from Inception-2015."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from normlab.data.batches import scaled
from normlab.data.images import Dataset
from normlab.errors import DataError
from normlab.evaluation.classifier import FEATURES, Stored, load_classifier, open_classifier
from normlab.signals import postponed

FeatureKind = Literal["auto", "classifier", "inception"]

WAYS_OUT = "use evaluation.features=classifier, or evaluation=none"


class FeatureExtractor(Protocol):
    """A fixed network that turns images into features and logits, and what a protocol must say of it.

    digest: the first 12 hexadecimal digits of the sha256 of its weights' file.  info: a line for the log.
    """

    @property
    def name(self) -> Literal["classifier", "inception"]: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def info(self) -> str: ...

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [n, dimensions] and logits [n, classes], float32, of images uint8 [n, c, h, w]."""
        ...


class ClassifierFeatures:
    """The features before the last layer of a data set's own classifier, and its logits."""

    name: Literal["classifier"] = "classifier"
    dimensions = FEATURES

    def __init__(self, stored: Stored, device: torch.device) -> None:
        self.network = stored.classifier.to(device)
        self.digest = stored.digest
        about = stored.metadata
        accuracy = float(about.get("held_out_accuracy", "nan"))
        self.info = f"classifier {self.digest} of '{about.get('dataset')}', {accuracy:.2%} right on held-out images"

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with scoring(images.device):
            return self.network(scaled(images))


def open_features(kind: FeatureKind, weights: str | None, dataset: Dataset, device: torch.device) -> FeatureExtractor:
    """Return the feature extractor for a data set, ready to use.

    `auto` is the classifier for grey images and Inception for colour: it depends on the data set alone. `weights` is a
    file for the chosen kind, instead of the one that belongs to it.
    Raises DataError if the weights are missing, damaged or made for something else, or if labels are needed and there
    are none; ResourceError if the cache folder cannot be written.
    """
    channels = dataset.image_shape[0]
    if kind == "inception" or (kind == "auto" and channels == 3):
        # It brings torch-fidelity and torchvision: a second and 80 MB that a run without it does not need.
        with postponed():
            from normlab.evaluation.inception import InceptionFeatures, published_weights

        return InceptionFeatures(_given(weights) if weights else published_weights(), device)
    stored = load_classifier(_given(weights)) if weights else open_classifier(dataset)
    if stored.classifier.channels != channels:
        problem = f"is a classifier of images with {stored.classifier.channels} channels; these have {channels}"
        raise DataError(weights or "evaluation.features", problem, "give one that was fitted to such images")
    return ClassifierFeatures(stored, device)


@contextmanager
def scoring(device: torch.device) -> Generator[None]:
    """Compute without gradients and in float32."""
    with torch.no_grad(), in_float32(device):
        yield


@contextmanager
def in_float32(device: torch.device) -> Generator[None]:
    """Compute in float32: scores must not depend on the precision of the training around them."""
    convolutions: Any = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
    products = torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision
    convolutions.fp32_precision = products.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        convolutions.fp32_precision, products.fp32_precision = before


def _given(weights: str) -> Path:
    path = Path(weights).expanduser()
    if not path.is_file():
        raise DataError("evaluation.weights", f"there is no file {path}", f"give a file of weights, or {WAYS_OUT}")
    return path
