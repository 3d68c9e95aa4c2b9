"""What scores are worth on a data set: those of images of which it is known how good they are."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from normlab.data.images import Images
from normlab.data.pixels import Labels
from normlab.evaluation.evaluator import Evaluation, Evaluator
from normlab.randomness import stream


def sanity(evaluator: Evaluator) -> Iterator[tuple[str, int, Evaluation]]:
    """Yield what images are, how many, and what they score.

    `same split`: of the real images that they are held against, which is the floor of distances, while each is its own
    neighbour; `other split`: real images that are not among those, which is the floor where the splits are alike;
    `noise`: every pixel uniform; `class NAME`: images of one class alone, where there are labels. As many as an
    evaluation has samples, or fewer where there are not so many, which makes distances larger.
    """
    dataset, count = evaluator.dataset, evaluator.samples
    other = dataset.held_out if evaluator.split == "train" else dataset.train
    for what, images in (("same split", evaluator.images), ("other split", other)):
        chosen = _some(np.arange(len(images)), count)
        if len(chosen) > 1:
            yield what, len(chosen), evaluator.evaluate_images(_batches(evaluator, images, chosen), len(chosen))
    yield "noise", count, evaluator.evaluate_images(_noise(evaluator), count)
    if dataset.train.labels is not None:
        chosen = _some(np.flatnonzero(dataset.train.labels == 0), count)
        name = "0" if dataset.class_names is None else dataset.class_names[0]
        found = evaluator.evaluate_images(_batches(evaluator, dataset.train, chosen), len(chosen))
        yield f"class {name}", len(chosen), found


def _some(numbers: Labels, count: int) -> Labels:
    """Return so many of the numbers, in order, always the same ones."""
    order = torch.randperm(len(numbers), generator=stream(0, "sanity")).numpy()
    return np.sort(numbers[order[:count]])


def _batches(evaluator: Evaluator, images: Images, numbers: Labels) -> Iterator[Tensor]:
    for start in range(0, len(numbers), evaluator.batch_size):
        pixels = images.pixels[numbers[start : start + evaluator.batch_size]]
        yield torch.from_numpy(np.array(pixels)).to(evaluator.device)


def _noise(evaluator: Evaluator) -> Iterator[Tensor]:
    for start in range(0, evaluator.samples, evaluator.batch_size):
        shape = (min(evaluator.batch_size, evaluator.samples - start), *evaluator.dataset.image_shape)
        noise = torch.rand(shape, generator=stream(0, "noise", start))
        points = evaluator.dataset.of_points
        yield (2 * noise - 1 if points else (256 * noise).to(torch.uint8)).to(evaluator.device)
