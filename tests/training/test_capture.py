"""Captured steps do what steps do that are computed anew.

The recorder here is a tape of the operations: played again, each takes what its arguments hold by then and leaves its
results where it left them at first, as a CUDA graph does. A number of the host's that found its way in would stay what
it was.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from normlab.assemble import score_spread
from normlab.distributed import Team
from normlab.normalizations import TECHNIQUES
from normlab.penalties import PENALTIES
from normlab.training.capture import Capture, KeptInputs, Replay, Scalars
from normlab.training.compiled import Compiler
from normlab.training.optimizers import OPTIMIZERS
from normlab.training.spectra import measure
from normlab.training.state import TrainState
from normlab.training.step import Step

from ..ranks import on_ranks
from .conftest import BuildStep

Pair = Callable[..., tuple[Step, Step]]
CPU = torch.device("cpu")
STEPS = 6
ALL = [name for name in TECHNIQUES.names() if name not in ("conditional_batch", "gradient")]


class Tape(TorchDispatchMode):
    """Does the work of a block and keeps its operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a number was asked of the device")
        given = aliases((args, kwargs or {}))
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, *given, aliases(result)))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            again_args, again_kwargs = aliases((args, kwargs))
            again = func(*again_args, **again_kwargs)
            if func.namespace == "c10d":  # a message between processes, which is under way until it is waited for
                again[1].wait()
            for kept, value in zip(flat(result), flat(again), strict=True):
                # A view, or what was changed in place, holds the new values already.
                if kept.untyped_storage().data_ptr() != value.untyped_storage().data_ptr():
                    kept.copy_(value)


