"""Features of images: of the classifier that belongs to a data set, of Inception-2015, or of a network of yours."""

import hashlib
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from normlab.data.batches import scaled
from normlab.data.images import Dataset
from normlab.errors import DataError
from normlab.evaluation.artifacts import DIGEST_LENGTH
from normlab.evaluation.classifier import FEATURES as CLASSIFIER_FEATURES
from normlab.evaluation.classifier import Stored, by, load_classifier, open_classifier
from normlab.registry import Registry
from normlab.signals import postponed

# The last is no way for `normlab score`, so it says whose way it is.
WAYS_OUT = "use evaluation.features=classifier, or train without scores, evaluation=none"


class FeatureExtractor(Protocol):
    """A fixed network that turns images into features and logits, and what a protocol must say of it.

    digest: 12 hexadecimal digits, others whenever the same images would have other features: of the sha256 of its
    weights' file, and of its code where that may change.  info: a line for the log.  published: whether scores on these
    features are the FID, the Inception score and the KID of the literature.
    """

    @property
    def name(self) -> str: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def info(self) -> str: ...
    @property
    def published(self) -> bool: ...

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features [n, dimensions] and logits [n, classes], or None, float32, of images [n, c, h, w].

        images: uint8; float32 where they are points.
        """
        ...


def label(features: FeatureExtractor) -> str:
    """Return what a protocol calls features."""
    return "-".join(filter(None, (features.name, features.digest)))


# Makes an extractor for a data set from a file of weights, or from those that belong to it where none is given.
Builder = Callable[[Dataset, Path | None, torch.device], FeatureExtractor]

FEATURES: Registry[Builder] = Registry("features")


class ClassifierFeatures:
    """The features before the last layer of a data set's own classifier, and its logits."""

    name = "classifier"
    dimensions = CLASSIFIER_FEATURES
    published = False

    def __init__(self, stored: Stored, device: torch.device) -> None:
        self.network = stored.classifier.to(device)
        self.image_shape = stored.image_shape
        self.digest = stored.digest
        about = stored.metadata
        accuracy = float(about.get("held_out_accuracy", "nan"))
        self.info = f"classifier {self.digest} of '{about.get('dataset')}', {accuracy:.2%} right on held-out images"

    def require(self, image_shape: tuple[int, ...]) -> None:
        """Raise DataError for images of another shape, which the network would take without a word."""
        if image_shape != self.image_shape:
            problem = (
                f"the classifier was fitted to images {by(self.image_shape)}, and some of these are {by(image_shape)}"
            )
            remedy = "give images of that size, another classifier, or evaluation.features=inception, which resizes"
            raise DataError("evaluation.features", problem, remedy)

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        self.require(images.shape[1:])  # sets that are scored without a data set may hold images of many sizes
        with scoring(images.device):
            return self.network(scaled(images))


class Coordinates:
    """Points in the plane as their own features."""

    name = info = "coordinates"
    digest = ""
    dimensions = 2
    published = False

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return images.flatten(1).float(), None


