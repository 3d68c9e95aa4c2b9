"""Arms that work in processes of their own: the parent asks for windows of steps, a line each, and is told of them."""

import gc
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

from benchmarks.timing import Seconds
from benchmarks.work import Work

SCRIPTS = Path(__file__).parents[1]


class Worker:
    """A child process, of a module of this package, that takes steps when it is asked to."""

    def __init__(self, module: str, words: list[str], python: str = sys.executable) -> None:
        paths = [str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [python, "-m", f"benchmarks.{module}", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )

    def begin(self, steps: int, count: bool = False) -> None:
        """Let the process take steps, and count their operations if that is wanted."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"steps": steps, "count": count}) + "\n")
        self.process.stdin.flush()

    def told(self) -> dict[str, Any]:
        """Wait for the steps that were begun, and return what the process says of them; raise ValueError if it died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(f"{self.process.args!r} ended with {self.process.wait()}")
        return dict(json.loads(line))

    def train(self, steps: int) -> Seconds:
        self.begin(steps)
        told = self.told()
        return Seconds(told["cpu"], told["wall"])

    def counted(self, steps: int) -> Counter[str]:
        """Return how many heavy operations the steps are made of, by shape."""
        self.begin(steps, count=True)
        return Counter(self.told()["heavy"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def answers_alone(printed: Path) -> TextIO:
    """Return a file for answers to the parent, and let all else that this process prints go to `printed`."""
    answers = os.fdopen(os.dup(1), "w")
    with printed.open("w") as file:
        os.dup2(file.fileno(), 1)
    return answers


def windows(answers: TextIO) -> Iterator[int]:
    """Yield the number of steps of each window that the parent asks for, until it asks no more.

    A window lasts until the next is asked of this iterator.
    """
    for line in sys.stdin:
        request = json.loads(line)
        gc.collect()
        cpu, wall = time.process_time(), time.perf_counter()
        with Work() if request["count"] else nullcontext() as work:
            yield request["steps"]
        taken = Seconds(time.process_time() - cpu, time.perf_counter() - wall)
        heavy = {} if work is None else dict(work.heavy)
        print(json.dumps({**taken._asdict(), "heavy": heavy}), file=answers, flush=True)
