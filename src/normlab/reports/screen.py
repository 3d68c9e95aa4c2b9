"""A few lines of a terminal that are drawn again and again in the same place."""

import shutil
import sys
from collections.abc import Sequence


class Screen:
    """Draws over what it drew last. Where standard output is no terminal, `is_terminal` says so and nobody should."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self._height = 0

    def room(self) -> int:
        """Return how many lines there is room for: one is left for the cursor."""
        return max(1, shutil.get_terminal_size().lines - 1)

    def draw(self, lines: Sequence[str]) -> None:
        """Show lines in place of those shown before, cut off at the edges of the terminal."""
        width = shutil.get_terminal_size().columns
        shown = [line[: width - 1] for line in lines[: self.room()]]
        sys.stdout.write(self._back() + "".join(f"{line}\n" for line in shown))
        sys.stdout.flush()
        self._height = len(shown)

    def clear(self) -> None:
        """Take away what was drawn."""
        sys.stdout.write(self._back())
        sys.stdout.flush()
        self._height = 0

    def _back(self) -> str:
        # Up so many lines, then erase to the end of the screen.
        return f"\x1b[{self._height}F\x1b[J" if self._height else ""
