"""The endless stream of real images that a run trains on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

from normlab.data.images import Images
from normlab.data.pixels import Pixels, StreamedPixels
from normlab.errors import DataError
from normlab.randomness import permutation, stream

LARGEST_COPY = 2**30  # bytes of pixels that are copied into memory; more are read where they lie on the disk
BATCHES_AHEAD = 4  # that are read while the network trains, where the images are not in memory


class RealBatches:
    """An endless stream of training images, addressed by position: a permutation per epoch, nothing dropped.

    The image at a position depends on the seed alone, and a batch on its position, never on what was asked before.
    Raises DataError if the split has fewer images than a batch.
    """

    def __init__(self, images: Images, *, seed: int, batch_size: int, flip: bool, device: torch.device) -> None:
        if batch_size > len(images):
            problem = f"is {batch_size}, but there are only {len(images)} training images"
            raise DataError("train.batch_size", problem, f"give at most {len(images)}")
        self.images = images
        self.seed = seed
        self.batch_size = batch_size
        self.flip = flip
        self.device = device
        self.resident = _resident(images, device)
        # Two permutations: a batch may end one epoch and begin the next.
        self.order = lru_cache(maxsize=2)(self._order)
        # A reader for the whole batch, and one for the part of it that alone is needed of several processes.
        self.ahead = lru_cache(maxsize=2)(self._reader)

    def batch(self, images_seen: int) -> Tensor:
        """Return the images at position `images_seen` of the stream and after it, float32 [batch, c, h, w] in [-1, 1].

        Never waits for the device.
        """
        rows = queued(self.rows(images_seen, slice(0, self.batch_size)), self.device)
        return self.images_of(rows, queued(self.flips(images_seen), self.device) if self.flip else None)

    def rows(self, images_seen: int, part: slice) -> Tensor:
        """Return what the device needs of the host for a part of the batch at a position: indices, or pixels."""
        if self.resident is not None:
            return self._indices(images_seen)[part]
        return torch.from_numpy(self.ahead(part.start, part.stop).take(images_seen))

    def images_of(self, rows: Tensor, flips: Tensor | None) -> Tensor:
        """Return the images of rows that are on the device, float32 [batch, c, h, w] in [-1, 1], mirrored where told.

        Calls nothing of the host, so that it may be compiled into one kernel.
        """
        images = scaled(rows if self.resident is None else self.resident.index_select(0, rows))
        return images if flips is None else mirrored(images, flips)

    def flips(self, images_seen: int) -> Tensor:
        """Return which of the images at a position are to be mirrored, if any are, bool [batch]."""
        return torch.rand(self.batch_size, generator=stream(self.seed, "flip", images_seen)) < 0.5

    def labels(self, images_seen: int) -> Tensor:
        """Return the labels of the images at a position, int64 [batch], of images that have labels."""
        assert self.images.labels is not None
        return torch.from_numpy(self.images.labels[self._indices(images_seen).numpy()]).long()

    def _indices(self, images_seen: int) -> Tensor:
        """Return which images stand at a position of the stream, int64 [batch]."""
        epoch, start = divmod(images_seen, len(self.images))
        indices = self.order(epoch)[start : start + self.batch_size]
        missing = self.batch_size - len(indices)  # a batch is at most an epoch long, so the next epoch has them all
        return torch.cat([indices, self.order(epoch + 1)[:missing]]) if missing else indices

    def _order(self, epoch: int) -> Tensor:
        return permutation(self.seed, "data", epoch, len(self.images))

    def _reader(self, start: int, stop: int) -> "ReadAhead":
        def read(images_seen: int) -> Pixels:
            return self.images.pixels[self._indices(images_seen)[start:stop].numpy()]

        return ReadAhead(read, self.batch_size)


class ReadAhead:
    """Batches that threads read before they are needed; each is known by its position, so none can be mistaken.

    read: takes a position of the stream to the batch there.  step: how far one batch is from the next.
    """

    def __init__(self, read: Callable[[int], Pixels], step: int) -> None:
        self.read = read
        self.step = step
        self.batches: dict[int, Future[Pixels]] = {}
        self.threads = ThreadPoolExecutor(BATCHES_AHEAD, thread_name_prefix="read-ahead")

    def take(self, position: int) -> Pixels:
        """Return the batch at a position, and begin to read those after it; raise what reading it has raised."""
        wanted = range(position, position + (BATCHES_AHEAD + 1) * self.step, self.step)
        for stale in self.batches.keys() - set(wanted):
            self.batches.pop(stale).cancel()
        for start in wanted:
            if start not in self.batches:
                self.batches[start] = self.threads.submit(self.read, start)
        return self.batches.pop(position).result()


def queued(values: Tensor, device: torch.device) -> Tensor:
    """Return values of the host on the device, without waiting for it."""
    # From pinned memory a copy is only queued; from ordinary memory it would wait.
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def mirrored(images: Tensor, flips: Tensor) -> Tensor:
    """Return images [n, c, h, w], mirrored left to right where flips [n] says so."""
    return torch.where(flips[:, None, None, None], images.flip(-1), images)


def scaled(pixels: Tensor) -> Tensor:
    """Return pixels 0..255 as float32 in [-1, 1], where points are already."""
    if pixels.is_floating_point():
        return pixels
    return pixels.to(torch.float32).div_(127.5).sub_(1)


def _resident(images: Images, device: torch.device) -> Tensor | None:
    """Return all pixels on the device, or None if they should stay where they are."""
    if isinstance(images.pixels, StreamedPixels):
        return None
    room = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else LARGEST_COPY
    if images.pixels.nbytes > room:
        return None
    return torch.from_numpy(images.pixels.copy()).to(device)