def aliases(values: Any) -> Any:
    """Return values with other tensors over the same memory, whose shape stays when an operation changes theirs."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach(), values)


def flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for item in result for tensor in flat(item)] if isinstance(result, list | tuple) else []


def tensors(state: TrainState) -> dict[str, Tensor]:
    """Return every tensor of a state by name."""
    named: dict[str, Tensor] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            named[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                if key != "param_groups":
                    walk(f"{name}.{key}", item)

    walk("state", state.state_dict())
    return named


class Tapes:
    """Records tapes; recording does nothing, and so what the work has changed is brought back."""

    def __init__(self) -> None:
        self.state: TrainState | None = None

    def warm_up(self, work: Callable[[], Scalars]) -> Scalars:
        return work()

    def record(self, work: Callable[[], Scalars]) -> tuple[Replay, Scalars]:
        assert self.state is not None
        before = {name: tensor.clone() for name, tensor in tensors(self.state).items()}
        try:
            with Tape() as tape:
                return tape.replay, work()
        finally:
            for name, tensor in tensors(self.state).items():
                tensor.data.copy_(before[name])


def captured(step: Step) -> Step:
    """Return a step like another, at step 0, whose steps are captured."""
    tapes = Tapes()
    twin = copy.copy(step)
    twin.state = tapes.state = copy.deepcopy(step.state)
    twin.capture = Capture(tapes, KeptInputs(CPU))
    twin.__post_init__()
    return twin


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor], rtol: float = 1e-3) -> None:
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=rtol, atol=1e-5, check_device=False, msg=f"of {name}")


def compare(anew: Step, replayed: Step, steps: int = STEPS) -> None:
    """To rounding: a rate is a float32 on the device, and 1e-7 of its value off."""
    for _ in range(steps):
        expected, scalars = anew.take(), replayed.take()
        assert list(scalars) == list(expected)
        close(scalars, expected)
    assert replayed.capture is not None
    assert not replayed.capture.impossible
    assert any(replayed.capture.recordings.values())
    ours, theirs = tensors(replayed.state), tensors(anew.state)
    assert ours.keys() == theirs.keys()
    close(ours, theirs)
    assert (replayed.state.step, replayed.state.images_seen) == (anew.state.step, anew.state.images_seen)


@pytest.mark.parametrize("technique", ALL)
def test_a_replayed_step_is_a_step_under_every_technique(build_step: BuildStep, technique: str) -> None:
    """Under SGD: Adam makes much of a gradient that is rounding alone, such as that of a bias before a batch norm."""
    groups = [f"normalization.{network}.channels_per_group=4" for network in ("generator", "discriminator")]
    step = build_step(
        *(f"normalization=both/{technique}", *(groups if technique == "group" else [])),
        *("ema.decay=0.9", "optimizer.schedule=linear", "train.until=10 steps", "train.discriminator_steps=2"),
        "optimizer=sgd",
    )
    compare(step, captured(step))


@pytest.mark.parametrize("penalty", PENALTIES.names())
def test_a_replayed_step_is_a_step_under_every_penalty_lazy_ones_too(build_step: BuildStep, penalty: str) -> None:
    step = build_step(
        "normalization=layer", f"penalty={penalty}", f"penalty.{penalty}.every=2", "force=true", "optimizer=sgd"
    )
    twin = captured(step)
    compare(step, twin, steps=8)
    assert twin.capture is not None
    assert len(twin.capture.recordings) == 2


@pytest.mark.parametrize(
    "words", [["optimizer=adam"], ["optimizer=adamw"], ["optimizer=sgd", "optimizer.momentum=0.5"]]
)
def test_a_replayed_step_is_a_step_under_every_optimizer(build_step: BuildStep, words: list[str]) -> None:
    """But for RMSprop, whose form for the CPU takes its rate as a number."""
    step = build_step(*words, "normalization=both/none", "optimizer.schedule=cosine", "train.until=8 steps")
    compare(step, captured(step))


@pytest.mark.parametrize(
    "words",
    [
        ["normalization=gradient"],
        ["normalization=spectral", "normalization.discriminator.advance=forward"],
        ["normalization=both/adaptive", "normalization.generator.decay=cosine", "ema.decay=0.999"],
        ["constraint=clip", "normalization=none", "loss=wasserstein"],
        ["architecture=sngan_resnet", "architecture.conditional=true", "normalization.generator=conditional_batch"],
    ],
    ids=" ".join,
)
def test_a_replayed_step_is_a_step_in_other_forms(build_step: BuildStep, words: list[str]) -> None:
    step = build_step(*words, "optimizer=sgd")
    compare(step, captured(step), steps=4)


def test_what_waits_for_the_device_is_told_once_and_computed_anew(
    build_step: BuildStep, caplog: pytest.LogCaptureFixture
) -> None:
    step = build_step("optimizer=sgd")
    twin = captured(step)
    loss = twin.loss

    def waiting(scores: Tensor) -> Tensor:
        return loss.generator(scores) * (2.0 if float(scores[0].detach()) > 1e9 else 1.0)

    twin.loss = loss._replace(generator=waiting)
    for _ in range(4):
        close(twin.take(), step.take())
    assert [record.message for record in caplog.records] == [
        "steps are not captured, as one cannot be: a number was asked of the device"
    ]


def test_a_recorded_step_is_replayed_and_not_computed(build_step: BuildStep) -> None:
    twin = captured(build_step("optimizer=sgd"))
    twin.take()
    twin.take()
    twin.compute = lambda: pytest.fail("computed anew")  # pyright: ignore[reportAttributeAccessIssue]
    twin.take()
    assert twin.state.step == 3


@pytest.mark.parametrize("first", ["captured", "anew"])
def test_a_run_goes_on_in_the_other_mode(build_step: BuildStep, first: str) -> None:
    words = ("normalization=both/spectral", "ema.decay=0.9", "optimizer=sgd", "optimizer.momentum=0.5")
    straight, anew, twin = build_step(*words), build_step(*words), captured(build_step(*words))
    before, after = (twin, anew) if first == "captured" else (anew, twin)
    for _ in range(3):
        straight.take()
        before.take()
    after.state.load_state_dict(copy.deepcopy(before.state.state_dict()))
    for _ in range(3):
        straight.take()
        after.take()
    close(tensors(after.state), tensors(straight.state))


# --- Compiled -------------------------------------------------------------------------------------------------------


def compiled(step: Step, backend: str = "aot_eager") -> Step:
    """Return a step like another, at step 0, that is traced, differentiated and run as a compiler would have it."""
    twin = copy.copy(step)
    twin.state = copy.deepcopy(step.state)
    twin.compiler = Compiler(backend)
    twin.__post_init__()
    return twin


def require_alike(step: Step, twin: Step, steps: int = 3, rtol: float = 1e-3) -> None:
    for _ in range(steps):
        close(twin.take(), step.take(), rtol)
    close(tensors(twin.state), tensors(step.state), rtol)
    assert twin.compiler is not None
    assert not twin.compiler.impossible


@pytest.mark.slow
@pytest.mark.parametrize("technique", ALL)
def test_a_compiled_step_is_a_step_under_every_technique(build_step: BuildStep, technique: str) -> None:
    groups = ("normalization.discriminator.channels_per_group=4",) if technique == "group" else ()
    step = build_step(f"normalization={technique}", *groups, "ema.decay=0.9", "optimizer=sgd")
    require_alike(step, compiled(step), steps=2)


@pytest.mark.slow
def test_a_compiled_step_is_a_step_in_bf16(build_step: BuildStep) -> None:
    """Without batch statistics: a compiler keeps in float32 what lies between the operations of a norm.

    One bf16 is up to 2^-7 of its value below the next, so that rounding is half of that; a CPU with units for it rounds
    elsewhere in a compiled step.
    """
    step = build_step("normalization=both/spectral", "optimizer=sgd", "precision=bf16")
    require_alike(step, compiled(step), steps=2, rtol=2**-8)


@pytest.mark.slow
def test_a_compiled_step_is_a_step_under_penalties_which_are_differentiated_twice(build_step: BuildStep) -> None:
    words = [f"penalty.{penalty}.every=2" for penalty in PENALTIES.names()]
    step = build_step(
        "normalization=layer", f"penalty=[{','.join(PENALTIES.names())}]", *words, "force=true", "optimizer=sgd"
    )
    require_alike(step, compiled(step))


@pytest.mark.slow
def test_a_step_of_real_compilation_is_a_step(build_step: BuildStep) -> None:
    step = build_step("normalization=spectral", "optimizer=sgd", "memory_format=channels_last")
    require_alike(step, compiled(step, "inductor"))


@pytest.mark.slow
def test_what_is_measured_between_compiled_steps_is_of_plain_networks(build_step: BuildStep) -> None:
    """By hooks on their layers, which what is compiled does not call."""
    step = build_step("normalization=both/spectral", "optimizer=sgd")
    twin = compiled(step)
    for _ in range(2):
        assert score_spread(twin) == pytest.approx(score_spread(step), rel=1e-3)
        close(twin.take(), step.take())
        ours, theirs = list(measure(twin)), list(measure(step))
        assert [row.keys() for row in ours] == [row.keys() for row in theirs]
        assert [row.get("sigma") or 0.0 for row in ours] == pytest.approx(
            [row.get("sigma") or 0.0 for row in theirs], rel=1e-3
        )


@pytest.mark.parametrize("replayed", [False, True])
def test_what_cannot_be_compiled_is_told_once_and_the_step_taken_from_where_it_began(
    build_step: BuildStep, caplog: pytest.LogCaptureFixture, replayed: bool
) -> None:
    """The discriminator's update has been made by the time the generator's is found impossible."""
    step = build_step("ema.decay=0.9", "optimizer=sgd", "optimizer.momentum=0.5")
    twin = captured(compiled(step)) if replayed else compiled(step)
    forward = twin.state.generator.forward

    def broken(*arguments: Any) -> Tensor:
        if not torch.compiler.is_compiling():
            return forward(*arguments)
        if torch.is_grad_enabled() and arguments[0].sum() > 1e9:
            raise ValueError
        return forward(*arguments)

    twin.state.generator.forward = broken  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(3):
        close(twin.take(), step.take())
    close(tensors(twin.state), tensors(step.state))
    assert twin.compiler is not None
    assert twin.compiler.impossible
    assert twin.captured_as == ("graph" if replayed else "none")
    assert twin.capture is None or (any(twin.capture.recordings.values()) and not twin.capture.impossible)
    assert sum("steps are not compiled" in record.message for record in caplog.records) == 1


def test_a_recording_of_a_step_that_ranks_share_is_that_step(build_step: BuildStep, tmp_path: Path) -> None:
    """That messages between ranks and batch statistics of all of them are recorded too."""
    words = ("normalization=both/batch", "penalty=[r1,dragan]", "penalty.r1.every=2", "force=true", "optimizer=sgd")

    def both(team: Team) -> bool:
        step = build_step(*words, ranks=team)
        twin = captured(step)
        compare(step, twin)
        return True

    assert on_ranks(tmp_path, 2, both) == [True, True]


# --- On a GPU -------------------------------------------------------------------------------------------------------

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def pair(build_step: BuildStep) -> Iterator[Pair]:
    """Return a function from overrides to two steps on the GPU: one that is computed anew, one that is captured."""
    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    gpu = torch.device("cuda")
    yield lambda *words: (build_step(*words, "train.capture=none", device=gpu), build_step(*words, device=gpu))
    torch.backends.cudnn.deterministic = deterministic


@on_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("technique", ALL)
def test_a_graph_is_a_step_under_every_technique(pair: Pair, technique: str, precision: str) -> None:
    groups = [f"normalization.{network}.channels_per_group=4" for network in ("generator", "discriminator")]
    words = (f"normalization=both/{technique}", *(groups if technique == "group" else []), f"precision={precision}")
    compare(*pair(*words, "ema.decay=0.9", "optimizer=sgd", "optimizer.schedule=linear", "train.until=10 steps"))


@on_gpu
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("architecture", ["dcgan", "sngan_resnet"])
def test_a_compiled_graph_is_a_step(build_step: BuildStep, pair: Pair, architecture: str, memory_format: str) -> None:
    words = (
        f"architecture={architecture}",
        f"memory_format={memory_format}",
        "normalization=spectral",
        "optimizer=sgd",
    )
    anew, _ = pair(*words)
    twin = build_step(*words, "train.capture=compile", device=torch.device("cuda"))
    compare(anew, twin)
    assert twin.compiler is not None
    assert not twin.compiler.impossible


@on_gpu
@pytest.mark.parametrize("penalty", PENALTIES.names())
def test_a_graph_is_a_step_under_every_penalty(pair: Pair, penalty: str) -> None:
    lazy = (f"penalty={penalty}", f"penalty.{penalty}.every=2", "force=true")
    compare(*pair("normalization=layer", *lazy, "optimizer=sgd"), steps=8)


@on_gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
def test_a_graph_is_a_step_under_every_optimizer(pair: Pair, optimizer: str) -> None:
    compare(*pair(f"optimizer={optimizer}", "normalization=both/none", "optimizer.schedule=cosine"))
