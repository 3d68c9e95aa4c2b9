"""Everything that changes while a run trains."""

from dataclasses import dataclass, fields
from typing import Any

from torch.optim import Optimizer

from normlab.networks.network import Generator, Network
from normlab.training.ema import Ema


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

    def state_dict(self) -> dict[str, Any]:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in values.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state; raise ValueError where it does not belong to these networks."""
        names = {entry.name for entry in fields(self)}
        if state.keys() != names:
            raise ValueError(f"the keys differ: {sorted(names ^ state.keys())}")
        if (state["averaged"] is None) != (self.averaged is None):
            raise ValueError("the average of the generator is there on one side only")
        try:
            for name in names:
                value = getattr(self, name)
                if hasattr(value, "load_state_dict"):
                    value.load_state_dict(state[name])
                else:
                    setattr(self, name, state[name])
        except RuntimeError as error:
            raise ValueError(str(error)) from None
