"""Long work in batches, before each of which it can be asked to stop."""

from collections.abc import Callable, Iterator

from tqdm import tqdm


class Interrupted(Exception):
    """The evaluation was asked to stop; nothing has changed."""


def never() -> bool:
    return False


def batches(count: int, batch_size: int, what: str, stop: Callable[[], bool] = never) -> Iterator[slice]:
    """Yield slices that cover `count` rows in order, under a progress bar that says `what`.

    Raises Interrupted if `stop`, asked before each, says so.
    """
    for start in tqdm(range(0, count, batch_size), desc=what, unit=" batches", leave=False, disable=None):
        if stop():
            raise Interrupted
        yield slice(start, min(start + batch_size, count))
