"""What an arm computes, counted, so that no ratio compares arms that do not compute the same."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class UnequalWork(Exception):
    """The arms do not compute the same, so that a ratio of their times would mean nothing."""


class Work(TorchDispatchMode):
    """Counts the operations of a block: the heavy ones by shape, the rest by name."""

    def __init__(self) -> None:
        super().__init__()
        self.heavy: Counter[str] = Counter()
        self.light: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket).removeprefix("aten.")
        if name == "convolution":
            self.heavy[f"{name} of {_shape(args[0])} by {_shape(args[1])}"] += 1
        elif name == "convolution_backward":
            wanted = zip(("input", "weight", "bias"), args[-1], strict=True)
            gradients = "+".join(what for what, is_wanted in wanted if is_wanted)
            self.heavy[f"gradient of {_shape(args[1])} by {_shape(args[2])}: {gradients}"] += 1
        elif name == "_fused_adam_":
            self.heavy[f"Adam step of {len(args[0])} tensors"] += 1
        else:
            self.light[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def operations(self) -> int:
        return self.heavy.total() + self.light.total()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def table(ours: Counter[str], theirs: Counter[str], other: str = "bare") -> str:
    """Return both counts of every operation, a line each."""
    names = sorted({*ours, *theirs})
    width = max(map(len, names))
    rows = [f"  {name:<{width}}  {ours[name]:>7}  {theirs[name]:>7}" for name in names]
    return "\n".join([f"  {'':<{width}}  normlab  {other:>7}", *rows])


def counted_after_warm_up(train: Callable[[int], None], steps: int) -> Work:
    """Train up to where the first window begins and return the work of the last step before it."""
    train(steps - 1)
    with Work() as work:
        train(1)
    return work


def require_same_work(ours: Work, theirs: Work) -> None:
    if ours.heavy != theirs.heavy:
        raise UnequalWork(f"the operations of a step differ:\n{table(ours.heavy, theirs.heavy)}")
