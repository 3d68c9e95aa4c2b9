"""On a GPU: steps that are replayed against steps that are computed anew, and each technique against none."""

import argparse
import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.bare import BareLoop, fused_adam, shuffled
from benchmarks.normalizations import REFERENCE
from benchmarks.options import add_common, positive
from benchmarks.report import Report
from benchmarks.runs import run_settings, takes
from benchmarks.timing import AGAIN, Ratio, ratio_of, time_rounds, window_of
from normlab import assemble
from normlab.data.images import Dataset, Images
from normlab.outputs.environment import describe_environment
from normlab.training.step import Step

CASES = {
    "dcgan_32": (32, ["architecture=dcgan", "architecture.width=64"]),
    "dcgan_64": (64, ["architecture=dcgan", "architecture.width=64", "dataset.image_size=64"]),
    "sngan_cnn": (32, ["architecture=sngan_cnn"]),
    "sngan_resnet": (32, ["architecture=sngan_resnet"]),
    "sngan_resnet_5": (32, ["architecture=sngan_resnet", "train.discriminator_steps=5"]),
}
PRODUCT = 8192  # rows and columns of the matrices whose product shows how fast the device can be
ANEW, BARE = "none", "bare"
CAPTURES = ("graph", "compile")


def gpu(arguments: argparse.Namespace) -> Report:
    """Time full steps on a GPU, as they come and replayed from a captured graph, for each technique of a discriminator.

    The networks have their published widths and see random colours; the generator has batch normalization. The floor is
    the time that the step's convolutions and products would take at the rate of one large product in bfloat16.
    """
    device = assemble.choose_device(run_settings(["device=cuda"]).device)  # refused where there is none
    assemble.set_float32_precision(arguments.precision)
    peak = product_rate(device)
    rows: list[dict[str, Any]] = []
    controls: list[float] = []
    for case in arguments.case or CASES:
        found, control = rows_of(case, arguments, device, peak)
        rows += found
        controls.append(control)
    control = max(controls, key=lambda ratio: abs(ratio - 1), default=1.0)
    values = {
        "benchmark": "gpu",
        **least_speedup(rows).headline(),
        **{"rows": rows, "control": control, "rounds": arguments.rounds},
        "product_teraflops": peak / 1e12,
        "settings": {key: getattr(arguments, key) for key in ("batch", "precision", "memory_format", "steps")},
        "environment": describe_environment(device, arguments.precision),
    }
    lines = [
        "full steps on a GPU, computed anew and replayed from a captured graph",
        f"  {torch.cuda.get_device_name(device)}, batches of {arguments.batch}, {arguments.precision}, "
        f"{arguments.memory_format}, {arguments.rounds} rounds of {arguments.steps} steps; one large product runs at "
        f"{peak / 1e12:.0f} TFLOP/s",
        *(
            f"  {row['case']:<14}  {row['technique']:<29}  {row['capture']:<7}  {row['milliseconds']:6.2f} ms, "
            f"{row['speedup']['median']:.1f} times as fast as anew, {row['cost']['median']:.3f} of none, "
            f"{row['images_per_second']:,.0f} images/s, {row['launches_per_step']} launches, "
            f"{100 * row['share_of_floor']:.0f} % of the floor"
            for row in rows
        ),
        f"  noise control  {control:.3f}  (none against itself, the worst of {len(controls)})",
    ]
    return Report(values, lines)


