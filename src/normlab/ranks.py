"""Who trains a run: this process alone, or several that share its work and are told apart by their ranks.

Nothing here needs torch.distributed, which a run of one process never loads; `normlab.distributed` has the rest.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar

from normlab.errors import Complaint, NormlabError

if TYPE_CHECKING:  # the command line asks how many there are, long before it needs torch
    from torch import Tensor

Value = TypeVar("Value")


class Order(IntEnum):
    """What the first rank has the others do."""

    START = 0  # build the run that it describes, and take over its state
    STEP = 1  # take a step
    EVALUATE = 2  # make their shares of the samples of a generator, and score them


class Ranks:
    """This process alone: everything is its own, whatever is shared is the whole, and nobody is told anything.

    local_rank: the number of this process among those on its machine, where there are several processes.
    """

    rank = 0
    count = 1
    local_rank: int | None = None

    def rows(self, count: int) -> slice:
        """Return which of so many rows are this rank's, in the order of the ranks."""
        return slice(self.rank * count // self.count, (self.rank + 1) * count // self.count)

    def share(self, whole: "Tensor") -> "Tensor":
        """Return this rank's rows of what is drawn for a whole batch."""
        return whole

    def combined(
        self, means: "Sequence[Tensor]", rows: "Sequence[Tensor]"
    ) -> "tuple[Sequence[Tensor], Sequence[Tensor]]":
        """Return what are means over each rank's images as means over all, and rows [n, ...] as those of the batch."""
        return means, rows

    def stacked(self, values: "Tensor") -> "Tensor":
        """Return the values of every rank, [ranks, ...], through which gradients pass any number of times."""
        return values[None]

    def std(self, values: "Tensor") -> "Tensor":
        """Return the standard deviation of values [n, ...] of this rank's images over the whole batch."""
        return values.std()

    def lead(self, order: Order, told: Any = None) -> None:
        """Tell the other ranks, from the first one, what is done next, and all that they need to know for it."""

    def require_all(self) -> None:
        """Raise ResourceError, on the first rank, if another is known to be gone."""

    def gather(self, value: Value) -> list[Value]:
        """Return, on the first rank, a value from each rank."""
        return [value]

    def interrupt(self) -> None:
        """Have the other ranks, from the first one, leave an evaluation that is under way."""

    def is_interrupted(self) -> bool:
        return False

    def on_loss(self, account: "Callable[[NormlabError], None]") -> None:
        """Let it be accounted for, on the first rank, that another is gone, where that cannot be raised in time."""

    def end(self, exit_code: int) -> None:
        """Have every other rank, from the first one, end with this exit code, at once and wherever it stands."""


ALONE = Ranks()
_current: list[Ranks] = []


def current() -> Ranks:
    """Return who trains the run of this process."""
    return _current[-1] if _current else ALONE


def enter(ranks: Ranks) -> None:
    """Let this process be one of several from here on."""
    _current.append(ranks)


def beside(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many of the processes of one run are on this machine, this one among them."""
    count = started(environment)
    here = environment.get("LOCAL_WORLD_SIZE", "")
    return int(here) if count > 1 and here.isdecimal() and int(here) else count


def unequal(batch_size: int, count: int) -> list[Complaint]:
    """Return what keeps so many processes from sharing a batch equally, if anything does."""
    if batch_size % count == 0:
        return []
    problem = f"is {batch_size}, which {count} processes cannot share equally"
    multiple = max(batch_size // count, 1) * count
    return [Complaint("train.batch_size", problem, f"give a multiple of {count}, such as {multiple}")]


def started(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many processes torchrun, or what stands in for it, has started for one run; 1 where it has not."""
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(name in environment for name in needed) or not environment["WORLD_SIZE"].isdecimal():
        return 1
    return int(environment["WORLD_SIZE"])
