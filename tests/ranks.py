"""Several ranks of one run as forked children of a test, which have imported everything already."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from normlab import distributed
from normlab.distributed import Team

from .conftest import Result, result, start


@contextmanager
def as_rank(rank: int, count: int, port: int) -> Iterator[None]:
    """Give this process, and what it forks meanwhile, what torchrun would give to one of several."""
    with pytest.MonkeyPatch.context() as patch:
        given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        for name, value in given.items():
            patch.setenv(name, str(value))
        patch.setenv("MASTER_ADDR", "localhost")
        yield


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def on_ranks(folder: Path, count: int, work: Callable[[Team], Any]) -> list[Any]:
    """Return what `work` returns on each of several ranks."""
    port = free_port()
    children: list[int] = []
    for rank in range(count):
        with as_rank(rank, count, port):
            if not (child := os.fork()):
                _work(folder / f"of_rank_{rank}", work)
            children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * count
    return [torch.load(folder / f"of_rank_{rank}", weights_only=False) for rank in range(count)]


def _work(file: Path, work: Callable[[Team], Any]) -> None:
    exit_code = 1
    signal.alarm(60)  # what waits for a rank that has failed would wait for ever
    try:
        team = distributed.join()
        torch.save(work(team), file)
        team.gather(None)  # nobody leaves before all have done
        exit_code = 0
        team.end(0)
    finally:
        os._exit(exit_code)


def start_ranks(folder: Path, *words: str, count: int = 2) -> list[int]:
    """Start a command line of normlab on several ranks, each in a forked child, and return their process ids."""
    port = free_port()
    children: list[int] = []
    for rank in range(count):
        (folder / f"rank_{rank}").mkdir(exist_ok=True)
        with as_rank(rank, count, port):
            children.append(start(folder / f"rank_{rank}", *words))
    return children


def ended(folder: Path, children: list[int]) -> list[Result]:
    """Wait for ranks and return how each has ended."""
    return [result(folder / f"rank_{rank}", os.waitpid(child, 0)[1]) for rank, child in enumerate(children)]


def run_ranks(folder: Path, *words: str, count: int = 2) -> list[Result]:
    """Run a command line of normlab on several ranks and return how each has ended."""
    return ended(folder, start_ranks(folder, *words, count=count))
