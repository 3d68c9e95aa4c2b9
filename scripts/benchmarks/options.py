"""Options that benchmarks share."""

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import Report
from benchmarks.runs import LOG_EVERY


def add_common(parser: argparse.ArgumentParser, benchmark: Callable[[argparse.Namespace], Report]) -> None:
    parser.set_defaults(benchmark=benchmark)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw it, too")
    parser.add_argument("--threads", type=positive, default=1, help="more than 1 count what they spend waiting as well")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def whole_intervals(text: str) -> int:
    steps = positive(text)
    if steps % LOG_EVERY:
        raise argparse.ArgumentTypeError(f"{text} is no multiple of {LOG_EVERY}, the steps between two rows")
    return steps
