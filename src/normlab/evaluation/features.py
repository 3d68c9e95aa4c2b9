"""Features of images: from the classifier that belongs to a data set, or from Inception-2015."""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.error import URLError

import torch
from filelock import FileLock
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from normlab.data.batches import scaled
from normlab.data.images import Dataset
from normlab.errors import DataError
from normlab.evaluation.artifacts import DIGEST_LENGTH
from normlab.evaluation.classifier import FEATURES, Stored, load_classifier, open_classifier
from normlab.outputs.checkpoints import UNREADABLE

FeatureKind = Literal["auto", "classifier", "inception"]

INCEPTION_FILE = URL_INCEPTION_V3.rsplit("/", 1)[1]
INCEPTION_DIGEST = "6726825d"  # the first digits of the sha256, which the name of the file promises
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


class InceptionFeatures:
    """Inception-2015 as torch-fidelity converted it: pooled features and logits without bias, from one pass.

    It resizes to 299 pixels as TensorFlow 1 did, which is what published values rest on. Grey is repeated to three
    channels.
    """

    name: Literal["inception"] = "inception"
    dimensions = 2048

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.digest = _file_digest(weights)
        self.network = _load_inception(weights).to(device)
        known = "as published" if self.digest.startswith(INCEPTION_DIGEST) else "not the published weights"
        self.info = f"Inception-2015 {self.digest}, {known}, from {weights}"

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with scoring(images.device):
            features, logits = self.network(images.expand(-1, 3, -1, -1))
        return features, logits


def open_features(kind: FeatureKind, weights: str | None, dataset: Dataset, device: torch.device) -> FeatureExtractor:
    """Return the feature extractor for a data set, ready to use.

    `auto` is the classifier for grey images and Inception for colour: it depends on the data set alone. `weights` is a
    file for the chosen kind, instead of the one that belongs to it.
    Raises DataError if the weights are missing, damaged or made for something else, or if labels are needed and there
    are none; ResourceError if the cache folder cannot be written.
    """
    channels = dataset.image_shape[0]
    if kind == "inception" or (kind == "auto" and channels == 3):
        return InceptionFeatures(_given(weights) if weights else _inception_weights(), device)
    stored = load_classifier(_given(weights)) if weights else open_classifier(dataset)
    if stored.classifier.channels != channels:
        problem = f"is a classifier of images with {stored.classifier.channels} channels; these have {channels}"
        raise DataError(weights or "evaluation.features", problem, "give one that was fitted to such images")
    return ClassifierFeatures(stored, device)


@contextmanager
def scoring(device: torch.device) -> Generator[None]:
    """Compute without gradients and in float32: scores must not depend on the precision of the training around them."""
    convolutions: Any = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
    products = torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision
    convolutions.fp32_precision = products.fp32_precision = "ieee"
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        convolutions.fp32_precision, products.fp32_precision = before


def _given(weights: str) -> Path:
    path = Path(weights).expanduser()
    if not path.is_file():
        raise DataError("evaluation.weights", f"there is no file {path}", f"give a file of weights, or {WAYS_OUT}")
    return path


def _inception_weights() -> Path:
    """Return the published weights in torch's hub folder, downloaded if they are not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not path.is_file():
        _download(path)
    digest = _file_digest(path)
    if not digest.startswith(INCEPTION_DIGEST):
        problem = f"is damaged: its sha256 starts with {digest}, not {INCEPTION_DIGEST}"
        raise DataError(str(path), problem, "delete the file, and it is downloaded again")
    return path


def _download(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():
                torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), INCEPTION_DIGEST, progress=False)
    # URLError and time-outs are OSErrors, as is a full disk; a wrong digest is a RuntimeError.
    except (OSError, RuntimeError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise DataError(
            "evaluation.features",
            f"the weights of Inception cannot be downloaded from {URL_INCEPTION_V3} to {path.parent} ({reason})",
            f"fetch them elsewhere and put the file there or give evaluation.weights=FILE; {WAYS_OUT}",
        ) from error


def _load_inception(path: Path) -> FeatureExtractorInceptionV3:
    _require_tensors(path)
    try:
        # Its constructor draws weights before it loads them; the global random state belongs to the run.
        with torch.random.fork_rng(devices=[]):
            return FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))
    except RuntimeError as error:
        problem = f"holds other weights than Inception-2015's: {_first_line(error)}"
        raise DataError(str(path), problem, f"give the file {INCEPTION_FILE}, or {WAYS_OUT}") from error


def _require_tensors(path: Path) -> None:
    """Raise DataError unless the file is a state dictionary that loads without running code.

    torch-fidelity's own loading would run whatever code a file holds, so it must come after this.
    """
    remedy = f"give the file {INCEPTION_FILE}, or {WAYS_OUT}"
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror or error}", remedy) from error
    except UNREADABLE as error:  # whose words are of torch's own flags
        raise DataError(str(path), "is no file of weights that loads without running code", remedy) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(str(path), f"holds a {type(content).__name__}, not weights by name", remedy)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[:2])[:200]


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_LENGTH]
    except OSError as error:
        raise DataError(
            str(path), f"cannot be read: {error.strerror}", f"give a file that can, or {WAYS_OUT}"
        ) from error
