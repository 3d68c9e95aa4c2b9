"""The parts of a step that torch compiles, where a run asks for it."""

import copy
import logging
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.compiler.config as compiler_config
from torch import Tensor

from normlab.errors import NormlabError, is_out_of_memory
from normlab.training.state import TrainState

log = logging.getLogger(__name__)

# Of a function: passes of either network, with gradients and without, moving statistics and not.
MOST_VARIANTS = 64

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Compiler:
    """Compiles functions when a step first calls them, and all of a step or nothing of it.

    Outside of steps, and in the passes of penalties, which are differentiated twice, as nothing compiled can be,
    functions stay what they are: hooks, copies and other shapes see plain networks.

    backend: as `torch.compile` has it.
    """

    backend: str = "inductor"
    functions: dict[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict)
    stepping: bool = False
    tried: bool = False
    impossible: bool = False

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return a function, compiled if it is called in a step."""
        if self.impossible or not self.stepping:
            return function
        if function not in self.functions:
            # Shapes never change, and a graph that breaks would be slower than none.
            self.functions[function] = torch.compile(function, fullgraph=True, dynamic=False, backend=self.backend)
        return self.functions[function]

    def take(self, step: Callable[[], R], state: TrainState) -> R:
        """Take a step; if it is the first and cannot be compiled, tell so, put the state back and take it as it is."""
        self.stepping = True
        try:
            return step() if self.tried else self._try(step, state)
        finally:
            self.stepping = False

    def _try(self, step: Callable[[], R], state: TrainState) -> R:
        self.tried = True
        compiler_config.recompile_limit = MOST_VARIANTS
        log.info("compiling the step, which takes a minute or more at every start")
        before = on_host(state.state_dict())
        try:
            return step()
        except Exception as error:  # compilers raise anything
            if isinstance(error, NormlabError) or is_out_of_memory(error):
                raise
            reason = textwrap.shorten(str(error).partition("\n")[0], 160, placeholder=" ...")
            log.warning(
                "steps are not compiled, as torch cannot compile one; the run goes on without: %s: %s",
                type(error).__name__,
                reason,
            )
            log.debug("%s", error)
        self.impossible = True
        state.load_state_dict(before)
        return step()


def on_host(state: Any) -> Any:
    """Return a copy of a state with its tensors in the host's memory, where there is more room."""
    if isinstance(state, Tensor):
        return state.to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: on_host(value) for key, value in cast(dict[Any, Any], state).items()}
    return copy.deepcopy(state)
