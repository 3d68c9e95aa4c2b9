"""How many modes of a data set a generator reaches, where the modes are known and can be told apart."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from normlab.data.batches import scaled
from normlab.data.images import Dataset
from normlab.evaluation.classifier import Stored, load_classifier, shipped_classifier
from normlab.evaluation.features import scoring

DEVIATIONS = 3  # from the nearest mode within which a point is good
DIGITS = 32  # pixels of the images that the shipped classifier of MNIST was fitted to
PLACES = torch.tensor([100, 10, 1])


class ModeCounter(Protocol):
    """Counts the modes that samples lie in, batch by batch, since it was made or reset.

    protocol: what tells its counts from those of another.  counts: all that it has counted, int64 [any]; those of two
    sets of samples add up to those of both.
    """

    counts: Tensor

    @property
    def protocol(self) -> str: ...

    def reset(self) -> None:
        """Forget all batches, before another set of samples."""
        ...

    def update(self, samples: Tensor) -> None:
        """Count a batch, uint8 images or float points, [n, c, h, w]."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return `modes`, how many have a sample, `kl_to_uniform`, and what else there is to say, of all batches."""
        ...


def mode_counter(dataset: Dataset, device: torch.device) -> ModeCounter | None:
    """Return what counts the modes of a data set, if they are known."""
    if dataset.name == "gaussians":
        return Gaussians.of(dataset)
    if dataset.name == "stacked_mnist":
        shipped = shipped_classifier("mnist", (1, DIGITS, DIGITS))
        assert shipped is not None
        return StackedDigits(load_classifier(shipped), device)
    return None


class Gaussians:
    """The modes of a mixture of equally round Gaussians in the plane, and the points that lie in them.

    A point is good if it lies within 3 standard deviations of the nearest mean, and a mode is reached if a good point
    is nearest to it (Srivastava et al. 2017, VEEGAN; Lin et al. 2018, PacGAN).
    """

    def __init__(self, means: Tensor, std: float) -> None:
        self.means = means
        self.std = std
        self.reset()

    @classmethod
    def of(cls, dataset: Dataset) -> "Gaussians":
        """Estimate the means, and the standard deviation that they share, from the labelled points of both splits.

        The papers take them from the mixture. Held-out points serve too, since a limit on the others may leave none.
        """
        splits = (dataset.train, dataset.held_out)
        points = torch.from_numpy(np.concatenate([split.pixels[:] for split in splits])).double().flatten(1)
        labels = torch.from_numpy(np.concatenate([split.labels for split in splits if split.labels is not None]))
        modes = dataset.classes
        assert modes is not None
        means = torch.stack([points[labels == mode].mean(dim=0) for mode in range(modes)])
        variance = (points - means[labels]).square().sum() / (points.shape[1] * (len(points) - modes))
        return cls(means, float(variance.sqrt()))

    @property
    def protocol(self) -> str:
        return f"modes-within-{DEVIATIONS}-deviations"

    def reset(self) -> None:
        self.counts = torch.zeros(len(self.means) + 1, dtype=torch.int64)  # the last of those that lie in no mode

    def update(self, samples: Tensor) -> None:
        points = samples.detach().cpu().double().flatten(1)
        distance, nearest = (points[:, None] - self.means).norm(dim=2).min(dim=1)
        nearest[~(distance < DEVIATIONS * self.std)] = len(self.means)  # NaN too
        self.counts += nearest.bincount(minlength=len(self.counts))

    def metrics(self) -> dict[str, float]:
        """Return `modes`, `good_share`, and of the good points `kl_to_uniform`, which without any is left out."""
        in_modes = self.counts[:-1]
        good = int(in_modes.sum())
        metrics = {"modes": reached(in_modes), "good_share": good / int(self.counts.sum())}
        return metrics | ({"kl_to_uniform": kl_to_uniform(in_modes)} if good else {})


class StackedDigits:
    """The thousand modes of stacked MNIST: the digits that a classifier of MNIST sees in red, green and blue.

    Every image counts, however little it is of a digit (Metz et al. 2017, unrolled GAN; Lin et al. 2018, PacGAN). The
    classifier is the one that is shipped, theirs are their own. What is larger than 32 pixels is reduced to them.
    """

    def __init__(self, stored: Stored, device: torch.device) -> None:
        self.classifier = stored.classifier.to(device)
        self.digest = stored.digest
        self.device = device
        self.reset()

    @property
    def protocol(self) -> str:
        return f"modes-mnist-{self.digest}"

    def reset(self) -> None:
        self.counts = torch.zeros(1000, dtype=torch.int64)

    def update(self, samples: Tensor) -> None:
        with scoring(self.device):
            planes = scaled(samples.to(self.device)).flatten(0, 1).unsqueeze(1)
            if planes.shape[-1] != DIGITS:
                planes = functional.interpolate(planes, size=(DIGITS, DIGITS), mode="bicubic", antialias=True)
            digits = self.classifier(planes)[1].argmax(dim=1).cpu().unflatten(0, (-1, 3))
        self.counts += (digits * PLACES).sum(dim=1).bincount(minlength=len(self.counts))

    def metrics(self) -> dict[str, float]:
        return {"modes": reached(self.counts), "kl_to_uniform": kl_to_uniform(self.counts)}


def reached(counts: Tensor) -> float:
    """Return how many modes have a sample; counts: int64 [modes]."""
    return float((counts > 0).sum())


def kl_to_uniform(counts: Tensor) -> float:
    """Return KL(p || uniform) in nats of the shares p of counts [modes]: from 0 to the log of their number.

    Of n draws from a uniform distribution it is not 0 but about (modes - 1) / (2 n).
    """
    p = counts.double() / counts.sum()
    return float(torch.xlogy(p, p * len(p)).sum())
