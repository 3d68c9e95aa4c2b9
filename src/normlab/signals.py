"""Signals that wait."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def postponed() -> Generator[None]:
    """Let the signals that end a program wait until the block is over, and have the first of them then.

    It is for imports of numpy, torch and what builds on them: what a handler raises while they load, they swallow, and
    stay half made. Outside the main thread, where no handler runs, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if heard:
        signal.raise_signal(heard[0])
