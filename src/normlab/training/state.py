"""Everything that changes while a run trains."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, cast

from torch import Tensor
from torch.optim import Optimizer

from normlab.networks.network import Generator, Network
from normlab.training.ema import Ema
from normlab.training.optimizers import moments

OPTIMIZERS = ("generator_optimizer", "discriminator_optimizer")
MOST_MISFITS = 5  # that an error lists; after those a person has understood


@dataclass(kw_only=True)
class TrainState:
    """Everything that changes while training; the fields are the checkpoint's keys, and nothing else is saved.

    There is no random state: every draw is a function of the seed, its purpose and the position in the run. There is no
    schedule's state: a learning rate is a function of the step.
    """

    generator: Generator
    discriminator: Network
    generator_optimizer: Optimizer
    discriminator_optimizer: Optimizer
    averaged: Ema | None
    step: int = 0
    images_seen: int = 0

    def most_bytes(self) -> int:
        """Return a bound on the size of a checkpoint's file: weights, moments of each, an average, and names."""
        tensors = [*self.generator.state_dict().values(), *self.discriminator.state_dict().values()]
        most = max(len(moments(optimizer)) for optimizer in (self.generator_optimizer, self.discriminator_optimizer))
        return 2**20 + sum((2 + most) * (tensor.nbytes + 2048) for tensor in tensors)

    def state_dict(self) -> dict[str, Any]:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in values.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state, or nothing of it; raise ValueError, with what differs, where it does not fit.

        Of an optimizer the moments are taken alone: its settings are the configuration's.
        """
        if misfits := list(self.misfits(state)):
            more = f"; and {len(misfits) - MOST_MISFITS} more" if len(misfits) > MOST_MISFITS else ""
            raise ValueError("; ".join(misfits[:MOST_MISFITS]) + more)
        if any(state[name] is None for name in OPTIMIZERS):
            raise ValueError("it was cleaned of what training needs (`normlab clean`)")
        for entry in fields(self):
            value, saved = getattr(self, entry.name), state[entry.name]
            if isinstance(value, Optimizer):
                value.load_state_dict({"state": saved["state"], "param_groups": value.state_dict()["param_groups"]})
            elif hasattr(value, "load_state_dict"):
                value.load_state_dict(saved)
            else:
                setattr(self, entry.name, saved)

    def misfits(self, state: dict[str, Any]) -> Iterator[str]:
        """Yield where a saved state does not fit, judged by names, shapes and types alone: nothing is copied.

        One that was cleaned of its optimizers fits.
        """
        names = {entry.name for entry in fields(self)}
        if names != state.keys():
            yield f"{', '.join(sorted(map(str, names ^ state.keys())))}: there on one side only"
            return
        for name in sorted(names):
            value, saved = getattr(self, name), state[name]
            if isinstance(value, Optimizer):
                if saved is not None:
                    yield from _moments_misfits(name, value, saved, begun=bool(state["step"]))
            elif hasattr(value, "state_dict"):
                yield from _tensors_misfits(name, value.state_dict(), saved)
            elif isinstance(saved, int) and saved < 0:
                yield f"{name} is {saved}"
            elif type(value) is not type(saved):
                yield f"{name} is {_described(saved)}, not {_described(value)}"


def _tensors_misfits(where: str, own: dict[str, Tensor], saved: Any) -> Iterator[str]:
    if not isinstance(saved, dict):
        yield f"{where} is {_described(saved)}, not the state of a network"
        return
    tensors = cast(dict[str, Any], saved)
    for key in dict.fromkeys([*own, *tensors]):
        mine, theirs = (_described(side[key]) if key in side else "absent" for side in (own, tensors))
        if mine != theirs:
            yield f"{where}.{key} is {theirs}, not {mine}"


def _moments_misfits(where: str, optimizer: Optimizer, saved: Any, begun: bool) -> Iterator[str]:
    """Yield what does not fit of an optimizer, which once begun keeps tensors of a parameter's shape, and counts."""
    entries = saved.get("state") if isinstance(saved, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        yield f"{where} is {_described(saved)}, not the state of an optimizer"
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = moments(optimizer)
    known = set(range(len(parameters))) if begun and kept else set[int]()
    if entries.keys() != known:
        yield f"{where} is of {len(entries)} parameters, not {len(known)}"
        return
    for index, entry in entries.items():
        if sorted(map(str, entry)) != list(kept):
            yield f"{where}.{index} has {', '.join(map(str, entry))}, not {', '.join(kept)}"
            return
        for key, value in entry.items():
            fits = isinstance(value, Tensor) and value.is_floating_point()
            if not fits or value.shape != (parameters[index].shape if kept[key] else ()):
                yield f"{where}.{index}.{key} is {_described(value)}, not of {_described(parameters[index])}"


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return "nothing" if value is None else f"a {type(value).__name__}"