class ScriptedFeatures:
    """A network of yours in a TorchScript file: takes uint8 [n, c, h, w] to features [n, d], or to those and logits."""

    name = "torchscript"
    published = False

    def __init__(self, path: Path, image_shape: tuple[int, int, int], device: torch.device) -> None:
        self.digest = file_digest(path)
        self.info = f"TorchScript {self.digest} from {path}"
        try:
            self.network = torch.jit.load(str(path), map_location=device).eval()
            features, _ = self.extract(torch.zeros(2, *image_shape, dtype=torch.uint8, device=device))
        except Exception as error:  # a network of somebody else's may fail in any way
            reason = " ".join(str(error).split())[-200:]
            remedy = "give a TorchScript file that takes uint8 [n, c, h, w] to features [n, d]"
            raise DataError(str(path), f"gives no features: {reason}", remedy) from error
        self.dimensions = features.shape[1]

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        with scoring(images.device):
            output: Any = self.network(images)
        features, logits = output if isinstance(output, tuple) else (output, None)
        if features.shape != (len(images), features.numel() // len(images)):
            raise ValueError(f"{list(features.shape)} is not [n, d]")
        return features.float(), logits


def _require_images(dataset: Dataset, what: str) -> None:
    """Raise DataError where the images of a data set are points."""
    if dataset.of_points:
        remedy = "use evaluation.features=coordinates, or train without scores, evaluation=none"
        raise DataError("evaluation.features", f"{what} is of images, and those of '{dataset.name}' are points", remedy)


@FEATURES.register("classifier")
def classifier(dataset: Dataset, weights: Path | None, device: torch.device) -> FeatureExtractor:
    """The data set's own classifier: shipped, cached, or fitted now to its labels."""
    _require_images(dataset, "the classifier")
    features = ClassifierFeatures(load_classifier(weights) if weights else open_classifier(dataset), device)
    features.require(dataset.image_shape)
    return features


@FEATURES.register("coordinates")
def coordinates(dataset: Dataset, weights: Path | None, device: torch.device) -> FeatureExtractor:
    """The two coordinates of points, for data that are points."""
    if not dataset.of_points:
        raise DataError("evaluation.features", "coordinates are of points, and these are images", WAYS_OUT)
    return Coordinates()


@FEATURES.register("torchscript")
def torchscript(dataset: Dataset, weights: Path | None, device: torch.device) -> FeatureExtractor:
    """A network of yours, from the TorchScript file evaluation.weights."""
    if weights is None:
        raise DataError("evaluation.weights", "torchscript features need a file", "give evaluation.weights=FILE")
    return ScriptedFeatures(weights, dataset.image_shape, device)


def _inception(layer: int, text: str) -> Builder:
    def build(dataset: Dataset, weights: Path | None, device: torch.device) -> FeatureExtractor:
        _require_images(dataset, "Inception")
        # It brings torch-fidelity and torchvision: a second and 80 MB that a run without it does not need.
        with postponed():
            from normlab.evaluation.inception import InceptionFeatures, published_weights

        return InceptionFeatures(weights or published_weights(), device, layer)

    build.__doc__ = text
    return build


for name, layer, text in (
    ("inception", 2048, "Inception-2015, pooled: what the FID, the Inception score and the KID are of."),
    ("inception-768", 768, "Inception-2015 before its last blocks, averaged over the map; no logits."),
    ("inception-192", 192, "Inception-2015 behind its second pooling, averaged over the map; no logits."),
    ("inception-64", 64, "Inception-2015 behind its first pooling, averaged over the map; no logits."),
):
    FEATURES.register(name)(_inception(layer, text))


def open_features(kind: str, weights: str | None, dataset: Dataset, device: torch.device) -> FeatureExtractor:
    """Return the feature extractor for a data set, ready to use.

    `auto` is Inception for colour, the classifier for grey images and the coordinates of points: it depends on the data
    set alone. `weights` is a file for the chosen kind, instead of the one that belongs to it.
    Raises DataError if the weights are missing, damaged or made for something else, or if labels are needed and there
    are none; ResourceError if the cache folder cannot be written.
    """
    if kind == "auto":
        grey = "coordinates" if dataset.of_points else "classifier"
        kind = "inception" if dataset.image_shape[0] == 3 else grey
    return FEATURES.build(kind, {}, dataset, _given(weights) if weights else None, device)


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


def file_digest(path: Path) -> str:
    """Return the first digits of a file's sha256; raise DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_LENGTH]
    except OSError as error:
        raise DataError(
            str(path), f"cannot be read: {error.strerror}", f"give a file that can, or {WAYS_OUT}"
        ) from error


def _given(weights: str) -> Path:
    """Return the file of weights; raise DataError if it is not there or not what its name promises."""
    path = Path(weights).expanduser()
    if not path.is_file():
        raise DataError("evaluation.weights", f"there is no file {path}", f"give a file of weights, or {WAYS_OUT}")
    promised = re.search(rf"-([0-9a-f]{{8,{DIGEST_LENGTH}}})$", path.stem)
    if promised and not (digest := file_digest(path)).startswith(promised[1]):
        problem = f"is damaged or misnamed: its sha256 starts with {digest}, not with the {promised[1]} of its name"
        raise DataError(str(path), problem, f"fetch it again, or rename it; {WAYS_OUT}")
    return path
