"""The classifier whose features score images that Inception was never meant for, such as grey digits.

It is fitted once on a data set's own labels. For the data sets that most people start with it is shipped; for the
others it is fitted on first use and kept in the cache folder, keyed by the content of the data.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from normlab.data.batches import scaled
from normlab.data.images import Dataset, Images
from normlab.errors import DataError
from normlab.evaluation.artifacts import Artifact, cached_artifact, find_artifact, read_artifact, write_artifact
from normlab.randomness import stream

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "weights"

# Part of the key of a cached classifier: raise it whenever the network or its fit changes.
RECIPE = 1
FEATURES = 128
BATCH = 128
SHIFT = 2  # pixels of an image of 32
PEAK_LEARNING_RATE = 4e-3
WEIGHT_DECAY = 1e-2
EPOCHS = 5
LEAST_IMAGES_SEEN, MOST_IMAGES_SEEN = 48_000, 400_000


class Classifier(nn.Module):
    """A small convolutional network for images of 32 pixels or more; `forward` gives features and logits.

    images [n, channels, h, w] in [-1, 1] -> features [n, 128] (after the ReLU, as Inception's), logits [n, classes].
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.channels, self.classes = channels, classes
        self.body = nn.Sequential(
            *_convolution(channels, 16, stride=1),
            *_convolution(16, 32, stride=2),
            *_convolution(32, 64, stride=2),
            *_convolution(64, 128, stride=2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * 128, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.body(images)
        return features, self.head(features)


def _convolution(channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]


class Fitted(NamedTuple):
    """A classifier in evaluation mode and the share of held-out images that it names rightly."""

    classifier: Classifier
    held_out_accuracy: float


class Stored(NamedTuple):
    """A classifier from a file, with the first digits of the file's sha256 and what was written beside the weights.

    image_shape: channels, height and width of the images that it was fitted to.
    """

    classifier: Classifier
    digest: str
    metadata: dict[str, str]
    image_shape: tuple[int, ...]


def fit_classifier(dataset: Dataset, seed: int = 0) -> Fitted:
    """Fit a classifier to the labels of the training split, on the CPU, with images shifted by a few pixels.

    The same data and seed give the same weights on one type of machine and thread count. The weights are rounded to
    half precision, as they are stored, before the accuracy is measured. Raises DataError if there are no labels.
    """
    require_labels(dataset)
    channels, _, width = dataset.image_shape
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        classifier = Classifier(channels, len(dataset.class_names or ()))
    classifier = classifier.to(memory_format=torch.channels_last)

    labels = _labels(dataset.train)
    batch = min(BATCH, len(labels))
    images_seen = min(max(EPOCHS * len(labels), LEAST_IMAGES_SEEN), MOST_IMAGES_SEEN)
    steps = images_seen // batch
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=PEAK_LEARNING_RATE, total_steps=steps)
    for step in tqdm(range(steps), desc="fitting the classifier", unit=" steps", leave=False, disable=None):
        random = stream(seed, "classifier", step)
        chosen = torch.randint(len(labels), (batch,), generator=random)
        images = scaled(torch.from_numpy(dataset.train.pixels[chosen.numpy()]))
        shifted = _shift(images, SHIFT * width // 32, random)
        _, logits = classifier(shifted.contiguous(memory_format=torch.channels_last))
        optimizer.zero_grad()
        functional.cross_entropy(logits, labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    classifier = classifier.half().float().to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    return Fitted(classifier, accuracy(classifier, dataset.held_out))


def accuracy(classifier: Classifier, images: Images) -> float:
    """Return the share of labelled images that the classifier names rightly."""
    chunks = (torch.tensor(images.pixels[start : start + 500]) for start in range(0, len(images), 500))
    with torch.inference_mode():
        named = [classifier(scaled(chunk))[1].argmax(dim=1) for chunk in chunks]
    return float((torch.cat(named) == _labels(images)).double().mean())


def require_labels(dataset: Dataset) -> None:
    """Raise DataError unless the training and the held-out images are labelled."""
    if dataset.train.labels is None or dataset.held_out.labels is None or not dataset.class_names:
        raise DataError(
            "evaluation.features",
            f"the classifier needs labels, and the data set '{dataset.name}' has none",
            "use evaluation.features=inception, or train without scores, evaluation=none",
        )


def open_classifier(dataset: Dataset) -> Stored:
    """Return the classifier that belongs to a data set: shipped, cached, or fitted now while other processes wait.

    A shipped one is chosen by the data set's name and image size, so that a run on a part of the data is scored alike.
    Raises DataError if it would have to be fitted and there are no labels, ResourceError if it cannot be cached.
    """
    shipped = shipped_classifier(dataset.name, dataset.image_shape)
    if shipped is not None:
        return load_classifier(shipped)
    require_labels(dataset)
    key = f"{dataset.name}-{dataset.fingerprint[:16]}-recipe{RECIPE}"

    def fit(folder: Path) -> Path:
        log.info("fitting a classifier to the labels of '%s', once; it is kept in %s", dataset.name, folder)
        return save_classifier(fit_classifier(dataset), dataset, folder, key)

    return _restored(cached_artifact("classifiers", key, fit), key)


def shipped_classifier(name: str, image_shape: tuple[int, int, int]) -> Path | None:
    """Return the file of the classifier that is shipped for a data set at this image size, if there is one."""
    return find_artifact(SHIPPED, shipped_key(name, image_shape))


def by(image_shape: tuple[int, ...]) -> str:
    """Return how the shape of an image is written: `3x32x32`."""
    return "x".join(map(str, image_shape))


def all_shipped() -> list[str]:
    """Return the keys of the classifiers that are shipped, `digits-1x32x32` for one."""
    return sorted(path.stem.rpartition("-")[0] for path in SHIPPED.glob("*.safetensors"))


def shipped_key(name: str, image_shape: tuple[int, int, int]) -> str:
    """Return what the name of a shipped classifier's file says of it, as in `digits-1x32x32`."""
    return f"{name}-{by(image_shape)}"


def save_classifier(fitted: Fitted, dataset: Dataset, folder: Path, key: str) -> Path:
    """Write a classifier in half precision to `<key>-<digest>.safetensors`, with what it was fitted to."""
    metadata = {
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "image_shape": by(dataset.image_shape),
        "channels": str(fitted.classifier.channels),
        "classes": str(fitted.classifier.classes),
        "held_out_accuracy": f"{fitted.held_out_accuracy:.4f}",
        "recipe": str(RECIPE),
    }
    weights = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in fitted.classifier.state_dict().items()
    }
    return write_artifact(folder, key, weights, metadata)


def load_classifier(path: Path) -> Stored:
    """Read a classifier in evaluation mode; raise DataError if the file is damaged or holds none."""
    return _restored(read_artifact(path), str(path))


def _restored(artifact: Artifact, where: str) -> Stored:
    metadata = artifact.metadata
    try:
        classifier = Classifier(int(metadata["channels"]), int(metadata["classes"]))
        classifier.load_state_dict(artifact.tensors)
        image_shape = tuple(map(int, metadata["image_shape"].split("x")))
    except (KeyError, ValueError, RuntimeError) as error:
        raise DataError(where, f"holds no classifier: {error}", "give a file that normlab wrote") from error
    return Stored(classifier.eval().requires_grad_(False), artifact.digest, metadata, image_shape)


def _labels(images: Images) -> Tensor:
    assert images.labels is not None
    return torch.tensor(images.labels)  # a copy: the array is read-only


def _shift(images: Tensor, pixels: int, random: torch.Generator) -> Tensor:
    """Move a batch by up to `pixels` each way, repeating the border."""
    top, left = torch.randint(2 * pixels + 1, (2,), generator=random).tolist()
    padded = functional.pad(images, [pixels] * 4, mode="replicate")
    return padded[:, :, top : top + images.shape[2], left : left + images.shape[3]]
