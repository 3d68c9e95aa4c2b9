"""What a step is given by the host, and steps that are captured once and then replayed.

A replay does what the captured step has told the device, number for number, at the same addresses; nothing of the
host's own reckoning is in it. So all that the host reckons for a step, random numbers, indices, rates and shares, is an
input: kept at one address, and made anew before each replay.
"""

import logging
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from normlab.data.batches import queued

log = logging.getLogger(__name__)

Scalars = dict[str, Tensor]
Make = Callable[[], Tensor]
Replay = Callable[[], None]


class Inputs:
    """What the host gives a step: `make` reckons it for the position at hand, and the call puts it on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, name: str, make: Make) -> Tensor:
        return queued(make(), self.device)


class KeptInputs(Inputs):
    """Inputs that stay where they are, each under its name, to be made anew for every position.

    While a step is recorded, `asked` collects the names that it asks for, and nothing is made.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.values: dict[str, Tensor] = {}
        self.makes: dict[str, Make] = {}
        self.asked: list[str] | None = None

    def __call__(self, name: str, make: Make) -> Tensor:
        if self.asked is not None:
            self.asked.append(name)
        else:
            self.makes[name] = make
            self.renew(name)
        return self.values[name]

    def renew(self, name: str) -> None:
        """Make an input for the position at hand."""
        value = queued(self.makes[name](), self.device)
        if name in self.values:
            self.values[name].copy_(value)
        else:
            self.values[name] = value


class Captured(Protocol):
    """What is asked of the step that is to be captured: `compute` is all that it does on the device."""

    inputs: Inputs

    def compute(self) -> Scalars: ...


class Recorder(Protocol):
    """Does a device's work under its own terms, and records it for replay."""

    def warm_up(self, work: Callable[[], Scalars]) -> Scalars:
        """Do the work, so that whatever is done the first time alone is done."""
        ...

    def record(self, work: Callable[[], Scalars]) -> tuple[Replay, Scalars]:
        """Record the work without doing it; return what replays it, and where it then leaves its scalars."""
        ...


class CudaGraphs:
    """Records CUDA graphs, which share one pool of memory: only ever one of them runs."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], Scalars]) -> Scalars:
        # On a stream of its own, as a graph is recorded on one: libraries prepare themselves for each stream.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            scalars = work()
        torch.cuda.current_stream().wait_stream(self.stream)
        return scalars

    def record(self, work: Callable[[], Scalars]) -> tuple[Replay, Scalars]:
        graph = torch.cuda.CUDAGraph()
        # Other threads, which read images ahead, may go on with what they do.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            scalars = work()
        return graph.replay, scalars


@dataclass(frozen=True)
class Recording:
    """A step of one kind: the names of its inputs, what replays it, and where it leaves its scalars."""

    inputs: list[str]
    replay: Replay
    scalars: Scalars


@dataclass
class Capture:
    """Takes the first step of each kind as it comes, records the second, and from then on replays the recording.

    What cannot be recorded, because it waits for the device or moves memory about, is told once and computed anew at
    every step.
    """

    recorder: Recorder
    inputs: KeptInputs
    recordings: dict[Hashable, Recording | None] = field(default_factory=dict)
    impossible: bool = False

    def take(self, step: Captured, kind: Hashable) -> Scalars:
        """Do the work of a step; steps of one kind do the same work on inputs of the same names."""
        if self.impossible:
            return step.compute()
        with self._inputs_of(step):
            if kind not in self.recordings:
                scalars = self.recorder.warm_up(step.compute)
                self.recordings[kind] = None
                return scalars
            recording = self.recordings[kind] or self._recorded(step, kind)
        if recording is None:
            return step.compute()
        for name in recording.inputs:
            self.inputs.renew(name)
        recording.replay()
        return recording.scalars

    def _recorded(self, step: Captured, kind: Hashable) -> Recording | None:
        self.inputs.asked = asked = []
        try:
            replay, scalars = self.recorder.record(step.compute)
        except RuntimeError as error:
            log.warning("steps are not captured, as one cannot be: %s", str(error).partition("\n")[0])
            self.impossible = True
            return None
        finally:
            self.inputs.asked = None
        recording = self.recordings[kind] = Recording(list(dict.fromkeys(asked)), replay, scalars)
        return recording

    @contextmanager
    def _inputs_of(self, step: Captured) -> Generator[None]:
        ordinary, step.inputs = step.inputs, self.inputs
        try:
            yield
        finally:
            step.inputs = ordinary
