"""Several processes, one run: who they are, what they average, what the first tells the others, and how they end.

The first rank runs everything as a single process would. The others follow its orders, write nothing and never outlive
it. Tensors travel through torch.distributed (gloo between CPUs, nccl between GPUs). Beside it each rank is connected
with the first by a plain socket, on which threads wait: it is how a rank learns within seconds that another has died,
whatever it is busy with itself, since the kernel closes the socket of a process that is killed and gives up on a
machine that no longer answers.
"""

import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from normlab.errors import (
    CheckpointError,
    Complaint,
    ConfigurationError,
    DataError,
    NormlabError,
    NumericalError,
    ResourceError,
    is_out_of_memory,
)
from normlab.ranks import Order, Ranks, enter
from normlab.signals import ENDING

log = logging.getLogger(__name__)

Value = TypeVar("Value")

ERRORS = {
    kind.exit_code: kind
    for kind in (NormlabError, ConfigurationError, DataError, CheckpointError, ResourceError, NumericalError)
}
JOINING = timedelta(minutes=10)  # for all to start
FOREVER = timedelta(days=365)  # that the others wait for the first, which may evaluate for hours
# In seconds, and less than half a minute altogether.
UNANSWERED = 3  # between questions to a machine that is silent, and before the first of QUESTIONS
QUESTIONS = 3  # that go unanswered
GRACE = 5.0  # that the first rank has to notice itself that another is gone
SETTLING = 12.0  # that it then has to end in its own way


def join() -> "Team":
    """Meet the other processes of the run; raise ResourceError if they do not all come."""
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # The watch of ours tells of a rank that is gone; that of nccl would end the process in its own way.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
    try:
        store, _, _ = next(rendezvous("env://", timeout=JOINING))
        line = _Lead(_accepted(store, count)) if rank == 0 else _Follower(rank, _connected(store, rank))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=FOREVER)
    except (RuntimeError, OSError) as error:
        problem = f"the {count} processes of the run did not meet ({str(error).partition(chr(10))[0]})"
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ResourceError(f"rank {rank}", problem, f"see that all start and reach {where}") from None
    team = Team(rank, count, int(os.environ.get("LOCAL_RANK", rank)), line)
    enter(team)
    return team


