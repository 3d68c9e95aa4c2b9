"""Pixels in memory, mapped from a file, or decoded on the way."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8 | np.float32]  # 0..255, or of points, in the range of images
Labels = npt.NDArray[np.int64]

PIECES_PER_WORKER = 4  # enough that no thread waits long for the slowest one


class StreamedPixels:
    """Pixels uint8 [n, c, h, w] that are decoded whenever they are read; they are read by a slice or by indices.

    read: takes the number of an image and gives its pixels [c, h, w]; raises DataError if it cannot.  workers: how many
    threads decode (Pillow lets go of the interpreter meanwhile). The bits do not depend on their number.
    """

    def __init__(
        self, count: int, image_shape: tuple[int, int, int], read: Callable[[int], Pixels], workers: int
    ) -> None:
        self.shape = (count, *image_shape)
        self.workers = workers
        self._read = read
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> Pixels:
        numbers = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        if len(numbers) == 0:
            return np.empty((0, *self.shape[1:]), np.uint8)
        pieces = np.array_split(numbers, min(len(numbers), PIECES_PER_WORKER * self.workers))
        return np.concatenate(list(self._threads.map(self._read_all, pieces)))

    def select(self, numbers: npt.NDArray[np.int64]) -> "StreamedPixels":
        """Return the images of these numbers, in this order, as streamed pixels too."""
        _, channels, height, width = self.shape
        return StreamedPixels(
            len(numbers), (channels, height, width), lambda row: self._read(int(numbers[row])), self.workers
        )

    def _read_all(self, numbers: npt.NDArray[np.int64]) -> Pixels:
        return np.stack([self._read(int(number)) for number in numbers])
