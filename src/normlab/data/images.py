"""The values that a data set consists of."""

import hashlib
from dataclasses import dataclass

import numpy as np

from normlab.data.pixels import Labels, Pixels, StreamedPixels

BLOCK = 1000  # images that are digested at a time


@dataclass(frozen=True)
class Images:
    """One split: pixels uint8 [n, c, h, w], read-only, and labels int64 [n], if any.

    The pixels are as a rule memory-mapped, and may be decoded on the way: read them in slices or by arrays of indices.
    """

    pixels: Pixels | StreamedPixels
    labels: Labels | None

    def __len__(self) -> int:
        return len(self.pixels)

    def digest(self) -> str:
        """Return the sha256, in hexadecimal, of shape, pixels and labels."""
        content = hashlib.sha256(repr(self.pixels.shape).encode())
        for start in range(0, len(self), BLOCK):
            content.update(np.ascontiguousarray(self.pixels[start : start + BLOCK]).data)
        if self.labels is not None:
            content.update(self.labels.astype("<i8").data)
        return content.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """Two splits and what is known of them.

    fingerprint: sha256 of what the networks see, the pixels and labels of both splits, or of the files and settings
    that decide them where images are streamed.
    flip: whether training images are mirrored at random.  notes: lines for the log of a run.
    """

    name: str
    train: Images
    held_out: Images
    class_names: tuple[str, ...] | None
    fingerprint: str
    flip: bool
    notes: tuple[str, ...]

    @property
    def of_points(self) -> bool:
        """Whether the images are points in the plane, two channels of one pixel, which no network scores."""
        return self.image_shape == (2, 1, 1)

    @property
    def classes(self) -> int | None:
        """How many labels there are; None where images have none."""
        if self.train.labels is None:
            return None
        return int(self.train.labels.max()) + 1 if self.class_names is None else len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        _, channels, height, width = self.train.pixels.shape
        return channels, height, width
