"""Being told to stop: by a signal or by the clock."""

import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from normlab.errors import INTERRUPTED, TERMINATED, TIME_LIMIT_REACHED

REASONS = {INTERRUPTED: "interrupted", TERMINATED: "terminated", TIME_LIMIT_REACHED: "time limit reached"}
SIGNALS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED, signal.SIGUSR1: TIME_LIMIT_REACHED}


class Stopped(Exception):
    """The run was told to stop and has saved its state; `exit_code` tells by whom."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(REASONS[exit_code])
        self.exit_code = exit_code


class Stop:
    """The wish that the run stop at the next step: set by SIGINT, SIGTERM, SIGUSR1 or a limit of time in seconds.

    A handler only notes the wish. A second SIGINT raises KeyboardInterrupt where it arrives.
    """

    def __init__(self, limit: float | None = None) -> None:
        self._deadline = None if limit is None else time.monotonic() + limit
        self._signalled: int | None = None

    @property
    def exit_code(self) -> int | None:
        """The code to exit with, or None while the run may go on."""
        if self._signalled is None and self._deadline is not None and time.monotonic() >= self._deadline:
            return TIME_LIMIT_REACHED
        return self._signalled

    def requested(self) -> bool:
        return self.exit_code is not None

    @contextmanager
    def listening(self) -> Generator[None]:
        """Note signals during the block; the handlers before it are put back after it."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signalled == INTERRUPTED:
            raise KeyboardInterrupt
        self._signalled = SIGNALS[signal.Signals(number)]