class Team(Ranks):
    """One of several ranks."""

    def __init__(self, rank: int, count: int, local_rank: int, line: "_Lead | _Follower") -> None:
        self.rank = rank
        self.count = count
        self.local_rank = local_rank
        self.line = line

    def share(self, whole: Tensor) -> Tensor:
        return whole[self.rows(len(whole))]

    def combined(self, means: Sequence[Tensor], rows: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        # In one message, whose rows are of one rank each, and 0 elsewhere.
        placed = [self._placed(each.detach()) for each in rows]
        sent = [each.detach() for each in (*means, *placed)]
        message = torch.cat([each.flatten() for each in sent])
        self.sum(message)
        sums = [
            part.view(each.shape) for part, each in zip(message.split([*map(Tensor.numel, sent)]), sent, strict=True)
        ]
        return [each.div_(self.count) for each in sums[: len(means)]], [
            each.flatten(0, 1) for each in sums[len(means) :]
        ]

    def stacked(self, values: Tensor) -> Tensor:
        return cast(Tensor, _Sum.apply(self._placed(values), self))

    def std(self, values: Tensor) -> Tensor:
        variances, means = self.stacked(torch.stack(torch.var_mean(values, correction=0))).unbind(1)
        count = self.count * values.numel()
        return ((variances.mean() + means.var(correction=0)) * (count / (count - 1))).sqrt()

    def require_all(self) -> None:
        self.line.require_all()

    def lead(self, order: Order, told: Any = None) -> None:
        self.require_all()
        with self._answered():
            dist.broadcast(torch.tensor(int(order)), 0)
            if order != Order.STEP:
                dist.broadcast_object_list([told], 0)

    def follow(self) -> tuple[Order, Any]:
        """Wait for the next order of the first rank and return it, with what is told beside it."""
        code, told = torch.zeros((), dtype=torch.int64), [None]
        with self._answered():
            dist.broadcast(code, 0)
            if (order := Order(int(code))) != Order.STEP:
                dist.broadcast_object_list(told, 0)
        return order, told[0]

    def gather(self, value: Value) -> list[Value]:
        values: list[Any] | None = [None] * self.count if self.rank == 0 else None
        with self._answered():
            dist.gather_object(value, values, 0)
        return values or []

    def interrupt(self) -> None:
        self.line.interrupt()

    def is_interrupted(self) -> bool:
        return self.line.interrupted.is_set()

    def end(self, exit_code: int) -> None:
        self.line.end(exit_code)

    def on_loss(self, account: Callable[[NormlabError], None]) -> None:
        self.line.account = account

    def fail(self, error: Exception) -> None:
        """End this rank, and with it the run, of which the first rank says why."""
        self.line.fail(error)

    def sum(self, values: Tensor) -> None:
        """Replace values by their sum over the ranks."""
        with self._answered():
            dist.all_reduce(values)

    def _placed(self, values: Tensor) -> Tensor:
        nothing = torch.zeros_like(values)
        return torch.stack([values if rank == self.rank else nothing for rank in range(self.count)])

    @contextmanager
    def _answered(self) -> Generator[None]:
        """Raise ResourceError where a message fails since a rank is gone."""
        try:
            yield
        except RuntimeError as error:
            raise self.line.behind(error) from None


class _Sum(torch.autograd.Function):
    """The sum over the ranks; what each does to the sum of all their losses is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, team: Team) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.team = team
        total = values.clone(memory_format=torch.contiguous_format)
        team.sum(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Sum.apply(gradient, ctx.team), None


class _Lead:
    """The first rank's ends of the sockets to the others."""

    def __init__(self, others: dict[int, socket.socket]) -> None:
        self.others = others
        self.interrupted = threading.Event()
        self.account: Callable[[NormlabError], None] | None = None
        self.loss: NormlabError | None = None
        self._noticing = threading.Lock()
        self._noticed, self._accepted, self._ending = threading.Event(), threading.Event(), threading.Event()
        for rank, other in others.items():
            threading.Thread(target=self._listen, args=(rank, other), daemon=True).start()

    def require_all(self) -> None:
        if self.loss is not None:
            self._accepted.set()
            raise self.loss

    def behind(self, error: RuntimeError) -> Exception:
        """Return the loss of a rank that is behind an error, or the error if there is none."""
        self._accepted.set()
        self._noticed.wait(2 * GRACE)
        return self.loss or error

    def interrupt(self) -> None:
        self._tell("interrupt")

    def end(self, exit_code: int) -> None:
        self._ending.set()
        self._tell(f"end {exit_code}")

    def fail(self, error: Exception) -> None:
        raise error

    def _tell(self, words: str) -> None:
        for other in self.others.values():
            with suppress(OSError):
                other.sendall(f"{words}\n".encode())

    def _listen(self, rank: int, other: socket.socket) -> None:
        """Wait until another rank closes its end, which it does by ending, with or without a word."""
        words = ""
        with suppress(OSError), other.makefile("r", errors="replace") as lines:
            words = "".join(lines).strip()
        with self._noticing:
            if self._ending.is_set() or self.loss is not None:
                return
            self.loss = _ended(rank, words)
            self._noticed.set()
        # The run ends as it does for any error, if its thread hears of the loss in time, and then has time to settle.
        if self._ending.wait(GRACE) or (self._accepted.is_set() and self._ending.wait(SETTLING)):
            return
        # It waits for the device, say, or computes at length.
        with suppress(Exception):
            if self.account is not None:
                self.account(self.loss)
        print(self.loss, file=sys.stderr, flush=True)
        self.end(self.loss.exit_code)
        os._exit(self.loss.exit_code)


class _Follower:
    """Another rank's end of the socket to the first."""

    def __init__(self, rank: int, first: socket.socket) -> None:
        self.rank = rank
        self.first = first
        self.interrupted = threading.Event()
        self.account: Callable[[NormlabError], None] | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def require_all(self) -> None:
        """Leave it to the first rank."""

    def behind(self, error: RuntimeError) -> Exception:
        # It is over: either the first rank is gone, or it is about to say so.
        time.sleep(2 * GRACE + SETTLING)
        return error

    def interrupt(self) -> None:
        """Leave it to the first rank."""

    def end(self, exit_code: int) -> None:
        """Leave it to the first rank."""

    def fail(self, error: Exception) -> None:
        known = _known(error)
        trace = "".join(traceback.format_exception(error))
        with suppress(OSError):
            self.first.sendall(f"{json.dumps([known.exit_code, known.complaints, trace])}\n".encode())
        os._exit(known.exit_code)

    def _listen(self) -> None:
        with suppress(OSError), self.first.makefile("r") as lines:
            for line in lines:
                word, _, value = line.partition(" ")
                if word == "end":
                    os._exit(int(value))
                self.interrupted.set()
        if self.rank == 1:  # one line is enough
            print(_gone(0), file=sys.stderr, flush=True)
        os._exit(ResourceError.exit_code)


def _known(error: Exception) -> NormlabError:
    """Return what has ended a rank as what a person is told of it."""
    if isinstance(error, NormlabError):
        return error
    if is_out_of_memory(error):
        return ResourceError("", "out of memory", "try a smaller train.batch_size or architecture.width")
    problem = f"{type(error).__name__}: {error}".partition("\n")[0]
    return NormlabError("", problem, "a bug; run.log shows where")


def _ended(rank: int, words: str) -> NormlabError:
    """Return what another rank has said at its end, and log where it was; that it is gone if it had no time for it."""
    try:
        exit_code, complaints, trace = json.loads(words)
    except ValueError:
        return _gone(rank)
    log.debug("rank %d: %s", rank, trace)
    told = [Complaint(f"rank {rank}", f"{where} {problem}".strip(), remedy) for where, problem, remedy in complaints]
    return ERRORS.get(exit_code, NormlabError).of(told)


def _gone(rank: int) -> ResourceError:
    problem = "is gone: its process was killed, or its machine is down"
    return ResourceError(f"rank {rank}", problem, "the same command goes on from the newest checkpoint")


def _accepted(store: Store, count: int) -> dict[int, socket.socket]:
    """Return the sockets to all other ranks, which prove by a secret that they belong here."""
    others: dict[int, socket.socket] = {}
    secret = secrets.token_hex()
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with socket.create_server(("", 0), family=family, backlog=count, dualstack_ipv6=dual) as server:
        server.settimeout(JOINING.total_seconds())
        store.set("normlab", f"{server.getsockname()[1]} {secret}")
        while len(others) < count - 1:
            other, _ = server.accept()
            other.settimeout(10)
            word, _, rank = _first_line(other).partition(" ")
            if secrets.compare_digest(word, secret) and rank.isdecimal():
                others[int(rank)] = watched(other)
    return others


def _connected(store: Store, rank: int) -> socket.socket:
    port, _, secret = store.get("normlab").decode().partition(" ")
    first = socket.create_connection((os.environ["MASTER_ADDR"], int(port)), JOINING.total_seconds())
    first.sendall(f"{secret} {rank}\n".encode())
    return watched(first)


def _first_line(other: socket.socket) -> str:
    """Return what comes before the end of a line, and not a byte more, or nothing if that takes too long."""
    said = b""
    with suppress(OSError):
        while not said.endswith(b"\n") and len(said) < 100 and (byte := other.recv(1)):
            said += byte
    return said.decode(errors="replace").strip()


def watched(other: socket.socket) -> socket.socket:
    """Return a socket at which one can wait for ever, and yet hear within 12 seconds that the other machine is gone."""
    other.settimeout(None)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", UNANSWERED), ("TCP_KEEPINTVL", UNANSWERED), ("TCP_KEEPCNT", QUESTIONS)):
        if hasattr(socket, option):
            other.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return other


def leave_signals_to_the_first() -> None:
    """Let signals that end a program pass: the first rank hears them too, saves, and tells the others."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
