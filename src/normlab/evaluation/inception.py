"""Inception-2015, which published scores rest on: its weights, and features of images from it."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from filelock import FileLock
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from normlab.errors import DataError
from normlab.evaluation.features import WAYS_OUT, file_digest, scoring
from normlab.outputs.checkpoints import UNREADABLE

INCEPTION_FILE = URL_INCEPTION_V3.rsplit("/", 1)[1]
INCEPTION_DIGEST = "6726825d"  # the first digits of the sha256, which the name of the file promises
PUBLISHED_LAYER = 2048  # torch-fidelity names layers by their features


class InceptionFeatures:
    """Inception-2015 as torch-fidelity converted it: pooled features of a layer, of the last with logits without bias.

    It resizes to 299 pixels as TensorFlow 1 did, which is what published values rest on. Grey is repeated to three
    channels. One pass gives both.
    """

    def __init__(self, weights: Path, device: torch.device, layer: int = PUBLISHED_LAYER) -> None:
        self.dimensions = layer
        self.published = layer == PUBLISHED_LAYER
        self.name = "inception" if self.published else f"inception-{layer}"
        self.digest = file_digest(weights)
        heads = [str(layer), "logits_unbiased"] if self.published else [str(layer)]
        self.network = _load_inception(weights, heads).to(device)
        known = "as published" if self.digest.startswith(INCEPTION_DIGEST) else "not the published weights"
        self.info = f"Inception-2015 {self.digest}, {known}, from {weights}"

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        with scoring(images.device):
            features, *logits = self.network(images.expand(-1, 3, -1, -1))
        return features, logits[0] if logits else None


def published_weights() -> Path:
    """Return the published weights in torch's hub folder, downloaded if they are not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not path.is_file():
        _download(path)
    digest = file_digest(path)
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


def _load_inception(path: Path, heads: list[str]) -> FeatureExtractorInceptionV3:
    _require_tensors(path)
    try:
        # Its constructor draws weights before it loads them; the global random state belongs to the run.
        with torch.random.fork_rng(devices=[]):
            return FeatureExtractorInceptionV3("inception", heads, str(path))
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
