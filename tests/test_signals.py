"""Signals while something is imported."""

import os
import signal

import pytest

from normlab.signals import postponed


def test_a_signal_waits_until_the_block_is_over() -> None:
    reached: list[bool] = []

    def be_told_within_it() -> None:
        with postponed():
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # a handler runs between two instructions
                pass
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        be_told_within_it()

    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_a_signal_nothing_is_raised_and_an_error_passes() -> None:
    with postponed():
        pass
    with pytest.raises(ImportError), postponed():
        raise ImportError