def rows_of(
    case: str, arguments: argparse.Namespace, device: torch.device, peak: float
) -> tuple[list[dict[str, Any]], float]:
    """Return a row for each technique and for whatever is made of its steps, and the noise control."""
    size, words = CASES[case]
    images = random_colours(size)
    options = [f"{key}={getattr(arguments, key)}" for key in ("precision", "memory_format")]
    words = ["device=cuda", *words, *options, f"train.batch_size={arguments.batch}", "evaluation=none"]

    def step_of(technique: str, capture: str) -> Step:
        settings = run_settings([*words, f"normalization={technique}", f"train.capture={capture}"])
        return assemble.build_step(settings, images, assemble.open_batches(settings, images, device), device)

    captures = [ANEW, *(arguments.capture or CAPTURES)]
    techniques = dict.fromkeys([REFERENCE, *arguments.techniques])
    steps = {(technique, capture): step_of(technique, capture) for technique in techniques for capture in captures}
    again = step_of(REFERENCE, captures[1])
    flops = {technique: floating_operations(steps[technique, ANEW]) for technique in techniques}
    launches = {arm: kernel_launches(step) for arm, step in steps.items()}
    kernel_launches(again)
    # The graphs have been recorded; what was compiled for them is not called again.
    torch.compiler.reset()
    loops = {arm: takes(step) for arm, step in steps.items()}
    loops |= {(REFERENCE, AGAIN): takes(again), (REFERENCE, BARE): loop_of_modules(steps[REFERENCE, ANEW]).train}
    wall = seconds_per_step(loops, arguments.steps, arguments.rounds)
    rows = [
        {
            **{"case": case, "technique": technique, "capture": capture},
            **{"captured": is_captured(step), "compiled": step.compiler is not None and not step.compiler.impossible},
            "milliseconds": 1000 * statistics.median(wall[technique, capture]),
            "speedup": ratio_of(wall[technique, ANEW], wall[technique, capture])._asdict(),
            "cost": ratio_of(wall[technique, capture], wall[REFERENCE, capture])._asdict(),
            "images_per_second": step.discriminator_steps
            * step.batch_size
            / statistics.median(wall[technique, capture]),
            "launches_per_step": launches[technique, capture],
            "share_of_floor": flops[technique] / peak / statistics.median(wall[technique, capture]),
        }
        for (technique, capture), step in steps.items()
    ]
    for capture, row in zip(captures, rows, strict=False):  # those of none come first
        row["of_bare"] = ratio_of(wall[REFERENCE, capture], wall[REFERENCE, BARE])._asdict()
    return rows, ratio_of(wall[REFERENCE, AGAIN], wall[REFERENCE, captures[1]]).median


def least_speedup(rows: Sequence[Mapping[str, Any]]) -> Ratio:
    """Return the least that capture gains over steps as they come, in any case and with any technique."""
    return min(Ratio(**row["speedup"]) for row in rows if row["capture"] != ANEW)


def is_captured(step: Step) -> bool:
    return step.capture is not None and not step.capture.impossible


def seconds_per_step(
    loops: Mapping[tuple[str, str], Callable[[int], None]], steps: int, rounds: int
) -> dict[tuple[str, str], list[float]]:
    """Return how long a step of each loop takes in each round, until the device has done it."""
    windows = {" ".join(arm): _synchronized(window_of(train, steps)) for arm, train in loops.items()}
    for window in windows.values():
        window()
    seconds = time_rounds(windows, rounds)
    return {arm: [window.wall / steps for window in seconds[" ".join(arm)]] for arm in loops}


def loop_of_modules(step: Step) -> BareLoop:
    """Return a loop on the device with the images of a step and copies of its plain modules, none reparametrized."""
    generator, discriminator = (
        copy.deepcopy(network.body) for network in (step.state.generator, step.state.discriminator)
    )
    shape = step.batch_size, step.state.generator.latent_size
    return BareLoop(
        generator=generator,
        discriminator=discriminator,
        generator_optimizer=fused_adam(generator),
        discriminator_optimizer=fused_adam(discriminator),
        loss=step.loss,
        batches=shuffled(torch.tensor(step.real.images.pixels[:], device=step.device), step.batch_size),
        latents=lambda: torch.randn(shape, device=step.device),
        discriminator_steps=step.discriminator_steps,
        autocast=step.autocast,
    )


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
    """Return how many kernels a step launches, once it is captured if it is to be; it takes four."""
    for _ in range(3):
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
    parser.add_argument("--memory-format", choices=assemble.MEMORY_FORMATS, default="channels_last")
    parser.add_argument("--capture", action="append", choices=CAPTURES, help="may be given twice; both by default")
    parser.add_argument("--case", action="append", choices=CASES, help="may be given several times; all by default")
    parser.add_argument("techniques", nargs="*", metavar="TECHNIQUE", default=["spectral"], help="beside none")
