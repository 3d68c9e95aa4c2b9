"""On a GPU: steps that are replayed against steps that are computed anew, and each technique against none."""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.normalizations import AGAIN, REFERENCE
from benchmarks.options import add_common, positive
from benchmarks.report import Report
from benchmarks.runs import run_settings, takes
from benchmarks.timing import ratio_of, time_rounds, window_of
from normlab import assemble
from normlab.data.images import Dataset, Images
from normlab.outputs.environment import describe_environment
from normlab.training.step import Step

CASES = {
    "dcgan_32": (32, ["architecture=dcgan"]),
    "dcgan_64": (64, ["architecture=dcgan", "dataset.image_size=64"]),
    "sngan_cnn": (32, ["architecture=sngan_cnn"]),
    "sngan_resnet": (32, ["architecture=sngan_resnet"]),
    "sngan_resnet_5": (32, ["architecture=sngan_resnet", "train.discriminator_steps=5"]),
}
PRODUCT = 8192  # rows and columns of the matrices whose product shows how fast the device can be


def gpu(arguments: argparse.Namespace) -> Report:
    """Time full steps on a GPU, as they come and replayed from a captured graph, for each technique of a discriminator.

    The networks have their published widths and see random colours; the generator has batch normalization. The floor is
    the time that the step's convolutions and products would take at the rate of one large product in bfloat16.
    """
    device = assemble.choose_device(run_settings(["device=cuda"]).device)  # refused where there is none
    assemble.set_float32_precision(arguments.precision)
    techniques = [REFERENCE, *(name for name in arguments.techniques if name != REFERENCE)]
    peak = product_rate(device)
    rows: list[dict[str, Any]] = []
    controls: list[float] = []
    for case in arguments.case or CASES:
        size, words = CASES[case]
        words = [*words, f"train.batch_size={arguments.batch}", f"precision={arguments.precision}", "evaluation=none"]

        def step_of(technique: str, capture: str, size: int = size, words: list[str] = words) -> Step:
            settings = run_settings(["device=cuda", *words, f"normalization={technique}", f"train.capture={capture}"])
            images = random_colours(size)
            return assemble.build_step(settings, images, assemble.open_batches(settings, images, device), device)

        anew = {name: step_of(name, "none") for name in techniques}
        steps = {name: step_of(name, "graph") for name in techniques}
        again = step_of(REFERENCE, "graph")
        flops = {name: floating_operations(step) for name, step in anew.items()}
        launches = {name: kernel_launches(step) for name, step in anew.items()}
        arms = {f"{name}, anew": step for name, step in anew.items()} | steps | {AGAIN: again}
        windows = {name: _synchronized(window_of(takes(step), arguments.steps)) for name, step in arms.items()}
        for window in windows.values():
            window()
        seconds = time_rounds(windows, arguments.rounds)
        wall = {name: [window.wall / arguments.steps for window in seconds[name]] for name in seconds}
        controls.append(ratio_of(wall[AGAIN], wall[REFERENCE]).median)
        for name in techniques:
            step = steps[name]
            captured = statistics.median(wall[name])
            rows.append(
                {
                    **{
                        "case": case,
                        "technique": name,
                        "captured": step.capture is not None and not step.capture.impossible,
                    },
                    "anew_milliseconds": 1000 * statistics.median(wall[f"{name}, anew"]),
                    "captured_milliseconds": 1000 * captured,
                    "speedup": ratio_of(wall[f"{name}, anew"], wall[name])._asdict(),
                    "cost": ratio_of(wall[name], wall[REFERENCE])._asdict(),
                    "images_per_second": step.discriminator_steps * step.batch_size / captured,
                    "launches_per_step": launches[name],
                    "share_of_floor": flops[name] / peak / captured,
                }
            )
    control = max(controls, key=lambda ratio: abs(ratio - 1), default=1.0)
    values = {
        "benchmark": "gpu",
        "ratio": min((row["speedup"]["median"] for row in rows), default=1.0),
        **{"rows": rows, "control": control, "rounds": arguments.rounds},
        "product_teraflops": peak / 1e12,
        "settings": {key: getattr(arguments, key) for key in ("batch", "precision", "steps")},
        "environment": describe_environment(device, arguments.precision),
    }
    lines = [
        "full steps on a GPU, computed anew and replayed from a captured graph",
        f"  {torch.cuda.get_device_name(device)}, batches of {arguments.batch}, {arguments.precision}, "
        f"{arguments.rounds} rounds of {arguments.steps} steps; one large product runs at {peak / 1e12:.0f} TFLOP/s",
        *(
            f"  {row['case']:<14}  {row['technique']:<29}  {row['anew_milliseconds']:7.2f} ms anew, "
            f"{row['captured_milliseconds']:6.2f} ms captured ({row['speedup']['median']:.1f} times as fast), "
            f"{row['cost']['median']:.3f} of none, {row['images_per_second']:,.0f} images/s, "
            f"{row['launches_per_step']} launches, {100 * row['share_of_floor']:.0f} % of the floor"
            for row in rows
        ),
        f"  noise control  {control:.3f}  (none against itself, the worst of {len(controls)})",
    ]
    return Report(values, lines)


def random_colours(size: int) -> Dataset:
    rng = np.random.default_rng(0)
    train, held_out = (
        Images(rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8), rng.integers(0, 10, count))
        for count in (4096, 256)
    )
    return Dataset("random", train, held_out, tuple("0123456789"), "0" * 64, flip=False, notes=())


def product_rate(device: torch.device) -> float:
    """Return how many operations a second a device makes in a large product of random bfloat16 matrices."""
    A, B = (torch.randn(PRODUCT, PRODUCT, device=device, dtype=torch.bfloat16) for _ in range(2))
    window = _synchronized(lambda: [A @ B for _ in range(10)])
    window()
    seconds = time_rounds({"product": window}, 5)["product"]
    return 10 * 2 * PRODUCT**3 / statistics.median(window.wall for window in seconds)


class Flops(TorchDispatchMode):
    """Counts what convolutions and products compute in a block; torch's own counter cannot follow `autograd.grad`."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def floating_operations(step: Step) -> int:
    """Return how many operations the convolutions and products of a step make, forward and backward."""
    with Flops() as flops:
        step.take()
    return flops.total


def kernel_launches(step: Step) -> int:
    """Return how many kernels a step launches; it takes two."""
    step.take()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step.take()
        torch.cuda.synchronize()
    events = profile.events() or []
    return sum(_is_kernel(event.name) for event in events if event.device_type.name == "CUDA")


def _is_kernel(name: str) -> bool:
    return not name.startswith(("Memcpy", "Memset"))


def _synchronized(window: Callable[[], object]) -> Callable[[], None]:
    """Return a window that lasts until the device has done its work."""

    def synchronized() -> None:
        window()
        torch.cuda.synchronize()

    return synchronized


def add_options(parser: argparse.ArgumentParser) -> None:
    add_common(parser, gpu)
    parser.add_argument("--rounds", type=positive, default=6)
    parser.add_argument("--steps", type=positive, default=20, help="steps of a window")
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="bf16")
    parser.add_argument("--case", action="append", choices=CASES, help="may be given several times; all by default")
    parser.add_argument("techniques", nargs="*", metavar="TECHNIQUE", default=["spectral"], help="beside none")
