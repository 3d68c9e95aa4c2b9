"""Lengths of training in steps, and when something is due."""

import math
from dataclasses import dataclass
from fractions import Fraction

from normlab.config import RunConfig
from normlab.settings import Length


@dataclass(frozen=True)
class Pace:
    """How many real images an epoch has and how many of them the discriminator sees in a step."""

    images_per_epoch: int
    images_per_step: int

    def steps(self, length: Length) -> int:
        """Return the first step at which a length, in any unit but minutes, has been trained."""
        return math.ceil(self._in_steps(length))

    def due(self, length: Length | None, step: int) -> bool:
        """Return whether a multiple of a length is first reached at this step; never for None or minutes.

        A function of the step alone: a run that was stopped does the same things at the same steps.
        """
        if length is None or length.unit == "minutes" or step == 0:
            return False
        interval = self._in_steps(length)
        return math.floor(step / interval) > math.floor((step - 1) / interval)

    def epochs(self, images_seen: int) -> float:
        return images_seen / self.images_per_epoch

    def _in_steps(self, length: Length) -> Fraction:
        if length.unit == "minutes":
            raise ValueError(f"{length} is no number of steps")
        images = {"images": 1, "epochs": self.images_per_epoch, "steps": self.images_per_step}[length.unit]
        # Exact: 1.1 epochs of 100 images are 110 of them, in floating point a little more.
        return Fraction(str(length.value)) * images / self.images_per_step


def pace_of(config: RunConfig, training_images: int) -> Pace:
    return Pace(training_images, config.train.batch_size * config.train.discriminator_steps)
