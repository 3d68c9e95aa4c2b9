"""Lines that are redrawn in place, on a terminal of a given size."""

import os
import pty
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from normlab.reports.screen import Screen


def drawn(monkeypatch: pytest.MonkeyPatch, draw: Callable[[Screen], None]) -> str:
    """Return what a screen of 20 columns and 4 lines writes to its terminal."""
    reader, writer = pty.openpty()
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "4")
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        draw(Screen())
    written = b""
    with suppress(OSError):  # the end of what a terminal that is closed has left to read
        while part := os.read(reader, 10_000):
            written += part
    os.close(reader)
    return written.decode().replace("\r\n", "\n")


def test_what_is_drawn_again_takes_the_place_of_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(screen: Screen) -> None:
        screen.draw(["one", "two"])
        screen.draw(["three"])
        screen.clear()

    assert drawn(monkeypatch, twice) == "one\ntwo\n\x1b[2F\x1b[Jthree\n\x1b[1F\x1b[J"


def test_nothing_is_drawn_beyond_the_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{number} {'x' * 40}" for number in range(9)]

    assert drawn(monkeypatch, lambda screen: screen.draw(lines)) == "".join(f"{line[:19]}\n" for line in lines[:3])


def test_a_file_is_no_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)

        assert not Screen().is_terminal
