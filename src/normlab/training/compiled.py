"""The parts of a step that torch compiles, where a run asks for it."""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import torch
import torch.compiler.config as compiler_config

from normlab.errors import NormlabError
from normlab.training.state import TrainState

log = logging.getLogger(__name__)

# Of a function: passes of either network, with gradients and without, moving statistics and not.
MOST_VARIANTS = 64

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Compiler:
    """Compiles functions when they are first called, and all of a step or nothing of it.

    Only what is called through it is compiled: networks as they are sampled, scored and copied stay what they were, and
    so do the passes of penalties, since what is compiled cannot be differentiated twice.

    backend: as `torch.compile` has it.
    """

    backend: str = "inductor"
    functions: dict[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict)
    tried: bool = False
    impossible: bool = False

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return a function, compiled."""
        if self.impossible:
            return function
        if function not in self.functions:
            # Shapes never change, and a graph that breaks would be slower than none.
            self.functions[function] = torch.compile(function, fullgraph=True, dynamic=False, backend=self.backend)
        return self.functions[function]

    def attempt(self, take: Callable[[], R], state: TrainState) -> R:
        """Take a step; if it is the first and cannot be compiled, tell so, put the state back and take it as it is."""
        if self.tried:
            return take()
        self.tried = True
        compiler_config.recompile_limit = MOST_VARIANTS
        log.info("compiling the step, which takes a minute or more at every start")
        before = copy.deepcopy(state.state_dict())
        try:
            return take()
        except NormlabError:
            raise
        except Exception as error:  # compilers raise anything
            reason = " ".join(str(error).split())[:200]
            log.warning("steps are not compiled, as one cannot be: %s: %s", type(error).__name__, reason)
        self.impossible = True
        state.load_state_dict(before)
        return take()
